"""kubectl's part in ``Cluster``, asked of the stand-in by HTTP and in this process: for tests that ask very often.

What it says is what kubectl prints (``tests/unit/standins`` compares the server's answers with those to real kubectl,
and what ``Cluster`` makes of either). What it has no words for is asked of kubectl itself.
"""

from __future__ import annotations

import http.client
import itertools
import json
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import pytest

from parbake.core.errors import CommandFailed
from parbake.core.run import Result, run
from parbake.rollouts import cluster
from standins.kubernetes.server import Server

_WARNED = re.compile(r'299 - (".*")')


def replace_kubectl(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask the stand-in that KUBECONFIG names without kubectl, whose start takes a tenth of a second each time."""

    def asks(command: list[str], **options: Any) -> Result:
        *arguments, limit = command[1:]
        if command[0] != "kubectl" or "--context" in arguments or not limit.startswith("--request-timeout="):
            return run(command, **options)
        config = json.loads(Path(os.environ["KUBECONFIG"]).read_text())
        return _kubectl(config["clusters"][0]["cluster"]["server"], arguments)

    monkeypatch.setattr(cluster, "run", asks)


def kubectl(server: Server, arguments: list[str]) -> Result:
    """Do what kubectl does with arguments that ``Cluster`` gives it; raises CommandFailed with kubectl's words."""
    return _kubectl(server.url, arguments)


def _kubectl(url: str, arguments: list[str]) -> Result:
    match arguments:
        case ["get", "--raw", path]:
            return _said(_ask(url, "GET", path)[0])
        case ["get", resources, "-o", "json", *options]:
            found = [_ask(url, "GET", _path(each, options))[0] for each in resources.split(",")]
            items = [item for each in found for item in each["items"]]
            for each in items:
                each["metadata"].pop("managedFields", None)
            return _said({"items": items})
        case ["get", resource, name, "-o", "json", "--show-managed-fields"]:
            return _said(_ask(url, "GET", f"{_path(resource, [])}/{quote(name)}")[0])
        case ["patch", resource, name, "--type=merge", manager, "-p", text, "-o", "name", *options]:
            query = {"fieldManager": manager.partition("=")[2], **({"dryRun": "All"} if options else {})}
            _, warnings = _ask(url, "PATCH", f"{_path(resource, [])}/{quote(name)}?{urlencode(query)}", text)
            return Result(0, b"patched\n", "".join(f"Warning: {each}\n" for each in warnings))
        case ["explain", field, version]:
            return _explain(url, field.split("."), version.partition("=")[2])
    raise AssertionError(arguments)


def _explain(url: str, path: list[str], version: str) -> Result:
    plural, *fields = path
    resources = _ask(url, "GET", f"/apis/{version}")[0]["resources"]
    kind = next(each["kind"] for each in resources if each["name"] == plural)
    schemas = _ask(url, "GET", f"/openapi/v3/apis/{version}")[0]["components"]["schemas"]
    schema = schemas[".".join((*version.split("/"), kind))]
    for field in fields:
        schema = schema.get("items", schema).get("properties", {}).get(field)
        if schema is None:
            raise CommandFailed("kubectl failed", code=1, output=f'error: field "{field}" does not exist')
    return Result(0, b"FIELD\n", "")


def _path(resource: str, options: list[str]) -> str:
    plural, version, group = [*resource.split(".", 2), "", ""][:3]
    place = f"/apis/{group}/{version}/" if group else "/api/v1/"
    place += "namespaces/default/" if "-n" in options else ""
    names = {"--selector": "labelSelector", "--field-selector": "fieldSelector"}
    query = {names[name]: value for name, value in itertools.pairwise(options) if name in names}
    return f"{place}{plural}" + (f"?{urlencode(query)}" if query else "")


def _said(document: object) -> Result:
    return Result(0, json.dumps(document).encode(), "")


def _ask(url: str, method: str, path: str, body: str = "") -> tuple[dict[str, Any], list[str]]:
    """Return the answer's document and the server's warnings."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc)
    try:
        connection.request(method, path, body or None, {"Content-Type": "application/merge-patch+json"})
        answer = connection.getresponse()
        document: dict[str, Any] = json.loads(answer.read())
        warnings = answer.headers.get_all("Warning", [])
    finally:
        connection.close()
    if answer.status >= 400:
        raise CommandFailed("kubectl failed", code=1, output=_refused(document))
    return document, [json.loads(found[1]) for each in warnings if (found := _WARNED.fullmatch(each))]


def _refused(status: dict[str, Any]) -> str:
    if status["reason"] == "Invalid" and (causes := status.get("details", {}).get("causes")):
        wrong = [f"{each['field']}: {each['message']}" for each in causes]
        listed = f" {wrong[0]}" if len(wrong) == 1 else "".join(f"\n* {each}" for each in wrong)
        return f'The {status["details"]["kind"]} "{status["details"]["name"]}" is invalid:{listed}'
    return f"Error from server ({status['reason']}): {status['message']}"

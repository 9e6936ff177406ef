"""kubectl's part in ``Cluster``, asked of the stand-in by HTTP and in this process: for tests that ask very often.

What it says is what kubectl prints (``tests/unit/fakes`` compares the server's answers with those to real kubectl).
"""

from __future__ import annotations

import http.client
import itertools
import json
from urllib.parse import quote, urlencode, urlsplit

from parbake.core.errors import CommandFailed
from parbake.core.run import Result
from tests.fakes.kubernetes.server import Server


def kubectl(server: Server, arguments: list[str]) -> Result:
    """Do what kubectl does with arguments that ``Cluster`` gives it; raises CommandFailed with kubectl's words."""
    match arguments:
        case ["get", "--raw", path]:
            return _said(_ask(server, "GET", path))
        case ["get", resources, "-o", "json", *options]:
            found = [_ask(server, "GET", _path(each, options)) for each in resources.split(",")]
            return _said({"items": [item for each in found for item in each["items"]]})
        case ["get", resource, name, "-o", "json", *_]:
            return _said(_ask(server, "GET", f"{_path(resource, [])}/{quote(name)}"))
        case ["patch", resource, name, "--type=merge", manager, "-p", text, "-o", "name", *options]:
            query = {"fieldManager": manager.partition("=")[2], **({"dryRun": "All"} if options else {})}
            _ask(server, "PATCH", f"{_path(resource, [])}/{quote(name)}?{urlencode(query)}", text)
            return Result(0, b"patched\n", "")
        case ["explain", *_]:
            return Result(0, b"FIELD\n", "")
    raise AssertionError(arguments)


def _path(resource: str, options: list[str]) -> str:
    plural, version, group = [*resource.split(".", 2), "", ""][:3]
    place = f"/apis/{group}/{version}/" if group else "/api/v1/"
    place += "namespaces/default/" if "-n" in options else ""
    names = {"--selector": "labelSelector", "--field-selector": "fieldSelector"}
    query = {names[name]: value for name, value in itertools.pairwise(options) if name in names}
    return f"{place}{plural}" + (f"?{urlencode(query)}" if query else "")


def _said(document: object) -> Result:
    return Result(0, json.dumps(document).encode(), "")


def _ask(server: Server, method: str, path: str, body: str = "") -> dict[str, list[object]]:
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc)
    try:
        connection.request(method, path, body or None, {"Content-Type": "application/merge-patch+json"})
        answer = connection.getresponse()
        document: dict[str, list[object]] = json.loads(answer.read())
    finally:
        connection.close()
    if answer.status >= 400:
        text = f"Error from server ({document['reason']}): {document['message']}"
        raise CommandFailed("kubectl failed", code=1, output=text)
    return document

"""A small Kubernetes API server, for tests only: real kubectl talks to it.

It serves discovery, OpenAPI v3, custom resources from CRD files (pruning, defaults, schema and CEL validation, the
status subresource, generation), and a few kinds of its own (events, nodes, pods) without a schema; get, list (label
and field selectors), watch by resourceVersion, create, replace, delete, merge and JSON patch, and server-side apply.

Not modelled: conversion between versions other than the apiVersion's name, RBAC (verbs can be forbidden one by one),
owner references, paging, bookmarks, strategic merge patch (but for a node's conditions), protobuf, tables, logins,
TLS. Admission is a function. What 72 commands of kubectl get is compared with what a real API server 1.36 answered
(``tests/unit/standins``).
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from ruamel.yaml import YAML

from standins.kubernetes import managed_fields, rules
from standins.kubernetes.rules import selected
from standins.kubernetes.store import Kind, Object, Refused, Store, Writing, invalid, json_patch, merge

CRDS = Path(__file__).parent / "karpenter-crds"


_BUILT_IN = (
    Kind("", "v1", "events", "Event", namespaced=True),
    Kind("", "v1", "nodes", "Node"),
    Kind("", "v1", "pods", "Pod", namespaced=True),
    Kind("", "v1", "namespaces", "Namespace"),
)


class Handler(BaseHTTPRequestHandler):
    """One connection of a client."""

    protocol_version = "HTTP/1.1"
    store: Store

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self, document: Any, code: int = 200, warnings: Iterable[str] = ()) -> None:
        body = json.dumps(document, separators=(",", ":")).encode()
        self.send_response(code)
        for each in warnings:
            self.send_header("Warning", f"299 - {json.dumps(each)}")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _serve(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else b""
        parts = urlsplit(self.path)
        query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
        try:
            if self.store.unauthorized:
                raise Refused(401, "Unauthorized", "Unauthorized")
            if self.command == "PATCH" and not query.get("dryRun"):
                self.store.before_patch()
            self.store.before_answer()
            warnings: list[str] = []
            document = self._discovery(parts.path) or self._resource(parts.path, query, body, warnings)
            if document is not None:
                self._answer(document, 201 if self.command == "POST" else 200, warnings)
        except Refused as refused:
            self._answer(refused.status(), refused.code)
        except managed_fields.Conflict as conflict:
            self._answer(Refused(409, "Conflict", _conflicts(conflict.owners)).status(), 409)
        except (ValueError, KeyError, IndexError, TypeError):
            said = "the server rejected our request due to an error in our request"
            self._answer(Refused(422, "Invalid", said).status(), 422)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve  # noqa: N815 (http.server's names)

    def _discovery(self, path: str) -> Object | None:
        kinds = list(self.store.kinds.values())
        groups: dict[str, list[str]] = {}
        for kind in kinds:
            versions = groups.setdefault(kind.group, [])
            if kind.version not in versions:
                versions.append(kind.version)
        described = {name: _group(name, versions) for name, versions in groups.items() if name}
        fixed: dict[str, Object] = {
            "/version": {"major": "1", "minor": "32", "gitVersion": "v1.32.3", "platform": "linux/amd64"},
            "/api": {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []},
            "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": list(described.values())},
            "/openapi/v3": {"paths": {_base(k)[1:]: {"serverRelativeURL": f"/openapi/v3{_base(k)}"} for k in kinds}},
        }
        if path in fixed:
            return fixed[path]
        for kind in kinds:
            if path == _base(kind):
                return _resources([each for each in kinds if each.api_version == kind.api_version])
            if path == f"/openapi/v3{_base(kind)}":
                return _openapi([each for each in kinds if each.api_version == kind.api_version])
        return described.get(path.removeprefix("/apis/"))

    def _resource(  # noqa: PLR0911 (a verb each)
        self, path: str, query: dict[str, str], body: bytes, warnings: list[str]
    ) -> Object | None:
        kind, namespace, name, subresource = self._parse(path)
        store, verb = self.store, self._verb(name, query)
        self._admit(kind, namespace, name, verb, query)
        if verb == "watch":
            self._watch(kind, query)
            return None
        how = Writing(
            query.get("fieldManager") or self.headers.get("User-Agent", "unknown").split("/")[0],
            subresource,
            strict=query.get("fieldValidation") == "Strict",
            dry_run=query.get("dryRun") == "All",
            warnings=warnings,
        )
        with store.changed:
            match verb:
                case "get":
                    return store.find(kind, namespace, name)
                case "list":
                    metadata = {"resourceVersion": str(store.version)}
                    items = selected(store.every(kind, namespace), query)
                    return {
                        "kind": f"{kind.kind}List",
                        "apiVersion": kind.api_version,
                        "metadata": metadata,
                        "items": items,
                    }
                case "create":
                    new = json.loads(body)
                    key = (kind.group, kind.plural, namespace, new["metadata"]["name"])
                    if key in store.objects:
                        raise Refused(409, "AlreadyExists", f'{kind.resource} "{key[3]}" already exists')
                    if namespace:
                        new["metadata"]["namespace"] = namespace
                    return store.put(kind, None, new, how)
                case "update":
                    return store.put(kind, store.find(kind, namespace, name), json.loads(body), how)
                case "delete":
                    return store.remove(kind, namespace, name, dry_run=how.dry_run)
                case _:
                    return self._patch(kind, namespace, name, body, how, force=query.get("force") == "true")

    def _admit(self, kind: Kind, namespace: str, name: str, verb: str, query: dict[str, str]) -> None:
        if (verb, kind.plural) in self.store.forbidden:
            where = f'in API group "{kind.group}" at the cluster scope'
            text = f'User "dev" cannot {verb} resource "{kind.plural}" {where}'
            raise Refused(403, "Forbidden", f'{kind.plural}.{kind.group} "{name}" is forbidden: {text}')
        if unknown := rules.unsupported(kind.plural, query):
            raise Refused(400, "BadRequest", f"field label not supported: {unknown}")
        made = ("", "namespaces", "", namespace) in self.store.objects
        if namespace and not made and namespace not in rules.NAMESPACES:
            raise Refused(404, "NotFound", f'namespaces "{namespace}" not found')

    def _patch(self, kind: Kind, namespace: str, name: str, body: bytes, how: Writing, *, force: bool) -> Object:
        match self.headers["Content-Type"].partition(";")[0]:
            case "application/merge-patch+json":
                old = self.store.find(kind, namespace, name)
                return self.store.put(kind, old, _same(kind, old, merge(old, json.loads(body))), how)
            case "application/strategic-merge-patch+json" if kind.plural == "nodes":
                old = self.store.find(kind, namespace, name)
                patch = json.loads(body)
                new, told = merge(old, patch), patch.get("status", {}).get("conditions", [])
                if told:  # they merge by their types (patchMergeKey)
                    there = {each["type"]: each for each in old.get("status", {}).get("conditions", [])}
                    there |= {each["type"]: {**there.get(each["type"], {}), **each} for each in told}
                    new["status"]["conditions"] = list(there.values())
                return self.store.put(kind, old, _same(kind, old, new), how)
            case "application/json-patch+json":
                old = self.store.find(kind, namespace, name)
                return self.store.put(kind, old, _same(kind, old, json_patch(old, json.loads(body))), how)
            case "application/apply-patch+yaml":
                wanted: Object = _yaml().load(body)
                try:
                    found: Object | None = self.store.find(kind, namespace, name)
                except Refused:
                    found = None
                new = managed_fields.apply(found, wanted, how.manager, force=force)
                applied = {**wanted, "metadata": {**wanted["metadata"]}}
                return self.store.put(kind, found, new, replace(how, applied=applied))
            case _:
                known = ("application/json-patch+json", "application/merge-patch+json", "application/apply-patch+yaml")
                said = "the body of the request was in an unknown format - accepted media types include: "
                raise Refused(415, "UnsupportedMediaType", f"{said}{', '.join(known)}")

    def _verb(self, name: str, query: dict[str, str]) -> str:
        if self.command == "GET":
            return "watch" if query.get("watch") in {"1", "true"} else "get" if name else "list"
        return {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}[self.command]

    def _parse(self, path: str) -> tuple[Kind, str, str, str]:
        match = re.fullmatch(
            r"/(?:api|apis/([^/]+))/([^/]+)(?:/namespaces/([^/]+)(?=/[^/]+))?/([^/]+)(?:/([^/]+))?(?:/(status))?", path
        )
        kind = self.store.kinds.get((match[1] or "", match[2], match[4])) if match else None
        if match is None or kind is None:
            raise Refused(404, "NotFound", "the server could not find the requested resource")
        return kind, match[3] or "", match[5] or "", match[6] or ""

    def _watch(self, kind: Kind, query: dict[str, str]) -> None:
        since = int(query.get("resourceVersion") or 0)
        if since and since < self.store.oldest:
            raise Refused(410, "Expired", f"too old resource version: {since} ({self.store.oldest})")
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        with suppress(OSError):
            for event in self._events(kind, since, query, float(query.get("timeoutSeconds") or 300)):
                line = json.dumps(event).encode() + b"\n"
                self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
                self.wfile.flush()
            self.wfile.write(b"0\r\n\r\n")

    def _events(self, kind: Kind, since: int, query: dict[str, str], seconds: float) -> Iterator[Object]:
        end = datetime.now(UTC).timestamp() + seconds
        if not since:
            for each in selected(self.store.every(kind), query):
                yield {"type": "ADDED", "object": each}
            since = self.store.version
        while (left := end - datetime.now(UTC).timestamp()) > 0:
            with self.store.changed:
                fresh = [each for each in self.store.log if each[0] > since]
                if not fresh:
                    self.store.changed.wait(min(left, 0.5))
                    fresh = [each for each in self.store.log if each[0] > since]
            for version, happened, group, plural, found in fresh:
                since = version
                if (group, plural) == (kind.group, kind.plural) and selected([found], query):
                    yield {"type": happened, "object": {**found, "apiVersion": kind.api_version}}


def _same(kind: Kind, old: Object, new: Object) -> Object:
    """Refuse a patch that makes another object of one."""
    name, given = old["metadata"]["name"], new["metadata"]
    if given["name"] != name:
        said = f"the name of the object ({given['name']}) does not match the name on the URL ({name})"
        raise Refused(400, "BadRequest", said)
    if any(not isinstance(each, str) for each in (given.get("annotations") or {}).values()):
        said = json.dumps(json.dumps(new, sort_keys=True, separators=(",", ":")))
        raise Refused(422, "Invalid", f"patch: Invalid value: {said}: json: cannot unmarshal")
    if given.get("uid") != old["metadata"]["uid"]:
        raise invalid(kind, name, f'metadata.uid: Invalid value: "{given.get("uid")}": field is immutable')
    if new["kind"] != kind.kind:
        said = f'kind: Invalid value: "{new["kind"]}": must be {kind.kind}'
        raise invalid(kind, name, said, called=new["kind"])
    return new


def _conflicts(owners: dict[str, list[str]]) -> str:
    count = sum(map(len, owners.values()))
    if count == 1:
        ((name, fields),) = owners.items()
        return f"Apply failed with 1 conflict: conflict with {name}: {fields[0]}"
    lines = [
        line for name, fields in owners.items() for line in (f"conflicts with {name}:", *(f"- {f}" for f in fields))
    ]
    return f"Apply failed with {count} conflicts: " + "\n".join(lines)


def _base(kind: Kind) -> str:
    return f"/apis/{kind.group}/{kind.version}" if kind.group else f"/api/{kind.version}"


def _group(name: str, versions: list[str]) -> Object:
    listed = [{"groupVersion": f"{name}/{each}", "version": each} for each in versions]
    return {"kind": "APIGroup", "apiVersion": "v1", "name": name, "versions": listed, "preferredVersion": listed[0]}


def _resources(kinds: list[Kind]) -> Object:
    verbs = ["create", "delete", "get", "list", "patch", "update", "watch"]
    listed = [
        {"name": k.plural, "singularName": k.kind.lower(), "namespaced": k.namespaced, "kind": k.kind, "verbs": verbs}
        for k in kinds
    ]
    listed += [
        {
            "name": f"{k.plural}/status",
            "singularName": "",
            "namespaced": k.namespaced,
            "kind": k.kind,
            "verbs": verbs[2:],
        }
        for k in kinds
        if k.status
    ]
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": kinds[0].api_version, "resources": listed}


def _openapi(kinds: list[Kind]) -> Object:
    """Return what kubectl looks for: that fields are validated by the server, and the schemas for `explain`."""
    validation = {"name": "fieldValidation", "in": "query", "schema": {"type": "string"}}
    paths, components = {}, {}
    for kind in kinds:
        gvk = {"group": kind.group, "version": kind.version, "kind": kind.kind}
        operation = {"x-kubernetes-group-version-kind": gvk, "parameters": [validation], "responses": {}}
        paths[f"{_base(kind)}/{kind.plural}/{{name}}"] = dict.fromkeys(("patch", "put", "post"), operation)
        components[f"{kind.group}.{kind.version}.{kind.kind}"] = {
            **(kind.schema or {"type": "object"}),
            "x-kubernetes-group-version-kind": [gvk],
        }
    return {"openapi": "3.0.0", "info": {"title": "stand-in", "version": "1"}, "paths": paths,
            "components": {"schemas": components}}  # fmt: skip


@dataclass
class Server:
    """A running server and how kubectl finds it."""

    store: Store
    url: str
    kubeconfig: Path

    def kind(self, plural: str, version: str = "v1") -> Kind:
        return next(k for k in self.store.kinds.values() if k.plural == plural and k.version == version)

    def create(self, plural: str, name: str, version: str = "v1", manager: str = "test", **parts: Any) -> Object:
        """Create an object; its ``status`` is set as a controller would."""
        kind = self.kind(plural, version)
        metadata = {"name": name, **parts.pop("metadata", {})}
        status = parts.pop("status", None)
        with self.store.changed:
            made = self.store.put(kind, None, {"metadata": metadata, **parts}, Writing(manager))
            return self.set_status(plural, name, status, version) if status is not None else made

    def get(self, plural: str, name: str, version: str = "v1", namespace: str = "") -> Object:
        return self.store.find(self.kind(plural, version), namespace, name)

    def list(self, plural: str, version: str = "v1") -> list[Object]:
        return self.store.every(self.kind(plural, version))

    def change(self, plural: str, name: str, patch: Object, version: str = "v1", manager: str = "test") -> Object:
        kind = self.kind(plural, version)
        with self.store.changed:
            old = self.store.find(kind, "", name)
            return self.store.put(kind, old, merge(old, patch), Writing(manager))

    def set_status(self, plural: str, name: str, status: Object, version: str = "v1") -> Object:
        kind = self.kind(plural, version)
        with self.store.changed:
            old = self.store.find(kind, "", name)
            return self.store.put(kind, old, {**old, "status": status}, Writing("karpenter", "status"))

    def delete(self, plural: str, name: str, version: str = "v1") -> None:
        self.store.remove(self.kind(plural, version), "", name)


@cache
def load_crds(*names: str) -> list[Object]:
    """Read CRD files of standins/kubernetes/karpenter-crds by the start of their names."""
    found = []
    for name in names:
        with (CRDS / f"{name}.yaml").open() as file:
            found += [each for each in _yaml().load_all(file) if each]
    return found


def _yaml() -> Any:
    return YAML(typ="safe")


def store_of(*crds: str) -> Store:
    """Return an empty store with these CRDs, and the kinds that every cluster has."""
    store = Store()
    for kind in _BUILT_IN:
        store.kinds[kind.group, kind.version, kind.plural] = kind
    for crd in load_crds(*crds):
        store.install(crd)
    return store


@contextmanager
def serving(folder: Path, *crds: str) -> Iterator[Server]:
    """Serve the CRDs of these files, with a kubeconfig in a folder."""
    with listening(store_of(*crds), folder) as server:
        yield server


@contextmanager
def listening(store: Store, folder: Path) -> Iterator[Server]:
    """Serve what is in a store, with a kubeconfig in a folder."""
    handler = type("Bound", (Handler,), {"store": store})
    http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{http.server_port}"
    config = {
        "apiVersion": "v1", "kind": "Config", "current-context": "prod",
        "clusters": [{"name": "c", "cluster": {"server": url}}],
        "users": [{"name": "dev", "user": {}}],
        "contexts": [{"name": "prod", "context": {"cluster": "c", "user": "dev"}}],
    }  # fmt: skip
    kubeconfig = folder / "kubeconfig"
    kubeconfig.write_text(json.dumps(config))
    try:
        yield Server(store, url, kubeconfig)
    finally:
        http.shutdown()
        http.server_close()
        thread.join()

"""What a server keeps: kinds, objects, everything that happened to them; and how patches are merged."""

from __future__ import annotations

import copy
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from standins.kubernetes import managed_fields, rules, schemas

Object = dict[str, Any]
_DELETION = ("deletionTimestamp", "deletionGracePeriodSeconds")


@dataclass(frozen=True)
class Kind:
    """A kind that is served in one version."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = False
    schema: Any = None
    status: bool = False

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def resource(self) -> str:
        """As the server names it in what it says."""
        return f"{self.plural}.{self.group}" if self.group else self.plural


class Refused(Exception):
    """The server says no."""

    def __init__(self, code: int, reason: str, message: str, **details: Any) -> None:
        super().__init__(message)
        self.code, self.reason, self.message, self.details = code, reason, message, details

    def status(self) -> Object:
        return {
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
            "details": self.details,
        }  # fmt: skip


@dataclass
class Store:
    """The objects, and everything that happened to them, in order."""

    kinds: dict[tuple[str, str, str], Kind] = field(default_factory=dict)
    objects: dict[tuple[str, str, str, str], Object] = field(default_factory=dict)
    log: list[tuple[int, str, str, str, Object]] = field(default_factory=list)
    version: int = 100
    oldest: int = 100
    forbidden: set[tuple[str, str]] = field(default_factory=set)
    policies: list[Callable[[Object | None, Object], str]] = field(default_factory=list)
    """What admission says to a write, given the object before and after; empty: nothing against it."""
    unauthorized: bool = False
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    """What time it is to the server."""
    before_patch: Callable[[], object] = lambda: None
    before_answer: Callable[[], object] = lambda: None
    """Called before any answer about objects; may raise Refused."""
    before_write: list[Callable[[], None]] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=lambda: threading.Condition(threading.RLock()))

    def unlock(self) -> None:
        """Forget who holds the lock: in a copy of this process its other threads are gone."""
        self.changed = threading.Condition(threading.RLock())

    def install(self, crd: Object) -> None:
        spec = crd["spec"]
        for each in spec["versions"]:
            if each["served"]:
                kind = Kind(
                    spec["group"], each["name"], spec["names"]["plural"], spec["names"]["kind"],
                    spec["scope"] == "Namespaced", each["schema"]["openAPIV3Schema"],
                    "status" in each.get("subresources", {}),
                )  # fmt: skip
                self.kinds[kind.group, kind.version, kind.plural] = kind

    def find(self, kind: Kind, namespace: str, name: str) -> Object:
        found = self.objects.get((kind.group, kind.plural, namespace, name))
        if found is None:
            raise Refused(404, "NotFound", f'{kind.resource} "{name}" not found')
        return {**copy.deepcopy(found), "apiVersion": kind.api_version}

    def every(self, kind: Kind, namespace: str = "") -> list[Object]:
        return [
            {**copy.deepcopy(each), "apiVersion": kind.api_version}
            for (group, plural, place, _), each in sorted(self.objects.items())
            if (group, plural) == (kind.group, kind.plural) and (not namespace or place == namespace)
        ]

    def put(self, kind: Kind, old: Object | None, new: Object, how: Writing) -> Object:
        """Check and store an object; raises Refused."""
        while self.before_write and not how.dry_run:  # what somebody else does at the worst moment
            self.before_write.pop()()
            old = self.find(kind, new["metadata"].get("namespace", ""), new["metadata"]["name"]) if old else None
        metadata = new["metadata"]
        if old:
            self._need_fresh(kind, old, metadata)
        if kind.status and old:
            sub = bool(how.subresource)
            new = {**old, "status": new.get("status")} if sub else {**new, "status": old.get("status")}
            new["metadata"] = dict(old["metadata"] if how.subresource else metadata)
        elif kind.status:
            new.pop("status", None)
        new = {key: value for key, value in new.items() if value is not None}
        new["kind"], new["apiVersion"] = kind.kind, kind.api_version
        self._check(kind, old, new, how)
        for policy in self.policies:
            if problem := policy(old, new):
                raise Refused(403, "Forbidden", f'{kind.resource} "{new["metadata"]["name"]}" is forbidden: {problem}')
        self._stamp(old, new)
        fields = managed_fields.leaves(how.applied) if how.applied is not None else managed_fields.changed(old, new)
        operation = "Apply" if how.applied is not None else "Update"
        managed_fields.record(
            old, new, how.manager, operation, set(fields) & managed_fields.places(new), how.subresource
        )
        if old and _without_times(old) == _without_times(new):
            return new  # nothing changed: no new resourceVersion
        if how.dry_run:
            return new
        if old and "deletionTimestamp" in old["metadata"] and not new["metadata"].get("finalizers"):
            return self._gone(kind, new)
        with self.changed:
            self.version += 1
            new["metadata"]["resourceVersion"] = str(self.version)
            key = (kind.group, kind.plural, new["metadata"].get("namespace", ""), new["metadata"]["name"])
            self.objects[key] = copy.deepcopy(new)
            self.log.append((self.version, "MODIFIED" if old else "ADDED", kind.group, kind.plural, copy.deepcopy(new)))
            self.changed.notify_all()
        return new

    @staticmethod
    def _need_fresh(kind: Kind, old: Object, metadata: Object) -> None:
        wanted = metadata.get("resourceVersion")
        if wanted and not wanted.isdigit():
            raise Refused(500, "", f'strconv.ParseUint: parsing "{wanted}": invalid syntax')
        if wanted and wanted != old["metadata"]["resourceVersion"]:
            text = "the object has been modified; please apply your changes to the latest version and try again"
            message = f'Operation cannot be fulfilled on {kind.resource} "{metadata["name"]}": {text}'
            raise Refused(409, "Conflict", message)

    def _check(self, kind: Kind, old: Object | None, new: Object, how: Writing) -> None:
        wrong = list(rules.problems(new["metadata"]))
        if kind.plural == "events" and not old:
            wrong += _event(new)
        if kind.schema is not None and not wrong:
            unknown = schemas.prune(kind.schema, new)
            told = [f'unknown field "{each}"' for each in unknown]
            if told and how.strict:
                said = f'{kind.kind} in version "{kind.version}" cannot be handled as a {kind.kind}'
                raise Refused(400, "BadRequest", f"{said}: strict decoding error: {', '.join(told)}")
            how.warnings.extend(told)
            schemas.default(kind.schema, new)
            wrong = schemas.problems(kind.schema, new, old)
        if wrong:
            raise invalid(kind, new["metadata"]["name"], *wrong)

    def _stamp(self, old: Object | None, new: Object) -> None:
        metadata = new["metadata"]
        if old is None:
            metadata |= {"uid": str(uuid.uuid4()), "generation": 1}
            metadata["creationTimestamp"] = self.clock().strftime("%Y-%m-%dT%H:%M:%SZ")
            return
        for key in ("uid", "creationTimestamp", "generation", "resourceVersion", *_DELETION):
            if key in old["metadata"]:
                metadata[key] = old["metadata"][key]
        outside = {"metadata", "status", "apiVersion"}
        if {k: v for k, v in old.items() if k not in outside} != {k: v for k, v in new.items() if k not in outside}:
            metadata["generation"] += 1

    def remove(self, kind: Kind, namespace: str, name: str, *, dry_run: bool = False) -> Object:
        """Delete an object; while it has finalizers it stays, and says since when it is being deleted."""
        found = self.find(kind, namespace, name)
        if dry_run:
            return found
        with self.changed:
            if not found["metadata"].get("finalizers"):
                return self._gone(kind, found)
            now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            stored = self.objects[kind.group, kind.plural, namespace, name]["metadata"]
            if "deletionTimestamp" not in stored:
                self.version += 1
                stored |= {"deletionTimestamp": now, "deletionGracePeriodSeconds": 0}
                stored |= {"generation": stored["generation"] + 1, "resourceVersion": str(self.version)}
            found = self.find(kind, namespace, name)
            self.log.append((self.version, "MODIFIED", kind.group, kind.plural, found))
            self.changed.notify_all()
        return found

    def _gone(self, kind: Kind, found: Object) -> Object:
        with self.changed:
            self.version += 1
            del self.objects[kind.group, kind.plural, found["metadata"].get("namespace", ""), found["metadata"]["name"]]
            self.log.append((self.version, "DELETED", kind.group, kind.plural, found))
            self.changed.notify_all()
        return found

    def compact(self) -> None:
        """Forget what happened so far, as etcd does: older watches get 410."""
        with self.changed:
            self.oldest = self.version
            self.log.clear()


def invalid(kind: Kind, name: str, *wrong: str, called: str = "") -> Refused:
    """Return the refusal of an object that is not valid."""
    listed = wrong[0] if len(wrong) == 1 else f"[{', '.join(wrong)}]"
    causes = [{"field": field, "message": text} for field, _, text in (each.partition(": ") for each in wrong)]
    details = {"kind": called or kind.kind, "group": kind.group, "name": name, "causes": causes}
    return Refused(422, "Invalid", f'{called or kind.kind}.{kind.group} "{name}" is invalid: {listed}', **details)


def _event(new: Object) -> list[str]:
    about, place = (new.get("involvedObject") or {}).get("namespace", ""), new["metadata"].get("namespace", "")
    if about == place or (not about and place == "default"):  # what has no namespace has its events in that one
        return []
    return [f'involvedObject.namespace: Invalid value: "{about}": does not match event.namespace']


def _without_times(found: Object) -> Object:
    metadata = found["metadata"]
    fields = [{**each, "time": ""} for each in metadata.get("managedFields", [])]
    return {**found, "metadata": {**metadata, "managedFields": fields}}


@dataclass(frozen=True)
class Writing:
    """Who writes, and how."""

    manager: str = "test"
    subresource: str = ""
    applied: Object | None = None
    strict: bool = False
    dry_run: bool = False
    warnings: list[str] = field(default_factory=list)


def merge(target: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge(result.get(key), value)
    return result


def json_patch(target: Any, operations: list[Object]) -> Any:
    """RFC 6902: add, remove, replace, test."""
    document = copy.deepcopy(target)
    for each in operations:
        parts = [part.replace("~1", "/").replace("~0", "~") for part in each["path"].split("/")[1:]]
        node = document
        for part in parts[:-1]:
            node = node[int(part) if isinstance(node, list) else part]
        last: Any = parts[-1]
        if isinstance(node, list):
            last = len(node) if last == "-" else int(last)
        match each["op"]:
            case "add" if isinstance(node, list):
                node.insert(last, each["value"])
            case "add":
                node[last] = each["value"]
            case "replace":
                node[last]  # must be there
                node[last] = each["value"]
            case "remove":
                del node[last]
            case "test":
                if node[last] != each["value"]:
                    raise ValueError(f"testing value {each['path']} failed")
            case other:
                raise ValueError(f"unexpected op {other}")
    return document

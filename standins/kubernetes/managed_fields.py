"""Who owns which field: managedFields of updates and of server-side apply, with conflicts.

Not modelled: lists that are maps or sets by their type (taken as atomic here), versions of field sets.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

Path = tuple[str, ...]
_NOT_OWNED = {
    "apiVersion",
    "kind",
    "managedFields",
    "name",
    "resourceVersion",
    "generation",
    "uid",
    "creationTimestamp",
}


class Conflict(Exception):
    """Fields of an apply belong to others: manager -> fields."""

    def __init__(self, owners: dict[str, list[str]]) -> None:
        super().__init__(owners)
        self.owners = owners


def leaves(value: Any, path: Path = ()) -> dict[Path, Any]:
    """Return every field with its value; a list is one field, and so is an empty map."""
    if not isinstance(value, dict) or (path and not value):
        return {path: value}
    found: dict[Path, Any] = {}
    for key, item in value.items():
        if not (key in _NOT_OWNED and len(path) <= 1 and path[:1] in {(), ("metadata",)}):
            found |= leaves(item, (*path, key))
    return found


def places(value: Any) -> set[Path]:
    """Return every field, and for each map in a map a place of its own, which updates own too (``".": {}``)."""
    return set(leaves(value)) | set(_maps(value, ()))


def _maps(value: Any, path: Path) -> Iterator[Path]:
    if isinstance(value, dict) and value:
        if path and path != ("metadata",):
            yield (*path, ".")
        for key, item in value.items():
            if not (key in _NOT_OWNED and len(path) <= 1 and path[:1] in {(), ("metadata",)}):
                yield from _maps(item, (*path, key))


def to_fields(paths: set[Path]) -> dict[str, Any]:
    """Return a set of fields in the form of ``fieldsV1``."""
    tree: dict[str, Any] = {}
    for path in sorted(paths):
        node = tree
        for part in path:
            node = node.setdefault("." if part == "." else f"f:{part}", {})
    return tree


def from_fields(tree: dict[str, Any], path: Path = ()) -> set[Path]:
    """Read a set of fields from the form of ``fieldsV1``."""
    if not tree:
        return {path}
    return {each for key, below in tree.items() for each in from_fields(below, (*path, key[2:] or "."))}


def record(
    old: dict[str, Any] | None, new: dict[str, Any], manager: str, operation: str, fields: set[Path], subresource: str
) -> None:
    """Write down that a manager has set fields; others lose those that an update changed."""
    before = leaves(old or {})
    after = leaves(new)
    entries = []
    for entry in (old or {}).get("metadata", {}).get("managedFields", []):
        same = (entry["manager"], entry["operation"], entry.get("subresource", "")) == (manager, operation, subresource)
        owned = from_fields(entry["fieldsV1"]) & places(new)
        if same and operation == "Apply":
            continue
        if same:
            fields |= owned
            continue
        lost = {path for path in fields if before.get(path) != after.get(path)}
        if owned - lost:
            entries.append({**entry, "fieldsV1": to_fields(owned - lost)})
    if fields:
        entry = {
            "manager": manager,
            "operation": operation,
            "apiVersion": new["apiVersion"],
            "time": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "fieldsType": "FieldsV1",
            "fieldsV1": to_fields(fields),
        }
        entries.append({**entry, **({"subresource": subresource} if subresource else {})})
    order = sorted(entries, key=lambda each: (each["manager"], each["operation"], each.get("subresource", "")))
    new["metadata"]["managedFields"] = order


def changed(old: dict[str, Any] | None, new: dict[str, Any]) -> set[Path]:
    """Return the fields that an update set to something else."""
    before = leaves(old or {})
    made = places(new) - set(leaves(new)) - places(old or {})
    return made | {path for path, value in leaves(new).items() if path not in before or before[path] != value}


def apply(old: dict[str, Any] | None, wanted: dict[str, Any], manager: str, *, force: bool) -> dict[str, Any]:
    """Return what an object becomes by server-side apply; raises Conflict."""
    if old is None:
        return copy.deepcopy(wanted)
    want = leaves(wanted)
    entries = old["metadata"].get("managedFields", [])
    if not force:
        _refuse_conflicts(leaves(old), want, [each for each in entries if not _is(each, manager)])
    new = copy.deepcopy(old)
    for entry in entries:
        if _is(entry, manager):
            others = {p for each in entries if each is not entry for p in from_fields(each["fieldsV1"])}
            for path in from_fields(entry["fieldsV1"]) - set(want) - others:
                _drop(new, path)
    for path, value in want.items():
        node = new
        for part in path[:-1]:
            node = node.setdefault(part, {})
        node[path[-1]] = copy.deepcopy(value)
    return new


def _is(entry: dict[str, Any], manager: str) -> bool:
    return bool(entry["manager"] == manager and entry["operation"] == "Apply")


def _refuse_conflicts(have: dict[Path, Any], want: dict[Path, Any], entries: list[dict[str, Any]]) -> None:
    conflicts: dict[str, list[str]] = {}
    for entry in entries:
        theirs = [path for path in from_fields(entry["fieldsV1"]) & set(want) if have.get(path) != want[path]]
        if theirs:
            conflicts.setdefault(f'"{entry["manager"]}"', []).extend("." + ".".join(path) for path in sorted(theirs))
    if conflicts:
        raise Conflict(conflicts)


def _drop(value: dict[str, Any], path: Path) -> None:
    for part in path[:-1]:
        value = value.get(part, {})
    value.pop(path[-1], None)

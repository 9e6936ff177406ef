"""Where manifests describe an object, and how to change it there: whole objects, kustomize patches, Helm values.

Sources: kustomize's Kustomization (``patches`` with a strategic merge or a JSON patch, inline;
``patchesStrategicMerge``; ``patchesJson6902``), JSON Patch (RFC 6902), Helm's ``--set`` for the form of paths.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

from parbake.core import printable
from parbake.core.errors import InputError
from parbake.core.yamltext import Where, as_list, dotted
from parbake.rollouts.gitops.edit import merged, put, read, rewrite
from parbake.rollouts.gitops.tree import line_of, roots

_PATH = re.compile(r"(?:\\.|[^.\[\]\\])+|\[(?:[0-9]+)\]|\.|.", re.DOTALL)


@dataclass(frozen=True, slots=True)
class ManifestPlace:
    """Where a file describes an object: which document, where in it, and its data there.

    ``form``: ``object`` (whole, or a strategic merge patch, which looks the same) or ``operations`` (a JSON patch).
    ``inline`` is the place of the text in the document that holds the description (a kustomization's ``patch``);
    ``where`` is the place of the object within that (an item of a List).
    """

    source: str
    document: int
    line: int
    kind: str
    name: str
    api_version: str = ""
    form: Literal["object", "operations"] = "object"
    inline: Where = ()
    where: Where = ()
    data: Any = None

    def __str__(self) -> str:
        what = f", {dotted(self.inline)}" if self.inline else ""
        return f"{self.source}, line {self.line}{what}: {self.kind} {self.name}"


def find(text: str, source: str, *, kinds: Collection[str], name: str = "") -> tuple[ManifestPlace, ...]:
    """Find the objects of some kinds, and kustomize's patches of them, in a file's text; ``source`` names it in errors.

    Without ``name`` all names fit. What is a template, or no YAML, is passed over. Pure.
    """
    return tuple(each for each in _in_text(text, source) if each.kind in kinds and name in {"", each.name})


def the_one(places: Collection[ManifestPlace], what: str) -> ManifestPlace:
    """Return the only place; raises InputError when there is none, or when there are several (all of them named)."""
    if len(places) == 1:
        return next(iter(places))
    if not places:
        raise InputError(
            f"no manifest describes {what}", hint="name the file that does, or the path of the values file"
        )
    listed = "\n".join(f"  {printable.word(place)}" for place in places)
    raise InputError(f"{len(places)} manifests describe {what}\n{listed}", hint="name the file that is to be changed")


def change(text: str, place: ManifestPlace, patch: Mapping[str, Any]) -> str:
    """Apply a JSON merge patch (RFC 7396) to what is described at a place; the text is that of ``place.source``.

    In a JSON patch the operations are changed or added that have the same effect: what an operation adds into must
    exist in the object. Raises InputError when the text is not YAML, or where aliases share what would change.
    """
    outer = read(text, place.document, source=place.source)
    inner = value_at(outer, place.inline) if place.inline else None
    if isinstance(inner, str):  # YAML in a text of YAML
        new = _changed(inner, place, patch, str(place))
        return put(text, place.inline, new, place.document, source=place.source)
    return _changed(text, place, patch, place.source)


def set_value(text: str, path: str, value: object, *, source: str = "the values file") -> str:
    """Set one value of a Helm values file (or of any YAML) by its path, as in ``nodeClass.amiIds[0]``.

    Mappings on the way that are missing are made: a chart's defaults stand elsewhere. Raises InputError.
    """
    return put(text, parse_path(path), value, source=source)


def parse_path(path: str) -> Where:
    """Read a path as Helm's ``--set`` does: keys, dots, ``[0]`` for an item; a backslash keeps a key's own dot."""
    parts: list[str | int] = []
    due = True  # a key is due at the beginning and behind a dot
    for word in _PATH.findall(path):
        if word == "." and not due:
            due = True
        elif re.fullmatch(r"\[[0-9]+\]", word) and not due:
            parts.append(int(word[1:-1]))
        elif due and word not in {".", "[", "]", "\\"} and not word.startswith("["):
            parts.append(re.sub(r"\\(.)", r"\1", word))
            due = False
        else:
            due = True
            break
    if due:
        raise InputError(f"{path!r} is not a path", hint="write keys separated by dots, such as nodeClass.amiIds[0]")
    return tuple(parts)


def value_at(data: Any, where: Where) -> Any:
    """Return what is at a place of plain data; None where there is nothing."""
    for part in where:
        if isinstance(data, Mapping) and isinstance(part, str):
            data = data.get(part)
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
        else:
            return None
    return data


def operations(ops: Any, patch: Mapping[str, Any]) -> list[Any]:
    """Return a JSON patch (RFC 6902) that also does what a merge patch says. Pure.

    An operation that sets the same place, or a place above it, gets the new value; others are added at the end.
    """
    result = deepcopy(list(ops))
    for where, value in _leaves(patch, ()):
        pointer = "".join(f"/{part.replace('~', '~0').replace('/', '~1')}" for part in where)
        setting = [op for op in result if isinstance(op, dict) and op.get("op") in {"add", "replace"}]
        same = next((op for op in reversed(setting) if op.get("path") == pointer), None)
        above = next((op for op in reversed(setting) if f"{pointer}/".startswith(f"{op.get('path')}/")), None)
        if same is not None and value is not None:
            same["value"] = value
        elif same is not None:
            result[result.index(same)] = {"op": "remove", "path": pointer}
        elif above is not None and isinstance(above.get("value"), Mapping):
            below = where[str(above["path"]).count("/") :]
            above["value"] = merged(above["value"], _nested(below, value))
        elif value is None:
            if {"op": "remove", "path": pointer} not in result:
                result.append({"op": "remove", "path": pointer})
        else:
            result.append({"op": "add", "path": pointer, "value": value})
    return result


def patched_values(ops: Any) -> dict[str, Any]:
    """Return what a JSON patch makes an object say, as far as it says it without knowing the object. Pure.

    Places inside lists of the object are passed over, and so is what is removed, moved or copied.
    """
    result: dict[str, Any] = {}
    for op in ops if isinstance(ops, list) else ():
        if not isinstance(op, Mapping) or op.get("op") not in {"add", "replace"}:
            continue
        parts = [part.replace("~1", "/").replace("~0", "~") for part in str(op.get("path", "")).split("/")[1:]]
        if parts and not any(part == "-" or part.isdecimal() for part in parts):
            result = merged(result, _nested(parts, op.get("value")))
    return result


def _changed(text: str, place: ManifestPlace, patch: Mapping[str, Any], source: str) -> str:
    document = 0 if place.inline else place.document
    data = read(text, document, source=source)
    if place.form == "operations":
        return rewrite(text, operations(data, patch), document, source=source)
    want = merged(value_at(data, place.where), patch)
    if not place.where:
        return rewrite(text, want, document, source=source)
    return put(text, place.where, want, document, source=source)


def _leaves(patch: Mapping[str, Any], where: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in patch.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, (*where, str(key)))
        else:
            yield (*where, str(key)), value


def _nested(where: Iterable[str], value: Any) -> Any:
    for part in reversed(tuple(where)):
        value = {part: value}
    return value


def _in_text(text: str, source: str) -> Iterator[ManifestPlace]:
    try:
        starts = [root.node.start for root in roots(text, source=source)]
    except InputError:
        return
    for document, start in enumerate(starts):
        try:
            data = read(text, document, source=source)
        except InputError:
            continue
        line = line_of(text, start)
        # A kustomization may leave out its kind.
        patches = isinstance(data, dict) and ("patches" in data or "patchesStrategicMerge" in data)
        if isinstance(data, dict) and (data.get("kind") == "Kustomization" or (patches and "kind" not in data)):
            yield from _in_kustomization(source, document, line, data)
        else:
            yield from _objects(source, document, line, data, ())


def _objects(source: str, document: int, line: int, data: Any, inline: Where) -> Iterator[ManifestPlace]:
    if not isinstance(data, dict) or not isinstance(data.get("kind"), str):
        return
    items = data.get("items")
    if data["kind"].endswith("List") and isinstance(items, list):
        for index, item in enumerate(items):
            for place in _objects(source, document, line, item, inline):
                yield ManifestPlace(
                    source, document, line, place.kind, place.name, place.api_version,
                    inline=inline, where=("items", index), data=place.data,
                )  # fmt: skip
        return
    metadata = data.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    api = str(data.get("apiVersion") or "")
    yield ManifestPlace(source, document, line, data["kind"], str(name or ""), api, inline=inline, data=data)


def _in_kustomization(source: str, document: int, line: int, data: Mapping[str, Any]) -> Iterator[ManifestPlace]:
    for key in ("patches", "patchesJson6902"):
        for index, patch in enumerate(as_list(data.get(key))):
            if isinstance(patch, dict) and isinstance(patch.get("patch"), str):
                target = patch.get("target")
                named = target if isinstance(target, dict) else {}
                yield from _inline(source, document, line, patch["patch"], (key, index, "patch"), named)
    for index, patch in enumerate(as_list(data.get("patchesStrategicMerge"))):
        if isinstance(patch, str) and "\n" in patch:
            yield from _inline(source, document, line, patch, ("patchesStrategicMerge", index), {})


def _inline(
    source: str, document: int, line: int, text: str, inline: Where, target: Mapping[str, Any]
) -> Iterator[ManifestPlace]:
    try:
        data = read(text, source=source)
    except InputError:
        return
    if isinstance(data, list):
        kind, name = str(target.get("kind") or ""), str(target.get("name") or "")
        yield ManifestPlace(source, document, line, kind, name, form="operations", inline=inline, data=data)
    else:
        yield from _objects(source, document, line, data, inline)

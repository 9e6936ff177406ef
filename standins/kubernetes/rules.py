"""What the API server asks of every object, whatever its kind: names, labels, annotations, selectors, events.

Sources: Kubernetes documentation, "Object Names and IDs", "Labels and Selectors", "Field Selectors"; the wording is
that of kube-apiserver 1.36.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

Object = dict[str, Any]
_SUBDOMAIN = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"
_QUALIFIED = r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]"
_NAME = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and "
    f"end with an alphanumeric character (e.g. 'example.com', regex used for validation is '{_SUBDOMAIN}')"
)
_PART = (
    "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character "
    f"(e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '{_QUALIFIED}')"
)
_PREFIX = " with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
NAMESPACES = {"default", "kube-node-lease", "kube-public", "kube-system"}
_BY_FIELD = {"metadata.name", "metadata.namespace"}
_EVENTS_BY_FIELD = {"reason", "reportingComponent", "source", "type"}


def problems(metadata: Object) -> Iterator[str]:
    """Yield what is wrong with an object's metadata."""
    name = str(metadata["name"])
    if not re.fullmatch(_SUBDOMAIN, name):
        yield f'metadata.name: Invalid value: "{name}": {_NAME}'
    for key in metadata.get("labels") or {}:
        yield from (f'metadata.labels: Invalid value: "{key}": {text}' for text in _key(key))
    for key in metadata.get("annotations") or {}:
        yield from (f'metadata.annotations: Invalid value: "{key}": {text}' for text in _key(key))


def _key(key: str) -> Iterator[str]:
    prefix, slash, part = key.rpartition("/")
    if "/" in prefix:
        yield f"a valid label key {_PART}{_PREFIX}"
    elif slash and not re.fullmatch(_SUBDOMAIN, prefix):
        yield f"prefix part {_NAME}"
    elif not re.fullmatch(_QUALIFIED, part):
        yield f"name part {_PART}"


def unsupported(plural: str, query: dict[str, str]) -> str:
    """Return the first field of a field selector by which nothing can be selected; empty when there is none."""
    for text in filter(None, query.get("fieldSelector", "").split(",")):
        field = re.split(r"!?==?", text)[0]
        known = field in _BY_FIELD or (
            plural == "events" and (field in _EVENTS_BY_FIELD or field.startswith("involvedObject."))
        )
        if not known:
            return field
    return ""


def selected(items: list[Object], query: dict[str, str]) -> list[Object]:
    """Keep what label and field selectors ask for."""
    labels = [_requirement(text) for text in re.split(r",(?![^(]*\))", query.get("labelSelector", "")) if text]
    fields = [_requirement(text) for text in query.get("fieldSelector", "").split(",") if text]

    def value(item: Object, path: str) -> Any:
        if path == "source":  # an event's component, whichever API told it
            return item.get("source", {}).get("component") or item.get("reportingComponent")
        for part in path.split("."):
            item = item.get(part) or {}
        return item or None

    return [
        item
        for item in items
        if all(_fits(item["metadata"].get("labels", {}).get(key), how, values) for key, how, values in labels)
        and all(_fits(value(item, key), how, values) for key, how, values in fields)
    ]


def _requirement(text: str) -> tuple[str, str, list[str]]:
    text = text.strip()
    if match := re.fullmatch(r"(\S+) +(in|notin) +\(([^)]*)\)", text):
        return match[1], match[2], [each.strip() for each in match[3].split(",")]
    if match := re.fullmatch(r"(.*?)(!=|==|=)(.*)", text):
        return match[1], "notin" if match[2] == "!=" else "in", [match[3]]
    return text.removeprefix("!"), "absent" if text.startswith("!") else "there", []


def _fits(found: Any, how: str, values: list[str]) -> bool:
    if how in {"there", "absent"}:
        return (found is not None) is (how == "there")
    return (found in values) is (how == "in")

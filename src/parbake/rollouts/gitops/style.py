"""Write values as YAML in the style of the text around them. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from parbake.rollouts.gitops.tree import YamlNode

# Plain to YAML 1.1 and 1.2 alike: Kubernetes reads the former, where `on`, `1_000` and `12e3` are not text.
_PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9_./@+~-]*(?::[A-Za-z0-9_./@+~-]+)*|[1-9][0-9]*[KMGT]i")
_WORDS = re.compile(r"y|n|yes|no|on|off|true|false|null|nan|inf", re.IGNORECASE)
# What a literal block holds as it is: printable, and no line that YAML would take for something else.
_LITERAL = re.compile(r"[^\s\x00-\x1f\x7f\ufeff][^\x00-\x08\x0b-\x1f\x7f\ufeff]*")


@dataclass(frozen=True, slots=True)
class Habits:
    """How an author writes: newlines, the step of indentation, how far lists stand in, whether the text is JSON."""

    newline: str = "\n"
    step: int = 2
    list_step: int = 2
    json: bool = False


def habits(text: str, root: YamlNode) -> Habits:
    """Look at a text's own habits; the usual ones where it shows none."""
    steps, list_steps = [], []
    for node in root.walk():
        for key, value in node.entries:
            inside = column(text, value.start) - column(text, key.start)
            if value.flow or not node.entries or node.flow or value.start <= key.end or inside < 0:
                continue
            if value.kind == "mapping" and value.entries:
                steps.append(inside)
            elif value.kind == "sequence" and value.items:
                list_steps.append(inside)
    first = root.entries[0][0] if root.entries else None
    return Habits(
        newline="\r\n" if "\r\n" in text else "\n",
        step=next((step for step in steps if step > 0), 2),
        list_step=list_steps[0] if list_steps else 2,
        json=root.flow and (first is None or first.style == '"') and text.lstrip().startswith(("{", "[")),
    )


def column(text: str, index: int) -> int:
    """Return the column of a place, from 0."""
    return index - (text.rfind("\n", 0, index) + 1)


def is_collection(value: object) -> bool:
    """Whether a value is a mapping or a list with something in it: what stands in lines of its own."""
    return isinstance(value, Mapping | list | tuple) and bool(value)


def scalar(value: object, style: str = "", *, as_json: bool = False) -> str:
    """Write one value in a line; a text in the given quotes, and plain only where no reader takes it for another."""
    if isinstance(value, Mapping | list | tuple):
        return flow(value, as_json=as_json)
    if not isinstance(value, str):
        return json.dumps(value)
    words = value
    if style == "'" and "\n" not in words and words.isprintable() and not as_json:
        return "'" + words.replace("'", "''") + "'"
    if style != '"' and not as_json and _PLAIN.fullmatch(words) and not _WORDS.fullmatch(words):
        return words
    return json.dumps(words, ensure_ascii=not words.isprintable())


def flow(value: object, *, as_json: bool = False) -> str:
    """Write a value in one line, in braces and brackets."""
    if isinstance(value, Mapping):
        inner = (f"{scalar(key, as_json=as_json)}: {flow(each, as_json=as_json)}" for key, each in value.items())
        return "{" + ", ".join(inner) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(flow(each, as_json=as_json) for each in value) + "]"
    return scalar(value, as_json=as_json)


def block(value: object, indent: int, style: Habits) -> list[str]:
    """Write a mapping or list in lines of its own, ``indent`` columns in."""
    pad = " " * indent
    lines: list[str] = []
    if isinstance(value, Mapping):
        for key, each in value.items():
            lines += entry(str(key), each, indent, style)
        return lines
    assert isinstance(value, Sequence)
    for each in value:
        if is_collection(each):
            inner = block(each, indent + 2, style)
            lines += [f"{pad}- {inner[0][indent + 2 :]}", *inner[1:]]
        else:
            first, *rest = text_lines(each, indent + 2)
            lines += [f"{pad}- {first}", *rest]
    return lines


def entry(key: str, value: object, indent: int, style: Habits) -> list[str]:
    """Write one entry of a mapping in lines of its own."""
    head = f"{' ' * indent}{scalar(key)}:"
    if is_collection(value):
        further = style.step if isinstance(value, Mapping) else style.list_step
        return [head, *block(value, indent + further, style)]
    first, *rest = text_lines(value, indent + style.step)
    return [f"{head} {first}", *rest]


def text_lines(value: object, indent: int, style: str = "") -> list[str]:
    """Write a scalar: several lines of text as a literal block, ``indent`` columns in, everything else in one line."""
    if isinstance(value, str) and "\n" in value.rstrip("\n") and _LITERAL.fullmatch(value):
        body = value.rstrip("\n")
        ends = len(value) - len(body)
        if ends < 2:
            mark = "|" if ends else "|-"
            return [mark, *(f"{' ' * indent}{line}" if line else "" for line in body.split("\n"))]
    return [scalar(value, style)]

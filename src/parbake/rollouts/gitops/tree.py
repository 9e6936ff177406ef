"""Where everything stands in a YAML text: a tree of spans, so that a value can be replaced and nothing else moves.

Built from ruamel.yaml's events (positions are indexes into the text). An alias stays an alias: what it points to is
another place, and changing that would change more than was asked for.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    CollectionStartEvent,
    DocumentEndEvent,
    DocumentStartEvent,
    Event,
    MappingStartEvent,
    NodeEvent,
    ScalarEvent,
)
from ruamel.yaml.tokens import BlockEntryToken, ValueToken

from parbake.core.errors import InputError
from parbake.core.yamltext import Where, dotted, parse

type Kind = Literal["mapping", "sequence", "scalar", "alias"]

_DEEPEST = 64


@dataclass(slots=True)
class YamlNode:
    """A value and its place: ``start`` and ``end`` are indexes into the text, ``end`` behind its last character.

    ``entries`` are keys and values of a mapping, ``items`` those of a sequence; ``marks`` are where their colons and
    (in a block sequence) dashes stand. ``style`` is a scalar's quote, | or >. What is empty stands behind its mark.
    """

    kind: Kind
    start: int
    end: int
    value: str = ""
    style: str = ""
    flow: bool = False
    anchor: str = ""
    entries: list[tuple[YamlNode, YamlNode]] = field(default_factory=list)
    items: list[YamlNode] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)

    def get(self, part: str | int) -> YamlNode | None:
        """Return what is below a key (the last one, if it repeats) or an index; None where there is nothing."""
        if isinstance(part, int):
            return self.items[part] if self.kind == "sequence" and -len(self.items) <= part < len(self.items) else None
        return next((value for key, value in reversed(self.entries) if key.value == part), None)

    def walk(self) -> Iterator[YamlNode]:
        """Yield this node and all below it."""
        yield self
        for key, value in self.entries:
            yield key
            yield from value.walk()
        for item in self.items:
            yield from item.walk()


@dataclass(frozen=True, slots=True)
class YamlDocument:
    """One document of a text: its top node, and where the document ends (the text's end, or the next ``---``)."""

    node: YamlNode
    end: int


def roots(text: str, *, source: str = "the text") -> tuple[YamlDocument, ...]:
    """Return the documents of a text; raises InputError with the line where it is not YAML, or nested too deep."""
    found: list[YamlDocument] = []
    try:
        marks = _Marks(text)
        events: Iterator[Event] = iter(_loader().parse(text))
        for event in events:
            if isinstance(event, DocumentStartEvent):
                node = _node(next(events), events, text, marks)
                last = next(events)
                assert isinstance(last, DocumentEndEvent)
                found.append(YamlDocument(node, int(last.start_mark.index)))
    except (YAMLError, ValueError, AssertionError, RecursionError) as error:
        raise not_yaml(text, source) from error
    return tuple(found)


def line_of(text: str, index: int) -> int:
    """Return the line of a place in a text, from 1."""
    return text.count("\n", 0, index) + 1


def shared(root: YamlNode, node: YamlNode) -> bool:
    """Whether an alias elsewhere in the document repeats this node or something in it."""
    names = {each.anchor for each in node.walk() if each.anchor}
    inside = {id(each) for each in node.walk()}
    return any(each.kind == "alias" and each.value in names and id(each) not in inside for each in root.walk())


def unreachable(text: str, node: YamlNode, where: Where, source: str) -> InputError:
    """Return the error for a place that is only reached through an alias or a merge."""
    what = f"comes from the alias *{node.value}" if node.kind == "alias" else "is repeated elsewhere by an alias"
    line = line_of(text, node.start)
    return InputError(
        f"{source}, line {line}: {dotted(where)} {what}: changing it would change more than this place",
        hint="write the value out in this place, and run the same command again",
    )


def not_yaml(text: str, source: str) -> InputError:
    """Return the error for a text that is not YAML, or a template of one."""
    if "{{" in text:
        number = next(number for number, line in enumerate(text.splitlines(), 1) if "{{" in line)
        return InputError(
            f"{source}, line {number}: a template ({{{{ … }}}}), not a manifest",
            hint="name the values file that the template is filled from, and the path in it",
        )
    problem = parse(text).syntax_error
    place_text = f", line {problem.line}: {problem.message}" if problem else ": not YAML"
    return InputError(f"{source}{place_text}", hint="correct the file, and run the same command again")


def _loader() -> YAML:
    loader = YAML(typ="safe", pure=True)
    loader.max_depth = _DEEPEST
    return loader


class _Marks:
    """Where the colons and the dashes of a text are that mean something."""

    def __init__(self, text: str) -> None:
        tokens = list(_loader().scan(text))
        self._colons = [int(token.start_mark.index) for token in tokens if isinstance(token, ValueToken)]
        self._dashes = [int(token.start_mark.index) for token in tokens if isinstance(token, BlockEntryToken)]

    def colon(self, index: int) -> int:
        """Return the first colon from a place on."""
        return self._first(self._colons, index)

    def dash(self, index: int) -> int:
        """Return the first dash from a place on."""
        return self._first(self._dashes, index)

    @staticmethod
    def _first(places: list[int], index: int) -> int:
        at = bisect_left(places, index)
        return places[at] if at < len(places) else index


def _node(event: Event, events: Iterator[Event], text: str, marks: _Marks) -> YamlNode:
    assert isinstance(event, NodeEvent)
    start, end = int(event.start_mark.index), int(event.end_mark.index)
    if isinstance(event, AliasEvent):
        return YamlNode("alias", start, end, value=str(event.anchor))
    anchor = str(event.anchor or "")
    if isinstance(event, ScalarEvent):
        style = str(event.style or "")
        if style in {"|", ">"}:  # the scanner goes on over the blank lines and comments that follow
            end = start + len(text[start:end].rstrip("\r\n \t"))
        return YamlNode("scalar", start, end, str(event.value), style, anchor=anchor)
    assert isinstance(event, CollectionStartEvent)
    mapping = isinstance(event, MappingStartEvent)
    node = YamlNode("mapping" if mapping else "sequence", start, end, flow=bool(event.flow_style), anchor=anchor)
    reached = start
    while not isinstance(child := next(events), CollectionEndEvent):
        inner = _node(child, events, text, marks)
        if mapping:
            value = _node(next(events), events, text, marks)
            node.marks.append(marks.colon(inner.end))
            node.entries.append((inner, _behind(value, node.marks[-1])))
            reached = node.entries[-1][1].end
        else:
            if not node.flow:
                node.marks.append(marks.dash(reached))
                inner = _behind(inner, node.marks[-1])
            node.items.append(inner)
            reached = inner.end
    # The scanner ends a block where the next thing begins, behind comments and blank lines.
    node.end = int(child.end_mark.index) if node.flow else reached
    return node


def _behind(node: YamlNode, mark: int) -> YamlNode:
    """Put an empty value right behind its mark: the scanner finds it only where the next thing begins."""
    if node.start == node.end:
        node.start = node.end = mark + 1
    return node

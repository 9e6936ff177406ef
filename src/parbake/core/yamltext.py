"""YAML with line numbers: text to plain data, every problem of the text found in one pass.

ruamel.yaml scans, parses and resolves (YAML 1.2); this room turns its nodes into dictionaries, tuples and scalars and
remembers where each came from. It is bounded: nesting and the total after aliases are limited, cyclic aliases and tags
are problems. Nothing is ever constructed from a tag.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

from parbake.core.errors import Problem

type Where = tuple[str | int, ...]
"""A place in a document: keys of mappings and indexes of lists (from 0), from the top."""

ODD_KEY = "a key that is a list or a mapping"
"""The problem that an unquoted ``{{ … }}`` makes: to YAML it is a mapping whose key is a mapping."""

_DEEPEST = 64
_CORE = "tag:yaml.org,2002:"
_TAGS = {"map", "seq", "str", "int", "float", "bool", "null", "timestamp", "merge"}
_FILE = "file"

# The start of what the scanner says, and what a person can do about it.
_WORDS = (
    ("found character '\\t'", "a tab: YAML indents with spaces only"),
    ("mapping values are not allowed here", "a second ': ' in one line, or a line indented too far", "quote the value"),
    ("expected <block end>", "the indentation does not fit the lines above"),
    ("could not find expected ':'", "a key without ':'"),
    ("found unexpected end of stream", "a quote is opened here and never closed"),
    ("found duplicate anchor", "the same anchor twice"),
    ("maximum depth", f"nested deeper than {_DEEPEST} levels"),
    ("expected ',' or", "a bracket or brace is not closed, or a comma is missing"),
    ("expected the node content", "a value is missing, or a bracket or brace is not closed"),
)


def dotted(where: Sequence[str | int]) -> str:
    """Write a place as ``images[0].startup.up`` or ``registries["ghcr.io"].ca``; the top is ``file``."""
    text = "".join(
        f".{part}" if isinstance(part, str) and re.fullmatch(r"[\w-]+", part) else f"[{json.dumps(part)}]"
        for part in where
    )
    return text.removeprefix(".") or _FILE


def as_map(value: object) -> Mapping[str, Any]:
    """Return a mapping as it is, and nothing for what is none: what others have written may be of any shape."""
    return value if isinstance(value, Mapping) else {}


def as_list(value: object) -> Sequence[Any]:
    """Return a list as it is, and nothing for what is none."""
    return value if isinstance(value, list | tuple) else ()


@dataclass(frozen=True, slots=True)
class Document:
    """One document: its data, its first line (0: unknown), and the way back from a place in the data to its line."""

    data: object
    line: int
    _root: Node | None = field(default=None, repr=False)

    def find(self, where: Where) -> tuple[Where, int]:
        """Follow ``where`` as far as the text goes; return how far that is, and the line there (from 1).

        The line of a mapping's entry is that of its key.
        """
        node: Any = self._root
        line = self.line
        for depth, part in enumerate(where):
            found = _child(node, part)
            if found is None:
                return where[:depth], line
            line, node = found
        return where, line


@dataclass(frozen=True, slots=True)
class Parsed:
    """The documents of a text, and its problems in the order of their lines; documents end at a syntax error."""

    documents: tuple[Document, ...]
    problems: tuple[Problem, ...]
    syntax_error: Problem | None = None


def parse(text: str, *, as_text: Callable[[Where], bool] = lambda _: False, most: int = 100_000) -> Parsed:
    """Parse all documents of ``text``.

    Where ``as_text`` holds, a scalar stays the text that its author wrote (``1.20`` and ``true`` are then strings).
    ``most`` bounds the count of nodes after aliases are followed. Repeated keys are problems; the last one wins.
    """
    loader = YAML(typ="safe", pure=True)
    loader.max_depth = _DEEPEST
    loader.composer.warn_double_anchors = False
    documents: list[Document] = []
    problems: list[Problem] = []
    broken: Problem | None = None
    nodes: Iterator[Node] = loader.compose_all(text)
    try:
        for node in nodes:
            builder = _Builder(as_text, most, problems)
            documents.append(Document(builder.build(node, ()), _line(node), node))
    except YAMLError as error:
        broken = _explain(error, text)
    except RecursionError:
        broken = Problem(_FILE, f"nested deeper than {_DEEPEST} levels")
    except (ValueError, AssertionError) as error:  # ruamel.yaml on directives such as `%YAML x`
        broken = Problem(_FILE, f"not YAML: {error}")
    if broken:
        problems.append(broken)
    # A mapping that is merged in several places has its problems once.
    distinct = {(problem.line, problem.message): problem for problem in reversed(problems)}
    return Parsed(tuple(documents), tuple(sorted(distinct.values(), key=lambda problem: problem.line)), broken)


class _TooMuch(YAMLError):
    """The document is too large or too deep once its aliases are followed."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line
        self.message = message


class _Builder:
    """Turns the nodes of one document into data, and notes what is wrong on the way."""

    def __init__(self, as_text: Callable[[Where], bool], most: int, problems: list[Problem]) -> None:
        self._as_text, self._most, self._problems = as_text, most, problems
        self._count = 0

    def build(self, node: Node, where: Where) -> object:
        self._bound(node, where)
        self._look_at_tag(node, where)
        if isinstance(node, MappingNode):
            return self._mapping(node, where)
        if isinstance(node, SequenceNode):
            return tuple(self.build(item, (*where, index)) for index, item in enumerate(node.value))
        return self._scalar(node, where)

    def _look_at_tag(self, node: Node, where: Where) -> None:
        tag = str(node.tag)
        if tag.removeprefix(_CORE) not in _TAGS or (tag.startswith("!") and tag != "!"):
            self._say(where, f"the tag {tag.replace(_CORE, '!!')} is not understood", _line(node), "remove it")

    def _bound(self, node: Node, where: Where) -> None:
        self._count += 1
        if self._count > self._most:
            raise _TooMuch(_line(node), f"more than {self._most} nodes once its aliases (*name) are followed")
        if len(where) > _DEEPEST:
            raise _TooMuch(_line(node), f"nested deeper than {_DEEPEST} levels")

    def _mapping(self, node: MappingNode, where: Where) -> dict[str, object]:
        seen: dict[str, int] = {}
        own: dict[str, object] = {}
        merged: dict[str, object] = {}
        for key, value in node.value:
            line = _line(key)
            if _is_merge(key):
                # Of several merged mappings the first one wins, and the mapping's own keys win over all.
                merged = {**self._merge(value, where), **merged}
            elif not isinstance(key, ScalarNode):
                self._say(where, ODD_KEY, line, "quote a text that begins with [ or {")
            else:
                name = str(key.value)
                self._look_at_tag(key, (*where, name))
                if name in seen:
                    self._say((*where, name), f"the key appears twice, first in line {seen[name]}", line)
                seen.setdefault(name, line)
                own[name] = self.build(value, (*where, name))
        return {**merged, **own}

    def _merge(self, value: Node, where: Where) -> dict[str, object]:
        merged: dict[str, object] = {}
        for part in value.value if isinstance(value, SequenceNode) else (value,):
            self._bound(part, (*where, "<<"))
            if isinstance(part, MappingNode):
                merged = {**self._mapping(part, (*where, "<<")), **merged}
            else:
                self._say((*where, "<<"), "only mappings can be merged", _line(part))
        return merged

    def _scalar(self, node: Node, where: Where) -> object:
        text = _joined(str(node.value))
        if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
            # Such text would fail later, far from here.
            self._say(where, "a character that no file name, program argument or UTF-8 text can hold", _line(node))
            text = text.replace("\0", "").encode(errors="replace").decode()
        tag = str(node.tag).removeprefix(_CORE)
        if tag == "null":
            return None
        if self._as_text(tuple(part for part in where if part != "<<")):
            return text
        if tag == "bool":
            return text.lower() in {"true", "yes", "on", "y"}
        with suppress(ValueError):  # more digits than Python reads: then it is text
            if tag == "int":
                return _whole(text)
            if tag == "float":
                return float(text.replace("_", "").replace(".inf", "inf").replace(".nan", "nan"))
        return text

    def _say(self, where: Where, message: str, line: int, suggestion: str = "") -> None:
        self._problems.append(Problem(dotted(where), message, line, suggestion))


def _joined(text: str) -> str:
    """Join the surrogate pairs by which JSON writes what is beyond U+FFFF; a lone one stays."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


def _whole(text: str) -> int:
    digits = text.replace("_", "").lower()
    return int(digits, 0 if digits.lstrip("+-").startswith(("0x", "0o", "0b")) else 10)


def _is_merge(key: Node) -> bool:
    return isinstance(key, ScalarNode) and str(key.tag) == f"{_CORE}merge"


def _line(node: Any) -> int:
    return int(node.start_mark.line) + 1


def _child(node: Node, part: str | int) -> tuple[int, Node] | None:
    """Return line and node of one entry, also when a merge brought it."""
    if isinstance(part, int):
        if isinstance(node, SequenceNode) and part < len(node.value):
            return _line(node.value[part]), node.value[part]
        return None
    if not isinstance(node, MappingNode):
        return None
    for key, value in reversed(node.value):
        if isinstance(key, ScalarNode) and not _is_merge(key) and str(key.value) == part:
            return _line(key), value
    for key, value in node.value:
        if _is_merge(key):
            for merged in value.value if isinstance(value, SequenceNode) else (value,):
                if found := _child(merged, part):
                    return found
    return None


def _explain(error: YAMLError, text: str) -> Problem:
    """Say in plain words what is wrong with the syntax, and where."""
    if isinstance(error, _TooMuch):
        return Problem(_FILE, error.message, error.line)
    if isinstance(error, ReaderError):
        line = text.count("\n", 0, int(error.position)) + 1
        return Problem(_FILE, f"a control character (U+{ord(text[error.position]):04X})", line, "remove it")
    return _explain_marked(error, text) if isinstance(error, MarkedYAMLError) else Problem(_FILE, f"not YAML: {error}")


def _explain_marked(error: MarkedYAMLError, text: str) -> Problem:
    said = str(error.problem or "not YAML")
    # An unclosed quote is noticed at the end of the file and is to be mended where it begins.
    at_start = said.startswith("found unexpected end of stream") and error.context_mark
    mark = error.context_mark if at_start else error.problem_mark or error.context_mark
    line = int(mark.line) + 1 if mark else 0
    line = min(line, text.rstrip("\n").count("\n") + 1)
    for start, message, *suggestion in _WORDS:
        if said.startswith(start):
            return Problem(_FILE, message, line, *suggestion)
    if said.startswith("found undefined alias"):
        advice = "set it with &name, or quote a text that begins with *"
        return Problem(_FILE, said.removeprefix("found "), line, advice)
    if "cannot start any token" in said:
        return Problem(_FILE, said.removeprefix("found ").replace("token", "plain value"), line, "quote the value")
    return Problem(_FILE, f"not YAML: {said}", line)

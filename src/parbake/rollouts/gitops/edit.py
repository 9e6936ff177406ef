"""Make a YAML text say something else with the fewest changes: comments, order and quoting stay as they are.

``rewrite`` compares what a document says with what it shall say and changes one place after the other until both are
equal. Each change is a splice of the text; nothing is ever written anew as a whole. What it returns was read again and
says exactly what was asked for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

from parbake.core.errors import InputError
from parbake.core.yamltext import Where, dotted, parse
from parbake.rollouts.gitops.style import Habits, block, column, entry, flow, habits, is_collection, scalar, text_lines
from parbake.rollouts.gitops.tree import YamlNode, line_of, not_yaml, roots, shared, unreachable

_MOST_CHANGES = 2_000


def read(text: str, document: int = 0, *, source: str = "the text") -> Any:
    """Return the data of one document of a text: dictionaries, lists and scalars; raises InputError."""
    parsed = parse(text)
    if parsed.syntax_error or (parsed.problems and "{{" in text):
        raise not_yaml(text, source)
    if parsed.problems:
        problem = parsed.problems[0]
        raise InputError(f"{source}, line {problem.line}: {problem.where}: {problem.message}")
    # A text without a document (comments alone) says nothing, as its author would read it.
    return _plain(parsed.documents[document].data) if document or parsed.documents else None


def put(text: str, where: Where, value: object, document: int = 0, *, source: str = "the text") -> str:
    """Set the value at one place; mappings on the way are made, and an index one behind a list's end appends.

    Raises InputError where the place cannot be (below a scalar, beyond a list's end).
    """
    return rewrite(text, _with(read(text, document, source=source), where, value, source), document, source=source)


def merged(data: Any, patch: Any) -> Any:
    """Return data with a JSON merge patch applied to it. Pure."""
    if not isinstance(patch, Mapping):
        return _plain(patch)
    result = dict(data) if isinstance(data, Mapping) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result


def rewrite(text: str, want: Any, document: int = 0, *, source: str = "the text") -> str:
    """Return the text with one document changed so that it says ``want``; the very same text when it does already.

    Raises InputError when the text is not YAML, or when a place to be changed is shared by anchors and aliases.
    """
    want = _plain(want)
    for _ in range(_MOST_CHANGES):
        have = read(text, document, source=source)
        if _same(have, want):
            return text
        found = roots(text, source=source)
        if not found and is_collection(want):
            return text + "".join(f"{line}\n" for line in block(want, 0, Habits()))
        root = found[document]
        edit = _Edit(text, root.node, habits(text, root.node), source)
        text = edit.first_change(root.node, have, want)
    raise InputError(f"{source}: more than {_MOST_CHANGES} places differ", hint="edit the file by hand")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def _same(one: Any, other: Any) -> bool:
    """Whether two values are the same to a reader of YAML: True is not 1, and the order of keys says nothing."""
    return _key(one) == _key(other)


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _with(data: Any, where: Where, value: object, source: str) -> Any:
    result = deepcopy(data)
    if not where:
        return value
    at: Any = {} if result is None else result
    result = at
    for depth, part in enumerate(where):
        last = depth == len(where) - 1
        fresh: Any = value if last else [] if isinstance(where[depth + 1], int) else {}
        if isinstance(part, int) and isinstance(at, list) and part <= len(at):
            at[part : part + 1] = [fresh if last or part == len(at) or at[part] is None else at[part]]
        elif isinstance(part, str) and isinstance(at, dict):
            at[part] = fresh if last or at.get(part) is None else at[part]
        else:
            raise InputError(
                f"{source}: there is no {dotted(where)}: {dotted(where[:depth])} is {_spoken(at)}",
                hint="check the path: keys separated by '.', indexes of lists in [ ]",
            )
        at = at[part]
    return result


def _spoken(value: object) -> str:
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return "a mapping" if isinstance(value, dict) else f"the value {scalar(value)}"


@dataclass(frozen=True, slots=True)
class _Edit:
    """One change of one text."""

    text: str
    root: YamlNode
    style: Habits
    source: str

    def first_change(self, root: YamlNode, have: Any, want: Any) -> str:
        """Return the text with the first difference mended."""
        if root.kind == "mapping" and isinstance(want, dict) and have and want:
            return self._in_mapping(root, have, want, (), inline=root.flow)
        if root.kind == "sequence" and isinstance(want, list) and have and want:
            return self._in_list(root, have, want, (), inline=root.flow)
        raise InputError(f"{self.source}: the whole document would have to change", hint="edit the file by hand")

    # find the first difference

    def _in_mapping(
        self, node: YamlNode, have: dict[str, Any], want: dict[str, Any], where: Where, *, inline: bool
    ) -> str:
        for key, value in want.items():
            child = node.get(key)
            if key in have and _same(have[key], value):
                continue
            if child is None:  # not there, or there by a merge (<<): the mapping's own keys win over that
                return self._insert_key(node, key, value, inline=inline)
            index = next(number for number, (_, each) in enumerate(node.entries) if each is child)
            at, begin = column(self.text, node.entries[index][0].start), node.marks[index] + 1
            return self._in_value(child, begin, at, have[key], value, (*where, key), inline)
        key = next(key for key in have if key not in want)  # last, so that there is something left beside it
        return self._remove_key(node, key, (*where, key))

    def _in_list(self, node: YamlNode, have: list[Any], want: list[Any], where: Where, *, inline: bool) -> str:
        matcher = SequenceMatcher(None, [_key(each) for each in have], [_key(each) for each in want], autojunk=False)
        for kind, start, end, there, until in matcher.get_opcodes():
            if kind == "equal":
                continue
            if kind == "delete" or (kind == "replace" and end - start > until - there):
                return self._remove_item(node, end - 1, (*where, end - 1))
            if kind == "insert" or until - there > end - start:
                return self._insert_item(node, end, want[until - 1], inline=inline)
            item = node.items[start]
            begin = item.start if node.flow else node.marks[start] + 1
            at = column(self.text, begin) - 1
            return self._in_value(item, begin, at, have[start], want[there], (*where, start), inline)
        raise AssertionError("nothing differs")

    def _in_value(self, node: YamlNode, begin: int, at: int, have: Any, want: Any, where: Where, inline: bool) -> str:
        """Change a value in place; ``begin`` is behind its colon or dash, ``at`` the column of its key or dash."""
        if node.flow and node.kind == "mapping" and self.text[node.start] != "{":  # [a: 1]: a pair without its braces
            self._must_be_own(node, where)
            return self._splice(node.start, node.end, flow(want, as_json=self.style.json))
        if node.kind == "mapping" and isinstance(want, dict) and want and have:
            return self._in_mapping(node, have, want, where, inline=inline or node.flow)
        if node.kind == "sequence" and isinstance(want, list) and want and have:
            return self._in_list(node, have, want, where, inline=inline or node.flow)
        self._must_be_own(node, where)
        return self._replace(node, begin, at, want, inline=inline)

    def _must_be_own(self, node: YamlNode, where: Where) -> None:
        if shared(self.root, node):
            raise unreachable(self.text, node, where, self.source)

    # change it

    def _splice(self, start: int, end: int, new: str) -> str:
        return self.text[:start] + new + self.text[end:]

    def _line_end(self, index: int) -> int:
        """Return where the line of a place ends, before its newline."""
        end = self.text.find("\n", index)
        end = len(self.text) if end < 0 else end
        return end - 1 if end > index and self.text[end - 1] == "\r" else end

    def _line_start(self, index: int) -> int:
        return self.text.rfind("\n", 0, index) + 1

    def _lines(self, lines: Sequence[str]) -> str:
        return self.style.newline.join(lines)

    def _leads(self, index: int) -> bool:
        """Whether nothing stands before a place in its line."""
        return not self.text[self._line_start(index) : index].strip()

    def _replace(self, node: YamlNode, begin: int, at: int, value: object, *, inline: bool) -> str:
        empty = node.kind == "scalar" and node.end == node.start
        start, end = (begin, begin) if empty else (node.start, node.end)
        if inline or self.style.json:
            return self._splice(start, end, " " * empty + scalar(value, node.style, as_json=self.style.json))
        if is_collection(value):
            return self._replace_by_block(node, begin, at, value)
        indent = self._literal_indent(node) if node.style in {"|", ">"} else at + self.style.step
        new = " " * empty + self._lines(text_lines(value, indent, node.style))
        if node.kind in {"scalar", "alias"} or node.flow:
            return self._splice(start, end, new)
        # A block goes; what stands behind its key (a comment) stays.
        between = self.text[begin : self._line_start(start)].rstrip() if "#" in self.text[begin:start] else ""
        return self._splice(begin, end, f" {new}{between}")

    def _replace_by_block(self, node: YamlNode, begin: int, at: int, value: object) -> str:
        in_item = self.text[begin - 1] == "-"
        further = 2 if in_item else self.style.step if isinstance(value, dict) else self.style.list_step
        new = self._lines(block(value, at + further, self.style))
        if node.kind not in {"scalar", "alias"} and not node.flow:
            if self._leads(node.start):
                return self._splice(self._line_start(node.start), node.end, new)
            return self._splice(node.start, node.end, new.lstrip(" "))
        end = max(node.end, begin) if node.end > node.start else begin
        if in_item:
            return self._splice(begin, end, f" {new.lstrip(' ')}")
        rest = self.text[end : self._line_end(end)].rstrip()
        return self._splice(begin, self._line_end(end), f"{rest}{self.style.newline}{new}")

    def _literal_indent(self, node: YamlNode) -> int:
        lines = self.text[node.start : node.end].splitlines()[1:]
        return next((len(line) - len(line.lstrip(" ")) for line in lines if line.strip()), 2)

    def _insert_key(self, node: YamlNode, key: str, value: object, *, inline: bool) -> str:
        if node.kind == "alias":
            raise unreachable(self.text, node, (key,), self.source)
        if inline:
            new = f"{scalar(key, as_json=self.style.json)}: {flow(value, as_json=self.style.json)}"
            last = node.entries[-1][1].end if node.entries else node.start + 1
            return self._insert_inline(node, last, node.entries[-1][0].start if node.entries else -1, new)
        indent = column(self.text, node.entries[0][0].start)
        return self._insert_lines(node.end, entry(key, value, indent, self.style))

    def _insert_inline(self, node: YamlNode, last: int, leader: int, new: str) -> str:
        """Put one more entry into braces or brackets, in a line of its own where the last one has that."""
        closing = node.end - 1
        comma = "," in self.text[last:closing]
        at = self.text.index(",", last) + 1 if comma else last
        if leader < 0:
            return self._splice(last, closing, new)
        alone = self._leads(leader) and "\n" in self.text[node.start : leader]
        gap = f"{self.style.newline}{' ' * column(self.text, leader)}" if alone else " "
        return self._splice(at, at, f"{'' if comma else ','}{gap}{new}")

    def _insert_lines(self, after: int, lines: Sequence[str]) -> str:
        end = self._line_end(after)
        return self._splice(end, end, self.style.newline + self._lines(lines))

    def _insert_item(self, node: YamlNode, index: int, value: object, *, inline: bool) -> str:
        if inline:
            new = flow(value, as_json=self.style.json)
            if index < len(node.items):
                return self._splice(node.items[index].start, node.items[index].start, f"{new}, ")
            return self._insert_inline(node, node.items[-1].end, node.items[-1].start, new)
        lines = block([value], column(self.text, node.start), self.style)
        if index == 0:
            start = self._line_start(node.start)
            if not self._leads(node.start):  # a list in a list: its first dash has no line of its own
                new = f"{self._lines(lines).lstrip(' ')}{self.style.newline}{' ' * column(self.text, node.start)}"
                return self._splice(node.start, node.start, new)
            return self._splice(start, start, self._lines(lines) + self.style.newline)
        return self._insert_lines(node.items[index - 1].end, lines)

    def _remove_key(self, node: YamlNode, key: str, where: Where) -> str:
        child = node.get(key)
        if child is None or node.kind == "alias":
            raise unreachable(self.text, node, where, self.source)
        self._must_be_own(child, where)
        index = next(number for number, (_, each) in enumerate(node.entries) if each is child)
        name = node.entries[index][0]
        behind = node.entries[index + 1][0].start if index + 1 < len(node.entries) else -1
        before = node.entries[index - 1][1].end if index else -1
        return self._remove(name.start, child.end, before, behind, flowing=node.flow)

    def _remove_item(self, node: YamlNode, index: int, where: Where) -> str:
        item = node.items[index]
        self._must_be_own(item, where)
        starts = [each.start for each in node.items] if node.flow else node.marks
        start, behind = starts[index], starts[index + 1] if index + 1 < len(starts) else -1
        return self._remove(start, item.end, node.items[index - 1].end if index else -1, behind, flowing=node.flow)

    def _remove(self, start: int, end: int, before: int, behind: int, *, flowing: bool) -> str:
        """Take out one entry with its separator: its lines, or the part of a line up to its neighbour."""
        if not flowing and self._leads(start):
            line_end = self._line_end(end)
            newline = len(self.style.newline) if line_end < len(self.text) else 0
            first = self._line_start(start)
            if not newline and first:  # the last line of a text that ends without a newline
                first -= len(self.style.newline)
            return self._splice(first, line_end + newline, "")
        if behind >= 0:
            return self._splice(start, behind, "")
        if before >= 0:
            return self._splice(before, end, "")
        raise InputError(
            f"{self.source}, line {line_of(self.text, start)}: nothing would be left", hint="edit the file by hand"
        )

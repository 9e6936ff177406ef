"""Tables for people: aligned, without decoration, and no wider than a terminal where their words allow it."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from textwrap import wrap

from parbake.core.printable import word

WIDTH = 80
"""Columns of a terminal that nobody has made wider."""
_LEAST = 16  # columns that a sentence needs to be read, whatever stands left of it


def table(rows: Iterable[Sequence[object]], *, header: Sequence[str] = (), notes: bool = False) -> str:
    """Return rows as a table; a tuple in a cell stands on as many lines.

    What the last column says wraps at ``WIDTH``; with ``notes``, what comes after the columns of the header stands
    beneath the row. Names of images and files are words: each on one line whatever is in it, and never cut, since
    nobody could copy it. So a table is wider only where its words are.
    """
    cells = [[[*map(word, cell)] if isinstance(cell, tuple) else [word(cell)] for cell in row] for row in rows]
    below = [row.pop() if notes else [] for row in cells]
    if header:
        cells.insert(0, [[name] for name in header])
        below.insert(0, [])
    if not cells:
        return ""
    indent, gap = (" ", "   ") if header else ("", "  ")
    widths = [max(map(_width, (line for cell in column for line in cell))) for column in zip(*cells, strict=True)]
    room = max(WIDTH - len(indent) - sum(widths[:-1]) - len(gap) * (len(widths) - 1), _LEAST)
    found = []
    for row, note in zip(cells, below, strict=True):
        row[-1] = _wrapped(row[-1], room)
        for number in range(max(map(len, row))):
            line = [cell[number] if number < len(cell) else "" for cell in row]
            padded = [text + " " * (width - _width(text)) for text, width in zip(line, widths, strict=True)]
            found.append((indent + gap.join(padded)).rstrip())
        found += [f"{indent}    {line}".rstrip() for line in _wrapped(note, WIDTH - len(indent) - 4) if line]
    if header:
        found.insert(1, " " + "─" * (max(map(_width, found)) - 1))
    return "\n".join(found)


def wrapped(text: str, room: int = WIDTH) -> tuple[str, ...]:
    """Return the lines of a sentence, also for a cell."""
    return tuple(_wrapped([text], room))


def _wrapped(lines: Sequence[str], room: int) -> list[str]:
    return [part for line in lines for part in wrap(line, room, break_long_words=False, break_on_hyphens=False) or [""]]


def _width(text: str) -> int:
    """Return how many columns a terminal takes for a text."""
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(each) in "WF" for each in text)
    return len(text) + wide - sum(unicodedata.combining(each) != 0 for each in text)

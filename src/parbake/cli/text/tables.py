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

    What does not fit into ``WIDTH`` wraps, the last column's words first; with ``notes``, what comes after the columns
    of the header stands beneath the row. Names of images and files are words: each on one line whatever is in it, and
    never cut, since nobody could copy it. So a table is wider only where its words are.
    """
    cells = [[[*map(word, cell)] if isinstance(cell, tuple) else [word(cell)] for cell in row] for row in rows]
    below = [row.pop() if notes else [] for row in cells]
    if header:
        cells.insert(0, [[name] for name in header])
        below.insert(0, [])
    if not cells:
        return ""
    indent, gap = (" ", "   ") if header else ("", "  ")
    columns = [[line for cell in column for line in cell] for column in zip(*cells, strict=True)]
    widths = _fitted(columns, WIDTH - len(indent) - len(gap) * (len(columns) - 1))
    found = []
    for cells_of_row, note in zip(cells, below, strict=True):
        row = [_wrapped(cell, width) for cell, width in zip(cells_of_row, widths, strict=True)]
        for number in range(max(map(len, row))):
            line = [cell[number] if number < len(cell) else "" for cell in row]
            padded = [text + " " * (width - _width(text)) for text, width in zip(line, widths, strict=True)]
            found.append((indent + gap.join(padded)).rstrip())
        found += [f"{indent}    {line}".rstrip() for line in _wrapped(note, WIDTH - len(indent) - 4) if line]
    if header:
        found.insert(1, " " + "─" * (max(map(_width, found)) - 1))
    return "\n".join(found)


def _fitted(columns: Sequence[Sequence[str]], room: int) -> list[int]:
    """Return the widths of columns that need no more room than there is, as far as words and short cells allow."""
    widths = [max(map(_width, lines)) for lines in columns]
    words = [max((_width(part) for line in lines for part in line.split()), default=0) for lines in columns]
    least = [max(word, min(width, _LEAST)) for word, width in zip(words, widths, strict=True)]
    widths[-1] = max(widths[-1] - max(sum(widths) - room, 0), least[-1])
    while sum(widths) > room and (wide := [each for each in range(len(widths)) if widths[each] > least[each]]):
        widths[max(wide, key=widths.__getitem__)] -= 1
    return widths


def wrapped(text: str, room: int = WIDTH) -> tuple[str, ...]:
    """Return the lines of a sentence, also for a cell."""
    return tuple(_wrapped([text], room))


def _wrapped(lines: Sequence[str], room: int) -> list[str]:
    found: list[str] = []
    for line in lines:
        fits = _width(line) <= room
        found += [line] if fits else wrap(line, room, break_long_words=False, break_on_hyphens=False) or [""]
    return found


def _width(text: str) -> int:
    """Return how many columns a terminal takes for a text."""
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(each) in "WF" for each in text)
    return len(text) + wide - sum(unicodedata.combining(each) != 0 for each in text)

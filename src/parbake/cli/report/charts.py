"""The report's pictures, made of HTML and SVG. Pure; whatever text comes in is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from parbake.core.model import EBS_BLOCK, MIB

_COLUMNS = 96
_MOST_CELLS = 96 * 24
_CELL, _GAP = 10, 1
_SHADES = 4


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar of a waterfall: its name and style, and its beginning and length in seconds."""

    name: str
    kind: str
    at: float
    seconds: float


def waterfall(bars: Sequence[Bar], *, until: float) -> str:
    """Return bars on one time axis that ends at ``until`` seconds."""
    if not bars or until <= 0:
        return '<p class="soft">No start was timed.</p>'
    lines = ['<div class="fall">']
    for bar in bars:
        left, width = 100 * bar.at / until, 100 * bar.seconds / until
        # A label stands behind its bar, before it where there is no room, or on it where there is none either.
        if left + width < 75:
            place = f"left:{left + width:.2f}%"
        else:
            place = f"right:{100 - left:.2f}%" if left >= 25 else f"left:{left:.2f}%;color:var(--page)"
        lines.append(
            f'<span>{escape(bar.name)}</span><div class="track"><div class="bar" style="left:{left:.2f}%;'
            f'width:{width:.2f}%;background:var(--{bar.kind})"></div><span class="time" style="{place}">'
            f"{bar.seconds:.2f} s</span></div>"
        )
    lines.append(f'<span></span><div class="axis"><span>0 s</span><span>{until:.1f} s</span></div></div>')
    return "".join(lines)


def block_map(order: Sequence[int], size: int, *, title: str) -> str:
    """Return a map of a volume of ``size`` bytes: each cell some blocks, darker the earlier a start reads them."""
    blocks = max(1, -(-size // EBS_BLOCK))
    per_cell = -(-blocks // _MOST_CELLS)
    cells = -(-blocks // per_cell)
    columns = min(_COLUMNS, cells)
    rows = -(-cells // columns)
    first: dict[int, int] = {}
    for place, block in enumerate(order):
        if block < blocks:
            first.setdefault(block // per_cell, place)
    step = _CELL + _GAP
    shapes = []
    for cell in range(cells):
        x, y = cell % columns * step, cell // columns * step
        if cell in first:
            shade = first[cell] * _SHADES // max(1, len(order))
            begin = cell * per_cell * EBS_BLOCK / MIB
            shapes.append(
                f'<rect x="{x}" y="{y}" width="{_CELL}" height="{_CELL}" fill="var(--h{shade})"><title>'
                f"from {begin:.0f} MiB on: read as number {first[cell] + 1} of {len(order)}</title></rect>"
            )
    whole, last = divmod(cells, columns)
    shape = f'<rect width="{columns * step - _GAP}" height="{max(0, whole * step - _GAP)}" fill="var(--cold)"/>'
    if last:
        shape += f'<rect y="{whole * step}" width="{last * step - _GAP}" height="{_CELL}" fill="var(--cold)"/>'
    unit = f"{per_cell * EBS_BLOCK // 1024} KiB" if per_cell == 1 else f"{per_cell * EBS_BLOCK / MIB:g} MiB"
    legend = "".join(
        f'<span><i style="background:var(--h{shade})"></i>{text}</span>'
        for shade, text in enumerate(("first quarter of the reads", "second", "third", "last"))
    )
    return (
        f'<svg viewBox="0 0 {columns * step - _GAP} {rows * step - _GAP}" role="img" aria-label="{escape(title)}">'
        f'{shape}{"".join(shapes)}</svg><div class="legend">{legend}'
        f'<span><i style="background:var(--cold)"></i>never read</span><span>a cell is {unit}</span></div>'
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[int] = (), path: int = -1) -> str:
    """Return a table; ``numbers`` are the columns of figures, ``path`` the one whose text may break anywhere."""

    def style(column: int) -> str:
        return ' class="n"' if column in numbers else ' class="path"' if column == path else ""

    head = "".join(f"<th{style(column)}>{escape(text)}</th>" for column, text in enumerate(header))
    body = "".join(
        "<tr>" + "".join(f"<td{style(column)}>{escape(text)}</td>" for column, text in enumerate(row)) + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'

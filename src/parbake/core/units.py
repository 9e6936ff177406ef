"""Sizes for people: read and written."""

from __future__ import annotations

import re
from typing import Final

from parbake.core.errors import InputError
from parbake.core.model import GIB, MIB

BYTES: Final = {
    "": 1,
    **{f"{letter}i": 1 << 10 * power for power, letter in enumerate("KMGT", 1)},
    **{letter: 1000**power for power, letter in enumerate("KMGT", 1)},
}
"""The units of Kubernetes' quantities, in bytes."""
UNITS: Final = {"kB": 1000, **{f"{unit}B": size for unit, size in BYTES.items() if unit}}
"""The units of sizes, in bytes."""


def size_of(text: str, where: str) -> int:
    """Read a size such as ``20GiB`` as bytes; "0" and "" are none. Raises InputError that names ``where``."""
    if text in {"", "0"}:
        return 0
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([A-Za-z]+)", text)
    if match is None or match[2] not in UNITS:
        hint = "write a number and its unit, such as 20GiB, or 0"
        raise InputError(f"{where}: {text!r} is not a valid size", hint=hint)
    return int(float(match[1]) * UNITS[match[2]])


def quantity(value: object) -> int:
    """Return a quantity of Kubernetes' (``20Gi``) in bytes; 0 for none, or for one that cannot be read."""
    match = re.fullmatch(r"([0-9]+)([KMGT]i?|)", str(value or ""))
    return int(match[1]) * BYTES[match[2]] if match else 0


def human_bytes(count: float) -> str:
    """Return bytes in binary units with three significant digits, such as ``4.37 GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1000 or unit == "GiB":
            digits = 0 if unit == "B" or count >= 100 else (1 if count >= 10 else 2)
            return f"{count:.{digits}f} {unit}"
        count /= 1024
    raise AssertionError  # the last unit always returns


def human_size(size: int) -> str:
    """Write a size in bytes as people read it: ``512 MiB``, ``1.5 GiB``, ``48 KiB``."""
    if size >= GIB:
        return f"{size / GIB:.1f} GiB"
    return f"{size / MIB:.0f} MiB" if size >= MIB else f"{-(-size // 1024)} KiB"

"""Cells: each Bakefile for each of its architectures. What has one content key is one cell."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from parbake.core.errors import InputError
from parbake.fleet.file import Fleet

_USUAL = "parbake.yaml"


@dataclass(frozen=True, slots=True)
class Cell:
    """A Bakefile for one architecture. ``file`` is the Bakefile's path, relative to the fleet's folder."""

    name: str
    file: str
    platform: str


def cells(fleet: Fleet, folder: Path) -> tuple[Cell, ...]:
    """Return the cells of a fleet whose file lies in ``folder``, in the order of the file.

    Raises InputError for a Bakefile outside of that folder, which no other machine would find.
    """
    return tuple(_cells(fleet, folder.absolute()))


def _cells(fleet: Fleet, folder: Path) -> Iterator[Cell]:
    for entry in fleet.bakefiles:
        try:
            file = entry.file.resolve().relative_to(folder.resolve())
        except ValueError:
            raise InputError(
                f"{entry.file} lies outside of {folder}, so other machines cannot find it",
                hint="move fleet.yaml to a folder above all its Bakefiles",
            ) from None
        for architecture in entry.architectures or fleet.architectures:
            yield Cell(f"{_short(file, fleet.name)}@{architecture}", str(file), f"linux/{architecture}")


def _short(file: Path, fleet: str) -> str:
    """Return what a Bakefile is called: its folder, where it has the usual name."""
    if file.name != _USUAL:
        return str(file.with_suffix(""))
    return fleet if file.parent == Path() else str(file.parent)


def chosen(found: tuple[Cell, ...], names: tuple[str, ...]) -> tuple[Cell, ...]:
    """Return the cells of these names, all without any; a name without an architecture means each of them.

    Raises InputError for a name that fits none.
    """
    if not names:
        return found
    for name in names:
        if not any(_fits(cell, name) for cell in found):
            known = ", ".join(cell.name for cell in found[:20])
            raise InputError(f"{name}: the fleet has no such cell", hint=f"cells are: {known}")
    return tuple(cell for cell in found if any(_fits(cell, name) for name in names))


def _fits(cell: Cell, name: str) -> bool:
    return name in {cell.name, cell.name.rpartition("@")[0]}

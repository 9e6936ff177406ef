"""Cells: each Bakefile for each of its architectures; and a run of them, the same whoever begins it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from parbake.bakefile import load
from parbake.core.errors import InputError, ParbakeError
from parbake.fleet.engine.tasks import Destination, Root, RunRequest
from parbake.fleet.file import Fleet
from parbake.fleet.file import load as read_fleet
from parbake.records.store import identity_of, open_store

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


def take_root(file: Path) -> bool:
    """Whether some bake of a fleet takes root, by its file; one whose Bakefile cannot be read might."""
    try:
        return any(load(entry.file).needs_root for entry in read_fleet(file).bakefiles)
    except ParbakeError:
        return True


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


def run_request(
    fleet: Fleet,
    file: str,
    root: Root,
    folder: Path,
    *,
    named: Sequence[str] = (),
    heartbeat: float = 60.0,
    roll_out: bool = True,
) -> RunRequest:
    """Return what the engine is asked for: the cells that are ``named``, or all. ``folder`` holds the file.

    What is good is rolled out if the file says how, and if ``roll_out``. The store gets its word, where it has
    none. Raises InputError for a name that fits no cell and for places that nothing can be in, and what asking the
    store raises.
    """
    _need_artefacts_of_ec2(fleet)
    return RunRequest(
        fleet=fleet.name,
        file=file,
        root=root,
        store=fleet.store,
        cells=[each.name for each in chosen(cells(fleet, folder), tuple(named))],
        window=fleet.concurrency.cells,
        attempts=fleet.budget.attempts,
        failures=fleet.budget.failures,
        heartbeat=heartbeat,
        verify=fleet.verify,
        rollout=roll_out and fleet.rollout is not None,
        store_id=identity_of(open_store(fleet.store), make=True),
        places=[Destination(place.region, place.role or "", list(place.share_with)) for place in fleet.places],
        copies=fleet.quotas.copies,
        bakes=fleet.quotas.by_builder,
        supersede=fleet.rollout is not None and fleet.rollout.when_newer == "supersede",
    )


def _need_artefacts_of_ec2(fleet: Fleet) -> None:
    """Raise InputError where there are places, and nothing is baked that could be there."""
    if fleet.places and not any(_may_be_in_ec2(entry.file) for entry in fleet.bakefiles):
        raise InputError(
            "the fleet has `places`, and none of its Bakefiles is baked into EC2",
            hint="bake with `builder: ebs` or `builder: ec2`, or remove `places`",
        )


def _may_be_in_ec2(file: Path) -> bool:
    try:
        return load(file).traits.in_ec2
    except ParbakeError:
        return True  # its cells say what is wrong with it

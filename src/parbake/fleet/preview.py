"""What a run of a fleet would do: every cell is planned, and looked for in the store. Reads only."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from parbake.bakefile import COPY_ROLES, load
from parbake.core.errors import ParbakeError
from parbake.core.events import Events
from parbake.fleet import places, stores
from parbake.fleet.cells import Cell
from parbake.fleet.engine.tasks import copy_roles
from parbake.fleet.file import Fleet
from parbake.records import Record
from parbake.records.store import Store, open_store
from parbake.workflows import plan

_THREADS = 4

State = Literal["there", "unverified", "bake", "build", "quarantined", "wrong"]


@dataclass(frozen=True, slots=True)
class CellPreview:
    """What a run would do for a cell.

    ``there``: nothing, the store has it; ``unverified``: it has it, and nobody has verified it; ``bake``; ``build``:
    images first, so that there is no key yet; ``quarantined``: it has failed too often; ``wrong``: it could not be
    planned. ``problem`` says why. ``record`` is that of what is there. ``places`` are the regions that it is still to
    be brought to, ``builder`` is who bakes it.
    """

    cell: Cell
    state: State
    key: str = ""
    artefact: str = ""
    problem: str = ""
    hint: str = ""
    record: Record | None = None
    places: tuple[str, ...] = ()
    builder: str = ""


def _of_plan(cell: Cell, key: str, artefact: str, stored: Record | None, store: Store) -> CellPreview:
    if stored:
        return CellPreview(cell, "there" if stored.verified else "unverified", key, artefact, record=stored)
    if note := stores.quarantined(store, key):
        problem = f"bakes of this key have failed too often; the last error was {note.error}: {note.message}"
        return CellPreview(
            cell, "quarantined", key, artefact, problem, f"`parbake fleet retry {cell.name}` tries it again"
        )
    return CellPreview(cell, "bake", key, artefact)


def look(fleet: Fleet, folder: Path, cells: Sequence[Cell], events: Events) -> tuple[CellPreview, ...]:
    """Plan every cell; a cell that cannot be planned says why."""

    def one(cell: Cell) -> CellPreview:
        path, changed = folder / cell.file, {"platform": cell.platform, "store": fleet.store}
        if roles := copy_roles(fleet.places):
            changed[COPY_ROLES] = " ".join(roles)
        try:
            bakefile = load(path, {"platform": cell.platform})  # as it says itself
            if bakefile.traits.in_ec2:
                places.need_agreement(fleet.places, bakefile)
            found = plan.preview(path, Events(), changed)
        except ParbakeError as error:
            return CellPreview(cell, "wrong", problem=error.message, hint=error.hint)
        finally:
            task.advance(1)
        look = CellPreview(cell, "build")
        if found.plan:
            # What is on this machine alone is baked all the same, which brings it to the others.
            look = _of_plan(cell, found.plan.key, found.plan.artefact_name, found.stored, store)
        return replace(look, places=places.lacking(fleet.places, bakefile, found.stored), builder=bakefile.builder)

    store = open_store(fleet.store)
    with events.task("cells", len(cells), unit="items") as task, ThreadPoolExecutor(_THREADS) as pool:
        try:
            return tuple(pool.map(one, cells))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise

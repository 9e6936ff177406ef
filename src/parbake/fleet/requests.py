"""A run of a fleet, as its file says: the same whoever begins it, a person or a schedule."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from parbake.fleet.cells import cells, chosen
from parbake.fleet.engine.tasks import Root, RunRequest
from parbake.fleet.file import Fleet
from parbake.records.store import identity_of, open_store


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
    none. Raises InputError for a name that fits no cell, and what asking the store raises.
    """
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
    )

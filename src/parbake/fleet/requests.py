"""A run of a fleet, as its file says: the same whoever begins it, a person or a schedule."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from parbake.bakefile import load
from parbake.core.errors import InputError, ParbakeError
from parbake.fleet.cells import cells, chosen
from parbake.fleet.engine.tasks import Destination, Root, RunRequest
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
        audited=True,
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

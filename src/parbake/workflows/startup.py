"""How images are started: as the Bakefile says, or else as a record says that a trusted key has signed.

What a record says and nobody signed, anybody may have written: such an image starts as it says itself. A verdict is of
the startups of the plan in its record; where the Bakefile says others since, it is no verdict any more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from parbake.core.model import Plan, Startup

if TYPE_CHECKING:
    from parbake.bakefile import Bakefile
    from parbake.core.events import Events
    from parbake.core.reference import Reference
    from parbake.records import Record


def started_as(plan: Plan, bakefile: Bakefile | None, events: Events, *, signed: bool) -> Plan:
    """Return the plan of a record with the startups of a Bakefile of its name; ``signed``: its own are signed."""
    known: dict[Reference, Startup | None] = {}
    if bakefile and bakefile.name == plan.name:
        known = {entry.reference: entry.startup for entry in bakefile.images}
    for image in plan.images:
        if image.startup and image.reference not in known and not signed:
            known[image.reference] = None
            if image.startup != Startup():
                events.warn(
                    f"{image.reference} starts as the image says: nobody trusted signed the `startup` in its record, "
                    "and no Bakefile names the image"
                )
    return _with(plan, known)


def proven_as(record: Record, plan: Plan, events: Events) -> Record:
    """Return a record with the startups of ``plan``, of the same key: without its verdict where they are others."""
    wanted = _with(record.plan, {image.reference: image.startup for image in plan.images})
    before = record.plan.startups
    changed = [name for name, startup in wanted.startups.items() if startup != before[name]]
    if not changed:
        return record
    if record.verdict:
        events.note(f"the `startup` of {', '.join(changed)} is not that of the verdict: it has to be proven again")
    return record.model_copy(update={"plan": wanted, "verdict": None})


def _with(plan: Plan, startups: Mapping[Reference, Startup | None]) -> Plan:
    images = [
        image.model_copy(update={"startup": startups.get(image.reference, image.startup)}) for image in plan.images
    ]
    return plan.model_copy(update={"images": tuple(images)})

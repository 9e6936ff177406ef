"""Share artefacts: look for them in the Bakefile's store before making them, and store them there afterwards.

What is published in a cloud is made by one machine at a time: the others wait for it, or continue what it has started.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cache
from typing import Protocol

from parbake import records
from parbake.core import access, interrupts
from parbake.core.claim import Alone, Claim
from parbake.core.errors import EnvironmentProblem
from parbake.core.model import Plan
from parbake.records import Record
from parbake.workflows.plan import BakeResult, Session, shared_store

_TURNS = 5  # the second one takes over what was first, the third makes up for what that lacks


class Make(Protocol):
    """Makes sure that an artefact exists; ``force`` makes it anew.

    ``claim`` gets the right to make it, which is waited for; what others have made meanwhile is here then.
    """

    def __call__(self, claim: Callable[[], Claim], *, force: bool) -> BakeResult:
        """Return the artefact and its record."""


def make_and_share(run: Session, plan: Plan, make: Make, *, force: bool) -> BakeResult:
    """Make sure that an artefact exists, here and in the store if the Bakefile names one, whose first record counts.

    Where another machine was first, and what it made lacks what was asked for (a verification), that is made up for.
    Raises EnvironmentProblem where others keep replacing it.
    """
    shared, name, changed = shared_store(run), plan.artefact_name, False
    if shared is None:
        return make(Alone, force=force)
    from parbake.records.store import claimed

    with ExitStack() as until_kept:

        def fetch() -> None:
            with using(run, name):
                shared.fetch(name)

        @cache
        def claim() -> Claim:
            from parbake.aws import guarded  # loads only where something is published

            held = until_kept.enter_context(claimed(shared.store, plan.key, name, run.events))
            until_kept.enter_context(guarded(held.need))
            if not force:
                fetch()
            return held

        before: Record | None = None
        for _ in range(_TURNS):
            if not force:
                fetch()
            finished = make(claim, force=force)
            changed = changed or finished.changed
            interrupts.resume()  # a run that is stopped from here on is finished by the next one
            with using(run, name):
                kept = shared.put(finished.record, replacing=force)
            if finished.record in (kept, before):  # nothing more can be made up for
                interrupts.hold()
                return replace(finished, changed=changed)
            before, force, changed = finished.record, False, False
        raise EnvironmentProblem(
            f"the record of {name} in {shared.store.url} was another one {_TURNS} times when this machine was done",
            hint="let one Bakefile at a time write it; `parbake bake --force` replaces it",
        )


@contextmanager
def using(run: Session, name: str) -> Iterator[None]:
    """Keep other parbakes from changing an artefact and its record meanwhile, and let whom it is for read them."""
    output, events = run.bakefile.output, run.events
    with (
        access.readable(output, records.everything(output / name), run.bakefile.readable_by),
        records.in_use(output, name, waiting=lambda: events.note(f"another parbake is working on {name}: waiting")),
    ):
        yield

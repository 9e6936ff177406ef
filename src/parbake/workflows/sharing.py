"""What is made is shared: looked for in the Bakefile's store before it is made, and kept there afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Protocol

from parbake import records
from parbake.core import access, interrupts
from parbake.records.store import session_store
from parbake.workflows.plan import Finished, Session


class Make(Protocol):
    """Makes sure that an artefact exists; ``force`` makes it anew."""

    def __call__(self, *, force: bool) -> Finished:
        """Return the artefact and its record."""


def made_for_all(run: Session, name: str, make: Make, *, force: bool) -> Finished:
    """Make sure that an artefact exists, here and in the store if the Bakefile names one, whose first record counts.

    Where another machine was first, and what it made lacks what was asked for (a verification), that is made up for.
    """
    shared = session_store(run.bakefile, run.events)
    if shared is None:
        return make(force=force)
    changed = False
    while True:
        if not force:
            with using(run, name):
                shared.bring(name)
        finished = make(force=force)
        changed = changed or finished.changed
        interrupts.resume()  # a run that is stopped from here on is finished by the next one
        with using(run, name):
            kept = shared.keep(finished.record, replacing=force)
        if kept == finished.record:
            interrupts.hold()
            return replace(finished, changed=changed)
        force, changed = False, False


@contextmanager
def using(run: Session, name: str) -> Iterator[None]:
    """Keep other parbakes from changing an artefact and its record meanwhile, and let whom it is for read them."""
    output, events = run.bakefile.output, run.events
    with (
        access.readable(output, records.everything(output / name), run.bakefile.readable_by),
        records.in_use(output, name, waiting=lambda: events.note(f"another parbake works on {name}: waiting")),
    ):
        yield

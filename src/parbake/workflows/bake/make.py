"""What a bake does once something is left to do: one story for every builder. Start reading at ``make``.

``bake`` decides, and loads this only then: a bake with nothing to do is over before this would be loaded.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol

from parbake.builders import Publication
from parbake.core.model import Verdict
from parbake.workflows.bake.clouds import instance_steps, shipment_steps
from parbake.workflows.bake.files import file_steps
from parbake.workflows.plan import Bake, BakeResult
from parbake.workflows.verify import judge


class BakeSteps[Made](Protocol):
    """How one builder takes the steps of a bake. Each does only what no earlier run has done of it.

    ``Made`` is what goes from step to step: a disk on this machine, or what a cloud says of one there.
    """

    def build(self) -> Made:
        """Return what an earlier run has made, or build it."""
        ...

    def rehearse(self, made: Made) -> Made:
        """Start its images with cold caches, lay it out by what that read, and keep it for a run that goes on later."""
        ...

    def verify(self, made: Made) -> Verdict | None:
        """Return what was seen of it; None where nobody looks."""
        ...

    def publish(self, made: Made, verdict: Verdict | None) -> Publication:
        """Send it to where it goes besides this machine, unless its verdict is a bad one."""
        ...

    def record(self, made: Made, published: Publication) -> BakeResult:
        """Write its record; a file appears under its name at the same time."""
        ...


def make(bake: Bake) -> BakeResult:
    """Build the disk, rehearse it and lay it out, verify, publish, record.

    An artefact appears once, with its verdict, and only a good one goes to a cloud. What is built waits for that
    where the next run finds it, so that a run that is killed while it verifies has not built for nothing. Raises
    VerificationFailed once all is recorded: the record says why.
    """
    with steps_of(bake) as steps:
        made = steps.build()
        made = steps.rehearse(made)
        verdict = steps.verify(made)
        published = steps.publish(made, verdict)
        finished = steps.record(made, published)
    judge(finished.artefact, published.verdict)
    return finished


def steps_of(bake: Bake) -> AbstractContextManager[BakeSteps[Any]]:
    """Return how the builder of a bake takes its steps; what they need on the way is removed at the end."""
    if bake.remote:
        return instance_steps(bake, bake.remote)
    if bake.publisher:
        return shipment_steps(bake, bake.publisher)
    return file_steps(bake)

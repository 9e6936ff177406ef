"""The steps of a bake whose artefact lies in a cloud: a disk is sent there from here, or an instance makes it there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from parbake import records
from parbake.builders import (
    Disk,
    Ingredients,
    ParentVolume,
    Publication,
    Publisher,
    RemoteBuilder,
    RemoteSteps,
    Shipment,
)
from parbake.core import interrupts
from parbake.core.model import Image, Published, Verdict
from parbake.core.sources import LayerSource
from parbake.records import Record
from parbake.workflows.bake import ancestry
from parbake.workflows.bake.describe import Attachments, Clock, make_record
from parbake.workflows.bake.disks import build_disk, find_base, need_room
from parbake.workflows.bake.rehearsal import failed_in_rehearsal, need_rights, rehearse, trace_beside, trace_from
from parbake.workflows.plan import Bake, BakeResult
from parbake.workflows.verify import boot, is_to_be_verified, seen_in_rehearsal, work_on


@contextmanager
def shipment_steps(bake: Bake, publisher: Publisher) -> Iterator[ShipmentSteps]:
    """Open the shipment of a plan, whose disk outlives the run, for the steps to it."""
    need_rights(bake.plan, bake.options)
    verifying, keep = is_to_be_verified(bake), bake.options.keep_workspace
    with publisher.opened(bake.plan, bake.events, keep=keep, claim=bake.claim) as shipment:
        yield ShipmentSteps(bake, publisher, shipment, verifying=verifying)


@dataclass(frozen=True, slots=True)
class Sent:
    """A disk on its way to a cloud: what is ``there`` already, and the ``disk`` here where one has to be."""

    there: Published | None
    disk: Disk | None


class ShipmentSteps:
    """Builds a disk here, and sends it away once it is proven; what a cloud has is read back to be looked at."""

    def __init__(self, bake: Bake, publisher: Publisher, shipment: Shipment, *, verifying: bool) -> None:
        self.bake, self.publisher, self.shipment, self.verifying = bake, publisher, shipment, verifying
        self.of_disk = replace(bake, plan=publisher.disk_plan(bake.plan))
        self.clock = Clock()
        self.attachments = bake.run.registry.find_attachments(bake.plan.all_images)

    def build(self) -> Sent:
        """Return what the cloud has, with its disk read back where it is needed; else one that was kept, or a new one.

        The plan of the disk gets its size.
        """
        bake, shipment, options = self.of_disk, self.shipment, self.bake.options
        there = None if options.force else shipment.existing()
        if there and not (self.verifying or options.rehearse or options.trace):
            return Sent(there, None)
        if there:
            disk = replace(shipment.fetch(there), trace=trace_beside(bake.earlier))
        elif (kept := shipment.kept()) and not failed_in_rehearsal(bake, kept.trace):
            disk = kept
        else:
            need_room(shipment.work, bake.plan)
            base = find_base(bake.run, bake.plan, self.publisher)
            plan, disk = build_disk(bake.run, bake.plan, base, shipment.work, parent=self._parent())
            self.of_disk = replace(bake, plan=plan.model_copy(update={"size": disk.path.stat().st_size}))
            return Sent(None, disk)
        self.of_disk = replace(bake, plan=bake.plan.model_copy(update={"size": disk.path.stat().st_size}))
        return Sent(there, disk)

    def _parent(self) -> ParentVolume | None:
        """Find the disk of an earlier volume that can be changed, unless the user wants none."""
        bake, options = self.bake, self.bake.options
        if options.force or options.from_scratch:
            return None
        plan = bake.plan if bake.plan.size_is_fixed else bake.plan.model_copy(update={"size": self.of_disk.plan.size})
        return ancestry.shipped_parent(
            plan, bake.output, self.shipment.work,
            verify=options.verify, rehearse=bool(options.rehearse), trust=bake.run.trusted,
        )  # fmt: skip

    def rehearse(self, made: Sent) -> Sent:
        """Rehearse the disk, and keep a new one until the cloud has it."""
        if made.disk is None:
            return made
        disk = rehearse(self.of_disk, made.disk, self.shipment.work)
        return Sent(made.there, disk if disk.final else self.shipment.keep(disk))

    def verify(self, made: Sent) -> Verdict | None:
        """Boot the disk without a network and start its images, unless the rehearsal has decided already."""
        bake, disk = self.of_disk, made.disk
        if not self.verifying or disk is None:
            earlier = bake.earlier.record if bake.earlier else None
            return earlier.verdict if earlier and earlier.verified else None
        if failed_in_rehearsal(bake, disk.trace):
            return seen_in_rehearsal(disk.trace, bake.plan)
        return boot(bake.events, disk.path, bake.plan, self.shipment.work, bake.run.bakefile.verify.base)

    def publish(self, made: Sent, verdict: Verdict | None) -> Publication:
        """Send what is proven; what failed stays here, and what the cloud has of it already stays there."""
        shipment, there, size = self.shipment, made.there, self.of_disk.plan.size
        blocks = made.disk.blocks if made.disk else None
        if verdict and not verdict.passed:
            return Publication({shipment.region: there} if there else {}, size, verdict, blocks)
        if there is None:
            assert made.disk
            there, blocks = shipment.send(made.disk)
        return Publication(dict(shipment.finish(there, verdict)), size, verdict, blocks)

    def record(self, made: Sent, published: Publication) -> BakeResult:
        """Write the record, with the size that the disk needed."""
        bake = self.bake
        if not bake.plan.size_is_fixed:
            bake = replace(bake, plan=bake.plan.model_copy(update={"size": published.size}))
        return record_published(bake, self.clock, published, made.disk, self.attachments())


@contextmanager
def instance_steps(bake: Bake, builder: RemoteBuilder) -> Iterator[InstanceSteps]:
    """Open what bakes in a cloud; what is temporary there is removed at the end."""
    with work_on(bake.output, bake.plan.key[:12], bake.events, keep=bake.options.keep_workspace) as work:
        attachments = bake.run.registry.find_attachments(bake.plan.all_images)
        anew = bake.earlier is not None and not bake.earlier.record.verified
        ingredients = Ingredients(None, nothing_here, work, bake.events, claim=bake.claim, prove_anew=anew)
        clock = Clock()
        with builder.opened(bake.plan, ingredients) as remote:
            yield InstanceSteps(bake, remote, clock, attachments)


@dataclass(frozen=True, slots=True)
class InstanceSteps:
    """Lets an instance bake and another one verify: the disk is never on this machine, so nothing is rehearsed."""

    bake: Bake
    remote: RemoteSteps
    clock: Clock
    attachments: Callable[[], Attachments]

    def build(self) -> Any:
        """Return what the cloud says of what was made there."""
        return self.remote.build()

    def rehearse(self, made: Any) -> Any:
        """Leave it as it is."""
        return made

    def verify(self, made: Any) -> Verdict | None:
        """Start its images on an instance."""
        return self.remote.verify(made)

    def publish(self, made: Any, verdict: Verdict | None) -> Publication:
        """Copy and share it as the Bakefile says; what failed is only kept."""
        return self.remote.publish(made, verdict)

    def record(self, _made: Any, published: Publication) -> BakeResult:
        """Write the record."""
        return record_published(self.bake, self.clock, published, None, self.attachments())


def record_published(
    bake: Bake, clock: Clock, made: Publication, disk: Disk | None, attached: Attachments
) -> BakeResult:
    """Write the record of an artefact that lies in a cloud, with what belongs beside it, whole or not at all."""
    given = bake.options.trace if disk is None else None
    trace = disk.trace if disk else trace_from(given, None, bake.plan) if given else trace_beside(bake.earlier)
    record = of_one_bake(bake.earlier, make_record(bake, clock, made, disk, trace, attached))
    interrupts.hold()
    path = records.write_published(record, bake.output, blocks=made.blocks, trace=trace, signer=bake.run.signer)
    return BakeResult(path, record, changed=True)


def of_one_bake(earlier: BakeResult | None, record: Record) -> Record:
    """Return a record that says when its artefact was made: in an earlier run, where that is what was proven now."""
    if earlier is None or next(iter(earlier.record.published.values()), None) != next(iter(record.published.values())):
        return record
    made = earlier.record
    kept = ("started_at", "finished_at", "seconds", "timings", "sealed", "allocated", "base_digest", "blocks")
    return record.model_copy(update={name: getattr(made, name) for name in kept})


def nothing_here(image: Image) -> LayerSource:
    """Stand in for the content of images that an instance pulls itself."""
    raise AssertionError(f"{image.reference} is pulled by the instance, not here")

"""What a bake does once something is left to do: build, prepare, verify, publish, record.

``bake`` decides, and loads this only then: a bake with nothing to do is over before this would be loaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from parbake import records
from parbake.builders import (
    Disk,
    Ingredients,
    ParentVolume,
    Publisher,
    RehearsalPlace,
    RemoteBuilder,
    Shipment,
)
from parbake.core import access, interrupts
from parbake.core.blocks import BlockList
from parbake.core.claim import Claim
from parbake.core.errors import InputError, VerificationFailed
from parbake.core.events import Events
from parbake.core.model import Image, Plan, Published
from parbake.core.run import need_root
from parbake.core.signing import Signer
from parbake.core.sources import LayerSource
from parbake.core.workspace import part_of, work_folder
from parbake.records import Record
from parbake.records.held import state
from parbake.workflows.bake import ancestry
from parbake.workflows.bake.describe import Clock, describe_disk, make_record
from parbake.workflows.bake.disks import build_disk, find_base, need_room
from parbake.workflows.plan import BakeOptions, BakeResult, Session
from parbake.workflows.verify import boot, can_boot, examine, judge, work_on, write_verdict

if TYPE_CHECKING:
    from parbake.coldstart.trace import Trace


def need_rights(plan: Plan, options: BakeOptions) -> None:
    """Raise EnvironmentProblem without root, unless nothing is mounted: an ext4 volume that nobody looks into yet.

    So does a rehearsal in a machine that cannot be had; InputError for a place that is none for the artefact.
    """
    if rehearses(plan, options) and options.rehearse_in:
        from parbake.builders import coldstart

        coldstart.place_of(plan, options.rehearse_in)
    if plan.artefact.mounted:
        need_root("baking")
    elif options.verify or options.rehearse:
        need_root("verifying", hint="run parbake with sudo, or bake with --no-verify and run `parbake verify` as root")


@contextmanager
def holding_layouts(cache: Path, plan: Plan) -> Iterator[None]:
    """Keep `clean --caches` from removing what this run is going to read of images that lie in the cache."""
    with ExitStack() as stack:
        layouts = [Path(image.layout) for image in plan.all_images if image.layout]
        for part in sorted({path.relative_to(cache).parts[0] for path in layouts if path.is_relative_to(cache)}):
            stack.enter_context(work_folder(part_of(cache, part), plan.key[:12]))
        yield


def bake_here(run: Session, plan: Plan, options: BakeOptions, earlier: BakeResult | None) -> BakeResult:
    """Build a file, prepare it for cold starts, and verify it; ``earlier`` is what an earlier run has of that."""
    events = run.events
    verifying = options.verify and not (earlier and earlier.record.verified) and can_boot(plan, events)
    if earlier and verifying:
        records.need_signer(earlier.artefact, run.signer)
    finished = with_trace(run, earlier, options) if earlier else make_artefact(run, plan, options)
    if not verifying:
        return finished
    interrupts.resume()
    base = run.bakefile.verify.base
    return prove(finished, events, base=base, keep_workspace=options.keep_workspace, signer=run.signer)


def with_trace(run: Session, earlier: BakeResult, options: BakeOptions) -> BakeResult:
    """Give an artefact of an earlier run the start-up trace that was asked for."""
    from parbake.workflows.trace import add_trace, rehearse  # loads only where something is left to do, here and below

    if options.trace:
        return replace(
            earlier, record=add_trace(earlier.artefact, earlier.record, options.trace, run.events, run.signer)
        )
    if options.rehearse and earlier.record.trace is None:
        where = rehearsal_place(run, options)
        return replace(earlier, record=rehearse(earlier.artefact, earlier.record, run.events, run.signer, where=where))
    return earlier


def make_artefact(run: Session, plan: Plan, options: BakeOptions) -> BakeResult:
    """Build the artefact in a work folder; then it, its list of blocks, its trace and its record appear together."""
    output, events = run.bakefile.output, run.events
    need_rights(plan, options)
    need_room(output, plan)
    base_path = find_base(run, plan)  # the default one is made once: no part of this bake's time
    clock = Clock()
    with work_on(output, plan.key[:12], events, keep=options.keep_workspace) as work:
        attachments = run.registry.find_attachments(plan.all_images)  # beside the bake, for its record
        plan, disk = build_disk(run, plan, base_path, work, parent=find_parent(run, plan, options))
        disk = prepare_for_cold_starts(run, disk, plan, work, options)
        record, blocks = describe_disk(run, plan, disk, base_path, clock, attachments())
        interrupts.hold()
        disk.path.chmod(access.mode_of(run.bakefile.readable_by))  # later, it would be a change of the file (ancestry)
        artefact = records.publish_artefact(
            disk.path, record, output, work, blocks=blocks, trace=disk.trace, signer=run.signer
        )
    access.give(output, records.everything(artefact), run.bakefile.readable_by)  # first: it changes what is remembered
    ancestry.remember(artefact, record, run.cache)
    return BakeResult(artefact, record, changed=True, state=state(artefact))


def find_parent(run: Session, plan: Plan, options: BakeOptions) -> ParentVolume | None:
    """Find the earlier artefact to start from, unless the user wants none."""
    if options.force or options.from_scratch:
        return None
    output, rehearse = run.bakefile.output, bool(options.rehearse)
    return ancestry.parent_of(plan, output, run.cache, verify=options.verify, rehearse=rehearse, trust=run.trusted)


def rehearses(plan: Plan, options: BakeOptions) -> bool:
    """Whether a bake rehearses what it builds. Pure."""
    usual = plan.artefact.kind == "volume" and options.verify
    return not options.trace and (usual if options.rehearse is None else options.rehearse)


def rehearsal_place(run: Session, options: BakeOptions) -> RehearsalPlace:
    """Return where a run rehearses: a volume is attached to the node on which it will be verified."""
    return RehearsalPlace(options.rehearse_in, run.bakefile.verify.base)


def prepare_for_cold_starts(run: Session, disk: Disk, plan: Plan, work: Path, options: BakeOptions) -> Disk:
    """Rehearse a disk and lay it out before it is digested, or take the trace that the user has."""
    if options.trace:
        return replace(disk, trace=_trace_from(options.trace, disk.path, plan))
    if rehearses(plan, options):
        from parbake.builders import coldstart

        where = rehearsal_place(run, options)
        return coldstart.prepare(disk, plan, work, events=run.events, where=where, layout=options.layout)
    return disk


def _trace_from(file: Path, artefact: Path | None, plan: Plan) -> Trace:
    from parbake.workflows.trace import recorded_elsewhere

    return recorded_elsewhere(file, artefact, plan)


def prove(
    finished: BakeResult,
    events: Events,
    *,
    base: Path | None = None,
    keep_workspace: bool = False,
    signer: Signer | None = None,
) -> BakeResult:
    """Boot the artefact without a network, start its images, and write the verdict into its record.

    Raises VerificationFailed with everything that is wrong.
    """
    verdict, sha256 = examine(
        finished.artefact, finished.record, events, base=base, known=finished.state, keep_workspace=keep_workspace
    )
    interrupts.hold()
    record = write_verdict(finished.artefact, finished.record, verdict, sha256, signer)
    judge(finished.artefact, verdict)
    return replace(finished, record=record)


def bake_and_publish(
    run: Session, plan: Plan, publisher: Publisher, options: BakeOptions, earlier: BakeResult | None, claim: Claim
) -> BakeResult:
    """Build a disk, prepare it for cold starts, verify it, and only then send it away and record where it is.

    What a cloud has of the plan already is read back where it still has to be looked at.
    """
    events = run.events
    need_rights(plan, options)
    verdict = earlier.record.verdict if earlier and earlier.record.verified else None
    verifying = options.verify and verdict is None and can_boot(plan, events)
    clock = Clock()
    with publisher.opened(plan, events, keep=options.keep_workspace, claim=claim) as shipment:
        attachments = run.registry.find_attachments(plan.all_images)
        sent = None if options.force else shipment.existing()
        disk_plan, disk, blocks = publisher.disk_plan(plan), None, None
        if sent is None or verifying or options.rehearse or options.trace:
            disk_plan, disk = disk_to_send(run, disk_plan, publisher, shipment, sent, options, earlier)
            blocks = disk.blocks
            if verifying:
                verdict = boot(events, disk.path, disk_plan, shipment.work, run.bakefile.verify.base)
        if verdict and not verdict.passed:
            published = {shipment.region: sent} if sent else {}
        else:
            if sent is None:
                assert disk
                sent, blocks = shipment.send(disk)
            published = dict(shipment.finish(sent, verdict))
        trace = disk.trace if disk else trace_beside(earlier)
        record = make_record(
            run,
            plan if plan.size_is_fixed else plan.model_copy(update={"size": disk_plan.size}),
            clock,
            size=disk_plan.size,
            blocks=blocks,
            sealed=disk.sealed if disk else (),
            published=published,
            verdict=verdict,
            trace=trace,
            attached=attachments(),
        )
        finished = write_record(run, of_one_bake(earlier, record), trace, blocks)
    judge(finished.artefact, verdict)
    return finished


def disk_to_send(
    run: Session,
    plan: Plan,
    publisher: Publisher,
    shipment: Shipment,
    sent: Published | None,
    options: BakeOptions,
    earlier: BakeResult | None,
) -> tuple[Plan, Disk]:
    """Return the disk that is verified and sent, with its plan: read back, kept by an earlier run, or built now."""
    if sent:
        disk = replace(shipment.fetch(sent), trace=trace_beside(earlier))
    elif kept := shipment.kept():
        disk = kept
    else:
        need_room(shipment.work, plan)
        plan, disk = build_disk(run, plan, find_base(run, plan, publisher), shipment.work)
        return plan, shipment.keep(prepare_for_cold_starts(run, disk, plan, shipment.work, options))
    plan = plan.model_copy(update={"size": disk.path.stat().st_size})
    return plan, prepare_for_cold_starts(run, disk, plan, shipment.work, options)


def bake_remotely(
    run: Session, plan: Plan, builder: RemoteBuilder, options: BakeOptions, earlier: BakeResult | None, claim: Claim
) -> BakeResult:
    """Let an instance bake and verify, and record where the result is."""
    output, clock = run.bakefile.output, Clock()
    with work_on(output, plan.key[:12], run.events, keep=options.keep_workspace) as work:
        attachments = run.registry.find_attachments(plan.all_images)
        anew = earlier is not None and not earlier.record.verified
        ingredients = Ingredients(None, nothing_here, work, run.events, claim=claim, prove_anew=anew)
        made = builder.bake_remotely(plan, ingredients)
        trace = _trace_from(options.trace, None, plan) if options.trace else trace_beside(earlier)
        record = make_record(
            run,
            plan,
            clock,
            size=made.size,
            published=dict(made.published),
            verdict=made.verdict,
            trace=trace,
            attached=attachments(),
        )
        finished = write_record(run, of_one_bake(earlier, record), trace)
    judge(finished.artefact, made.verdict)
    return finished


def write_record(run: Session, record: Record, trace: Trace | None, blocks: BlockList | None = None) -> BakeResult:
    """Write the record of an artefact that lies in a cloud, with what belongs beside it, whole or not at all."""
    interrupts.hold()
    path = records.write_published(record, run.bakefile.output, blocks=blocks, trace=trace, signer=run.signer)
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


def trace_beside(earlier: BakeResult | None) -> Trace | None:
    """Return the start-up trace of an artefact that exists, where it has one."""
    if earlier is None or earlier.record.trace is None:
        return None
    from parbake.workflows.trace import trace_of

    with suppress(InputError, VerificationFailed):  # it was removed by hand, or is another's
        return trace_of(earlier.artefact, earlier.record)
    return None

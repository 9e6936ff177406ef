"""What a bake does once something is left to do. Start reading at ``make``.

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
    Publication,
    Publisher,
    RehearsalPlace,
    RemoteBuilder,
    Shipment,
)
from parbake.core import access, interrupts
from parbake.core.errors import InputError, VerificationFailed
from parbake.core.events import Events
from parbake.core.model import Image, Plan, Published, TraceSummary, Verdict
from parbake.core.run import need_root
from parbake.core.signing import Signer
from parbake.core.sources import LayerSource
from parbake.core.workspace import part_of, work_folder
from parbake.records import Record
from parbake.records.held import state
from parbake.workflows.bake import ancestry
from parbake.workflows.bake.describe import Attachments, Clock, describe_disk, make_record
from parbake.workflows.bake.disks import build_disk, find_base, need_room
from parbake.workflows.plan import Bake, BakeOptions, BakeResult
from parbake.workflows.verify import boot, can_boot, examine, judge, seen_in_rehearsal, work_on, write_verdict

if TYPE_CHECKING:
    from parbake.coldstart.trace import Trace


def make(bake: Bake) -> BakeResult:
    """Build the disk, rehearse it and lay it out, verify, publish, record.

    What goes to a cloud is sent only when it was verified; a file is there, unproven, once it is complete, so that a
    run that is killed while it verifies has not built for nothing.
    """
    if bake.remote:
        return bake_remotely(bake, bake.remote)
    if bake.publisher:
        return bake_and_publish(bake, bake.publisher)
    return bake_here(bake)


def need_rights(plan: Plan, options: BakeOptions) -> None:
    """Raise EnvironmentProblem without root where something is mounted: for all but an ext4 volume.

    So does a rehearsal in a place that cannot be had; InputError for one that is none for the artefact.
    """
    if rehearses(plan, options) and options.rehearse_in:
        from parbake.builders import coldstart

        coldstart.place_of(plan, options.rehearse_in)
    if plan.artefact.mounted:
        need_root("baking")


@contextmanager
def holding_layouts(cache: Path, plan: Plan) -> Iterator[None]:
    """Keep `clean --caches` from removing what this run is going to read of images that lie in the cache."""
    with ExitStack() as stack:
        layouts = [Path(image.layout) for image in plan.all_images if image.layout]
        for part in sorted({path.relative_to(cache).parts[0] for path in layouts if path.is_relative_to(cache)}):
            stack.enter_context(work_folder(part_of(cache, part), plan.key[:12]))
        yield


def bake_here(bake: Bake) -> BakeResult:
    """Build a file, prepare it for cold starts, and verify it: what an earlier run has not done of that."""
    earlier, signer = bake.earlier, bake.run.signer
    verdict, verifying = earlier.record.verdict if earlier else None, is_to_be_verified(bake)
    if earlier and verifying and not verdict and failed_in_rehearsal(bake, earlier.record.trace):
        earlier = None  # its images start otherwise now: it is rehearsed and laid out anew
    if earlier and verifying:
        records.need_signer(earlier.artefact, signer)
    finished = with_trace(bake, earlier) if earlier else make_artefact(bake)
    if not verifying:
        return finished
    interrupts.resume()
    known = verdict if verdict and verdict.accelerator == "rehearsal" and rehearsal_decides(bake) else None
    if not earlier and failed_in_rehearsal(bake, finished.record.trace):
        known = seen_in_rehearsal(finished.record.trace, bake.plan)
    base, keep = bake.run.bakefile.verify.base, bake.options.keep_workspace
    return prove(finished, bake.events, base=base, known=known, keep_workspace=keep, signer=signer)


def is_to_be_verified(bake: Bake) -> bool:
    """Whether a verification is asked for, left to do, and possible on this machine."""
    done = bake.earlier is not None and bake.earlier.record.verified
    return bake.options.verify and not done and can_boot(bake.plan, bake.events)


def with_trace(bake: Bake, earlier: BakeResult) -> BakeResult:
    """Give an artefact of an earlier run the start-up trace that was asked for."""
    from parbake.workflows.trace import add_trace, rehearse  # loads only where something is left to do, here and below

    run, options = bake.run, bake.options
    if options.trace:
        record = add_trace(earlier.artefact, earlier.record, options.trace, run.events, run.signer)
        return replace(earlier, record=record)
    if options.rehearse and earlier.record.trace is None:
        where = rehearsal_place(bake)
        return replace(earlier, record=rehearse(earlier.artefact, earlier.record, run.events, run.signer, where=where))
    return earlier


def make_artefact(bake: Bake) -> BakeResult:
    """Build the artefact in a work folder; then it, its list of blocks, its trace and its record appear together."""
    run, output = bake.run, bake.output
    need_rights(bake.plan, bake.options)
    need_room(output, bake.plan)
    base_path = find_base(run, bake.plan)  # the default one is made once: no part of this bake's time
    clock = Clock()
    with work_on(output, bake.plan.key[:12], bake.events, keep=bake.options.keep_workspace) as work:
        attachments = run.registry.find_attachments(bake.plan.all_images)  # beside the bake, for its record
        plan, disk = build_disk(run, bake.plan, base_path, work, parent=find_parent(bake))
        bake = replace(bake, plan=plan)
        disk = prepare_for_cold_starts(bake, disk, work)
        record, blocks = describe_disk(bake, disk, base_path, clock, attachments())
        interrupts.hold()
        disk.path.chmod(access.mode_of(run.bakefile.readable_by))  # later, it would be a change of the file (ancestry)
        artefact = records.publish_artefact(
            disk.path, record, output, work, blocks=blocks, trace=disk.trace, signer=run.signer
        )
    access.give(output, records.everything(artefact), run.bakefile.readable_by)  # first: it changes what is remembered
    ancestry.remember(artefact, record, run.cache)
    return BakeResult(artefact, record, changed=True, state=state(artefact))


def find_parent(bake: Bake) -> ParentVolume | None:
    """Find the earlier artefact to start from, unless the user wants none."""
    run, options = bake.run, bake.options
    if options.force or options.from_scratch:
        return None
    rehearse = bool(options.rehearse)
    return ancestry.parent_of(
        bake.plan, bake.output, run.cache, verify=options.verify, rehearse=rehearse, trust=run.trusted
    )


def rehearses(plan: Plan, options: BakeOptions) -> bool:
    """Whether a bake rehearses what it builds. Pure."""
    usual = plan.artefact.kind == "volume" and options.verify
    return not options.trace and (usual if options.rehearse is None else options.rehearse)


def rehearsal_decides(bake: Bake) -> bool:
    """Whether what fails in a rehearsal fails the bake: unless a node of the user's own is there to tell. Pure."""
    return bake.options.verify and rehearses(bake.plan, bake.options) and bake.run.bakefile.verify.base is None


def failed_in_rehearsal(bake: Bake, trace: Trace | TraceSummary | None) -> bool:
    """Whether an image failed in a rehearsal that decides. Pure."""
    return trace is not None and bool(trace.failed) and rehearsal_decides(bake)


def rehearsal_place(bake: Bake) -> RehearsalPlace:
    """Return where a run rehearses: a volume is attached to the node on which it will be verified."""
    return RehearsalPlace(bake.options.rehearse_in, bake.run.bakefile.verify.base)


def prepare_for_cold_starts(bake: Bake, disk: Disk, work: Path) -> Disk:
    """Rehearse a disk and lay it out before it is digested, or take the trace that the user has."""
    plan, options = bake.plan, bake.options
    if options.trace:
        return replace(disk, trace=_trace_from(options.trace, disk.path, plan))
    if rehearses(plan, options):
        from parbake.builders import coldstart

        where = rehearsal_place(bake)
        decides = rehearsal_decides(bake)
        return coldstart.prepare(
            disk, plan, work, events=bake.events, where=where, layout=options.layout, proven=decides
        )
    return disk


def _trace_from(file: Path, artefact: Path | None, plan: Plan) -> Trace:
    from parbake.workflows.trace import recorded_elsewhere

    return recorded_elsewhere(file, artefact, plan)


def prove(
    finished: BakeResult,
    events: Events,
    *,
    base: Path | None = None,
    known: Verdict | None = None,
    keep_workspace: bool = False,
    signer: Signer | None = None,
) -> BakeResult:
    """Boot the artefact without a network, start its images, and write the verdict into its record.

    Nothing is booted where the verdict is ``known`` from its rehearsal. Raises VerificationFailed with everything that
    is wrong.
    """
    verdict, sha256 = known, ""
    if not verdict:
        verdict, sha256 = examine(
            finished.artefact, finished.record, events, base=base, known=finished.state, keep_workspace=keep_workspace
        )
    interrupts.hold()
    record = write_verdict(finished.artefact, finished.record, verdict, sha256, signer)
    judge(finished.artefact, verdict)
    return replace(finished, record=record)


def bake_and_publish(bake: Bake, publisher: Publisher) -> BakeResult:
    """Build a disk, prepare it for cold starts, verify it, and only then send it away and record where it is.

    What a cloud has of the plan already is read back where it still has to be looked at.
    """
    plan, options, events, earlier = bake.plan, bake.options, bake.events, bake.earlier
    need_rights(plan, options)
    verdict = earlier.record.verdict if earlier and earlier.record.verified else None
    verifying = is_to_be_verified(bake)
    clock = Clock()
    with publisher.opened(plan, events, keep=options.keep_workspace, claim=bake.claim) as shipment:
        attachments = bake.run.registry.find_attachments(plan.all_images)
        sent = None if options.force else shipment.existing()
        of_disk, disk = replace(bake, plan=publisher.disk_plan(plan)), None
        if sent is None or verifying or options.rehearse or options.trace:
            of_disk, disk = disk_to_send(of_disk, publisher, shipment, sent)
            if verifying and failed_in_rehearsal(of_disk, disk.trace):
                verdict = seen_in_rehearsal(disk.trace, of_disk.plan)
            elif verifying:
                verdict = boot(events, disk.path, of_disk.plan, shipment.work, bake.run.bakefile.verify.base)
        if verdict and not verdict.passed:
            published = {shipment.region: sent} if sent else {}
        else:
            if sent is None:
                assert disk
                sent, blocks = shipment.send(disk)
                disk = replace(disk, blocks=blocks)
            published = dict(shipment.finish(sent, verdict))
        made = Publication(published, of_disk.plan.size, verdict)
        if not plan.size_is_fixed:
            bake = replace(bake, plan=plan.model_copy(update={"size": made.size}))
        finished = record_published(bake, clock, made, disk, attachments())
    judge(finished.artefact, verdict)
    return finished


def disk_to_send(bake: Bake, publisher: Publisher, shipment: Shipment, sent: Published | None) -> tuple[Bake, Disk]:
    """Return the disk that is verified and sent, and its bake: read back, kept by an earlier run, or built now."""
    if sent:
        disk = replace(shipment.fetch(sent), trace=trace_beside(bake.earlier))
    elif (kept := shipment.kept()) and not failed_in_rehearsal(bake, kept.trace):
        disk = kept
    else:
        need_room(shipment.work, bake.plan)
        plan, disk = build_disk(bake.run, bake.plan, find_base(bake.run, bake.plan, publisher), shipment.work)
        bake = replace(bake, plan=plan)
        return bake, shipment.keep(prepare_for_cold_starts(bake, disk, shipment.work))
    bake = replace(bake, plan=bake.plan.model_copy(update={"size": disk.path.stat().st_size}))
    return bake, prepare_for_cold_starts(bake, disk, shipment.work)


def bake_remotely(bake: Bake, builder: RemoteBuilder) -> BakeResult:
    """Let an instance bake and verify, and record where the result is."""
    plan, run, clock = bake.plan, bake.run, Clock()
    with work_on(bake.output, plan.key[:12], run.events, keep=bake.options.keep_workspace) as work:
        attachments = run.registry.find_attachments(plan.all_images)
        anew = bake.earlier is not None and not bake.earlier.record.verified
        ingredients = Ingredients(None, nothing_here, work, run.events, claim=bake.claim, prove_anew=anew)
        made = builder.bake_remotely(plan, ingredients)
        finished = record_published(bake, clock, made, None, attachments())
    judge(finished.artefact, made.verdict)
    return finished


def record_published(
    bake: Bake, clock: Clock, made: Publication, disk: Disk | None, attached: Attachments
) -> BakeResult:
    """Write the record of an artefact that lies in a cloud, with what belongs beside it, whole or not at all."""
    given = bake.options.trace if disk is None else None
    trace = disk.trace if disk else _trace_from(given, None, bake.plan) if given else trace_beside(bake.earlier)
    record = of_one_bake(bake.earlier, make_record(bake, clock, made, disk, trace, attached))
    interrupts.hold()
    blocks = disk.blocks if disk else None
    path = records.write_published(record, bake.output, blocks=blocks, trace=trace, signer=bake.run.signer)
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

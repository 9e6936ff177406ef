"""The story: what parbake does, each act as a paragraph.

``bake = plan -> (exists? stop) -> build the disk -> rehearse, lay out -> prove -> publish and record``

Decide first, act later: ``parbake.workflows.plan`` only reads, up to the plan. Acting converges: everything that
is made has a name that follows from the content key, so a bake that was killed is finished by running it again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from parbake import records
from parbake.bakefile import Bakefile
from parbake.builders import Builder, Disk, Ingredients, ParentVolume, Publisher, RemoteBuilder, Shipment, coldstart
from parbake.builders.choose import builder_of, publisher_of, remote_builder_of
from parbake.coldstart.trace import Trace
from parbake.core import access, interrupts
from parbake.core.claim import Alone, Claim
from parbake.core.errors import (
    ArtefactFull,
    CacheDamaged,
    DeadlineExceeded,
    DiskFull,
    EnvironmentProblem,
    InputError,
    LayerTooLarge,
    Moved,
)
from parbake.core.events import Events
from parbake.core.model import MIB, Image, Plan, Published
from parbake.core.plan import cautions, larger, measure
from parbake.core.run import need_root
from parbake.core.signing import Signer
from parbake.core.sources import Source
from parbake.core.workspace import remove_leftovers, remove_tree
from parbake.images.cache import cached
from parbake.images.registry import open_source
from parbake.machine import base, disk
from parbake.records import genuine
from parbake.workflows import ancestry
from parbake.workflows.describe import Clock, describe_disk, make_record
from parbake.workflows.plan import (
    BakeResult,
    Session,
    ask_account,
    base_of,
    decide,
    existing,
    make_images,
    open_session,
    resolve,
)
from parbake.workflows.sharing import make_and_share, using
from parbake.workflows.trace import bring, recorded_elsewhere, rehearse, trace_of
from parbake.workflows.verify import boot, can_boot, examine, judge, work_on, write_verdict


@dataclass(frozen=True, slots=True)
class Options:
    """How to bake: ``force`` bakes what exists already, ``rebuild`` builds images whose context did not change.

    ``rehearse`` records what a start reads (None: of volumes that are verified); ``layout`` brings that together.
    ``trace`` is a file that was recorded elsewhere.
    ``from_scratch`` starts from no earlier artefact; ``force`` does not either.
    ``expect_key`` is the content key that was planned; ``overrides`` replace keys of the Bakefile.
    """

    force: bool = False
    rebuild: bool = False
    verify: bool = True
    rehearse: bool | None = None
    layout: bool = True
    trace: Path | None = None
    keep_workspace: bool = False
    from_scratch: bool = False
    expect_key: str = ""
    overrides: Mapping[str, str] = field(default_factory=dict)


def bake(bakefile_path: Path, events: Events, options: Options | None = None) -> BakeResult:
    """Make sure that the artefact of this Bakefile exists and is proven; a no-op when it is.

    Raises VerificationFailed (the artefact stays, its record says why) when an image does not start from it; Moved
    where its content key is not the one that was expected.
    """
    options = options or Options()
    with open_session(bakefile_path, events, options.overrides) as opened:
        run = replace(opened, signer=genuine.open_signer(opened.bakefile))  # what is wrong with the key shows first
        remove_leftovers(run.cache)  # builds that were killed leave credentials there
        remote = remote_builder_of(run.bakefile, verify=options.verify, fresh=options.force)
        publisher = publisher_of(run.bakefile, fresh=options.force)
        if remote:
            refuse_rehearsal(run.bakefile, options)
        known, onto = ask_account(run), base_of(run)  # what must fail is refused before images are built
        plan = decide(run, make_images(run, resolve(run, ignore_built=options.rebuild), force=options.rebuild), onto)
        need_key(plan, options)
        for caution in (*cautions(plan), *known):
            events.warn(caution)
        make = partial(make_sure, run, plan, remote, publisher, options)
        return make_and_share(run, plan, make, force=options.force)


def need_key(plan: Plan, options: Options) -> None:
    """Raise Moved unless a plan has the content key that was expected, if any was."""
    if options.expect_key and plan.key != options.expect_key:
        raise Moved(f"the content key of {plan.name} is {plan.key} now, not {options.expect_key}")


def make_sure(
    run: Session,
    plan: Plan,
    remote: RemoteBuilder | None,
    publisher: Publisher | None,
    options: Options,
    claim: Callable[[], Claim],
    *,
    force: bool,
) -> BakeResult:
    """Make sure that a plan's artefact exists here, or in a cloud, and is proven; ``force`` makes it anew.

    What a cloud gets is made with the ``claim`` of one machine alone.
    """
    options = replace(options, force=force)
    output, name, events = run.bakefile.output, plan.artefact_name, run.events
    look = partial(existing, output, plan, trust=trusted(run))
    earlier = None if options.force else look(Events())  # what speaks against it is told below
    if earlier and complete(earlier, options):
        # Nothing is left to do, also where nothing can be written; but a run may have been killed just after that.
        with suppress(OSError, EnvironmentProblem, DeadlineExceeded):
            access.give(output, records.everything(output / name), run.bakefile.readable_by)
            records.sweep(output)
        return earlier
    records.sweep(output)
    mine: Claim = claim() if remote or publisher else Alone()
    with using(run, name):
        earlier = None if options.force else look(events, mend=True)
        if earlier and complete(earlier, options):
            return earlier  # another machine was first
        if remote:
            return bake_remotely(run, plan, remote, options, earlier, mine)
        if publisher:
            return bake_and_publish(run, plan, publisher, options, earlier, mine)
        return bake_here(run, plan, options, earlier)


def trusted(run: Session) -> Sequence[Path]:
    """Return the keys that must have signed what this run goes on from: those of a Bakefile that signs."""
    return run.bakefile.trust if run.signer else ()


def complete(finished: BakeResult, options: Options) -> bool:
    """Whether an artefact that exists is all that was asked for."""
    record = finished.record
    proven = record.verified or not options.verify
    rehearsed = record.trace is not None or not options.rehearse
    return proven and rehearsed and not options.trace


def refuse_rehearsal(bakefile: Bakefile, options: Options) -> None:
    """Raise InputError when a disk that is never on this machine was asked to be rehearsed here."""
    if options.rehearse:
        raise InputError(
            f"--rehearse needs the disk on this machine, and `builder: {bakefile.builder}` bakes on an instance",
            hint="write `builder: ebs`, or bring a trace from a node: `parbake trace RECORD --trace FILE`",
        )


def bake_here(run: Session, plan: Plan, options: Options, earlier: BakeResult | None) -> BakeResult:
    """Build a file, get it ready for cold starts, and prove it; ``earlier`` is what an earlier run has of that."""
    events = run.events
    provable = options.verify and not (earlier and earlier.record.verified) and can_boot(plan, events)
    if earlier and provable:
        records.need_signer(earlier.artefact, run.signer)
    finished = earlier or make(run, plan, options)
    if earlier and options.trace:
        finished = replace(earlier, record=bring(earlier.artefact, earlier.record, options.trace, run.signer))
    elif earlier and options.rehearse and earlier.record.trace is None:
        finished = replace(earlier, record=rehearse(earlier.artefact, earlier.record, events, run.signer))
    if not provable:
        return finished
    interrupts.resume()
    base = run.bakefile.verify.base
    return prove(finished, events, base=base, keep_workspace=options.keep_workspace, signer=run.signer)


def make(run: Session, plan: Plan, options: Options) -> BakeResult:
    """Build the artefact in a work folder; then it, its list of blocks, its trace and its record appear together."""
    output, events = run.bakefile.output, run.events
    need_root("baking")
    need_room(output, plan)
    base_path = find_base(run, plan)  # the default one is made once: no part of this bake's time
    clock = Clock()
    with work_on(output, plan.key[:12], events, keep=options.keep_workspace) as work:
        attachments = run.registry.find_attachments(plan.all_images)  # beside the bake, for its record
        plan, disk = build_disk(run, plan, base_path, work, parent=find_parent(run, plan, options))
        disk = prepared(disk, plan, work, options, events)
        record, blocks = describe_disk(run, plan, disk, base_path, clock, attachments())
        interrupts.hold()
        disk.path.chmod(access.mode_of(run.bakefile.readable_by))  # later, it would be a change of the file (ancestry)
        artefact = records.publish_artefact(
            disk.path, record, output, work, blocks=blocks, trace=disk.trace, signer=run.signer
        )
    access.give(output, records.everything(artefact), run.bakefile.readable_by)  # first: it changes what is remembered
    ancestry.remember(artefact, record, run.cache)
    return BakeResult(artefact, record, changed=True)


def bake_and_publish(
    run: Session, plan: Plan, publisher: Publisher, options: Options, earlier: BakeResult | None, claim: Claim
) -> BakeResult:
    """Build a disk, get it ready for cold starts, prove it, and only then send it away and record where it is.

    What a cloud has of the plan already is read back where it still has to be looked at.
    """
    events, output = run.events, run.bakefile.output
    need_root("baking")
    verdict, blocks = earlier.record.verdict if earlier and earlier.record.verified else None, None
    proving = options.verify and verdict is None and can_boot(plan, events)
    clock = Clock()
    with publisher.opened(plan, events, keep=options.keep_workspace, claim=claim) as shipment:
        attachments = run.registry.find_attachments(plan.all_images)
        there = None if options.force else shipment.existing()
        disk_plan, disk = publisher.disk_plan(plan), None
        if there is None or proving or options.rehearse or options.trace:
            disk_plan, disk = disk_to_send(run, disk_plan, publisher, shipment, there, options, earlier)
            if proving:
                verdict = boot(events, disk.path, disk_plan, shipment.work, run.bakefile.verify.base)
        if verdict and not verdict.passed:
            published = {shipment.region: there} if there else {}
        else:
            if there is None:
                assert disk
                there, blocks = shipment.send(disk)
            published = dict(shipment.finish(there, verdict))
        if disk:
            blocks = blocks or disk.blocks
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
        interrupts.hold()
        place = records.write_published(record, output, blocks=blocks, trace=trace, signer=run.signer)
    judge(place, verdict)
    return BakeResult(place, record, changed=True)


def disk_to_send(
    run: Session,
    plan: Plan,
    publisher: Publisher,
    shipment: Shipment,
    there: Published | None,
    options: Options,
    earlier: BakeResult | None,
) -> tuple[Plan, Disk]:
    """Return the disk that is proven and sent, with its plan: read back, kept by an earlier run, or built now."""
    if there:
        disk = replace(shipment.fetch(there), trace=trace_beside(earlier))
    elif kept := shipment.kept():
        disk = kept
    else:
        need_room(shipment.work, plan)
        plan, disk = build_disk(run, plan, find_base(run, plan, publisher), shipment.work)
        return plan, shipment.keep(prepared(disk, plan, shipment.work, options, run.events))
    plan = plan.model_copy(update={"size": disk.path.stat().st_size})
    return plan, prepared(disk, plan, shipment.work, options, run.events)


def bake_remotely(
    run: Session, plan: Plan, builder: RemoteBuilder, options: Options, earlier: BakeResult | None, claim: Claim
) -> BakeResult:
    """Let an instance bake and prove, and record where the result is."""
    output, clock = run.bakefile.output, Clock()
    with work_on(output, plan.key[:12], run.events, keep=options.keep_workspace) as work:
        attachments = run.registry.find_attachments(plan.all_images)
        made = builder.bake_remotely(plan, Ingredients(None, nothing_here, work, run.events, claim=claim))
        place = output / plan.artefact_name
        trace = recorded_elsewhere(options.trace, place, plan) if options.trace else trace_beside(earlier)
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
        interrupts.hold()
        records.write_published(record, output, trace=trace, signer=run.signer)
    judge(place, made.verdict)
    return BakeResult(place, record, changed=True)


def nothing_here(image: Image) -> Source:
    """Stand for the content of images where an instance pulls them itself."""
    raise AssertionError(f"{image.reference} is pulled by the instance, not here")


def trace_beside(finished: BakeResult | None) -> Trace | None:
    """Return the start-up trace of an artefact that exists, where it has one."""
    if finished is None or finished.record.trace is None:
        return None
    with suppress(InputError):  # it was removed by hand, or is damaged
        return trace_of(finished.artefact, finished.record)
    return None


def find_parent(run: Session, plan: Plan, options: Options) -> ParentVolume | None:
    """Find the earlier artefact to start from, unless the user wants none."""
    if options.force or options.from_scratch:
        return None
    output, rehearse = run.bakefile.output, bool(options.rehearse)
    return ancestry.parent_of(plan, output, run.cache, verify=options.verify, rehearse=rehearse, trust=trusted(run))


def prepared(disk: Disk, plan: Plan, work: Path, options: Options, events: Events) -> Disk:
    """Get a disk ready for cold starts before it is digested, as the user wants it."""
    if options.trace:
        return replace(disk, trace=recorded_elsewhere(options.trace, disk.path, plan))
    usual = plan.artefact.kind == "volume" and options.verify
    if options.rehearse or (options.rehearse is None and usual):
        return coldstart.prepare(disk, plan, work, events=events, layout=options.layout)
    return disk


def need_room(output: Path, plan: Plan) -> None:
    """Raise DiskFull before any work when the output folder cannot hold the artefact, whatever the estimates are."""
    sizes = measure(plan.all_images, keep_layers=plan.keep_layers)
    least = max(sizes.transfer, 0 if sizes.estimated else sizes.raw // 2)
    total, used = disk.usage(output)
    if total - used < least:
        raise DiskFull(
            f"{output} has {(total - used) // MIB} MiB of free space, and the images take more than {least // MIB} MiB",
            hint="free some space, or move `output` to a larger disk",
        )


def build_disk(
    run: Session, plan: Plan, base_path: Path | None, work: Path, *, parent: ParentVolume | None = None
) -> tuple[Plan, Disk]:
    """Let the builder make the disk in a work folder; return it, and the plan with the size that it needed."""
    sources = cached(partial(open_source, run.registry), run.cache, run.events)
    ingredients = Ingredients(base_path, sources, work, run.events, run.registry.close, parent)
    return build_large_enough(plan, builder_of(run.bakefile), ingredients)


def build_large_enough(plan: Plan, builder: Builder, ingredients: Ingredients) -> tuple[Plan, Disk]:
    """Let the builder make the disk; where the automatic size was too small, again with a larger one.

    How much a layer inflates to, and into how many files, is known for certain only when it is unpacked.
    """
    while True:
        work = ingredients.work / f"{plan.size // MIB}"
        work.mkdir()
        try:
            return plan, builder.build(plan, replace(ingredients, work=work))
        except (ArtefactFull, LayerTooLarge) as error:
            bigger = larger(plan, bomb=isinstance(error, LayerTooLarge))
            if bigger is None:
                raise
            ingredients.events.warn(f"{error.message}: baking again with a disk of {bigger.size // MIB} MiB")
            plan = bigger
        except CacheDamaged as error:
            ingredients.events.warn(f"{error.message}: baking again")
        remove_tree(work)


def find_base(run: Session, plan: Plan, publisher: Publisher | None = None) -> Path | None:
    """Return the base's disk image on this machine; the default one is made when it is not cached."""
    match plan.base.kind:
        case "none":
            return None
        case "debian":
            choice = run.bakefile.base
            return base.ensure(
                run.cache, run.events, packages=choice.packages, serial=choice.serial, platform=plan.platform
            )
        case "file":
            return Path(plan.base.path)
        case "ami":
            return publisher.base(plan, run.events) if publisher else None


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
        finished.artefact, finished.record, events, base=base, fresh=finished.changed, keep_workspace=keep_workspace
    )
    interrupts.hold()
    record = write_verdict(finished.artefact, finished.record, verdict, sha256, signer)
    judge(finished.artefact, verdict)
    return replace(finished, record=record)

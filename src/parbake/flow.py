"""The story: what parbake does, each act as a paragraph.

``bake = load -> build -> resolve -> plan -> (exists? stop) -> fill -> seal -> rehearse -> lay out -> record -> verify``

Decide first, act later: ``outlook`` only reads and shows all that ``bake`` would do. Acting converges: everything that
is made has a name that follows from the content key, so a bake that was killed is finished by running it again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from parbake import __version__, base, build, coldstart, disk, genuine, pause, records
from parbake.bakefile import Bakefile, ImageEntry, advice, load
from parbake.builders import Baked, Builder, Ingredients, Parent
from parbake.builders.choose import ELSEWHERE, builder_of
from parbake.disk import BlockList
from parbake.errors import (
    ArtefactFull,
    CacheDamaged,
    DeadlineExceeded,
    DiskFull,
    EnvironmentProblem,
    InputError,
    LayerBomb,
    VerificationFailed,
)
from parbake.events import Events
from parbake.layercache import through
from parbake.model import MIB, Base, Image, Plan
from parbake.plan import cautions, larger, make_plan, measure
from parbake.proof import boot, can_boot, examine, judge, work_on, write_verdict
from parbake.records import Blocks, Record
from parbake.reference import Reference
from parbake.registry import Layout, Registry, open_source
from parbake.run import need_root
from parbake.signing import Signer, public_key
from parbake.workspace import cache_folder, remove_leftovers, remove_tree, room_for, work_folder


@dataclass(frozen=True, slots=True)
class Options:
    """How to bake: ``force`` bakes what exists already, ``rebuild`` builds images whose context did not change.

    ``rehearse`` records what a start reads (None: of volumes that are verified); ``layout`` brings that together.
    ``trace`` is a file that was recorded elsewhere.
    ``from_scratch`` starts from no earlier artefact; ``force`` does not either.
    """

    force: bool = False
    rebuild: bool = False
    verify: bool = True
    rehearse: bool | None = None
    layout: bool = True
    trace: Path | None = None
    keep_workspace: bool = False
    from_scratch: bool = False


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a bake would do. ``plan`` is None while ``to_build`` names images that must be built first."""

    plan: Plan | None
    to_build: tuple[str, ...] = ()
    existing: Record | None = None
    cautions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Finished:
    """An artefact and its record; ``changed`` is False when it was there already."""

    artefact: Path
    record: Record
    changed: bool


@dataclass(frozen=True, slots=True)
class Kitchen:
    """What one run works with. Made by ``kitchen``, which also closes it."""

    bakefile: Bakefile
    registry: Registry
    events: Events
    cache: Path = field(default_factory=cache_folder)


@contextmanager
def kitchen(path: Path, events: Events) -> Iterator[Kitchen]:
    """Load the Bakefile and open what a run needs; raises BakefileError with all that is wrong in it."""
    bakefile = load(path)
    for caution in advice(bakefile):
        events.warn(caution)
    with Registry(bakefile.registries, events=events) as registry:
        yield Kitchen(bakefile, registry, events)


def outlook(path: Path, events: Events) -> Outlook:
    """Say what a bake of this Bakefile would do, without doing any of it."""
    with kitchen(path, events) as run:
        images = resolve(run)
        missing = tuple(reference for reference, image in images.items() if image is None)
        if missing:
            return Outlook(None, to_build=missing)
        plan = decide(run, [image for image in images.values() if image])
        found = existing(run.bakefile.output, plan, events)
        return Outlook(plan, existing=found.record if found else None, cautions=cautions(plan))


def bake(path: Path, events: Events, options: Options | None = None) -> Finished:
    """Make sure that the artefact of this Bakefile exists and is proven; a no-op when it is.

    Raises VerificationFailed (the artefact stays, its record says why) when an image does not start from it.
    """
    options = options or Options()
    with kitchen(path, events) as run:
        signer = genuine.open_signer(run.bakefile)  # what is wrong with the key shows before anything is made
        remove_leftovers(run.cache)  # builds that were killed leave credentials there
        plan = decide(run, make_images(run, resolve(run, ignore_built=options.rebuild), force=options.rebuild))
        for caution in cautions(plan):
            events.warn(caution)
        output, name = run.bakefile.output, plan.artefact_name
        look = partial(existing, output, plan, trust=run.bakefile.trust if signer else ())
        finished = None if options.force else look(Events())  # what speaks against it is told below
        if finished and (finished.record.verified or not options.verify) and not options.trace:
            # Nothing is left to do, also where nothing can be written; but a run may have been killed just after that.
            with suppress(OSError, EnvironmentProblem, DeadlineExceeded):
                records.sweep(output)
            return finished
        records.sweep(output)
        with records.in_use(output, name, waiting=lambda: events.note(f"another parbake works on {name}: waiting")):
            finished = None if options.force else look(events, mend=True)
            verified = finished is not None and finished.record.verified
            in_cloud = plan.artefact.in_cloud  # its builder proves it, and goes on where an earlier run stopped
            here = options.verify and not verified and run.bakefile.builder not in ELSEWHERE
            provable = here and can_boot(plan, events)
            if finished and provable:
                records.need_signer(finished.artefact, signer)
            if finished is None or in_cloud:
                finished = make(run, plan, options, proving=provable and in_cloud, signer=signer)
                judge(finished.artefact, finished.record.verdict)
            if provable and not in_cloud:
                finished = prove(finished, events, keep_workspace=options.keep_workspace, signer=signer)
            if in_cloud:
                return finished  # nothing of it is here to be looked at
            if options.trace:
                record = coldstart.bring(finished.artefact, finished.record, options.trace, signer)
                finished = replace(finished, record=record)
    return finished


def resolve(run: Kitchen, *, ignore_built: bool = False) -> dict[str, Image | None]:
    """Look up every image of the Bakefile, in parallel; None for one that is to be built."""

    def look_up(entry: ImageEntry) -> Image | None:
        platform = entry.platform or run.bakefile.platform
        if entry.build is None:
            image = run.registry.resolve(entry.parsed, platform)
            if entry.signed_by:
                run.registry.need_signature(image, public_key(entry.signed_by))
            return image
        if ignore_built:
            return None
        key = build.build_key(entry.build, platform)
        return build.existing(entry.parsed, platform, key, registry=run.registry, cache=run.cache)

    entries = run.bakefile.images
    with ThreadPoolExecutor(max_workers=8) as pool, hanging_up(run.registry):
        found = list(pool.map(look_up, entries))
    return {
        entry.reference: image and image.model_copy(update=_wishes(entry))
        for entry, image in zip(entries, found, strict=True)
    }


@contextmanager
def hanging_up(registry: Registry) -> Iterator[None]:
    """Cut the connections when the body fails or is interrupted, so that no thread goes on waiting for an answer."""
    try:
        yield
    except BaseException:
        registry.close()
        raise


def make_images(run: Kitchen, images: dict[str, Image | None], *, force: bool = False) -> list[Image]:
    """Build and push what is missing; return every image."""
    made = []
    for entry in run.bakefile.images:
        image = images[entry.reference]
        if image is None:
            assert entry.build
            with work_folder(run.cache, "build") as work:
                built = build.build(
                    entry.build,
                    entry.parsed,
                    entry.platform or run.bakefile.platform,
                    options=run.bakefile.registries,
                    events=run.events,
                    work=work,
                    cache=run.cache,
                    force=force,
                )
            image = built.image.model_copy(update=_wishes(entry))
        made.append(image)
    return made


def _wishes(entry: ImageEntry) -> dict[str, object]:
    return {
        "reference": str(entry.parsed),
        "startup": entry.startup,
        "also_by_digest": entry.also_by_digest,
    }


def decide(run: Kitchen, images: list[Image]) -> Plan:
    """Make the plan from the Bakefile and what its images resolved to."""
    bakefile = run.bakefile
    artefact, aws = bakefile.artefact, bakefile.aws
    if artefact.in_cloud:
        artefact = artefact.model_copy(update={"encrypted": aws.encrypted, "kms_key": aws.kms_key or ""})
    return make_plan(
        name=bakefile.name,
        platform=bakefile.platform,
        base=base_of(run),
        artefact=artefact,
        images=images,
        sandbox=sandbox_of(run),
        keep_layers=bakefile.keep_layers,
        fixed_size=bakefile.size,
    )


def base_of(run: Kitchen) -> Base:
    """Name the base by its content: the recipe of the default one, the digest of a file."""
    choice = run.bakefile.base
    match choice.kind:
        case "none":
            return Base(kind="none")
        case "debian":
            recipe = base.describe(run.bakefile.platform, choice.packages, serial=choice.serial)
            return Base(kind="debian", identity=recipe.identity, size=recipe.size)
        case "file":
            assert choice.path
            file = disk.describe(choice.path, run.cache, run.events)
            return Base(kind="file", identity=file.digest, path=str(choice.path), size=file.virtual_size)
        case "ami":
            from parbake import aws  # loads only where AWS is asked

            assert choice.ami
            image = aws.find_source(choice.ami, run.bakefile.platform, run.bakefile.aws.region or "")
            return Base(kind="ami", identity=image.id, size=image.size)


def sandbox_of(run: Kitchen) -> Image | None:
    """Find the sandbox (pause) image: the one that the user names, else parbake's own where the default base needs it.

    A base of the user's brings its own; the builder checks that its runtime's sandbox image is there.
    """
    bakefile = run.bakefile
    if bakefile.sandbox == "none" or (bakefile.sandbox == "auto" and bakefile.base.kind in {"file", "ami"}):
        return None
    name = pause.REFERENCE if bakefile.sandbox == "auto" else bakefile.sandbox
    reference = Reference.parse(name)
    if not reference.is_local:
        return run.registry.resolve(reference, bakefile.platform)
    # A `localhost/` name, such as that of EKS's nodes, can be pulled from nowhere: ours serves under it.
    if bakefile.sandbox == "auto" and not pause.available(bakefile.platform):
        return None
    with room_for(run.cache / "pause"):
        layout = pause.layout(run.cache / "pause", bakefile.platform)
    image = Layout(layout).resolve(Reference.parse(pause.REFERENCE), bakefile.platform)
    return image.model_copy(update={"reference": str(reference)})


def existing(
    output: Path, plan: Plan, events: Events, *, trust: Sequence[Path] = (), mend: bool = False
) -> Finished | None:
    """Find the artefact of a plan among those made before: its file, or what its record says of a cloud.

    What a record says is compared with the plan, with itself, with AWS's tags, and where ``trust`` names keys, with
    its signature; a record that is not to be believed counts as none. One whose list of blocks is another's has to be
    verified again. With ``mend`` (hold ``records.in_use``) what differs from what was signed is written back.
    """
    artefact, path = output / plan.artefact_name, output / f"{plan.artefact_name}{records.SUFFIX}"
    if not path.exists() or not (artefact.exists() or plan.artefact.in_cloud):
        return None
    if mend and trust and not genuine.mend(artefact, trust, events):
        return None
    try:
        record = genuine.need(artefact, trust)
        if record.key != plan.key:
            raise VerificationFailed(f"the record of {artefact.name} is that of another plan")
    except VerificationFailed as error:
        events.warn(f"{error.message}: it counts for nothing")
        return None
    if not artefact.exists():
        doubts = {region: genuine.doubt_of_published(record, region) for region in record.published}
        for region, problem in doubts.items():
            if problem:
                events.warn(f"what the record of {artefact.name} names in {region} {problem}")
        if any(doubts.values()) or not doubts:
            return None
    elif problem := genuine.listed(artefact, record):
        events.warn(f"{problem}: {artefact.name} has to be verified again")
        record = record.model_copy(update={"verdict": None})
    return Finished(artefact, record, changed=False)


def parent_of(plan: Plan, output: Path, trust: Sequence[Path] = ()) -> Parent | None:
    """Find an earlier artefact that holds most of what a plan needs; where ``trust`` names keys, one that is signed."""
    there = [record for _, record in records.find(output)]
    if trust:
        there = [record for record in there if _is_signed(output, record, trust)]
    found = records.ancestor(plan, there)
    if found is None:
        return None
    artefact = output / found.artefact
    blocks = records.blocks_of(artefact, found)
    return Parent(found.artefact, artefact, blocks) if blocks and artefact.exists() else None


def _is_signed(output: Path, record: Record, trust: Sequence[Path]) -> bool:
    try:
        return genuine.need(output / record.artefact, trust) == record
    except (VerificationFailed, InputError):
        return False


def make(
    run: Kitchen, plan: Plan, options: Options, *, proving: bool = False, signer: Signer | None = None
) -> Finished:
    """Bake: build the artefact in a work folder, then let it and its record appear together.

    With ``proving`` a builder that sends it away has it verified before.
    """
    output, events = run.bakefile.output, run.events
    if run.bakefile.builder not in ELSEWHERE:
        need_root("baking")
        need_room(output, plan)
    base_path = find_base(run, plan)  # the default one is made once: no part of this bake's time
    started, clock = _now(), time.monotonic()
    builder, prover = (
        builder_of(run.bakefile, verify=options.verify, fresh=options.force),
        partial(boot, events) if proving else None,
    )
    with work_on(output, plan.key[:12], events, keep=options.keep_workspace) as work:
        carried = run.registry.looking(plan.all_images)  # beside the bake, for its record
        sources = through(partial(open_source, run.registry), run.cache, events)
        parent = (
            None
            if options.force or options.from_scratch
            else parent_of(plan, output, run.bakefile.trust if signer else ())
        )
        ready = readying(plan, options, events)
        ingredients = Ingredients(base_path, sources, work, events, run.registry.close, prover, parent, ready)
        plan, baked = build_artefact(plan, builder, ingredients)
        if baked.path:
            baked = ready(baked, plan, work)
        record, blocks = describe(plan, baked, builder, base_path, started, clock, events)
        record = record.model_copy(update={"attached": carried()})
        if baked.path is None:
            return Finished(records.announce(record, output, work, blocks=blocks, signer=signer), record, changed=True)
        artefact = records.release(baked.path, record, output, work, blocks=blocks, signer=signer)
    if baked.trace:
        record = coldstart.keep(artefact, record, baked.trace, signer)
    return Finished(artefact, record, changed=True)


def readying(plan: Plan, options: Options, events: Events) -> Callable[[Baked, Plan, Path], Baked]:
    """Return what gets a disk ready for cold starts before it is digested; nothing where the user wants none of it."""
    usual = plan.artefact.kind == "volume" and options.verify and options.trace is None
    if options.rehearse or (options.rehearse is None and usual):
        return partial(coldstart.make_ready, events=events, layout=options.layout)
    return lambda baked, _plan, _work: baked


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


def build_artefact(plan: Plan, builder: Builder, ingredients: Ingredients) -> tuple[Plan, Baked]:
    """Let the builder make the artefact; where the automatic size was too small, again with a larger one.

    How much a layer inflates to, and into how many files, is known for certain only when it is unpacked.
    """
    while True:
        work = ingredients.work / f"{plan.size // MIB}"
        work.mkdir()
        try:
            return plan, builder.build(plan, replace(ingredients, work=work))
        except (ArtefactFull, LayerBomb) as error:
            bigger = larger(plan, bomb=isinstance(error, LayerBomb))
            if bigger is None:
                raise
            ingredients.events.warn(f"{error.message}: baking again with a disk of {bigger.size // MIB} MiB")
            plan = bigger
        except CacheDamaged as error:
            ingredients.events.warn(f"{error.message}: baking again")
        remove_tree(work)


def find_base(run: Kitchen, plan: Plan) -> Path | None:
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
            return None  # it lies in EC2


def describe(
    plan: Plan, baked: Baked, builder: Builder, base_path: Path | None, started: str, clock: float, events: Events
) -> tuple[Record, BlockList | None]:
    """Write down what was made, of what, and how long it took; ``clock`` is the monotonic time of the start.

    A raw artefact is named by the blocks that are not zeros: most of it is holes, which a plain digest would read.
    """
    made, blocks = baked.path, baked.blocks
    with events.stage("digest", "Digest"):
        blocks = (
            disk.block_list(made, events, baked.hashes, algorithm="blake3")
            if made and plan.artefact.format == "raw"
            else blocks
        )
        sha256 = disk.sha256_file(made, events) if made and blocks is None else ""
        base_digest = disk.describe(base_path, cache_folder(), events).digest if base_path else None
    status = made and made.stat()
    record = Record(
        artefact=plan.artefact_name,
        key=plan.key,
        sha256=sha256,
        blocks=blocks and Blocks(algorithm=blocks.algorithm, count=len(blocks.blocks), digest=blocks.digest()),
        size=status.st_size if status else baked.size,
        allocated=status.st_blocks * 512 if status else 0,
        builder=builder.name,
        parbake=__version__,
        started_at=started,
        finished_at=_now(),
        seconds=round(time.monotonic() - clock, 3),
        plan=plan,
        base_digest=base_digest,
        timings={name: round(seconds, 3) for name, seconds in events.timings.items()},
        sealed=baked.sealed,
        parent=baked.parent,
        published=dict(baked.published),
        verdict=baked.verdict,
    )
    return record, blocks


def prove(
    finished: Finished, events: Events, *, keep_workspace: bool = False, signer: Signer | None = None
) -> Finished:
    """Boot the artefact without a network, start its images, and write the verdict into its record.

    Raises VerificationFailed with everything that is wrong.
    """
    verdict, sha256 = examine(
        finished.artefact, finished.record, events, fresh=finished.changed, keep_workspace=keep_workspace
    )
    record = write_verdict(finished.artefact, finished.record, verdict, sha256, signer)
    judge(finished.artefact, verdict)
    return replace(finished, record=record)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

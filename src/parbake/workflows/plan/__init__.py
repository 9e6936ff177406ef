"""The story up to the plan: what a bake would do. Everything here only reads, but for images that are to be built."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from parbake import records
from parbake.bakefile import Bakefile, ImageEntry, advice, load
from parbake.core.claim import Alone, Claim
from parbake.core.errors import VerificationFailed
from parbake.core.events import Events
from parbake.core.model import Base, Image, Plan
from parbake.core.plan import cautions, make_plan
from parbake.core.reference import Reference
from parbake.core.signing import Signer, public_key
from parbake.core.workspace import cache_folder, part_of, room_for, work_folder
from parbake.images import pause
from parbake.images.registry import Layout, Registry
from parbake.images.registry.part import lowest
from parbake.records import Record, genuine
from parbake.workflows.identity import acting, role_of
from parbake.workflows.preflight import account_cautions
from parbake.workflows.startup import proven_as

if TYPE_CHECKING:
    from parbake.bakefile.image_set import ImageLock
    from parbake.builders import Publisher, RemoteBuilder
    from parbake.builders.workers.hire import Spare
    from parbake.records.held import State
    from parbake.records.store import Shared
    from parbake.workflows.plan.image_set import Turn


@dataclass(frozen=True, slots=True)
class Preview:
    """What a bake would do. ``plan`` is None while ``to_build`` names images that must be built first.

    ``existing`` is the record that is here, or else in the Bakefile's store; ``stored`` the one that the store has.
    """

    plan: Plan | None
    to_build: tuple[str, ...] = ()
    existing: Record | None = None
    stored: Record | None = None
    cautions: tuple[str, ...] = ()
    image_lock: ImageLock | None = None


@dataclass(frozen=True, slots=True)
class BakeResult:
    """An artefact and its record; ``changed`` is False when it was there already.

    ``state`` is that of a file that this run has made: as long as it stays so, its bytes are those of the record.
    """

    artefact: Path
    record: Record
    changed: bool
    state: State | None = None


@dataclass(frozen=True, slots=True)
class Session:
    """What one run works with. Made by ``open_session``, which also closes it.

    ``signer`` signs its records, ``spare`` has a worker that was started ahead. ``image_lock`` says which
    images follow a cluster, where the Bakefile has such.
    """

    bakefile: Bakefile
    registry: Registry
    events: Events
    cache: Path = field(default_factory=cache_folder)
    signer: Signer | None = None
    spare: Spare | None = None
    image_lock: ImageLock | None = None

    @property
    def trusted(self) -> Sequence[Path]:
        """The keys of which one must have signed what this run goes on from."""
        return self.bakefile.trust


@dataclass(frozen=True, slots=True)
class BakeOptions:
    """How to bake: ``force`` bakes what exists already, ``rebuild`` builds images whose context did not change.

    ``rehearse`` records what a start reads (None: of volumes that are verified); ``layout`` brings that together.
    ``rehearse_in`` says where (None: see ``builders.coldstart``). ``trace`` is a file that was recorded elsewhere.
    ``from_scratch`` starts from no earlier artefact; ``force`` does not either.
    ``expect_key`` is the content key that was planned; ``turn`` says whether a cluster that images follow is asked;
    ``overrides`` replace keys of the Bakefile.
    """

    force: bool = False
    rebuild: bool = False
    verify: bool = True
    rehearse: bool | None = None
    rehearse_in: Literal["machine", "host"] | None = None
    layout: bool = True
    trace: Path | None = None
    keep_workspace: bool = False
    from_scratch: bool = False
    expect_key: str = ""
    turn: Turn = "take"
    overrides: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Bake:
    """One bake: what is made, how the user wants it, and what an earlier run has of it (None: nothing).

    ``remote`` bakes in a cloud, ``publisher`` sends what this machine makes to one; without both, the artefact is a
    file. ``claim`` says that no other machine makes the same for a cloud.
    """

    run: Session
    plan: Plan
    options: BakeOptions = field(default_factory=BakeOptions)
    remote: RemoteBuilder | None = None
    publisher: Publisher | None = None
    earlier: BakeResult | None = None
    claim: Claim = field(default_factory=Alone)

    @property
    def events(self) -> Events:
        """Where the run tells what it does."""
        return self.run.events

    @property
    def output(self) -> Path:
        """The folder of artefacts and records."""
        return self.run.bakefile.output


@contextmanager
def open_session(
    bakefile_path: Path, events: Events, overrides: Mapping[str, str] | None = None, *, turn: Turn = "keep"
) -> Iterator[Session]:
    """Load the Bakefile and open what a run needs; raises BakefileError with all that is wrong in it.

    ``overrides`` replace keys of the Bakefile; ``turn`` says whether a cluster that its images follow is asked.
    """
    bakefile = load(bakefile_path, overrides)
    for caution in advice(bakefile):
        events.warn(caution)
    with acting(bakefile), Registry(bakefile.registries, events=events, role=role_of(bakefile)) as registry:
        run = Session(bakefile, registry, events)
        if bakefile.images_from:
            from parbake.workflows.plan.image_set import following  # loads only where images follow a cluster

            bakefile, lock = following(run, turn)
            run = replace(run, bakefile=bakefile, image_lock=lock)
        yield run


def preview(bakefile_path: Path, events: Events, overrides: Mapping[str, str] | None = None) -> Preview:
    """Return what a bake of this Bakefile would do, without doing any of it. ``overrides`` replace keys of it."""
    with open_session(bakefile_path, events, overrides, turn="show") as run:
        known, onto = ask_account(run), base_of(run)
        images = resolve(run)
        missing = tuple(reference.written for reference, image in images.items() if image is None)
        if missing:
            return Preview(None, to_build=missing, cautions=known, image_lock=run.image_lock)
        plan = decide(run, [image for image in images.values() if image], onto)
        found = existing(run.bakefile.output, plan, events)
        shared = shared_store(run)
        stored = shared.find(plan.artefact_name) if shared else None
        return Preview(
            plan,
            existing=found.record if found else stored,
            stored=stored,
            cautions=(*cautions(plan), *known),
            image_lock=run.image_lock,
        )


def shared_store(run: Session) -> Shared | None:
    """Return what a run's records are shared through, None (and nothing is loaded for it) where no store is named."""
    if run.bakefile.store is None:
        return None
    from parbake.records.store import session_store

    return session_store(run.bakefile, run.events)


def resolve(run: Session, *, ignore_built: bool = False) -> dict[Reference, Image | None]:
    """Look up every image of the Bakefile, in parallel; None for one that is to be built."""

    def look_up(entry: ImageEntry) -> Image | None:
        platform = entry.platform or run.bakefile.platform
        if entry.build is None:
            image = run.registry.resolve(entry.reference, platform)
            if entry.signed_by:
                run.registry.need_signature(image, public_key(entry.signed_by))
            return image
        if ignore_built:
            return None
        from parbake.images.build import build  # loads only where an image is built

        key = build.build_key(entry.build, platform)
        return build.existing(entry.reference, platform, key, registry=run.registry, cache=run.cache)

    entries = run.bakefile.images
    found = run.registry.each(look_up, entries)
    return {
        entry.reference: image and _as_written(entry, order, image)
        for order, (entry, image) in enumerate(zip(entries, found, strict=True))
    }


def make_images(run: Session, images: dict[Reference, Image | None], *, force: bool = False) -> list[Image]:
    """Build and push what is missing; return every image."""
    made = []
    for order, entry in enumerate(run.bakefile.images):
        image = images[entry.reference]
        if image is None:
            assert entry.build
            from parbake.images.build import build

            with work_folder(run.cache, "build") as work:
                built = build.build(
                    entry.build,
                    entry.reference,
                    entry.platform or run.bakefile.platform,
                    options=run.bakefile.registries,
                    events=run.events,
                    work=work,
                    cache=run.cache,
                    force=force,
                    role=role_of(run.bakefile),
                )
            image = _as_written(entry, order, built.image)
        made.append(image)
    return made


def _as_written(entry: ImageEntry, order: int, image: Image) -> Image:
    """Return an image with what the Bakefile says of it; raises InputError where it has no more layers than that."""
    said = {
        "reference": entry.reference,
        "startup": entry.startup,
        "also_by_digest": entry.also_by_digest,
        "order": order,
    }
    image = image.model_copy(update=said)
    return lowest(image, entry.layers) if entry.layers else image


def decide(run: Session, images: list[Image], base: Base | None = None) -> Plan:
    """Make the plan from the Bakefile and what its images resolved to; ``base`` is what it named, where known."""
    bakefile = run.bakefile
    artefact, aws = bakefile.artefact, bakefile.aws
    if artefact.in_cloud:
        key = aws.key_in(home(bakefile)) if aws.kms_key else ""
        artefact = artefact.model_copy(update={"encrypted": aws.encrypted, "kms_key": key})
    return make_plan(
        name=bakefile.name,
        platform=bakefile.platform,
        base=base or base_of(run),
        artefact=artefact,
        images=images,
        sandbox=sandbox_of(run),
        keep_layers=bakefile.keep_layers,
        fixed_size=bakefile.size,
    )


def ask_account(run: Session) -> tuple[str, ...]:
    """Ask AWS what stands in the way of a bake there; return what is to be known. Raises InputError."""
    if not run.bakefile.traits.in_ec2:
        return ()
    return account_cautions(run.bakefile, home(run.bakefile))


def home(bakefile: Bakefile) -> str:
    """Return the region where bakes happen: the Bakefile's, else that of the AWS configuration."""
    if bakefile.aws.region:
        return bakefile.aws.region
    from parbake.aws import default_region

    return default_region()


def base_of(run: Session) -> Base:
    """Name the base by its content: the recipe of the default one, the digest of a file."""
    choice = run.bakefile.base
    match choice.kind:
        case "none":
            return Base(kind="none")
        case "debian":
            from parbake.machine import base

            recipe = base.describe(run.bakefile.platform, choice.packages, serial=choice.serial)
            return Base(kind="debian", identity=recipe.identity, size=recipe.size)
        case "file":
            assert choice.path
            from parbake.machine import disk

            file = disk.describe(choice.path, run.cache, run.events)
            return Base(kind="file", identity=file.digest, path=str(choice.path), size=file.virtual_size)
        case "ami":
            from parbake import aws  # loads only where AWS is asked
            from parbake.aws import ebs

            assert choice.ami
            image = aws.find_source(choice.ami, run.bakefile.platform, run.bakefile.aws.region or "")
            if run.bakefile.traits.sends:
                ebs.refuse_billed(image)
            return Base(kind="ami", identity=image.id, size=image.size, variant=image.variant)


def sandbox_of(run: Session) -> Image | None:
    """Find the sandbox (pause) image: the one that the user names, else parbake's own where the default base needs it.

    A base of the user's brings its own; the builder checks that its runtime's sandbox image is there.
    """
    bakefile = run.bakefile
    if bakefile.sandbox == "none" or (bakefile.sandbox == "auto" and bakefile.base.kind in {"file", "ami"}):
        return None
    own = Reference.parse(pause.REFERENCE)
    reference = bakefile.named_sandbox or own
    if not reference.is_local:
        return run.registry.resolve(reference, bakefile.platform)
    # A `localhost/` name, such as that of EKS's nodes, can be pulled from nowhere: ours serves under it.
    if bakefile.sandbox == "auto" and not pause.available(bakefile.platform):
        return None
    with room_for(run.cache):
        layout = pause.layout(part_of(run.cache, "pause"), bakefile.platform)
    image = Layout(layout).resolve(own, bakefile.platform)
    return image.model_copy(update={"reference": reference})


def existing(
    output: Path, plan: Plan, events: Events, *, trust: Sequence[Path] = (), mend: bool = False
) -> BakeResult | None:
    """Find the artefact of a plan among those made before: its file, or what its record says of a cloud.

    What a record says is compared with the plan, with itself, with AWS's tags, and where ``trust`` names keys, with
    its signature; a record that cannot be trusted counts as none. One whose list of blocks is another's, or whose
    images started otherwise than the plan says, has to be verified again. With ``mend`` (hold ``records.in_use``) what
    differs from what was signed is written back.
    """
    artefact, path = output / plan.artefact_name, output / f"{plan.artefact_name}{records.SUFFIX}"
    if not path.exists() or not (artefact.exists() or plan.artefact.in_cloud):
        return None
    if mend and trust and not genuine.mend(artefact, trust, events):
        return None
    try:
        record = genuine.need(artefact, trust)
        if record.key != plan.key:
            raise VerificationFailed(f"the record of {artefact.name} belongs to another plan")
    except VerificationFailed as error:
        events.warn(f"{error.message}: it is ignored")
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
    return BakeResult(artefact, proven_as(record, plan, events), changed=False)

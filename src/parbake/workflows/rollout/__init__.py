"""The story after the bake: hand an artefact to autoscalers, watch it arrive, go back.

``rollout = load -> records -> offers -> decide all -> show -> (for each target: write once -> follow)``

Everything is decided before anything is written. Targets are taken in the order of the Bakefile, each followed to its
end before the next is written, so that the first can be the canary. What a target held before is written down on the
target itself: a run that was killed is finished by running it again, and a rollback works from any machine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from parbake import records
from parbake.bakefile import COPY_ROLES, Bakefile
from parbake.bakefile.targets import Target
from parbake.coldstart.hydrate import user_data
from parbake.coldstart.trace import hydrate_list
from parbake.core import interrupts
from parbake.core.errors import InputError, ParbakeError, RolloutError, Stalled, TargetMissing, VerificationFailed
from parbake.core.events import Events
from parbake.core.model import Published
from parbake.core.printable import word
from parbake.core.run import Deadline
from parbake.machine.disk import filesystem_uuid
from parbake.records import Record, genuine
from parbake.records.store import refreshed_output, session_store
from parbake.rollouts import Change, Offer, Rollout, RolloutProgress, TargetState, TargetStatus, mount
from parbake.rollouts.choose import open_target
from parbake.workflows.identity import opened
from parbake.workflows.platforms import together
from parbake.workflows.rollout.warm import Warming
from parbake.workflows.trace import trace_of

_AGAIN = "`parbake verify` compares the artefact with its record, and writes the list anew where it fits"
_STEADY = 2  # so often in a row a target must be seen to be done


@dataclass(frozen=True, slots=True)
class RolloutOptions:
    """How to hand over. ``to`` names targets (empty: all); ``interval`` is between two looks at nodes, in seconds.

    ``force`` overrides a missing verification and what speaks against a target; ``force_conflicts`` takes over fields
    that somebody else manages; ``deadline`` (seconds) replaces that of the targets. ``again`` also hands out what a
    rollback left. Without ``mount`` no user data mounts a volume, whatever the targets say. ``store`` replaces the
    Bakefile's, ``copy_roles`` (``REGION=ROLE``) go beside its own. A rollback returns only what holds all of
    ``holding``, by id, name or the start of a key. A target that holds all of ``supersedes``, which has never proven
    itself, keeps the way back that it has.
    """

    to: tuple[str, ...] = ()
    dry_run: bool = False
    force: bool = False
    force_conflicts: bool = False
    follow: bool = True
    deadline: float | None = None
    interval: float = 5.0
    again: bool = True
    mount: bool = True
    store: str = ""
    holding: tuple[str, ...] = ()
    copy_roles: tuple[str, ...] = ()
    supersedes: tuple[str, ...] = ()

    @property
    def overrides(self) -> dict[str, str]:
        """What the Bakefile is loaded with."""
        found = {"store": self.store, COPY_ROLES: " ".join(self.copy_roles)}
        return {key: value for key, value in found.items() if value}


@dataclass(frozen=True, slots=True)
class TargetResult:
    """What became of one target: the change, whether it was written now, and how far its nodes are."""

    target: str
    kind: str
    change: Change
    written: bool = False
    follow: RolloutProgress | None = None


@dataclass(frozen=True, slots=True)
class TargetReport:
    """What one target holds, or why that cannot be said."""

    target: str
    kind: str
    status: TargetStatus | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class _Decided:
    config: Target
    target: Rollout
    change: Change
    region: str = ""


def rollout(
    bakefile_path: Path, selectors: Sequence[str], events: Events, options: RolloutOptions
) -> tuple[TargetResult, ...]:
    """Hand out the artefacts of records (a machine image, a volume, or one of each) to the Bakefile's targets.

    Without any, it is the newest verified artefact of the Bakefile. Raises VerificationFailed for a record that is not
    verified or not to be believed (``genuine``), RolloutError for what a target refuses, Stalled when nodes do not
    follow in time.
    """
    with opened(bakefile_path, options.overrides) as bakefile:
        return _rollout(bakefile, selectors, events, options)


def _rollout(
    bakefile: Bakefile, selectors: Sequence[str], events: Events, options: RolloutOptions
) -> tuple[TargetResult, ...]:
    refreshed_output(bakefile, events)
    selectors = selectors or (bakefile.name,)
    _bring(selectors, bakefile, events)
    located = [found for selector in selectors for found in _records(selector, bakefile, events)]
    found = [record for _, record in located]
    _need_verified(found, events, force=options.force)
    targets = choose(bakefile, options.to)
    offers = [_fitting(offer(found, config.region, here=config.options.takes_files), config) for config in targets]
    for region in dict.fromkeys(each.region for each in offers if each.region):
        for record in found:
            genuine.need_published(record, region, events, signed=bool(bakefile.trust))
    if options.supersedes:
        offers = [each.model_copy(update={"supersedes": options.supersedes}) for each in offers]
    if options.mount:
        offers = [_with_mount(each, found, config) for each, config in zip(offers, targets, strict=True)]
    if any(_hydrates(config) for config in targets):
        part = hydrate_part(located)
        offers = [
            each.model_copy(update={"hydrate": part}) if _hydrates(config) else each
            for each, config in zip(offers, targets, strict=True)
        ]
    decided = []
    for config, offered in zip(targets, offers, strict=True):
        target = open_target(config, offered.region, force_conflicts=options.force_conflicts)
        if options.again or not _was_left(config, target, offered, events):
            decided.append(_Decided(config, target, target.plan(offered), offered.region))
    return _hand_over(decided, events, options, Warming(bakefile, found, events))


def _was_left(config: Target, target: Rollout, offered: Offer, events: Events) -> bool:
    """Whether somebody has rolled a target back from this very artefact: it is theirs to say when it goes out again."""
    try:
        left = target.status().left
    except TargetMissing:
        return False
    ids = [name for name in ("images", "snapshot") if getattr(offered, name)] or ["keys"]
    if left is None or any(getattr(left, name) != getattr(offered, name) for name in ids):
        return False
    events.warn(
        f"{config.name}: {offered.name} was rolled back, so `watch` will not roll it out again; "
        f"run `parbake rollout {' '.join(offered.artefacts)} --to {config.name}` to do so, or bake a new one"
    )
    return True


def rollback(bakefile_path: Path, events: Events, options: RolloutOptions) -> tuple[TargetResult, ...]:
    """Return targets to what they held before; one that has returned already is only followed."""
    decided = []
    with opened(bakefile_path) as bakefile:
        for config in choose(bakefile, options.to):
            target = open_target(config, config.region or "", force_conflicts=options.force_conflicts)
            if options.holding and not _has_had(target, options.holding):
                events.warn(f"{config.name}: it does not hold {' and '.join(options.holding)}, and is left as it is")
                continue
            decided.append(_Decided(config, target, target.plan_rollback()))
        return _hand_over(decided, events, options)


def _has_had(target: Rollout, ids: Iterable[str]) -> bool:
    """Whether a target holds all of what is named, or has been rolled back from it: then it is only followed."""
    try:
        status = target.status()
    except TargetMissing:
        return False
    return any(held is not None and all(held.goes_by(each) for each in ids) for held in (status.holds, status.left))


def status(bakefile_path: Path, to: tuple[str, ...] = ()) -> tuple[TargetReport, ...]:
    """Return what each target holds; an error of one does not hide the others."""

    def report(config: Target) -> TargetReport:
        try:
            return TargetReport(config.name, config.kind, open_target(config, config.region or "").status())
        except ParbakeError as error:
            return TargetReport(config.name, config.kind, error=error.message)

    with opened(bakefile_path) as bakefile:
        return tuple(report(config) for config in choose(bakefile, to))


def freeze(bakefile_path: Path, to: tuple[str, ...], *, frozen: bool) -> dict[str, tuple[str, ...]]:
    """Stop targets from replacing nodes, or let them again; return what was changed, by target."""
    with opened(bakefile_path) as bakefile:
        targets = choose(bakefile, to)
        return {config.name: open_target(config, config.region or "").freeze(frozen=frozen) for config in targets}


def choose(bakefile: Bakefile, to: Iterable[str]) -> tuple[Target, ...]:
    """Return the targets that are named, in the Bakefile's order; all of them when none is."""
    known = {config.name: config for config in bakefile.rollout}
    if not known:
        raise InputError(
            "the Bakefile has no `rollout`", hint="name a target: rollout: [{karpenter: {nodeclass: NAME}}]"
        )
    wanted = tuple(to)
    for name in wanted:
        if name not in known:
            raise InputError(f"there is no target {name!r} in the Bakefile", hint=f"there are: {', '.join(known)}")
    return tuple(config for name, config in known.items() if not wanted or name in wanted)


def offer(found: Sequence[Record], region: str | None, *, here: bool = False) -> Offer:
    """Make the offer of one region out of records; raises InputError when they do not go together.

    Machine images may be one for each architecture: a node class of Karpenter takes them all. What lies in no cloud can
    be offered where the target takes files (``here``), by its name and key alone.
    """
    kinds = [(record.plan.artefact.kind, record.plan.platform.architecture) for record in found]
    twice = next((kind for kind, count in Counter(kinds).items() if count > 1), None)
    if twice:
        raise InputError(
            f"two records of the kind {twice[0]} for {twice[1]}",
            hint="give one machine image for each architecture, one volume, or one of each",
        )
    architectures = sorted({architecture for _, architecture in kinds})
    if len(architectures) > 1 and any(kind == "volume" for kind, _ in kinds):
        raise InputError(
            f"the records are for {' and '.join(architectures)}, and all nodes of a target get the same volume",
            hint="give records of one platform, and a node class for each",
        )
    named = {
        "artefacts": [record.artefact for record in found],
        "keys": [record.key for record in found],
        "architectures": architectures,
    }
    if here and not region and not any(record.published for record in found):
        return Offer(**named, image_size=max(record.size for record in found))
    if nowhere := " and ".join(record.artefact for record in found if not record.published):
        raise InputError(
            f"{nowhere}: published in no region of a cloud, so there is nothing to hand out",
            hint="write `builder: ebs` (from here, no instance) or `builder: ec2` into the Bakefile, and bake again",
        )
    region = region or _one_region(found)
    images, volume, runtime = list[Published](), Published(), ""
    for record in found:
        published = record.published.get(region)
        if published is None:
            raise InputError(
                f"{record.artefact} is not published in {region}, but in {', '.join(sorted(record.published))}",
                hint="`parbake copy` publishes it there too; or correct the target's `region`",
            )
        if record.plan.artefact.kind == "volume":
            volume, runtime = published, record.verdict.runtime if record.verdict else ""
        else:
            images.append(published)
    bases = {record.plan.base.variant for record in found if record.plan.artefact.kind == "machine-image"}
    return Offer(
        **named,
        variant=bases.pop() if len(bases) == 1 else "",
        region=region,
        images=[each.image for each in images],
        image_size=max((each.snapshots[0].size for each in images if each.snapshots), default=0),
        snapshot=volume.snapshots[0].id if volume.snapshots else "",
        snapshot_size=volume.snapshots[0].size if volume.snapshots else 0,
        encrypted=any(each.plan.artefact.encrypted for each in found if each.plan.artefact.kind == "volume"),
        kms_key=next((each.plan.artefact.kms_key for each in found if each.plan.artefact.kind == "volume"), ""),
        family=volume.family,
        runtime=runtime,
    )


def _fitting(offered: Offer, config: Target) -> Offer:
    """Return an offer that a target can take; raises InputError for several images where there is room for one."""
    if len(offered.images) > 1 and not config.options.takes_several_images:
        raise InputError(
            f"{config.name}: it takes one machine image, and the records are for {' and '.join(offered.architectures)}",
            hint="node classes that name images by id take one for each architecture; roll out one record here",
        )
    return offered


def hydrate_part(located: Iterable[tuple[Path, Record]]) -> str:
    """Return the user data that loads what the images' starts read: of the volume, or of a machine image.

    Empty for a machine image alone that has the service in it. Raises InputError where no start was traced.
    """
    found = tuple(located)
    volumes = [each for each in found if each[1].plan.artefact.kind == "volume"]
    if not volumes and all(record.verdict and record.verdict.hydrate for _, record in found):
        return ""
    if not volumes and len(found) > 1:
        raise InputError(
            "`hydrate` loads the blocks of one machine image, and the records are of several",
            hint="bake them with --rehearse, which puts the service into each; or remove `hydrate`",
        )
    ((artefact, record),) = volumes or found
    try:
        return user_data(hydrate_list(trace_of(artefact, record)))
    except InputError as error:
        raise InputError(
            f"{error.message}, and a target says `hydrate`", hint=f"{error.hint}; or remove `hydrate`"
        ) from None


def _with_mount(offered: Offer, found: Sequence[Record], config: Target) -> Offer:
    """Add the user data that mounts the volume, where nodes mount nothing by themselves, and the target wants it."""
    volume = next((record for record in found if record.plan.artefact.kind == "volume"), None)
    if volume is None or not offered.snapshot or offered.family or not getattr(config.options, "mount", False):
        return offered
    sandbox = str(volume.plan.sandbox.reference) if volume.plan.sandbox else ""
    root = getattr(config.options, "root", "")
    uuid = filesystem_uuid(volume.key)  # of an instance of EC2's making as well, unless it is Bottlerocket's own
    return offered.model_copy(update={"mount": mount.user_data(sandbox, root, uuid=uuid)})


def _bring(selectors: Sequence[str], bakefile: Bakefile, events: Events) -> None:
    """Bring what is named and lies in no cloud from the store, where another machine has made it."""
    shared = session_store(bakefile, events)
    here = [record for _, record in records.find(bakefile.output)] if shared else []
    lacking = [each for each in selectors if not any(_is_meant(each, record) for record in here)]
    if shared is None or not lacking:
        return
    for record in shared.records():
        if any(_is_meant(each, record) for each in lacking):
            with records.in_use(bakefile.output, record.artefact):
                shared.fetch(record.artefact)


def _is_meant(selector: str, record: Record) -> bool:
    return Path(selector).name.startswith(record.artefact) or record.key.startswith(selector)


def _hydrates(config: Target) -> bool:
    return bool(getattr(config.options, "hydrate", False))


def _one_region(found: Sequence[Record]) -> str:
    regions = set.intersection(*(set(record.published) for record in found))
    if len(regions) == 1:
        return regions.pop()
    names = " and ".join(record.artefact for record in found)
    if regions:
        raise InputError(f"{names}: published in {', '.join(sorted(regions))}", hint="name the target's `region`")
    raise InputError(f"{names}: there is no region in which all are", hint="`parbake copy` publishes one there too")


def _records(selector: str, bakefile: Bakefile, events: Events) -> list[tuple[Path, Record]]:
    """Find the record that is named; of a Bakefile for several platforms, its name means the newest for each."""
    if len(bakefile.platforms) > 1 and selector == bakefile.name:
        return [_record(record.key, bakefile, events) for _, record in together(bakefile, bakefile.output)]
    return [_record(selector, bakefile, events)]


def _record(selector: str, bakefile: Bakefile, events: Events) -> tuple[Path, Record]:
    """Find a record that can be trusted; ``--force`` does not override that."""
    hint = "roll out what parbake has baked"
    artefact, _ = records.locate_record(selector, bakefile.output, events, verified=True, hint=hint)
    record = genuine.need(artefact, bakefile.trust)
    if problem := genuine.listed(artefact, record):
        raise VerificationFailed(f"the record of {artefact.name} cannot be trusted: {problem}", hint=_AGAIN)
    return artefact, record


def _need_verified(found: Iterable[Record], events: Events, *, force: bool) -> None:
    for record in found:
        if record.verified:
            continue
        says = "was not verified" if record.verdict is None else "failed verification"
        if not force:
            command = "parbake bake" if record.published else f"parbake verify {record.artefact}"
            raise VerificationFailed(
                f"{record.artefact} {says}: nodes may not start its images",
                hint=f"`{command}` proves it; --force rolls it out anyway",
            )
        events.warn(f"--force: {record.artefact} {says}; rolling it out anyway")


def _hand_over(
    decided: Sequence[_Decided],
    events: Events,
    options: RolloutOptions,
    warming: Warming | None = None,
) -> tuple[TargetResult, ...]:
    """Write and follow each; what nodes start from is warm before that."""
    for each in decided:
        for caution in each.change.cautions:
            events.warn(f"{each.config.name}: {caution}")
        _refuse(each, events, force=options.force)
        if each.change.diff and not options.dry_run:
            events.note(f"{each.config.name}: {each.change.before} -> {each.change.after}\n{each.change.diff}")
    if warming:
        warming.begin(dict.fromkeys(each.region for each in decided if not each.change.empty), dry_run=options.dry_run)
    if options.dry_run:
        return tuple(TargetResult(each.config.name, each.config.kind, each.change) for each in decided)
    done = []
    for each in decided:
        interrupts.resume()
        written = not each.change.empty
        if written and warming:
            warming.pace(each.region)
        if written:
            with events.stage(f"write-{each.config.name}", f"Write {each.change.where}"):
                each.target.write(each.change)
                interrupts.hold()
        result = TargetResult(each.config.name, each.config.kind, each.change, written)
        done.append(replace(result, follow=_follow(each, events, options)) if options.follow else result)
    return tuple(done)


def _refuse(each: _Decided, events: Events, *, force: bool) -> None:
    for refusal in each.change.refusals:
        if not force:
            raise RolloutError(f"{each.config.name}: {refusal}", hint="correct it; --force does it anyway")
        events.warn(f"--force: {each.config.name}: {refusal}")


def _follow(each: _Decided, events: Events, options: RolloutOptions) -> RolloutProgress:
    """Watch until the nodes run the artefact; raises Stalled at the deadline, RolloutError on failure."""
    name, wanted = each.config.name, each.change.after
    deadline = Deadline(options.deadline or each.config.deadline, f"the rollout to {name}")
    interrupts.resume()
    with events.stage(f"follow-{name}", f"Follow {each.change.where}"):
        follow = _until_done(lambda: each.target.follow(wanted), name, wanted, deadline, events, options.interval)
        interrupts.hold()
    return follow


def _until_done(
    look: Callable[[], RolloutProgress],
    name: str,
    wanted: TargetState,
    deadline: Deadline,
    events: Events,
    interval: float,
) -> RolloutProgress:
    seen, steady = None, 0
    while True:
        now = look()
        if now.failed:
            raise RolloutError(f"{name}: {word(now.failed)}")
        steady = steady + 1 if now.done else 0
        if steady >= _STEADY or (now.done and not now.total):
            return now
        if now != seen and not now.done:
            events.note(f"{name}: {now}" + _lines(now.waiting, " - "))
            seen = now
        if not deadline.left:
            raise Stalled(f"{name}: after {deadline.seconds:.0f} s {now}: {wanted}" + _lines(now.waiting, "  "))
        deadline.sleep(interval)


def _lines(texts: Iterable[str], indent: str) -> str:
    return "".join(f"\n{indent}{word(text)}" for text in texts)

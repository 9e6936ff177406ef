"""The story after the bake: hand an artefact to autoscalers, watch it arrive, go back.

``rollout = load -> records -> offers -> decide all -> show -> (for each target: write once -> follow -> its canary)``

Everything is decided before anything is written. Targets are taken in the order of the Bakefile, each followed to its
end before the next is written, so that the first can be the canary. What a target held before is written down on the
target itself: a run that was killed is finished by running it again, and a rollback works from any machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from parbake import records
from parbake.bakefile import COPY_ROLES, Bakefile
from parbake.bakefile.targets import Target
from parbake.core import interrupts
from parbake.core.errors import (
    CanaryFailed,
    InputError,
    ParbakeError,
    RolloutError,
    Stalled,
    TargetMissing,
    VerificationFailed,
)
from parbake.core.events import Events
from parbake.core.printable import word
from parbake.core.run import Deadline
from parbake.records import Record, genuine
from parbake.records.store import refreshed_output, session_store
from parbake.rollouts import CanaryNote, Change, Offer, Rollout, RolloutProgress, TargetState, TargetStatus
from parbake.rollouts.choose import open_target
from parbake.workflows.identity import opened
from parbake.workflows.platforms import together
from parbake.workflows.rollout import canary
from parbake.workflows.rollout.offers import fitting, hydrate_part, hydrates, offer, with_mount
from parbake.workflows.rollout.proof import CanaryProof, to_prove
from parbake.workflows.rollout.remedies import RemedyChoice, choose_remedy
from parbake.workflows.rollout.warm import Warming

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
    """What became of one target: the change, whether it was written now, and how far its nodes are.

    ``canary`` says whether pods decide: they have (``passed``), have not yet (``waits``), or have said no before.
    ``remedy`` is what ``remedy: auto`` chose.
    """

    target: str
    kind: str
    change: Change
    written: bool = False
    follow: RolloutProgress | None = None
    canary: Literal["", "passed", "waits", "failed"] = ""
    remedy: RemedyChoice | None = None


@dataclass(frozen=True, slots=True)
class TargetReport:
    """What one target holds, or why that cannot be said."""

    target: str
    kind: str
    status: TargetStatus | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class _Decided:
    """What is to happen to a target that is offered what has these ``ids``.

    ``records`` are what its canary looks for (none: it has no canary, or that has passed). ``failed`` is what a canary
    has said before of the very artefact: then the change is the rest of the way back.
    """

    config: Target
    target: Rollout
    change: Change
    region: str = ""
    ids: tuple[str, ...] = ()
    records: tuple[Record, ...] = ()
    failed: CanaryNote | None = None
    remedy: RemedyChoice | None = None

    @property
    def canary(self) -> Literal["", "waits", "failed"]:
        return "failed" if self.failed else "waits" if self.records else ""

    @property
    def warms(self) -> bool:
        """Whether its nodes are about to start from what fast snapshot restore can warm."""
        return not self.change.empty and self.config.remedy in {None, "fsr"}

    def result(self, *, written: bool = False) -> TargetResult:
        """Return what has become of it so far."""
        return TargetResult(
            self.config.name, self.config.kind, self.change, written, canary=self.canary, remedy=self.remedy
        )


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
    chosen = [choose_remedy(config, located, bakefile) for config in choose(bakefile, options.to)]
    targets, remedies = [config for config, _ in chosen], {config.name: remedy for config, remedy in chosen}
    unproven = () if options.force else to_prove(bakefile, located, targets, follow=options.follow)
    if not unproven:
        _need_verified(found, events, force=options.force)
    offers = [fitting(offer(found, config.region, here=config.options.takes_files), config) for config in targets]
    for region in dict.fromkeys(each.region for each in offers if each.region):
        for record in found:
            genuine.need_published(record, region, events, signed=bool(bakefile.trust))
    if options.supersedes:
        offers = [each.model_copy(update={"supersedes": options.supersedes}) for each in offers]
    if options.mount:
        offers = [with_mount(each, found, config) for each, config in zip(offers, targets, strict=True)]
    if any(hydrates(config) for config in targets):
        parts = {"hydrate": hydrate_part(located), "boost": hydrate_part(located, boost=True)}
        offers = [
            each.model_copy(update=parts) if hydrates(config) else each
            for each, config in zip(offers, targets, strict=True)
        ]
    decided = list[_Decided]()
    for config, offered in zip(targets, offers, strict=True):
        target = open_target(config, offered.region, force_conflicts=options.force_conflicts)
        noted = _noted(config, target, offered)
        if noted and noted.state == "failed" and not options.force:
            decided.insert(0, _Decided(config, target, target.plan_rollback(), offered.region, failed=noted))
        elif options.again or not _was_left(config, target, offered, events):
            then = _decided(config, target, offered, found, noted, unproven=bool(unproven))
            decided.append(_with_remedy(then, remedies[config.name], events))
    proof = CanaryProof(bakefile, unproven, events) if unproven else None
    return _hand_over(decided, events, options, Warming(bakefile, found, events), proof)


def _noted(config: Target, target: Rollout, offered: Offer) -> CanaryNote | None:
    """Return what a target notes of a canary of this very artefact."""
    noted = target.canary() if config.canary else None
    return noted if noted and set(noted.of) == set(offered.ids) else None


def _decided(
    config: Target,
    target: Rollout,
    offered: Offer,
    found: Sequence[Record],
    noted: CanaryNote | None,
    *,
    unproven: bool,
) -> _Decided:
    """Decide what a target becomes; its canary is open if it is written now, or was and nobody has looked.

    So it is where it has to prove what the target holds already.
    """
    change = target.plan(offered)
    if not config.canary:
        return _Decided(config, target, change, offered.region)
    change = target.with_canary(change, CanaryNote(state="waits", of=offered.ids))
    is_open = unproven or not change.empty or (noted is not None and noted.state == "waits")
    return _Decided(config, target, change, offered.region, offered.ids, tuple(found) if is_open else ())


def _with_remedy(decided: _Decided, remedy: RemedyChoice | None, events: Events) -> _Decided:
    """Say what was chosen for a target, and what it is instead of."""
    if remedy is None:
        return decided
    device = getattr(decided.config.options, "device", "")
    remedy = remedy.instead_of(decided.change.before, device)
    events.note(f"{decided.config.name}: remedy: {remedy}")
    return replace(decided, remedy=remedy)


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


def _records(selector: str, bakefile: Bakefile, events: Events) -> list[tuple[Path, Record]]:
    """Find the record that is named; of a Bakefile for several platforms, its name means the newest for each."""
    if len(bakefile.platforms) > 1 and selector == bakefile.name:
        return [_record(record.key, bakefile, events) for _, record in together(bakefile, bakefile.output)]
    return [_record(selector, bakefile, events)]


def _record(selector: str, bakefile: Bakefile, events: Events) -> tuple[Path, Record]:
    """Find a record that can be trusted; ``--force`` does not override that."""
    hint, by_machines = "roll out what parbake has baked", bakefile.verify.by == "machine"
    artefact, _ = records.locate_record(selector, bakefile.output, events, verified=by_machines, hint=hint)
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
    proof: CanaryProof | None = None,
) -> tuple[TargetResult, ...]:
    """Write and follow each; what nodes start from is warm before that."""
    for each in decided:
        for caution in each.change.cautions:
            events.warn(f"{each.config.name}: {caution}")
        _refuse(each, events, force=options.force)
        if each.change.diff and not options.dry_run:
            events.note(f"{each.config.name}: {each.change.before} -> {each.change.after}\n{each.change.diff}")
    if warming:
        warming.begin(dict.fromkeys(each.region for each in decided if each.warms), dry_run=options.dry_run)
    if options.dry_run:
        return tuple(each.result() for each in decided)
    return tuple(_handed(each, events, options, warming, proof) for each in decided)


def _handed(
    each: _Decided, events: Events, options: RolloutOptions, warming: Warming | None, proof: CanaryProof | None
) -> TargetResult:
    """Write a target, follow its nodes, and let their first pods decide where it has a canary."""
    interrupts.resume()
    written = not each.change.empty
    if warming and each.warms:
        warming.pace(each.region)
    if written:
        _write(f"write-{each.config.name}", f"Write {each.change.where}", each.target, each.change, events)
    result = each.result(written=written)
    if options.follow:
        result = replace(result, follow=_follow(each, events, options))
        if each.canary:
            _let_pods_decide(each, events, options, proof)
            result = replace(result, canary="passed")
    elif each.records:
        events.warn(f"{each.config.name}: its canary waits: without --no-follow the same command looks at pods")
    return result


def _write(stage: str, text: str, target: Rollout, change: Change, events: Events) -> None:
    with events.stage(stage, text):
        target.write(change)
        interrupts.hold()


def _let_pods_decide(each: _Decided, events: Events, options: RolloutOptions, proof: CanaryProof | None) -> None:
    """Return if the canary is content; otherwise go back, follow, and raise CanaryFailed."""
    name, says = each.config.name, each.failed.why if each.failed else ""
    back = each.change.after
    if not each.failed:
        judgement = canary.look(each.config, each.records, events, options.interval)
        if judgement.passed:
            if proof:
                proof.passed(name, judgement.says)
            each.target.note_canary(None)
            events.note(f"{name}: {judgement.says}")
            return
        says = judgement.says
        events.warn(f"{name}: {says}; it goes back")
        way = each.target.with_canary(each.target.plan_rollback(), CanaryNote(state="failed", of=each.ids, why=says))
        interrupts.resume()
        _write(f"back-{name}", f"Return {way.where}", each.target, way, events)
        _follow(replace(each, change=way), events, options)
        back = way.after
    raise CanaryFailed(f"{name}: {says}. It went back to {back}")


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

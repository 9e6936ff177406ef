"""The story that goes on: look whether anything moved; if so bake, verify, roll out; wait; look again.

A look asks registries with HEAD, which costs no pulls of their limits, and finds the base anew (the newest AMI of a
name filter). What it costs to act when nothing moved after all is what `bake` and `rollout` cost then: nothing.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from parbake.bakefile import ImageEntry, load
from parbake.core import interrupts
from parbake.core.errors import InputError, ParbakeError
from parbake.core.events import Events
from parbake.core.run import sleep
from parbake.images.build import build
from parbake.records.store import session_store
from parbake.workflows import bake, plan, rollout
from parbake.workflows import prune as retention
from parbake.workflows.plan import BakeOptions, BakeResult, Session
from parbake.workflows.platforms import one_platform
from parbake.workflows.prune import Pruned
from parbake.workflows.prune.decide import Decision
from parbake.workflows.rollout import RolloutOptions, TargetResult

_JITTER = 0.1  # many watchers of one registry must not ask in step

Seen = dict[str, str]
"""What a look saw: digests by reference, keys of builds, and the base."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What one turn did: what had moved, the artefact, and what became of targets; empty when nothing had moved."""

    moved: tuple[str, ...]
    finished: BakeResult | None = None
    results: tuple[TargetResult, ...] = ()
    tidied: Tidied | None = None


@dataclass(frozen=True, slots=True)
class Tidied:
    """What was decided about artefacts here, and about those in EC2 where some are published."""

    decisions: tuple[Decision, ...]
    pruned: Pruned | None


def look(bakefile_path: Path, events: Events) -> Seen:
    """Return what the Bakefile's names mean now; raises what asking raises."""
    one_platform(bakefile_path, {}, "a watch")
    with plan.open_session(bakefile_path, events, turn="take") as run:

        def of(entry: ImageEntry) -> str:
            if entry.build is not None:
                return build.build_key(entry.build, entry.platform or run.bakefile.platform)
            return run.registry.head(entry.reference).digest

        found = run.registry.each(of, run.bakefile.images)
        seen = {entry.reference.written: digest for entry, digest in zip(run.bakefile.images, found, strict=True)}
        return {**seen, "base": _base(run)}


def _base(run: Session) -> str:
    return plan.base_of(run).identity


def moved(before: Seen | None, now: Seen) -> tuple[str, ...]:
    """Return the names that mean something else now; all of them at first. Pure."""
    return tuple(name for name, meaning in now.items() if before is None or before.get(name) != meaning)


def act(
    bakefile_path: Path, events: Events, options: RolloutOptions | None, *, prune: bool = False
) -> tuple[BakeResult, tuple[TargetResult, ...], Tidied | None]:
    """Bake, verify, and roll out to the Bakefile's targets (``options`` None: do not); each is nothing when done.

    With ``prune`` what is old goes afterwards, as the Bakefile's ``retention`` says. Each ends with a hold on
    interruptions, so that what the turn did can be told.
    """
    results: tuple[TargetResult, ...] = ()
    finished = bake.bake(bakefile_path, events, BakeOptions(turn="keep"))  # the look has taken it
    if options is not None:
        interrupts.resume()
        results = rollout.rollout(
            bakefile_path, [finished.record.key], events, replace(options, force=False, again=False)
        )
    tidied = None
    if prune:
        interrupts.resume()
        tidied = tidy(bakefile_path, events)
    return finished, results, tidied


def tidy(bakefile_path: Path, events: Events) -> Tidied:
    """Let old artefacts go, as the Bakefile's ``retention`` says: here, and in EC2 where some are published."""
    bakefile = load(bakefile_path)
    rules = retention.rules(bakefile.retention)
    pruned = None
    if retention.publishes(bakefile):
        pruned = retention.prune_published(bakefile_path, rules, events, dry_run=False)
    interrupts.hold()
    return Tidied(retention.prune(bakefile.output, rules, shared=session_store(bakefile, events)), pruned)


def watch(
    look: Callable[[], Seen],
    act: Callable[[], tuple[BakeResult, tuple[TargetResult, ...], Tidied | None]],
    events: Events,
    *,
    once: bool,
    interval: float,
    on_turn: Callable[[Turn], object] = lambda _: None,
) -> Turn:
    """Take turns for ever, or one; ``interval`` is in seconds, between turns. ``on_turn`` gets each turn that acted.

    A signal that comes when a turn is done ends the watch after ``on_turn``.

    With ``once`` errors are raised. Otherwise the turn is tried again at the next, except for input that is wrong.
    """
    before: Seen | None = None
    while True:
        try:
            now = look()
            names = moved(before, now)
            turn = Turn(names)
            if names:
                events.note(f"moved: {', '.join(names)}" if before is not None else "the first turn")
                turn = Turn(names, *act())
                on_turn(turn)
            before = now
        except InputError:
            raise
        except ParbakeError as error:
            if once:
                raise
            events.warn(f"{error.message}; trying again in {interval:.0f} s")
        else:
            if once:
                return turn
        interrupts.resume()
        sleep(interval * random.uniform(1 - _JITTER, 1 + _JITTER))  # noqa: S311 (spreads load, hides nothing)

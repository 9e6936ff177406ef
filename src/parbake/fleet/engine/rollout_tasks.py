"""What travels through the engine for rollouts: which target gets what in which order, and how far that is."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

from parbake.fleet.audit import Event
from parbake.fleet.engine.messages import Told
from parbake.fleet.engine.tasks import Root, RunRequest, copy_roles

MOST_ENTRIES = 100
"""Lines of its own log that a rollout keeps."""
DIGITS_OF_KEYS = 32
"""Digits of a key that identify it: whole keys of a thousand cells would be too much for one history."""


def rollout_id(fleet: str) -> str:
    """Return the name of a fleet's rollouts: there is one at a time."""
    return f"rollout/{fleet}"


def fleet_of(identity: str) -> str:
    """Return the fleet of a rollout's name."""
    return identity.removeprefix(rollout_id(""))


def generation(keys: Mapping[str, str]) -> str:
    """Return the name of a run's artefacts: a hash of their keys."""
    text = "\n".join(f"{cell} {key}" for cell, key in sorted(keys.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class SignOff:
    """Somebody's approval of a wave. ``at`` is in ISO 8601, ``host`` the machine that it came from.

    ``proof`` shows who it is in AWS (``parbake.aws.caller``); then ``by`` becomes their ARN.
    """

    wave: str
    by: str
    host: str = ""
    note: str = ""
    at: str = ""
    proof: str = ""


@dataclass(frozen=True)
class Approval(Told):
    """An approval, as it is said."""

    sign_off: SignOff = field(default_factory=lambda: SignOff("", ""))


def purpose_of(fleet: str, generation: str, wave: str) -> str:
    """Return what a proof of who approves is for: it is good for this wave of this generation alone."""
    return f"approve {fleet}/{generation}/{wave}"


@dataclass(frozen=True)
class IdentifyRequest:
    """Ask whose a proof is, and whether it is for that."""

    proof: str
    purpose: str


@dataclass
class WaveTarget:
    """A target of a wave, and what became of it.

    ``state``: waits, hands (it is being written and followed), holds, failed; returns, returned, left (there was
    nothing to return). ``before`` is what it held, ``ids`` what it is known by once it holds the artefact: empty where
    it is not known yet. ``held`` is what that was by its ids, ``over`` what rollouts have written that were superseded,
    each by its ids.
    """

    name: str
    file: str
    target: str
    keys: list[str]
    state: str = "waits"
    before: str = ""
    after: str = ""
    ids: list[str] = field(default_factory=list)
    problem: str = ""
    held: list[str] = field(default_factory=list)
    over: list[list[str]] = field(default_factory=list)

    def superseded(self) -> WaveTarget:
        """Return the target as the next rollout knows it, which takes the place of the one that has written it."""
        known = not self.ids or self.ids in self.over
        return replace(self, over=self.over if known else [*self.over, self.ids])


@dataclass
class WaveState:
    """A wave, and how far it is. Times are in seconds, ``until`` is in ISO 8601: when the soak or the wait ends.

    ``state``: waits, looks (what is to be written?), hands, soaks, asks (the gate), approval (waits for one), done.
    """

    name: str
    targets: list[WaveTarget]
    at_once: int = 1
    soak: float = 0.0
    gate: list[str] = field(default_factory=list)
    gate_timeout: float = 600.0
    approvals: int = 0
    by: list[str] = field(default_factory=list)
    within: float = 0.0
    state: str = "waits"
    until: str = ""
    approved: list[SignOff] = field(default_factory=list)


@dataclass(frozen=True)
class Entry:
    """A line of a rollout's story."""

    at: str
    text: str


@dataclass
class RolloutState:
    """The state of a rollout. ``noted`` are the targets that may have been written, in order: what a rollback returns.

    ``state``: waves, back, done, rolled-back. ``paused`` says why it waits, ``opens`` when the next window does;
    ``held``: somebody has paused it. ``asked`` as in ``Progress``.
    """

    generation: str
    waves: list[WaveState] = field(default_factory=list)
    windows: list[str] = field(default_factory=list)
    on_failure: str = "pause"
    state: str = "waves"
    paused: str = ""
    opens: str = ""
    noted: list[str] = field(default_factory=list)
    story: list[Entry] = field(default_factory=list)
    held: bool = False
    asked: str = ""

    @property
    def targets(self) -> list[WaveTarget]:
        """All targets, in order."""
        return [target for wave in self.waves for target in wave.targets]

    @property
    def wave(self) -> WaveState | None:
        """The wave that is under way."""
        return next((wave for wave in self.waves if wave.state != "done"), None)


@dataclass(frozen=True)
class RolloutRequest:
    """Roll out a run's artefacts: ``keys``, by cell. ``file`` is the fleet's file, below the root.

    ``standing`` goes from one part of a long rollout to the next. ``back`` says who wants it back, and why; ``by`` who
    wanted it at all. ``newer`` is to take its place, ``over`` are the targets that a rollout has written whose place
    this one has taken, in that order. ``roles`` as in ``copy_roles``. ``at`` is when it was asked for and ``made`` when
    the run was that made it, in ISO 8601; the latter may be before that of the last rollout if ``again``. ``heard`` as
    in ``messages``, ``searchable`` as in ``search``.
    """

    fleet: str
    file: str
    root: Root
    store: str
    keys: dict[str, str]
    attempts: int = 4
    heartbeat: float = 60.0
    standing: RolloutState | None = None
    back: str = ""
    store_id: str = ""
    by: str = ""
    newer: RolloutRequest | None = None
    over: list[WaveTarget] = field(default_factory=list)
    story: list[Entry] = field(default_factory=list)
    roles: list[str] = field(default_factory=list)
    at: str = ""
    made: str = ""
    again: bool = False
    heard: list[str] = field(default_factory=list)
    searchable: list[str] = field(default_factory=list)

    @classmethod
    def of_run(cls, run: RunRequest, keys: dict[str, str], *, by: str) -> Self:
        """Return the request for the rollout of what a run has made."""
        return cls(
            run.fleet, run.file, run.root, run.store, keys, run.attempts, run.heartbeat, store_id=run.store_id, by=by,
            roles=copy_roles(run.places), made=run.at, searchable=run.searchable,
        )  # fmt: skip

    @property
    def generation(self) -> str:
        """The name of what is rolled out."""
        return generation(self.keys)


@dataclass(frozen=True)
class WavesRequest:
    """Ask for the waves of these cells. The ``store`` notes that they are needed."""

    file: str
    root: Root
    keys: dict[str, str]
    store: str
    store_id: str


@dataclass(frozen=True)
class WavesPlanned:
    """The waves as the fleet's file and its Bakefiles say."""

    waves: list[WaveState]
    windows: list[str]
    on_failure: str


@dataclass(frozen=True)
class TargetTask:
    """Something to be done to one target. ``file`` is its Bakefile, below the folder of the root's fleet file.

    ``held`` is what it was seen to hold and ``over`` what was superseded, as in ``WaveTarget``; ``roles`` as in
    ``copy_roles``.
    """

    file: str
    target: str
    keys: list[str]
    ids: list[str]
    root: Root
    fleet_file: str
    store: str
    store_id: str = ""
    over: list[list[str]] = field(default_factory=list)
    held: list[str] = field(default_factory=list)
    roles: list[str] = field(default_factory=list)

    def superseded(self, held: Sequence[str]) -> list[str]:
        """Return the ids of what is held, where that was superseded; nothing where it was not."""
        return next((ids for ids in self.over if ids and set(ids) <= set(held)), [])


@dataclass(frozen=True)
class AuditRequest:
    """What has happened, to be written down in a store."""

    fleet: str
    store: str
    events: list[Event]
    store_id: str = ""


@dataclass(frozen=True)
class TargetOutcome:
    """What a target held, what it holds or would hold, and whether it was or would be written.

    ``held`` is what it held by its ids, ``ids`` what it holds or would hold.
    """

    changed: bool
    before: str = ""
    after: str = ""
    ids: list[str] = field(default_factory=list)
    held: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class GateRequest:
    """A wave's question."""

    wave: str
    fleet_file: str
    root: Root
    generation: str
    cells: list[str]


@dataclass(frozen=True)
class OpensRequest:
    """When is one of these windows open next? ``now`` is in ISO 8601."""

    windows: list[str]
    now: str

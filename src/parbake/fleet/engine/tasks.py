"""What travels through the engine: requests, results and progress. Small, plain, and without any secret."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from parbake.fleet.places import Place

CONTROL, BAKE, PLACE, ROLL = "control", "bake", "place", "roll"
"""Queues: what needs no root; what needs root, loop devices, and KVM to verify quickly; what needs the rights to copy
in AWS; what needs the rights of the targets of rollouts."""
QUEUES = (CONTROL, BAKE, PLACE, ROLL)
WRONG_STORE = "WrongStore"
"""The error of a worker for which the store's address means another store."""
MOST_CELLS_OF_A_PLAN = 50
MOST_TOLD = 50
"""Failures that a run remembers word by word."""


def bake_id(key: str, store: str) -> str:
    """Return the name of the one bake of a key for a store: runs of all fleets meet there."""
    return f"bake/{key}/{hashlib.sha256(store.encode()).hexdigest()[:8]}"


def this_moment() -> str:
    """Return when something is asked for: in UTC, so that moments can be compared as texts."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def run_id(fleet: str) -> str:
    """Return the name of a fleet's runs: there is one at a time."""
    return f"fleet/{fleet}"


@dataclass(frozen=True)
class Root:
    """Where the fleet's file and its Bakefiles are: a folder of this machine, or a commit of a repository."""

    folder: str = ""
    git: str = ""
    commit: str = ""


@dataclass(frozen=True)
class Failure:
    """A cell that failed: parbake's error, its words, and the next step."""

    cell: str
    error: str
    message: str
    hint: str = ""


@dataclass
class Counts:
    """How many cells a run has brought to which end.

    ``there`` were in the store; ``baked`` were made now, ``joined`` by a bake of another run; ``quarantined`` were not
    tried, since they have failed too often.
    """

    there: int = 0
    baked: int = 0
    joined: int = 0
    failed: int = 0
    quarantined: int = 0

    @property
    def done(self) -> int:
        """Cells that are at an end."""
        return self.there + self.baked + self.joined + self.failed + self.quarantined


@dataclass(frozen=True)
class Destination:
    """A region that artefacts are brought to, in a role (empty: the Bakefile's), and who may launch them there."""

    region: str
    role: str = ""
    share_with: list[str] = field(default_factory=list)


def copy_roles(places: Iterable[Destination | Place]) -> list[str]:
    """Return the roles that copies belong to which a Bakefile knows nothing of, as parbake's commands take them."""
    return [f"{place.region}={place.role}" for place in places if place.role]


@dataclass(frozen=True)
class RunRequest:
    """One pass over the cells of a fleet. ``file`` is its file's path below the root.

    ``window`` cells are under way at once; a bake is tried ``attempts`` times; a run in which more than ``failures``
    percent of all cells have failed pauses; a worker that is silent for ``heartbeat`` seconds counts as dead; bakes are
    proven if ``verify``.
    ``total``, ``counts``, ``failed`` and ``keys`` go from one part of a long run to the next. What it has made sure of
    is handed out when all of it is good, if ``rollout``. ``store_id`` is the store's own word: a folder of that path on
    another machine is another store.
    What is baked is brought to ``places``, ``copies`` at once in each; ``bakes`` says how many of a builder are under
    way at once. A rollout may ``supersede`` the one that is under way. ``at`` is when it was asked for, in ISO 8601;
    ``heard`` as in ``messages``, ``searchable`` as in ``search``.
    """

    fleet: str
    file: str
    root: Root
    store: str
    cells: list[str]
    window: int = 64
    attempts: int = 4
    failures: int = 100
    verify: bool = True
    heartbeat: float = 60.0
    total: int = 0
    counts: Counts = field(default_factory=Counts)
    failed: list[Failure] = field(default_factory=list)
    store_id: str = ""
    keys: dict[str, str] = field(default_factory=dict)
    rollout: bool = False
    places: list[Destination] = field(default_factory=list)
    copies: int = 5
    bakes: dict[str, int] = field(default_factory=dict)
    supersede: bool = False
    at: str = ""
    heard: list[str] = field(default_factory=list)
    searchable: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class BeginRequest:
    """May a run or rollout begin that was asked for ``at`` this time? The rest as in ``parbake.fleet.stores``."""

    store: str
    store_id: str
    at: str
    made: str = ""
    before: str = ""
    again: bool = False


@dataclass(frozen=True)
class FleetFile:
    """Where a fleet's file is when a schedule comes round: its path below a folder, or below a branch of a repository.

    A branch is asked for its commit each time; see ``RunRequest`` for ``heartbeat``.
    """

    fleet: str
    file: str
    folder: str = ""
    git: str = ""
    ref: str = ""
    heartbeat: float = 60.0


@dataclass(frozen=True)
class PlanRequest:
    """Some cells to be planned."""

    file: str
    root: Root
    store: str
    cells: list[str]
    store_id: str = ""


@dataclass(frozen=True)
class Planned:
    """What is to be done for a cell; ``state`` is that of ``parbake.fleet.preview``.

    ``places`` are the regions that it is still to be brought to, ``builder`` is who bakes it.
    """

    cell: str
    file: str
    platform: str
    state: str
    key: str = ""
    problem: str = ""
    places: list[str] = field(default_factory=list)
    builder: str = ""


@dataclass(frozen=True)
class Order:
    """A command of parbake, which the activity names, for a cell or a Bakefile (``of``), and its ``options``.

    It runs in the folder of the fleet's file, below the root, for the store that has the word ``store_id``.
    """

    of: str
    options: list[str]
    root: Root
    fleet_file: str
    store: str
    store_id: str = ""

    @classmethod
    def of_run(cls, run: RunRequest, planned: Planned, *options: str) -> Self:
        """Return the command for the Bakefile of a cell; ``options`` are those that it has besides file and store."""
        whole = [*options, "-f", planned.file, "--store", run.store]
        return cls(planned.cell, whole, run.root, run.file, run.store, run.store_id)


@dataclass(frozen=True)
class BakeRequest:
    """A key that is to exist in a store. ``fleet`` is who wants it first; ``searchable`` as in ``search``."""

    key: str
    order: Order
    attempts: int = 4
    heartbeat: float = 60.0
    fleet: str = ""
    searchable: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Baked:
    """What a bake has brought, and the end of what it said. ``run`` is the one whose result it is (``messages``)."""

    artefact: str
    verified: bool
    changed: bool
    seconds: float = 0.0
    log: list[str] = field(default_factory=list)
    run: str = ""


@dataclass(frozen=True)
class Progress:
    """How far a run is. ``running`` are the names of the bakes under way, by cell; empty while images are built.

    ``rollout`` says what became of handing it out; ``places`` how many copies are under way in each region. One that is
    ``draining`` starts nothing new, and ends. ``asked`` is the word of whoever has asked for it, in an answer; ``run``
    the one whose result it is, in that (``messages``).
    """

    counts: Counts
    total: int
    running: dict[str, str] = field(default_factory=dict)
    failed: list[Failure] = field(default_factory=list)
    paused: str = ""
    rollout: str = ""
    draining: bool = False
    places: dict[str, int] = field(default_factory=dict)
    asked: str = ""
    run: str = ""


@dataclass(frozen=True)
class Made:
    """The keys of the cells that are good so far, as rollouts know them. ``asked`` as in ``Progress``."""

    keys: dict[str, str]
    asked: str

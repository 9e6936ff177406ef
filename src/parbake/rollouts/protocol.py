"""What rollouts talk about: an offer, what a target holds, a change to it, and how far its nodes have come."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from pydantic import Field

from parbake.core.model import GIB, Family, Frozen

OWNER = "parbake"
"""The name under which parbake writes: field manager, prefix of annotations and tags."""


class Held(Frozen):
    """What a target holds: ids of a cloud, and the artefact's name and key where parbake put it there.

    ``image`` may be several ids with commas between. ``label`` says in words what is not held by id; ``spec`` is the
    target's own way to say all of it, as a rollback writes it back.
    """

    image: str = ""
    snapshot: str = ""
    artefact: str = ""
    key: str = ""
    label: str = ""
    spec: dict[str, Any] = Field(default_factory=dict)

    @property
    def images(self) -> tuple[str, ...]:
        """The ids of the machine images."""
        return tuple(each for each in self.image.split(",") if each)

    def __str__(self) -> str:
        ids = ", ".join(each for each in (self.image or self.label, self.snapshot) if each) or "nothing"
        return f"{self.artefact} ({ids})" if self.artefact else ids


class Offer(Frozen):
    """What is handed out in one region: a machine image, a volume's snapshot, or both. Sizes in bytes (0: unknown).

    ``image_size`` is that of the machine image's root snapshot: no root disk may be smaller. ``hydrate`` is user data
    that loads the hot blocks (a cloud-boothook), for targets that ask for it. ``family`` is whose nodes alone can take
    the volume (empty: any that mount it).
    """

    artefact: str
    key: str
    region: str = ""
    architecture: str
    image: str = ""
    image_size: int = 0
    snapshot: str = ""
    snapshot_size: int = 0
    family: Family = ""
    hydrate: str = ""

    @property
    def held(self) -> Held:
        """What a target holds that took the offer."""
        return Held(image=self.image, snapshot=self.snapshot, artefact=self.artefact, key=self.key)


@dataclass(frozen=True, slots=True)
class Change:
    """What one target is to become. Pure data, decided before anything is written.

    ``before`` and ``after`` are what it holds; ``diff`` shows people what is written (empty: nothing is), ``payload``
    is it in the target's own form. ``refusals`` are reasons not to do it, which ``--force`` overrides; ``cautions``
    are what to know. ``wanted`` is what nodes must run in the end.
    """

    where: str
    before: Held
    after: Held
    diff: str = ""
    payload: Mapping[str, Any] = field(default_factory=dict)
    refusals: tuple[str, ...] = ()
    cautions: tuple[str, ...] = ()

    @property
    def empty(self) -> bool:
        """Whether the target holds it already."""
        return not self.diff


@dataclass(frozen=True, slots=True)
class Follow:
    """One look at how far the nodes have come. ``ready`` of ``total`` run the artefact.

    ``waiting`` says of the others, or of the target, what they wait for; ``failed`` is set when it cannot end well.
    """

    ready: int
    total: int
    done: bool
    waiting: tuple[str, ...] = ()
    failed: str = ""


@dataclass(frozen=True, slots=True)
class Standing:
    """What a target holds, what it held before (None: nothing to go back to), and how far its nodes are.

    ``left`` is what the last rollback left (None: the last thing was a rollout).
    """

    where: str
    holds: Held
    previous: Held | None
    follow: Follow | None = None
    frozen: bool = False
    left: Held | None = None


class Rollout(Protocol):
    """A kind of target. ``plan`` and ``plan_back`` only read; ``write`` writes what they decided, once."""

    def plan(self, offer: Offer) -> Change:
        """Decide what the target becomes; raises InputError when there is no such target."""
        ...

    def plan_back(self) -> Change:
        """Decide how the target returns to what it held before; empty when it has returned already.

        Raises InputError when nothing is written down that it could return to.
        """
        ...

    def write(self, change: Change) -> None:
        """Write a change; raises TargetMoved when the target is no longer what the decision was made on."""
        ...

    def follow(self, wanted: Held) -> Follow:
        """Look once how far the nodes are."""
        ...

    def standing(self) -> Standing:
        """Say what the target holds."""
        ...

    def freeze(self, *, frozen: bool) -> tuple[str, ...]:
        """Stop nodes from being replaced, or let them again; return what was changed."""
        ...


def show(before: object, after: object, name: str) -> str:
    """Return the difference of two documents as a unified diff; empty when they are equal."""
    now, then = (json.dumps(each, indent=2, sort_keys=True).splitlines() for each in (before, after))
    return "\n".join(difflib.unified_diff(now, then, f"{name} (now)", f"{name} (then)", lineterm="", n=3))


def gibibytes(size: int) -> int:
    """Return a size in whole GiB, rounded up."""
    return -(-size // GIB)

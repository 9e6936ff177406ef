"""What rollouts talk about: an offer, what a target holds, a change to it, and how far its nodes have come."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal, Protocol

from pydantic import AfterValidator, Field

from parbake.core.errors import InputError
from parbake.core.model import GIB, Family, Frozen, Variant

OWNER = "parbake"
"""The name under which parbake writes: field manager, prefix of annotations and tags."""


def _as_set(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted({each for each in names if each}))


NameSet = Annotated[tuple[str, ...], AfterValidator(_as_set)]
"""Ids or names of one kind, as a set: each once and sorted, so that the same ones are equal in whatever order."""


class Identity(Frozen):
    """What artefacts are known by: ids of a cloud, names and keys.

    They are several where a node class takes a machine image for each architecture, or an image and a volume together.
    """

    images: NameSet = ()
    snapshot: str = ""
    artefacts: NameSet = ()
    keys: NameSet = ()

    @property
    def image(self) -> str:
        """The machine image of what has room for one; empty without. Raises ValueError where there are several."""
        (image,) = self.images or ("",)
        return image

    @property
    def name(self) -> str:
        """The artefacts' names as one text, which ``names_in`` reads."""
        return _AND.join(self.artefacts)

    @property
    def ids(self) -> tuple[str, ...]:
        """What it is known by on every kind of target; the artefacts' names where they lie in no cloud."""
        return tuple(filter(None, (*self.images, self.snapshot))) or self.artefacts

    def goes_by(self, name: str) -> bool:
        """Whether one of its ids or names is this, or one of its keys begins so."""
        named = name in {*self.images, self.snapshot, *self.artefacts}
        return bool(name) and (named or any(key.startswith(name) for key in self.keys))

    def same_ids(self, other: Identity) -> bool:
        """Whether the other is the same in the cloud."""
        return (self.images, self.snapshot) == (other.images, other.snapshot)


_AND = " + "


def names_in(text: str) -> tuple[str, ...]:
    """Return the names of the artefacts that a text (``Identity.name``) names."""
    return tuple(filter(None, text.split(_AND)))


class TargetState(Identity):
    """What a target holds, with the artefacts' names and keys where parbake put them there.

    ``label`` says in words what is not held by id; ``spec`` is the target's own way to say all of it, as a rollback
    writes it back.
    """

    label: str = ""
    spec: dict[str, Any] = Field(default_factory=dict)

    def __str__(self) -> str:
        ids = ", ".join(each for each in (*(self.images or (self.label,)), self.snapshot) if each)
        return f"{self.name} ({ids})" if self.name and ids else self.name or ids or "nothing"


class Offer(Identity):
    """What is rolled out in one region: machine images, a volume's snapshot, or both. Sizes in bytes (0: unknown).

    ``variant`` is that of EKS's images that they were baked onto (empty: unknown).
    ``image_size`` is that of the machine image's root snapshot: no root disk may be smaller. ``mount`` is user data
    that mounts the volume, ``hydrate`` what loads the hot blocks, ``boost`` what also takes a raised volume back
    (cloud-boothooks), for targets that ask for them.
    ``family`` is whose nodes alone can take the volume (empty: any that mount it); ``encrypted``: its snapshot was
    baked encrypted, with ``kms_key`` (empty: the account's own); ``runtime`` is what started the volume's images when
    it was verified (empty: unknown).
    ``supersedes`` names (all of these ids, names or keys) what has never proven itself: nothing goes back to that.
    """

    region: str = ""
    architectures: NameSet
    variant: Variant = ""
    image_size: int = 0
    snapshot_size: int = 0
    encrypted: bool = False
    kms_key: str = ""
    family: Family = ""
    runtime: str = ""
    mount: str = ""
    hydrate: str = ""
    boost: str = ""
    supersedes: tuple[str, ...] = ()

    @property
    def held(self) -> TargetState:
        """What a target holds that took the offer."""
        return TargetState(images=self.images, snapshot=self.snapshot, artefacts=self.artefacts, keys=self.keys)

    def held_over(self, before: TargetState) -> TargetState:
        """Return what a target holds that took the offer: what the offer has not, it keeps."""
        kept = {"images": self.images or before.images, "snapshot": self.snapshot or before.snapshot}
        return self.held.model_copy(update={**kept, "label": "" if self.images else before.label})

    def way_back[T](self, holds: TargetState, now: T, before: T | None) -> T:
        """Return what a target records as what it held before, in its own form.

        That is what it holds ``now``; where this is superseded, what it records already: ``before``, if anything.
        """
        superseded = bool(self.supersedes) and all(holds.goes_by(each) for each in self.supersedes)
        return before if superseded and before else now


def unlocked(device: str, mapping: Mapping[str, Any], offer: Offer) -> tuple[str, ...]:
    """Return the caution that a mapping loses its words on encryption: one with a snapshot may have none (EC2 API).

    ``mapping`` is what was there, in the words of Karpenter or of a launch template.
    """
    key = mapping.get("kmsKeyID") or mapping.get("KmsKeyId") or ""
    locked = bool(key or mapping.get("encrypted") or mapping.get("Encrypted"))
    if not offer.snapshot or not locked or (offer.encrypted and key in {"", offer.kms_key}):
        return ()
    was = f"had the key {key}" if key else "was `encrypted: true`"
    if offer.encrypted:
        has = f"encrypted with {offer.kms_key or 'the key of the account that baked it'}: name that key in the Bakefile"
        return (f"{device} {was}, and a volume of a snapshot has the snapshot's: {offer.name} is {has}",)
    return (
        f"{device} {was}, and a volume of a snapshot is encrypted as the snapshot is: {offer.name} "
        "was baked without `aws: {encrypted: true}`, so it stays encrypted only where the account encrypts by default",
    )


@dataclass(frozen=True, slots=True)
class Change:
    """What one target is to become. Pure data, decided before anything is written.

    ``before`` and ``after`` are what it holds; ``diff`` shows people what is written (empty: nothing is), ``payload``
    is it in the target's own form. ``refusals`` are reasons not to do it, which ``--force`` overrides; ``cautions``
    are what to know. ``wanted`` is what nodes must run in the end.
    """

    where: str
    before: TargetState
    after: TargetState
    diff: str = ""
    payload: Mapping[str, Any] = field(default_factory=dict)
    refusals: tuple[str, ...] = ()
    cautions: tuple[str, ...] = ()

    @property
    def empty(self) -> bool:
        """Whether the target holds it already."""
        return not self.diff


@dataclass(frozen=True, slots=True)
class RolloutProgress:
    """One look at how far the nodes have come. ``ready`` of ``total`` run the artefact.

    ``waiting`` says of the others, or of the target, what they wait for; ``failed`` is set when it cannot end well.
    """

    ready: int
    total: int
    done: bool
    waiting: tuple[str, ...] = ()
    failed: str = ""

    def __str__(self) -> str:
        return f"{self.ready} of {self.total} nodes run it" if self.total else "no node runs it yet"


@dataclass(frozen=True, slots=True)
class History[T]:
    """What a target records of rollouts, in its own form, so that a rollback works from any machine.

    ``previous`` is what it held before the last rollout, ``left`` what the last rollback left (with a ``previous``,
    a rollout came after it); ``current`` is what the last of them brought. None and what is empty: not recorded.
    """

    previous: T | None = None
    left: T | None = None
    current: T | None = None

    @property
    def rolled_back(self) -> bool:
        """Whether the last thing was a rollback."""
        return bool(self.left) and not self.previous

    def way_back(self, where: str) -> T | None:
        """Return what a rollback returns to; None after one. Raises InputError when no rollout is recorded."""
        if not self.previous and not self.left:
            raise InputError(
                f"{where}: it records no rollout", hint="roll out a record of the artefact that you want back"
            )
        return self.previous or None

    def states(self, held: Callable[[T], TargetState]) -> History[TargetState]:
        """Return what a target held before, and what a rollback left, from its own form."""
        return History(*(held(each) if each else None for each in (self.previous, self.left)))

    def fields(self) -> dict[str, T]:
        """Return what is recorded, by name."""
        pairs = ((name, getattr(self, name)) for name in _RECORDED)
        return {name: value for name, value in pairs if value is not None}


_RECORDED: Final = ("previous", "left", "current")


def history_text(history: History[TargetState]) -> str:
    """Return a history as JSON, for an annotation; what is current needs no ``spec``: the target holds it."""
    note = {
        name: state.model_dump(exclude_defaults=True, exclude={"spec"} if name == "current" else None)
        for name, state in history.fields().items()
    }
    return json.dumps(note, sort_keys=True, separators=(",", ":"))


def read_history(text: str) -> History[TargetState]:
    """Return the history in an annotation; an empty one where there is none, or where somebody broke it."""
    try:
        note = json.loads(text or "{}")
        found = {name: TargetState(**note.get(name) or {}) for name in _RECORDED}
    except (ValueError, TypeError, AttributeError):
        return History()
    return History(**{name: state for name, state in found.items() if state != TargetState()})


@dataclass(frozen=True, slots=True)
class TargetStatus:
    """What a target holds, what it records of rollouts, and how far its nodes are."""

    where: str
    holds: TargetState
    history: History[TargetState] = History()
    follow: RolloutProgress | None = None
    frozen: bool = False

    @property
    def previous(self) -> TargetState | None:
        """What it held before; None: nothing to go back to."""
        return self.history.previous

    @property
    def left(self) -> TargetState | None:
        """What the last rollback left; None: the last thing was a rollout."""
        return self.history.left if self.history.rolled_back else None


class CanaryNote(Frozen):
    """What a target notes of its canary: of the artefact with these ids, whether it waits or has failed, and why."""

    state: Literal["waits", "failed"]
    of: NameSet
    why: str = ""


class Rollout(Protocol):
    """A kind of target. ``plan`` and ``plan_rollback`` only read; ``write`` writes what they decided, once."""

    where: str
    """What it is, for people."""

    def plan(self, offer: Offer) -> Change:
        """Decide what the target becomes; raises InputError when there is no such target."""
        ...

    def plan_rollback(self) -> Change:
        """Decide how the target returns to what it held before; empty when it has already been rolled back.

        Raises InputError when nothing is written down that it could return to.
        """
        ...

    def write(self, change: Change) -> None:
        """Write a change; raises TargetMoved when the target is no longer what the decision was made on."""
        ...

    def follow(self, wanted: TargetState) -> RolloutProgress:
        """Look once how far the nodes are."""
        ...

    def status(self) -> TargetStatus:
        """Say what the target holds."""
        ...

    def canary(self) -> CanaryNote | None:
        """Return what the target notes of its canary; None: nothing is open, and nothing has failed."""
        return None

    def with_canary(self, change: Change, note: CanaryNote) -> Change:
        """Return a change that notes this in the same write, if it writes at all."""
        del note
        return change

    def note_canary(self, note: CanaryNote | None) -> None:
        """Write down what became of the canary; None: it has passed."""
        del note

    def freeze(self, *, frozen: bool) -> tuple[str, ...]:
        """Stop nodes from being replaced, or let them again; return what was changed.

        Raises InputError where that cannot be: most targets replace no nodes themselves.
        """
        del frozen
        raise InputError(f"{self.where} replaces no nodes", hint="freeze whatever reads it")


def already_back(where: str, holds: TargetState, left: object = "") -> Change:
    """Return what is to do for a target that has returned already, from ``left``: nothing."""
    return Change(where, holds, holds, cautions=(f"it has already been rolled back{f', from {left}' if left else ''}",))


def show(before: object, after: object, name: str) -> str:
    """Return the difference of two documents as a unified diff; empty when they are equal."""
    now, then = (json.dumps(each, indent=2, sort_keys=True).splitlines() for each in (before, after))
    return "\n".join(difflib.unified_diff(now, then, f"{name} (now)", f"{name} (then)", lineterm="", n=3))


def gibibytes(size: int) -> int:
    """Return a size in whole GiB, rounded up."""
    return -(-size // GIB)

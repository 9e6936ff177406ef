"""Builders make an artefact from a plan; publishers send what was built here to a cloud.

Three protocols, and the story (``workflows.bake``) goes from one to the next:

- ``Builder.build(plan) -> Disk``: a disk on this machine, which is then rehearsed, laid out and proven here.
- ``Publisher.opened(plan) -> Shipment``: sends such a disk away, or finds that a cloud has it already.
- ``RemoteBuilder.opened(plan) -> RemoteSteps``: an instance bakes; the disk is never on this machine.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

from parbake.core.claim import Alone, Claim

if TYPE_CHECKING:
    from pathlib import Path

    from parbake.builders.workers.hire import Spare
    from parbake.coldstart.trace import Trace
    from parbake.core.blocks import BlockList
    from parbake.core.events import Events
    from parbake.core.model import Image, Plan, Published, Verdict
    from parbake.core.sources import LayerSource
    from parbake.machine.disk import Memory


@dataclass(frozen=True, slots=True)
class ParentVolume:
    """An earlier volume of the same Bakefile to start from: its name, file, and the list of its blocks.

    ``memory`` may spare the comparison of the two (None: every byte is compared). ``saves`` is how many seconds writing
    its layers would take, as the last whole bake tells; None where none does. ``spent``: the file is nobody else's, and
    is itself changed; ``memory`` then spares the comparison of what the bake leaves as it is.
    """

    name: str
    path: Path
    blocks: BlockList
    memory: Memory | None = None
    saves: float | None = None
    spent: bool = False


@dataclass(frozen=True, slots=True)
class Ingredients:
    """What a builder works with besides the plan.

    ``base`` is the base image on this machine (None: a volume); ``source`` opens the content of one image; ``work`` is
    a folder of this run, on the file system where the artefact will lie. ``close_connections`` ends
    what waits for a registry. ``parent`` has layers that need not be fetched again; a builder may do without it.
    ``claim`` says that no other machine makes the same. ``spare`` has a worker that runs already. ``prove_anew``: what
    a cloud's tags say of an earlier verification does not count, since it was of other startups.
    """

    base: Path | None
    source: Callable[[Image], LayerSource]
    work: Path
    events: Events
    close_connections: Callable[[], None] = lambda: None
    parent: ParentVolume | None = None
    claim: Claim = field(default_factory=Alone)
    spare: Spare | None = None
    prove_anew: bool = False


@dataclass(frozen=True, slots=True)
class RehearsalPlace:
    """Where the images of a volume are rehearsed: in a virtual ``machine``, or on the ``host``.

    ``asked`` is what the user says (None: what this machine can do decides, see ``coldstart.place_of``); ``base`` is
    the image of the node that the volume is attached to in a machine (None: the default base).
    """

    asked: Literal["machine", "host"] | None = None
    base: Path | None = None


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk on this machine: a file in the work folder, or in the folder where a shipment waits.

    ``sealed`` lists what was cleaned from the base, ``parent`` is the artefact that the bake started from. ``hashes``
    are the BLAKE3 digests of blocks that the builder has hashed already, ``inherited`` the SHA-256 of those of a parent
    that nobody has written to. ``trace`` is what cold starts read of it,
    once that is known. ``final``: its bytes must not change any more, because a cloud has them; ``blocks`` is the list
    of its blocks that the cloud gave.
    """

    path: Path
    sealed: tuple[str, ...] = ()
    hashes: Mapping[int, bytes] = field(default_factory=dict)
    inherited: Mapping[int, bytes] = field(default_factory=dict)
    parent: str = ""
    trace: Trace | None = None
    final: bool = False
    blocks: BlockList | None = None

    def written(self, touched: Collection[int], known: Mapping[int, bytes]) -> Disk:
        """Return the disk whose blocks were ``touched``; the BLAKE3 digests of some of them are ``known`` anew."""
        hashes = {block: digest for block, digest in self.hashes.items() if block not in touched}
        inherited = {block: digest for block, digest in self.inherited.items() if block not in touched}
        return replace(self, hashes={**hashes, **known}, inherited=inherited)


@dataclass(frozen=True, slots=True)
class Publication:
    """What a cloud holds of a plan: by region, that of the bake first; empty when verification kept it from there.

    ``size`` is that of the disk in bytes; ``verdict`` is what was seen of it, None where nobody looked; ``blocks`` is
    the list of its blocks, where that is known.
    """

    published: Mapping[str, Published] = field(default_factory=dict)
    size: int = 0
    verdict: Verdict | None = None
    blocks: BlockList | None = None


class Builder(Protocol):
    """Makes a disk on this machine."""

    def build(self, plan: Plan, ingredients: Ingredients) -> Disk:
        """Make the disk of ``plan`` in the work folder; leave nothing else behind, also on failure."""
        ...


class RemoteBuilder(Protocol):
    """Makes the artefact in a cloud, and proves it there."""

    def opened(self, plan: Plan, ingredients: Ingredients) -> AbstractContextManager[RemoteSteps]:
        """Open the steps to the artefact of ``plan``; nothing temporary is left at the end, also on failure."""
        ...


class RemoteSteps(Protocol):
    """The steps of one bake in a cloud; what is ``made`` is the cloud's own description of it."""

    def build(self) -> Mapping[str, Any]:
        """Make sure that the artefact is there, made by an earlier run or now."""
        ...

    def verify(self, made: Mapping[str, Any]) -> Verdict | None:
        """Start its images there; None where nobody wants to know."""
        ...

    def publish(self, made: Mapping[str, Any], verdict: Verdict | None) -> Publication:
        """Copy and share it as the Bakefile says; what failed its verification is only kept."""
        ...


class Shipment(Protocol):
    """One plan on its way to a cloud, and the disk that waits for it.

    ``work`` is a work folder on the file system of that disk, ``region`` the bake's own.
    """

    @property
    def work(self) -> Path:  # noqa: D102
        ...

    @property
    def region(self) -> str:  # noqa: D102
        ...

    def existing(self) -> Published | None:
        """Return what the cloud has of the plan already."""
        ...

    def fetch(self, there: Published) -> Disk:
        """Read back what the cloud has, to verify it here."""
        ...

    def kept(self) -> Disk | None:
        """Return the disk that an earlier run has built and prepared, and did not get to send."""
        ...

    def keep(self, disk: Disk) -> Disk:
        """Take over a disk that is built and prepared, at once or not at all: a run that is killed later finds it."""
        ...

    def send(self, disk: Disk) -> tuple[Published, BlockList]:
        """Send the disk; return what the cloud has then in the bake's own region, and the list of its blocks."""
        ...

    def finish(self, there: Published, verdict: Verdict | None) -> Mapping[str, Published]:
        """Copy and share as the Bakefile says, mark all of it as an artefact, and let the disk here go."""
        ...


class Publisher(Protocol):
    """Sends disks to a cloud."""

    def disk_plan(self, plan: Plan) -> Plan:
        """Return the plan of the disk that is built here for ``plan``: its format, and a size that the cloud takes."""
        ...

    def base(self, plan: Plan, events: Events) -> Path | None:
        """Return the disk of a base that lies in the cloud, fetched once; None where the base is not."""
        ...

    def opened(
        self, plan: Plan, events: Events, *, keep: bool = False, claim: Claim
    ) -> AbstractContextManager[Shipment]:
        """Open the shipment of a plan: one run at a time works on it. ``keep``: its work folder stays."""
        ...

"""What was baked, or will be: the side that manifests are compared with. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal

from parbake.bakefile import Bakefile
from parbake.core.coverage import Coverage, Held
from parbake.core.families import FAMILIES, UNKNOWN, NodeFamily
from parbake.core.model import GIB, Platform, Startup
from parbake.core.reference import Reference
from parbake.records import Record


@dataclass(frozen=True, slots=True)
class BakedImage:
    """An image in a bake.

    ``digest`` is empty while nobody knows it, ``config`` is that of its configuration; ``by_digest`` says that it is
    stored so too, ``mounted`` that it is proven as a pod's volume.
    """

    reference: Reference
    digest: str = ""
    manifest: str = ""
    config: str = ""
    by_digest: bool = False
    mounted: bool = False

    @property
    def digests(self) -> set[str]:
        """What pods may name it by: the index, and the platform's manifest."""
        return {self.digest, self.manifest} - {""}


type Covers = Callable[[Reference], Coverage | None]
"""What a bake has of the image that a name means now; None where that is not known, or was not asked."""


def _not_asked(reference: Reference) -> None:
    del reference


@dataclass(frozen=True, slots=True)
class Bake:
    """A bake: a record, or a Bakefile that was not baked yet.

    ``size`` is that of the disk or volume and ``filled`` what the images take of it, both in bytes (0: unknown).
    ``sandbox`` is the pause image that it carries. ``amis`` and ``snapshots`` are where it is published, the sizes of
    snapshots in bytes. ``record`` is the name of the record's file (empty: not baked yet), ``verified`` what its
    verification said (None: there was none). ``held`` is what nodes' stores have of it
    (None: not baked yet), ``covers`` tells what of an image that a registry serves.
    """

    name: str
    platform: Platform
    kind: Literal["machine-image", "volume"]
    images: tuple[BakedImage, ...]
    family: NodeFamily = UNKNOWN
    sandbox: str = ""
    size: int = 0
    filled: int = 0
    amis: frozenset[str] = frozenset()
    snapshots: tuple[tuple[str, int], ...] = ()
    record: str = ""
    verified: bool | None = None
    held: Held | None = None
    covers: Covers = _not_asked

    def find(self, reference: Reference) -> BakedImage | None:
        """Return the image that a pod's reference names, tag for tag; digests are compared by the caller."""
        if reference.digest:  # then the node asks for name@digest, whatever the tag
            for image in self.images:
                if image.reference.name == reference.name and reference.digest in image.digests:
                    return image
        for image in self.images:
            known = image.reference
            if known.name != reference.name:
                continue
            if known.tag == reference.tag or not (known.tag and reference.tag):
                return image
        return None


def _is_mounted(startup: Startup | None) -> bool:
    return startup is not None and startup.up.kind == "mounted"


def of_record(record: Record) -> Bake:
    """Return what a record says was baked."""
    plan = record.plan
    images = tuple(
        BakedImage(
            image.reference,
            image.target.digest,
            image.manifest.digest,
            image.config.digest,
            by_digest=image.also_by_digest or bool(image.reference.digest),
            mounted=_is_mounted(image.startup),
        )
        for image in plan.whole_images
    )
    published = record.published.values()
    return Bake(
        name=record.artefact,
        platform=plan.platform,
        kind=plan.artefact.kind,
        images=images,
        family=FAMILIES[next((there.family for there in published if there.family), "")],
        sandbox=str(plan.sandbox.reference) if plan.sandbox else "",
        size=plan.size,
        filled=record.allocated if plan.artefact.kind == "volume" else 0,
        amis=frozenset(there.image for there in published if there.image),
        snapshots=tuple((each.id, each.size) for there in published for each in there.snapshots),
        record=record.file_name,
        verified=record.verdict.passed if record.verdict else None,
        held=Held.by(plan),
    )


def of_bakefile(bakefile: Bakefile, *, name: str = "the Bakefile") -> Bake:
    """Return what a Bakefile says is to be baked."""
    images = tuple(
        BakedImage(
            entry.reference,
            entry.reference.digest,
            by_digest=entry.also_by_digest or bool(entry.reference.digest),
            mounted=_is_mounted(entry.startup),
        )
        for entry in bakefile.images
        if not entry.layers
    )
    source = bakefile.base.ami
    return Bake(
        name=name,
        platform=bakefile.platform,
        kind=bakefile.artefact.kind,
        images=images,
        family=source.family if source else UNKNOWN,
        sandbox="" if bakefile.sandbox == "none" else str(bakefile.sandbox),
        size=bakefile.size,
    )


def together(wanted: Bake | None, records: Iterable[Record]) -> tuple[Bake, ...]:
    """Return the bakes to compare with: each record, or what the Bakefile says, with what its newest record knows."""
    baked = [of_record(record) for record in records]
    if wanted is None:
        return tuple(baked)
    if not baked:
        return (wanted,)
    newest = baked[-1]
    known = {str(image.reference): image for image in newest.images}
    images = tuple(known.get(str(image.reference), image) for image in wanted.images)
    if any(str(image.reference) not in known for image in wanted.images) or len(known) > len(images):
        return (replace(wanted, images=images),)  # the Bakefile has changed since
    return (replace(newest, family=wanted.family or newest.family, images=images),)


def gib(size: int) -> str:
    """Return a size as volumes are sized."""
    return f"{-(-size // GIB)} GiB"

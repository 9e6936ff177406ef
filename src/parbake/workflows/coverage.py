"""What nodes with a bake still fetch: of images as their registries serve them now, or of another bake's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

from parbake.bakefile import Bakefile
from parbake.core.coverage import Coverage, Held, cover
from parbake.core.errors import InputError, ParbakeError, Unreachable
from parbake.core.events import Events
from parbake.core.model import Image, Platform
from parbake.core.reference import Reference
from parbake.images.registry import Registry
from parbake.images.registry.retry import Patience
from parbake.records import Record
from parbake.workflows.identity import acting, role_of
from parbake.workflows.lint.bakes import Bake, Covers, of_record

type LookUp = Callable[[Reference, Platform], Image | str]
"""What tells which image a name means now, or in words why that is not known."""
type Found = Literal["baked", "other-digest", "other-name"]


@dataclass(frozen=True, slots=True)
class Row:
    """One image that pods name. ``coverage`` is None where the registry did not tell, which ``problem`` says.

    ``found`` is what a node finds under the name without a pull: the same image, another one of that name (which pods
    of IfNotPresent run, and those of Always replace), or nothing.
    """

    reference: Reference
    found: Found
    coverage: Coverage | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Covered:
    """Images held against a bake; ``fetched`` is what all of them fetch together, in bytes, each blob once."""

    record: Record
    rows: tuple[Row, ...]

    @property
    def fetched(self) -> int:
        """Bytes that a node fetches when pods of all these images come to it."""
        blobs: dict[str, int] = {}
        for row in self.rows:
            blobs |= row.coverage.fetched if row.coverage else {}
        return sum(blobs.values())

    @property
    def unknown(self) -> tuple[Row, ...]:
        """Those of which the registry did not tell."""
        return tuple(row for row in self.rows if row.coverage is None)


@contextmanager
def registry_of(bakefile: Bakefile | None, events: Events, *, patience: Patience | None = None) -> Iterator[Registry]:
    """Yield what asks registries, in the role and by the options of a Bakefile, if there is one."""
    options, role = (bakefile.registries, role_of(bakefile)) if bakefile else (None, None)
    with (
        acting(bakefile) if bakefile else nullcontext(),
        Registry(options, events=events, patience=patience, role=role) as registry,
        registry.closing_on_failure(),
    ):
        yield registry


@contextmanager
def registries(bakefile: Bakefile | None, events: Events, *, patience: Patience | None = None) -> Iterator[LookUp]:
    """Yield what asks registries, as the Bakefile says how, what a name means now; each name is asked for once."""
    with registry_of(bakefile, events, patience=patience) as registry:
        gone: dict[str, str] = {}

        @cache
        def look_up(reference: Reference, platform: Platform) -> Image | str:
            if reference.registry in gone:
                return gone[reference.registry]
            try:
                return registry.resolve(reference, platform)
            except Unreachable as error:  # waited for once, whatever else it should have
                return gone.setdefault(reference.registry, error.message)
            except ParbakeError as error:
                return error.message

        yield look_up


def ask(record: Record, references: Iterable[Reference], bakefile: Bakefile | None, events: Events) -> Covered:
    """Ask registries what names mean now, and return what a bake has of that.

    An image that is not to be had is a row that says why. Raises InputError for options of registries that are wrong.
    """
    wanted = tuple(dict.fromkeys(references))
    with (
        registries(bakefile, events) as look_up,
        ThreadPoolExecutor(max_workers=8) as pool,
        events.stage("ask", f"Ask what {len(wanted)} {'name means' if len(wanted) == 1 else 'names mean'} now"),
    ):
        found = tuple(pool.map(lambda reference: look_up(reference, record.plan.platform), wanted))
    return _covered(record, zip(wanted, found, strict=True))


def own(record: Record) -> tuple[Reference, ...]:
    """Return what the images of a bake are called in registries; raises InputError where they were all built here."""
    names = (image.part_of or image.reference for image in record.plan.images)
    found = tuple(name for name in names if not name.is_local)
    if not found:
        raise InputError(
            f"the images of {record.artefact} are in no registry: no name of theirs can mean something else by now",
            hint="name images, or --manifests, --from-cluster, or another record with --against",
        )
    return found


def asking(bakes: Iterable[Bake], look_up: LookUp) -> tuple[Bake, ...]:
    """Return bakes that tell what they have of an image under another name; one that was not made yet has nothing."""

    def covering(bake: Bake, held: Held) -> Covers:
        def covers(reference: Reference) -> Coverage | None:
            image = look_up(reference, bake.platform)
            return None if isinstance(image, str) else cover(held, image)

        return covers

    return tuple(replace(bake, covers=covering(bake, bake.held)) if bake.held else bake for bake in bakes)


def between(record: Record, others: Sequence[Record]) -> Covered:
    """Return what nodes with a bake fetch of other bakes' images: what a deployment in between costs a node."""
    images = {image.reference: image for other in others for image in other.plan.whole_images}
    return _covered(record, images.items())


def _covered(record: Record, images: Iterable[tuple[Reference, Image | str]]) -> Covered:
    held, bake = Held.by(record.plan), of_record(record)
    return Covered(
        record,
        tuple(
            Row(reference, "other-name", problem=image)
            if isinstance(image, str)
            else Row(reference, _found(bake, reference, image), cover(held, image))
            for reference, image in images
        ),
    )


def _found(bake: Bake, reference: Reference, image: Image) -> Found:
    known = bake.find(reference)
    if known is None or (reference.digest and not known.by_digest):
        return "other-name"
    return "baked" if image.target.digest in known.digests else "other-digest"

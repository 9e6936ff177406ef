"""What to watch of a repository of records: which bakes are in use, and whether registries still serve their images.

``measure = records -> what targets hold -> what registries serve``. Whoever does not answer is told, and hides nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from parbake import records
from parbake.bakefile import Bakefile
from parbake.core.errors import NoSuchImage, ParbakeError
from parbake.core.events import Events
from parbake.core.model import Image
from parbake.core.reference import Reference
from parbake.images.registry import Registry
from parbake.records import Record
from parbake.rollouts.protocol import TargetState
from parbake.workflows import rollout
from parbake.workflows.coverage import registry_of
from parbake.workflows.rollout import TargetReport

type Found = Sequence[tuple[Path, Record]]
"""Records with their paths, oldest first, as ``records.find`` returns them."""


@dataclass(frozen=True, slots=True)
class BakeInUse:
    """An artefact that nodes may run. ``known_by`` says how: a target holds it, or rollouts would take it."""

    record: Record
    known_by: Literal["target", "record"]


@dataclass(frozen=True, slots=True)
class ServedImage:
    """An image of a bake in use: whether its registry still has the digest, and whether its name still means that.

    None is what is not known: nobody answered, or the name is nothing but the digest.
    """

    record: Record
    image: Image
    served: bool | None = None
    current: bool | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """What was found out; ``silent`` are the targets and registries that did not answer, each as (kind, name)."""

    found: Found
    in_use: tuple[BakeInUse, ...]
    images: tuple[ServedImage, ...] = ()
    silent: tuple[tuple[Literal["target", "registry"], str], ...] = ()


def measure(found: Found, bakefile: Bakefile | None, path: Path, events: Events, *, offline: bool) -> Measured:
    """Find out what is in use, and whether registries still serve it; with ``offline`` nobody is asked.

    ``bakefile`` is what was read from ``path``: it names the targets, and says how registries are asked.
    """
    if offline:
        return Measured(found, in_use(found, ()))
    reports: tuple[TargetReport, ...] = ()
    if bakefile and bakefile.rollout:
        with events.stage("targets", "Ask the targets what they hold"):
            reports = rollout.status(path)
    for each in reports:
        if each.error:
            events.warn(f"{each.target} did not say what it holds: {each.error}")
    used = in_use(found, reports)
    images, quiet = _asked(used, bakefile, events)
    return Measured(
        found,
        used,
        images,
        (*(("target", each.target) for each in reports if each.error), *(("registry", each) for each in quiet)),
    )


def in_use(found: Found, reports: Iterable[TargetReport]) -> tuple[BakeInUse, ...]:
    """Return what nodes may run, oldest first: what targets hold, and held, while their nodes are on the way. Pure.

    Of a name that no target is known to hold it is what rollouts take: the newest verified one.
    """
    held = tuple(state for report in reports for state in _held(report))
    used = [BakeInUse(record, "target") for _, record in found if any(_is(record, state) for state in held)]
    for name in sorted({record.plan.name for _, record in found} - {each.record.plan.name for each in used}):
        meant = records.newest(found, name, verified=True)
        if meant and meant[1].verified:
            used.append(BakeInUse(meant[1], "record"))
    return tuple(sorted(used, key=lambda each: each.record.finished_at))


def _held(report: TargetReport) -> Iterator[TargetState]:
    if report.status is None:
        return
    yield report.status.holds
    on_the_way = report.status.follow is not None and not report.status.follow.done
    if on_the_way and report.status.previous:
        yield report.status.previous


def _is(record: Record, state: TargetState) -> bool:
    there = record.published.values()
    ids = [each for place in there for each in (place.image, *(snapshot.id for snapshot in place.snapshots))]
    return any(state.goes_by(each) for each in (record.key, record.artefact, *ids))


def _asked(
    used: Iterable[BakeInUse], bakefile: Bakefile | None, events: Events
) -> tuple[tuple[ServedImage, ...], tuple[str, ...]]:
    """Ask registries, with HEAD, of each image in use; return the answers, and the registries that gave none."""
    wanted = [(each.record, image) for each in used for image in each.record.plan.images]
    wanted = [(record, image) for record, image in wanted if not (image.layout or image.reference.is_local)]
    silent: dict[str, None] = {}
    with (
        registry_of(bakefile, events) as registry,
        ThreadPoolExecutor(max_workers=8) as pool,
        events.stage("registries", f"Ask registries for {len(wanted)} {'image' if len(wanted) == 1 else 'images'}"),
    ):

        def ask(item: tuple[Record, Image]) -> ServedImage:
            record, image = item
            name, digest = image.reference, image.target.digest
            there = _digest(registry, replace(name, tag="", digest=digest), silent, events)
            now = _digest(registry, name, silent, events) if name.tag and not name.digest else None
            served, current = (None if answer is None else answer == digest for answer in (there, now))
            return ServedImage(record, image, served, current)

        return tuple(pool.map(ask, wanted)), tuple(sorted(silent))


def _digest(registry: Registry, reference: Reference, silent: dict[str, None], events: Events) -> str | None:
    """Return the digest that a registry has under a name; "" where it has none, None where it does not answer.

    A registry that cannot be reached is waited for once.
    """
    host = reference.registry
    if host in silent:
        return None
    try:
        return registry.head(reference).digest
    except NoSuchImage:
        return ""
    except ParbakeError as error:
        if silent.setdefault(host) is None:
            events.warn(f"what {host} serves is not known: {error.message}")
        return None

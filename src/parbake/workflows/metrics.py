"""What to watch of a repository of records: which bakes are in use, and whether registries still serve their images.

``measure = records -> what targets hold -> what nodes run -> what registries serve``. Whoever does not answer is told,
and hides nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from parbake import records
from parbake.bakefile import Bakefile
from parbake.core.errors import InputError, NoSuchImage, ParbakeError
from parbake.core.events import Events
from parbake.core.model import Image
from parbake.core.reference import Reference
from parbake.images.registry import Registry
from parbake.records import Record
from parbake.rollouts.protocol import TargetState
from parbake.workflows import rollout
from parbake.workflows.coverage import registry_of
from parbake.workflows.observe import Observed, observe
from parbake.workflows.rollout import TargetReport

type Found = Sequence[tuple[Path, Record]]
"""Records with their paths, oldest first, as ``records.find`` returns them."""


@dataclass(frozen=True, slots=True)
class BakeInUse:
    """An artefact that nodes may run.

    ``known_by`` says how: nodes of the cluster run it, a target holds it, or rollouts would take it.
    """

    record: Record
    known_by: Literal["cluster", "target", "record"]


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
    """What was found out; ``silent`` are those that did not answer, each as (kind, name).

    ``observed`` is what pods did with the bakes (None: not asked, or not answered).
    """

    found: Found
    in_use: tuple[BakeInUse, ...]
    images: tuple[ServedImage, ...] = ()
    silent: tuple[tuple[Literal["target", "registry", "cluster"], str], ...] = ()
    observed: Observed | None = None


def measure(
    found: Found,
    bakefile: Bakefile | None,
    path: Path,
    events: Events,
    *,
    offline: bool = False,
    cluster: str | None = None,
) -> Measured:
    """Find out what is in use, and whether registries still serve it.

    ``bakefile`` is what was read from ``path``: it names the targets, and says how registries are asked. ``cluster`` is
    kubectl's context ("" for the current one) of a cluster whose nodes and pods are looked at as well. With ``offline``
    nobody is asked; raises InputError where a cluster is named all the same.
    """
    if offline and cluster is not None:
        raise InputError("--offline asks nobody, and no cluster either", hint="leave out one of the options")
    if offline:
        return Measured(found, in_use(found))
    reports: tuple[TargetReport, ...] = ()
    if bakefile and bakefile.rollout:
        with events.stage("targets", "Ask the targets what they hold"):
            reports = rollout.status(path)
    for each in reports:
        if each.error:
            events.warn(f"{each.target} did not say what it holds: {each.error}")
    observed = None if cluster is None else _observed(found, cluster, events)
    used = in_use(found, reports, observed.artefacts if observed else ())
    images, quiet = _asked(used, bakefile, events)
    return Measured(
        found,
        used,
        images,
        (
            *(("target", each.target) for each in reports if each.error),
            *(("registry", each) for each in quiet),
            *((("cluster", cluster or "current"),) if cluster is not None and observed is None else ()),
        ),
        observed,
    )


def _observed(found: Found, cluster: str, events: Events) -> Observed | None:
    """Return what pods of a cluster did with the bakes; None, with a warning, where that cannot be said."""
    with events.stage("cluster", "Look at the cluster's nodes and pods"):
        try:
            return observe([record for _, record in found], context=cluster)
        except ParbakeError as error:
            events.warn(f"what the cluster's pods did is not known: {error.message}")
    return None


def in_use(found: Found, reports: Iterable[TargetReport] = (), running: Collection[str] = ()) -> tuple[BakeInUse, ...]:
    """Return what nodes may run, oldest first: what is ``running``, by name, and what targets hold. Pure.

    What they held counts as well while their nodes are on the way. Of a name of which nothing is known to be held it is
    what rollouts take: the newest verified one.
    """
    held = tuple(state for report in reports for state in _held(report))
    used = [
        BakeInUse(record, "cluster" if record.artefact in running else "target")
        for _, record in found
        if record.artefact in running or any(_is(record, state) for state in held)
    ]
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
    wanted = [(each.record, image) for each in used for image in each.record.plan.whole_images]
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

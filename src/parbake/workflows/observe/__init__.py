"""What pods did with a bake, by what their cluster says: who used it, who pulled all the same, and why.

``observe = look -> whose bake does each node run? -> what became of each container there? -> pods, nodes, figures``

It only reads, with ``list``. Deciding is pure (``attribute``); what a kubelet says is in one table (``kubelet``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from statistics import median

from parbake.core.errors import InputError
from parbake.core.timestamps import timestamp
from parbake.records import Record
from parbake.workflows.lint.bakes import of_record
from parbake.workflows.observe.attribute import Attribution, ImageUse, Outcome
from parbake.workflows.observe.seen import Seen, SeenNode, SeenPod, look

__all__ = ["Figures", "ImageUse", "NodeUse", "Observed", "PodUse", "Seen", "SeenNode", "observe", "of_seen"]

_OF_A_POD: tuple[Outcome, ...] = ("pulled", "unknown", "waits", "used")
"""What a pod is, of what its containers are: the first of these that one is."""


@dataclass(frozen=True, slots=True)
class PodUse:
    """What a pod did with the bake, by its containers whose images are in it."""

    pod: SeenPod
    uses: tuple[ImageUse, ...]

    @property
    def outcome(self) -> Outcome:
        """Pulled where one container did, unknown where that of one is, and used where all of them did."""
        return next(each for each in _OF_A_POD if each in {use.outcome for use in self.uses})

    @property
    def deciding(self) -> ImageUse:
        """The container that makes it what it is."""
        return next(use for use in self.uses if use.outcome == self.outcome)

    @property
    def seconds(self) -> float | None:
        """The slowest start of its containers, in seconds; None where that of one is not known."""
        found = [use.seconds for use in self.uses]
        return None if None in found else max(filter(None, found), default=0.0)

    @property
    def name(self) -> str:
        """What people call it."""
        return f"{self.pod.namespace}/{self.pod.name}"


@dataclass(frozen=True, slots=True)
class NodeUse:
    """A node, the artefacts that it runs, and the seconds by which its clock is behind, where that is too much.

    ``without_record`` names an artefact that a rollout has given to it, and whose record is not here.
    """

    node: SeenNode
    artefacts: tuple[str, ...]
    clock: float = 0.0
    without_record: str = ""


@dataclass(frozen=True, slots=True)
class Figures:
    """How pods fared, together: how many of them used the bake, and how long starts took, in seconds (None: unknown).

    ``rate`` is the share of those that used it of those that used it or pulled; None where none did either.
    """

    used: int
    pulled: int
    unknown: int
    waits: int
    median: float | None
    slowest: float | None

    @property
    def rate(self) -> float | None:
        """The hit rate, from 0 to 1."""
        known = self.used + self.pulled
        return self.used / known if known else None

    @classmethod
    def of(cls, pods: Iterable[PodUse]) -> Figures:
        """Count pods."""
        pods = tuple(pods)
        count = {kind: sum(pod.outcome == kind for pod in pods) for kind in _OF_A_POD}
        starts = [pod.seconds for pod in pods if pod.seconds is not None]
        return cls(**count, median=median(starts) if starts else None, slowest=max(starts, default=None))


@dataclass(frozen=True)
class Observed:
    """A cluster at a moment (RFC 3339), as far as these artefacts go: those that nodes of it run.

    ``uses`` are of all containers on those nodes, ``elsewhere`` of containers with images of theirs on nodes without a
    bake that is known. ``hidden`` says in words what could not be read.
    """

    cluster: str
    at: str
    artefacts: tuple[str, ...]
    uses: tuple[ImageUse, ...]
    nodes: tuple[NodeUse, ...]
    elsewhere: tuple[ImageUse, ...]
    hidden: tuple[str, ...] = ()

    @cached_property
    def pods(self) -> tuple[PodUse, ...]:
        """The pods with an image of the bake."""
        return _pods(use for use in self.uses if use.outcome != "other")

    @property
    def others(self) -> tuple[ImageUse, ...]:
        """Containers of those nodes whose image is not in the bake, and was pulled."""
        return tuple(use for use in self.uses if use.outcome == "other" and (use.size or use.pull_seconds))

    def figures(self, artefact: str = "") -> Figures:
        """Count the pods on nodes of one artefact, or of all."""
        return Figures.of(
            each for each in self.pods if not artefact or any(artefact in use.artefacts for use in each.uses)
        )

    @property
    def before(self) -> Figures:
        """The pods with the same images on nodes without a bake; ``used`` are those that found the image there."""
        return Figures.of(_pods(self.elsewhere))

    @property
    def stages(self) -> dict[str, float]:
        """How long it took in the middle, in seconds, from a pod that waits to one that has started, stage by stage.

        What is not known of any pod or node is left out.
        """
        times = [
            (each.node.requested, each.node.launched, each.node.registered, each.node.ready) for each in self.running
        ]
        spans: dict[str, list[float]] = {
            "pod pending": [_between(each.pod.made, each.pod.scheduled) for each in self.pods],
            "node launched": [_between(requested, launched) for requested, launched, _, _ in times],
            "registered": [_between(launched, registered) for _, launched, registered, _ in times],
            "ready": [_between(registered, ready) for _, _, registered, ready in times],
            "pod started": [each.seconds if each.seconds is not None else -1.0 for each in self.pods],
        }
        known = {name: [each for each in found if each >= 0] for name, found in spans.items()}
        return {name: median(found) for name, found in known.items() if found}

    @property
    def gone(self) -> tuple[str, ...]:
        """Artefacts that nodes run and whose records are not here."""
        return tuple(dict.fromkeys(each.without_record for each in self.nodes if each.without_record))

    @property
    def running(self) -> tuple[NodeUse, ...]:
        """The nodes that run one of the artefacts."""
        return tuple(each for each in self.nodes if each.artefacts)


def _between(first: datetime | None, then: datetime | None) -> float:
    """Return the seconds between two times; negative where one is not known."""
    return (then - first).total_seconds() if first and then else -1.0


def _pods(uses: Iterable[ImageUse]) -> tuple[PodUse, ...]:
    by_pod: dict[str, list[ImageUse]] = {}
    for use in uses:
        by_pod.setdefault(use.pod.uid, []).append(use)
    return tuple(sorted((PodUse(found[0].pod, tuple(found)) for found in by_pod.values()), key=lambda each: each.name))


def observe(
    known: Sequence[Record],
    wanted: Sequence[Record] = (),
    *,
    context: str = "",
    selector: str = "",
    of_class: str = "",
) -> Observed:
    """Look at the nodes of a cluster that run one of the ``wanted`` records' artefacts (none: of the ``known`` ones').

    ``selector`` (of labels) chooses nodes that run the wanted one, where the cluster does not say what they run; with
    ``of_class`` only nodes of that node class of Karpenter count. Raises InputError without a record to look for,
    RolloutError where nodes and pods cannot be read.
    """
    if not known and not wanted:
        raise InputError(
            "there is no record to look for", hint="name one, or stand where the artefacts are (`parbake list`)"
        )
    if selector and len(wanted) != 1:
        raise InputError("--nodes says which nodes run one artefact", hint="name its record, and no other")
    seen = look(context, selector)
    if of_class:
        seen = replace(seen, nodes=tuple(node for node in seen.nodes if node.of_class == of_class))
    return of_seen(seen, known, wanted)


def of_seen(seen: Seen, known: Sequence[Record], wanted: Sequence[Record] = ()) -> Observed:
    """Decide what became of pods, by what was seen. Pure."""
    records = {record.key: record for record in (*known, *wanted)}
    bakes = {key: of_record(record) for key, record in records.items()}
    looked_for = [bakes[record.key] for record in wanted or records.values()]
    found = Attribution(seen, tuple(bakes.values()), [bakes[record.key] for record in wanted])
    names = {bake.name for bake in looked_for}
    nodes = tuple(
        NodeUse(
            node,
            tuple(bake.name for bake in found.bakes_of(node) if bake.name in names),
            found.clocks.get(node.name, 0.0),
            found.without_record(node),
        )
        for node in seen.nodes
    )
    return Observed(
        seen.cluster,
        timestamp(seen.at),
        tuple(dict.fromkeys(name for node in nodes for name in node.artefacts)),
        tuple(use for use in found.uses() if names & set(use.artefacts)),
        nodes,
        found.elsewhere(looked_for),
        seen.hidden,
    )

"""``parbake suggest``: what to bake, from what clusters started."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from parbake.bakefile import Bakefile, scaffold
from parbake.core.errors import InputError, ParbakeError
from parbake.core.events import Events
from parbake.core.model import Image, Platform
from parbake.core.reference import Reference
from parbake.core.run import Deadline
from parbake.core.suggestion import Pick, Selection, StartedTogether, choose, most_started
from parbake.images.history import StartHistory
from parbake.images.registry import Layout
from parbake.rollouts.cluster import Cluster
from parbake.workflows.coverage import LookUp, registries

_DAY = 86400.0
_LOOK_EACH = 20.0
"""Seconds between two looks at a cluster: few pods live for less, and a list of all pods is much to ask for."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked for: bytes on the node's disk, the nodes' platform, and of how many days an image is in use."""

    budget: int
    platform: Platform
    recent: float


@dataclass(frozen=True, slots=True)
class Suggestion:
    """What to bake, and beside it what whole images would do of which most nodes start any.

    ``nodes`` are those of the history, ``starts`` how many of them started each image, ``days`` its length (0: not
    known). ``left_out`` says of images why nothing of them is baked, ``notes`` what else does not count.
    """

    choice: Selection
    naive: Selection
    nodes: int
    days: float
    starts: Mapping[Reference, int]
    left_out: Mapping[Reference, str]
    notes: tuple[str, ...]

    @property
    def picks(self) -> tuple[Pick, ...]:
        """What to bake, most started images first."""
        return tuple(sorted(self.choice.picks, key=lambda pick: -self.starts[pick.image.reference]))


def watch(context: str, seconds: float, history: StartHistory, events: Events) -> None:
    """Take in what a cluster tells now, and for some seconds more; raises what ``Cluster`` does."""
    cluster, everywhere = Cluster(context), "--all-namespaces"
    with events.stage("cluster", f"Look at {cluster}" + (f" for {seconds / 60:.0f} minutes" if seconds else "")):
        for event in cluster.items("events", everywhere, "--field-selector=reason=Pulled"):
            history.take(event)
        deadline = Deadline(seconds, "looking at the cluster")
        while True:
            for pod in cluster.items("pods", everywhere):
                history.take(pod)
            if not deadline.left:
                return
            deadline.sleep(min(_LOOK_EACH, deadline.left))


@contextmanager
def known_images(layout: Path | None, bakefile: Bakefile | None, events: Events) -> Iterator[LookUp]:
    """Yield what tells the layers of an image: an OCI layout, of which only documents are read, or registries."""
    if layout is None:
        with registries(bakefile, events) as look_up:
            yield look_up
        return
    held = Layout(layout)

    def of_layout(reference: Reference, platform: Platform) -> Image | str:
        try:
            return held.resolve(reference, platform)
        except ParbakeError as error:
            return error.message

    yield of_layout


def suggest(history: StartHistory, wanted: Wanted, look_up: LookUp, events: Events) -> Suggestion:
    """Choose what to bake; raises InputError where the history tells of no image that is still to be had."""
    last, (_, end) = history.last, history.span
    names = sorted(last, key=str)
    with (
        ThreadPoolExecutor(max_workers=8) as pool,
        events.stage("ask", f"Ask for the layers of {len(names)} {'image' if len(names) == 1 else 'images'}"),
    ):
        answers = dict(zip(names, pool.map(lambda name: look_up(name, wanted.platform), names), strict=True))
    images = {name: each for name, each in answers.items() if not isinstance(each, str)}
    left_out = {name: each for name, each in answers.items() if isinstance(each, str)}
    current = {name for name in images if not last[name] or last[name] >= end - wanted.recent * _DAY}
    left_out |= {
        name: f"not started since {datetime.fromtimestamp(last[name], UTC):%Y-%m-%d}: its layers count where others "
        "have them too"
        for name in images.keys() - current
    }
    nodes = history.nodes
    groups = Counter(frozenset(names & images.keys()) for names in nodes)
    started = [
        StartedTogether(tuple(images[name] for name in sorted(group, key=str)), count)
        for group, count in groups.items()
        if group
    ]
    if not current:
        raise InputError(
            "no image of the history is to be had any more: " + "; ".join(_some(left_out)),
            hint="give a newer history, or a larger --recent",
        )
    return Suggestion(
        choice=choose(started, wanted.budget, current),
        naive=most_started(started, wanted.budget, current),
        nodes=len(nodes),
        days=history.seconds / _DAY,
        starts=Counter(name for names in nodes for name in names),
        left_out=left_out,
        notes=history.notes,
    )


def write(suggestion: Suggestion, folder: Path, *, force: bool) -> tuple[Path, ...]:
    """Write the Bakefile of a suggestion; raises InputError where there is one already, or nothing to bake."""
    entries = [
        scaffold.InitImage(
            pick.image.reference,
            size=pick.image.size,
            uses=(f"Started on {suggestion.starts[pick.image.reference]} of {suggestion.nodes} nodes",),
            layers=0 if pick.whole else pick.layers,
        )
        for pick in suggestion.picks
    ]
    if not entries:
        raise InputError("nothing fits into the budget", hint="give a larger --budget")
    return scaffold.write(folder, entries, today=datetime.now(UTC).date(), force=force)


def _some(left_out: Mapping[Reference, str]) -> Iterable[str]:
    return [f"{name}: {why}" for name, why in list(left_out.items())[:3]]

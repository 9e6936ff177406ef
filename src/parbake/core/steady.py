"""A set of images that follows a cluster, and does not flap. Pure.

Each change of the set costs a bake. So what was in use in one of the last turns still counts as it did then; what is in
the set stays while it is in use; what is new comes beside it where it fits; and something has to go for it only where
the whole then saves clearly more, and not soon after the last time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from parbake.core.model import Image
from parbake.core.reference import Reference
from parbake.core.suggestion import Pick, Selection, StartedTogether, choose, having

MEMORY: Final = 4
"""Turns that count: an image goes when it was absent in so many, and so many pass between two that were pushed out."""
MARGIN: Final = 0.1
"""The share by which another set must save more for an image to be pushed out: counts of pods vary by as much."""

type Counts = Mapping[Reference, tuple[int, ...]]
"""On how many nodes an image ran in the last turns, newest first; nothing of images that ran in none of them."""


@dataclass(frozen=True, slots=True)
class Settled:
    """What a turn makes of a set; ``calm`` turns have passed since an image was pushed out of it (at most MEMORY)."""

    choice: Selection
    calm: int


def remember(before: Counts, now: Mapping[Reference, int]) -> dict[Reference, tuple[int, ...]]:
    """Take a turn into account; what was absent in all turns that count is forgotten."""
    counts = {name: (now.get(name, 0), *before.get(name, ()))[:MEMORY] for name in [*now, *before]}
    return {name: each for name, each in counts.items() if any(each)}


def demand(
    together: Mapping[frozenset[Reference], int], counts: Counts, images: Mapping[Reference, Image]
) -> list[StartedTogether]:
    """Return what nodes start: what runs together now, and beside it what ran on more nodes in turns that count."""
    known = [(tuple(images[name] for name in sorted(group, key=str) if name in images), nodes)
             for group, nodes in together.items()]  # fmt: skip
    earlier = [((images[name],), max(each) - each[0]) for name, each in counts.items() if name in images]
    return [StartedTogether(group, nodes) for group, nodes in [*known, *earlier] if group and nodes]


def settle(kept: Sequence[Pick], calm: int, started: Sequence[StartedTogether], budget: int) -> Settled:
    """Choose the set of a turn: ``kept`` is what it had, without what is gone, ``started`` what nodes start."""
    best, grown = choose(started, budget), having(started, kept)
    if grown.size > budget:  # images have grown under their names
        return Settled(best, 0)
    for pick in best.picks:
        more = having(started, [*grown.picks, pick])
        if more.size <= budget:
            grown = more
    if calm >= MEMORY and best.saved > grown.saved * (1 + MARGIN):
        return Settled(best, 0)
    return Settled(grown, min(calm + 1, MEMORY))

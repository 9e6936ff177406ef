"""Which layers are worth their place in a bake: the chains that save nodes most of what they fetch. Pure.

A node's runtime uses layers of a bake from the bottom up only (``core.coverage``), so a choice is a set of chains with
all that lies below each: a knapsack on a forest of chains that images share. It is solved exactly where that is quick:
prices for a byte of the budget (Lagrange multipliers) bound from above what any choice can save, and a search through
the forest keeps what could still beat the best choice that is known. Where it gives up some of that, ``bound`` says how
far from the best the choice can be at most.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence, Set
from dataclasses import dataclass, field

from parbake.core.model import Image, Layer
from parbake.core.plan import snapshot_size
from parbake.core.reference import Reference

_CLOSE = 0.0005
"""The share by which a choice must be better for anybody to search on."""
_MOST_STATES = 400
"""Partial choices that are kept at a time: enough to be exact for hundreds of images, and seconds at most for any."""
_HALVINGS = 60


@dataclass(frozen=True, slots=True)
class StartedTogether:
    """Images that were started together on a node, and on how many nodes (a rate, where it is no whole number)."""

    images: tuple[Image, ...]
    nodes: float = 1.0


@dataclass(frozen=True, slots=True)
class Pick:
    """What to bake of an image: so many layers from the bottom, or all of them, and then its name as well."""

    image: Image
    layers: int

    @property
    def whole(self) -> bool:
        """Whether nodes fetch nothing of it."""
        return self.layers == len(self.image.layers)


@dataclass(frozen=True, slots=True)
class Selection:
    """What to bake: ``size`` bytes on the node's disk, for ``saved`` of the ``fetched`` bytes that nodes pull without.

    No choice within the budget saves more than ``bound``.
    """

    picks: tuple[Pick, ...]
    size: int
    saved: float
    fetched: float
    bound: float

    @property
    def of_bound(self) -> float:
        """The share that it saves of what the best choice could: at least this much."""
        return self.saved / self.bound if self.bound else 1.0


@dataclass(slots=True)
class _Chain:
    """A layer on those below it: bytes on disk, bytes that nodes fetch of it, and where it stands in the forest."""

    parent: str
    size: int
    worth: float = 0.0
    children: list[str] = field(default_factory=list)


def choose(started: Sequence[StartedTogether], budget: int, bakeable: Collection[Reference] | None = None) -> Selection:
    """Choose what to bake within a budget of bytes on the node's disk.

    ``bakeable`` are the images of which layers may be baked (None: all that were started); others only tell how often
    a layer is fetched, as yesterday's tags do.
    """
    offered = _offered(started, bakeable)
    worth = _worth(started)
    forest: dict[str, _Chain] = {}
    for image in offered:
        below = ""
        for layer in image.layers:
            if layer.chain_id not in forest:
                forest[layer.chain_id] = _Chain(below, snapshot_size(layer), worth[layer.chain_id])
                if below:
                    forest[below].children.append(layer.chain_id)
            below = layer.chain_id
    held, bound = _solve(forest, budget)
    return _choice(held, bound, worth, forest, offered)


def most_started(
    started: Sequence[StartedTogether], budget: int, bakeable: Collection[Reference] | None = None
) -> Selection:
    """Choose as people do: whole images, the one that most nodes start first, each that still fits into the budget."""
    offered = _offered(started, bakeable)
    worth, forest, held, size = _worth(started), dict[str, _Chain](), set[str](), 0
    for image in offered:
        new = {layer.chain_id: _Chain("", snapshot_size(layer)) for layer in image.layers if layer.chain_id not in held}
        more = sum(chain.size for chain in new.values())
        if size + more <= budget:
            forest, size = forest | new, size + more
            held |= new.keys()
    return _choice(held, sum(worth.values()), worth, forest, offered)


def having(started: Sequence[StartedTogether], picks: Sequence[Pick]) -> Selection:
    """Return what a choice that stands already takes and saves."""
    forest = {
        layer.chain_id: _Chain("", snapshot_size(layer)) for pick in picks for layer in pick.image.layers[: pick.layers]
    }
    worth = _worth(started)
    return _choice(forest.keys(), sum(worth.values()), worth, forest, [pick.image for pick in picks])


def _offered(started: Iterable[StartedTogether], bakeable: Collection[Reference] | None) -> tuple[Image, ...]:
    """Return the images that may be baked, those that most nodes start first."""
    images, nodes = dict[Reference, Image](), defaultdict[Reference, float](float)
    for each in started:
        for image in each.images:
            images[image.reference] = image
            nodes[image.reference] += each.nodes
    names = sorted(images, key=lambda name: (-nodes[name], str(name)))
    return tuple(images[name] for name in names if bakeable is None or name in bakeable)


def _worth(started: Iterable[StartedTogether]) -> defaultdict[str, float]:
    """Return the bytes that nodes fetch of each chain: once on each, whatever images of it begin so.

    A blob that an image has twice is fetched as long as its highest place is missing.
    """
    found = defaultdict[str, float](float)
    for each in started:
        top: dict[str, Layer] = {}
        for image in each.images:
            top |= {at.chain_id: at for at in {layer.digest: layer for layer in image.layers}.values()}
        for chain, layer in top.items():
            found[chain] += each.nodes * layer.size
    return found


def _choice(
    held: Set[str], bound: float, worth: dict[str, float], forest: dict[str, _Chain], images: Iterable[Image]
) -> Selection:
    picks, served = list[Pick](), set[str]()
    possible = [Pick(image, sum(layer.chain_id in held for layer in image.layers)) for image in images]
    # Whole ones first: a part of an image that is there whole needs no name of its own. Then the deepest.
    for pick in sorted(possible, key=lambda pick: (not pick.whole, -pick.layers)):
        chains = {layer.chain_id for layer in pick.image.layers[: pick.layers]}
        if pick.whole or not chains <= served:
            picks.append(pick)
            served |= chains
    return Selection(
        picks=tuple(picks),
        size=sum(forest[chain].size for chain in held),
        saved=sum(worth[chain] for chain in held),
        fetched=sum(worth.values()),
        bound=bound,
    )


def _solve(forest: dict[str, _Chain], budget: int) -> tuple[set[str], float]:
    """Return the chains to hold, and what no choice exceeds."""
    order = _preorder(forest)
    held, bound, price = _priced(forest, order, budget)
    best, gains = sum(forest[chain].worth for chain in held), _gains(forest, order, price)
    after = [0.0] * (len(order) + 1)  # what those from a place on can bring at that price, at most
    beyond = _subtree_ends(forest, order)
    for at in reversed(range(len(order))):
        after[at] = gains[order[at]] + after[beyond[at]]
    exact = True
    states: defaultdict[int, list[tuple[int, float, _Taken]]] = defaultdict(list, {0: [(0, 0.0, None)]})
    for at, chain in enumerate(order):
        here = states.pop(at, [])

        def promise(state: tuple[int, float, _Taken], at: int = at) -> float:
            return state[1] + price * (budget - state[0]) + after[at]

        kept, most = [], -1.0
        for state in sorted(here, key=lambda state: (state[0], -state[1])):
            if state[1] > most and promise(state) > best * (1 + _CLOSE):
                kept.append(state)
                most = state[1]
        if len(kept) > _MOST_STATES:
            kept, exact = sorted(kept, key=promise, reverse=True)[:_MOST_STATES], False
        for size, worth, taken in kept:
            states[beyond[at]].append((size, worth, taken))
            if size + forest[chain].size <= budget:
                more: _Taken = (chain, taken)
                states[at + 1].append((size + forest[chain].size, worth + forest[chain].worth, more))
                if worth + forest[chain].worth > best:
                    best, held = worth + forest[chain].worth, _unfolded(more)
    return held, min(bound, best * (1 + _CLOSE)) if exact else bound


type _Taken = tuple[str, _Taken] | None


def _unfolded(taken: _Taken) -> set[str]:
    found = set()
    while taken:
        found.add(taken[0])
        taken = taken[1]
    return found


def _preorder(forest: dict[str, _Chain]) -> list[str]:
    """Return all chains, each directly before what stands on it."""
    found, waiting = [], [chain for chain, each in forest.items() if not each.parent]
    while waiting:
        found.append(chain := waiting.pop())
        waiting += forest[chain].children
    return found


def _subtree_ends(forest: dict[str, _Chain], order: list[str]) -> list[int]:
    """Return for each place of the preorder the first place that is not on top of it."""
    sizes = dict.fromkeys(order, 1)
    for chain in reversed(order):
        if parent := forest[chain].parent:
            sizes[parent] += sizes[chain]
    return [at + sizes[chain] for at, chain in enumerate(order)]


def _gains(forest: dict[str, _Chain], order: list[str], price: float) -> dict[str, float]:
    """Return what each chain with the best of what stands on it brings, where a byte costs ``price``; 0: a loss."""
    found = {chain: forest[chain].worth - price * forest[chain].size for chain in order}
    for chain in reversed(order):
        found[chain] = max(0.0, found[chain])
        if parent := forest[chain].parent:
            found[parent] += found[chain]
    return found


def _priced(forest: dict[str, _Chain], order: list[str], budget: int) -> tuple[set[str], float, float]:
    """Return the best choice that fits among those that a price makes, what none exceeds, and the price of that."""

    def at_price(price: float) -> tuple[set[str], float]:
        gains, held = _gains(forest, order, price), set[str]()
        for chain in order:
            if gains[chain] > 0 and (not forest[chain].parent or forest[chain].parent in held):
                held.add(chain)
        roots = sum(gains[chain] for chain in order if not forest[chain].parent)
        return held, price * budget + roots

    def size(held: set[str]) -> int:
        return sum(forest[chain].size for chain in held)

    held, bound = at_price(0.0)
    if size(held) <= budget:
        return held, bound, 0.0
    low, high = 0.0, max((each.worth / max(1, each.size) for each in forest.values()), default=0.0) + 1.0
    held, best_price = set[str](), high
    for _ in range(_HALVINGS):
        price = (low + high) / 2
        found, most = at_price(price)
        if most < bound:
            bound, best_price = most, price
        if size(found) <= budget:
            held, high = found, price
        else:
            low = price
    return held, bound, best_price

"""Histories of starts with what is known of their best bake: forests of layers that images share.

What they do not play: compressed sizes that differ from one push to the next, and nodes that keep images from before.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

from parbake.core.model import MIB, Image, Layer
from parbake.core.plan import snapshot_size
from parbake.core.suggestion import StartedTogether
from standins.plans import image, layer


def stacked(name: str, *words: str, sizes: dict[str, int]) -> Image:
    """Return an image of these layers, bottom first; ``sizes`` are compressed, unpacked two and a half times that."""
    layers, below = list[Layer](), ""
    for word in words:
        layers.append(layer(word, below=below, size=sizes[word], raw_size=sizes[word] * 5 // 2))
        below += f"{word} "
    return image(f"registry.example/{name}:1", layers=tuple(layers))


def forest(chance: random.Random, images: int, *, words: int, depth: int) -> list[StartedTogether]:
    """Return starts of images whose layers are drawn from a few words, so that many begin alike."""
    sizes = {f"w{number}": chance.randrange(1, 400) * MIB for number in range(words)}
    made = []
    for number in range(images):
        chosen = chance.choices(list(sizes), k=chance.randrange(1, depth + 1))
        made.append(stacked(f"app{number}", *dict.fromkeys(chosen), sizes=sizes))
    started = [StartedTogether((each,), chance.randrange(1, 200)) for each in made]
    return [*started, StartedTogether(tuple(made[:2]), 7)]


def chains(started: list[StartedTogether]) -> dict[str, tuple[str, int, float]]:
    """Return of each chain the one below it, its bytes on disk, and the bytes that nodes fetch of it."""
    found: dict[str, tuple[str, int, float]] = {}
    for each in started:
        seen = set[str]()
        for app in each.images:
            below = ""
            for one in app.layers:
                _, size, worth = found.get(one.chain_id, (below, snapshot_size(one), 0.0))
                found[one.chain_id] = below, size, worth + (0 if one.chain_id in seen else each.nodes * one.size)
                seen.add(one.chain_id)
                below = one.chain_id
    return found


def best_by_trying(started: list[StartedTogether], budget: int) -> float:
    """Return the most bytes that any choice saves, by trying every one: for small forests."""
    known = chains(started)
    best = 0.0
    for count in range(len(known) + 1):
        for held in map(set, itertools.combinations(known, count)):
            whole = all(not known[chain][0] or known[chain][0] in held for chain in held)
            if whole and sum(known[chain][1] for chain in held) <= budget:
                best = max(best, sum(known[chain][2] for chain in held))
    return best


def best_by_table(started: list[StartedTogether], budget: int, *, unit: int = MIB) -> float:
    """Return the same by a table over the budget in whole units: another way to the optimum."""
    known = chains(started)
    children: dict[str, list[str]] = {chain: [] for chain in ("", *known)}
    for chain, (below, _, _) in known.items():
        children[below].append(chain)
    room = budget // unit

    def order(chain: str) -> Iterator[str]:
        for child in children[chain]:
            yield from order(child)
        if chain:
            yield chain

    post = list(order(""))
    sizes = dict.fromkeys(post, 1)
    for chain in post:
        if known[chain][0]:
            sizes[known[chain][0]] += sizes[chain]
    # In postorder a chain that is left out leaves out all above it, which stand directly before it.
    table = [[0.0] * (room + 1)]
    for number, chain in enumerate(post):
        _, size, worth = known[chain]
        need = -(-size // unit)
        left, taken = table[number + 1 - sizes[chain]], table[number]
        table.append([max(left[at], taken[at - need] + worth if at >= need else 0.0) for at in range(room + 1)])
    return table[-1][room]


def shared_bases(chance: random.Random, images: int = 200, *, steep: float = 0.0) -> list[StartedTogether]:
    """Return a month of a company's images: two dozen bases of two layers, and on each services of different size.

    Bases take 200 to 600 MiB, what a service has alone (dependencies, models) 300 MiB to 1.5 GiB, compressed. Services
    start 100 to 300 times; with ``steep``, the number falls with that power of their rank besides, so that what most
    nodes start is most of all starts and any choice finds it.
    """
    sizes, made = dict[str, int](), list[StartedTogether]()
    for number in range(24):
        sizes[f"system{number}"] = chance.randrange(50, 150) * MIB
        sizes[f"runtime{number}"] = chance.randrange(150, 450) * MIB
    for number in range(images):
        base, own = chance.randrange(24), f"service{number}"
        sizes[own] = chance.randrange(300, 1500) * MIB
        app = stacked(own, f"system{base}", f"runtime{base}", own, sizes=sizes)
        made.append(StartedTogether((app,), chance.randrange(100, 300) / (number + 1) ** steep))
    return made

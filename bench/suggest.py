"""Hold what parbake suggests against the best there is, and against what people do by hand. Pure: a minute at most.

    make bench-suggest

Progress goes to standard error. The last line of standard output is one JSON object. ``of_optimum`` is the smallest
share of the best choice that was found, on traces whose best is known: by trying every choice, and by a table over the
budget, another way to the optimum. ``times_naive`` is how many times the seconds for each GiB of a bake of whole
images, those first that most nodes start, are saved (the median of nine traces of 200 images with shared bases and
10 GiB; the least and the most beside it). How much that is depends on how alike the counts of starts are:
``times_naive_by_steepness`` has the same where they fall with that power of an image's rank.

``of_best`` is the least share of the cheapest month that `parbake advise` chooses on 200 random fleets, as
``standins.cold_fleets`` plays them start by start: of all remedies, and of those that are left to nodes without the
hydrate program and without another way to pull. ``of_best_mean`` is the mean.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
from collections.abc import Iterator

from parbake.aws.costs import Prices, advise, known_pulls, load_prices
from parbake.core.model import GIB, MIB
from parbake.core.suggestion import choose, most_started
from standins.cold_fleets import cold_fleet, month
from standins.traces import best_by_table, best_by_trying, forest, shared_bases

_TRACES = 9
_BUDGET = 10 * GIB
_FLEETS = 200
WITHOUT_A_PROGRAM = ("nothing", "rate", "fsr", "gp3")


def _chance(seed: int) -> random.Random:
    return random.Random(seed)  # noqa: S311 - the same traces each time, and no secret


def of_optimum() -> Iterator[float]:
    """Yield the share of the best that is found on each trace."""
    for seed in range(40):
        started = forest(_chance(seed), 5, words=5, depth=3)
        for budget in (200 * MIB, 700 * MIB, 2 * GIB):
            if best := best_by_trying(started, budget):
                yield choose(started, budget).saved / best
    for seed in range(5):
        started = forest(_chance(seed), 100, words=25, depth=6)
        best = best_by_table(started, 4 * GIB)
        yield min(1.0, choose(started, 4 * GIB).saved / best)  # the table rounds sizes up: it may miss some of the best
        print(f"100 images, trace {seed}: {best / GIB:.0f} GiB at best", file=sys.stderr, flush=True)


def times_naive(steep: float) -> list[float]:
    """Return how many times as much is saved for each GiB as by whole images, on each trace, the least first."""
    found = []
    for seed in range(_TRACES):
        started = shared_bases(_chance(seed), steep=steep)
        ours, naive = choose(started, _BUDGET), most_started(started, _BUDGET)
        found.append(ours.saved / ours.size / (naive.saved / naive.size))
    return sorted(found)


def of_best(seed: int, prices: Prices) -> list[float]:
    """Return which share of the cheapest month of a fleet is chosen: of all remedies, and without a program."""
    fleet = cold_fleet(seed, prices)
    names = [each.name for each in advise(fleet.at, fleet.speeds, fleet.prices).remedies]
    months = {name: month(fleet, name, seed, known_pulls()) for name in names}
    found = []
    for only in (names, [name for name in names if name in WITHOUT_A_PROGRAM]):
        chosen = advise(fleet.at, fleet.speeds, fleet.prices, only=only).best.name
        found.append(min(months[name] for name in only) / months[chosen])
    return found


def main() -> None:
    """Measure and print."""
    flat = times_naive(0.0)
    shares = [share for seed in range(_FLEETS) for share in of_best(seed, load_prices())]
    result = {
        "of_optimum": round(min(of_optimum()), 4),
        "times_naive": round(statistics.median(flat), 2),
        "times_naive_range": [round(flat[0], 2), round(flat[-1], 2)],
        "times_naive_by_steepness": {str(at): round(statistics.median(times_naive(at)), 2) for at in (0.0, 0.5, 1.0)},
        "of_best": round(min(shares), 4),
        "of_best_mean": round(statistics.mean(shares), 4),
    }
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()

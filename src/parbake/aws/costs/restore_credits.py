"""Volume creation credits of fast snapshot restore: how many there can be, and how fast they come. Pure.

Each snapshot has a bucket in each zone. It starts with no credits when the restore is enabled, and depends on the size
of the snapshot and not on that of the volumes; a volume that is made without a credit loads lazily. Source: Amazon EBS
user guide, "Volume creation credits".
"""

from __future__ import annotations

from math import ceil

from parbake.core.model import GIB

_MOST = 10.0
_STEPS = 20  # of a credit
_ARRIVALS = 400  # after which the level of a bucket depends on the first one no more
_ONE_AN_HOUR = 1024 * GIB  # the size from which on a bucket holds one credit, and gets one an hour


def refill(snapshot: int) -> float:
    """Return how many credits an hour brings, for a snapshot of volumes of so many bytes."""
    return min(_MOST, _ONE_AN_HOUR / max(snapshot, 1))


def bucket(snapshot: int) -> int:
    """Return how many credits there are at most."""
    return max(1, int(refill(snapshot)))


def share(snapshot: int, launches: float, *, at_once: int, zones: int, hours: float) -> float:
    """Return which share of starts finds a credit, of so many a day, ``at_once`` together at random times.

    ``hours`` is how long a snapshot is in use, from an empty bucket on in each zone. The level of a bucket is followed
    from one arrival to the next, as a distribution over steps of a credit: between two arrivals it gains what an
    exponential time brings. Where that is less than a quarter of a credit, several arrivals count as one.
    """
    most, between = bucket(snapshot), at_once * zones * 24 / launches
    several = ceil(0.25 / (refill(snapshot) * between))
    at_once, between = at_once * several, between * several
    gain = _STEPS * refill(snapshot) * min(between, hours / 2)  # steps until the next arrival, in the mean
    stays = gain / (1 + gain)  # the chance that one step more comes first
    arrivals = hours / between
    level, served, taken, seen = [1.0] + [0.0] * (most * _STEPS), 0.0, 0.0, 0
    for _ in range(min(_ARRIVALS, max(1, round(arrivals)))):
        there, on_its_way = [], 0.0
        for chance in level:
            on_its_way += chance
            there.append(on_its_way * (1 - stays))
            on_its_way *= stays
        there[-1] += on_its_way  # full
        level, taken = [0.0] * len(there), 0.0
        for steps, chance in enumerate(there):
            used = min(at_once, steps // _STEPS)
            taken += chance * used
            level[steps - used * _STEPS] += chance
        served, seen = served + taken, seen + 1
    rest = max(0.0, arrivals - seen)
    return (served + rest * taken) / (seen + rest) / at_once

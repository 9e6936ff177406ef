"""How long a start waits for a cold volume: in closed form, as ``advise`` needs it. Pure.

Both go through the same blocks in the same order: the application, slowly where it touches blocks first and quickly
where they are loaded, and whatever loads them besides, at its own pace. ``make bench-suggest`` plays the same starts
block by block, and says how far apart the two are.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ahead:
    """What loads the blocks of a start besides: when it comes to the first, and when it is done, in seconds.

    Zero is the start of the application; a loader that began earlier has a negative ``begins``.
    """

    begins: float
    ends: float


def seconds_behind(ahead: Ahead, alone: float, behind: float) -> float:
    """Return how long an application takes that needs ``alone`` seconds by itself, and ``behind`` on loaded blocks."""
    takes = ahead.ends - ahead.begins
    if ahead.begins > 0:  # it begins by itself, until it is overtaken
        if ahead.ends >= alone:
            return alone
        overtaken = ahead.begins * alone / (alone - takes)
        return max(ahead.ends, overtaken + (1 - overtaken / alone) * behind)
    if behind >= ahead.ends:  # it never comes as far as the loader
        return behind
    caught_up = -ahead.begins / (takes - behind)  # the share that was done by then
    return min(ahead.ends, caught_up * behind + (1 - caught_up) * alone)

"""Who may take which blocks and inodes: each layer has a part of the volume for itself.

Layers are written side by side, and yet the same layers must come to lie in the same places on every machine. So each
gets a share of what is free before the first byte arrives, by its compressed size. A share that was too small goes on
in what was left over for that, which is handed out strictly in the order of the layers: a layer waits there until all
before it are finished, and then has what they did not need as well.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Final

from parbake.core.errors import DiskFull, Interrupted
from parbake.machine.ext4.superblock import Range, merged

_SPARE: Final = 8
"""One part in so many is kept for shares that are too small."""
# What is handed out of that at once: of the whole, and in units.
_CHUNKS: Final = 256
_LARGEST_CHUNK: Final = 16


class Turnstile:
    """Lets layers at what is left over one after the other, in their order."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._done: set[int] = set()
        self._next = 0
        self._given_up = False

    def wait(self, number: int) -> None:
        """Wait until all layers before this one are finished; raises Interrupted when the work is given up."""
        with self._condition:
            self._condition.wait_for(lambda: self._given_up or self._next >= number)
            if self._given_up:
                raise Interrupted("the fill ended early")

    def finish(self, number: int) -> None:
        """Say that a layer needs nothing more."""
        with self._condition:
            self._done.add(number)
            while self._next in self._done:
                self._next += 1
            self._condition.notify_all()

    def give_up(self) -> None:
        """Wake everyone who waits."""
        with self._condition:
            self._given_up = True
            self._condition.notify_all()


class Overflow:
    """What is left over for all, in chunks of ``chunk`` units; each layer takes of it when it is its turn."""

    def __init__(self, ranges: Sequence[Range], chunk: int, what: str, turnstile: Turnstile) -> None:
        self._ranges = list(reversed(ranges))
        self._chunk, self._what, self._turnstile = chunk, what, turnstile

    def give(self, ranges: Sequence[Range]) -> None:
        """Take back what a zone did not need; it is handed out last."""
        self._ranges[:0] = reversed(ranges)

    def take(self, number: int) -> Range:
        """Wait until it is a layer's turn, and return some units; raises DiskFull, Interrupted."""
        self._turnstile.wait(number)
        if not self._ranges:
            raise DiskFull(f"the volume has no {self._what} left", hint="give the volume a larger size")
        start, end = self._ranges.pop()
        if end - start > self._chunk:
            self._ranges.append((start + self._chunk, end))
            end = start + self._chunk
        return start, end


class Zone:
    """The units (blocks or inodes) that one layer may take, from first to last. Use from one thread at a time."""

    def __init__(self, ranges: Sequence[Range], more: Callable[[], Range]) -> None:
        """``more`` returns further units when there are none left (``Overflow.take``)."""
        self._ranges = list(reversed(ranges))
        self._more = more
        self._at = self._end = 0
        self._taken: list[Range] = []

    def run(self) -> tuple[int, int]:
        """Return the next free unit and how many follow on each other from there (at least one); raises DiskFull."""
        if self._at >= self._end:
            self._at, self._end = self._ranges.pop() if self._ranges else self._more()
        return self._at, self._end - self._at

    def take(self, count: int) -> int:
        """Take ``count`` units of the current run and return the first."""
        start = self._at
        self._at += count
        if self._taken and self._taken[-1][1] == start:
            self._taken[-1] = (self._taken[-1][0], self._at)
        else:
            self._taken.append((start, self._at))
        return start

    def one(self) -> int:
        """Take one unit; raises DiskFull."""
        self.run()
        return self.take(1)

    @property
    def taken(self) -> list[Range]:
        """What was taken, merged."""
        return merged(self._taken)

    @property
    def left(self) -> list[Range]:
        """What was not taken, the next first."""
        rest = [(self._at, self._end)] if self._at < self._end else []
        return [*rest, *reversed(self._ranges)]


def shares(
    free: Sequence[Range], weights: Sequence[int], *, unit: int, what: str, turnstile: Turnstile, dense: bool
) -> tuple[list[list[Range]], Overflow]:
    """Divide what is free by weight, in whole ``unit``s; return the shares, and what is kept for those too small.

    ``free`` is used in the order in which it comes. ``dense``: all is kept, so that one follows on the other.
    """
    total = size_of(free)
    left = 0 if dense else total - total // _SPARE
    chunk = max(unit, min(_LARGEST_CHUNK, total // _CHUNKS // unit) * unit)
    pool = list(reversed(free))
    found = [_cut(pool, left * weight // sum(weights) // unit * unit) for weight in weights]
    return found, Overflow(list(reversed(pool)), chunk, what, turnstile)


def size_of(ranges: Sequence[Range]) -> int:
    """Return how many units ranges have."""
    return sum(end - start for start, end in ranges)


def front(free: Sequence[Range], wanted: int) -> tuple[list[Range], list[Range]]:
    """Return the first ``wanted`` units of ranges, and the rest."""
    pool = list(reversed(free))
    return _cut(pool, wanted), list(reversed(pool))


def _cut(pool: list[Range], wanted: int) -> list[Range]:
    """Take ``wanted`` units from the front of a reversed list of ranges."""
    found: list[Range] = []
    while wanted and pool:
        start, end = pool.pop()
        if end - start > wanted:
            pool.append((start + wanted, end))
            end = start + wanted
        found.append((start, end))
        wanted -= end - start
    return found

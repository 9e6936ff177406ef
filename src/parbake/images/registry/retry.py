"""When to try again: exponential back-off with full jitter, bounded in count and in time.

There is exactly one level of retries: one ``Backoff`` for each document or blob; nothing below it tries again by
itself. Full jitter (a pause anywhere between nothing and the bound) spreads clients that failed together.
"""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass

from parbake.core.errors import RegistryError, Unreachable
from parbake.core.run import sleep

# A pause is slept in slices, so that closing the registry ends it soon.
_SLICE = 0.2
# Whoever delivered this many bytes since the last failure is making progress: the count of tries starts again.
_PROGRESS = 64 << 10
# A refused connection or an unknown host is rarely cured by waiting; a restarting registry is back after a moment.
_HOPELESS_TRIES = 3

_SLOW = "check the network to the registry; a mirror near by helps (registries.HOST.mirrors)"

_random = random.SystemRandom()


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to bear with a registry. Times are in seconds.

    ``tries`` in a row without progress, spread over at most ``total``; pauses grow from ``first`` to ``longest``; a
    server's Retry-After is honoured up to ``longest_asked``. ``connect`` bounds a connection's set-up, ``stall`` each
    wait for bytes; slower than ``rate`` bytes a second over a ``stall`` counts as broken. After the first ``grace``, a
    document or a blob must have come with ``average`` bytes a second over all its connections and pauses: so it has a
    last moment, which follows from its size. Four layers at once over a line of 1 Mbit/s come that fast.
    """

    tries: int = 6
    total: float = 180.0
    first: float = 0.5
    longest: float = 15.0
    longest_asked: float = 60.0
    connect: float = 10.0
    stall: float = 30.0
    rate: int = 4096
    grace: float = 300.0
    average: int = 32 << 10


SHORT = Patience(tries=1, total=10, connect=3, stall=5)
"""For what a command would like to say, and does without where a registry is slow."""


class Transient(Exception):
    """A failure that may pass; never leaves this package. ``error`` is what to raise when it does not.

    ``after`` is the server's Retry-After in seconds; ``hopeless`` failures are tried less often.
    """

    def __init__(self, error: RegistryError, *, after: float | None = None, hopeless: bool = False) -> None:
        super().__init__(error.message)
        self.error = error
        self.after = after
        self.hopeless = hopeless


class Backoff:
    """Counts failures of one undertaking and sleeps between them. ``closing`` ends all waiting."""

    def __init__(self, patience: Patience, closing: threading.Event) -> None:
        self._patience = patience
        self._closing = closing
        self._failures = 0
        self._received = 0
        self._started = time.monotonic()

    def progress(self, received: int) -> None:
        """Say that ``received`` more bytes arrived."""
        self._received += received
        if self._received >= _PROGRESS:
            self._failures = 0
            self._started = time.monotonic()

    def wait(self, failure: Transient) -> None:
        """Sleep before the next try; raises the failure's error when there is to be none."""
        self._failures += 1
        self._received = 0
        patience = self._patience
        tries = min(patience.tries, _HOPELESS_TRIES) if failure.hopeless else patience.tries
        bound = min(patience.longest, patience.first * 2.0 ** (self._failures - 1))
        pause = _random.uniform(0, bound)
        if failure.after is not None:
            pause = min(failure.after, patience.longest_asked) + _random.uniform(0, patience.first)
        left = self._started + patience.total - time.monotonic()
        if self._failures >= tries or pause > left:
            raise failure.error from failure.__cause__
        self._sleep(pause)

    def _sleep(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if self._closing.is_set():
                raise Unreachable("the registry's connections were closed")
            sleep(min(left, _SLICE))


class Meter:
    """Watches that the bytes of one thing keep coming, at first and in all.

    Only time spent waiting for them counts, a slow reader is not a fault.
    """

    def __init__(self, patience: Patience, what: str) -> None:
        self._patience = patience
        self._what = what
        self._waited = self._waited_in_all = 0.0
        self._received = self._received_in_all = 0

    def restart(self, seconds: float) -> None:
        """Say that ``seconds`` went by until a (new) connection was there; raises Unreachable as ``add`` does."""
        self._waited = 0.0
        self._received = 0
        self._count(0, seconds)

    def skipped(self, count: int) -> None:
        """Say that ``count`` of the bytes that arrived had been there before."""
        self._received_in_all -= count

    def _count(self, received: int, seconds: float) -> None:
        self._waited_in_all += seconds
        self._received_in_all += received
        late = self._waited_in_all - self._patience.grace
        if late > 0 and self._received_in_all < self._patience.average * late:
            raise Unreachable(
                f"{self._what}: {self._received_in_all} bytes in {self._waited_in_all:.0f} s is too slow to continue",
                hint=_SLOW,
            )

    def add(self, received: int, seconds: float) -> None:
        """Count ``received`` bytes that took ``seconds``.

        Raises Transient when that is too slow for too long, Unreachable when all has been too slow.
        """
        self._count(received, seconds)
        self._waited += seconds
        self._received += received
        if self._waited < self._patience.stall:
            return
        if self._received < self._patience.rate * self._waited:
            speed = self._received / self._waited
            raise Transient(Unreachable(f"{self._what}: only {speed:.0f} bytes/s arrive", hint=_SLOW))
        self._waited = 0.0
        self._received = 0

"""The model of a cold volume: when is what answered? Pure: time is what the caller says, so nothing here waits.

Figures are those of public reports, and not of AWS:

- The unit of loading is a block of 512 KiB. The first touch of any byte of it loads all of it.
- A first touch takes ``latency`` (a median; single ones scatter). At most ``in_flight`` are under way, the others wait
  their turn; together they get ``rate`` MiB/s. First come, first served; who asks for what is under way waits with it.
- All that is read and written gets 125 MiB/s, as a gp3 volume gives without extra charge.
- A provisioned rate loads blocks in their order from the beginning on, beside what is touched.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from parbake.coldstart.trace.data import BLOCK
from parbake.core.model import MIB

HOT_RATE = 125  # MiB/s


@dataclass(frozen=True)
class Profile:
    """How a cold volume behaves: seconds of a first touch, how many at a time, MiB/s of all together."""

    name: str
    latency: float
    in_flight: int
    rate: float


PROFILES = {
    "mild": Profile("mild", 0.020, 32, 80.0),
    "harsh": Profile("harsh", 0.035, 16, 40.0),
}


@dataclass(slots=True)
class _Request:
    """What waits for ``missing`` blocks, then for its turn to be transferred: bytes, and what to call at the end."""

    missing: int
    size: int
    answer: Callable[[], None]


class Lazy:
    """Decides when requests are answered. Times are in seconds; ``began`` is when a provisioned rate (MiB/s) begins.

    ``cold`` are the blocks that are not loaded, in the order of a provisioned rate; all others are. ``loaded`` counts
    what was fetched by touches, ``most`` is how many were under way together.
    """

    def __init__(self, profile: Profile | None, cold: Sequence[int], *, provisioned: float = 0.0) -> None:
        self._profile, self._provisioned = profile, provisioned
        self._place = {block: place for place, block in enumerate(cold)} if profile else {}
        self.began = 0.0
        self.loaded = self.most = 0
        self._waiting: dict[int, list[_Request]] = {}  # for blocks that are under way or will be
        self._queue: deque[int] = deque()
        self._under_way = 0
        self._loads_until = self._transfers_until = 0.0  # when the two rates have capacity again
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._number = itertools.count()

    def ask(self, now: float, blocks: Iterable[int], size: int, answer: Callable[[], None]) -> None:
        """Take a request for ``size`` bytes that needs some blocks; ``answer`` is called when it is done."""
        missing = [block for block in blocks if self._cold(block, now)]
        request = _Request(len(missing), size, answer)
        for block in missing:
            if (waiting := self._waiting.get(block)) is None:
                waiting = self._waiting[block] = []
                self._queue.append(block)
            waiting.append(request)
        if not missing:
            self._transfer(request, now)
        self._load(now)

    def run(self, now: float) -> float | None:
        """Do what is due; return when something is again, None when nothing is under way.

        What is done late (the machine is busy) counts from when it was due: nothing adds up.
        """
        while self._events and self._events[0][0] <= now:
            at, _, do = heapq.heappop(self._events)
            do(at)
        return self._events[0][0] if self._events else None

    def _cold(self, block: int, now: float) -> bool:
        place = self._place.get(block)
        return place is not None and place * BLOCK >= self._provisioned * MIB * (now - self.began)

    def _load(self, now: float) -> None:
        profile = self._profile
        while profile and self._queue and self._under_way < profile.in_flight:
            block = self._queue.popleft()
            self._under_way += 1
            self.most = max(self.most, self._under_way)
            self._loads_until = max(self._loads_until, now) + BLOCK / MIB / profile.rate
            scatter = random.Random(block).lognormvariate(0.0, 0.3)  # noqa: S311 - the same in every run
            ready = max(now + profile.latency * scatter, self._loads_until)
            if self._provisioned:
                ready = min(ready, max(now, self.began + self._place[block] * BLOCK / MIB / self._provisioned))
            self._at(ready, lambda at, block=block: self._is_loaded(block, at))  # type: ignore[misc]

    def _is_loaded(self, block: int, now: float) -> None:
        del self._place[block]
        self._under_way -= 1
        self.loaded += 1
        for request in self._waiting.pop(block):
            request.missing -= 1
            if not request.missing:
                self._transfer(request, now)
        self._load(now)

    def _transfer(self, request: _Request, now: float) -> None:
        self._transfers_until = max(self._transfers_until, now) + request.size / MIB / HOT_RATE
        self._at(self._transfers_until, lambda _: request.answer())

    def _at(self, when: float, do: Callable[[float], None]) -> None:
        heapq.heappush(self._events, (when, next(self._number), do))

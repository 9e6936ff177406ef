"""The model of a cold volume: when is what answered? Pure: time is what the caller says, so nothing here waits.

First touches, by public reports, and not by AWS:

- The unit of loading is a block of 512 KiB. The first touch of any byte of it loads all of it.
- A first touch takes ``latency`` (a median; single ones scatter). At most ``in_flight`` are under way, the others wait
  their turn; together they get ``rate`` MiB/s. First come, first served; who asks for what is under way waits with it.
- A provisioned rate loads blocks in their order from the beginning on, beside what is touched.

Reads and writes of what is loaded, by what the volume is sold as (``Drive``; AWS, "Amazon EBS volume types" and
"Amazon EBS I/O characteristics"):

- Each takes the drive's ``latency`` (a median; single ones scatter), however many are under way.
- All together get so many operations a second, of up to 256 KiB each, and so many MiB/s.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from parbake.core.model import EBS_BLOCK, MIB

_OPERATION = 256 << 10  # bytes: a larger request counts as several operations (AWS, "Amazon EBS I/O characteristics")
_SCATTER = 0.3  # of the latencies' logarithm


@dataclass(frozen=True)
class Drive:
    """How a volume answers what is loaded: seconds of a read, operations a second, MiB/s.

    With ``then`` it ``lasts`` so many seconds, from the volume's attachment on, and is another one from there: what is
    under way is finished as it was begun. That EBS changes at once, and first touches not at all, nobody has seen.
    """

    name: str
    latency: float
    operations: float
    rate: float
    lasts: float = 0.0
    then: Drive | None = None

    def at(self, age: float) -> Drive:
        """Return what it is after so many seconds: one that is modified is another when that has been done."""
        return self if self.then is None or age < self.lasts else self.then.at(age - self.lasts)


_GP3 = Drive("gp3", 0.0007, 3_000, 125.0)
DRIVES = {
    "gp3": _GP3,
    "gp3-raised": Drive("gp3-raised", 0.0007, 16_000, 1_000.0),
    "gp3-boost": Drive("gp3-boost", 0.0007, 16_000, 1_000.0, lasts=60.0, then=_GP3),
    "io2": Drive("io2", 0.0003, 16_000, 1_000.0),
}


@dataclass(frozen=True)
class Profile:
    """How a volume behaves: seconds of a first touch, how many at a time, MiB/s of all together; and when loaded."""

    name: str
    latency: float
    in_flight: int
    rate: float
    drive: Drive = DRIVES["gp3"]


PROFILES = {
    "mild": Profile("mild", 0.020, 32, 80.0),
    "harsh": Profile("harsh", 0.035, 16, 40.0),
}


@dataclass(slots=True)
class _Request:
    """What waits for ``missing`` blocks, then for its turn to be transferred: bytes, and what to call at the end.

    It is answered at ``earliest`` (seconds) or later.
    """

    missing: int
    size: int
    earliest: float
    answer: Callable[[], None]


class Lazy:
    """Decides when requests are answered. Times are in seconds; ``began`` is when the volume is attached, and a
    provisioned rate (MiB/s) begins.

    ``cold`` are the blocks that are not loaded, in the order of a provisioned rate; all others are. ``loaded`` counts
    what was fetched by touches, ``most`` is how many were under way together, ``asked`` how many requests came.
    """

    def __init__(self, profile: Profile, cold: Sequence[int], *, provisioned: float = 0.0) -> None:
        self._profile, self._provisioned = profile, provisioned
        self._place = {block: place for place, block in enumerate(cold)}
        self.began = 0.0
        self.loaded = self.most = self.asked = 0
        self._waiting: dict[int, list[_Request]] = {}  # for blocks that are under way or will be
        self._queue: deque[int] = deque()
        self._under_way = 0
        self._loads_until = self._transfers_until = self._operates_until = 0.0  # when the rates have capacity again
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._number = itertools.count()

    def ask(self, now: float, blocks: Iterable[int], size: int, answer: Callable[[], None]) -> None:
        """Take a request for ``size`` bytes that needs some blocks; ``answer`` is called when it is done."""
        missing = [block for block in blocks if self._cold(block, now)]
        scatter = random.Random(self.asked).lognormvariate(0.0, _SCATTER)  # noqa: S311 - the same in every run
        self.asked += 1
        request = _Request(len(missing), size, now + self._drive(now).latency * scatter, answer)
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
        return place is not None and place * EBS_BLOCK >= self._provisioned * MIB * (now - self.began)

    def _load(self, now: float) -> None:
        profile = self._profile
        while self._queue and self._under_way < profile.in_flight:
            block = self._queue.popleft()
            self._under_way += 1
            self.most = max(self.most, self._under_way)
            self._loads_until = max(self._loads_until, now) + EBS_BLOCK / MIB / profile.rate
            scatter = random.Random(block).lognormvariate(0.0, _SCATTER)  # noqa: S311 - the same in every run
            ready = max(now + profile.latency * scatter, self._loads_until)
            if self._provisioned:
                ready = min(ready, max(now, self.began + self._place[block] * EBS_BLOCK / MIB / self._provisioned))
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

    def _drive(self, now: float) -> Drive:
        return self._profile.drive.at(now - self.began)

    def _transfer(self, request: _Request, now: float) -> None:
        drive = self._drive(now)
        self._transfers_until = max(self._transfers_until, now) + request.size / MIB / drive.rate
        operations = max(1, -(-request.size // _OPERATION))
        self._operates_until = max(self._operates_until, now) + operations / drive.operations
        ready = max(request.earliest, self._transfers_until, self._operates_until)
        self._at(ready, lambda _: request.answer())

    def _at(self, when: float, do: Callable[[float], None]) -> None:
        heapq.heappush(self._events, (when, next(self._number), do))

"""A month of starts from cold volumes, played one after the other: what the model of `parbake advise` is held against.

Nothing here knows the formulas of ``parbake.aws.costs``: nodes come in bursts at random times, each start reads its
blocks in turn while a program or EBS loads others, credits of fast snapshot restore are taken one by one, and bills are
added up by the second with their minimums. What both take for granted are the figures of ``Speeds``, ``VolumeKind`` and
``Prices``; that the hot blocks lie last and in the order of the start, as parbake lays them out; and that a page that
the node's program has read is in memory when the application asks for it.

What it does not play: the application's own time between two reads, volumes that share an instance's throughput, and
nodes that are kept for the next pod.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil, inf

from parbake.aws.costs import DRIVES, Prices, Pull, Situation, Speeds, VolumeKind
from parbake.aws.costs.rates import kind_of
from parbake.aws.limits import GP3, MOST_GP3, RAISED_GP3, Gp3
from parbake.core.model import GIB, MIB

_PIECES = 400  # of a start that are played: some blocks each
_STARTS = 4  # that are played of each kind; a launch is like one of them
_LAUNCHES = 3000  # that are played at least, bake after bake
_HOURS_A_MONTH = 730
_DAYS = 30


@dataclass(frozen=True, slots=True)
class ColdFleet:
    """What nodes start, how often, how volumes behave and what it costs."""

    at: Situation
    speeds: Speeds
    prices: Prices

    @property
    def hot(self) -> int:
        """The bytes that a start reads, in whole blocks: no more than there are."""
        return min(self.at.hot, self.at.data)


class _Loader:
    """What loads hot pieces in order, each in its time, from ``begins`` on (seconds since the attachment).

    A piece takes ``step`` seconds more into memory; infinite: nothing gets there.
    """

    def __init__(self, begins: float, takes: Sequence[float], step: float) -> None:
        self.takes, self.step = takes, step
        self.clock = self.before = begins
        self.memory = 0.0

    def load(self, piece: int) -> float:
        """Return when the next piece would be loaded."""
        self.before, self.clock = self.clock, self.clock + self.takes[piece]
        return self.clock

    def remember(self, loaded: float) -> float:
        """Return when that piece is in memory; ``loaded`` is earlier than said where the application touched it."""
        self.clock = max(self.before, min(self.clock, loaded))  # what is there already is passed over
        self.memory = max(self.memory, self.clock) + self.step
        return self.memory


def _noise(chance: random.Random, mean: float, times: float) -> float:
    """Return the sum of so many waits of a mean, each twice or half of it now and then."""
    return max(0.0, chance.gauss(mean * times, 0.5 * mean * max(times, 1.0) ** 0.5)) if mean and times else 0.0


def start(
    fleet: ColdFleet, name: str, chance: random.Random, drive: VolumeKind, *, restored: bool = False
) -> tuple[float, float]:
    """Play one start; return by how many seconds it is longer than from memory, and when the last piece is there."""
    at, speeds = fleet.at, fleet.speeds
    blocks = fleet.hot / at.block
    pieces = max(1, min(_PIECES, round(blocks)))
    each, size = blocks / pieces, fleet.hot / MIB / pieces
    own = at.reads / pieces * max(drive.latency, 1 / drive.operations)
    own = max(own, min(at.read, fleet.hot) / MIB / pieces / drive.throughput)
    loader = _loader(fleet, name, chance, drive, pieces, size, each)
    now = at.boot
    for piece in range(pieces):
        there = loader.load(piece) if loader else inf
        if restored:
            there = 0.0
        there = min(there, now + _noise(chance, speeds.latency, each)) if there > now else there
        memory = loader.remember(there) if loader else inf
        if memory > now:
            now = min(max(now, there) + own * chance.uniform(0.9, 1.1), memory)
    return now - at.boot, loader.memory if loader else 0.0


def _loader(
    fleet: ColdFleet, name: str, chance: random.Random, drive: VolumeKind, pieces: int, size: float, each: float
) -> _Loader | None:
    cold = (fleet.at.data - fleet.hot) / MIB  # what lies before the hot blocks
    rate = fleet.speeds.cold_rate
    if name in {"hydrate", "hydrate-prefetch", "boost"}:
        takes = [max(size / rate, _noise(chance, fleet.speeds.latency, each) / 32) for _ in range(pieces)]
        step = min(fleet.at.read, fleet.hot) / MIB / pieces / drive.throughput
        return _Loader(0.0, takes, inf if name == "hydrate" else step)
    if name == "rate":
        return _Loader(cold / 300, [size / 300] * pieces, inf)
    if name == "full-read":
        return _Loader(cold / rate, [size / rate] * pieces, inf)
    return None


def _bursts(at: Situation, days: float, chance: random.Random) -> Iterator[list[tuple[float, int]]]:
    """Yield when nodes start, bake after bake: the hours since it was handed out, and the zone; ``burst`` at once."""
    while True:
        now, found = 0.0, []
        while (now := now + chance.expovariate(at.launches / at.burst / 24)) <= days * 24:
            found.append((now, chance.randrange(at.zones)))
        yield found


def month(fleet: ColdFleet, name: str, seed: int, pulls: Sequence[Pull] = ()) -> float:
    """Return what a remedy costs a month, nodes that wait included, on the starts of a seed."""
    size = ceil(fleet.at.volume / GIB)
    pull = next((each for each in pulls if each.name == name), None)
    if name == "boost":  # of two as advise has them
        return min(_month(fleet, name, seed, pull, gp3.within(size)) for gp3 in (RAISED_GP3, MOST_GP3))
    return _month(fleet, name, seed, pull, RAISED_GP3.within(size))


def _month(fleet: ColdFleet, name: str, seed: int, pull: Pull | None, raised: Gp3) -> float:
    at, prices = fleet.at, fleet.prices
    chance = random.Random(f"{seed} {name}")
    drive = kind_of(raised) if name in {"gp3", "boost"} else DRIVES[at.drive]
    if pull:
        cold = warm = [(at.transfer / 1_000_000 / pull.fastest, 0.0)]
    else:
        cold, warm = (
            [start(fleet, name, chance, drive, restored=each) for _ in range(_STARTS)] for each in (False, True)
        )
    size = (at.snapshot or at.volume) / GIB
    most, hourly = max(1, int(min(10, 1024 / size))), min(10, 1024 / size)
    days = _DAYS / max(1.0, at.bakes)
    paid, count = 0.0, 0
    for bursts in _bursts(at, days, random.Random(seed)):
        balance, asked = [0.0] * at.zones, [0.0] * at.zones
        for now, zone in bursts:
            balance[zone] = min(most, balance[zone] + (now - asked[zone]) * hourly)
            asked[zone] = now
            for _ in range(at.burst):
                credit = name == "fsr" and balance[zone] >= 1
                balance[zone] -= credit
                seconds, done = chance.choice(warm if credit else cold)
                paid += seconds / 3600 * prices.node_hour.value
                if name == "boost":
                    paid += max(60, done, at.boot) / 3600 * _raised_hour(raised, prices)
                paid += _charged(fleet, name, chance, RAISED_GP3 if pull and pull.raised else raised)
        count += len(bursts) * at.burst
        if count >= _LAUNCHES:
            break
    month = paid / count * at.launches * _DAYS
    if name == "fsr":
        month += _DAYS * 24 * at.zones * prices.fsr_hour.value
    if not pull:
        month += at.data / GIB * prices.snapshot_gib_month.value
        month += at.bakes * at.bake_minutes / 60 * prices.node_hour.value
    return month


def _charged(fleet: ColdFleet, name: str, chance: random.Random, raised: Gp3) -> float:
    """Return what the volume of one node costs besides; no two nodes live alike, and EBS bills a minute at least."""
    if name == "rate":
        return ceil(fleet.at.volume / GIB) * fleet.prices.initialization_gib.value
    if fleet.at.drive == "gp3" and (name == "gp3" or name.startswith("pull-soci")):
        return max(1 / 60, chance.expovariate(1 / fleet.at.lifetime)) * _raised_hour(raised, fleet.prices)
    return 0.0


def _raised_hour(raised: Gp3, prices: Prices) -> float:
    operations = (raised.iops - GP3.iops) * prices.gp3_iops_month.value
    return (operations + (raised.throughput - GP3.throughput) * prices.gp3_throughput_month.value) / _HOURS_A_MONTH


def cold_fleet(seed: int, prices: Prices) -> ColdFleet:
    """Return a fleet of a seed: from a small service to a large model, from a start a day to thousands."""
    chance = random.Random(seed)
    volume = round(10 ** chance.uniform(0.7, 2.5)) * GIB
    data = max(200 * MIB, int(volume * chance.uniform(0.1, 0.95)))
    hot = int(data * 10 ** chance.uniform(-2, -0.1))
    read = int(hot * chance.uniform(0.3, 1.0))
    at = Situation(
        volume=volume,
        data=data,
        hot=hot,
        read=read,
        reads=read // round(10 ** chance.uniform(4.3, 5.3)),
        transfer=int(data * chance.uniform(0.25, 0.6)),
        launches=10 ** chance.uniform(0, 3.5),
        zones=chance.randint(1, 4),
        boot=chance.uniform(0, 40),
        burst=round(10 ** chance.uniform(0, 1.6)),
        lifetime=10 ** chance.uniform(-0.5, 2),
        drive=chance.choices(("gp3", "gp3-raised", "io2"), (8, 1, 1))[0],
        bakes=round(10 ** chance.uniform(0, 1.3)),
        bake_minutes=chance.uniform(2, 30),
    )
    latency = 10 ** chance.uniform(-2.2, -1.2)
    speeds = Speeds(latency=latency, cold_rate=at.block / MIB / latency * chance.uniform(1.5, 10))
    hour = prices.node_hour.model_copy(update={"value": round(10 ** chance.uniform(-1.5, 1.5), 3)})
    return ColdFleet(at, speeds, prices.model_copy(update={"node_hour": hour}))

"""Which remedy against cold blocks is the cheapest, or whether to bake at all: time and monthly cost of each. Pure.

The model, which ``bench/ebs-check`` verifies on a real volume: a first touch of a block of 512 KiB takes ``latency``;
an application that starts touches about one block at a time; a reader with many requests in flight is limited by
``cold_rate``; what happens before the runtime starts (``boot``) hides what is done meanwhile. What is loaded is read
once more, one read after the other, unless it is in memory by then (``VolumeKind``). Facts of AWS: the credits of fast
snapshot restore (``restore_credits``); the initialization rate is at most 300 MiB/s (Amazon EBS user guide).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from parbake.aws.costs.prices import Prices
from parbake.aws.costs.rates import DRIVES, Pull, PullName, Speeds, VolumeKind, kind_of, known_pulls
from parbake.aws.costs.restore_credits import bucket, refill, share
from parbake.aws.limits import GP3, MOST_GP3, RAISED_GP3, Gp3
from parbake.core.model import GIB, MIB, Frozen

Name = (
    Literal["nothing", "hydrate", "hydrate-prefetch", "boost", "rate", "fsr", "gp3", "full-read", "headroom", "bake"]
    | PullName
)
_DAYS = 30
_HOURS = 24
_HOURS_A_MONTH = 730  # as AWS counts
_RATE = 300  # MiB/s: the highest initialization rate
_IN_FLIGHT = 32
_EQUAL = 0.5  # seconds that nobody notices
_ALIKE, _SMALL = 0.02, 0.2  # the share of a month's bill that nobody notices, and the money
_LEAST_BILLED = 60  # seconds (Amazon EBS pricing: by the second, at least a minute)
# Of remedies that are alike the first: what needs nothing at all, then what needs a program, then what is paid for.
_SIMPLEST = (
    "pull", "nothing", "hydrate-prefetch", "hydrate", "pull-soci-bottlerocket", "pull-soci-al2023", "boost", "rate",
    "full-read", "gp3", "fsr",
)  # fmt: skip


class Situation(Frozen):
    """What is started, how often and where. Bytes and seconds.

    ``volume`` is the provisioned size, ``snapshot`` that of the snapshot (0: the same), ``data`` what of it is not a
    hole, ``hot`` what a start reads in whole blocks, ``read`` what it reads of them, in so many ``reads``, ``transfer``
    what a pull fetches. ``boot`` is the time between the volume's attachment and the runtime's start, ``burst`` how
    many nodes start at once in a zone, ``lifetime`` how many hours a node lives, ``drive`` which volume it has anyway
    (``DRIVES``). ``bakes`` are those of a month, each of so many minutes on a machine that costs what a node does.
    """

    volume: int = Field(gt=0)
    snapshot: int = Field(default=0, ge=0)
    data: int = Field(gt=0)
    hot: int = Field(ge=0)
    read: int = Field(default=0, ge=0)
    reads: int = Field(default=0, ge=0)
    transfer: int = Field(ge=0)
    launches: float = Field(gt=0)
    zones: int = Field(default=3, gt=0)
    boot: float = Field(default=20.0, ge=0)
    burst: int = Field(default=1, gt=0)
    lifetime: float = Field(default=8.0, gt=0)
    drive: Literal["gp3", "gp3-raised", "io2"] = "gp3"
    bakes: float = Field(default=4.0, ge=0)
    bake_minutes: float = Field(default=10.0, ge=0)
    block: int = Field(default=512 << 10, gt=0)


class Remedy(Frozen):
    """One way: seconds that it adds to a start, and money a month: for itself, for nodes that wait, and both."""

    name: Name
    seconds: float
    cost: float
    waiting: float
    note: str = ""

    @property
    def total(self) -> float:
        """What it costs a month in all."""
        return round(self.cost + self.waiting, 2)

    @property
    def bakes(self) -> bool:
        """Whether anything is baked for it."""
        return not self.name.startswith(("pull", "headroom"))


class StreamedFile(Frozen):
    """A file that is better fetched by whoever reads it than baked: it is read once, whole. Size in bytes.

    ``seconds`` is what a snapshot takes at least to deliver it, ``cost`` what it costs a month to keep it in one.
    """

    path: str
    size: int
    seconds: float
    cost: float


class Advice(Frozen):
    """The remedies, cheapest first, why the first one is recommended, and what that rests on (``MeasuredStarts``).

    ``stream`` are files that should not be baked at all, the largest first.
    """

    remedies: tuple[Remedy, ...]
    reason: str
    basis: str = ""
    stream: tuple[StreamedFile, ...] = ()

    @property
    def best(self) -> Remedy:
        """The remedy that is recommended."""
        return self.remedies[0]


def advise(
    at: Situation, speeds: Speeds, prices: Prices, pulls: Sequence[Pull] = (), *, only: Collection[str] = ()
) -> Advice:
    """Work out every remedy and recommend the one that costs least in all; of two that are alike, the simpler one.

    ``pulls`` are the kinds that a bake is compared with; without any, those that figures were published of. ``only``
    are the remedies that there can be (empty: any).
    """
    at = at.model_copy(update={"hot": min(at.hot, at.data)})  # whole blocks may be more than the data: holes are free
    found = [*_baked(at, speeds, prices), *_pulled(at, prices, pulls or known_pulls())]
    order = sorted((each for each in found if not only or each.name in only), key=lambda remedy: remedy.total)
    alike = {remedy.name: remedy for remedy in order if _alike(remedy, order[0], at, prices)}
    simplest = next(alike[name] for name in _SIMPLEST if name in alike)
    order.remove(simplest)
    return Advice(remedies=(simplest, *order), reason=_reason(simplest, found))


def to_stream(read_whole: Mapping[str, int], prices: Prices) -> tuple[StreamedFile, ...]:
    """Return what it costs to bake files, by path with their bytes, that each start reads once and whole. Pure.

    A snapshot delivers 300 MiB/s at most, whatever is paid (Amazon EBS user guide, "volume initialization"); object
    storage delivers to one node what its network takes, and the bytes are needed in memory alone.
    """
    month = prices.snapshot_gib_month.value
    largest = sorted(read_whole.items(), key=lambda item: (-item[1], item[0]))
    return tuple(
        StreamedFile(path=path, size=size, seconds=size / (_RATE * MIB), cost=size / GIB * month)
        for path, size in largest
    )


def estimate(
    launches: float, pulls: Mapping[PullName, float], started: float, headroom: float, bake_hours: float, prices: Prices
) -> Advice:
    """Compare, before anything is baked, pulls of so many seconds, nodes kept running to hide them, and a bake.

    ``launches`` are a day's, ``started`` the seconds until a start from the bake, ``headroom`` the count of nodes that
    are kept for pods to come, ``bake_hours`` how long a month a machine with the price of a node bakes.
    """
    hour, later = prices.node_hour.value, "once it is baked, `parbake advise RECORD` compares the ways to start from it"
    found = [_remedy(name, seconds, 0.0, launches, prices, "no bake") for name, seconds in pulls.items()]
    if headroom:
        note = f"no bake: {headroom:g} nodes more round the clock, as long as they are enough to hide every pull"
        found.append(_remedy("headroom", 0.0, headroom * hour * _HOURS * _DAYS, launches, prices, note))
    pull, baked = found[0], _remedy("bake", started, bake_hours * hour, launches, prices, later)
    best, *others = sorted([*found, baked], key=lambda remedy: remedy.total)  # the first of those that are alike
    reason = f"pulls waste {launches * pull.seconds / 60:,.1f} node-minutes a day, {pull.total:,.2f} a month"
    if best is baked:
        reason += f", of which a bake saves {pull.total - baked.total:,.2f}, its own cost deducted"
    else:
        reason += f"; with a bake it is {baked.total:,.2f}, with {best.name} {best.total:,.2f}: do not bake this"
    return Advice(remedies=(best, *others), reason=reason)


def raised_hour(gp3: Gp3, prices: Prices) -> float:
    """Return what it costs an hour to give a gp3 volume more than it has by itself."""
    month = (gp3.iops - GP3.iops) * prices.gp3_iops_month.value
    month += (gp3.throughput - GP3.throughput) * prices.gp3_throughput_month.value
    return month / _HOURS_A_MONTH


def _raised_month(gp3: Gp3, at: Situation, prices: Prices) -> float:
    """Return what that costs for all nodes of a month, as long as they live; nothing where they have it anyway."""
    return at.launches * _DAYS * at.lifetime * raised_hour(gp3, prices) if at.drive == "gp3" else 0.0


@dataclass(frozen=True, slots=True)
class Ahead:
    """What loads the blocks of a start besides: when it comes to the first, and when it is done, in seconds.

    Zero is the start of the application; a loader that began earlier has a negative ``begins``.
    """

    begins: float
    ends: float


def seconds_behind(ahead: Ahead, alone: float, behind: float) -> float:
    """Return how long an application takes that needs ``alone`` seconds by itself, and ``behind`` on loaded blocks.

    Both go through the same blocks in the same order. ``make bench-suggest`` plays the same starts block by block.
    """
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


@dataclass(frozen=True, slots=True)
class _Times:
    """Seconds that a start waits: for first touches one by one, and for loaded blocks; and what comes before it.

    ``blocks`` loads hot blocks, ``files`` reads them into memory as well.
    """

    lazily: float
    loaded: float
    blocks: Ahead
    files: Ahead

    @property
    def alone(self) -> float:
        """A start for which nothing is loaded."""
        return self.lazily + self.loaded

    @property
    def hydrated(self) -> float:
        """A start behind the program that loads its blocks."""
        return seconds_behind(self.blocks, self.alone, self.loaded)

    @property
    def remembered(self) -> float:
        """A start behind the one that reads files into memory, too."""
        return min(self.hydrated, seconds_behind(self.files, self.alone, 0.0))


def _times(at: Situation, speeds: Speeds, drive: VolumeKind) -> _Times:
    lazily = at.hot / at.block * speeds.latency
    touched = max(at.hot / MIB / speeds.cold_rate, lazily / _IN_FLIGHT)
    read = min(at.read, at.hot) / MIB / drive.throughput
    loaded = max(at.reads * (speeds.loaded or drive.latency), at.reads / drive.operations, read)
    return _Times(lazily, loaded, *(Ahead(-at.boot, each - at.boot) for each in (touched, max(touched, read))))


def _from_the_first_block_on(at: Situation, times: _Times, rate: float) -> float:
    """Return how long a start takes where all is loaded at a rate (MiB/s): parbake lays hot blocks out last."""
    cold = (at.data - at.hot) / MIB / rate - at.boot
    return seconds_behind(Ahead(cold, at.data / MIB / rate - at.boot), times.alone, times.loaded)


def _baked(at: Situation, speeds: Speeds, prices: Prices) -> list[Remedy]:
    times = _times(at, speeds, DRIVES[at.drive])
    kept = at.data / GIB * prices.snapshot_gib_month.value
    kept += at.bakes * at.bake_minutes / 60 * prices.node_hour.value
    initialization = kept + at.launches * _DAYS * -(-at.volume // GIB) * prices.initialization_gib.value
    restoring = kept + prices.fsr_hour.value * _HOURS * _DAYS * at.zones
    warm, restored = _restored(at)
    whole = f"{_RATE} MiB/s from the first block on: whole after {at.data / MIB / _RATE:.0f} s"
    fully = _from_the_first_block_on(at, times, speeds.cold_rate)
    rows: list[tuple[Name, float, float, str]] = [
        ("nothing", times.alone, kept, _nothing_note(at, times)),
        ("hydrate-prefetch", times.remembered, kept, "its files in memory as well"),
        ("hydrate", times.hydrated, kept, _hydrate_note(at, speeds)),
        ("rate", _from_the_first_block_on(at, times, _RATE), initialization, whole),
        ("fsr", (1 - warm) * times.lazily + times.loaded, restoring, restored),
        ("full-read", fully, kept, "also what nobody needs"),
    ]
    found = [_remedy(name, seconds, cost, at.launches, prices, note) for name, seconds, cost, note in rows]
    if at.drive == "gp3":
        raised, most = (each.within(-(-at.volume // GIB)) for each in (RAISED_GP3, MOST_GP3))
        boosts = (_boost(gp3, at, speeds, prices, kept) for gp3 in (raised, most))
        found.append(min(boosts, key=lambda remedy: remedy.total))
        cost, seconds = kept + _raised_month(raised, at, prices), _times(at, speeds, kind_of(raised)).loaded
        note = f"{raised}: cold blocks are as slow"
        found.append(_remedy("gp3", times.lazily + seconds, cost, at.launches, prices, note))
    return found


def _boost(gp3: Gp3, at: Situation, speeds: Speeds, prices: Prices, kept: float) -> Remedy:
    """Return what it is to launch a volume raised and to take it back once its files are in memory.

    First touches count as on any volume, and the bill ends with the prefetch.
    """
    times = _times(at, speeds, kind_of(gp3))
    raised = max(_LEAST_BILLED, at.boot, at.boot + times.files.ends)  # seconds
    once = raised / 3600 * raised_hour(gp3, prices)
    note = (
        f"{gp3} for {raised:.0f} s, {once:.4f} a start; nobody has seen yet whether EBS takes that back while the "
        "volume initializes, after how long, and whether first touches are faster: counted as if they were not"
    )
    return _remedy("boost", times.remembered, kept + at.launches * _DAYS * once, at.launches, prices, note)


def _pulled(at: Situation, prices: Prices, pulls: Sequence[Pull]) -> list[Remedy]:
    """Return each kind of pull; one that needs a volume which nodes do not have pays for it."""
    found = []
    for pull in pulls:
        cost = _raised_month(RAISED_GP3, at, prices) if pull.raised else 0.0
        note = f"no bake: {pull.what}" + (", on gp3 with 1,000 MiB/s" if pull.raised else "")
        found.append(_remedy(pull.name, pull.seconds(at.transfer), cost, at.launches, prices, note))
    return found


def _remedy(name: Name, seconds: float, cost: float, launches: float, prices: Prices, note: str) -> Remedy:
    waiting = seconds / 3600 * prices.node_hour.value * launches * _DAYS
    return Remedy(name=name, seconds=round(seconds, 1), cost=round(cost, 2), waiting=round(waiting, 2), note=note)


def _restored(at: Situation) -> tuple[float, str]:
    """Return which share of starts fast snapshot restore covers, and why not all: of a bucket that had time to fill."""
    size = at.snapshot or at.volume
    full = bucket(size)
    steady = min(1.0, refill(size) * _HOURS * at.zones / at.launches)
    at_once = min(1.0, full / at.burst)
    hours = _DAYS * _HOURS / max(1.0, at.bakes)
    found = share(size, at.launches, at_once=at.burst, zones=at.zones, hours=hours)
    if min(steady, at_once) == 1:
        fills = f"a bucket is empty at first, and full after {full / refill(size):.1f} h"
        return found, f"{found:.1%} of starts find a credit: {fills}"
    limit = "refilled credits" if steady < at_once else f"a bucket of {full} for {at.burst} at once"
    return found, f"{found:.0%} of starts find a credit: {limit}"


def _nothing_note(at: Situation, times: _Times) -> str:
    note = f"each block when it is first touched: {times.lazily:.1f} s"
    return f"{note}; {at.reads:,} reads of what is loaded: {times.loaded:.1f} s" if at.reads else note


def _hydrate_note(at: Situation, speeds: Speeds) -> str:
    return f"{at.hot / MIB:.0f} MiB in {at.hot / MIB / speeds.cold_rate:.0f} s, {at.boot:.0f} s of them during boot"


def _alike(remedy: Remedy, best: Remedy, at: Situation, prices: Prices) -> bool:
    """Whether nobody would notice the difference: half a second a start, and next to nothing on the bill."""
    worth = _EQUAL / 3600 * prices.node_hour.value * at.launches * _DAYS
    return (
        remedy.total <= best.total + min(worth, max(_ALIKE * best.total, _SMALL))
        and remedy.seconds <= best.seconds + _EQUAL
    )


def _reason(best: Remedy, found: list[Remedy]) -> str:
    nothing = next(remedy for remedy in found if remedy.name == "nothing")
    baked = min((each for each in found if each.bakes), key=lambda each: each.total)
    if not best.bakes:
        return (
            f"the best way to bake it ({baked.name}) costs {baked.total:.2f} a month and adds {baked.seconds:.1f} s to "
            f"a start, a pull {best.total:.2f} and {best.seconds:.1f} s: do not bake this"
        )
    pull = next(remedy for remedy in found if remedy.name == "pull")  # what nodes do without parbake
    gap = pull.seconds - best.seconds
    against = (
        f"each start is {abs(gap):.1f} s {'quicker' if gap >= 0 else 'slower'} than with a pull "
        f"({pull.note.removeprefix('no bake: ')}), for {best.total:.2f} a month in all instead of {pull.total:.2f}"
    )
    if best.name == "nothing":
        return f"a start touches so little that loading it lazily adds {best.seconds:.1f} s: {against}"
    return f"{against}; a bake without it is {nothing.seconds - best.seconds:.1f} s slower"

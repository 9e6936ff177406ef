"""Which remedy against cold blocks is the cheapest: time and monthly cost of each. Pure.

The model, which ``bench/ebs-check`` verifies on a real volume: a first touch of a block of 512 KiB takes ``latency``;
an application that starts touches about one block at a time; a reader with many requests in flight is limited by
``cold_rate``; what happens before the runtime starts (``boot``) hides what is done meanwhile. Facts of AWS: the credits
of fast snapshot restore (``restore_credits``); the initialization rate is at most 300 MiB/s (Amazon EBS user guide).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from parbake.aws.costs.prices import Prices
from parbake.aws.costs.restore_credits import bucket, refill
from parbake.core.model import GIB, MIB, Frozen

Name = Literal["nothing", "hydrate", "rate", "fsr", "full-read", "pull"]
_DAYS = 30
_HOURS = 24
_RATE = 300  # MiB/s: the highest initialization rate
_IN_FLIGHT = 32
_EQUAL = 0.5  # seconds that nobody notices


class Speeds(Frozen):
    """How fast cold blocks and pulls are: seconds for a first touch, MiB/s.

    ``cold_rate`` is what many requests at a time get, ``pull_rate`` of compressed bytes, fetched and unpacked.
    """

    latency: float = Field(default=0.020, gt=0)
    cold_rate: float = Field(default=80.0, gt=0)
    pull_rate: float = Field(default=92.0, gt=0)


SPEEDS = {"mild": Speeds(), "harsh": Speeds(latency=0.035, cold_rate=40.0)}


class Situation(Frozen):
    """What is started, how often and where. Bytes and seconds.

    ``volume`` is the provisioned size, ``snapshot`` that of the snapshot (0: the same), ``data`` what of it is not a
    hole, ``hot`` what a start reads in whole blocks, ``transfer`` what a pull fetches. ``boot`` is the time between the
    volume's attachment and the runtime's start, ``burst`` how many nodes start at once in a zone.
    """

    volume: int = Field(gt=0)
    snapshot: int = Field(default=0, ge=0)
    data: int = Field(gt=0)
    hot: int = Field(ge=0)
    transfer: int = Field(ge=0)
    launches: float = Field(gt=0)
    zones: int = Field(default=3, gt=0)
    boot: float = Field(default=20.0, ge=0)
    burst: int = Field(default=1, gt=0)
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


class Advice(Frozen):
    """The remedies, cheapest first, and why the first one is recommended."""

    remedies: tuple[Remedy, ...]
    reason: str

    @property
    def best(self) -> Remedy:
        """The remedy that is recommended."""
        return self.remedies[0]


def advise(at: Situation, speeds: Speeds, prices: Prices) -> Advice:
    """Work out every remedy and recommend the one that costs least in all; of two that are alike, the simpler one."""
    at = at.model_copy(update={"hot": min(at.hot, at.data)})  # whole blocks may be more than the data: holes are free
    storage = at.data / GIB * prices.snapshot_gib_month.value
    lazily = at.hot / at.block * speeds.latency
    hydrated = max(0.0, max(at.hot / MIB / speeds.cold_rate, lazily / _IN_FLIGHT) - at.boot)
    fully = max(0.0, at.data / MIB / speeds.cold_rate - at.boot)
    volume_gib = -(-at.volume // GIB)
    initialized = min(lazily, max(0.0, at.data / MIB / _RATE - at.boot))
    warm, note = _restored(at)
    monthly = at.launches * _DAYS
    found = [
        _remedy("nothing", lazily, storage, at, prices, "each block when it is first touched"),
        _remedy("hydrate", min(hydrated, lazily), storage, at, prices, _hydrate_note(at, speeds)),
        _remedy(
            "rate",
            initialized,
            storage + monthly * volume_gib * prices.initialization_gib.value,
            at,
            prices,
            f"{_RATE} MiB/s from the first block on: whole after {at.data / MIB / _RATE:.0f} s",
        ),
        _remedy(
            "fsr",
            (1 - warm) * lazily,
            storage + prices.fsr_hour.value * _HOURS * _DAYS * at.zones,
            at,
            prices,
            note,
        ),
        _remedy("full-read", min(fully, lazily), storage, at, prices, "reads what nobody needs as well"),
        _remedy("pull", at.transfer / MIB / speeds.pull_rate, 0.0, at, prices, "do not bake it: no snapshot to keep"),
    ]
    order = sorted(found, key=lambda remedy: remedy.total)
    simplest = next(
        remedy
        for name in ("nothing", "hydrate", "pull", "rate", "full-read", "fsr")
        for remedy in found
        if remedy.name == name and _alike(remedy, order[0], at, prices)
    )
    order.remove(simplest)
    return Advice(remedies=(simplest, *order), reason=_reason(simplest, found))


def _remedy(name: Name, seconds: float, cost: float, at: Situation, prices: Prices, note: str) -> Remedy:
    waiting = seconds / 3600 * prices.node_hour.value * at.launches * _DAYS
    return Remedy(name=name, seconds=round(seconds, 1), cost=round(cost, 2), waiting=round(waiting, 2), note=note)


def _restored(at: Situation) -> tuple[float, str]:
    """Return which share of starts fast snapshot restore covers, and why not all: of a bucket that had time to fill."""
    size = at.snapshot or at.volume
    full = bucket(size)
    steady = min(1.0, refill(size) * _HOURS * at.zones / at.launches)
    at_once = min(1.0, full / at.burst)
    share = min(steady, at_once)
    if share == 1:
        return share, f"every start finds a credit, once the empty bucket has filled ({full / refill(size):.1f} h)"
    limit = "refilled credits" if steady < at_once else f"a bucket of {full} for {at.burst} at once"
    return share, f"{share:.0%} of starts find a credit: {limit}"


def _hydrate_note(at: Situation, speeds: Speeds) -> str:
    return f"{at.hot / MIB:.0f} MiB in {at.hot / MIB / speeds.cold_rate:.0f} s, {at.boot:.0f} s of them during boot"


def _alike(remedy: Remedy, best: Remedy, at: Situation, prices: Prices) -> bool:
    """Whether nobody would notice the difference: half a second a start, and what that costs."""
    worth = _EQUAL / 3600 * prices.node_hour.value * at.launches * _DAYS
    return remedy.total <= best.total + worth + 0.01 and remedy.seconds <= best.seconds + _EQUAL


def _reason(best: Remedy, found: list[Remedy]) -> str:
    by_name = {remedy.name: remedy for remedy in found}
    match best.name:
        case "nothing":
            return f"a start touches so little that loading it lazily adds {best.seconds:.1f} s"
        case "pull":
            baked = min((each for each in found if each.name != "pull"), key=lambda each: each.total)
            return f"the best way to bake it ({baked.name}) costs {baked.total:.2f} a month, a pull {best.total:.2f}"
        case _:
            saved = by_name["nothing"].seconds - best.seconds
            money = by_name["nothing"].total - best.total
            return f"it makes each start {saved:.1f} s quicker than lazy loading, and saves {money:.2f} a month in all"

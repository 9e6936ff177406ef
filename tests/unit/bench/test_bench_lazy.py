"""The benchmark's model of a cold volume, on a clock of its own: what takes how long, and who comes first."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from statistics import median

import pytest

from bench.lazy import DRIVES, PROFILES, Drive, Lazy, Profile
from parbake.core.model import EBS_BLOCK

MIB = 1 << 20
GP3 = DRIVES["gp3"]
MILD, HARSH = PROFILES["mild"], PROFILES["harsh"]


class Clock:
    """Lets a model's time pass as fast as it can; notes when each request was answered."""

    def __init__(self, model: Lazy) -> None:
        self.model, self.now = model, 0.0
        self.answered: dict[str, float] = {}

    def ask(self, name: str, *blocks: int, size: int = 4096, then: Callable[[], None] | None = None) -> None:
        def answer() -> None:
            self.answered[name] = self.now
            if then:
                then()

        self.model.ask(self.now, blocks, size, answer)

    def until(self, end: float = float("inf")) -> None:
        while (due := self.model.run(self.now)) is not None and due <= end:
            self.now = due
        if end < float("inf"):
            self.now = end


@pytest.mark.parametrize("profile", [MILD, HARSH], ids=lambda profile: profile.name)
def test_first_touches_one_by_one(profile: Profile) -> None:
    clock = Clock(Lazy(profile, range(1000)))
    taken = []
    for block in range(1000):
        before = clock.now
        clock.ask("one", block)
        clock.until()
        taken.append(clock.now - before)
    assert median(taken) == pytest.approx(profile.latency, rel=0.05)
    assert (clock.model.loaded, clock.model.most) == (1000, 1)


@pytest.mark.parametrize("profile", [MILD, HARSH], ids=lambda profile: profile.name)
def test_many_touches_share_the_rate(profile: Profile) -> None:
    clock = Clock(Lazy(profile, range(1000)))
    for block in range(1000):
        clock.ask(str(block), block, size=EBS_BLOCK)
    clock.until()
    assert 1000 * EBS_BLOCK / MIB / clock.now == pytest.approx(profile.rate, rel=0.05)
    assert clock.model.most == profile.in_flight
    # First come, first served: nobody is overtaken by one who came more than a queue's length later.
    order = sorted(clock.answered, key=lambda name: clock.answered[name])
    assert all(abs(place - int(name)) <= profile.in_flight for place, name in enumerate(order))


def on(drive: Drive) -> Lazy:
    """Return the model of a volume of which everything is loaded."""
    return Lazy(replace(MILD, drive=drive), [])


EACH = pytest.mark.parametrize("drive", DRIVES.values(), ids=lambda drive: drive.name)


def test_what_the_volumes_are_sold_as() -> None:
    assert [(drive.latency, drive.operations, drive.rate) for drive in DRIVES.values()] == [
        (0.0007, 3_000, 125.0),
        (0.0007, 16_000, 1_000.0),
        (0.0007, 16_000, 1_000.0),
        (0.0003, 16_000, 1_000.0),
    ]
    assert {profile.drive for profile in PROFILES.values()} == {GP3}


@EACH
def test_what_is_loaded_comes_at_the_volumes_rate(drive: Drive) -> None:
    clock = Clock(on(drive))
    for block in range(1000):
        clock.ask(str(block), block, size=EBS_BLOCK)
    clock.until()
    assert 1000 * EBS_BLOCK / MIB / clock.now == pytest.approx(drive.rate, rel=0.01)
    assert clock.model.loaded == 0


def test_a_volume_that_is_taken_back_is_slower_from_then_on_and_its_first_touches_are_as_they_were() -> None:
    """1,000 MiB/s for a second after the attachment, then 125; a boot before the first read counts."""
    boosted = replace(DRIVES["gp3-boost"], lasts=1.0)
    for boot, seconds in ((0.0, 1.0 + 1000 / 125), (0.5, 0.5 + 1500 / 125), (9.0, 2000 / 125)):
        model = on(boosted)
        model.began -= boot
        clock = Clock(model)
        for block in range(4000):
            clock.until(max(clock.now, block / 2000))  # asked for as fast as they come at first
            clock.ask(str(block), block, size=EBS_BLOCK)
        clock.until()
        assert clock.now == pytest.approx(seconds, rel=0.02), boot
    assert json.loads(json.dumps(asdict(GP3), allow_nan=False))["then"] is None, "what the bench prints is JSON"
    assert boosted.at(0.5) is boosted
    assert boosted.at(1.0) == GP3


@EACH
def test_a_loaded_read_takes_its_latency_and_not_always_the_same(drive: Drive) -> None:
    clock = Clock(on(drive))
    taken = []
    for number in range(2000):
        before = clock.now
        clock.ask("one", number)
        clock.until()
        taken.append(clock.now - before)
    assert median(taken) == pytest.approx(drive.latency, rel=0.05)
    assert sorted(taken)[1800] > 1.3 * drive.latency
    assert min(taken) > drive.latency / 4


def test_a_volume_that_is_hydrated_is_not_in_memory() -> None:
    """14,452 reads of a large application's start, one after the other: ten seconds over memory."""
    clock = Clock(on(GP3))
    for number in range(14_452):
        clock.ask("one", number, size=36_000)
        clock.until()
    assert 14_452 * 0.0007 < clock.now < 14_452 * 0.0007 * 1.1


@EACH
def test_small_reads_have_their_operations_a_second(drive: Drive) -> None:
    clock = Clock(on(drive))
    for number in range(32_000):
        clock.ask(str(number), number)
    clock.until()
    assert 32_000 / clock.now == pytest.approx(drive.operations, rel=0.02)


def test_a_large_request_is_several_operations() -> None:
    slow = Drive("slow", 0.0, 100, 1e9)
    clock = Clock(on(slow))
    for number in range(100):
        clock.ask(str(number), number, size=1 << 20)
    clock.until()
    assert clock.now == pytest.approx(4.0)


def test_the_latencies_of_many_reads_pass_together() -> None:
    clock = Clock(on(Drive("even", 0.01, 1e9, 1e9)))
    for number in range(100):
        clock.ask(str(number), number)
    clock.until()
    assert clock.now < 0.03


def test_a_first_touch_holds_the_latency_of_its_own_read() -> None:
    clock = Clock(Lazy(replace(MILD, drive=Drive("slow", 0.015, 1e9, 1e9)), range(400)))
    taken = []
    for block in range(400):
        before = clock.now
        clock.ask("one", block)
        clock.until()
        taken.append(clock.now - before)
    assert median(taken) == pytest.approx(MILD.latency, rel=0.1)


def test_who_waits_for_the_same_block_waits_once_and_is_answered_in_order() -> None:
    clock = Clock(Lazy(MILD, range(10)))
    names = [f"r{number}" for number in range(50)]
    for name in names:
        clock.ask(name, 7)
    clock.until()
    assert clock.model.loaded == 1
    assert list(clock.answered) == names
    assert clock.now < MILD.latency * 3


def test_a_request_over_several_blocks_waits_for_them_together() -> None:
    clock = Clock(Lazy(Profile("even", 0.02, 32, 1e6), range(10)))
    clock.ask("wide", 1, 2, 3)
    clock.ask("narrow", 9)
    clock.until()
    assert clock.model.loaded == 4
    assert clock.now < 0.02 * 3  # the slowest of the three, and not their sum


def test_what_is_hot_does_not_wait_for_what_is_cold() -> None:
    clock = Clock(Lazy(HARSH, range(100)))
    for block in range(100):
        clock.ask(str(block), block)
    clock.ask("hot", 1000)
    clock.until(0.001)
    assert list(clock.answered) == ["hot"]


def test_a_provisioned_rate_loads_in_order_beside_what_is_touched() -> None:
    clock = Clock(Lazy(MILD, range(100, 200), provisioned=50.0))  # 100 blocks a second
    clock.until(0.5)
    clock.ask("passed", 149)
    clock.until(0.502)
    assert "passed" in clock.answered
    assert clock.model.loaded == 0
    clock.ask("ahead", 199)
    clock.ask("next", 151)  # the rate is there before the touch is answered
    clock.until(0.512)
    assert "next" in clock.answered
    assert "ahead" not in clock.answered
    clock.until()
    assert clock.now < 0.6


def test_a_late_caller_delays_nothing_but_its_own_answers() -> None:
    """A machine that is busy calls late; what is under way goes on meanwhile."""
    clock = Clock(Lazy(MILD, range(1000)))
    for block in range(1000):
        clock.ask(str(block), block)
    clock.now = 100.0
    assert clock.model.run(clock.now) is None
    assert len(clock.answered) == 1000

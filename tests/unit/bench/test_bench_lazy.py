"""The benchmark's model of a cold volume, on a clock of its own: what takes how long, and who comes first."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import pytest

from bench.lazy import HOT_RATE, PROFILES, Lazy, Profile
from parbake.coldstart.trace.data import BLOCK

MIB = 1 << 20
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
        clock.ask(str(block), block, size=BLOCK)
    clock.until()
    assert 1000 * BLOCK / MIB / clock.now == pytest.approx(profile.rate, rel=0.05)
    assert clock.model.most == profile.in_flight
    # First come, first served: nobody is overtaken by one who came more than a queue's length later.
    order = sorted(clock.answered, key=lambda name: clock.answered[name])
    assert all(abs(place - int(name)) <= profile.in_flight for place, name in enumerate(order))


def test_what_is_loaded_comes_at_the_volumes_rate() -> None:
    for model in (Lazy(None, range(100)), Lazy(MILD, [])):
        clock = Clock(model)
        for block in range(100):
            clock.ask(str(block), block, size=BLOCK)
        clock.until()
        assert 100 * BLOCK / MIB / clock.now == pytest.approx(HOT_RATE)
        assert list(clock.answered) == [str(block) for block in range(100)]
        assert model.loaded == 0


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

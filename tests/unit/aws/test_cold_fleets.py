"""What advise calculates, beside the same starts played one after the other: two ways to one figure."""

from __future__ import annotations

import random

import pytest

from bench.suggest import of_best
from parbake.aws.costs import DRIVES, advise, load_prices
from parbake.aws.costs.advise import Ahead, seconds_behind
from parbake.aws.costs.rates import kind_of
from parbake.aws.costs.restore_credits import share
from parbake.aws.limits import RAISED_GP3
from parbake.core.model import GIB
from standins.cold_fleets import cold_fleet, month, start

PRICES = load_prices()
# Where reads that go on beside the loading, and credits that come too late, once were not counted; and some others.
FLEETS = (17, 110, 125, 196, *range(4))


@pytest.mark.parametrize("seed", FLEETS)
def test_the_chosen_remedy_is_within_five_percent_of_the_best(seed: int) -> None:
    assert min(of_best(seed, PRICES)) >= 0.95


@pytest.mark.parametrize("seed", range(12))
def test_a_start_takes_as_long_as_is_calculated(seed: int) -> None:
    fleet = cold_fleet(seed, PRICES)
    chance = random.Random(seed)
    for remedy in advise(fleet.at, fleet.speeds, fleet.prices).remedies:
        if remedy.name.startswith(("pull", "fsr", "boost")):
            continue
        raised = kind_of(RAISED_GP3.within(-(-fleet.at.volume // GIB)))
        drive = raised if remedy.name == "gp3" else DRIVES[fleet.at.drive]
        seconds, _ = start(fleet, remedy.name, chance, drive)
        assert remedy.seconds == pytest.approx(seconds, rel=0.3, abs=1.0), remedy.name


@pytest.mark.parametrize("seed", [17, 110, 4])
def test_so_many_starts_find_a_credit_as_are_calculated(seed: int) -> None:
    fleet = cold_fleet(seed, PRICES)
    found = {each.name: each.total for each in advise(fleet.at, fleet.speeds, fleet.prices).remedies}
    assert month(fleet, "fsr", seed) == pytest.approx(found["fsr"], rel=0.1)


def test_the_share_of_starts_that_find_a_credit_has_its_limits() -> None:
    hours = 30 * 24.0
    assert share(20 * GIB, 0.1, at_once=1, zones=1, hours=hours) == pytest.approx(1.0, abs=0.01)
    assert share(20 * GIB, 240_000, at_once=1, zones=1, hours=hours) == pytest.approx(0.001, rel=0.05)
    assert share(20 * GIB, 1, at_once=100, zones=1, hours=hours) == pytest.approx(0.1, rel=0.01)
    assert share(20 * GIB, 100, at_once=1, zones=1, hours=0.01) < 0.1, "a bucket starts empty"


def test_a_loader_never_makes_a_start_slower_than_it_is_alone() -> None:
    """Nor quicker than on loaded blocks, wherever the loader begins and ends."""
    for begins in (-50.0, -5.0, 0.0, 5.0, 50.0):
        for takes in (0.0, 1.0, 10.0, 30.0, 100.0):
            for behind in (0.0, 3.0, 19.0):
                seconds = seconds_behind(Ahead(begins, begins + takes), 20.0, behind)
                assert behind <= seconds + 1e-9
                assert seconds <= 20.0 + 1e-9

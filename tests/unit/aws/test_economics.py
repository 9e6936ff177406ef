"""Advice, with a bake and before one: what is decided for which figures, one golden file a case."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parbake.aws.costs import (
    MB,
    SPEEDS,
    Prices,
    Pull,
    Situation,
    Speeds,
    advise,
    estimate,
    known_pulls,
    load_prices,
    own_pull,
)
from parbake.aws.costs.advise import raised_hour
from parbake.aws.costs.prices import Price
from parbake.aws.costs.rates import PullName
from parbake.aws.limits import GP3, MOST_GP3, RAISED_GP3, Gp3
from parbake.cli.coldstart import advice_text
from parbake.core.errors import InputError
from parbake.core.model import GIB, MIB

FOLDER = Path(__file__).with_name("cases")
PRICES = load_prices()
POTATO = Situation(
    volume=20 * GIB,
    data=11 * GIB,
    hot=1018 * MIB,
    read=490 * MIB,
    reads=14_452,
    transfer=4500 * MIB,
    launches=200,
)
VLLM = Situation(
    volume=40 * GIB, data=20 * GIB, hot=1500 * MIB, read=900 * MIB, reads=20_000, transfer=9_354_342_327, launches=40
)
CHEAP = PRICES.model_copy(update={"node_hour": Price(value=0.1, unit="node and hour")})
SITUATIONS = {
    "potato": (POTATO, "mild"),
    "potato-harsh-no-boot": (POTATO.model_copy(update={"boot": 0.0}), "harsh"),
    "small-service": (Situation(volume=4 * GIB, data=GIB, hot=6 * MIB, transfer=60 * MIB, launches=20), "mild"),
    "small-and-rare": (  # 300 MiB at 20 launches a day: do not bake it
        Situation(
            volume=4 * GIB, data=800 * MIB, hot=90 * MIB, read=60 * MIB, reads=1500, transfer=300 * MIB, launches=20
        ),
        "mild",
    ),
    "touches-little": (POTATO.model_copy(update={"hot": 5 * MIB, "read": 4 * MIB, "reads": 90}), "mild"),
    "reads-all-of-it": (POTATO.model_copy(update={"hot": 10 * GIB}), "harsh"),
    "rare-and-large": (
        Situation(volume=200 * GIB, data=150 * GIB, hot=100 * GIB, transfer=900 * MIB, launches=0.1, zones=1),
        "harsh",
    ),
    "thousands": (
        POTATO.model_copy(
            update={"launches": 20_000.0, "burst": 30, "zones": 2, "hot": 10 * GIB, "transfer": 20 * GIB, "boot": 5.0}
        ),
        "harsh",
    ),
}
# Starts a day, pulls, seconds of a start from the bake, nodes kept running, hours of bakes a month.
ESTIMATES: dict[str, tuple[float, dict[PullName, float], float, float, float]] = {
    "article": (1000.0, {"pull": 120.0}, 8.0, 0.0, 0.0),
    "headroom": (1000.0, {"pull": 120.0}, 8.0, 3.0, 0.0),
    "slower": (10.0, {"pull": 20.0}, 90.0, 0.0, 0.0),
    "none": (0.0, {"pull": 20.0}, 9.0, 0.0, 0.0),
    "faster-pulls": (40.0, {each.name: each.seconds(VLLM.transfer) for each in known_pulls()}, 0.0, 0.0, 10.0),
}


@pytest.mark.parametrize("case", SITUATIONS)
def test_advice(case: str) -> None:
    situation, profile = SITUATIONS[case]
    text = advice_text(advise(situation, SPEEDS[profile], PRICES), situation, PRICES) + "\n"
    assert text == (FOLDER / f"advice-{case}.txt").read_text()


@pytest.mark.parametrize(
    ("case", "drive", "pulls"),
    [("soci", "gp3-raised", ()), ("no-soci", "gp3", ()), ("own-pull", "gp3", own_pull(1200))],
)
def test_a_large_image_on_cheap_nodes(case: str, drive: Literal["gp3", "gp3-raised"], pulls: tuple[Pull, ...]) -> None:
    """9.35 GB: not to be baked where SOCI pulls it onto volumes that are fast anyway."""
    situation = VLLM.model_copy(update={"drive": drive})
    advice = advise(situation, SPEEDS["mild"], CHEAP, pulls)
    assert advice_text(advice, situation, CHEAP) + "\n" == (FOLDER / f"advice-{case}.txt").read_text()
    assert advice.best.bakes is (case == "no-soci")
    assert advice.reason.endswith("do not bake this") is not advice.best.bakes


def test_what_is_known_of_pulls() -> None:
    """The published pulls of 9.35 GB in seconds, and who says so."""
    pulls = {each.name: each for each in known_pulls()}
    seconds = {name: round(each.seconds(VLLM.transfer), 1) for name, each in pulls.items()}
    assert seconds == {"pull": 97.0, "pull-soci-al2023": 39.6, "pull-soci-bottlerocket": 23.2}
    assert round(VLLM.transfer / MB / pulls["pull"].slowest, 1) == 130.8
    assert all(each.source and each.date and each.conditions for each in pulls.values())


def test_what_a_raised_volume_costs() -> None:
    """13,000 IOPS and 875 MiB/s more: some 100 dollars a month."""
    assert raised_hour(RAISED_GP3, PRICES) * 730 == pytest.approx(100.0)


@pytest.mark.parametrize(
    ("gib", "most"), [(1, Gp3(3_000, 750)), (8, Gp3(4_000, 1_000)), (16, Gp3(8_000, 2_000)), (160, MOST_GP3)]
)
def test_how_far_a_gp3_volume_of_a_size_can_be_raised(gib: int, most: Gp3) -> None:
    assert MOST_GP3.within(gib) == most
    assert GP3.within(gib) == GP3


def test_a_boost_is_paid_by_the_second_and_for_a_minute_at_least() -> None:
    """Twenty thousand starts: a minute each, where the node's eight hours would cost 480 times as much."""
    at = VLLM.model_copy(update={"launches": 20_000, "boot": 0.0})
    found = {each.name: each for each in advise(at, SPEEDS["mild"], PRICES).remedies}
    kept = found["nothing"].cost
    minute, life = found["boost"].cost - kept, found["gp3"].cost - kept
    assert minute == pytest.approx(20_000 * 30 / 60 * raised_hour(RAISED_GP3, PRICES), abs=0.01)
    assert life / minute == pytest.approx(480, rel=0.001)


def test_a_boost_is_worth_its_price_where_the_throughput_is_what_starts_wait_for() -> None:
    """A start that reads 8 GiB once: the disk's 125 MiB/s are the limit, so long as first touches are no other."""
    at = VLLM.model_copy(update={"hot": 8 * GIB, "read": 8 * GIB, "reads": 66_000, "launches": 500})
    fast = Speeds(latency=0.001, cold_rate=2_000)
    found = {each.name: each for each in advise(at, fast, PRICES).remedies}
    assert found["hydrate-prefetch"].seconds == pytest.approx(8 * 1024 / 125 - 20, abs=0.1)
    assert found["boost"].seconds == 0
    assert advise(at, fast, PRICES).best.name == "boost"
    assert "nobody has seen yet" in found["boost"].note
    slow = {each.name: each for each in advise(at, SPEEDS["harsh"], PRICES).remedies}
    assert slow["boost"].seconds == slow["hydrate-prefetch"].seconds


def test_memory_is_what_makes_the_difference() -> None:
    """Where all blocks are loaded, what is left are reads one after the other; in memory they are not."""
    found = {each.name: each for each in advise(POTATO, SPEEDS["mild"], PRICES).remedies}
    assert found["hydrate"].seconds == pytest.approx(14_452 * 0.0007, abs=0.1)
    assert found["hydrate-prefetch"].seconds == 0
    assert found["fsr"].seconds == found["hydrate"].seconds


@pytest.mark.parametrize("case", ESTIMATES)
def test_what_a_bake_would_save(case: str) -> None:
    advice = estimate(*ESTIMATES[case], PRICES)
    assert advice_text(advice, None, PRICES) + "\n" == (FOLDER / f"estimate-{case}.txt").read_text()
    assert advice.best.total == min(each.total for each in advice.remedies)
    assert advice.reason.endswith("do not bake this") is not advice.best.bakes


def test_every_golden_file_is_compared() -> None:
    named = {f"advice-{case}.txt" for case in (*SITUATIONS, "soci", "no-soci", "own-pull")}
    named |= {f"estimate-{case}.txt" for case in ESTIMATES}
    assert {path.name for path in FOLDER.iterdir()} == named


def test_published_figures() -> None:
    """20 GiB: the rate costs $0.072 a launch, a restore that is always used $0.075; at 100 GiB $0.36 against $0.075."""
    once = Situation(volume=20 * GIB, data=20 * GIB, hot=MIB, transfer=1, launches=240, zones=1)  # 10 an hour
    by_name = {remedy.name: remedy for remedy in advise(once, SPEEDS["mild"], PRICES).remedies}
    stored = 20 * PRICES.snapshot_gib_month.value + 4 * 10 / 60 * PRICES.node_hour.value
    assert (by_name["rate"].cost - stored) / (240 * 30) == pytest.approx(0.072, abs=1e-5)
    assert (by_name["fsr"].cost - stored) / (240 * 30) == pytest.approx(0.075, abs=1e-5)
    assert by_name["fsr"].seconds == 0
    large = once.model_copy(update={"volume": 100 * GIB})
    by_name = {remedy.name: remedy for remedy in advise(large, SPEEDS["mild"], PRICES).remedies}
    assert (by_name["rate"].cost - stored) / (240 * 30) == pytest.approx(0.36, abs=1e-5)


def test_credits_follow_the_snapshot_and_not_the_volume() -> None:
    at = Situation(volume=200 * GIB, snapshot=20 * GIB, data=GIB, hot=GIB, transfer=1, launches=1, burst=10)
    by_name = {remedy.name: remedy for remedy in advise(at, SPEEDS["mild"], PRICES).remedies}
    assert by_name["fsr"].seconds < 1
    assert "full after 1.0 h" in by_name["fsr"].note
    larger = at.model_copy(update={"snapshot": 0})
    assert (
        "a bucket of 5 for 10"
        in {each.name: each for each in advise(larger, SPEEDS["mild"], PRICES).remedies}["fsr"].note
    )


sizes = st.integers(1, 1 << 42)
situations = st.builds(
    Situation,
    volume=sizes,
    data=sizes,
    hot=st.integers(0, 1 << 42),
    read=st.integers(0, 1 << 42),
    reads=st.integers(0, 1 << 30),
    drive=st.sampled_from(["gp3", "gp3-raised", "io2"]),
    transfer=st.integers(0, 1 << 42),
    launches=st.floats(0.001, 1e6),
    zones=st.integers(1, 6),
    boot=st.floats(0, 600),
    burst=st.integers(1, 1000),
)


@given(situations, st.sampled_from(sorted(SPEEDS)))
def test_the_recommended_is_never_noticeably_worse(situation: Situation, profile: str) -> None:
    advice = advise(situation, SPEEDS[profile], PRICES)
    assert len({remedy.name for remedy in advice.remedies}) == 8 + 3 - 2 * (situation.drive != "gp3")
    cheapest = min(advice.remedies, key=lambda remedy: remedy.total)
    worth = 0.6 / 3600 * PRICES.node_hour.value * situation.launches * 30 + 0.05
    assert advice.best.total <= cheapest.total + worth
    assert all(remedy.seconds >= 0 and remedy.cost >= 0 for remedy in advice.remedies)
    lazily = next(remedy for remedy in advice.remedies if remedy.name == "nothing")
    assert all(remedy.seconds <= lazily.seconds for remedy in advice.remedies if remedy.bakes)


@given(situations, st.floats(1, 600))
def test_a_longer_boot_never_makes_it_slower(situation: Situation, more: float) -> None:
    def seconds(at: Situation) -> dict[str, float]:
        return {remedy.name: remedy.seconds for remedy in advise(at, SPEEDS["harsh"], PRICES).remedies}

    before, after = seconds(situation), seconds(situation.model_copy(update={"boot": situation.boot + more}))
    assert all(after[name] <= before[name] for name in before)


def test_prices_of_a_user(tmp_path: Path) -> None:
    file = tmp_path / "prices.json"
    file.write_text(json.dumps({"node_hour": 3.06, "region": "eu-west-1", "fsr_hour": {"value": 0.8, "unit": "x"}}))
    mine = load_prices(file)
    assert (mine.node_hour.value, mine.node_hour.source, mine.region) == (3.06, str(file), "eu-west-1")
    assert mine.fsr_hour.value == 0.8
    assert mine.initialization_gib == PRICES.initialization_gib
    assert Prices.model_validate_json(mine.model_dump_json()) == mine


@pytest.mark.parametrize(
    "text", ["", "[]", "7", '{"node_hour": -1}', '{"more": 1}', '{"node_hour": "x"}', '{"a": null}']
)
def test_prices_that_are_none(tmp_path: Path, text: str) -> None:
    file = tmp_path / "prices.json"
    file.write_text(text)
    with pytest.raises(InputError, match="is not a valid price list"):
        load_prices(file)
    with pytest.raises(InputError, match="No such file"):
        load_prices(tmp_path / "none")


def test_every_price_has_a_source() -> None:
    for name, price in PRICES:
        if name not in {"region", "date", "currency"}:
            assert price.source
            assert price.unit

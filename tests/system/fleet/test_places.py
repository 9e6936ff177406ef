"""What is baked is brought to places on the real engine, as many at once as the quotas say; copies are a stand-in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from temporalio.client import Client

from parbake.fleet.engine import local, runs, schedules
from parbake.fleet.engine.tasks import BAKE, PLACE, Destination
from standins.fleet_program import key_of
from standins.fleets import Fleet

pytestmark = pytest.mark.slow(60)

HOME, OTHER = "eu-west-1", "us-east-1"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """One engine with two workers, for tests that leave them alive."""
    with Fleet(tmp_path_factory.mktemp("fleet")) as fleet:
        fleet.work(2, slots=6, seconds=0.1)
        yield fleet


@pytest.fixture
def fleet(engine: Fleet) -> Fleet:
    """A fleet whose ledger is empty, and whose regions take what comes."""
    for path in (engine.store / "ledger", *engine.root.glob("*.held"), *engine.root.glob("*.refuses")):
        path.unlink(missing_ok=True)
    return engine


def most_at_once(lines: Iterable[list[str]]) -> Counter[str]:
    """Return how many were under way at most, by region: a line has ``copy-start REGION`` or ``copy-end REGION``."""
    now, most = Counter[str](), Counter[str]()
    for word, region, *_ in lines:
        now[region] += 1 if word.endswith("start") else -1
        most[region] = max(most[region], now[region])
    return most


def regions(fleet: Fleet, word: str) -> Counter[str]:
    """Return how often a copy to each region has begun or ended."""
    return Counter(region for _, region, *_ in fleet.lines(word))


def test_a_slow_region_keeps_no_other_one_waiting(fleet: Fleet) -> None:
    """Twelve keys go to two regions, at most two at once in each; one of them takes none to its end for a while."""
    (fleet.root / f"{OTHER}.held").touch()
    cells = [f"local-{number}" for number in range(12)]
    places = [*fleet.places(HOME, OTHER)]
    fleet.start(cells, places=places, copies=2, window=4)
    fleet.wait_until(lambda: len(fleet.lines("copy-end")) == 12, "all to be in the one region")
    fleet.wait_until(
        lambda: regions(fleet, "copy-start") == {HOME: 12, OTHER: 2}, "two to be on their way to the other"
    )
    assert regions(fleet, "copy-end") == {HOME: 12}
    (fleet.root / f"{OTHER}.held").unlink()
    ended = fleet.end()
    assert (ended.counts.baked, ended.counts.failed, ended.counts.done) == (12, 0, 12)
    assert most_at_once(fleet.lines("copy-start", "copy-end"))[OTHER] == 2
    assert most_at_once(fleet.lines("copy-start", "copy-end"))[HOME] <= 2
    assert regions(fleet, "copy-end") == {HOME: 12, OTHER: 12}, "each once"
    again = fleet.run(cells, places=places)
    assert (again.counts.there, len(fleet.lines("copy-start"))) == (12, 24), "what is there is not brought again"


def test_what_is_there_already_is_brought_to_a_new_place_in_its_role(fleet: Fleet) -> None:
    fleet.places()
    fleet.run(["local-a"], name="new")
    fleet.places("eu-central-1")
    role = "arn:aws:iam::222222222222:role/publish"
    ended = fleet.run(["local-a"], name="new", places=[Destination("eu-central-1", role, ["333333333333"])])
    assert (ended.counts.there, ended.counts.done) == (1, 1)
    ((_, region, key, its_role, shares, _),) = fleet.lines("copy-start")
    assert (region, key, its_role, shares) == ("eu-central-1", key_of("local-a"), role, "333333333333")


def test_a_region_that_refuses_fails_the_cell_and_no_other_region(fleet: Fleet) -> None:
    (fleet.root / f"{OTHER}.refuses").touch()
    ended = fleet.run(["local-b"], name="no", places=fleet.places(HOME, OTHER), rollout=True)
    assert [(each.cell, each.error, each.message) for each in ended.failed] == [
        ("local-b", "AwsNoAccess", "us-east-1 says no")
    ]
    assert "has started no rollout" in ended.rollout
    assert Counter(region for _, region, *_ in fleet.lines("copy-start")) == {HOME: 1, OTHER: 1}
    assert len(fleet.lines("copy-end")) == 1
    (fleet.root / f"{OTHER}.refuses").unlink()
    again = fleet.run(["local-b"], name="no", places=fleet.places(HOME, OTHER))
    assert (again.counts.there, again.counts.failed) == (1, 0)
    assert Counter(region for _, region, *_ in fleet.lines("copy-end")) == {HOME: 1, OTHER: 1}


def test_bakes_of_a_builder_at_once(fleet: Fleet) -> None:
    """The stand-in's builder is the first word of a cell; another one's go on meanwhile."""
    fleet.places()
    cells = [*(f"ec2-{number}" for number in range(5)), *(f"ebs-{number}" for number in range(5))]
    names = {key_of(cell): cell.partition("-")[0] for cell in cells}
    (fleet.root / "ebs.held").touch()
    fleet.start(cells, name="quota", bakes={"ec2": 1}, window=8)
    fleet.wait_until(lambda: [names[key] for _, key in fleet.lines("start")].count("ebs") > 1, "two at once")
    (fleet.root / "ebs.held").unlink()
    assert fleet.end("quota").counts.baked == 10
    most = most_at_once([[word, names[key]] for word, key in fleet.lines("start", "end")])
    assert most["ec2"] == 1
    assert most["ebs"] > 1


def test_the_engine_lets_no_more_begin_in_a_second(fleet: Fleet) -> None:
    """Five copies a second and region, over both workers: of thirty the last begins seconds after the first."""
    try:
        fleet.ask(lambda client: schedules.limit_starts(client, 5))
        cells = [f"local-rate-{number}" for number in range(30)]
        fleet.places(HOME)
        fleet.run(cells, name="rate", places=[Destination(HOME)], copies=30, window=30)
        starts = sorted(float(line[-1]) for line in fleet.lines("copy-start"))
        assert len(starts) == 30
        in_a_second = max(sum(begin <= each < begin + 1 for each in starts) for begin in starts)
        assert in_a_second <= 15, "a burst of at most three times"
        assert starts[-1] - starts[0] >= 3
    finally:
        fleet.ask(lambda client: schedules.limit_starts(client, None))


def test_a_long_run_places_each_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over several histories; what was not begun when one was long enough is begun in the next."""
    shorter = ("--dynamic-config-value", "limit.historyCount.suggestContinueAsNew=75")
    monkeypatch.setattr(local, "_DYNAMIC", (*local._DYNAMIC, *shorter))
    with Fleet(tmp_path) as fleet:
        fleet.work(1, slots=6, seconds=0.02)
        cells = [f"local-{number}" for number in range(12)]
        ended = fleet.run(cells, places=fleet.places(HOME, OTHER), copies=2, window=8)
        assert (ended.counts.done, ended.counts.failed) == (12, 0)
        placed = Counter((region, key) for _, region, key in fleet.lines("copy-end"))
        assert len(placed) == 24
        assert set(placed.values()) == {1}
        # A worker that a busy machine keeps silent for too long loses its bake, which is begun again.
        assert set(fleet.happened("end").values()) == {1}

        async def parts(client: Client) -> int:
            return len([each async for each in client.list_workflows("WorkflowType = 'Fleet'")])

        assert fleet.ask(parts) > 1


def test_a_drained_run_begins_no_copy(fleet: Fleet) -> None:
    (fleet.root / f"{OTHER}.held").touch()
    cells = [f"local-drain-{number}" for number in range(6)]
    fleet.start(cells, name="drain", places=fleet.places(OTHER), copies=1)
    fleet.wait_until(lambda: len(fleet.lines("copy-start")) == 1, "the first copy")
    assert fleet.status("drain").progress.places == {OTHER: 1}  # type: ignore[union-attr]
    assert set(fleet.status("drain").workers) == {"control", BAKE, PLACE, "roll"}
    fleet.ask(lambda client: runs.drain(client, "drain"))
    (fleet.root / f"{OTHER}.held").unlink()
    ended = fleet.end("drain")
    assert (ended.counts.done, len(fleet.lines("copy-end"))) == (1, 1)

"""A newer generation takes the place of a rollout, on the real engine; and what happened is in the store afterwards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from parbake import cli
from parbake.core.errors import InputError
from parbake.fleet import audit
from parbake.fleet.engine import local, rollouts
from parbake.records.store import open_store
from standins.fleet_program import key_of
from standins.fleets import Fleet, kill

pytestmark = pytest.mark.slow(60)

CELLS = ["a@amd64", "b@amd64"]
ANYBODY = {"by": [], "count": 1, "within": None}
CANARY = {"name": "canary", "targets": ["a/one"], "approve": ANYBODY}
REST = {"name": "rest", "targets": ["a/two", "b/three"], "approve": ANYBODY}


def art(cell: str, generation: str = "") -> str:
    return f"art-{key_of(f'{cell}@amd64', generation)[:8]}"


@pytest.fixture
def fleet(engine: Fleet) -> Fleet:
    """A fleet whose targets hold what is known to be good."""
    engine.empty_targets()
    for name in ("one", "two", "three"):
        engine.target(name).write_text("good")
    engine.newer("")
    return engine


def run(fleet: Fleet, name: str, generation: str = "") -> str:
    """Run the fleet with the keys of a generation; return what became of its rollout."""
    fleet.newer(generation)
    return fleet.run(CELLS, name=name, rollout=True, supersede=True).rollout


def generation_of(fleet: Fleet, name: str) -> str:
    found = fleet.rollout(name).progress
    return found.generation if found else ""


def held(fleet: Fleet) -> dict[str, str]:
    """Return what each target holds."""
    return {name: fleet.target(name).read_text().splitlines()[0] for name in ("one", "two", "three")}


def test_a_newer_generation_takes_the_place_and_the_way_back_leads_to_what_was_good(fleet: Fleet) -> None:
    """Twice, while the second wave waits: what the first two have written is returned to what there was before."""
    fleet.waves(CANARY, REST)
    run(fleet, "next")
    fleet.until("approval", "next")
    fleet.approve("canary", "ann", "next")
    fleet.wait_until(lambda: len(fleet.written()) == 3, "the second wave")
    first = generation_of(fleet, "next")
    assert "in the place of that of" in run(fleet, "next", "2")
    fleet.wait_until(lambda: generation_of(fleet, "next") not in {first, ""}, "the newer one")
    fleet.until("approval", "next")
    second = generation_of(fleet, "next")
    assert held(fleet) == {"one": art("a", "2"), "two": art("a"), "three": art("b")}, "it has come to its first wave"
    run(fleet, "next", "3")
    fleet.wait_until(lambda: generation_of(fleet, "next") not in {second, ""}, "the newest one")
    fleet.until("approval", "next")
    assert held(fleet)["one"] == art("a", "3")
    assert "has started no rollout: the last one was of" in run(fleet, "next", "3")
    fleet.ask(lambda client: rollouts.back(client, "next", str(fleet.store), "ann on desk wants it back"))
    found = fleet.until("rolled-back", "next").progress
    assert found
    assert found.noted == []
    assert held(fleet) == dict.fromkeys(("one", "two", "three"), "good")
    assert fleet.written()[-3:] == [f"back three {art('b')}", f"back two {art('a')}", f"back one {art('a', '3')}"]
    assert any(f"takes the place of {first}" in entry.text for entry in found.story), "the story goes on"
    trail = audit.last_rollout(open_store(str(fleet.store)), "next")
    assert (trail[0].what, trail[-1].what) == ("begun", "rolled-back")
    assert {event.generation for event in trail} == {found.generation}
    returned = [(event.subject, event.after) for event in trail if event.what == "returned"]
    assert returned == [("b/three", "good"), ("a/two", "good"), ("a/one", "good")]


def test_it_ends_between_two_targets_and_waits_where_somebody_has_paused(fleet: Fleet) -> None:
    fleet.waves({**REST, "targets": ["a/one", "a/two"]})
    fleet.target("one.slow").touch()
    run(fleet, "between")
    fleet.wait_until(lambda: fleet.written() == [f"write one {art('a')}"], "the first target")
    run(fleet, "between", "2")
    with pytest.raises(InputError, match=r"is newer, and takes its place"):
        fleet.approve("rest", "ann", "between")
    fleet.ask(lambda client: rollouts.pause(client, "between", "by ann on desk"))
    fleet.target("one.slow").unlink()
    fleet.stop("rollout")  # its next try ends at once
    fleet.wait_until(lambda: fleet.rollout("between").progress.targets[0].state == "holds", "the end of it")  # type: ignore[union-attr]
    assert fleet.written() == [f"write one {art('a')}"], "nothing newer begins while somebody has paused it"
    fleet.ask(lambda client: rollouts.resume(client, "between", "by ann on desk"))
    fleet.until("approval", "between")
    assert fleet.written() == [f"write one {art('a')}", f"write one {art('a', '2')}", f"write two {art('a', '2')}"]
    assert fleet.target("one").read_text().splitlines() == [art("a", "2"), "good"], "its way back is what was good"
    fleet.ask(lambda client: rollouts.cancel(client, "between", "by ann on desk"))
    fleet.until("canceled", "between")
    trail = audit.last_rollout(open_store(str(fleet.store)), "between")
    assert (trail[-1].what, trail[-1].by) == ("cancelled", "by ann on desk")


def test_what_has_failed_gives_way_and_deaths_change_nothing(tmp_path: Path) -> None:
    """The newer one is the mended one; server and worker are killed while the two change places."""
    with Fleet(tmp_path, heartbeat=2.0) as fleet:
        for name in ("one", "two", "three"):
            fleet.target(name).write_text("good")
        fleet.work(1, slots=4)
        fleet.waves({**CANARY, "approve": None}, {**REST, "approve": None})
        fleet.target("two.stalls").touch()
        run(fleet, "mended")
        fleet.until("paused", "mended")
        fleet.target("two.stalls").unlink()
        fleet.target("one.slow").touch()
        run(fleet, "mended", "2")
        fleet.wait_until(lambda: f"write one {art('a', '2')}" in fleet.written(), "the newer one's first target")
        kill(fleet.workers[-1])
        kill(fleet.server)
        fleet.server.stop()
        fleet.server.__enter__()
        local.wait_for(fleet.settings.port, fleet.server)
        fleet.target("one.slow").unlink()
        fleet.work(1, slots=4)
        found = fleet.until("completed", "mended").progress
        assert found
        assert held(fleet) == {"one": art("a", "2"), "two": art("a", "2"), "three": art("b", "2")}
        assert fleet.target("two").read_text().splitlines() == [art("a", "2"), "good"]
        assert fleet.target("one").read_text().splitlines() == [art("a", "2"), "good"]
        writes = [line for line in fleet.written() if line.endswith(art("a", "2"))]
        assert sorted(writes) == sorted({*writes}), "each target is written once"


def test_what_happened_is_known_when_the_engine_knows_nothing(
    fleet: Fleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Who approved what from where, in the store; `fleet logs` and `fleet report` read it there."""
    fleet.waves({**CANARY, "soak": 0.2})
    run(fleet, "trail")
    fleet.until("approval", "trail")
    fleet.approve("canary", "eve", "trail")
    fleet.until("completed", "trail")
    events = audit.last_rollout(open_store(str(fleet.store)), "trail")
    told = [(event.what, event.subject, event.by, event.host) for event in events]
    assert told == [
        ("begun", "", "a run", ""),
        ("written", "a/one", "", ""),
        ("gate-passed", "canary", "", ""),
        ("waits", "canary", "", ""),
        ("approved", "canary", "eve", "here"),
        ("wave-done", "canary", "", ""),
        ("done", "", "", ""),
    ]
    assert (events[1].before, events[1].after) == ("good", art("a"))
    (tmp_path / "a").mkdir()
    (tmp_path / "a/parbake.yaml").write_text("version: 1\nimages: [r.example/a:1]\nbase: none\n")
    text = f"version: 1\nname: trail\nstore: {fleet.store}\nbakefiles: [a/parbake.yaml]\n"
    (tmp_path / "fleet.yaml").write_text(text)
    where = ["-f", str(tmp_path / "fleet.yaml"), "--state", str(tmp_path / "forgotten")]

    def parbake(*words: str) -> Any:
        assert cli.run(["fleet", *words, "--json", *where, "--progress", "none"]) == 0
        return json.loads(capsys.readouterr().out)

    document = parbake("logs", "--rollout")
    assert (document["state"], document["generation"]) == ("completed", events[0].generation)
    assert [event["what"] for event in document["events"]] == [each[0] for each in told]
    assert cli.run(["fleet", "logs", "--rollout", *where, "--progress", "none"]) == 0
    assert "canary: approved by eve on here" in capsys.readouterr().out
    page = tmp_path / "fleet.html"
    parbake("report", "--output", str(page))
    assert "As the store has it" in page.read_text()
    assert "canary: approved by eve on here" in page.read_text()

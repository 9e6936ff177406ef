"""Rollouts of fleets on the real engine: waves, soaks, gates, approvals and the way back; targets are stand-ins."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from temporalio.client import Client

from parbake import cli
from parbake.core.errors import EngineUnreachable, InputError
from parbake.fleet import preview
from parbake.fleet.cells import Cell
from parbake.fleet.engine import handles, local, logs, rollouts, runs
from parbake.fleet.engine.logs import Log
from parbake.fleet.engine.messages import Told
from parbake.fleet.engine.rollout_tasks import RolloutRequest
from parbake.fleet.engine.waves import Rollout
from parbake.fleet.preview import CellPreview
from parbake.records.store import needed, open_store
from standins.fleet_program import key_of
from standins.fleets import Fleet, kill

pytestmark = pytest.mark.slow(60)

CELLS = ["a@amd64", "b@amd64"]
A, B = (f"art-{key_of(cell)[:8]}" for cell in CELLS)
CANARY = {"name": "canary", "targets": ["a/one"]}
REST = {"name": "rest", "targets": ["a/two", "b/three", "b/four"]}
ANYBODY = {"by": [], "count": 1, "within": None}


@pytest.fixture
def fleet(engine: Fleet) -> Fleet:
    """A fleet whose targets hold nothing yet."""
    engine.empty_targets()
    return engine


def test_a_run_hands_out_what_is_good_wave_by_wave_once(fleet: Fleet) -> None:
    both = {"by": ["ann", "eve", "joe"], "count": 2, "within": None}
    gate = {"command": ["./errors"], "timeout": 10.0}
    fleet.waves({**CANARY, "soak": 1.0, "gate": gate, "approve": both}, {**REST, "at_once": 2})
    ended = fleet.run(CELLS, name="whole", rollout=True)
    assert "has started the rollout of" in ended.rollout
    waits = fleet.until("approval", "whole")
    assert waits.progress
    assert [wave.state for wave in waits.progress.waves] == ["approval", "waits"]
    assert fleet.written() == [f"write one {A}", "gate canary"]
    for wave, by, words in (
        ("asia", "ann", "the rollout has no wave asia"),
        ("rest", "ann", "the wave rest needs no approval"),
        ("canary", "bob", "bob may not approve the wave canary"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            fleet.approve(wave, by, "whole")
        assert caught.value.hint
    assert fleet.approve("", "ann", "whole") == "canary"
    with pytest.raises(InputError, match="ann has approved the wave canary already") as caught:
        fleet.approve("canary", "ann", "whole")
    assert caught.value.hint == "nobody may approve twice"
    assert fleet.written() == [f"write one {A}", "gate canary"], "one of two is not enough"
    fleet.approve("canary", "eve", "whole")
    done = fleet.until("completed", "whole").progress
    assert done
    assert [(yes.by, yes.host) for yes in done.waves[0].approved] == [("ann", "here"), ("eve", "here")]
    assert all(yes.at for yes in done.waves[0].approved)
    assert sorted(fleet.written()[2:]) == sorted([f"write two {A}", f"write three {B}", f"write four {B}"])
    with pytest.raises(InputError, match="no rollout of whole is under way: the last one is done"):
        fleet.approve("canary", "joe", "whole")
    before = fleet.written()
    again = fleet.run(CELLS, name="whole", rollout=True)
    assert "has started no rollout: the last one was of" in again.rollout
    assert fleet.written() == before


def test_what_is_held_already_is_not_written_and_asks_before_what_is(fleet: Fleet) -> None:
    fleet.waves({**CANARY, "soak": 0.5, "approve": ANYBODY}, {**REST, "soak": 3600.0, "approve": ANYBODY})
    fleet.target("one").write_text(A)
    fleet.run(CELLS, name="again", rollout=True)
    fleet.until("approval", "again")
    assert fleet.written() == ["gate canary"]
    for name, artefact in (("two", A), ("three", B), ("four", B)):
        fleet.target(name).write_text(artefact)
    fleet.approve("canary", name="again")
    found = fleet.until("completed", "again").progress
    assert found
    assert found.noted == []
    assert fleet.written() == ["gate canary"], "the last wave, which holds all of it by now, needs nobody"


def test_a_target_that_does_not_follow_returns_all_that_was_written(fleet: Fleet) -> None:
    """The stalled one too, in reverse order; what was not reached, and what held the artefact before, stay."""
    fleet.waves(CANARY, REST, {"name": "last", "targets": ["b/five"]}, on_failure="rollback")
    for name in ("one", "three", "five"):
        fleet.target(name).write_text("old")
    fleet.target("two").write_text(A)
    fleet.target("three.stalls").touch()
    fleet.run(CELLS, name="back", rollout=True)
    found = fleet.until("rolled-back", "back").progress
    assert found
    assert fleet.written() == [f"write one {A}", f"write three {B}", f"back three {B}", f"back one {A}"]
    states = {target.name: target.state for target in found.targets}
    assert states == {
        "a/one": "returned",
        "a/two": "holds",
        "b/three": "returned",
        "b/four": "waits",
        "b/five": "waits",
    }
    assert found.noted == []
    assert fleet.target("three").read_text() == "old"
    assert any("1 of 3 nodes run it" in entry.text for entry in found.story)


def test_pods_that_do_not_use_the_bake_end_their_wave(fleet: Fleet) -> None:
    """A canary that is open counts as something to do, though its target holds the artefact already."""
    fleet.waves(CANARY, REST, on_failure="rollback")
    fleet.target("one").write_text(A)
    fleet.target("one.open").touch()
    fleet.target("two").write_text("old")
    fleet.target("two.pulls").touch()
    fleet.run(CELLS, name="pods", rollout=True)
    found = fleet.until("rolled-back", "pods").progress
    assert found
    assert fleet.written() == [f"look one {A}", f"write two {A}", f"look two {A}", f"back one {A}"]
    assert {target.name: target.state for target in found.targets}["b/three"] == "waits", "no other is touched"
    assert fleet.target("two").read_text() == "old", "it had gone back by itself"
    assert any("0 of 2 pods used the bake" in entry.text for entry in found.story)


def test_what_fails_waits_for_somebody_who_goes_on_or_back(fleet: Fleet) -> None:
    fleet.waves({**CANARY, "gate": {"command": ["./errors"], "timeout": 10.0}}, REST)
    fleet.target("canary.no").touch()
    fleet.target("three.refuses").touch()
    fleet.run(CELLS, name="mend", rollout=True)
    found = fleet.until("paused", "mend")
    assert found.progress
    assert found.progress.paused == "canary: the gate says no: errors: too many errors"
    fleet.run(["c@amd64"], name="mend")
    with pytest.raises(InputError, match=r"the rollout of .* is under way, and only one can run at a time"):
        fleet.ask(lambda client: _start(client, fleet, "mend"))
    fleet.target("canary.no").unlink()
    fleet.ask(lambda client: rollouts.resume(client, "mend", "by ann"))
    fleet.wait_until(lambda: "three says no" in _paused(fleet, "mend"), "the second pause")
    fleet.target("three.refuses").unlink()
    fleet.target("four.slow").touch()
    fleet.ask(lambda client: rollouts.resume(client, "mend", "by ann"))
    fleet.wait_until(lambda: f"write four {B}" in fleet.written(), "the last target")
    fleet.ask(lambda client: rollouts.back(client, "mend", str(fleet.store), "ann wants it back"))
    with pytest.raises(InputError, match=r"goes back already|no rollout of mend is under way"):
        fleet.ask(
            lambda client: rollouts._updated(client, "mend", Rollout.back, lambda about: Told("back", about, "again"))
        )
    fleet.until("rolled-back", "mend")
    assert fleet.written() == [
        f"write one {A}", "gate canary", "gate canary", f"write two {A}", f"write three {B}", f"write four {B}",
        f"back four {B}", f"back three {B}", f"back two {A}", f"back one {A}",
    ]  # fmt: skip


async def _start(client: Client, fleet: Fleet, name: str) -> str:
    return await rollouts.start(client, await runs.made(client, name, str(fleet.store)))


def _paused(fleet: Fleet, name: str) -> str:
    found = fleet.rollout(name).progress
    return found.paused if found else ""


def test_a_pause_holds_within_one_target_and_what_has_ended_can_be_returned(fleet: Fleet) -> None:
    fleet.waves({"name": "all", "targets": ["a/one", "a/two"], "approve": ANYBODY})
    fleet.target("one").write_text("old")
    fleet.target("one.slow").touch()
    fleet.run(CELLS, name="pause", rollout=True)
    fleet.wait_until(lambda: fleet.written() == [f"write one {A}"], "the first target")
    with pytest.raises(InputError, match="the wave all does not wait for an approval: it is being rolled out"):
        fleet.approve("all", name="pause")
    fleet.ask(lambda client: rollouts.pause(client, "pause", "by ann"))
    fleet.target("one.slow").unlink()
    fleet.stop("rollout")  # its next try ends at once
    fleet.wait_until(lambda: fleet.rollout("pause").progress.targets[0].state == "holds", "the end of it")  # type: ignore[union-attr]
    assert fleet.rollout("pause").state == "paused"
    assert fleet.written() == [f"write one {A}"]
    fleet.ask(lambda client: rollouts.resume(client, "pause", "by ann"))
    fleet.until("approval", "pause")
    fleet.ask(lambda client: rollouts.cancel(client, "pause"))
    fleet.until("canceled", "pause")
    fleet.target("two.refuses").touch()
    fleet.ask(lambda client: rollouts.back(client, "pause", str(fleet.store), "ann wants it back"))
    found = fleet.until("rolled-back", "pause").progress
    assert found
    assert found.noted == ["a/two"], "what cannot be returned does not keep the others from it"
    assert fleet.target("one").read_text() == "old"
    fleet.target("two.refuses").unlink()
    fleet.target("two").write_text("of somebody else")
    fleet.ask(lambda client: rollouts.back(client, "pause", str(fleet.store), "again"))
    fleet.wait_until(lambda: _is_back(fleet.rollout("pause")), "the second way back")
    assert fleet.target("two").read_text() == "of somebody else"
    with pytest.raises(InputError, match="has written nothing that could be returned"):
        fleet.ask(lambda client: rollouts.back(client, "pause", str(fleet.store), "once more"))


def _is_back(status: rollouts.RolloutStatus) -> bool:
    """Whether the rollout has ended with nothing left to return."""
    return status.state == "rolled-back" and status.progress is not None and status.progress.noted == []


def test_a_target_waits_for_its_window_and_an_approval_not_for_ever(fleet: Fleet) -> None:
    fleet.waves({**CANARY, "approve": {**ANYBODY, "within": 1.0}})
    fleet.run(CELLS, name="late", rollout=True)
    found = fleet.until("paused", "late")
    assert "it was not approved in time" in (found.progress.paused if found.progress else "")
    fleet.ask(lambda client: rollouts.cancel(client, "late"))
    fleet.waves(CANARY, windows=["Mon 00:00-00:01", "Thu 00:00-00:01"])
    fleet.target("one").unlink()
    fleet.run(CELLS, name="window", rollout=True)
    found = fleet.until("window", "window")
    assert found.progress
    assert found.progress.opens
    fleet.ask(lambda client: rollouts.cancel(client, "window"))
    fleet.until("canceled", "window")
    assert len(fleet.written()) == 1


def test_a_rollout_after_one_that_was_cancelled_is_a_new_one(fleet: Fleet) -> None:
    fleet.waves({**CANARY, "approve": ANYBODY}, REST)
    fleet.run(CELLS, name="anew", rollout=True)
    first = fleet.until("approval", "anew")
    fleet.ask(lambda client: rollouts.cancel(client, "anew"))
    fleet.ask(lambda client: _start(client, fleet, "anew"))
    second = fleet.until("approval", "anew")
    assert second.started_at > first.started_at
    assert fleet.written() == [f"write one {A}"], "what was not approved is not written, whoever begins anew"
    fleet.ask(lambda client: rollouts.cancel(client, "anew"))
    fleet.until("canceled", "anew")


def test_what_there_is_not_is_told(fleet: Fleet) -> None:
    with pytest.raises(InputError, match="there was no rollout of nobody yet"):
        fleet.ask(lambda client: rollouts.back(client, "nobody", str(fleet.store), ""))
    with pytest.raises(InputError, match="there was no run of nobody yet"):
        fleet.ask(lambda client: _start(client, fleet, "nobody"))
    fleet.waves(CANARY)
    ended = fleet.run([*CELLS, "wrong"], name="bad", rollout=True)
    assert "started no rollout: 1 of 3 cells have failed, or are in quarantine" in ended.rollout
    (fleet.root / "waves.json").unlink()
    fleet.run(CELLS, name="broken", rollout=True)
    found = fleet.until("failed", "broken")
    assert found.problem == "the fleet has no waves"


def test_the_commands_tell_and_ask(
    fleet: Fleet, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each command once, with the words that it says."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a/parbake.yaml").write_text(
        "version: 1\nimages: [r.example/a:1]\nbase: none\nrollout: [file: a.json]\n"
    )
    rollout = "rollout: {waves: [{name: all, rest: true}]}"
    text = f"version: 1\nname: cli\nstore: {fleet.store}\nbakefiles: [a/parbake.yaml]\n{rollout}\n"
    (tmp_path / "fleet.yaml").write_text(text)
    where = ["--state", str(fleet.state), "-f", str(tmp_path / "fleet.yaml")]

    def parbake(*words: str, code: int = 0) -> Any:
        assert cli.run(["fleet", *words, "--json", *where]) == code
        return json.loads(capsys.readouterr().out)

    def said(*words: str) -> str:
        assert cli.run(["fleet", *words, *where]) == 0
        return capsys.readouterr().out

    fleet.waves({**CANARY, "approve": ANYBODY}, {"name": "rest", "targets": ["a/two"]})
    fleet.run(CELLS[:1], name="cli")
    assert "there was no rollout of cli yet" in parbake("approve", code=2)["message"]
    assert parbake("rollout", "--wait", "--progress", "none")["state"] == "approval"
    assert "is under way" in said("rollout")
    assert "starts no further target" in said("pause", "--rollout")
    fleet.until("paused", "cli")
    assert "by " in parbake("status")["last_rollout"]["paused"]
    assert "rollout/cli: goes on" in said("resume", "--rollout")
    fleet.until("approval", "cli")
    assert "no wave asia" in parbake("approve", "asia", code=2)["message"]
    assert parbake("approve", "--by", "ann", "--wait", "--note", "well", "--progress", "none")["state"] == "completed"
    assert "approved by ann on " in said("logs", "--rollout")
    assert parbake("rollback", "--wait", "--progress", "none")["noted"] == []
    assert "was rolled back" in said("status")
    assert "no rollout of cli is under way" in parbake("cancel", "--rollout", code=2)["message"]
    look = CellPreview(Cell("a@amd64", "a/parbake.yaml", "linux/amd64"), "bake", key_of("a@amd64"), "a.raw")
    monkeypatch.setattr(preview, "look", lambda *_: (look,))
    assert "Fill a@amd64" in said("logs", "a", "--progress", "none")
    assert "logs belong to a cell or to the rollout" in parbake("logs", code=2)["message"]
    monkeypatch.setattr(preview, "look", lambda *_: (replace(look, key="0" * 64),))
    assert "the engine has no bake of" in parbake("logs", "a", code=2)["message"]
    monkeypatch.setattr(preview, "look", lambda *_: (replace(look, key="", state="build"),))
    assert "its images have to be built first" in parbake("logs", "a", code=2)["message"]
    page = tmp_path / "fleet.html"
    assert "wrote " in said("report", "--output", str(page), "--progress", "none")
    assert "was rolled back" in page.read_text()
    note = fleet.store / "begun/rollout/cli.json"
    note.write_text(json.dumps(json.loads(note.read_text()) | {"made": "2100-01-01"}))
    older = parbake("rollout", "--wait", "--progress", "none", code=3)
    assert older["state"] == "rolled-back", "the last one is still the last that has begun"
    assert "what was rolled out last is newer, of 2100-01-01" in older["problem"]
    assert parbake("rollout", "--again", "--wait", "--progress", "none")["state"] == "approval"
    where[1] = str(tmp_path / "nowhere")
    assert "The engine could not be asked" in said("report", "--output", str(page), "--progress", "none")


def test_a_bake_that_runs_or_has_failed_says_what_it_did(fleet: Fleet) -> None:
    def log(cell: str) -> Log:
        return fleet.ask(lambda client: logs.log(client, key_of(cell), str(fleet.store)))

    fleet.start(["slow-log", "refused-log", "flaky-log"], name="logs", attempts=3)
    fleet.wait_until(
        lambda: bool(fleet.happened("start")[key_of("slow-log")] and log("slow-log").lines), "its heartbeat"
    )
    runs_now = log("slow-log")
    assert runs_now.state == "running"
    assert runs_now.lines[0].endswith("Fill slow-log")
    fleet.wait_until(lambda: fleet.happened("end")[key_of("flaky-log")] == 1, "the third try")
    fleet.wait_until(lambda: log("refused-log").state == "failed", "the failure")
    assert log("refused-log").error == "VerificationFailed: refused-log does not start"
    fleet.wait_until(lambda: log("flaky-log").state == "baked", "its result")
    again = log("flaky-log")
    assert (again.attempt, again.before) == (3, "Unreachable: the registry does not answer")
    fleet.ask(lambda client: runs.cancel(client, "logs"))
    fleet.wait_until(lambda: log("slow-log").state == "cancelled", "the cancellation")


def test_deaths_in_every_state_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Server and worker are killed in each state, and histories are short: each target is written exactly once."""
    shorter = ("--dynamic-config-value", "limit.historyCount.suggestContinueAsNew=60")
    monkeypatch.setattr(local, "_DYNAMIC", (*local._DYNAMIC, *shorter))
    with Fleet(tmp_path, heartbeat=2.0) as fleet:

        def die() -> None:
            kill(fleet.workers[-1])
            fleet.end_server()
            fleet.begin_server()
            fleet.work(1, slots=4)

        def wave_is(state: str) -> bool:
            found = fleet.ask(lambda client: rollouts.status(client, "shop", str(fleet.store)))
            return bool(found and found.progress and found.progress.waves and found.progress.waves[0].state == state)

        fleet.work(1, slots=4)
        many = [f"b/{number}" for number in range(8)]
        gate = {"command": ["./errors"], "timeout": 10.0}
        fleet.waves(
            {**CANARY, "soak": 5.0, "gate": gate, "approve": ANYBODY},
            {"name": "many", "targets": many, "at_once": 2},
            {"name": "last", "targets": ["a/last"]},
        )
        fleet.target("one.slow").touch()
        fleet.target("last.slow").touch()
        fleet.run(CELLS, rollout=True)
        fleet.wait_until(lambda: fleet.written() == [f"write one {A}"], "the first target")
        fleet.target("one.slow").unlink()
        die()  # while it is handed out
        fleet.wait_until(lambda: wave_is("soaks"), "the soak")
        die()
        fleet.until("approval")
        die()
        fleet.approve("canary")
        fleet.ask(lambda client: rollouts.pause(client, "shop", "by ann"))
        fleet.until("paused")
        die()
        fleet.ask(lambda client: rollouts.resume(client, "shop", "by ann"))
        fleet.wait_until(lambda: f"write last {A}" in fleet.written(), "the last target")
        writes = [line for line in fleet.written() if line.startswith("write")]
        assert sorted(writes) == sorted([f"write one {A}", *(f"write {n} {B}" for n in range(8)), f"write last {A}"])
        fleet.ask(lambda client: rollouts.back(client, "shop", str(fleet.store), "ann wants it back"))
        fleet.wait_until(lambda: any(line.startswith("back") for line in fleet.written()), "the way back")
        die()
        found = fleet.until("rolled-back").progress
        assert found
        assert found.noted == []
        backs = [line.removeprefix("back ") for line in fleet.written() if line.startswith("back")]
        noted = [line.removeprefix("write ") for line in writes]
        assert sorted(backs) == sorted(noted)
        assert backs[0] == f"last {A}"
        assert backs[-1] == f"one {A}"

        async def parts(client: Client) -> int:
            return len([each async for each in client.list_workflows("WorkflowType = 'Rollout'")])

        assert fleet.ask(parts) > 1, "it went on in a new history"


def test_what_is_true_is_still_so_when_the_engine_is_lost(tmp_path: Path) -> None:
    """Its database goes after bakes and a rollout: nothing is baked, written or asked again."""
    cells = [*CELLS, *(f"more-{number}@amd64" for number in range(28))]
    with Fleet(tmp_path) as fleet:
        fleet.work(1, slots=4)
        fleet.waves({**CANARY, "soak": 1.0, "approve": ANYBODY}, REST)
        fleet.run(cells, rollout=True)
        fleet.until("approval")
        fleet.approve("canary")
        fleet.until("completed")
        written, ledger = fleet.written(), fleet.ledger()
        assert len(written) == 5
        fleet.end_server(fresh=True)
        fleet.begin_server()
        again = fleet.run(cells, rollout=True)
        assert (again.counts.there, again.counts.done) == (30, 30)
        found = fleet.until("completed").progress
        assert found
        said = [entry.text for entry in found.story]
        assert [text for text in said if "already" in text] == [
            f"{name}: all of it holds the artefacts already" for name in ("canary", "rest")
        ]
        assert found.noted == []
        assert (fleet.written(), fleet.ledger()) == (written, ledger)


def test_pruning_spares_what_a_rollout_needs(fleet: Fleet) -> None:
    """It is noted in the store before anything is written, and until the next rollout writes there."""
    store = open_store(str(fleet.store))
    key = key_of(CELLS[0])[:32]
    fleet.target("one").write_text("of-before")
    fleet.waves({**CANARY, "approve": ANYBODY}, REST)
    fleet.run(CELLS, name="needs", rollout=True)
    fleet.until("approval", "needs")
    found = needed(store)
    assert found["of-before"] == "one of a/parbake.yaml in the fleet needs would go back to it"
    assert found[key].startswith("the last rollout of the fleet ")
    assert found[key_of(CELLS[1])[:32]]
    fleet.ask(lambda client: rollouts.back(client, "needs", str(fleet.store), "ann wants it back"))
    fleet.until("rolled-back", "needs")
    assert "of-before" in needed(store), "who has gone back may want to do so again"


def test_an_approval_without_a_worker_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (handles, rollouts):
        monkeypatch.setattr(module, "AN_ANSWER", timedelta(seconds=1))
    with Fleet(tmp_path) as fleet:
        fleet.ask(lambda client: _begin(client, fleet))
        with pytest.raises(EngineUnreachable, match="no worker answers"):
            fleet.approve("canary")
        assert fleet.rollout().progress is None
        monkeypatch.setattr(handles, "_AN_END", 1.0)
        fleet.ask(lambda client: rollouts.cancel(client, "shop"))
        with pytest.raises(EngineUnreachable, match="the rollout before was cancelled, and has not ended within 1 s"):
            fleet.ask(lambda client: _begin(client, fleet))


async def _begin(client: Client, fleet: Fleet) -> str:
    request = RolloutRequest("shop", "fleet.yaml", fleet.request([]).root, str(fleet.store), {"a@amd64": "k"})
    return await rollouts.start(client, request)

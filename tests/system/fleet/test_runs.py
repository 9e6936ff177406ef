"""Runs of fleets on the real engine; what is baked is a stand-in, so that only the engine's part is looked at."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from temporalio.client import Client

from parbake.core.errors import EngineUnreachable, InputError, Interrupted
from parbake.fleet.engine import handles, local, runs, tasks
from parbake.fleet.engine.connect import Engine, connect
from parbake.fleet.engine.tasks import BakeRequest, Order, Root
from parbake.fleet.engine.workflows import Bake
from standins.fleet_program import key_of
from standins.fleets import Fleet, kill

pytestmark = pytest.mark.slow(60)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """One engine with two workers, for tests that leave them alive; what they have done is done the same again."""
    with Fleet(tmp_path_factory.mktemp("fleet")) as fleet:
        fleet.work(2)
        yield fleet
        fleet.replay()


def test_a_run_brings_every_cell_to_its_end_and_the_next_one_does_nothing(shared: Fleet) -> None:
    cells = ["one", "two", "build-three", "wrong-four", "refused-five", "flaky-six", "mistaken-seven"]
    ended = shared.run(cells)
    counts = ended.counts
    assert (counts.baked, counts.failed, counts.done, ended.total) == (4, 3, 7, 7)
    assert {each.cell: each.error for each in ended.failed} == {
        "wrong-four": "Wrong",
        "refused-five": "VerificationFailed",
        "mistaken-seven": "BakefileError",
    }
    refused = next(each for each in ended.failed if each.cell == "refused-five")
    assert (refused.message, refused.hint) == ("refused-five does not start", "do something else")
    starts = shared.happened("start")
    once = (starts[key_of("refused-five")], starts[key_of("mistaken-seven")])
    assert once == (1, 1), "no second try would end otherwise"
    assert starts[key_of("flaky-six")] == 3
    assert shared.happened("end") == dict.fromkeys(map(key_of, ["one", "two", "build-three", "flaky-six"]), 1)
    again = shared.run(["one", "two", "flaky-six"])
    assert (again.counts.there, again.counts.done) == (3, 3)
    assert shared.happened("start") == starts
    assert shared.status().state == "completed"
    shared.wait_until(
        lambda: shared.status().workers == {"control": 2, "bake": 2, "place": 2, "roll": 2}, "both workers"
    )


def test_what_cannot_be_planned_has_failed(shared: Fleet) -> None:
    """All that was to be planned with it."""
    ended = shared.run(["unplanned", "beside-it"], name="planless")
    assert {each.cell: (each.error, each.message) for each in ended.failed} == dict.fromkeys(
        ("unplanned", "beside-it"), ("InputError", "nobody can plan it")
    )


def test_fleets_that_want_the_same_keys_bake_each_once(shared: Fleet) -> None:
    """Three fleets, and two runs of each at once."""
    cells = [f"common-{number}" for number in range(30)]
    names = ("a", "b", "c")

    async def all_at_once(client: Client) -> list[str]:
        # Nobody dies here: a worker that a busy machine stops for a moment must not count as dead.
        asked = [shared.request(cells, name=name, heartbeat=60.0) for name in (*names, *names)]
        return await asyncio.gather(*(runs.start(client, request) for request in asked))

    assert shared.ask(all_at_once) == [f"fleet/{name}" for name in (*names, *names)]
    ended = [shared.end(name) for name in names]
    assert [each.counts.done for each in ended] == [30, 30, 30]
    assert sum(each.counts.baked for each in ended) == 30
    starts = shared.happened("start")
    assert [starts[key_of(cell)] for cell in cells] == [1] * 30


def test_a_cancelled_run_ends_what_it_has_begun(shared: Fleet) -> None:
    shared.start(["slow-cancelled"], name="patient")
    key = key_of("slow-cancelled")
    shared.wait_until(lambda: shared.happened("start")[key] == 1, "the bake's start")

    def heard() -> bool:
        running = shared.status("patient").running
        return bool(running and running[0].progress.get("stage") == "fill")

    shared.wait_until(heard, "the bake's heartbeat")
    shared.ask(lambda client: runs.cancel(client, "patient"))
    with pytest.raises(Interrupted, match="was cancelled"):
        shared.end("patient")
    assert shared.happened("end")[key] == 0
    with pytest.raises(InputError, match="no run of patient is under way"):
        shared.ask(lambda client: runs.cancel(client, "patient"))
    with pytest.raises(InputError, match="there was no run of nobody yet"):
        shared.status("nobody")


def test_a_run_after_one_that_was_cancelled_begins_when_that_one_has_ended(shared: Fleet) -> None:
    """It would find the one that is still ending, and wait for what nobody does."""
    said: list[str] = []

    async def cancel_and_run(client: Client) -> str:
        await runs.cancel(client, "again")
        return await runs.start(client, shared.request(["after-the-cancel"], name="again"), said.append)

    shared.start(["slow-again"], name="again")
    shared.wait_until(lambda: shared.happened("start")[key_of("slow-again")] == 1, "the bake's start")
    assert shared.ask(cancel_and_run) == "fleet/again"
    assert shared.end("again").counts.baked == 1
    assert key_of("after-the-cancel") in shared.records
    assert said == ["the run before was cancelled: waiting for its end"]


def test_a_run_that_ends_without_anybody_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handles, "_AN_END", 1.0)
    with Fleet(tmp_path) as fleet:
        fleet.start(["waits"])
        fleet.ask(lambda client: runs.cancel(client, "shop"))
        with pytest.raises(EngineUnreachable, match="the run before was cancelled, and has not ended within 1 s"):
            fleet.start(["waits"])


def test_too_many_failures_pause_a_run(shared: Fleet) -> None:
    cells = [f"wrong-{number}" for number in range(60)] + ["after-all"]
    shared.start(cells, name="unlucky", failures=10, window=2)
    shared.wait_until(lambda: shared.status("unlucky").state == "paused", "the pause")
    progress = shared.status("unlucky").progress
    assert progress is not None
    assert "of 61 cells failed" in progress.paused
    assert key_of("after-all") not in shared.records
    shared.ask(lambda client: runs.resume(client, "unlucky"))
    ended = shared.end("unlucky")
    assert (ended.counts.failed, ended.counts.baked) == (60, 1)
    assert len(ended.failed) == tasks.MOST_TOLD


def test_nobody_works_for_whom_it_does_not_know(shared: Fleet) -> None:
    """A development server has no log-in: whoever reaches it can start workflows. Without the key none does a thing."""

    async def inject(client: Client) -> None:
        plain = await Client.connect(client.service_client.config.target_host)
        request = BakeRequest("k" * 64, Order("intruder", [], Root("/"), "fleet.yaml", "/nowhere"))
        handle = await plain.start_workflow(Bake.run, request, id="bake/intruder", task_queue=tasks.CONTROL)
        await asyncio.sleep(3)
        described = await handle.describe()
        assert described.status is not None
        assert described.status.name == "RUNNING"
        await handle.terminate()

    shared.ask(inject)
    assert shared.happened("start")["k" * 64] == 0


def test_the_engine_reads_nothing_of_what_is_done(shared: Fleet) -> None:
    shared.run(["marker-of-a-cell", "refused-marker-of-a-cell"], name="sealed")
    texts = b"".join(path.read_bytes() for path in shared.state.glob("fleet.db*"))  # its log too
    assert b"bake/" in texts, "names of workflows can be read"
    assert b"does not start" not in texts
    assert b"marker-of-a-cell" not in texts
    assert str(shared.store).encode() not in texts


def test_a_dead_worker_and_a_dead_server_lose_nothing(tmp_path: Path) -> None:
    with Fleet(tmp_path) as fleet:
        first, _ = fleet.work(2, seconds=0.5)
        cells = [f"cell-{number}" for number in range(24)]
        fleet.start(cells)
        fleet.wait_until(lambda: len(fleet.records) >= 4, "some records")
        kill(first)
        fleet.wait_until(lambda: len(fleet.records) >= 8, "more records")
        fleet.end_server()
        fleet.begin_server()
        ended = fleet.end()
        assert ended.counts.failed == 0
        assert ended.counts.done == 24
        assert fleet.records == set(map(key_of, cells))
        assert set(fleet.happened("end").values()) == {1}
        assert sum(fleet.happened("start").values()) <= 24 + 2


def test_a_bake_that_kills_its_workers_is_given_up_and_the_others_are_done(tmp_path: Path) -> None:
    with Fleet(tmp_path, heartbeat=5.0) as fleet:
        fleet.work(1, slots=1)
        fleet.start(["killer", "fine-1", "fine-2"], attempts=2)
        key = key_of("killer")
        quarantined = fleet.store / "quarantine" / key
        while not quarantined.exists():
            dead = [worker for worker in fleet.workers if not worker.alive]
            if len(dead) == len(fleet.workers):
                fleet.work(1, slots=1)
            fleet.wait_until(
                lambda: quarantined.exists() or not fleet.workers[-1].alive or key not in fleet.happened("start"),
                "the death of a worker",
            )
            if len(fleet.workers) > 6:
                break
        ended = fleet.end()
        assert fleet.happened("start")[key] == 2
        assert [each.error for each in ended.failed] == ["WorkerLost"]
        assert ended.counts.baked == 2
        again = fleet.run(["killer", "fine-1"])
        assert (again.counts.quarantined, again.counts.there) == (1, 1)
        assert fleet.happened("start")[key] == 2


def test_a_worker_that_is_told_to_stop_hands_its_bake_on(tmp_path: Path) -> None:
    with Fleet(tmp_path) as fleet:
        (first,) = fleet.work(1, slots=1, grace=0.5, seconds=4)
        fleet.start(["handed-on"])
        key = key_of("handed-on")
        fleet.wait_until(lambda: fleet.happened("start")[key] == 1, "the bake's start")
        kill(first, signal.SIGTERM)
        fleet.wait_until(lambda: not first.alive, "the worker's end")
        fleet.work(1, seconds=0.1)
        ended = fleet.end()
        assert (ended.counts.baked, ended.counts.failed) == (1, 0)
        assert fleet.happened("end")[key] == 1


def test_without_a_worker_the_status_says_so(tmp_path: Path) -> None:
    with Fleet(tmp_path) as fleet:
        fleet.start(["waits"])
        status = fleet.status()
        assert status.workers == {"control": 0, "bake": 0, "place": 0, "roll": 0}
        assert status.progress is None
        fleet.work(1)
        assert fleet.end().counts.baked == 1


def test_no_engine_no_key_and_no_address_are_told(tmp_path: Path) -> None:
    engine = Engine(tmp_path)
    with pytest.raises(InputError, match="there is no key"):
        asyncio.run(connect(engine))
    (tmp_path / "key").write_text("0" * 64)
    (tmp_path / "key").chmod(0o644)
    with pytest.raises(InputError, match="others can read"):
        asyncio.run(connect(engine))
    (tmp_path / "key").chmod(0o600)
    with pytest.raises(InputError, match="nothing says where the engine is"):
        asyncio.run(connect(engine))
    (tmp_path / "server.json").write_text('{"address": "127.0.0.1:1"}')
    with pytest.raises(EngineUnreachable, match=r"the engine at 127\.0\.0\.1:1 does not answer"):
        asyncio.run(connect(engine))
    (tmp_path / "key").write_text("word")
    with pytest.raises(InputError, match="is not a key of a fleet"):
        asyncio.run(connect(engine))


def test_a_long_run_goes_on_in_a_new_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine suggests that after 4,096 events; this one after 40."""
    shorter = ("--dynamic-config-value", "limit.historyCount.suggestContinueAsNew=40")
    monkeypatch.setattr(local, "_DYNAMIC", (*local._DYNAMIC, *shorter))
    with Fleet(tmp_path) as fleet:
        fleet.work(1, slots=4, seconds=0)
        cells = [f"cell-{number}" for number in range(20)] + ["wrong"]
        ended = fleet.run(cells, window=4)
        assert (ended.total, ended.counts.baked, ended.counts.failed) == (21, 20, 1)
        assert [each.cell for each in ended.failed] == ["wrong"]
        assert set(fleet.happened("start").values()) == {1}

        async def parts(client: Client) -> int:
            return len([each async for each in client.list_workflows("WorkflowType = 'Fleet'")])

        assert fleet.ask(parts) > 1

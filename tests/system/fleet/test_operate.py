"""Operating fleets on the real engine: schedules, drains, workers that have another store, key or version."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from temporalio.client import Client, ScheduleActionResult, WorkflowFailureError
from temporalio.exceptions import FailureError

from parbake.core.errors import Interrupted
from parbake.core.run import Process
from parbake.fleet.engine import runs, schedules
from parbake.fleet.engine.facts import pollers
from parbake.fleet.engine.failures import describe
from parbake.fleet.engine.schedules import Applied
from parbake.fleet.engine.tasks import CONTROL, Failure, FleetFile
from parbake.fleet.engine.worker import _current as current
from parbake.fleet.file import Schedule
from parbake.records.store import identity_of, open_store
from standins.fleet_program import key_of
from standins.fleets import Fleet, kill

pytestmark = pytest.mark.slow(60)

USUAL = "version: 1\nimages: [r.example/app:1]\nbase: none\n"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """One engine with two workers, for tests that leave them alive."""
    with Fleet(tmp_path_factory.mktemp("fleet")) as fleet:
        fleet.work(2, slots=2, seconds=0.3)
        yield fleet


def every(seconds: float, **more: object) -> Schedule:
    return Schedule.model_validate({"every": f"{seconds:.0f}s", **more})


def place(fleet: Fleet, name: str, *cells: str) -> FleetFile:
    """Write a fleet's file; return where it is."""
    folder = fleet.state / name
    for cell in cells:
        (folder / cell).mkdir(parents=True)
        (folder / cell / "parbake.yaml").write_text(USUAL)
    lines = [f"  - {cell}/parbake.yaml\n" for cell in cells]
    (folder / "fleet.yaml").write_text(f"version: 1\nname: {name}\nstore: {fleet.store}\nbakefiles:\n{''.join(lines)}")
    return FleetFile(name, "fleet.yaml", str(folder), heartbeat=3.0)


def apply(fleet: Fleet, wanted: Schedule | None, place: FleetFile, *, dry_run: bool = False) -> Applied:
    return fleet.ask(lambda client: schedules.apply(client, wanted, place, dry_run=dry_run))


def test_runs_begin_by_themselves_as_the_file_is_then(shared: Fleet) -> None:
    where = place(shared, "hourly", "first", "poison")
    poison = key_of("poison@amd64")
    (shared.store / "quarantine").mkdir(exist_ok=True)
    (shared.store / "quarantine" / poison).touch()
    assert apply(shared, None, where) == Applied("none", "none")
    assert apply(shared, every(1, prune="1s"), where, dry_run=True) == Applied("created", "created")
    assert apply(shared, every(1, prune="1s"), where) == Applied("created", "created")
    assert apply(shared, every(1, prune="1s"), where) == Applied("unchanged", "unchanged")
    shared.wait_until(lambda: key_of("first@amd64") in shared.records, "the first run")
    shared.wait_until(lambda: shared.happened("prune")["first/parbake.yaml"] > 0, "the first pruning")
    place(shared, "hourly", "second")
    shared.wait_until(lambda: key_of("second@amd64") in shared.records, "a run of the changed file")
    assert apply(shared, every(3600, jitter="1m"), where) == Applied("changed", "removed")
    assert apply(shared, every(3600, jitter="1m"), where) == Applied("unchanged", "none")
    shared.ask(lambda client: schedules.hold(client, "hourly", "drained"))
    assert apply(shared, every(1800), where) == Applied("changed", "none", "drained")
    shared.ask(lambda client: runs.resume(client, "hourly"))
    assert apply(shared, None, where) == Applied("removed", "none")
    starts = shared.happened("start")
    assert (starts[key_of("first@amd64")], starts[poison]) == (1, 0), "what is in quarantine is not tried"


def test_what_was_missed_in_an_outage_is_made_up_for_once(tmp_path: Path) -> None:
    """Ten turns and more: one begins; where turns queue, one of them waits for its end."""
    with Fleet(tmp_path) as fleet:
        fleet.work(1)
        began = time.monotonic()
        fleet.run(["first"])
        # A run is to be over long before the next begins, however busy the machine is.
        seconds = min(max(3, math.ceil(4 * (time.monotonic() - began))), 25)
        for overlap in ("skip", "queue"):
            apply(fleet, every(seconds, overlap=overlap, catch_up="10m"), place(fleet, overlap, f"{overlap}-cell"))
            fleet.wait_until(lambda cell=f"{overlap}-cell@amd64": key_of(cell) in fleet.records, "the first run")  # type: ignore[misc]

        async def turns(client: Client, overlap: str) -> list[ScheduleActionResult]:
            described = await client.get_schedule_handle(f"fleet/{overlap}").describe()
            return list(described.info.recent_actions)

        def rests(overlap: str) -> bool:
            """Whether the run of the last turn has ended, and the next turn is not near: it would be under way."""
            began = max(each.started_at for each in fleet.ask(partial(turns, overlap=overlap)))
            ended = fleet.status(overlap).state == "completed"
            return ended and datetime.now(UTC) - began < timedelta(seconds=seconds - 1)

        fleet.wait_until(lambda: rests("skip") and rests("queue"), "the end of both runs")
        fleet.end_server()
        stopped = datetime.now(UTC)
        fleet.wait_until(lambda: datetime.now(UTC) - stopped > timedelta(seconds=11 * seconds), "more than ten turns")
        back = datetime.now(UTC)
        fleet.begin_server()

        for overlap, most in (("skip", 1), ("queue", 2)):
            ask = partial(turns, overlap=overlap)
            fleet.wait_until(lambda: max(each.scheduled_at for each in fleet.ask(ask)) > back, "a turn after it")  # noqa: B023
            late = [each for each in fleet.ask(ask) if each.started_at > back > each.scheduled_at]
            assert 1 <= len(late) <= most
        assert set(fleet.happened("start").values()) == {1}


def test_what_a_schedule_starts_says_what_went_wrong(shared: Fleet) -> None:
    where = place(shared, "mixed", "refused-one", "fine-one")

    async def ask(client: Client, what: str, result: type) -> Any:
        return await client.execute_workflow(what, where, id=f"by-hand/{what}", task_queue=CONTROL, result_type=result)

    (failed,) = shared.ask(partial(ask, what="Prune", result=list[Failure]))
    assert (failed.cell, failed.error) == ("refused-one/parbake.yaml", "BakefileError")
    assert shared.happened("prune")["fine-one/parbake.yaml"] == 1, "the others go on"
    (shared.state / "mixed/fine-one/parbake.yaml").write_text("version: 9\n")
    (shared.state / "mixed/fleet.yaml").write_text("version: 9\n")
    for what in ("Prune", "Tick"):
        with pytest.raises(WorkflowFailureError) as caught:
            shared.ask(partial(ask, what=what, result=str))
        cause = caught.value.cause
        assert isinstance(cause, FailureError)
        found = describe("", cause)
        assert "version" in found.message
        assert found.error


def test_a_schedule_goes_alone(shared: Fleet) -> None:
    """The run that is under way, the other fleet's schedule and what was baked stay."""
    kept, gone = place(shared, "kept", "kept-cell"), place(shared, "gone", "slow-gone")
    apply(shared, every(3600, prune="1h"), kept)
    apply(shared, every(1, prune="1h"), gone)
    shared.wait_until(lambda: bool(shared.happened("start")[key_of("slow-gone@amd64")]), "its run")
    records = shared.records
    assert apply(shared, None, gone) == Applied("removed", "removed")
    assert apply(shared, None, gone) == Applied("none", "none")
    assert apply(shared, every(3600, prune="1h"), kept) == Applied("unchanged", "unchanged")
    assert shared.status("gone").state == "running"
    assert shared.records >= records
    apply(shared, None, kept)
    shared.ask(lambda client: runs.cancel(client, "gone"))
    shared.wait_until(lambda: shared.status("gone").state == "canceled", "the end of the run")


def test_a_run_under_way_is_not_begun_again(shared: Fleet) -> None:
    where = place(shared, "patient", "slow-one")
    apply(shared, every(1), where)

    async def skipped(client: Client) -> int:
        described = await client.get_schedule_handle("fleet/patient").describe()
        return int(described.info.num_actions_skipped_overlap)

    shared.wait_until(lambda: shared.ask(skipped) >= 2, "two that were skipped")
    assert shared.happened("start")[key_of("slow-one@amd64")] == 1
    apply(shared, None, where)
    shared.ask(lambda client: runs.cancel(client, "patient"))
    shared.wait_until(lambda: shared.status("patient").state == "canceled", "the end of the run")


def test_a_run_that_is_drained_ends_with_what_it_has_begun(shared: Fleet) -> None:
    cells = [f"drained-{number}" for number in range(12)]
    shared.start(cells, name="maintained", window=2)
    shared.wait_until(lambda: bool(shared.happened("start")[key_of(cells[0])]), "the first bake")
    assert shared.ask(lambda client: runs.drain(client, "maintained"))
    ended = shared.end("maintained")
    assert 1 <= ended.counts.baked < 12
    assert ended.counts.done == ended.counts.baked
    assert ended.running == {}
    assert not shared.ask(lambda client: runs.drain(client, "maintained")), "there is none any more"
    again = shared.run(cells, name="maintained")
    assert (again.counts.there, again.counts.baked) == (ended.counts.baked, 12 - ended.counts.baked)


def test_a_run_that_is_drained_while_it_is_planned_begins_nothing(shared: Fleet) -> None:
    held = shared.root / "plans.held"
    held.touch()
    shared.start(["planned-for-nothing"], name="heard")
    shared.wait_until(lambda: bool(shared.lines("plan-held")), "the plan")
    assert shared.ask(lambda client: runs.drain(client, "heard"))
    held.unlink()
    assert shared.end("heard").counts.done == 0
    assert shared.happened("start")[key_of("planned-for-nothing")] == 0


def test_a_run_after_one_that_is_drained_does_the_rest(shared: Fleet) -> None:
    cells = [f"rest-{number}" for number in range(6)]
    said: list[str] = []

    async def drain_and_run(client: Client) -> None:
        assert await runs.drain(client, "rest")
        await runs.start(client, shared.request(cells, name="rest", window=2), said.append)

    shared.start(cells, name="rest", window=2)
    shared.wait_until(lambda: bool(shared.happened("start")[key_of(cells[0])]), "the first bake")
    shared.ask(drain_and_run)
    ended = shared.end("rest")
    assert said == ["the run before is being drained: waiting for its end"]
    assert 1 <= ended.counts.there < 6
    assert ended.counts.there + ended.counts.baked == 6
    assert [shared.happened("start")[key_of(cell)] for cell in cells] == [1] * 6


def test_whoever_drains_does_not_mind_that_the_run_is_cancelled(shared: Fleet) -> None:
    shared.start(["slow-two", "other"], name="given-up")
    shared.wait_until(lambda: bool(shared.happened("start")[key_of("slow-two")]), "the bake")
    shared.ask(lambda client: runs.drain(client, "given-up"))
    shared.ask(lambda client: runs.cancel(client, "given-up"))
    assert shared.ask(lambda client: runs.outlast(client, "given-up")) is None
    with pytest.raises(Interrupted, match="the run of given-up was cancelled"):
        shared.ask(lambda client: runs.follow(client, "given-up", str(shared.store), lambda _: None))


def test_what_began_under_a_version_ends_under_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def version(client: Client, name: str) -> str:
        described = await client.get_workflow_handle(name).describe()
        return described.raw_description.workflow_execution_info.versioning_info.deployment_version.build_id

    with Fleet(tmp_path) as fleet:
        monkeypatch.setenv("FLEET_WORKER_PINNED", "0.1.0")
        (old,) = fleet.work(1, seconds=4)
        fleet.start(["old"])
        fleet.wait_until(lambda: bool(fleet.happened("start")), "the bake's start")
        monkeypatch.setenv("FLEET_WORKER_PINNED", "0.2.0")
        fleet.work(1)
        fleet.wait_until(lambda: fleet.ask(current) == "0.2.0", "the new version")
        kill(old)
        monkeypatch.setenv("FLEET_WORKER_PINNED", "0.1.0")
        fleet.work(1)
        assert fleet.end().counts.baked == 1
        assert fleet.run(["new"], name="later").counts.baked == 1
        assert fleet.ask(current) == "0.2.0", "an older one does not become it"
        found = [fleet.ask(partial(version, name=fleet.bake_id(cell))) for cell in ("old", "new")]
        assert found == ["0.1.0", "0.2.0"]


def test_a_worker_with_another_store_ends_itself(tmp_path: Path) -> None:
    """A folder of that path is another one on its machine: here by a mount of its own."""
    with Fleet(tmp_path) as fleet:
        word = identity_of(open_store(str(fleet.store)), make=True)
        mount = f'mount -t tmpfs none {fleet.store} && mkdir {fleet.store}/records && exec "$@"'
        (wrong,) = fleet.work(1, before=["unshare", "--mount", "sh", "-c", mount, "sh"])
        fleet.start(["kept"], store_id=word)
        fleet.wait_until(lambda: not wrong.alive, "the worker's end")
        log = log_of(wrong)
        assert "WrongStore" in log
        assert "is not the one where the run was begun" in log
        assert not fleet.records
        fleet.work(1)
        ended = fleet.end()
        assert (ended.counts.baked, ended.counts.failed) == (1, 0)
        assert fleet.records == {key_of("kept")}


def test_a_worker_with_another_key_takes_no_tasks(
    shared: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It could read none of them, and each of its tries would count."""
    key = tmp_path / "key"
    key.write_text("ab" * 32)
    key.chmod(0o600)
    shared.wait_until(lambda: len(shared.ask(lambda client: pollers(client, "bake")).asked) == 2, "the others")
    monkeypatch.setenv("PARBAKE_FLEET_KEY", str(key))
    (wrong,) = shared.work(1)
    shared.wait_until(lambda: not wrong.alive, "the worker's end")
    assert "InputError: " in log_of(wrong)
    assert "uses another key than" in log_of(wrong)


def log_of(process: Process) -> str:
    return process.log.read_text()

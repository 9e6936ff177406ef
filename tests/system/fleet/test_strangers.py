"""Somebody who reaches the engine, reads its histories, and has no key: what was sealed before does nothing again."""

from __future__ import annotations

import asyncio
import re
import sysconfig
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from temporalio import activity, workflow
from temporalio.api.common.v1 import Payload
from temporalio.api.history.v1 import HistoryEvent
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import PollActivityTaskQueueRequest
from temporalio.client import Client, WorkflowFailureError, WorkflowUpdateFailedError
from temporalio.common import RawValue
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment, WorkflowEnvironment
from temporalio.worker import Worker

from parbake.core.errors import EngineUnreachable, FleetIncomplete
from parbake.fleet.engine import rollouts, runs
from parbake.fleet.engine.activities import Activities
from parbake.fleet.engine.calls import Answering
from parbake.fleet.engine.facts import Facts, fingerprint, pollers
from parbake.fleet.engine.handles import answer
from parbake.fleet.engine.sealing import read_keys
from parbake.fleet.engine.tasks import (
    Baked,
    BakeRequest,
    BeginRequest,
    Counts,
    FleetFile,
    Planned,
    PlanRequest,
    Progress,
    Root,
    RunRequest,
    bake_id,
)
from parbake.fleet.engine.ticks import Tick
from parbake.fleet.engine.workflows import Fleet as Run
from standins.fleets import Fleet

pytestmark = pytest.mark.slow(60)

SERVER = Path(sysconfig.get_path("scripts")) / "temporal-test-server"
CELLS = ["a@amd64"]
CANARY = {"name": "canary", "targets": ["a/one"], "approve": {"by": [], "count": 1, "within": None}}
REST = {"name": "rest", "targets": ["a/two"]}


@pytest.fixture
def fleet(engine: Fleet) -> Iterator[Fleet]:
    """A fleet in whose history two generations have been rolled out."""
    engine.empty_targets()
    engine.newer("")
    engine.waves(CANARY, REST)
    yield engine
    engine.newer("")


async def stranger(client: Client) -> Client:
    return await Client.connect(client.service_client.config.target_host)


def events(fleet: Fleet, name: str) -> list[HistoryEvent]:
    async def go(client: Client) -> list[HistoryEvent]:
        return [each async for each in client.get_workflow_handle(name).fetch_history_events()]

    return fleet.ask(go)


def asked_for(fleet: Fleet, name: str) -> Payload:
    """Return what the last workflow of a name was begun with."""
    [payload] = events(fleet, name)[0].workflow_execution_started_event_attributes.input.payloads
    return payload


def told(fleet: Fleet, name: str) -> dict[str, Payload]:
    """Return what was said to it, by kind."""
    found: dict[str, Payload] = {}
    for event in events(fleet, name):
        signal = event.workflow_execution_signaled_event_attributes
        update = event.workflow_execution_update_accepted_event_attributes.accepted_request.input
        for kind, payloads in ((signal.signal_name, signal.input.payloads), (update.name, update.args.payloads)):
            found |= dict.fromkeys([kind] if payloads else [], *payloads)
    return found


def test_what_was_said_and_asked_for_before_does_nothing_again(fleet: Fleet) -> None:
    fleet.run(CELLS, name="shop", rollout=True)
    fleet.until("approval")
    fleet.ask(lambda client: rollouts.pause(client, "shop", "by ann"))
    fleet.until("paused")
    fleet.ask(lambda client: rollouts.resume(client, "shop", "by ann"))
    fleet.until("approval")
    fleet.approve("canary")
    fleet.until("completed")
    of_run, of_rollout = asked_for(fleet, "fleet/shop"), asked_for(fleet, "rollout/shop")
    said = told(fleet, "rollout/shop")
    assert said.keys() == {"pause", "resume", "approve"}
    fleet.newer("2")
    fleet.run(CELLS, name="shop", rollout=True)
    fleet.until("approval")

    async def says_again(client: Client) -> None:
        handle = (await stranger(client)).get_workflow_handle("rollout/shop")
        for kind, payload in (("approve", said["approve"]), ("back", said["pause"]), ("back", said["approve"])):
            with pytest.raises((WorkflowUpdateFailedError, KeyError)):  # the refusal is sealed, too
                await handle.execute_update(kind, RawValue(payload))
        await handle.signal("pause", RawValue(said["pause"]))

    fleet.ask(says_again)
    assert fleet.rollout().state == "approval"
    assert len(fleet.written()) == 3, "two targets of the first, and the canary of the second"
    fleet.approve("canary")
    fleet.until("completed")
    written = fleet.written()

    async def asks_again(client: Client) -> None:
        other = await stranger(client)
        for kind, name, payload in (
            ("Rollout", "rollout/shop", of_rollout),
            ("Fleet", "fleet/shop", of_run),
        ):
            await other.start_workflow(kind, RawValue(payload), id=name, task_queue="control")
            with pytest.raises(WorkflowFailureError) as caught:
                await client.get_workflow_handle(name).result()
            cause = caught.value.cause.__cause__
            assert isinstance(cause, ApplicationError)
            assert "was asked for at" in cause.message
            assert cause.type == "InputError"

    fleet.ask(asks_again)
    assert fleet.written() == written
    last = fleet.rollout()
    assert last.state == "completed", "the last one is the last that has begun"
    assert last.problem.startswith("one that was asked for later did not begin: rollout/shop was asked for at")
    assert fleet.status().state == "completed"
    assert "the last one was of" in fleet.run(CELLS, name="shop", rollout=True).rollout
    fleet.ask(lambda client: rollouts.back(client, "shop", str(fleet.store), "ann wants it back"))
    assert fleet.until("rolled-back").progress.noted == []  # type: ignore[union-attr]


def test_an_answer_counts_only_for_the_run_that_was_asked(fleet: Fleet) -> None:
    """Whoever takes the question can pass it on to an older run, and answer with what that says."""
    fleet.run(["b@amd64"], name="asked")

    async def asks(client: Client) -> None:
        handle = client.get_workflow_handle("fleet/asked")
        mine = (await handle.describe()).run_id
        assert (await answer(handle, Run.keys, mine)).keys.keys() == {"b@amd64"}
        with pytest.raises(EngineUnreachable, match="no worker answers"):
            await answer(handle, Run.keys, "another")

    fleet.ask(asks)


@workflow.defn(name="Bake", sandboxed=False)
class OlderBake:
    """A bake whose end somebody has answered with what an older run of the same id has said."""

    @workflow.run
    async def run(self, _: BakeRequest) -> Baked:
        return Baked("a.raw", verified=True, changed=True, run=str(uuid4()))


@workflow.defn(name="Fleet", sandboxed=False)
class OlderRun:
    """The same of a run."""

    @workflow.run
    async def run(self, _: RunRequest) -> Progress:
        return Progress(Counts(baked=1), 1, run=str(uuid4()))


class Plans:
    """Activities of a run that has one cell to bake, and those of a tick."""

    @activity.defn
    async def begin(self, _: BeginRequest) -> None:
        """Let it begin."""

    @activity.defn
    async def plan(self, request: PlanRequest) -> list[Planned]:
        return [Planned(cell, cell, "linux/amd64", "bake", "k") for cell in request.cells]

    @activity.defn
    async def prepare(self, place: FleetFile) -> RunRequest:
        return RunRequest(place.fleet, "fleet.yaml", Root("/x"), "/store", ["a"])


def test_what_an_older_run_has_ended_with_is_not_the_end_of_this_one() -> None:
    """Not for the run that has begun the bake, nor for one that has joined it, nor for who waits for a run."""
    plans, said = Plans(), "somebody without the fleet's key has answered for a worker"

    async def go() -> None:
        async with await WorkflowEnvironment.start_time_skipping(test_server_existing_path=str(SERVER)) as world:
            client: Client = world.client
            do: list[Any] = [plans.begin, plans.plan, plans.prepare]
            asked = RunRequest("shop", "fleet.yaml", Root("/x"), "/store", ["a"])
            sound = Worker(
                client, task_queue="control", workflows=[Run, OlderBake], activities=do, interceptors=[Answering()]
            )
            async with sound:
                ended = await client.execute_workflow(Run.run, asked, id="fleet/shop", task_queue="control")
                assert [each.message for each in ended.failed] == [f"{said} (bake)"]
                with pytest.raises(ApplicationError, match=re.escape(f"{said} (bake)")):
                    await ActivityEnvironment().run(Activities(client).join, bake_id("k", "/store"))
            async with Worker(
                client, task_queue="control", workflows=[Tick, OlderRun], activities=do, interceptors=[Answering()]
            ):
                tick = client.execute_workflow(
                    Tick.run, FleetFile("shop", "fleet.yaml"), id="tick", task_queue="control"
                )
                assert await tick == f"{said} (run)"
                with pytest.raises(FleetIncomplete, match=re.escape(f"{said} (run)")):
                    await runs.outlast(client, "shop")

    asyncio.run(go())


def test_a_stranger_who_names_another_key_keeps_no_worker_from_starting(fleet: Fleet) -> None:
    fleet.run(["b@amd64"], name="strange")
    mine = fingerprint(read_keys(fleet.engine.key)[0])

    async def asks_for_tasks(client: Client) -> None:
        await client.workflow_service.poll_activity_task_queue(
            PollActivityTaskQueueRequest(
                namespace=client.namespace,
                task_queue=TaskQueue(name="place"),
                identity="1@strange parbake/0.1.0 key/00000000",
            ),
            timeout=timedelta(seconds=5),
        )

    fleet.ask(asks_for_tasks)

    def keys() -> list[str]:
        return [Facts.read(each).key for each in fleet.ask(lambda client: pollers(client, "place")).asked]

    assert "00000000" in keys()
    (worker,) = fleet.work(1)
    fleet.wait_until(lambda: keys().count(mine) == 2, "the new worker")
    assert worker.alive

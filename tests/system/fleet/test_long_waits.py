"""Rollouts that wait for days, on the engine's test server, whose clock runs ahead while all wait."""

from __future__ import annotations

import asyncio
import sysconfig
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from temporalio import activity
from temporalio.client import Client, WorkflowHandle, WorkflowUpdateFailedError
from temporalio.exceptions import ApplicationError
from temporalio.testing import WorkflowEnvironment
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Worker

from parbake.fleet.engine.calls import Answering
from parbake.fleet.engine.messages import Told
from parbake.fleet.engine.rollout_tasks import (
    Approval,
    AuditRequest,
    GateRequest,
    IdentifyRequest,
    RolloutRequest,
    RolloutState,
    SignOff,
    TargetOutcome,
    TargetTask,
    WavesPlanned,
    WavesRequest,
    WaveState,
    WaveTarget,
    purpose_of,
)
from parbake.fleet.engine.tasks import CONTROL, ROLL, BeginRequest, Root
from parbake.fleet.engine.waves import Rollout

SERVER = Path(sysconfig.get_path("scripts")) / "temporal-test-server"
CANARY = WaveState(
    "canary",
    [WaveTarget("a/one", "a/parbake.yaml", "one", ["k"])],
    soak=timedelta(days=8).total_seconds(),
    gate=["./errors"],
    approvals=1,
    by=["ann"],
    within=timedelta(days=3).total_seconds(),
)
REST = WaveState("rest", [WaveTarget("a/two", "a/parbake.yaml", "two", ["k"])])


class Targets:
    """Activities that write down what they are asked for."""

    def __init__(self, on_failure: str, canary: WaveState = CANARY) -> None:
        self.did: list[str] = []
        self._on_failure, self._canary = on_failure, canary

    @activity.defn
    async def begin(self, _: BeginRequest) -> None:
        """Let it begin."""

    @activity.defn
    async def waves(self, _: WavesRequest) -> WavesPlanned:
        return WavesPlanned([self._canary, REST], [], self._on_failure)

    @activity.defn
    async def look(self, _: TargetTask) -> TargetOutcome:
        return TargetOutcome(True, "old", "new", ["new"], ["old"])

    @activity.defn
    async def hand(self, request: TargetTask) -> TargetOutcome:
        self.did.append(f"write {request.target}")
        return TargetOutcome(True, "old", "new", ["new"], ["old"])

    @activity.defn
    async def give_back(self, request: TargetTask) -> TargetOutcome:
        self.did.append(f"back {request.target}")
        return TargetOutcome(True, "new", "old", ["old"], ["new"])

    @activity.defn
    async def gate(self, request: GateRequest) -> None:
        self.did.append(f"gate {request.wave}")

    @activity.defn
    async def identify(self, request: IdentifyRequest) -> str:
        who, _, purpose = request.proof.partition(" for ")
        if purpose != request.purpose:
            raise ApplicationError("STS does not know the signature", type="AwsNoAccess", non_retryable=True)
        return f"arn:aws:sts::222222222222:assumed-role/{who}"

    @activity.defn
    async def audit(self, request: AuditRequest) -> None:
        self.did += [f"note {event.what}" for event in request.events if event.what in {"approved", "rollback"}]


type Go = Callable[[WorkflowEnvironment, WorkflowHandle[Rollout, RolloutState]], Awaitable[None]]


class Silent(Answering):
    """Somebody without the key, who takes the tasks of gates and answers nothing."""

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:  # noqa: A002  # the library's
        others = super().intercept_activity(next)

        class Nothing(ActivityInboundInterceptor):
            async def execute_activity(_, input: ExecuteActivityInput) -> Any:  # noqa: A002, N805  # the library's
                return (
                    self.answer() if activity.info().activity_type == "gate" else await others.execute_activity(input)
                )

        return Nothing(next)

    def answer(self) -> object:
        """Return what this answers."""
        return None


class Mistaken(Silent):
    """The same, who has a worker's answer to another gate."""

    def answer(self) -> object:
        return {"answers": "gate/of/another", "with": None}


class Denying(Silent):
    """The same, who says that it has failed."""

    def answer(self) -> object:
        raise ApplicationError("no", "hint", [], "gate/of/another", type="VerificationFailed", non_retryable=True)


def rolled_out(targets: Targets, go: Go, answering: type[Answering] = Answering) -> tuple[RolloutState, timedelta]:
    """Run a rollout to its end, while ``go`` does something; return how it ended, and after how long by its clock."""

    async def run() -> tuple[RolloutState, timedelta]:
        async with await WorkflowEnvironment.start_time_skipping(test_server_existing_path=str(SERVER)) as world:
            of_control: list[Any] = [targets.begin, targets.waves, targets.audit, targets.identify]
            of_roll: list[Any] = [targets.look, targets.hand, targets.give_back, targets.gate]
            client: Client = world.client
            async with (
                Worker(
                    client, task_queue=CONTROL, workflows=[Rollout], activities=of_control, interceptors=[Answering()]
                ),
                Worker(client, task_queue=ROLL, activities=of_roll, interceptors=[answering()]),
            ):
                request = RolloutRequest("shop", "fleet.yaml", Root("/x"), "/store", {"a@amd64": "k"}, heartbeat=3600)
                handle = await client.start_workflow(Rollout.run, request, id="rollout/shop", task_queue=CONTROL)
                # Not the first entry: on a busy machine it comes seconds later, and ``go`` counts from here.
                began = (await handle.describe()).start_time.replace(microsecond=0)
                await go(world, handle)
                ended = await handle.result()
                return ended, datetime.fromisoformat(ended.story[-1].at) - began

    return asyncio.run(run())


async def approval(handle: WorkflowHandle[Rollout, RolloutState], sign_off: SignOff) -> Approval:
    generation = (await handle.query(Rollout.progress, "")).generation
    return Approval("approve", f"{handle.first_execution_run_id}/{generation}", sign_off=sign_off)


async def nothing(_: WorkflowEnvironment, __: WorkflowHandle[Rollout, RolloutState]) -> None:
    """Wait for the end."""


def test_a_rollout_that_nobody_approves_in_time_goes_back_after_eleven_days() -> None:
    targets = Targets("rollback")
    ended, took = rolled_out(targets, nothing)
    assert ended.state == "rolled-back"
    assert targets.did[:2] == ["write one", "gate canary"]
    assert sorted(targets.did[2:]) == ["back one", "note rollback"]
    assert timedelta(days=11) <= took < timedelta(days=11, hours=1)
    assert any("it was not approved in time" in entry.text for entry in ended.story)


@pytest.mark.parametrize("answering", [Silent, Mistaken, Denying])
def test_an_answer_without_the_key_is_neither_a_yes_nor_a_no_of_a_gate(answering: type[Answering]) -> None:
    """Neither is the next wave written nor the first one returned, also where that is what a no leads to."""
    targets = Targets("rollback")

    async def look(world: WorkflowEnvironment, handle: WorkflowHandle[Rollout, RolloutState]) -> None:
        await world.sleep(timedelta(days=9))
        now = await handle.query(Rollout.progress, "")
        said = "nobody asks the gate: somebody without the fleet's key has answered for a worker (gate)"
        assert now.paused == f"canary: {said}"
        assert targets.did == ["write one"]
        told = Told("back", f"{handle.first_execution_run_id}/{now.generation}", "ann")
        await handle.execute_update(Rollout.back, told)

    ended, _ = rolled_out(targets, look, answering)
    assert ended.state == "rolled-back"


def test_a_gate_that_says_no_returns_what_was_written() -> None:
    class No(Targets):
        @activity.defn(name="gate")
        async def gate(self, _: GateRequest) -> None:
            raise ApplicationError("too many errors", type="VerificationFailed", non_retryable=True)

    targets = No("rollback")
    ended, _ = rolled_out(targets, nothing)
    assert ended.state == "rolled-back"
    assert any("the gate says no: too many errors" in entry.text for entry in ended.story)


def test_an_approval_after_ten_days_lets_the_next_wave_begin() -> None:
    """Until it comes nothing is written; the soak of eight days is over before it can come."""
    targets = Targets("pause")

    async def approve(world: WorkflowEnvironment, handle: WorkflowHandle[Rollout, RolloutState]) -> None:
        await world.sleep(timedelta(days=7))
        assert (await handle.query(Rollout.progress, "")).waves[0].state == "soaks"
        assert targets.did == ["write one"]
        await world.sleep(timedelta(days=3))
        progress = await handle.query(Rollout.progress, "")
        assert progress.waves[0].state == "approval"
        until = datetime.fromisoformat(progress.waves[0].until)
        assert timedelta() < until - await world.get_current_time() < timedelta(days=2)
        await handle.execute_update(Rollout.approve, await approval(handle, SignOff("canary", "ann", host="desk")))

    ended, took = rolled_out(targets, approve)
    assert ended.state == "done"
    assert sorted(targets.did) == sorted(["write one", "gate canary", "note approved", "write two"])
    assert timedelta(days=10) <= took < timedelta(days=10, hours=1)


def test_who_approves_is_who_has_proven_it_for_this_wave() -> None:
    """STS's part is a stand-in; the record has what that says, and neither the name that was given nor the proof."""
    by = ["arn:aws:iam::222222222222:role/release"]
    targets = Targets("pause", replace(CANARY, soak=1.0, by=by))

    async def approve(world: WorkflowEnvironment, handle: WorkflowHandle[Rollout, RolloutState]) -> None:
        await world.sleep(timedelta(days=1))
        generation = (await handle.query(Rollout.progress, "")).generation
        purpose = purpose_of("shop", generation, "canary")
        for proof, says in (
            ("", "eve may not approve the wave canary"),
            (f"intern/eve for {purpose}", "assumed-role/intern/eve may not approve the wave canary"),
            ("release/eve for approve shop/0/canary", "STS does not know the signature"),
        ):
            with pytest.raises(WorkflowUpdateFailedError) as caught:
                await handle.execute_update(
                    Rollout.approve, await approval(handle, SignOff("canary", "eve", proof=proof))
                )
            assert says in str(caught.value.cause)
        eve = SignOff("canary", "eve", proof=f"release/eve for {purpose}")
        await handle.execute_update(Rollout.approve, await approval(handle, eve))

    ended, _ = rolled_out(targets, approve)
    assert ended.state == "done"
    assert [(yes.by, yes.proof) for yes in ended.waves[0].approved] == [
        ("arn:aws:sts::222222222222:assumed-role/release/eve", "")
    ]

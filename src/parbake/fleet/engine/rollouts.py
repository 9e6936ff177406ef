"""Rollouts of a fleet, from outside: start one, look at it, approve a wave, pause it, take it back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from temporalio.client import (
    Client,
    WorkflowExecutionDescription,
    WorkflowExecutionStatus,
    WorkflowFailureError,
    WorkflowHandle,
    WorkflowQueryFailedError,
    WorkflowQueryRejectedError,
    WorkflowUpdateFailedError,
    WorkflowUpdateRPCTimeoutOrCancelledError,
)
from temporalio.exceptions import ApplicationError, WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode

from parbake.core.errors import EngineUnreachable, InputError
from parbake.fleet.engine import tasks
from parbake.fleet.engine.approvals import needs_proof
from parbake.fleet.engine.connect import unreachable
from parbake.fleet.engine.endings import is_cancelled, until_ended
from parbake.fleet.engine.rollout_tasks import RolloutRequest, Standing, Yes, purpose_of, rollout_id
from parbake.fleet.engine.waves import Rollout
from parbake.fleet.engine.workflows import describe

_LOOK = 1.0
_AN_ANSWER = timedelta(seconds=10)
_RUNNING = WorkflowExecutionStatus.RUNNING
NEEDS_SOMEBODY = frozenset({"approval", "paused"})
"""States in which a rollout goes on only when somebody says so."""


@dataclass(frozen=True, slots=True)
class RolloutStatus:
    """The last rollout of a fleet. Without ``standing`` no worker answered; ``problem`` says why it failed.

    ``state``: running, approval (waits for one), window (waits for one), paused, going-back; completed, rolled-back,
    and the engine's own words for what was not brought to an end.
    """

    rollout: str
    state: str
    started_at: str
    standing: Standing | None
    problem: str = ""

    @property
    def ended(self) -> bool:
        """Whether nothing of it is under way."""
        return self.state not in NEEDS_SOMEBODY | {"running", "window", "going-back"}


async def start(client: Client, request: RolloutRequest, *, supersede: bool = False) -> str:
    """Start a rollout, or find the one of this generation that is under way; return its id.

    Where another one is under way it takes its place if it may ``supersede`` it. Raises InputError otherwise. The end
    of one that was cancelled is waited for; raises EngineUnreachable where it does not come.
    """
    while True:
        with suppress(WorkflowAlreadyStartedError):
            handle = await client.start_workflow(
                Rollout.run,
                request,
                id=rollout_id(request.fleet),
                task_queue=tasks.CONTROL,
                memo={"generation": request.generation},
                static_summary=request.fleet,
            )
            return handle.id
        described = await _handle(client, request.fleet).describe()
        if described.status is _RUNNING and not is_cancelled(described):
            break
        before = client.get_workflow_handle(rollout_id(request.fleet), run_id=described.run_id)
        await until_ended(before, "rollout")
    other = str((await described.memo()).get("generation", ""))
    if other == request.generation and not request.back:
        return rollout_id(request.fleet)
    if supersede and not request.back:
        await _asked(client, request.fleet, lambda handle: handle.signal(Rollout.supersede, request))
        return rollout_id(request.fleet)
    raise InputError(
        f"the rollout of {other} is under way, and there is one at a time",
        hint="wait for its end, or end it: `parbake fleet rollback`, or `parbake fleet cancel --rollout`",
    )


async def status(client: Client, fleet: str) -> RolloutStatus | None:
    """Return how the last rollout of a fleet is; None where there was none. Raises EngineUnreachable."""
    handle = _handle(client, fleet)
    try:
        described = await handle.describe()
        standing = await _standing(handle)
        problem = await _problem(handle, described) if described.status is WorkflowExecutionStatus.FAILED else ""
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND:
            return None
        raise unreachable(client.service_client.config.target_host, error) from error
    state = _state(described.status, standing)
    return RolloutStatus(handle.id, state, described.start_time.isoformat(), standing, problem)


def _state(status: WorkflowExecutionStatus | None, standing: Standing | None) -> str:
    if status is WorkflowExecutionStatus.COMPLETED:
        return "rolled-back" if standing and standing.state == "rolled-back" else "completed"
    if status is not _RUNNING or standing is None:
        return status.name.lower() if status else "unknown"
    if standing.state in {"back", "rolled-back"}:  # the audit trail has to hear of its end
        return "going-back"
    if standing.paused:
        return "paused"
    if standing.opens:
        return "window"
    return "approval" if standing.wave and standing.wave.state == "approval" else "running"


async def _standing(handle: WorkflowHandle[Rollout, Standing]) -> Standing | None:
    try:
        return await handle.query(Rollout.standing, rpc_timeout=_AN_ANSWER)
    except (RPCError, WorkflowQueryFailedError, WorkflowQueryRejectedError):
        return None


async def _problem(handle: WorkflowHandle[Rollout, Standing], described: WorkflowExecutionDescription) -> str:
    try:
        await handle.result()
    except WorkflowFailureError as error:
        return describe("", error.cause).message  # type: ignore[arg-type]  # the cause is the engine's failure
    return described.id  # pragma: no cover  # it has failed


async def follow(
    client: Client, fleet: str, told: Callable[[RolloutStatus], object], *, patient: bool = False
) -> RolloutStatus:
    """Wait until the rollout ends, or (unless ``patient``) needs somebody. Raises InputError where there is none."""
    while True:
        with suppress(EngineUnreachable):  # it may be back soon
            found = await _there(client, fleet)
            told(found)
            if found.ended or (found.state in NEEDS_SOMEBODY and not patient):
                return found
        await asyncio.sleep(_LOOK)


async def approve(client: Client, fleet: str, yes: Yes, prove: Callable[[str], str] | None = None) -> str:
    """Approve a wave: that of ``yes``, or the one that waits; return its name. Raises InputError when it may not be.

    ``prove`` makes a proof of who does, for a purpose; it is asked where the wave wants one.
    """
    found = await _under_way(client, fleet)
    wave = found.standing.wave if found.standing else None
    if not yes.wave:
        if wave is None or wave.state != "approval":
            raise InputError("no wave waits for an approval", hint="`parbake fleet status` shows how far it is")
        yes = replace(yes, wave=wave.name)
    wave = next((each for each in found.standing.waves if each.name == yes.wave), None) if found.standing else None
    if prove and found.standing and wave and needs_proof(wave, yes.by):
        proof = await asyncio.to_thread(prove, purpose_of(fleet, found.standing.generation, wave.name))
        yes = replace(yes, proof=proof)
    await _updated(client, fleet, Rollout.approve, yes)
    return yes.wave


async def pause(client: Client, fleet: str, why: str) -> None:
    """Let the rollout begin with no other target. Raises InputError where there is none."""
    await _under_way(client, fleet)
    await _asked(client, fleet, lambda handle: handle.signal(Rollout.pause, why))


async def resume(client: Client, fleet: str, by: str) -> None:
    """Let a paused rollout go on. Raises InputError where there is none."""
    await _under_way(client, fleet)
    await _asked(client, fleet, lambda handle: handle.signal(Rollout.resume, by))


async def cancel(client: Client, fleet: str, by: str = "") -> None:
    """End the rollout where it is; targets keep what they hold. Raises InputError where there is none."""
    await _under_way(client, fleet)
    await _asked(client, fleet, lambda handle: handle.signal(Rollout.leave, by))
    await _asked(client, fleet, lambda handle: handle.cancel())


async def back(client: Client, fleet: str, why: str) -> None:
    """Return all that the last rollout has written, whether it is under way or has ended.

    Raises InputError where there was none, or nothing is to be returned.
    """
    found = await _there(client, fleet)
    if not found.ended:
        await _updated(client, fleet, Rollout.back, why)
        return
    if found.standing is None:
        raise EngineUnreachable("no worker answers", hint="`parbake fleet worker --queues control` runs one")
    if not found.standing.noted:
        raise InputError(
            "the last rollout has written nothing that could be returned",
            hint="`parbake rollback -f BAKEFILE --to TARGET` returns one target to its previous artefact",
        )
    request = await _request(client, fleet)
    await start(client, replace(request, standing=found.standing, back=why, newer=None, audited=True))


async def _request(client: Client, fleet: str) -> RolloutRequest:
    """Return what the last rollout was asked for."""
    async for event in _handle(client, fleet).fetch_history_events(page_size=1):
        payloads = event.workflow_execution_started_event_attributes.input.payloads
        [request] = await client.data_converter.decode(payloads, [RolloutRequest])
        return request  # type: ignore[no-any-return]  # of the type that was asked for
    raise AssertionError("a history begins")


def _handle(client: Client, fleet: str) -> WorkflowHandle[Rollout, Standing]:
    return client.get_workflow_handle_for(Rollout.run, rollout_id(fleet))


async def _there(client: Client, fleet: str) -> RolloutStatus:
    found = await status(client, fleet)
    if found is None:
        raise InputError(f"there was no rollout of {fleet} yet", hint="`parbake fleet rollout` starts one")
    return found


async def _under_way(client: Client, fleet: str) -> RolloutStatus:
    found = await _there(client, fleet)
    if found.ended:
        raise InputError(
            f"no rollout of {fleet} is under way: the last one is {found.state}",
            hint="`parbake fleet rollout` starts one",
        )
    return found


async def _asked(client: Client, fleet: str, ask: Callable[[Any], Awaitable[None]]) -> None:
    try:
        await ask(_handle(client, fleet))
    except RPCError as error:
        raise unreachable(client.service_client.config.target_host, error) from error


async def _updated(client: Client, fleet: str, update: Any, argument: Any) -> None:
    """Tell the rollout something that it may refuse. Raises InputError with its words."""
    try:
        await _handle(client, fleet).execute_update(update, argument, rpc_timeout=_AN_ANSWER)
    except WorkflowUpdateFailedError as error:
        cause = error.cause
        if isinstance(cause, ApplicationError) and cause.type == InputError.json_name:
            raise InputError(cause.message, hint=str(cause.details[0]) if cause.details else "") from error
        raise EngineUnreachable(f"the rollout did not take it: {cause}") from error
    except WorkflowUpdateRPCTimeoutOrCancelledError as error:
        raise EngineUnreachable("no worker answers", hint="`parbake fleet worker --queues control` runs one") from error
    except RPCError as error:
        raise unreachable(client.service_client.config.target_host, error) from error

"""Rollouts of a fleet, from outside: start one, look at it, approve a wave, pause it, take it back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from temporalio.client import (
    Client,
    WorkflowExecutionDescription,
    WorkflowExecutionStatus,
    WorkflowFailureError,
    WorkflowHandle,
    WorkflowUpdateFailedError,
    WorkflowUpdateRPCTimeoutOrCancelledError,
)
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError

from parbake.core.errors import EngineUnreachable, InputError
from parbake.fleet import words
from parbake.fleet.engine.approvals import needs_proof
from parbake.fleet.engine.failures import describe, in_words, is_missing
from parbake.fleet.engine.handles import AN_ANSWER, answer, last_begun, no_worker, request_of, started
from parbake.fleet.engine.messages import Told, about
from parbake.fleet.engine.rollout_tasks import Approval, RolloutRequest, RolloutState, SignOff, purpose_of, rollout_id
from parbake.fleet.engine.tasks import this_moment
from parbake.fleet.engine.waves import Rollout

_LOOK = 1.0
_RUNNING = WorkflowExecutionStatus.RUNNING


@dataclass(frozen=True, slots=True)
class RolloutStatus:
    """The last rollout of a fleet. Without ``progress`` no worker answered.

    ``problem`` says why it failed, or why one that was asked for later did not begin.

    ``state``: running, approval (waits for one), window (waits for one), paused, going-back; completed, rolled-back,
    and the engine's own words for what was not brought to an end.
    """

    rollout: str
    state: str
    started_at: str
    progress: RolloutState | None
    problem: str = ""

    @property
    def ended(self) -> bool:
        """Whether nothing of it is under way."""
        return self.state not in words.ROLLOUT_GOES_ON


@in_words
async def start(client: Client, request: RolloutRequest, *, supersede: bool = False) -> str:
    """Start a rollout, or find the one of this generation that is under way; return its id.

    Where another one is under way it takes its place if it may ``supersede`` it. Raises InputError otherwise. The end
    of one that was cancelled is waited for; raises EngineUnreachable where it does not come.
    """
    name, memo = rollout_id(request.fleet), {"generation": request.generation}
    described = await started(client, Rollout.run, request, name, memo=memo)
    if described is None:
        return name
    other = str((await described.memo()).get("generation", ""))
    if other == request.generation and not request.back:
        return name
    if supersede and not request.back:
        newer = replace(request, at=this_moment())
        await _asked(client, request.fleet, lambda handle, _: handle.signal(Rollout.supersede, newer))
        return name
    raise InputError(
        f"the rollout of {other} is under way, and only one can run at a time",
        hint="wait for its end, or end it: `parbake fleet rollback`, or `parbake fleet cancel --rollout`",
    )


@in_words
async def status(client: Client, fleet: str, store: str) -> RolloutStatus | None:
    """Return how the last rollout of a fleet is that its ``store`` let begin; None where there was none.

    Raises EngineUnreachable, and what asking the store raises.
    """
    try:
        described, newest = await last_begun(client, rollout_id(fleet), store)
        problem = await _problem(_handle(client, fleet, newest.run_id), newest)
        if problem and newest.run_id != described.run_id:
            problem = f"one that was asked for later did not begin: {problem}"
        return replace(await _status(client, fleet, described), problem=problem)
    except RPCError as error:
        if is_missing(error):
            return None
        raise


async def _status(client: Client, fleet: str, described: WorkflowExecutionDescription) -> RolloutStatus:
    handle = _handle(client, fleet, described.run_id)
    progress: RolloutState | None = None
    with suppress(EngineUnreachable):
        progress = await answer(handle, Rollout.progress, described.run_id)
    return RolloutStatus(handle.id, _state(described.status, progress), described.start_time.isoformat(), progress)


def _state(status: WorkflowExecutionStatus | None, progress: RolloutState | None) -> str:
    if status is WorkflowExecutionStatus.COMPLETED:
        return "rolled-back" if progress and progress.state == "rolled-back" else "completed"
    if status is not _RUNNING or progress is None:
        return status.name.lower() if status else "unknown"
    return words.phase(progress)


async def _problem(handle: WorkflowHandle[Rollout, RolloutState], described: WorkflowExecutionDescription) -> str:
    if described.status is WorkflowExecutionStatus.FAILED:
        try:
            await handle.result()
        except WorkflowFailureError as error:
            return describe("", error.cause).message
    return ""


async def follow(
    client: Client, fleet: str, store: str, on_status: Callable[[RolloutStatus], object], *, patient: bool = False
) -> RolloutStatus:
    """Wait until the rollout ends, or (unless ``patient``) needs somebody. Raises InputError where there is none."""
    while True:
        with suppress(EngineUnreachable):  # it may be back soon
            found = await _there(client, fleet, store)
            on_status(found)
            if found.ended or (found.state in words.NEEDS_SOMEBODY and not patient):
                return found
        await asyncio.sleep(_LOOK)


@in_words
async def approve(client: Client, fleet: str, sign_off: SignOff, prove: Callable[[str], str] | None = None) -> str:
    """Approve a wave (that of ``sign_off``, or the one that waits) and return its name; raises InputError if refused.

    ``prove`` makes a proof of who does, for a purpose; it is asked where the wave wants one.
    """
    found = await _under_way(client, fleet)
    wave = found.progress.wave if found.progress else None
    if not sign_off.wave:
        if wave is None or wave.state != "approval":
            raise InputError("no wave waits for an approval", hint="`parbake fleet status` shows how far it is")
        sign_off = replace(sign_off, wave=wave.name)
    wave = next((each for each in found.progress.waves if each.name == sign_off.wave), None) if found.progress else None
    if prove and found.progress and wave and needs_proof(wave, sign_off.by):
        proof = await asyncio.to_thread(prove, purpose_of(fleet, found.progress.generation, wave.name))
        sign_off = replace(sign_off, proof=proof)
    await _updated(client, fleet, Rollout.approve, lambda about: Approval("approve", about, sign_off=sign_off))
    return sign_off.wave


@in_words
async def pause(client: Client, fleet: str, why: str) -> None:
    """Let the rollout begin with no other target. Raises InputError where there is none."""
    await _under_way(client, fleet)
    await _asked(client, fleet, lambda handle, about: handle.signal(Rollout.pause, Told("pause", about, why)))


@in_words
async def resume(client: Client, fleet: str, by: str) -> None:
    """Let a paused rollout go on. Raises InputError where there is none."""
    await _under_way(client, fleet)
    await _asked(client, fleet, lambda handle, about: handle.signal(Rollout.resume, Told("resume", about, by)))


@in_words
async def cancel(client: Client, fleet: str, by: str = "") -> None:
    """End the rollout where it is; targets keep what they hold. Raises InputError where there is none."""
    await _under_way(client, fleet)
    await _asked(client, fleet, lambda handle, about: handle.signal(Rollout.leave, Told("leave", about, by)))
    await _asked(client, fleet, lambda handle, _: handle.cancel())


@in_words
async def back(client: Client, fleet: str, store: str, why: str) -> None:
    """Return all that the last rollout has written, whether it is under way or has ended.

    Raises InputError where there was none, or nothing is to be returned.
    """
    found = await _there(client, fleet, store)
    if not found.ended:
        await _updated(client, fleet, Rollout.back, lambda about: Told("back", about, why))
        return
    if found.progress is None:
        raise no_worker()
    if not found.progress.noted:
        raise InputError(
            "the last rollout has written nothing that could be returned",
            hint="`parbake rollback -f BAKEFILE --to TARGET` returns one target to its previous artefact",
        )
    described, _ = await last_begun(client, rollout_id(fleet), store)
    request = await request_of(client, _handle(client, fleet, described.run_id), RolloutRequest)
    await start(client, replace(request, standing=found.progress, back=why, newer=None, heard=[]))


def _handle(client: Client, fleet: str, run: str | None = None) -> WorkflowHandle[Rollout, RolloutState]:
    return client.get_workflow_handle_for(Rollout.run, rollout_id(fleet), run_id=run)


async def _there(client: Client, fleet: str, store: str) -> RolloutStatus:
    if found := await status(client, fleet, store):
        return found
    raise _none_yet(fleet)


def _none_yet(fleet: str) -> InputError:
    return InputError(f"there was no rollout of {fleet} yet", hint="`parbake fleet rollout` starts one")


async def _under_way(client: Client, fleet: str) -> RolloutStatus:
    try:
        found = await _status(client, fleet, await _handle(client, fleet).describe())
    except RPCError as error:
        raise _none_yet(fleet) if is_missing(error) else error from error
    if found.ended:
        raise InputError(
            f"no rollout of {fleet} is under way: the last one {words.rollout(found.state)}",
            hint="`parbake fleet rollout` starts one",
        )
    return found


async def _asked(client: Client, fleet: str, ask: Callable[[Any, str], Awaitable[None]]) -> None:
    handle = _handle(client, fleet)
    await ask(handle, await about(await handle.describe()))


async def _updated(client: Client, fleet: str, update: Any, told: Callable[[str], Told]) -> None:
    """Tell the rollout something that it may refuse. Raises InputError with its words."""
    try:
        handle = _handle(client, fleet)
        said = told(await about(await handle.describe()))
        await handle.execute_update(update, said, rpc_timeout=AN_ANSWER)
    except WorkflowUpdateFailedError as error:
        cause = error.cause
        if isinstance(cause, ApplicationError) and cause.type == InputError.json_name:
            raise InputError(cause.message, hint=str(cause.details[0]) if cause.details else "") from error
        raise EngineUnreachable(f"the rollout did not accept it: {describe('', cause).message}") from error
    except WorkflowUpdateRPCTimeoutOrCancelledError as error:
        raise no_worker() from error

"""Runs of a fleet, from outside: start one, look at it, pause it, go on, cancel it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from temporalio.api.enums.v1 import PendingActivityState
from temporalio.client import (
    Client,
    WorkflowExecutionStatus,
    WorkflowFailureError,
    WorkflowHandle,
)
from temporalio.exceptions import is_cancelled_exception
from temporalio.service import RPCError

from parbake.core.errors import EngineUnreachable, FleetIncomplete, InputError, Interrupted
from parbake.fleet import words
from parbake.fleet.engine import schedules, tasks
from parbake.fleet.engine.calls import not_sealed
from parbake.fleet.engine.facts import pollers
from parbake.fleet.engine.failures import describe, in_words, is_missing, told
from parbake.fleet.engine.handles import answer, last_begun, request_of, started
from parbake.fleet.engine.messages import Told, about, first_run, is_of
from parbake.fleet.engine.rollout_tasks import RolloutRequest
from parbake.fleet.engine.sealing import of_activity
from parbake.fleet.engine.tasks import Made, Progress, RunRequest, run_id
from parbake.fleet.engine.workflows import Fleet

_LOOK = 1.0
_HEARD = 30.0  # a worker with a bake that was heard of since then is alive


@dataclass(frozen=True, slots=True)
class Running:
    """A cell under way: what its worker last said, how long ago (seconds), and why the try before failed.

    Without a ``key`` its images are being built; without a ``worker`` nobody works on it.
    """

    cell: str
    key: str
    attempt: int = 0
    attempts: int = 0
    worker: str = ""
    progress: dict[str, Any] = field(default_factory=dict)
    heard: float | None = None
    last_failure: str = ""

    @property
    def says(self) -> str:
        """What is being done for it, in words."""
        return words.bake(key=self.key, attempt=self.attempt, worker=self.worker, progress=self.progress)


@dataclass(frozen=True, slots=True)
class Status:
    """The last run of a fleet. ``workers`` counts who takes tasks, by queue; without ``progress`` nobody answered."""

    run: str
    state: str
    started_at: str
    progress: Progress | None
    running: tuple[Running, ...]
    workers: dict[str, int]

    @property
    def says(self) -> str:
        """What it does, or how it has ended, in words."""
        return words.run(self.state, draining=self.progress is not None and self.progress.draining)


@in_words
async def start(client: Client, request: RunRequest, on_wait: Callable[[str], object] = lambda _: None) -> str:
    """Start a run, or find the one that is under way; return its id.

    One that was cancelled or is being drained ends without doing what this asks for: then this calls ``on_wait``, waits
    for its end, and starts a new run. Raises EngineUnreachable where one that was cancelled does not end.
    """
    name = run_id(request.fleet)
    while under_way := await started(client, Fleet.run, request, name, on_wait=on_wait):
        this = client.get_workflow_handle_for(Fleet.run, name, run_id=under_way.run_id)
        progress = await _progress(this, under_way.run_id)
        if progress is None or not progress.draining:
            break
        on_wait("the run before is being drained: waiting for its end")
        with suppress(WorkflowFailureError):
            await this.result()
    return name


async def follow(client: Client, fleet: str, store: str, on_status: Callable[[Status], object]) -> Progress:
    """Wait for the end of a run; ``on_status`` gets its status every second. Raises Interrupted if it is cancelled."""
    ended = asyncio.create_task(outlast(client, fleet))
    while not (await asyncio.wait({ended}, timeout=_LOOK))[0]:
        with suppress(EngineUnreachable):  # it may be back before the wait for the result gives up
            on_status(await status(client, fleet, store))
    if (progress := ended.result()) is None:
        raise Interrupted(f"the run of {fleet} was cancelled")
    return progress


@in_words
async def outlast(client: Client, fleet: str) -> Progress | None:
    """Wait for the end of a run, whoever brings it about; None where it is cancelled.

    Raises FleetIncomplete where it fails, or somebody without the fleet's key has ended it; and as ``status`` does.
    """
    name = run_id(fleet)
    try:
        run = first_run(await client.get_workflow_handle(name).describe())
        ended = await client.get_workflow_handle_for(Fleet.run, name, run_id=run).result()
    except WorkflowFailureError as error:
        if is_cancelled_exception(error.cause):
            return None
        found = describe(fleet, error.cause)
        raise FleetIncomplete(f"the run of {fleet} failed: {found.message}", hint=found.hint) from error
    except RPCError as error:
        raise _none_yet(error, fleet) from error
    if not is_of(run, ended):
        found = describe(fleet, not_sealed("run"))
        raise FleetIncomplete(f"the run of {fleet} failed: {found.message}", hint=found.hint)
    return ended


@in_words
async def status(client: Client, fleet: str, store: str) -> Status:
    """Return how the last run of a fleet is that its ``store`` let begin.

    Raises InputError where there was none, EngineUnreachable, and what asking the store raises.
    """
    try:
        described, _ = await last_begun(client, run_id(fleet), store)
    except RPCError as error:
        raise _none_yet(error, fleet) from error
    handle = client.get_workflow_handle_for(Fleet.run, described.id, run_id=described.run_id)
    progress = await _progress(handle, described.run_id)
    under_way = progress.running if progress and described.status is WorkflowExecutionStatus.RUNNING else {}
    looked = [_running(client, cell, name) for cell, name in under_way.items()]
    running = tuple(await asyncio.gather(*looked))
    busy = {each.worker for each in running if each.heard is not None and each.heard < _HEARD}
    state = described.status.name.lower() if described.status else "unknown"
    return Status(
        run=f"{handle.id}/{described.run_id}",
        state="paused" if progress and progress.paused and state == "running" else state,
        started_at=described.start_time.isoformat(),
        progress=progress,
        running=running,
        workers={queue: len((await pollers(client, queue)).alive(busy)) for queue in tasks.QUEUES},
    )


async def _progress(handle: WorkflowHandle[Fleet, Progress], run: str) -> Progress | None:
    found: Progress | None = None
    with suppress(EngineUnreachable):
        found = await answer(handle, Fleet.progress, run)
    return found


async def _running(client: Client, cell: str, name: str) -> Running:
    if not name:
        return Running(cell, "")
    key = name.split("/")[1]
    try:
        described = await client.get_workflow_handle(name).describe()
    except RPCError:
        return Running(cell, key)
    activity = next(
        (each for each in described.raw_description.pending_activities if each.activity_type.name == "bake"), None
    )
    if activity is None:
        return Running(cell, key)
    sealed = of_activity(client, name, activity.activity_type.name, activity.activity_id)
    heard, failure, worker, progress = None, "", "", {}
    if activity.state != PendingActivityState.PENDING_ACTIVITY_STATE_SCHEDULED:
        worker, began = activity.last_worker_identity, activity.last_started_time.ToDatetime(UTC)
        beat = activity.last_heartbeat_time.ToDatetime(UTC)
        heard = (datetime.now(UTC) - max(began, beat)).total_seconds()
        details = await sealed.decode(activity.heartbeat_details.payloads) if beat >= began else []
        progress = details[0] if details and isinstance(details[0], dict) else {}
    if activity.HasField("last_failure"):
        failure = told(await sealed.decode_failure(activity.last_failure))
    return Running(cell, key, activity.attempt, activity.maximum_attempts, worker, progress, heard, failure)


@in_words
async def made(client: Client, fleet: str, store: str, by: str = "") -> RolloutRequest:
    """Return what a rollout hands out: what the last run has made sure of, all of it, from the same commit.

    ``by`` says who wants it.

    Raises InputError where there was no run, or it is under way or cancelled; FleetIncomplete where cells failed.
    """
    found = await status(client, fleet, store)
    if found.state != "completed":
        raise InputError(f"the last run of {fleet} {found.says}", hint="`parbake fleet run --wait` completes one")
    run = found.run.rpartition("/")[2]
    handle = client.get_workflow_handle_for(Fleet.run, run_id(fleet), run_id=run)
    good: Made = await answer(handle, Fleet.keys, run)
    request = await request_of(client, handle, RunRequest)
    if found.progress and (bad := found.progress.counts.failed + found.progress.counts.quarantined):
        raise FleetIncomplete(
            f"nothing is rolled out: {bad} of {found.progress.total} cells of the last run have failed, "
            "or are in quarantine",
            hint="correct them, or run some alone: `parbake fleet run --cell CELL`",
        )
    return RolloutRequest.of_run(request, good.keys, by=by)


@in_words
async def cancel(client: Client, fleet: str) -> None:
    """Cancel a run, with all bakes that it has begun. Raises InputError where there is none."""
    await _asked(client, fleet, lambda run, _: run.cancel())


@in_words
async def pause(client: Client, fleet: str, why: str) -> None:
    """Let a run begin nothing new. Raises InputError where there is none."""
    await _asked(client, fleet, lambda run, about: run.signal(Fleet.pause, Told("pause", about, why)))


@in_words
async def drain(client: Client, fleet: str) -> bool:
    """Let a run begin nothing new, and end with what it has begun; False where none is under way."""
    try:
        await _asked(client, fleet, lambda run, about: run.signal(Fleet.drain, Told("drain", about)))
    except InputError:
        return False
    return True


@in_words
async def resume(client: Client, fleet: str) -> None:
    """Let a paused run go on, and a schedule that is held. Raises InputError where there is neither."""
    let_go = await schedules.let_go(client, fleet)
    try:
        await _asked(client, fleet, lambda run, about: run.signal(Fleet.resume, Told("resume", about)))
    except InputError:
        if not let_go:
            raise


async def _asked(client: Client, fleet: str, ask: Callable[[WorkflowHandle[Fleet, Progress], str], Any]) -> None:
    handle = client.get_workflow_handle_for(Fleet.run, run_id(fleet))
    try:
        described = await handle.describe()
        if described.status is not WorkflowExecutionStatus.RUNNING:
            raise InputError(f"no run of {fleet} is under way", hint="`parbake fleet run` starts one")
        await ask(handle, await about(described))
    except RPCError as error:
        raise _none_yet(error, fleet) from error


def _none_yet(error: RPCError, fleet: str) -> Exception:
    if is_missing(error):
        return InputError(f"there was no run of {fleet} yet", hint="`parbake fleet run` starts one")
    return error

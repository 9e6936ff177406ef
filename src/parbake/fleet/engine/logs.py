"""What a bake has said, try by try: the engine keeps the end of each, sealed, for as long as its history."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import HistoryEvent
from temporalio.client import Client, WorkflowHandle
from temporalio.converter import DataConverter, value_to_type
from temporalio.exceptions import ApplicationError
from temporalio.exceptions import TimeoutError as TimedOut
from temporalio.service import RPCError

from parbake.core.errors import InputError
from parbake.fleet.engine.failures import in_words, is_missing, told
from parbake.fleet.engine.sealing import of_activity
from parbake.fleet.engine.tasks import Baked, bake_id


@dataclass(frozen=True, slots=True)
class Log:
    """The end of what the last try of a bake has said. ``state``: running, baked, there, failed, lost, cancelled.

    ``at`` is when it began, in ISO 8601; ``error`` is parbake's own; earlier tries have left their error alone.
    """

    bake: str
    state: str
    at: str
    attempt: int
    worker: str
    lines: tuple[str, ...] = ()
    error: str = ""
    before: str = ""


@dataclass(slots=True)
class _Seen:
    at: str = ""
    attempt: int = 0
    worker: str = ""
    before: str = ""
    state: str = "running"
    error: str = ""
    lines: list[str] = field(default_factory=list)
    sealed: DataConverter = DataConverter.default


@in_words
async def log(client: Client, key: str, store: str) -> Log:
    """Return what the last bake of a key for a store has said. Raises InputError where the engine knows none."""
    handle = client.get_workflow_handle(bake_id(key, store))
    seen = _Seen()
    try:
        async for event in handle.fetch_history_events():
            await _read(client, handle.id, event, seen)
        if seen.state == "running":
            await _look(client, handle, seen)
    except RPCError as error:
        if not is_missing(error):
            raise
        raise InputError(
            f"the engine has no bake of {key[:12]}", hint="no run of a fleet made it, or its history has expired"
        ) from None
    return Log(
        handle.id, seen.state, seen.at, seen.attempt, seen.worker, tuple(map(str, seen.lines)), seen.error, seen.before
    )


async def _read(client: Client, bake: str, event: HistoryEvent, seen: _Seen) -> None:
    """Take up what an event of a bake's history says; what comes after a bake's own activity is not of it."""
    if event.HasField("activity_task_scheduled_event_attributes") and seen.state == "running":
        asked = event.activity_task_scheduled_event_attributes
        seen.sealed = of_activity(client, bake, asked.activity_type.name, asked.activity_id)
    elif event.HasField("activity_task_started_event_attributes") and seen.state == "running":
        started = event.activity_task_started_event_attributes
        seen.at, seen.attempt, seen.worker = event.event_time.ToJsonString(), started.attempt, started.identity
        if started.HasField("last_failure"):
            seen.before = told(await seen.sealed.decode_failure(started.last_failure))
    elif event.HasField("activity_task_completed_event_attributes") and seen.state == "running":
        payloads = event.activity_task_completed_event_attributes.result.payloads
        for answer in await seen.sealed.decode(payloads):
            baked = value_to_type(Baked, answer["with"])
            seen.state, seen.lines = "baked" if baked.changed else "there", baked.log
    elif event.HasField("activity_task_failed_event_attributes") and seen.state == "running":
        error = await seen.sealed.decode_failure(event.activity_task_failed_event_attributes.failure)
        seen.state = "failed"
        if isinstance(error, ApplicationError):
            seen.error = f"{error.type}: {error.message}"
            seen.lines = list(error.details[1]) if len(error.details) > 1 else []
    elif event.HasField("activity_task_timed_out_event_attributes") and seen.state == "running":
        error = await seen.sealed.decode_failure(event.activity_task_timed_out_event_attributes.failure)
        seen.state, seen.error = "lost", "its worker died, or did not answer"
        seen.lines = _lines(error.last_heartbeat_details) if isinstance(error, TimedOut) else []
    elif event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_CANCELED:
        seen.state = "cancelled"


async def _look(client: Client, handle: WorkflowHandle[Any, Any], seen: _Seen) -> None:
    """Take up what the worker says now."""
    described = await handle.describe()
    for activity in described.raw_description.pending_activities:
        sealed = of_activity(client, handle.id, activity.activity_type.name, activity.activity_id)
        seen.lines = _lines(await sealed.decode(activity.heartbeat_details.payloads))
        seen.attempt, seen.worker = activity.attempt, activity.last_worker_identity
        if activity.HasField("last_started_time"):
            seen.at = activity.last_started_time.ToJsonString()
        if activity.HasField("last_failure"):
            seen.before = told(await sealed.decode_failure(activity.last_failure))


def _lines(details: Any) -> list[str]:
    return list(details[0].get("log", [])) if details and isinstance(details[0], dict) else []

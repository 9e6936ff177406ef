"""What a run and a rollout have in common, seen from outside: what was asked for, what they answer, and their end.

The engine starts no second one of the same name before one that was cancelled has ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final

from temporalio.client import (
    Client,
    WorkflowExecutionDescription,
    WorkflowExecutionStatus,
    WorkflowFailureError,
    WorkflowHandle,
    WorkflowQueryFailedError,
    WorkflowQueryRejectedError,
)
from temporalio.exceptions import ApplicationError, WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode

from parbake.core.errors import EngineUnreachable
from parbake.fleet import stores
from parbake.fleet.engine.messages import asked
from parbake.fleet.engine.rollout_tasks import RolloutRequest
from parbake.fleet.engine.sealing import of_workflow
from parbake.fleet.engine.search import registered
from parbake.fleet.engine.tasks import CONTROL, RunRequest, this_moment

AN_ANSWER: Final = timedelta(seconds=10)
"""How long a worker may take to answer."""
_AN_END: Final = 600.0
"""Seconds that commands which were told to end may take: a heartbeat, their grace, and a worker's death meanwhile."""


async def started(
    client: Client,
    workflow: Any,
    request: RunRequest | RolloutRequest,
    name: str,
    *,
    memo: Mapping[str, str] | None = None,
    on_wait: Callable[[str], object] = lambda _: None,
) -> WorkflowExecutionDescription | None:
    """Start a workflow; where one of its name is under way, return what the engine says of that instead.

    If that one was cancelled, this calls ``on_wait``, and waits for its end first. Raises EngineUnreachable if it does
    not end.
    """
    searchable = await registered(client)
    while True:
        with suppress(WorkflowAlreadyStartedError):
            await client.start_workflow(
                workflow,
                replace(request, at=this_moment(), searchable=searchable),
                id=name,
                task_queue=CONTROL,
                memo=memo,
                static_summary=request.fleet,
            )
            return None
        described = await client.get_workflow_handle(name).describe()
        if described.status is WorkflowExecutionStatus.RUNNING:
            if not described.raw_description.workflow_extended_info.cancel_requested:
                return described
            kind = name.partition("/")[0].replace("fleet", "run")
            on_wait(f"the {kind} before was cancelled: waiting for its end")
            await _end_of(client.get_workflow_handle(name, run_id=described.run_id), kind)


async def _end_of(before: WorkflowHandle[Any, Any], kind: str) -> None:
    try:
        with suppress(WorkflowFailureError):
            await asyncio.wait_for(before.result(), _AN_END)
    except TimeoutError:
        raise EngineUnreachable(
            f"the {kind} before was cancelled, and has not ended within {_AN_END:.0f} s",
            hint="`parbake fleet status` shows what it waits for, `parbake fleet doctor` whether workers are running",
        ) from None


async def last_begun(
    client: Client, name: str, store: str
) -> tuple[WorkflowExecutionDescription, WorkflowExecutionDescription]:
    """Return what the engine says of the last workflow of a name that the store let begin, and of the last of all.

    They are the same while that one is under way. Whoever reaches the engine can start again what was asked for before,
    which then ends before it begins. Raises RPCError, and what asking the store raises.
    """
    newest = await client.get_workflow_handle(name).describe()
    if newest.status is not WorkflowExecutionStatus.RUNNING:
        known = await asyncio.to_thread(stores.last_begun, store, name)
        if known and known.run != newest.run_id:
            try:
                return await client.get_workflow_handle(name, run_id=known.run).describe(), newest
            except RPCError as error:  # that was in another engine, or before its database was lost
                if error.status not in {RPCStatusCode.NOT_FOUND, RPCStatusCode.INVALID_ARGUMENT}:
                    raise
    return newest, newest


async def answer(handle: WorkflowHandle[Any, Any], query: Any, run: str) -> Any:
    """Return what a run answers to a query. Raises EngineUnreachable where no worker answers for it, and for now."""
    word = asked(run)
    try:
        found = await handle.query(query, word, rpc_timeout=AN_ANSWER)
    except (RPCError, WorkflowQueryFailedError, WorkflowQueryRejectedError, ApplicationError) as error:
        raise no_worker() from error
    if getattr(found, "asked", "") != word:
        raise no_worker()
    return found


async def request_of[Request](
    client: Client, handle: WorkflowHandle[Any, Any], kind: type[Request] | None = None
) -> Request:
    """Return what a workflow was asked for: its history begins with it. Raises RPCError, ApplicationError."""
    events = handle.fetch_history_events(page_size=1)
    first = await anext(events)
    payloads = first.workflow_execution_started_event_attributes.input.payloads
    [request] = await of_workflow(client, handle.id).decode(payloads, [kind] if kind else None)
    return request  # type: ignore[no-any-return]  # of the type that was asked for


def no_worker() -> EngineUnreachable:
    """Return the error for an engine that is there, and has nobody who answers for a run or a rollout."""
    return EngineUnreachable("no worker answers", hint="`parbake fleet worker --queues control` runs one")

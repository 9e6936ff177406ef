"""How workflows let workers do something: with the same patience, limits and way to cancel everywhere."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.workflow import ActivityCancellationType

from parbake.fleet.engine.tasks import CONTROL

_PATIENT = RetryPolicy(initial_interval=timedelta(seconds=1), maximum_interval=timedelta(minutes=1))


async def call(
    activity: str,
    *arguments: object,
    limit: timedelta,
    result: type | None = None,
    queue: str = CONTROL,
    heartbeat: float = 0.0,
    attempts: int = 5,
    waits: bool = False,
    **more: Any,
) -> Any:
    """Let a worker of a ``queue`` do something, which may take ``limit``; return its ``result``.

    A worker that is silent for ``heartbeat`` seconds (0: until the limit) counts as dead, and another one tries again:
    ``attempts`` times in all (0: for ever). A cancellation ``waits`` for its end, where it has something to clean up.
    ``more`` are options of the engine. Raises ActivityError.
    """
    cancelling = ActivityCancellationType
    return await workflow.execute_activity(
        activity,
        args=arguments,
        result_type=result,
        task_queue=queue,
        start_to_close_timeout=limit,
        heartbeat_timeout=timedelta(seconds=heartbeat) if heartbeat else None,
        retry_policy=replace(_PATIENT, maximum_attempts=attempts),
        cancellation_type=cancelling.WAIT_CANCELLATION_COMPLETED if waits else cancelling.TRY_CANCEL,
        **more,
    )

"""How workflows let workers do something: with the same patience, limits and way to cancel everywhere.

Whoever polls a queue can answer, also with nothing, or say that it failed. Only what is sealed for the very call
counts: its id names the run and the call, seals are bound to it, and workers put it into answers and failures.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

from temporalio import activity, workflow
from temporalio.common import RetryPolicy
from temporalio.converter import value_to_type
from temporalio.exceptions import ActivityError, ApplicationError, CancelledError
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor
from temporalio.workflow import ActivityCancellationType

from parbake.fleet.engine.tasks import CONTROL

_PATIENT = RetryPolicy(initial_interval=timedelta(seconds=1), maximum_interval=timedelta(minutes=1))
_AFTER_NO_ANSWER = 1.0  # seconds
NOT_SEALED = "NotSealed"


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
    ``attempts`` times in all (0: for ever). So it is with one that answers something else. A cancellation ``waits`` for
    its end, where it has something to clean up. ``more`` are options of the engine. Raises ActivityError.
    """
    cancelling, tried = ActivityCancellationType, 0
    while True:
        identity = f"{activity}/{workflow.info().run_id}/{workflow.uuid4().hex[:12]}"
        try:
            answer = await workflow.execute_activity(
                activity,
                args=arguments,
                activity_id=identity,
                task_queue=queue,
                start_to_close_timeout=limit,
                heartbeat_timeout=timedelta(seconds=heartbeat) if heartbeat else None,
                retry_policy=replace(_PATIENT, maximum_attempts=attempts),
                cancellation_type=cancelling.WAIT_CANCELLATION_COMPLETED if waits else cancelling.TRY_CANCEL,
                **more,
            )
        except ActivityError as error:
            cause = error.cause
            if not isinstance(cause, ApplicationError) or (cause.details and cause.details[-1] == identity):
                raise
        else:
            if isinstance(answer, dict) and answer.get("answers") == identity:
                return value_to_type(result, answer["with"]) if result else None
        tried += 1
        if tried == attempts:
            raise not_answered(activity, identity)
        await workflow.sleep(_AFTER_NO_ANSWER)


def not_answered(activity: str, identity: str) -> ActivityError:
    """Return the error of a call, or of a workflow of that name, that somebody without the key has answered."""
    error = ActivityError(
        "not answered",
        scheduled_event_id=0,
        started_event_id=0,
        identity="",
        activity_type=activity,
        activity_id=identity,
        retry_state=None,
    )
    error.__cause__ = not_sealed(activity)
    return error


def not_sealed(what: str) -> ApplicationError:
    """Return what such an answer stands for."""
    return ApplicationError(
        f"somebody without the fleet's key has answered for a worker ({what})",
        "keep others from the engine: `parbake fleet doctor` shows who takes tasks",
        type=NOT_SEALED,
        non_retryable=True,
    )


def is_said(error: ActivityError) -> bool:
    """Whether a worker with the fleet's key has said that something failed: anybody can keep one from answering."""
    return isinstance(error.cause, ApplicationError) and error.cause.type != NOT_SEALED


class StepFailed(Exception):
    """A step cannot go on by itself. ``said``: by a worker or the clock, and not by anybody who reaches the engine."""

    def __init__(self, message: str, error: ActivityError | None = None) -> None:
        super().__init__(message)
        self.said = error is None or is_said(error)


class Answering(Interceptor):
    """Lets workers do only what their own run has asked for, and say what they answer."""

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:  # noqa: A002  # the library's
        """Return what stands before each activity."""
        return _Answers(next)


class _Answers(ActivityInboundInterceptor):
    async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002  # the library's
        info = activity.info()
        if f"/{info.workflow_run_id}/" not in info.activity_id:
            raise ApplicationError("a task is of another run than its seal says", type=NOT_SEALED, non_retryable=True)
        try:
            return {"answers": info.activity_id, "with": await super().execute_activity(input)}
        except CancelledError:
            raise
        except ApplicationError as error:
            hint, log = (*error.details, *("", [])[len(error.details) :])[:2]
            raise ApplicationError(
                error.message, hint, log, info.activity_id, type=error.type, non_retryable=error.non_retryable,
                next_retry_delay=error.next_retry_delay,
            ) from None  # fmt: skip
        except Exception as error:
            raise ApplicationError(str(error), "", [], info.activity_id, type=type(error).__name__) from error

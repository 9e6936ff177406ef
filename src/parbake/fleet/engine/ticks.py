"""The workflows that a schedule starts: a run of the fleet as its file is now, and the removal of old artefacts."""

from __future__ import annotations

from datetime import timedelta

from temporalio import workflow
from temporalio.exceptions import ActivityError, ChildWorkflowError, WorkflowAlreadyStartedError, is_cancelled_exception
from temporalio.workflow import ChildWorkflowCancellationType, ParentClosePolicy

with workflow.unsafe.imports_passed_through():
    from parbake.fleet.engine.calls import call, not_answered
    from parbake.fleet.engine.failures import describe
    from parbake.fleet.engine.messages import is_of
    from parbake.fleet.engine.tasks import CONTROL, Failure, FleetFile, Order, Progress, RunRequest, run_id

_ASK = timedelta(minutes=10)
_PRUNE = timedelta(hours=2)
_BEAT = 60.0  # seconds


@workflow.defn
class Tick:
    """Starts a run, and waits for its end: so the schedule knows whether the one before is still under way."""

    @workflow.run
    async def run(self, place: FleetFile) -> str:
        """Return what became of it, in words."""
        request: RunRequest = await call("prepare", place, result=RunRequest, limit=_ASK)
        try:
            child = await workflow.start_child_workflow(
                "Fleet",
                request,
                id=run_id(request.fleet),
                result_type=Progress,
                task_queue=CONTROL,
                cancellation_type=ChildWorkflowCancellationType.ABANDON,
                parent_close_policy=ParentClosePolicy.ABANDON,
                static_summary=request.fleet,
            )
        except WorkflowAlreadyStartedError:
            return "a run was under way"
        try:
            ended: Progress = await child
            if not is_of(child.first_execution_run_id, ended):
                raise not_answered("run", child.id)
        except (ActivityError, ChildWorkflowError) as error:
            return "it was cancelled" if is_cancelled_exception(error) else describe(place.fleet, error).message
        return f"{ended.counts.done} of {ended.total} cells, {ended.counts.failed} failed"


@workflow.defn
class Prune:
    """Removes the old artefacts of each Bakefile; what machines bake meanwhile is spared by its lease."""

    @workflow.run
    async def run(self, place: FleetFile) -> list[Failure]:
        """Return what failed; the others are done."""
        requests: list[Order] = await call("to_prune", place, result=list[Order], limit=_ASK)
        failed: list[Failure] = []
        for request in requests:
            try:
                await call("prune", request, limit=_PRUNE, heartbeat=_BEAT, waits=True, summary=request.of)
            except ActivityError as error:
                if is_cancelled_exception(error):
                    raise
                failed.append(describe(request.of, error))
        return failed

"""How many tasks of a queue may begin in a second: the engine itself holds them back, over all workers.

Source: Temporal, "Task queue priority and fairness" (limits of a queue and of each fairness key; server 1.28 and
later).
"""

from __future__ import annotations

from typing import Any

from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.taskqueue.v1 import RateLimit
from temporalio.api.workflowservice.v1 import UpdateTaskQueueConfigRequest
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from parbake.core.errors import EnvironmentProblem
from parbake.fleet.engine.failures import in_words
from parbake.fleet.engine.tasks import BAKE, PLACE

_WHY = "quotas of a fleet's file"


@in_words
async def settle(client: Client, per_second: float | None) -> None:
    """Let so many bakes begin in a second, and so many copies in each region; any number for None.

    Raises EnvironmentProblem for an engine that knows no such limits, EngineUnreachable.
    """
    update = UpdateTaskQueueConfigRequest.RateLimitUpdate(reason=_WHY)
    if per_second:
        update.rate_limit.CopyFrom(RateLimit(requests_per_second=per_second))
    # The copies of a region have its name as their fairness key (placing).
    for queue, part in ((BAKE, "update_queue_rate_limit"), (PLACE, "update_fairness_key_rate_limit_default")):
        of: dict[str, Any] = {part: update}
        try:
            await client.workflow_service.update_task_queue_config(
                UpdateTaskQueueConfigRequest(
                    namespace=client.namespace,
                    identity=client.identity,
                    task_queue=queue,
                    task_queue_type=TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY,
                    **of,
                )
            )
        except RPCError as error:
            if error.status is not RPCStatusCode.UNIMPLEMENTED:
                raise
            if per_second:
                raise EnvironmentProblem(
                    "the engine does not support rate limits, and the fleet's file has `starts_per_second`",
                    hint="use Temporal server 1.28 or later, or remove it",
                ) from error
            return

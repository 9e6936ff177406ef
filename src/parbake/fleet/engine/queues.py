"""Who takes tasks from a queue, as the engine sees it: it remembers for minutes whoever has asked."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest
from temporalio.client import Client

_WAITS = timedelta(seconds=10)
"""A task that waits for so long has found nobody who asks: whoever has not asked since then is busy, or dead."""


@dataclass(frozen=True, slots=True)
class Pollers:
    """Whoever has asked, by identity, and how long ago; ``waits`` is how long the oldest task has been waiting."""

    asked: dict[str, timedelta]
    waits: timedelta = timedelta()

    def alive(self, busy: AbstractSet[str] = frozenset()) -> frozenset[str]:
        """Return who takes tasks, as far as can be told; ``busy`` are known to work on one. Pure."""
        waits = self.waits > _WAITS
        return frozenset(each for each, ago in self.asked.items() if not waits or ago < _WAITS or each in busy)


async def pollers(client: Client, queue: str) -> Pollers:
    """Ask the engine who takes tasks from a queue. Raises RPCError."""
    answer = await client.workflow_service.describe_task_queue(
        DescribeTaskQueueRequest(
            namespace=client.namespace,
            task_queue=TaskQueue(name=queue),
            task_queue_type=TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY,
            report_stats=True,
        )
    )
    now = datetime.now(UTC)
    asked = {each.identity: now - each.last_access_time.ToDatetime(UTC) for each in answer.pollers}
    stats = answer.stats
    waits = stats.approximate_backlog_age.ToTimedelta() if stats.approximate_backlog_count else timedelta()
    return Pollers(asked, waits)

"""A worker: takes tasks from queues, and runs parbake for each."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import timedelta

from temporalio.client import Client
from temporalio.worker import Worker

from parbake.core.errors import InputError
from parbake.fleet.engine.activities import OURS
from parbake.fleet.engine.connect import Engine, connect
from parbake.fleet.engine.handing import Handing
from parbake.fleet.engine.tasks import BAKE, CONTROL, QUEUES, ROLL
from parbake.fleet.engine.waves import Rollout
from parbake.fleet.engine.workflows import Bake, Fleet

# Cancellations come back with heartbeats, which the library holds back for most of the time that it may be silent.
_HEARTBEAT_THROTTLE = timedelta(seconds=5)
_SLOTS = {CONTROL: 20, ROLL: 50}  # none of them is work of ours: they wait for others
_CACHED_WORKFLOWS = 200  # bakes are short histories; more would only hold memory


async def serve(
    engine: Engine,
    *,
    queues: Sequence[str] = QUEUES,
    slots: int = 1,
    grace: float = 5.0,
    command: Sequence[str] = OURS,
) -> None:
    """Work until SIGTERM or SIGINT comes; then give what runs ``grace`` seconds, and end it.

    ``slots`` bakes run at once. Raises EngineUnreachable, InputError.
    """
    if unknown := [queue for queue in queues if queue not in QUEUES]:
        raise InputError(f"--queues {unknown[0]}: no such queue", hint=f"choose of {', '.join(QUEUES)}")
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    client = await connect(engine)
    async with AsyncExitStack() as stack:
        for queue in queues:
            await stack.enter_async_context(_worker(client, queue, slots, grace, command))
        await stop.wait()


def _worker(client: Client, queue: str, slots: int, grace: float, command: Sequence[str]) -> Worker:
    can = Handing(client, command)
    activities = {CONTROL: can.of_control, BAKE: can.of_bakes, ROLL: can.of_rollouts}
    return Worker(
        client,
        task_queue=queue,
        workflows=[Fleet, Bake, Rollout] if queue == CONTROL else [],
        activities=activities[queue],
        max_concurrent_activities=_SLOTS.get(queue, slots),
        max_cached_workflows=_CACHED_WORKFLOWS if queue == CONTROL else 0,
        max_heartbeat_throttle_interval=_HEARTBEAT_THROTTLE,
        default_heartbeat_throttle_interval=_HEARTBEAT_THROTTLE,
        graceful_shutdown_timeout=timedelta(seconds=grace),
    )

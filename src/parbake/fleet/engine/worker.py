"""A worker: takes tasks from queues, and runs parbake for each.

Versions of workers may stand side by side: what began under one version ends under it, what begins now is the newest
one's. That is for workers whose old version stays until it is drained. Others need it not: the tests refuse a change of
workflows under which the histories of released versions do not replay.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from datetime import timedelta

from temporalio.api.workflowservice.v1 import DescribeWorkerDeploymentRequest, SetWorkerDeploymentCurrentVersionRequest
from temporalio.client import Client
from temporalio.common import VersioningBehavior, WorkerDeploymentVersion
from temporalio.exceptions import ApplicationError, TemporalError
from temporalio.service import RPCError
from temporalio.worker import Worker, WorkerDeploymentConfig

from parbake.core.errors import InputError, ParbakeError
from parbake.fleet.engine.activities import OURS, Activities
from parbake.fleet.engine.calls import Answering
from parbake.fleet.engine.connect import Engine, connect
from parbake.fleet.engine.facts import Facts, fingerprint, pollers
from parbake.fleet.engine.failures import in_words, is_missing, unreachable
from parbake.fleet.engine.handles import request_of
from parbake.fleet.engine.sealing import read_keys
from parbake.fleet.engine.tasks import BAKE, CONTROL, PLACE, QUEUES, ROLL
from parbake.fleet.engine.ticks import Prune, Tick
from parbake.fleet.engine.waves import Rollout
from parbake.fleet.engine.workflows import Bake, Fleet

# Cancellations come back with heartbeats, which the library holds back for most of the time that it may be silent.
_HEARTBEAT_THROTTLE = timedelta(seconds=5)
_LOOKS = 100  # workflows, the newest
_ASKS = timedelta(seconds=90)  # who is alive asks for tasks at least once a minute
_SLOTS = {CONTROL: 20, PLACE: 50, ROLL: 50}  # none of them is work of ours: they wait for others
_CACHED_WORKFLOWS = 200  # bakes are short histories; more would only hold memory


async def serve(
    engine: Engine,
    *,
    queues: Sequence[str] = QUEUES,
    slots: int = 1,
    grace: float = 5.0,
    command: Sequence[str] = OURS,
    pinned: str = "",
    metrics: str = "",
) -> None:
    """Work until SIGTERM or SIGINT comes; then give what runs ``grace`` seconds, and end it.

    ``slots`` bakes run at once. With ``pinned``, a version, workflows that begin under it end under it; ``metrics`` as
    in ``connect``. Raises EngineUnreachable; InputError, also where others work with another key; WrongStore where the
    first task shows that the fleet's store is another one here.
    """
    if unknown := [queue for queue in queues if queue not in QUEUES]:
        raise InputError(f"--queues {unknown[0]}: no such queue", hint=f"choose from {', '.join(QUEUES)}")
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    client, identity = await connect(engine, metrics=metrics), Facts.of_this(read_keys(engine.key)[0]).identity()
    refused: list[ParbakeError] = []

    def refuse(error: ParbakeError) -> None:
        refused.append(error)
        stop.set()

    can = Activities(client, command)
    can.refuse = refuse
    await _need_same_key(client, engine, queues)
    if pinned:
        await become_current(client, pinned)
    try:
        async with AsyncExitStack() as stack:
            for queue in queues:
                await stack.enter_async_context(_worker(client, can, identity, queue, slots, grace, pinned))
            await stop.wait()
    except (TemporalError, RuntimeError) as error:
        raise unreachable(client.service_client.config.target_host, error) from error
    if refused:
        raise refused[0]


@in_words
async def _need_same_key(client: Client, engine: Engine, queues: Sequence[str]) -> None:
    """Raise InputError where somebody takes the same tasks with a key that is none of this machine's.

    One of the two could open none of them, and its tries would count until the content key is in quarantine. Anybody
    who reaches the engine can say so: it does not count where this machine's key is seen to be the fleet's.
    """
    ours = set(map(fingerprint, read_keys(engine.key)))
    asking = [each for queue in queues for each in (await pollers(client, queue)).asked.items()]
    others = [Facts.read(identity) for identity, ago in asking if ago < _ASKS]
    strange = [each for each in others if each.key and each.key not in ours]
    if strange and not any(each.key in ours for each in others) and not await _opens_something(client):
        raise InputError(
            f"{strange[0].name} uses another key than {engine.key}",
            hint="all machines must share one (PARBAKE_FLEET_KEY names its file), or two while it is changed",
        )


async def _opens_something(client: Client) -> bool:
    """Whether something that the engine has was sealed with the key here."""
    async for found in client.list_workflows(limit=_LOOKS):
        with suppress(ApplicationError, RPCError, ValueError):
            await request_of(client, client.get_workflow_handle(found.id, run_id=found.run_id))
            return True
    return False


def _worker(
    client: Client, can: Activities, identity: str, queue: str, slots: int, grace: float, pinned: str
) -> Worker:
    activities = {CONTROL: can.of_control, BAKE: can.of_bakes, PLACE: can.of_places, ROLL: can.of_rollouts}
    return Worker(
        client,
        task_queue=queue,
        identity=identity,
        workflows=[Fleet, Bake, Rollout, Tick, Prune] if queue == CONTROL else [],
        activities=activities[queue],
        interceptors=[Answering()],
        max_concurrent_activities=_SLOTS.get(queue, slots),
        max_cached_workflows=_CACHED_WORKFLOWS if queue == CONTROL else 0,
        max_heartbeat_throttle_interval=_HEARTBEAT_THROTTLE,
        default_heartbeat_throttle_interval=_HEARTBEAT_THROTTLE,
        deployment_config=_deployment(pinned) if pinned else None,
        graceful_shutdown_timeout=timedelta(seconds=grace),
    )


_DEPLOYMENT = "parbake"


def _deployment(version: str) -> WorkerDeploymentConfig:
    """Return what a worker of a version is; workflows stay with the version that they began with."""
    return WorkerDeploymentConfig(
        version=WorkerDeploymentVersion(_DEPLOYMENT, version),
        use_worker_versioning=True,
        default_versioning_behavior=VersioningBehavior.PINNED,
    )


@in_words
async def become_current(client: Client, version: str) -> None:
    """Let what begins from now on be this version's, unless a newer one is current. Raises EngineUnreachable.

    The engine refuses what comes while it is still noting others: then the library asks again.
    """
    now = await _current(client)
    if now and _parts(now) >= _parts(version):
        return
    await client.workflow_service.set_worker_deployment_current_version(
        SetWorkerDeploymentCurrentVersionRequest(
            namespace=client.namespace,
            deployment_name=_DEPLOYMENT,
            build_id=version,
            identity=client.identity,
            ignore_missing_task_queues=True,
            allow_no_pollers=True,  # this one begins in a moment
        ),
        retry=True,
    )


async def _current(client: Client) -> str:
    request = DescribeWorkerDeploymentRequest(namespace=client.namespace, deployment_name=_DEPLOYMENT)
    try:
        found = await client.workflow_service.describe_worker_deployment(request, retry=True)
    except RPCError as error:
        if is_missing(error):
            return ""
        raise
    return str(found.worker_deployment_info.routing_config.current_deployment_version.build_id)


def _parts(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())

"""Versions of workers side by side: what began under one version ends under it, what begins now is the newest one's.

That is for workers whose old version stays until it is drained. Others need it not: the tests refuse a change of
workflows under which the histories of released versions do not replay.
"""

from __future__ import annotations

from temporalio.api.workflowservice.v1 import DescribeWorkerDeploymentRequest, SetWorkerDeploymentCurrentVersionRequest
from temporalio.client import Client
from temporalio.common import VersioningBehavior, WorkerDeploymentVersion
from temporalio.service import RPCError
from temporalio.worker import WorkerDeploymentConfig

from parbake.fleet.engine.failures import in_words, is_missing

DEPLOYMENT = "parbake"


def deployment(version: str) -> WorkerDeploymentConfig:
    """Return what a worker of a version is; workflows stay with the version that they began with."""
    return WorkerDeploymentConfig(
        version=WorkerDeploymentVersion(DEPLOYMENT, version),
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
            deployment_name=DEPLOYMENT,
            build_id=version,
            identity=client.identity,
            ignore_missing_task_queues=True,
            allow_no_pollers=True,  # this one begins in a moment
        ),
        retry=True,
    )


async def _current(client: Client) -> str:
    request = DescribeWorkerDeploymentRequest(namespace=client.namespace, deployment_name=DEPLOYMENT)
    try:
        found = await client.workflow_service.describe_worker_deployment(request, retry=True)
    except RPCError as error:
        if is_missing(error):
            return ""
        raise
    return str(found.worker_deployment_info.routing_config.current_deployment_version.build_id)


def _parts(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())

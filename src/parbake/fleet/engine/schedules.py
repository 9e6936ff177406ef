"""What the engine gets from the fleet's file, and again whenever that has changed: schedules, and a limit on starts.

Source of the limit: Temporal, "Task queue priority and fairness" (limits of a queue and of each fairness key; server
1.28 and later).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, Literal

from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.taskqueue.v1 import RateLimit
from temporalio.api.workflowservice.v1 import UpdateTaskQueueConfigRequest
from temporalio.client import (
    Client,
    Schedule,
    ScheduleActionStartWorkflow,
    ScheduleDescription,
    ScheduleIntervalSpec,
    ScheduleOverlapPolicy,
    SchedulePolicy,
    ScheduleSpec,
    ScheduleState,
    ScheduleUpdate,
)
from temporalio.service import RPCError, RPCStatusCode

from parbake.core.errors import EnvironmentProblem
from parbake.fleet.engine import tasks
from parbake.fleet.engine.failures import in_words, is_missing
from parbake.fleet.engine.sealing import of_workflow
from parbake.fleet.engine.tasks import BAKE, PLACE, FleetFile
from parbake.fleet.file import Schedule as Wanted

type Change = Literal["created", "changed", "unchanged", "removed", "none"]
_OVERLAP = {"skip": ScheduleOverlapPolicy.SKIP, "queue": ScheduleOverlapPolicy.BUFFER_ONE}
_WORKFLOW = {"fleet": "Tick", "prune": "Prune"}


@dataclass(frozen=True, slots=True)
class Applied:
    """What became of the schedule of runs, and of that of pruning; ``paused`` says why the first one is held."""

    runs: Change
    prune: Change
    paused: str = ""


@in_words
async def apply(client: Client, wanted: Wanted | None, place: FleetFile, *, dry_run: bool = False) -> Applied:
    """Let the engine have the schedules of a fleet, or none of them; only say what would be done with ``dry_run``.

    Raises EngineUnreachable.
    """
    runs = await _settle(client, "fleet", place, _runs(wanted, place), dry_run=dry_run)
    prune = await _settle(client, "prune", place, _prune(wanted, place), dry_run=dry_run)
    return Applied(runs, prune, await held(client, place.fleet))


@in_words
async def held(client: Client, fleet: str) -> str:
    """Return why a fleet's schedule is held; empty where it is not, or where there is none."""
    found = await _described(client, f"fleet/{fleet}")
    if found is None or not found.schedule.state.paused:
        return ""
    return found.schedule.state.note or "by hand"


@in_words
async def hold(client: Client, fleet: str, why: str) -> bool:
    """Let the schedule begin nothing until ``let_go``; False where there is none."""
    if await _described(client, f"fleet/{fleet}") is None:
        return False
    await client.get_schedule_handle(f"fleet/{fleet}").pause(note=why)
    return True


@in_words
async def let_go(client: Client, fleet: str) -> bool:
    """Let a schedule that is held go on; False where there is none, or it is not held."""
    if not await held(client, fleet):
        return False
    await client.get_schedule_handle(f"fleet/{fleet}").unpause()
    return True


def _runs(wanted: Wanted | None, place: FleetFile) -> Schedule | None:
    if wanted is None:
        return None
    return _schedule("fleet", place, wanted.every, wanted.jitter, wanted.overlap, wanted.catch_up)


def _prune(wanted: Wanted | None, place: FleetFile) -> Schedule | None:
    if wanted is None or wanted.prune is None:
        return None
    return _schedule("prune", place, wanted.prune, wanted.jitter, "skip", wanted.catch_up)


def _schedule(
    kind: str, place: FleetFile, every: float, jitter: float | None, overlap: str, catch_up: float
) -> Schedule:
    return Schedule(
        action=ScheduleActionStartWorkflow(
            _WORKFLOW[kind], place, id=f"tick/{kind}/{place.fleet}", task_queue=tasks.CONTROL
        ),
        spec=ScheduleSpec(
            intervals=[ScheduleIntervalSpec(every=timedelta(seconds=every))],
            jitter=timedelta(seconds=jitter) if jitter else None,
        ),
        policy=SchedulePolicy(overlap=_OVERLAP[overlap], catchup_window=timedelta(seconds=catch_up)),
    )


async def _settle(client: Client, kind: str, place: FleetFile, wanted: Schedule | None, *, dry_run: bool) -> Change:
    name = f"{kind}/{place.fleet}"
    found = await _described(client, name)
    handle = client.get_schedule_handle(name)
    if wanted is None:
        if found and not dry_run:
            await handle.delete()
        return "removed" if found else "none"
    if found is None:
        if not dry_run:
            await client.create_schedule(name, wanted)
        return "created"
    if await _said(client, found.schedule) == await _said(client, wanted):
        return "unchanged"
    if not dry_run:
        state = found.schedule.state
        changed = Schedule(
            action=wanted.action,
            spec=wanted.spec,
            policy=wanted.policy,
            state=ScheduleState(note=state.note, paused=state.paused),
        )
        await handle.update(lambda _: ScheduleUpdate(changed))
    return "changed"


async def _described(client: Client, name: str) -> ScheduleDescription | None:
    try:
        return await client.get_schedule_handle(name).describe()
    except RPCError as error:
        if is_missing(error):
            return None
        raise


async def _said(client: Client, schedule: Schedule) -> tuple[Any, ...]:
    """Return what a schedule says, as it can be compared with another one."""
    action = schedule.action
    assert isinstance(action, ScheduleActionStartWorkflow)
    [place] = action.args
    if not isinstance(place, FleetFile):
        [place] = await of_workflow(client, action.id).decode([place], [FleetFile])
    return (
        action.workflow,
        asdict(place),
        [each.every for each in schedule.spec.intervals],
        schedule.spec.jitter or timedelta(),
        schedule.policy.overlap,
        schedule.policy.catchup_window,
    )


_WHY = "quotas of a fleet's file"


@in_words
async def limit_starts(client: Client, per_second: float | None) -> None:
    """Let so many bakes begin in a second, and so many copies in each region; any number for None.

    Raises EnvironmentProblem for an engine that knows no such limits, EngineUnreachable.
    """
    update = UpdateTaskQueueConfigRequest.RateLimitUpdate(reason=_WHY)
    if per_second:
        update.rate_limit.CopyFrom(RateLimit(requests_per_second=per_second))
    # The copies of a region have its name as their fairness key (`workflows`).
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

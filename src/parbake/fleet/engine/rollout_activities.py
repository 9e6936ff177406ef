"""The activities of rollouts: commands of parbake again, each for one target or one wave.

Where they run, the rights of the targets must be: the queue ``roll`` has them, and needs no root.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import datetime
from typing import Any, override

from temporalio import activity
from temporalio.client import WorkflowExecutionStatus
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError, RPCStatusCode

from parbake.core.errors import AwsNoAccess, EnvironmentProblem, ParbakeError, VerificationFailed
from parbake.fleet import audit
from parbake.fleet.engine.activities import Activities, failure
from parbake.fleet.engine.handles import last_begun
from parbake.fleet.engine.rollout_tasks import (
    AuditRequest,
    GateRequest,
    IdentifyRequest,
    OpensRequest,
    TargetOutcome,
    TargetTask,
    WavesPlanned,
    WavesRequest,
    WaveState,
    WaveTarget,
    fleet_of,
    rollout_id,
)
from parbake.fleet.source import checked_out
from parbake.fleet.stores import need_rollout
from parbake.fleet.windows import until_open
from parbake.rollouts import TargetState

_ENDED_BADLY = {WorkflowExecutionStatus.CANCELED, WorkflowExecutionStatus.FAILED, WorkflowExecutionStatus.TERMINATED}


class RolloutActivities(Activities):
    """What a worker can do, rollouts included."""

    @property
    @override
    def of_control(self) -> list[Any]:
        return [*super().of_control, self.waves, self.opens, self.last_rollout, self.audit, self.identify]

    @property
    def of_rollouts(self) -> list[Any]:
        """What needs the rights of the targets."""
        return [self.preview, self.roll_out, self.roll_back, self.gate]

    @activity.defn
    async def waves(self, request: WavesRequest) -> WavesPlanned:
        """Put the targets of some cells into waves, as the fleet's file says; pruning spares the cells from now on."""
        named = [part for cell in request.keys for part in ("--cell", cell)]
        document = await self._succeed(["fleet", "rollout", "--dry-run", "-f", request.file, *named], request.root, "")
        await self._noted(request, request.keys.values())
        keys: dict[str, list[str]] = {}
        for cell, key in sorted(request.keys.items()):
            keys.setdefault(cell.rpartition("@")[0], []).append(key)
        waves = [
            WaveState(
                name=wave["name"],
                targets=[
                    WaveTarget(each["name"], each["file"], each["target"], keys[each["bakefile"]])
                    for each in wave["targets"]
                ],
                at_once=wave["at_once"],
                soak=wave["soak"],
                gate=(wave["gate"] or {}).get("command", []),
                gate_timeout=(wave["gate"] or {}).get("timeout", 0.0),
                approvals=(wave["approve"] or {}).get("count", 0),
                by=(wave["approve"] or {}).get("by", []),
                within=(wave["approve"] or {}).get("within") or 0.0,
            )
            for wave in document["waves"]
        ]
        return WavesPlanned(waves, document["windows"], document["on_failure"])

    @activity.defn
    async def opens(self, request: OpensRequest) -> float:
        """Return the seconds until one of the windows is open."""
        return await asyncio.to_thread(until_open, request.windows, datetime.fromisoformat(request.now))

    @activity.defn
    async def last_rollout(self, fleet: str, store: str) -> str:
        """Return the generation of a fleet's last rollout; empty where there is none, or it came to no end."""
        try:
            described, _ = await last_begun(self._client, rollout_id(fleet), store)
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                return ""
            raise
        if described.status in _ENDED_BADLY:
            return ""
        return str((await described.memo()).get("generation", ""))

    @activity.defn
    async def audit(self, request: AuditRequest) -> None:
        """Write down what has happened; what is there already stays."""
        await self._need_store(request.store, request.store_id)
        try:
            await asyncio.to_thread(audit.write, request.store, request.fleet, request.events)
        except ParbakeError as error:
            raise ApplicationError(error.message, error.hint, type=error.json_name) from error

    @activity.defn
    async def identify(self, request: IdentifyRequest) -> str:
        """Return the ARN of whoever has made a proof, as STS says."""
        from parbake.aws.caller import caller  # loads only where AWS is asked

        try:
            return await asyncio.to_thread(caller, request.proof, request.purpose)
        except ParbakeError as error:
            final = isinstance(error, AwsNoAccess | EnvironmentProblem)
            raise ApplicationError(error.message, error.hint, type=error.json_name, non_retryable=final) from error

    @activity.defn(name="look")
    async def preview(self, request: TargetTask) -> TargetOutcome:
        """Find out what a target holds, and whether it would be written; writes nothing to it.

        Pruning spares what one that would be written goes back to.
        """
        return await self._handed(request, "rollout", "--dry-run", *_how(request), noting=True)

    @activity.defn(name="hand")
    async def roll_out(self, request: TargetTask) -> TargetOutcome:
        """Write a target, and follow until its nodes run the artefact."""
        return await self._handed(request, "rollout", *_how(request))

    @activity.defn(name="give_back")
    async def roll_back(self, request: TargetTask) -> TargetOutcome:
        """Return a target to what it held before, if it holds what was handed to it, and follow."""
        held = [part for each in request.ids for part in ("--holding", each)]
        return await self._handed(request, "rollback", *held)

    async def _handed(self, request: TargetTask, command: str, *more: str, noting: bool = False) -> TargetOutcome:
        keys = request.keys if command == "rollout" else []
        await self._need_store(request.store, request.store_id)
        whole = [command, *keys, "-f", request.file, "--to", request.target, *more]
        document = await self._succeed(whole, request.root, request.fleet_file)
        if not document["targets"]:
            return TargetOutcome(changed=False)
        [found] = document["targets"]
        before, after = (TargetState.model_validate(found[name]) for name in ("before", "after"))
        if found["diff"] and noting and not request.superseded(before.ids):  # it would go back past that
            held = dict.fromkeys((*before.ids, *before.artefacts))
            await self._noted(request, request.keys, f"{request.target} of {request.file}", held)
        return TargetOutcome(bool(found["diff"]), str(before), str(after), list(after.ids), list(before.ids))

    async def _noted(
        self, request: WavesRequest | TargetTask, keys: Iterable[str], target: str = "", held: Iterable[str] = ()
    ) -> None:
        """Let the store know what this rollout needs, of all that it hands out or of one target."""
        await self._need_store(request.store, request.store_id)
        fleet = fleet_of(activity.info().workflow_id or "")
        await asyncio.to_thread(need_rollout, request.store, fleet, target, tuple(keys), tuple(held))

    @activity.defn
    async def gate(self, request: GateRequest) -> None:
        """Ask whether a wave's nodes run what they should, and its own command."""
        folder = await asyncio.to_thread(checked_out, request.root)
        named = [part for cell in request.cells for part in ("--cell", cell)]
        asked = ["fleet", "gate", request.wave, "-f", request.fleet_file, "--generation", request.generation]
        code, document = await self._parbake([*asked, *named], folder)
        if no := [each for each in document.get("answers", []) if each["problem"]]:
            said = f"{no[0]['asked']}: {no[0]['problem']}"
            raise ApplicationError(said, type=VerificationFailed.json_name, non_retryable=True)
        if code:
            raise failure(code, document)


def _how(request: TargetTask) -> list[str]:
    """Return the options that a rollout to a target has."""
    over = [part for each in request.superseded(request.held) for part in ("--superseding", each)]
    return ["--store", request.store, *over, *(part for each in request.roles for part in ("--copy-role", each))]

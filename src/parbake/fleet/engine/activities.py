"""The activities: each is one command of parbake, in a process of its own that dies with the worker.

Its exit code is the policy of retries: what is wrong with the input (2), what verification refuses (3) and what no
second try cures is not tried again. While it runs the engine hears a heartbeat with what it is doing, from a task of
its own, since a stage may say nothing for minutes; a cancellation comes back with it.

Where those of rollouts run, the rights of the targets must be: the queue ``roll`` has them, and needs no root.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from temporalio import activity
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowFailureError
from temporalio.exceptions import ApplicationError, is_cancelled_exception
from temporalio.service import RPCError, RPCStatusCode

from parbake.core.errors import (
    AwsNoAccess,
    EnvironmentProblem,
    InputError,
    ParbakeError,
    VerificationFailed,
    WrongStore,
)
from parbake.core.run import follow
from parbake.fleet import audit, stores
from parbake.fleet.engine import tasks
from parbake.fleet.engine.calls import not_sealed
from parbake.fleet.engine.failures import describe
from parbake.fleet.engine.handles import last_begun
from parbake.fleet.engine.messages import first_run, is_of
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
from parbake.fleet.engine.search import registered
from parbake.fleet.engine.tasks import (
    Baked,
    BakeRequest,
    BeginRequest,
    Failure,
    FleetFile,
    Order,
    Planned,
    PlanRequest,
    Root,
    RunRequest,
    this_moment,
)
from parbake.fleet.source import checked_out, pinned
from parbake.fleet.stores import need_rollout
from parbake.fleet.windows import until_open
from parbake.rollouts import TargetState

if TYPE_CHECKING:
    from parbake.fleet.file import Fleet

_ENDED_BADLY = {WorkflowExecutionStatus.CANCELED, WorkflowExecutionStatus.FAILED, WorkflowExecutionStatus.TERMINATED}
_NO_SECOND_TRY = {
    "Denied", "AwsNoAccess", "LayerEscape", "LayerBomb", "Moved", "NotSealed",
    "RolloutError", "Stalled", "CanarySilent",  # a target has said no, or had its time
}  # fmt: skip
_KILLED = -9
_STOPPED = 130
GRACE = 30.0
"""Seconds that parbake has to clean up: it ends mounts and containers."""
_ANOTHER_WORKER = timedelta(seconds=5)  # until this one, which ends itself, asks for no more
_BEATS = 4  # heartbeats in the time that a worker may be silent
_LONGEST_ERROR = 4000
MOST_LINES = 20
"""Lines of the story of a bake that the engine keeps."""
_LONGEST_LINE = 160
_SECRET = ("TEMPORAL_API_KEY", "TEMPORAL_TLS_CLIENT_KEY_DATA", "PARBAKE_FLEET_KEY")
OURS = (sys.executable, "-m", "parbake")


class Activities:
    """What a worker can do. ``command`` is how parbake is called; ``refuse`` is called with why it cannot work."""

    def __init__(self, client: Client, command: Sequence[str] = OURS) -> None:
        self._client, self._ours = client, tuple(command)
        self.refuse: Callable[[ParbakeError], object] = lambda _: None

    @property
    def of_control(self) -> list[Any]:
        """What needs no privilege."""
        return [
            self.begin,
            self.plan,
            self.join,
            self.quarantine,
            self.prepare,
            self.to_prune,
            self.prune,
            self.waves,
            self.opens,
            self.last_rollout,
            self.audit,
            self.identify,
        ]

    @property
    def of_bakes(self) -> list[Any]:
        """What needs root and loop devices."""
        return [self.build, self.bake]

    @property
    def of_places(self) -> list[Any]:
        """What needs the rights to copy in AWS."""
        return [self.place]

    @property
    def of_rollouts(self) -> list[Any]:
        """What needs the rights of the targets."""
        return [self.preview, self.roll_out, self.roll_back, self.gate]

    @activity.defn
    async def begin(self, request: BeginRequest) -> None:
        """Note that a run or rollout begins, and refuse it where one that was asked for later has begun."""
        await self._need_store(request.store, request.store_id)
        info = activity.info()
        now = stores.Begun(request.at, request.made, info.workflow_run_id or "")
        try:
            await asyncio.to_thread(
                stores.begin, request.store, info.workflow_id or "", now, before=request.before, again=request.again
            )
        except ParbakeError as error:
            final = isinstance(error, InputError)
            raise ApplicationError(error.message, error.hint, type=error.json_name, non_retryable=final) from error

    @activity.defn
    async def plan(self, request: PlanRequest) -> list[Planned]:
        """Plan some cells; one that cannot be planned says why."""
        await self._need_store(request.store, request.store_id)
        folder = await asyncio.to_thread(checked_out, request.root)
        named = [part for cell in request.cells for part in ("--cell", cell)]
        code, document = await self._parbake(
            ["fleet", "plan", "-f", request.file, "--store", request.store, *named], folder
        )
        if code not in {0, 3} or "cells" not in document:
            raise failure(code, document)
        return [
            Planned(
                each["cell"],
                each["file"],
                each["platform"],
                each["state"],
                each["key"] or "",
                (each["problem"] or "")[:_LONGEST_ERROR],
                each.get("places") or [],
                each.get("builder") or "",
            )
            for each in document["cells"]
        ]

    @activity.defn
    async def build(self, order: Order) -> str:
        """Build and push a cell's images; return the content key that is known then."""
        return str((await self._carry_out("build", order))["key"])

    @activity.defn
    async def bake(self, order: Order) -> Baked:
        """Make sure that a key exists in the store, and is proven where this machine can prove it."""
        document = await self._carry_out("bake", order)
        verdict = document.get("verdict") or {}
        return Baked(
            str(document["artefact"]),
            bool(verdict.get("passed")),
            bool(document["changed"]),
            float(document.get("seconds") or 0),
            document["log"],
        )

    @activity.defn
    async def place(self, order: Order) -> bool:
        """Make sure that a key is in one more region; whether it was not."""
        return bool((await self._carry_out("copy", order))["changed"])

    @activity.defn
    async def join(self, name: str) -> bool:
        """Wait for a bake that another run has begun; False where that was cancelled."""
        async with beating({"stage": "join", "text": f"waits for {name}"}):
            try:
                run = first_run(await self._client.get_workflow_handle(name).describe())
                baked = await self._client.get_workflow_handle(name, run_id=run, result_type=Baked).result()
            except WorkflowFailureError as error:
                if is_cancelled_exception(error.cause):
                    return False
                found = describe("", error.cause)
                raise ApplicationError(found.message, found.hint, type=found.error, non_retryable=True) from error
        if not is_of(run, baked):
            raise not_sealed("bake")
        return True

    @activity.defn
    async def quarantine(self, request: BakeRequest, found: Failure) -> None:
        """Note that a key has failed too often, so that no run tries it until somebody says so."""
        note = stores.Note(request.order.of, found.error, found.message)
        await asyncio.to_thread(stores.quarantine, request.order.store, request.key, note)

    @activity.defn
    async def prepare(self, place: FleetFile) -> RunRequest:
        """Return the run that the fleet's file asks for now."""
        from parbake.fleet.cells import run_request  # with all of Bakefiles: workers start without it

        root, file, fleet = await asyncio.to_thread(_read, place)
        request = run_request(fleet, place.file, root, file.parent, heartbeat=place.heartbeat)
        return replace(request, at=this_moment(), searchable=await registered(self._client))

    @activity.defn
    async def to_prune(self, place: FleetFile) -> list[Order]:
        """Return the Bakefiles of the fleet."""
        return await asyncio.to_thread(_bakefiles, place)

    @activity.defn
    async def prune(self, order: Order) -> None:
        """Remove the old artefacts of a Bakefile."""
        await self._carry_out("prune", order)

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
            async with beating({"stage": "audit", "text": "writes down what has happened"}):
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
        open_ = found["canary"] in {"waits", "failed"}  # it holds the artefact, or has gone back: pods are to decide
        return TargetOutcome(bool(found["diff"]) or open_, str(before), str(after), list(after.ids), list(before.ids))

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

    async def _need_store(self, address: str, identity: str) -> None:
        """Refuse a store that is not the one where the run was begun: what went there would be lost for the others."""
        try:
            await asyncio.to_thread(stores.need_identity, address, identity)
        except WrongStore as error:
            self.refuse(error)
            raise ApplicationError(
                error.message, error.hint, type=tasks.WRONG_STORE, next_retry_delay=_ANOTHER_WORKER
            ) from error

    async def _carry_out(self, command: str, order: Order) -> dict[str, Any]:
        await self._need_store(order.store, order.store_id)
        return await self._succeed([command, *order.options], order.root, order.fleet_file)

    async def _succeed(self, arguments: Sequence[str], root: Root, fleet_file: str) -> dict[str, Any]:
        """Run a command of parbake in the folder of a fleet's file; return its document, or raise its error."""
        folder = (await asyncio.to_thread(checked_out, root)) / Path(fleet_file).parent
        code, document = await self._parbake(arguments, folder)
        if code:
            raise failure(code, document)
        return document

    async def _parbake(self, arguments: Sequence[str], folder: Path) -> tuple[int, dict[str, Any]]:
        """Run a command of parbake; return its exit code and its document."""
        log: deque[str] = deque(maxlen=MOST_LINES)
        progress: dict[str, Any] = {"stage": "", "text": "", "done": 0, "total": 0, "log": log}

        def hear(line: str) -> None:
            with suppress(ValueError, KeyError, TypeError):
                event = json.loads(line)
                if event["kind"] in {"stage-start", "note", "warning"}:
                    log.append(f"{datetime.now(UTC):%H:%M:%S} {event['text']}"[:_LONGEST_LINE])
                if event["kind"] == "stage-start":
                    progress.update(stage=event["name"], text=event["text"], done=0, total=0)
                elif event["kind"].startswith("task"):
                    progress.update(text=event["text"], done=event["done"], total=event["total"])

        command = [*self._ours, *arguments, "--json", "--progress", "json"]
        env = {name: value for name, value in os.environ.items() if name not in _SECRET}
        async with beating(progress):
            try:
                done = await follow(command, on_line=hear, env=env, cwd=folder, grace=GRACE)
            except asyncio.CancelledError:
                if activity.is_worker_shutdown():
                    raise ApplicationError("the worker was told to stop", type="WorkerStopped") from None
                raise
        try:
            return done.code, {**json.loads(done.stdout), "log": list(log)}
        except ValueError:
            return done.code or 1, {"message": "\n".join(done.stderr.splitlines()[-10:]), "log": list(log)}


@asynccontextmanager
async def beating(progress: dict[str, Any]) -> AsyncIterator[None]:
    """Let the engine hear what is being done, until the body ends."""
    limit = activity.info().heartbeat_timeout
    pause = limit.total_seconds() / _BEATS if limit else 15.0

    async def beat() -> None:
        while True:
            activity.heartbeat({**progress, "log": list(progress.get("log", ()))})
            await asyncio.sleep(pause)

    heart = asyncio.create_task(beat())
    try:
        yield
    finally:
        heart.cancel()
        with suppress(asyncio.CancelledError):
            await heart


def failure(code: int, document: dict[str, Any]) -> ApplicationError:
    """Return the engine's error for what a command of parbake ended with."""
    if code == _STOPPED:
        return ApplicationError("parbake was interrupted on its machine", type="Interrupted")
    if code in {_KILLED, 128 - _KILLED}:
        hint = "did it run out of memory? `dmesg` says"
        return ApplicationError("parbake was killed on its machine", hint, type="Killed")
    error = str(document.get("error") or ParbakeError.json_name)
    message = str(document.get("message") or f"parbake ended with code {code}")[:_LONGEST_ERROR]
    return ApplicationError(
        message,
        str(document.get("hint") or ""),
        document.get("log", []),
        type=error,
        non_retryable=code in {2, 3} or error in _NO_SECOND_TRY,
    )


def _read(place: FleetFile) -> tuple[Root, Path, Fleet]:
    from parbake.fleet.file import Source, load

    try:
        source = Source(git=place.git, ref=place.ref) if place.git else None
        root = pinned(source, Path(place.folder))
        file = checked_out(root) / place.file
        return root, file, load(file)
    except ParbakeError as error:
        final = error.exit_code == 2
        raise ApplicationError(error.message, error.hint, type=error.json_name, non_retryable=final) from error


def _bakefiles(place: FleetFile) -> list[Order]:
    from parbake.bakefile import load as load_bakefile

    root, file, fleet = _read(place)
    roles = [part for each in tasks.copy_roles(fleet.places) for part in ("--copy-role", each)]
    found = []
    try:
        for entry in fleet.bakefiles:
            name = str(entry.file.relative_to(file.parent))
            published = ["--aws"] if load_bakefile(entry.file).traits.in_ec2 else []
            options = ["-f", name, "--store", fleet.store, *published, *roles]
            found.append(Order(name, options, root, place.file, fleet.store))
    except ParbakeError as error:
        raise ApplicationError(error.message, error.hint, type=error.json_name, non_retryable=True) from error
    return found


def _how(request: TargetTask) -> list[str]:
    """Return the options that a rollout to a target has."""
    over = [part for each in request.superseded(request.held) for part in ("--superseding", each)]
    return ["--store", request.store, *over, *(part for each in request.roles for part in ("--copy-role", each))]

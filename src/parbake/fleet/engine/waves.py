"""The rollout of a fleet: waves in order, each target to its end, and all the way back where that is wanted.

A workflow as those of ``workflows``: replayed from its history, so no I/O, clock or chance of its own. What may have
been written is noted before it is: a rollback returns the very target that failed, too.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Literal

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError, is_cancelled_exception
from temporalio.workflow import ActivityCancellationType

with workflow.unsafe.imports_passed_through():
    from parbake.fleet.engine import rollout_tasks as tasks
    from parbake.fleet.engine.rollout_tasks import (
        Entry,
        GateRequest,
        Handed,
        HandRequest,
        HandResult,
        OpensRequest,
        RolloutRequest,
        Standing,
        WavesPlanned,
        WavesRequest,
        WaveState,
        Yes,
    )
    from parbake.fleet.engine.tasks import CONTROL, ROLL
    from parbake.fleet.engine.workflows import PATIENT, describe

_A_TARGET = timedelta(days=2)  # nodes may take as long as the target's own deadline says, which parbake keeps
_A_LOOK = timedelta(hours=1)
_LOOKS_AT_ONCE = 8

Way = Literal["done", "longer", "back"]


class _Failed(Exception):
    """A wave cannot go on by itself."""


@workflow.defn
class Rollout:
    """Hands a generation out. One at a time for a fleet."""

    @workflow.init
    def __init__(self, request: RolloutRequest) -> None:
        self._request = request
        self._standing = request.standing or Standing(request.generation)
        self._back = request.back

    @workflow.query
    def standing(self) -> Standing:
        """Say how far it is."""
        return self._standing

    @workflow.signal
    def pause(self, why: str) -> None:
        """Begin with no other target; what is under way goes to its end."""
        if self._standing.state == "waves":
            self._standing.paused = why
            self._tell(f"paused: {why}")

    @workflow.signal
    def resume(self, by: str) -> None:
        """Go on; what failed is tried again."""
        if self._standing.paused:
            self._standing.paused = ""
            self._tell(f"goes on: {by}")

    @workflow.update
    def approve(self, yes: Yes) -> None:
        """Let the next wave begin, once enough have said so."""
        wave = self._named(yes.wave)
        wave.approved.append(replace(yes, at=workflow.now().isoformat()))
        self._tell(f"{wave.name}: approved by {yes.by} on {yes.host}" + (f": {yes.note}" if yes.note else ""))

    @approve.validator
    def _may_approve(self, yes: Yes) -> None:
        wave = self._named(yes.wave)
        if any(each.by == yes.by for each in wave.approved):
            raise _no(f"{yes.by} has approved the wave {wave.name} already", "nobody may approve twice")
        if wave.approved and len(wave.approved) >= wave.approvals:
            who = " and ".join(each.by for each in wave.approved)
            raise _no(f"the wave {wave.name} is approved already, by {who}")
        if not wave.approvals:
            raise _no(f"the wave {wave.name} needs no approval")
        if self._standing.state != "waves" or self._back:
            raise _no("the rollout goes back, or has", "`parbake fleet status` shows how far it is")
        if wave.state != "approval":
            raise _no(
                f"the wave {wave.name} does not wait for an approval: it {_DOES[wave.state]}",
                "`parbake fleet status` shows how far it is",
            )
        if wave.by and yes.by not in wave.by:
            raise _no(f"{yes.by} may not approve the wave {wave.name}", f"these may: {', '.join(wave.by)}")

    @workflow.update
    def back(self, why: str) -> None:
        """Return all that was written, in reverse order; what is under way is ended."""
        self._back = why

    @back.validator
    def _may_go_back(self, why: str) -> None:
        del why
        if self._back:
            raise _no("the rollout goes back already", "`parbake fleet status` shows how far it is")

    @workflow.run
    async def run(self, request: RolloutRequest) -> Standing:
        """Return how it ended: done or rolled back."""
        if not self._standing.waves:
            await self._plan(request)
        way: Way = "back" if self._back else await self._forward_or_back()
        if way == "back":
            way = await self._return_all()
        if way == "longer":
            await workflow.wait_condition(workflow.all_handlers_finished)
            workflow.continue_as_new(replace(request, standing=self._standing, back=self._back))
        await workflow.wait_condition(workflow.all_handlers_finished)
        return self._standing

    async def _plan(self, request: RolloutRequest) -> None:
        planned: WavesPlanned = await workflow.execute_activity(
            "waves",
            WavesRequest(request.file, request.root, request.keys, request.store, request.store_id),
            result_type=WavesPlanned,
            task_queue=CONTROL,
            start_to_close_timeout=_A_LOOK,
            heartbeat_timeout=timedelta(seconds=request.heartbeat),
            retry_policy=PATIENT,
        )
        now = self._standing
        now.waves, now.windows, now.on_failure = planned.waves, planned.windows, planned.on_failure
        self._tell(f"begins with {len(now.waves)} waves of {len(now.targets)} targets")

    async def _forward_or_back(self) -> Way:
        """Go through the waves; whoever wants it back ends what is under way."""
        forward = asyncio.create_task(self._forward())
        try:
            await workflow.wait_condition(lambda: forward.done() or bool(self._back))
        finally:
            if not forward.done():
                forward.cancel()
                await asyncio.gather(forward, return_exceptions=True)
        return "back" if self._back else forward.result()

    async def _forward(self) -> Way:
        for wave in self._standing.waves:
            while wave.state != "done":
                await workflow.wait_condition(lambda: not self._standing.paused)
                if workflow.info().is_continue_as_new_suggested():
                    return "longer"
                try:
                    await self._one_step_of(wave)
                except _Failed as problem:
                    self._tell(f"{wave.name}: {problem}")
                    if self._standing.on_failure == "rollback":
                        self._back = f"on_failure: {problem}"
                        return "back"
                    self._standing.paused = f"{wave.name}: {problem}"
        self._standing.state = "done"
        self._tell("done")
        return "done"

    async def _one_step_of(self, wave: WaveState) -> None:
        """Bring a wave from its state to the next one. Raises _Failed."""
        match wave.state:
            case "waits" | "looks":
                wave.state = "looks"
                await self._look(wave)
                if all(target.state == "holds" for target in wave.targets):
                    self._tell(f"{wave.name}: all of it holds the artefacts already")
                    wave.state = "done"
                else:
                    wave.state = "hands"
            case "hands":
                if not await self._hand_all(wave):
                    return  # the history is long enough
                self._enter(wave, "soaks", wave.soak)
            case "soaks":
                await self._pass_until(wave.until)
                self._enter(wave, "asks")
            case "asks":
                if wave.soak or wave.gate:
                    await self._ask(wave)
                self._enter(wave, "approval")
            case "approval":
                await self._approval(wave)
                wave.state = "done"
                self._tell(f"{wave.name}: done")

    def _enter(self, wave: WaveState, state: str, seconds: float = 0.0) -> None:
        wave.state = state
        wave.until = (workflow.now() + timedelta(seconds=seconds)).isoformat() if seconds else ""

    async def _look(self, wave: WaveState) -> None:
        """Find out for all targets what is to be written, before anything of the wave is."""
        room = asyncio.Semaphore(_LOOKS_AT_ONCE)

        async def one(target: Handed) -> None:
            async with room:
                found = await self._do("look", target, _A_LOOK)
            target.before, target.after, target.ids = found.before, found.after, found.ids
            target.state = "waits" if found.changed else "holds"

        await _all([one(target) for target in wave.targets if target.state in {"waits", "failed"}])

    async def _hand_all(self, wave: WaveState) -> bool:
        """Hand to some targets at a time; False where the rest is for a new history. Raises _Failed."""
        under_way: set[asyncio.Task[None]] = set()
        problem: _Failed | None = None
        try:
            while True:
                waiting = [each for each in wave.targets if each.state in {"waits", "failed"}]
                free = not problem and not self._standing.paused
                longer = workflow.info().is_continue_as_new_suggested()
                if waiting and free and not longer and len(under_way) < wave.at_once:
                    await self._window()
                    if not self._standing.paused:
                        under_way.add(asyncio.create_task(self._hand(waiting[0])))
                        await asyncio.sleep(0)  # so that it is noted
                    continue
                if not under_way:
                    break
                ended, still = await workflow.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
                under_way = set(still)
                for task in ended:
                    if isinstance(error := task.exception(), _Failed):
                        problem = problem or error
                    else:
                        task.result()
        except asyncio.CancelledError:
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)
            raise
        if problem:
            raise problem
        return all(each.state == "holds" for each in wave.targets)

    async def _hand(self, target: Handed) -> None:
        target.state, target.problem = "hands", ""
        if target.name not in self._standing.noted:
            self._standing.noted.append(target.name)
        found = await self._do("hand", target, _A_TARGET)
        target.state, target.ids = "holds", found.ids
        self._tell(f"{target.name}: holds {found.after}")

    async def _window(self) -> None:
        """Wait until a window is open."""
        while self._standing.windows:
            seconds: float = await workflow.execute_activity(
                "opens",
                OpensRequest(self._standing.windows, workflow.now().isoformat()),
                result_type=float,
                task_queue=CONTROL,
                start_to_close_timeout=_A_LOOK,
                retry_policy=PATIENT,
            )
            if not seconds:
                break
            self._standing.opens = (workflow.now() + timedelta(seconds=seconds)).isoformat()
            await self._pass_until(self._standing.opens)
        self._standing.opens = ""

    async def _pass_until(self, until: str) -> None:
        left = (datetime.fromisoformat(until) - workflow.now()).total_seconds() if until else 0.0
        if left > 0:
            await workflow.sleep(left)

    async def _ask(self, wave: WaveState) -> None:
        """Ask whether the wave's nodes still run it, and its gate. Raises _Failed where one of them says no."""
        request = self._request
        try:
            gate = GateRequest(wave.name, request.file, request.root, self._standing.generation, list(request.keys))
            await self._rolling("gate", gate, wave.name, _A_LOOK + timedelta(seconds=wave.gate_timeout))
        except ActivityError as error:
            if is_cancelled_exception(error):
                raise
            raise _Failed(f"the gate says no: {describe(wave.name, error).message}") from error
        self._tell(f"{wave.name}: the gate says yes")

    async def _approval(self, wave: WaveState) -> None:
        """Wait for enough approvals. Raises _Failed where they do not come in time."""
        if len(wave.approved) >= wave.approvals:
            return
        self._tell(f"{wave.name}: waits for an approval")
        self._enter(wave, "approval", wave.within)
        left = wave.within or None
        try:
            await workflow.wait_condition(lambda: len(wave.approved) >= wave.approvals, timeout=left)
        except TimeoutError:
            raise _Failed("it was not approved in time") from None

    async def _return_all(self) -> Way:
        """Return what was written, the last first; what cannot be returned does not keep the others from it."""
        now = self._standing
        if now.state != "back":
            now.state, now.paused, now.opens = "back", "", ""
            for target in now.targets:
                if target.state == "not-returned":  # of a rollback before
                    target.state = "failed"
            self._tell(f"goes back: {self._back}")
        failed = {target.name for target in now.targets if target.state == "not-returned"}
        for name in [each for each in reversed(now.noted) if each not in failed]:
            if workflow.info().is_continue_as_new_suggested():
                return "longer"
            target = next(each for each in now.targets if each.name == name)
            target.state, target.problem = "returns", ""
            try:
                found = await self._do("give_back", target, _A_TARGET)
            except _Failed:
                target.state = "not-returned"
                continue
            now.noted.remove(name)
            target.state = "returned" if found.after else "left"
            self._tell(f"{name}: " + (f"returned to {found.after}" if found.after else "did not hold it, and is left"))
        now.state = "rolled-back"
        self._tell("rolled back" + (f", but for {', '.join(now.noted)}" if now.noted else ""))
        return "done"

    async def _do(self, what: str, target: Handed, limit: timedelta) -> HandResult:
        """Let a worker do something to a target. Raises _Failed with what parbake said."""
        request = self._request
        try:
            one = HandRequest(
                target.file,
                target.target,
                target.keys,
                target.ids,
                request.root,
                request.file,
                request.store,
                request.store_id,
            )
            found: HandResult = await self._rolling(what, one, target.name, limit, HandResult)
        except ActivityError as error:
            if is_cancelled_exception(error):
                raise
            said = describe(target.name, error)
            target.state, target.problem = "failed", f"{said.error}: {said.message}"
            self._tell(f"{target.name}: {target.problem}")
            raise _Failed(f"{target.name}: {said.message}") from error
        return found

    async def _rolling(
        self, what: str, asked: object, summary: str, limit: timedelta, result: type | None = None
    ) -> Any:
        """Let a worker of the queue roll do something, and end it where it is cancelled."""
        return await workflow.execute_activity(
            what,
            asked,
            result_type=result,
            task_queue=ROLL,
            start_to_close_timeout=limit,
            heartbeat_timeout=timedelta(seconds=self._request.heartbeat),
            retry_policy=replace(PATIENT, maximum_attempts=self._request.attempts),
            cancellation_type=ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
            summary=summary,
        )

    def _named(self, name: str) -> WaveState:
        for wave in self._standing.waves:
            if wave.name == name:
                return wave
        known = ", ".join(wave.name for wave in self._standing.waves) or "none yet"
        raise _no(f"the rollout has no wave {name}", f"waves are: {known}")

    def _tell(self, text: str) -> None:
        story = self._standing.story
        story.append(Entry(workflow.now().isoformat(timespec="seconds"), text))
        del story[: -tasks.MOST_ENTRIES]


_DOES = {
    "waits": "waits for the waves before it",
    "looks": "is checking its targets",
    "hands": "is being rolled out",
    "soaks": "soaks",
    "asks": "is running its gate",
    "done": "is done",
}


def _no(message: str, hint: str = "") -> ApplicationError:
    return ApplicationError(message, hint, type="InputError", non_retryable=True)


async def _all(parts: list[Any]) -> None:
    """Bring all to their end, then raise what one of them has raised."""
    ended = await asyncio.gather(*parts, return_exceptions=True)
    for each in ended:
        if isinstance(each, BaseException):
            raise each

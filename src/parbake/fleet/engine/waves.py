"""The rollout of a fleet: waves in order, each target to its end, and all the way back where that is wanted.

A workflow as those of ``workflows``: replayed from its history, so no I/O, clock or chance of its own. What may have
been written is noted before it is: a rollback returns the very target that failed, too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Literal, NoReturn

from temporalio import workflow
from temporalio.exceptions import ActivityError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from parbake.fleet.engine.approvals import against
    from parbake.fleet.engine.audit_writer import AuditWriter
    from parbake.fleet.engine.calls import StepFailed, call, is_said
    from parbake.fleet.engine.failures import describe
    from parbake.fleet.engine.messages import Heard, Told, echoed
    from parbake.fleet.engine.rollout_tasks import (
        MOST_ENTRIES,
        Approval,
        Entry,
        GateRequest,
        IdentifyRequest,
        OpensRequest,
        RolloutRequest,
        RolloutState,
        SignOff,
        TargetOutcome,
        TargetTask,
        WavesPlanned,
        WavesRequest,
        WaveState,
        WaveTarget,
        purpose_of,
    )
    from parbake.fleet.engine.search import Shown
    from parbake.fleet.engine.tasks import ROLL
    from parbake.fleet.engine.workflows import all_ended, may_begin, refused
    from parbake.fleet.words import phase

_A_TARGET = timedelta(days=2)  # nodes may take as long as the target's own deadline says, which parbake keeps
_A_LOOK = timedelta(hours=1)
_AN_ANSWER = timedelta(minutes=1)
_LOOKS_AT_ONCE = 8
_LAST_WORDS = timedelta(minutes=1)  # of a rollout that is cancelled, while the store does not answer

_OF_BEFORE = ("that was said before, or to another rollout", "`parbake fleet status` shows what is under way")

Way = Literal["done", "longer", "back", "superseded"]


@workflow.defn
class Rollout:
    """Hands a generation out. One at a time for a fleet."""

    @workflow.init
    def __init__(self, request: RolloutRequest) -> None:
        self._request = request
        self._state = request.standing or RolloutState(request.generation, story=list(request.story))
        self._back = request.back
        self._newer = request.newer
        self._audit = AuditWriter(request)
        self._left_by = ""
        self._heard = Heard(request.heard)
        self._shown = Shown(request.searchable, fleet=request.fleet)

    @workflow.query(name="standing")
    def progress(self, word: str) -> RolloutState:
        """Say how far it is."""
        return replace(self._state, asked=echoed(word))

    @workflow.signal
    def pause(self, told: Told) -> None:
        """Begin with no other target; what is under way goes to its end."""
        if self._takes(told, "pause") and self._state.state == "waves":
            self._state.paused, self._state.held = told.text, True
            self._tell(f"paused: {told.text}", "paused", by=told.text)

    @workflow.signal
    def resume(self, told: Told) -> None:
        """Go on; what failed is tried again."""
        if self._takes(told, "resume") and self._state.paused:
            self._state.paused, self._state.held = "", False
            self._tell(f"goes on: {told.text}", "resumed", by=told.text)

    @workflow.signal
    def supersede(self, newer: RolloutRequest) -> None:
        """Let a newer generation take its place, between two targets; not while somebody has paused it."""
        if newer.at <= max(self._request.at, self._newer.at if self._newer else ""):
            return  # of before
        known = self._newer.generation if self._newer else ""
        self._newer = None if newer.generation == self._state.generation else newer
        if self._newer and newer.generation != known:
            waits = ", once somebody lets it go on" if self._state.held else ""
            self._tell(f"{newer.generation} is newer, and takes its place{waits}")

    @workflow.signal
    def leave(self, told: Told) -> None:
        """Say who is about to cancel it."""
        if self._takes(told, "leave"):
            self._left_by = told.text

    @workflow.update
    async def approve(self, approval: Approval) -> None:
        """Let the next wave begin, once enough have said so."""
        if not self._takes(approval, "approve"):
            raise refused(*_OF_BEFORE)
        sign_off = approval.sign_off
        if sign_off.proof:
            sign_off = replace(sign_off, by=await self._whose(sign_off), proof="")
            self._may_approve(sign_off, proven=True)
        wave = self._named(sign_off.wave)
        wave.approved.append(replace(sign_off, at=workflow.now().isoformat()))
        note = f": {sign_off.note}" if sign_off.note else ""
        said = f"{wave.name}: approved by {sign_off.by} on {sign_off.host}{note}"
        self._tell(said, "approved", subject=wave.name, by=sign_off.by, host=sign_off.host, note=sign_off.note)

    @approve.validator
    def _may_be_approved(self, approval: Approval) -> None:
        self._need_new(approval, "approve")
        self._may_approve(approval.sign_off, proven=False)

    def _may_approve(self, sign_off: SignOff, *, proven: bool) -> None:
        """Raise ApplicationError where somebody may not approve; what a proof is to show is looked at once it has."""
        wave, newer = self._named(sign_off.wave), self._newer.generation if self._has_newer() and self._newer else ""
        if problem := against(self._state, wave, sign_off, back=bool(self._back), newer=newer, proven=proven):
            raise refused(*problem)

    async def _whose(self, sign_off: SignOff) -> str:
        """Ask STS who has made a proof. Raises ApplicationError where it does not say."""
        purpose = purpose_of(self._request.fleet, self._state.generation, sign_off.wave)
        try:
            asked = IdentifyRequest(sign_off.proof, purpose)
            found: str = await call("identify", asked, result=str, limit=_AN_ANSWER, attempts=3)
        except ActivityError as error:
            said = describe(sign_off.wave, error)
            raise refused(said.message, said.hint) from error
        return found

    @workflow.update
    def back(self, told: Told) -> None:
        """Return all that was written, in reverse order; what is under way is ended."""
        if self._takes(told, "back"):
            self._back = told.text

    @back.validator
    def _may_go_back(self, told: Told) -> None:
        self._need_new(told, "back")
        if self._back:
            raise refused("the rollout goes back already", "`parbake fleet status` shows how far it is")

    def _takes(self, told: Told, what: str) -> bool:
        return self._heard.takes(told, what, self._state.generation)

    def _need_new(self, told: Told, what: str) -> None:
        if not self._heard.is_new(told, what, self._state.generation):
            raise refused(*_OF_BEFORE)

    @workflow.run
    async def run(self, request: RolloutRequest) -> RolloutState:
        """Return how it ended: done or rolled back."""
        await may_begin(request)
        try:
            way = await self._go(request)
        except asyncio.CancelledError:
            self._tell("cancelled: targets keep what they hold", "cancelled", by=self._left_by)
            await self._audit.done(_LAST_WORDS)
            raise
        await workflow.wait_condition(workflow.all_handlers_finished)
        if way == "longer":
            await self._audit.done()
            rest = replace(request, standing=self._state, back=self._back, newer=self._newer, story=[])
            workflow.continue_as_new(replace(rest, heard=self._heard.once))
        if self._newer:
            await self._give_way(self._newer, written=way == "superseded")
        await self._audit.done()
        return self._state

    async def _go(self, request: RolloutRequest) -> Way:
        if not self._state.waves:
            await self._plan(request)
        way: Way = "back" if self._back else await self._forward_or_back()
        return await self._return_all() if way == "back" else way

    async def _give_way(self, newer: RolloutRequest, *, written: bool) -> NoReturn:
        """End, and begin as the newer one; ``written``: what was, its targets must not take for proven."""
        now = self._state
        over = [next(each for each in now.targets if each.name == name).superseded() for name in now.noted]
        said = f"{newer.generation} takes the place of {now.generation}"
        self._tell(said, "superseded", before=now.generation, after=newer.generation, by=newer.by)
        await self._audit.done()
        workflow.continue_as_new(
            replace(
                newer, over=over if written else [], story=now.story, heard=self._heard.once,
                searchable=self._request.searchable,
            ),
            memo={"generation": newer.generation},
        )  # fmt: skip

    async def _plan(self, request: RolloutRequest) -> None:
        asked = WavesRequest(request.file, request.root, request.keys, request.store, request.store_id)
        planned: WavesPlanned = await call(
            "waves", asked, result=WavesPlanned, limit=_A_LOOK, heartbeat=request.heartbeat
        )
        now = self._state
        now.waves, now.windows, now.on_failure = planned.waves, planned.windows, planned.on_failure
        self._tell(f"begins with {len(now.waves)} waves of {len(now.targets)} targets", "begun", by=request.by)
        planned_by_name = {target.name: target for target in now.targets}
        for before in request.over:
            if target := planned_by_name.get(before.name):
                target.over = before.over
                now.noted.append(before.name)
            else:
                self._tell(f"{before.name}: is in no wave any more, and keeps what was written to it", "left")

    async def _forward_or_back(self) -> Way:
        """Go through the waves; whoever wants it back ends what is under way, something newer between two targets."""
        forward = asyncio.create_task(self._forward())
        try:
            await workflow.wait_condition(lambda: forward.done() or bool(self._back) or self._may_give_way())
        finally:
            if ended_early := not forward.done():
                forward.cancel()
                await asyncio.gather(forward, return_exceptions=True)
        if self._back:
            return "back"
        return "superseded" if ended_early else forward.result()

    def _may_give_way(self) -> bool:
        return self._has_newer() and not any(target.state == "hands" for target in self._state.targets)

    def _has_newer(self) -> bool:
        return self._newer is not None and not self._state.held

    async def _forward(self) -> Way:
        for wave in self._state.waves:
            while wave.state != "done":
                await workflow.wait_condition(lambda: not self._state.paused and not self._has_newer())
                if workflow.info().is_continue_as_new_suggested():
                    return "longer"
                try:
                    await self._one_step_of(wave)
                except StepFailed as problem:
                    self._tell(f"{wave.name}: {problem}", "problem", subject=wave.name, note=str(problem))
                    if self._state.on_failure == "rollback" and problem.said:
                        self._back = f"on_failure: {problem}"
                        return "back"
                    self._state.paused = f"{wave.name}: {problem}"
                    self._show()
        self._state.state = "done"
        self._tell("done", "done")
        return "done"

    async def _one_step_of(self, wave: WaveState) -> None:
        """Bring a wave from its state to the next one. Raises StepFailed."""
        match wave.state:
            case "waits" | "looks":
                wave.state = "looks"
                await self._look(wave)
                if any(target.state != "holds" for target in wave.targets):
                    wave.state = "hands"
                    return
                self._tell(f"{wave.name}: all of it holds the artefacts already", "held", subject=wave.name)
                # A rollout may have been ended before somebody approved: whoever begins it anew is asked all the same.
                if await self._is_before_changes(wave):
                    self._enter(wave, "soaks", wave.soak)
                else:
                    wave.state = "done"
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
                self._tell(f"{wave.name}: done", "wave-done", subject=wave.name)

    def _enter(self, wave: WaveState, state: str, seconds: float = 0.0) -> None:
        wave.state = state
        wave.until = (workflow.now() + timedelta(seconds=seconds)).isoformat() if seconds else ""

    async def _look(self, wave: WaveState) -> None:
        """Find out for all targets what is to be written, before anything of the wave is."""

        def take(target: WaveTarget, found: TargetOutcome) -> None:
            target.before, target.after, target.ids, target.held = found.before, found.after, found.ids, found.held
            target.state = "waits" if found.changed else "holds"

        await self._look_at([target for target in wave.targets if target.state in {"waits", "failed"}], take)

    async def _is_before_changes(self, wave: WaveState) -> bool:
        """Whether something is to be written in a later wave."""
        waves, changes = self._state.waves, list[bool]()
        for later in waves[waves.index(wave) + 1 :]:  # their names differ
            await self._look_at(later.targets, lambda _, found: changes.append(found.changed))
            if any(changes):
                return True
        return False

    async def _look_at(
        self, targets: Iterable[WaveTarget], take: Callable[[WaveTarget, TargetOutcome], object]
    ) -> None:
        room = asyncio.Semaphore(_LOOKS_AT_ONCE)

        async def one(target: WaveTarget) -> None:
            async with room:
                found = await self._do("look", target, _A_LOOK)
            take(target, found)

        await all_ended([one(target) for target in targets])

    async def _hand_all(self, wave: WaveState) -> bool:
        """Hand to some targets at a time; False where the rest is for a new history. Raises StepFailed."""
        under_way: set[asyncio.Task[None]] = set()
        problem: StepFailed | None = None
        try:
            while True:
                waiting = [each for each in wave.targets if each.state in {"waits", "failed"}]
                free = not problem and not self._state.paused and not self._has_newer()
                longer = workflow.info().is_continue_as_new_suggested()
                if waiting and free and not longer and len(under_way) < wave.at_once:
                    await self._window()
                    if not self._state.paused and not self._has_newer():
                        under_way.add(asyncio.create_task(self._hand(waiting[0])))
                        await asyncio.sleep(0)  # so that it is noted
                    continue
                if not under_way:
                    break
                ended, still = await workflow.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
                under_way = set(still)
                for task in ended:
                    if isinstance(error := task.exception(), StepFailed):
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

    async def _hand(self, target: WaveTarget) -> None:
        target.state, target.problem = "hands", ""
        if target.name not in self._state.noted:
            self._state.noted.append(target.name)
        found = await self._do("hand", target, _A_TARGET)
        target.state, target.ids = "holds", found.ids
        said = f"{target.name}: holds {found.after}"
        self._tell(said, "written", subject=target.name, before=target.before, after=found.after)

    async def _window(self) -> None:
        """Wait until a window is open."""
        while self._state.windows:
            asked = OpensRequest(self._state.windows, workflow.now().isoformat())
            seconds: float = await call("opens", asked, result=float, limit=_AN_ANSWER)
            if not seconds:
                break
            self._state.opens = (workflow.now() + timedelta(seconds=seconds)).isoformat()
            self._show()
            await self._pass_until(self._state.opens)
        self._state.opens = ""
        self._show()

    async def _pass_until(self, until: str) -> None:
        left = (datetime.fromisoformat(until) - workflow.now()).total_seconds() if until else 0.0
        if left > 0:
            await workflow.sleep(left)

    async def _ask(self, wave: WaveState) -> None:
        """Ask whether the wave's nodes still run it, and its gate. Raises StepFailed where one of them says no."""
        request = self._request
        try:
            gate = GateRequest(wave.name, request.file, request.root, self._state.generation, list(request.keys))
            await self._rolling("gate", gate, wave.name, _A_LOOK + timedelta(seconds=wave.gate_timeout))
        except ActivityError as error:
            if is_cancelled_exception(error):
                raise
            no = "the gate says no" if is_said(error) else "nobody asks the gate"
            raise StepFailed(f"{no}: {describe(wave.name, error).message}", error) from error
        self._tell(f"{wave.name}: the gate says yes", "gate-passed", subject=wave.name)

    async def _approval(self, wave: WaveState) -> None:
        """Wait for enough approvals. Raises StepFailed where they do not come in time."""
        if len(wave.approved) >= wave.approvals:
            return
        self._tell(f"{wave.name}: waits for an approval", "waits", subject=wave.name)
        self._enter(wave, "approval", wave.within)
        left = wave.within or None
        try:
            await workflow.wait_condition(lambda: len(wave.approved) >= wave.approvals, timeout=left)
        except TimeoutError:
            raise StepFailed("it was not approved in time") from None

    async def _return_all(self) -> Way:
        """Return what was written, the last first; what cannot be returned does not keep the others from it."""
        now = self._state
        if now.state != "back":
            now.state, now.paused, now.opens = "back", "", ""
            for target in now.targets:
                if target.state == "not-returned":  # of a rollback before
                    target.state = "failed"
            self._tell(f"goes back: {self._back}", "rollback", by=self._back)
        failed = {target.name for target in now.targets if target.state == "not-returned"}
        for name in [each for each in reversed(now.noted) if each not in failed]:
            if workflow.info().is_continue_as_new_suggested():
                return "longer"
            target = next(each for each in now.targets if each.name == name)
            target.state, target.problem = "returns", ""
            try:
                found = await self._given_back(target)
            except StepFailed:
                target.state = "not-returned"
                continue
            now.noted.remove(name)
            target.state = "returned" if found.after else "left"
            said = f"returned to {found.after}" if found.after else "did not hold it, and is left"
            self._tell(f"{name}: {said}", target.state, subject=name, before=target.after, after=found.after)
        now.state = "rolled-back"
        self._tell("rolled back" + (f", but for {', '.join(now.noted)}" if now.noted else ""), "rolled-back")
        return "done"

    async def _given_back(self, target: WaveTarget) -> TargetOutcome:
        """Return a target from what was handed to it, or else from what that has superseded. Raises StepFailed."""
        found = TargetOutcome(changed=False)
        for ids in [*([target.ids] if target.ids or not target.over else []), *reversed(target.over)]:
            found = await self._do("give_back", replace(target, ids=ids), _A_TARGET, target)
            if found.after:
                break
        return found

    async def _do(
        self, what: str, target: WaveTarget, limit: timedelta, known: WaveTarget | None = None
    ) -> TargetOutcome:
        """Let a worker work on a target. Raises StepFailed with what parbake said, which ``known`` remembers."""
        request, known = self._request, known or target
        try:
            one = TargetTask(
                target.file, target.target, target.keys, target.ids, request.root, request.file, request.store,
                request.store_id, target.over, target.held, request.roles,
            )  # fmt: skip
            found: TargetOutcome = await self._rolling(what, one, target.name, limit, TargetOutcome)
        except ActivityError as error:
            if is_cancelled_exception(error):
                raise
            said = describe(target.name, error)
            known.state, known.problem = "failed", f"{said.error}: {said.message}"
            self._tell(
                f"{target.name}: {known.problem}", "failed",
                subject=target.name, before=target.before, after=target.after, note=known.problem,
            )  # fmt: skip
            raise StepFailed(f"{target.name}: {said.message}", error) from error
        return found

    async def _rolling(
        self, what: str, asked: object, summary: str, limit: timedelta, result: type | None = None
    ) -> Any:
        """Let a worker of the queue roll do something, and end it where it is cancelled."""
        beat, attempts = self._request.heartbeat, self._request.attempts
        return await call(
            what, asked, result=result, queue=ROLL, limit=limit, heartbeat=beat, attempts=attempts, waits=True,
            summary=summary,
        )  # fmt: skip

    def _named(self, name: str) -> WaveState:
        named = {wave.name: wave for wave in self._state.waves}
        if name not in named:
            raise refused(f"the rollout has no wave {name}", f"waves are: {', '.join(named) or 'none yet'}")
        return named[name]

    def _tell(self, text: str, what: str = "", **facts: str) -> None:
        """Put a line into the story, and into the audit trail what has happened."""
        now, story = workflow.now(), self._state.story
        story.append(Entry(now.isoformat(timespec="seconds"), text))
        del story[:-MOST_ENTRIES]
        if what:
            self._audit.note(what, text, self._state.generation, **facts)
        self._show()

    def _show(self) -> None:
        of = self._state.state
        self._shown.state(of if of in {"done", "rolled-back"} else phase(self._state))

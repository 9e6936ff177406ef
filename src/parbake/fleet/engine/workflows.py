"""The workflows: a run of a fleet, and the bake of one key. No I/O, no clock, no chance of their own.

They are replayed from their history after every restart of a worker: a change of what they ask for, or in which order,
must be guarded by ``workflow.patched``, and tests replay the recorded histories of released versions.

Each workflow executes this module anew, in a sandbox. Import names from modules of ours, not modules from packages: the
sandbox passes only what stands after ``from``, and would execute such a module for each workflow, too.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter, deque
from collections.abc import Coroutine, Iterable
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any, Literal

from temporalio import workflow
from temporalio.common import Priority
from temporalio.exceptions import (
    ActivityError,
    ApplicationError,
    ChildWorkflowError,
    FailureError,
    WorkflowAlreadyStartedError,
    is_cancelled_exception,
)
from temporalio.workflow import ChildWorkflowCancellationType, ParentClosePolicy

with workflow.unsafe.imports_passed_through():
    from parbake.core.errors import InputError
    from parbake.fleet.engine.calls import call, not_answered
    from parbake.fleet.engine.failures import describe
    from parbake.fleet.engine.messages import Heard, Told, echoed, is_of, this_run
    from parbake.fleet.engine.rollout_tasks import DIGITS_OF_KEYS, RolloutRequest, rollout_id
    from parbake.fleet.engine.search import Shown
    from parbake.fleet.engine.tasks import (
        BAKE,
        CONTROL,
        MOST_CELLS_OF_A_PLAN,
        MOST_TOLD,
        PLACE,
        WRONG_STORE,
        Baked,
        BakeRequest,
        BeginRequest,
        Destination,
        Failure,
        Made,
        Order,
        Planned,
        PlanRequest,
        Progress,
        RunRequest,
        bake_id,
        copy_roles,
    )
    from parbake.fleet.words import rollout_begun, rollout_known, rollout_postponed, rollout_refused, rollout_superseded

_A_BAKE = timedelta(hours=6)
_A_PLAN = timedelta(hours=1)
_A_MOMENT = timedelta(minutes=2)  # whoever dies meanwhile sends no heartbeat, and another one tries after it
_A_COPY = timedelta(hours=12)  # AWS copies a large snapshot for hours
_REPORT_OF_WAITING = 60.0  # seconds
_ENOUGH_TO_JUDGE = 5
"""Failures below which a run goes on, however few cells it has."""


Outcome = Literal["there", "baked", "joined"]


@workflow.defn
class Bake:
    """Makes sure that one key exists in a store. Its id names both, so that there is one of it at a time."""

    @workflow.run
    async def run(self, request: BakeRequest) -> Baked:
        """Return what the store has now; fails as the last try has failed."""
        beat, attempts = request.heartbeat, request.attempts
        shown = Shown(request.searchable, fleet=request.fleet, cell=request.order.of)
        shown.state("baking")
        try:
            baked: Baked = await call(
                "bake", request.order, result=Baked, queue=BAKE, limit=_A_BAKE, heartbeat=beat, attempts=attempts,
                waits=True, summary=request.order.of,
            )  # fmt: skip
        except ActivityError as error:
            if not is_cancelled_exception(error) and tried_enough(error):
                await call("quarantine", request, describe(request.order.of, error), limit=_A_PLAN, heartbeat=beat)
                shown.state("quarantined")
            else:
                shown.state("failed")
            raise
        shown.state("baked" if baked.changed else "there")
        return replace(baked, run=this_run())


class Postponed(Exception):
    """Not begun, since the run begins nothing new."""


class Placing:
    """Brings keys to the places of a run, some at a time in each region: a slow one keeps no other waiting.

    ``closed`` lets it begin nothing new, for good; ``paused`` for a while.
    """

    def __init__(self, request: RunRequest) -> None:
        self._request = request
        self._places = {place.region: place for place in request.places}
        self._room = {region: asyncio.Semaphore(request.copies) for region in self._places}
        self.under_way: dict[str, int] = dict.fromkeys(self._places, 0)
        self.closed = self.paused = False

    async def bring(self, planned: Planned, key: str) -> None:
        """Bring a key to all regions that it lacks, each on its own.

        Raises Postponed where one was not begun, or else the ActivityError of the first that failed.
        """
        parts = [self._to(self._places[region], planned, key) for region in planned.places if region in self._places]
        ended = await asyncio.gather(*parts, return_exceptions=True)
        bad = [each for each in ended if isinstance(each, BaseException)]
        bad.sort(key=lambda each: isinstance(each, Postponed))
        cancelled = next((each for each in bad if is_cancelled_exception(each)), None)
        if bad:
            raise cancelled or bad[0]

    async def _to(self, place: Destination, planned: Planned, key: str) -> None:
        request = self._request
        async with self._room[place.region]:
            await workflow.wait_condition(partial(self._may_begin))
            if self.closed:
                raise Postponed
            self.under_way[place.region] += 1
            more = ["--role", place.role] if place.role else []
            more += [part for each in place.share_with for part in ("--share-with", each)]
            try:
                await call(
                    "place", Order.of_run(request, planned, key, place.region, *more), result=bool, queue=PLACE,
                    limit=_A_COPY, heartbeat=request.heartbeat, attempts=request.attempts, waits=True,
                    priority=Priority(fairness_key=place.region),
                    summary=f"{planned.cell} to {place.region}",
                )  # fmt: skip
            finally:
                self.under_way[place.region] -= 1

    def _may_begin(self) -> bool:
        return self.closed or not self.paused


@workflow.defn
class Fleet:
    """One pass over all cells of a fleet: plans them, and bakes what the store lacks, some at a time."""

    @workflow.init
    def __init__(self, request: RunRequest) -> None:
        self._request = request
        self._total = request.total or len(request.cells)
        self._pending = deque(request.cells)
        self._ready: deque[Planned] = deque()
        self._running: dict[str, str] = {}
        self._counts = request.counts
        self._failed = list(request.failed)
        self._paused = ""
        self._steps = 0
        self._went_on = False
        self._keys = dict(request.keys)
        self._rollout = ""
        self._draining = False
        self._placing = Placing(request)
        self._bringing = 0
        self._baking: Counter[str] = Counter()
        self._left: set[str] = set()
        self._postponed: list[str] = []
        self._heard = Heard(request.heard)
        self._shown = Shown(request.searchable, fleet=request.fleet)

    @workflow.query
    def progress(self, word: str) -> Progress:
        """Say how far it is."""
        return replace(self._now(), asked=echoed(word))

    def _now(self) -> Progress:
        told = dict(list(self._running.items())[:MOST_TOLD])
        places = {region: count for region, count in self._placing.under_way.items() if count}
        return Progress(
            self._counts, self._total, told, self._failed, self._paused, self._rollout, self._draining, places
        )

    @workflow.query
    def keys(self, word: str) -> Made:
        """Say what is good so far."""
        return Made(self._keys, echoed(word))

    @workflow.signal
    def pause(self, told: Told) -> None:
        """Begin nothing new."""
        if self._heard.takes(told, "pause"):
            self._paused = told.text
            self._placing.paused = True
            self._show()

    @workflow.signal
    def resume(self, told: Told) -> None:
        """Go on."""
        if not self._heard.takes(told, "resume"):
            return
        self._paused, self._went_on = "", True
        self._placing.paused = False
        self._steps += 1
        self._show()

    @workflow.signal
    def drain(self, told: Told) -> None:
        """Begin nothing new, and end when what is under way has ended."""
        if not self._heard.takes(told, "drain"):
            return
        self._draining = self._placing.closed = True
        self._steps += 1
        self._show()

    def _show(self) -> None:
        self._shown.state("draining" if self._draining else "paused" if self._paused else "running")

    @workflow.run
    async def run(self, request: RunRequest) -> Progress:
        """Return how it ended; it succeeds also where some cells have failed."""
        await may_begin(request)
        self._show()
        under_way: set[asyncio.Task[None]] = set()
        try:
            while under_way or (not self._draining and (self._pending or self._ready or self._postponed)):
                seen = self._steps
                await self._begin(under_way, request.window)
                await workflow.wait_condition(partial(self._moved_since, seen))
                ended = {task for task in under_way if task.done()}
                under_way -= ended
                for task in ended:
                    task.result()
        except asyncio.CancelledError:
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)
            raise
        if request.rollout:
            await self._hand_out()
        self._shown.state("incomplete" if self._counts.failed + self._counts.quarantined else "done")
        return replace(self._now(), run=this_run())

    async def _hand_out(self) -> None:
        """Start the rollout of what this run has made sure of, once for each generation."""
        request, counts = self._request, self._counts
        if bad := counts.failed + counts.quarantined:
            self._rollout = rollout_refused(bad, self._total)
            return
        at = workflow.now().isoformat(timespec="microseconds")
        wanted = replace(RolloutRequest.of_run(request, self._keys, by="a run"), at=at)
        last: str = await call("last_rollout", request.fleet, request.store, result=str, limit=_A_MOMENT)
        if last == wanted.generation:
            self._rollout = rollout_known(wanted.generation)
            return
        try:
            await workflow.start_child_workflow(
                "Rollout",
                wanted,
                id=rollout_id(request.fleet),
                task_queue=CONTROL,
                parent_close_policy=ParentClosePolicy.ABANDON,
                memo={"generation": wanted.generation},
                static_summary=request.fleet,
            )
        except WorkflowAlreadyStartedError:
            if request.supersede and await self._supersede(wanted):
                self._rollout = rollout_superseded(wanted.generation, last)
                return
            self._rollout = rollout_postponed(wanted.generation, last)
        else:
            self._rollout = rollout_begun(wanted.generation)

    async def _supersede(self, wanted: RolloutRequest) -> bool:
        """Let a rollout take the place of the one that is under way; False where that has ended meanwhile."""
        try:
            await workflow.get_external_workflow_handle(rollout_id(wanted.fleet)).signal("supersede", wanted)
        except FailureError as error:
            if is_cancelled_exception(error):
                raise
            return False
        return True

    async def _begin(self, under_way: set[asyncio.Task[None]], window: int) -> None:
        """Begin as many cells as may be under way; a history that is long enough is ended first, when all are done."""
        long_enough = workflow.info().is_continue_as_new_suggested()
        if long_enough:
            self._placing.closed = True
        if long_enough and not under_way and (self._pending or self._ready or self._postponed):
            workflow.continue_as_new(self._rest())
        if long_enough or self._begins_nothing():
            return
        if not self._next() and self._pending and len(under_way) - self._bringing < window:
            await self._plan()
            if self._begins_nothing():
                return
        while len(under_way) - self._bringing < window and (planned := self._next()):
            self._ready.remove(planned)
            self._baking[planned.builder] += 1
            under_way.add(asyncio.create_task(self._cell(planned)))

    def _begins_nothing(self) -> bool:
        return self._draining or bool(self._paused)

    def _next(self) -> Planned | None:
        """Return the first cell whose builder has room for one more."""
        most = self._request.bakes
        return next(
            (each for each in self._ready if self._baking[each.builder] < most.get(each.builder, sys.maxsize)), None
        )

    def _moved_since(self, seen: int) -> bool:
        return self._steps != seen

    def _rest(self) -> RunRequest:
        left = [*self._postponed, *(each.cell for each in self._ready), *self._pending]
        return replace(
            self._request, cells=left, total=self._total, counts=self._counts, failed=self._failed, keys=self._keys,
            heard=self._heard.once,
        )  # fmt: skip

    async def _plan(self) -> None:
        request = self._request
        batch = [self._pending.popleft() for _ in range(min(MOST_CELLS_OF_A_PLAN, len(self._pending)))]
        try:
            asked = PlanRequest(request.file, request.root, request.store, batch, request.store_id)
            found = await call(
                "plan", asked, result=list[Planned], limit=_A_PLAN, heartbeat=request.heartbeat, waits=True
            )
        except ActivityError as error:
            if is_cancelled_exception(error):
                raise
            for cell in batch:
                self._note(describe(cell, error))
            return
        self._ready.extend(found)
        self._steps += 1

    async def _cell(self, planned: Planned) -> None:
        """Bring one cell to its end, whatever that is; only a cancellation is passed on."""
        made: Outcome | None = None
        try:
            key = planned.key
            match planned.state:
                case "there":
                    made = "there"
                case "unverified" if not self._request.verify:
                    made = "there"
                case "quarantined":
                    self._counts.quarantined += 1
                case "wrong":
                    self._note(Failure(planned.cell, "Wrong", planned.problem))
                case _:
                    key = planned.key or await self._built(planned)
                    made = await self._baked(planned, key)
            self._leave(planned)
            if made:
                await self._bring(planned, key)
                setattr(self._counts, made, getattr(self._counts, made) + 1)
                self._keys[planned.cell] = key[:DIGITS_OF_KEYS]
        except Postponed:
            self._postponed.append(planned.cell)
        except (ActivityError, ChildWorkflowError) as error:
            if is_cancelled_exception(error):
                raise
            self._note(describe(planned.cell, error))
        finally:
            self._leave(planned)
            self._steps += 1

    def _leave(self, planned: Planned) -> None:
        """Let others have the room of a cell that is no longer baked."""
        if planned.cell not in self._left:
            self._left.add(planned.cell)
            self._baking[planned.builder] -= 1
            self._running.pop(planned.cell, None)

    async def _bring(self, planned: Planned, key: str) -> None:
        """Bring a cell to its places, besides those that are baked."""
        if not planned.places:
            return
        self._bringing += 1
        self._steps += 1
        try:
            await self._placing.bring(planned, key)
        finally:
            self._bringing -= 1

    async def _built(self, planned: Planned) -> str:
        """Build the images of a cell, and return the key that it has then."""
        self._running[planned.cell] = ""
        run = self._request
        order = Order.of_run(run, planned, "--platform", planned.platform)
        key: str = await call(
            "build", order, result=str, queue=BAKE, limit=_A_BAKE, heartbeat=run.heartbeat, attempts=run.attempts,
            waits=True, summary=planned.cell,
        )  # fmt: skip
        return key

    async def _baked(self, planned: Planned, key: str) -> Outcome:
        """Start the bake of a key; where it is under way for another run, wait for that one."""
        request = self._bake_request(planned, key)
        name = self._running[planned.cell] = bake_id(key, request.order.store)
        while True:
            try:
                child = await workflow.start_child_workflow(
                    Bake.run,
                    request,
                    id=name,
                    task_queue=CONTROL,
                    cancellation_type=ChildWorkflowCancellationType.WAIT_CANCELLATION_COMPLETED,
                    parent_close_policy=ParentClosePolicy.REQUEST_CANCEL,
                    static_summary=planned.cell,
                )
            except WorkflowAlreadyStartedError:
                joined = await self._joined(name)
                if joined:
                    return "joined"
                continue  # it was cancelled by whoever began it
            baked = await child
            if not is_of(child.first_execution_run_id, baked):
                raise not_answered("bake", name)
            return "baked" if baked.changed else "there"

    async def _joined(self, name: str) -> bool:
        """Wait for a bake of another run; False where it was cancelled. Fails as it fails."""
        joined: bool = await call("join", name, result=bool, limit=_A_BAKE, heartbeat=_REPORT_OF_WAITING)
        return joined

    def _bake_request(self, planned: Planned, key: str) -> BakeRequest:
        run = self._request
        proven = "--verify" if run.verify else "--no-verify"
        roles = [part for each in copy_roles(run.places) for part in ("--copy-role", each)]
        order = Order.of_run(run, planned, "--platform", planned.platform, "--expect-key", key, proven, *roles)
        return BakeRequest(key, order, run.attempts, run.heartbeat, run.fleet, run.searchable)

    def _note(self, failure: Failure) -> None:
        self._counts.failed += 1
        self._steps += 1
        if len(self._failed) < MOST_TOLD:
            self._failed.append(failure)
        too_many = self._counts.failed * 100 > self._request.failures * self._total
        if too_many and self._counts.failed >= _ENOUGH_TO_JUDGE and not self._went_on and not self._paused:
            self._paused = f"{self._counts.failed} of {self._total} cells failed"
            self._placing.paused = True
            self._show()


async def may_begin(request: RunRequest | RolloutRequest) -> None:
    """Have it noted that this begins. Raises ActivityError where one that was asked for later has begun."""
    before = workflow.info().continued_run_id or ""
    asked = BeginRequest(request.store, request.store_id, request.at, before=before)
    if isinstance(request, RolloutRequest):
        asked = replace(asked, made=request.made, again=request.again or bool(request.back))
    await call("begin", asked, limit=_A_MOMENT)


def tried_enough(error: ActivityError) -> bool:
    """Whether all tries were used up: another run would end the same, as long as the key is the same."""
    cause = error.cause
    return not (isinstance(cause, ApplicationError) and (cause.non_retryable or cause.type == WRONG_STORE))


def refused(message: str, hint: str = "") -> ApplicationError:
    """Return the engine's error for a question that a workflow answers with no: parbake's InputError."""
    return ApplicationError(message, hint, type=InputError.json_name, non_retryable=True)


async def all_ended(parts: Iterable[Coroutine[Any, Any, object]]) -> None:
    """Bring all parts to their end, then raise what the first of them has raised."""
    ended = await asyncio.gather(*parts, return_exceptions=True)
    for each in ended:
        if isinstance(each, BaseException):
            raise each

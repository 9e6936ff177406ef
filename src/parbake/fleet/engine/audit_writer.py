"""The part of a rollout that writes down what happens, in the store, beside whatever else the workflow does."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import UTC, datetime, timedelta

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from parbake.fleet.audit import Event
    from parbake.fleet.engine.calls import call
    from parbake.fleet.engine.rollout_tasks import AuditRequest, RolloutRequest

_A_WRITE = timedelta(minutes=10)


class AuditWriter:
    """Hands events to a worker, some at a time, in order; tries until the store has them."""

    def __init__(self, request: RolloutRequest) -> None:
        self._request, self._untold = request, list[Event]()
        self._writing: asyncio.Task[None] | None = None
        self._last = datetime.min.replace(tzinfo=UTC)

    def note(self, what: str, text: str, generation: str, **facts: str) -> None:
        """Have something written down, as of now; ``facts`` are the other fields of an event.

        No two have the same time, by which they are read in order: a workflow's clock stands while it is at work.
        """
        self._last = max(workflow.now(), self._last + timedelta(microseconds=1))
        self._untold.append(Event(self._last.isoformat(), what, text, generation, **facts))
        if self._writing is None:
            self._writing = asyncio.create_task(self._write())

    async def done(self, limit: timedelta | None = None) -> None:
        """Wait until all is written, or for so long."""
        with suppress(TimeoutError):
            await workflow.wait_condition(lambda: not self._untold, timeout=limit)

    async def _write(self) -> None:
        request = self._request
        while self._untold:
            some = list(self._untold)
            asked = AuditRequest(request.fleet, request.store, some, request.store_id)
            await call("audit", asked, limit=_A_WRITE, heartbeat=request.heartbeat, attempts=0)
            del self._untold[: len(some)]
        self._writing = None

"""The part of a fleet's run that brings what is baked to its places, some at a time in each region.

Of a workflow: no I/O, no clock, no chance of its own. A region that is slow keeps nobody waiting but its own copies.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from functools import partial

from temporalio import workflow
from temporalio.common import Priority
from temporalio.exceptions import is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from parbake.fleet.engine.calls import call
    from parbake.fleet.engine.tasks import PLACE, Destination, PlaceRequest, Planned, RunRequest

_A_COPY = timedelta(hours=12)  # AWS copies a large snapshot for hours


class Postponed(Exception):
    """Not begun, since the run begins nothing new."""


class Placing:
    """Brings keys to the places of a run. ``closed`` lets it begin nothing new, for good; ``paused`` for a while."""

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
            try:
                await call(
                    "place", PlaceRequest.of_run(request, planned, key, place=place), result=bool, queue=PLACE,
                    limit=_A_COPY, heartbeat=request.heartbeat, attempts=request.attempts, waits=True,
                    priority=Priority(fairness_key=place.region),
                    summary=f"{planned.cell} to {place.region}",
                )  # fmt: skip
            finally:
                self.under_way[place.region] -= 1

    def _may_begin(self) -> bool:
        return self.closed or not self.paused

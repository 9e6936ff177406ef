"""The activities of schedules: read the fleet's file as it is now, and remove what is old."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from temporalio import activity
from temporalio.exceptions import ApplicationError

from parbake.core.errors import ParbakeError
from parbake.fleet.engine.activities import Activities
from parbake.fleet.engine.search import registered
from parbake.fleet.engine.tasks import Place, PruneRequest, Root, RunRequest, this_moment
from parbake.fleet.source import checked_out, pinned

if TYPE_CHECKING:
    from parbake.fleet.file import Fleet


class ScheduleActivities(Activities):
    """What a worker of the queue ``control`` can do for schedules."""

    @property
    def of_schedules(self) -> list[Any]:
        """What needs no privilege."""
        return [self.prepare, self.to_prune, self.prune]

    @activity.defn
    async def prepare(self, place: Place) -> RunRequest:
        """Return the run that the fleet's file asks for now."""
        from parbake.fleet.requests import run_request  # with all of Bakefiles: workers start without it

        root, file, fleet = await asyncio.to_thread(_read, place)
        request = run_request(fleet, place.file, root, file.parent, heartbeat=place.heartbeat)
        return replace(request, at=this_moment(), searchable=await registered(self._client))

    @activity.defn
    async def to_prune(self, place: Place) -> list[PruneRequest]:
        """Return the Bakefiles of the fleet."""
        return await asyncio.to_thread(_bakefiles, place)

    @activity.defn
    async def prune(self, request: PruneRequest) -> None:
        """Remove the old artefacts of a Bakefile."""
        published = ["--aws"] if request.publishes else []
        published += [part for each in request.roles for part in ("--copy-role", each)]
        command = ["prune", "-f", request.file, "--store", request.store, *published]
        await self._succeed(command, request.root, request.fleet_file)


def _read(place: Place) -> tuple[Root, Path, Fleet]:
    from parbake.fleet.file import Source, load

    try:
        source = Source(git=place.git, ref=place.ref) if place.git else None
        root = pinned(source, Path(place.folder))
        file = checked_out(root) / place.file
        return root, file, load(file)
    except ParbakeError as error:
        final = error.exit_code == 2
        raise ApplicationError(error.message, error.hint, type=error.json_name, non_retryable=final) from error


def _bakefiles(place: Place) -> list[PruneRequest]:
    from parbake.bakefile import load as load_bakefile
    from parbake.fleet.places import copy_roles

    root, file, fleet = _read(place)
    try:
        return [
            PruneRequest(
                str(entry.file.relative_to(file.parent)),
                root,
                place.file,
                fleet.store,
                load_bakefile(entry.file).traits.in_ec2,
                list(copy_roles(fleet.places)),
            )
            for entry in fleet.bakefiles
        ]
    except ParbakeError as error:
        raise ApplicationError(error.message, error.hint, type=error.json_name, non_retryable=True) from error

"""The commands that show more of a fleet than a table: the log of a bake, and a page of HTML."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from parbake.cli import choices
from parbake.cli.app import Result, command, written
from parbake.cli.fleet.group import DEFAULT_FILE, FleetPath, fleets
from parbake.cli.fleet.runs import State, asked
from parbake.core.errors import EngineUnreachable, EnvironmentProblem, InputError, ParbakeError
from parbake.core.events import Events

if TYPE_CHECKING:
    from parbake.fleet.engine.connect import Client
    from parbake.fleet.engine.logs import Log
    from parbake.fleet.engine.rollouts import RolloutStatus
    from parbake.fleet.engine.runs import Status
    from parbake.fleet.file import Fleet


@command(fleets)
def logs(
    events: Events,
    cell: Annotated[
        str, typer.Argument(help="A cell, such as search@amd64.", metavar="[CELL]", autocompletion=choices.cells)
    ] = "",
    rollout: Annotated[bool, typer.Option("--rollout", help="The log of the last rollout.")] = False,
    state: State = None,
    file: FleetPath = DEFAULT_FILE,
) -> Result:
    """Show the end of the log of a cell's last bake, or the log of the last rollout.

    This works while it is under way, too: workers send the log with their heartbeats. The engine keeps it for 30 days.
    The store keeps the story of a rollout for 400 days; this reads it there if the engine no longer has it.
    """
    from parbake.cli.text import fleet_rollouts as text
    from parbake.fleet import preview
    from parbake.fleet.cells import cells, chosen
    from parbake.fleet.file import load

    fleet, folder = load(file), file.absolute().parent
    if bool(cell) == rollout:
        raise InputError("logs belong to a cell or to the rollout", hint="name a cell, or write --rollout")
    if rollout:
        return _story(fleet, state, file)
    [look, *more] = preview.look(fleet, folder, chosen(cells(fleet, folder), (cell,)), events)
    if more:
        raise InputError(f"{cell} is several cells", hint=f"name one, such as {look.cell.name}")
    if not look.key:
        raise InputError(
            f"{look.cell.name} has no key yet: {look.problem or 'its images have to be built first'}",
            hint="`parbake fleet status` shows what is under way",
        )

    async def of_bake(client: Client) -> Log:
        from parbake.fleet.engine.logs import log

        return await log(client, look.key, fleet.store)

    said = asked(state, file, of_bake)
    return Result(text.log_json(look.cell.name, said), lambda: text.log_text(look.cell.name, said))


def _story(fleet: Fleet, state: Path | None, file: Path) -> Result:
    """Tell what has happened in the last rollout: as the engine has it, or else the store."""
    from parbake.cli.text import fleet_rollouts as text
    from parbake.fleet import audit
    from parbake.records.store import open_store

    async def ask(client: Client) -> RolloutStatus | None:
        from parbake.fleet.engine import rollouts

        return await rollouts.status(client, fleet.name, fleet.store)

    found, silence = None, ParbakeError("")
    try:
        found = asked(state, file, ask)
    except (EngineUnreachable, EnvironmentProblem, InputError) as error:
        silence = error
    if found and found.progress:
        return Result(text.rollout_json(found), lambda: text.story_text(found))
    if trail := audit.last_rollout(open_store(fleet.store), fleet.name):
        return Result(text.trail_json(fleet.name, trail), lambda: text.trail_text(trail))
    if silence.message:
        raise silence
    if found:
        from parbake.fleet.engine.handles import no_worker

        raise no_worker()
    raise InputError(f"there was no rollout of {fleet.name} yet", hint="`parbake fleet rollout` starts one")


@command(fleets)
def report(
    events: Events,
    to: Annotated[Path, typer.Option("--output", help="Where to write the page.", metavar="FILE")] = Path("fleet.html"),
    state: State = None,
    file: FleetPath = DEFAULT_FILE,
) -> Result:
    """Write a one-page HTML report of a fleet, which needs no network.

    It has the cells with their places, ages and times, the failures, and the waves with their approvals. If the engine
    does not answer, the page says so, and has the cells, and what the store knows of the last rollout.
    """
    from parbake.cli.report.fleet import FleetNow, fleet_page
    from parbake.core import atomic
    from parbake.core.workspace import room_for
    from parbake.fleet import audit, preview
    from parbake.fleet.cells import cells
    from parbake.fleet.file import load
    from parbake.records.store import open_store

    fleet, folder = load(file), file.absolute().parent
    found = preview.look(fleet, folder, cells(fleet, folder), events)

    async def ask(client: Client) -> tuple[Status | None, RolloutStatus | None]:
        from parbake.fleet.engine import rollouts, runs

        try:
            run = await runs.status(client, fleet.name, fleet.store)
        except InputError:
            run = None  # there was none yet
        return run, await rollouts.status(client, fleet.name, fleet.store)

    run, rollout, silence = None, None, ""
    try:
        run, rollout = asked(state, file, ask)
    except (EngineUnreachable, EnvironmentProblem, InputError) as error:
        silence = f"The engine could not be asked: {error.message}"
    known = rollout is not None and rollout.progress is not None
    trail = [] if known else audit.last_rollout(open_store(fleet.store), fleet.name)
    page = fleet_page(FleetNow(fleet.name, datetime.now(UTC), found, run, rollout, silence, trail))
    with room_for(to):
        atomic.replace(to, page, mode=0o644)
    return written([to], *([silence] if silence else []))

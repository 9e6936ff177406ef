"""The commands that need the engine of fleets: it and its workers, and the runs that they work on."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from parbake import __version__
from parbake.cli.app import Result, command
from parbake.cli.fleet import DEFAULT_FILE, Cells, FleetPath, fleets
from parbake.core.errors import EnvironmentProblem, FleetIncomplete
from parbake.core.events import Events

if TYPE_CHECKING:
    from parbake.fleet.engine.connect import Client
    from parbake.fleet.engine.tasks import Progress

State = Annotated[
    Path | None,
    typer.Option(
        help="The folder of `fleet up`: its database, key and logs. Default: .fleet, beside the fleet's file.",
        metavar="FOLDER",
    ),
]
Slots = Annotated[int, typer.Option(min=1, help="How many bakes a worker runs at once.", metavar="COUNT")]
Grace = Annotated[
    float, typer.Option(min=0, help="How long bakes may go on when a worker is told to stop.", metavar="SECONDS")
]


def state_folder(state: Path | None, file: Path) -> Path:
    """Return the folder of `fleet up`."""
    return state.absolute() if state else file.absolute().parent / ".fleet"


def need_engine() -> None:
    """Raise EnvironmentProblem unless the engine's library is installed."""
    if importlib.util.find_spec("temporalio") is None:
        raise EnvironmentProblem("the engine of fleets is not installed", hint="pip install 'parbake[fleet]'")


def asked[Answer](state: Path | None, file: Path, ask: Callable[[Client], Awaitable[Answer]]) -> Answer:
    """Ask the engine something."""
    need_engine()
    from parbake.fleet.engine.connect import Engine, connect

    async def go() -> Answer:
        return await ask(await connect(Engine(state_folder(state, file))))

    return asyncio.run(go())


@command(fleets)
def up(
    events: Events,
    workers: Annotated[int, typer.Option(min=0, help="How many workers run here.", metavar="COUNT")] = 2,
    slots: Slots = 1,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Where the engine listens.", metavar="PORT")] = 7233,
    ui_port: Annotated[
        int, typer.Option("--ui-port", min=1, max=65535, help="Where its web interface listens.", metavar="PORT")
    ] = 8233,
    grace: Grace = 5.0,
    state: State = None,
    file: FleetPath = DEFAULT_FILE,
) -> None:
    """Run an engine and workers on this machine, until Ctrl-C.

    It listens on the loopback alone. The next `fleet up` goes on where this one ended; without its database the next
    run finds in the store what is done already. Bakes need root.
    """
    need_engine()
    from parbake.fleet.engine.local import Settings
    from parbake.fleet.engine.local import up as run_here

    def ready(here: dict[str, object]) -> None:
        events.note(f"the engine listens on {here['address']}; look at it on {here['ui']}; Ctrl-C ends it")

    run_here(state_folder(state, file), Settings(workers, slots, port, ui_port, grace), events, ready)


@command(fleets)
def worker(
    queues: Annotated[
        str, typer.Option(help="What it takes tasks from: control (no root needed), bake.", metavar="NAMES")
    ] = "control,bake",
    slots: Slots = 1,
    grace: Grace = 5.0,
    pinned: Annotated[
        bool,
        typer.Option("--pinned", help="Let what begins under this version of parbake end under it: keep its workers."),
    ] = False,
    state: State = None,
    file: FleetPath = DEFAULT_FILE,
) -> None:
    """Work for the engine until SIGTERM: plan, build and bake.

    The engine is that of TEMPORAL_ADDRESS, with its namespace and certificates (TEMPORAL_NAMESPACE, TEMPORAL_TLS_…), or
    the one that `fleet up` runs here. PARBAKE_FLEET_KEY names the file with the fleet's key, which all machines share.
    """
    need_engine()
    from parbake.fleet.engine.connect import Engine
    from parbake.fleet.engine.worker import serve

    named = [each.strip() for each in queues.split(",") if each.strip()]
    version = __version__ if pinned else ""
    asyncio.run(serve(Engine(state_folder(state, file)), queues=named, slots=slots, grace=grace, pinned=version))


@command(fleets)
def run(
    events: Events,
    cell: Cells = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait for its end; the exit code is 3 if some cells failed.")
    ] = False,
    heartbeat: Annotated[
        float,
        typer.Option(min=1, help="A worker that is silent for so long counts as dead.", metavar="SECONDS"),
    ] = 60.0,
    state: State = None,
    file: FleetPath = DEFAULT_FILE,
) -> Result:
    """Start a run: every cell is planned, and what the store lacks is baked by the workers.

    Where a run of the fleet is under way, it is that one.
    """
    need_engine()
    from parbake.cli.text import fleet as text
    from parbake.fleet.engine import runs
    from parbake.fleet.file import load
    from parbake.fleet.requests import run_request
    from parbake.fleet.source import pinned

    fleet, folder = load(file), file.absolute().parent
    root = pinned(fleet.source, folder)
    request = run_request(fleet, file.name, root, folder, named=cell or (), heartbeat=heartbeat)
    if not wait:
        started = asked(state, file, lambda client: runs.start(client, request))
        return Result({"run": started}, lambda: f"{started} is under way: `parbake fleet status` shows how far it is")

    async def to_the_end(client: Client) -> Progress:
        await runs.start(client, request)
        with events.task("cells", len(request.cells), unit="items") as task:

            def told(status: runs.Status) -> None:
                if status.progress:
                    task.advance(status.progress.counts.done - task.done)

            return await runs.follow(client, fleet.name, told)

    ended = asked(state, file, to_the_end)
    failed = ended.counts.failed + ended.counts.quarantined

    def judge() -> None:
        if failed:
            raise FleetIncomplete(
                f"{failed} of {ended.total} cells have failed",
                hint="each one says why; `parbake fleet run` tries again",
            )

    return Result(text.progress_json(ended), lambda: text.progress_text(ended), then=judge)


@command(fleets)
def status(state: State = None, file: FleetPath = DEFAULT_FILE) -> Result:
    """Show how far the last run is: its cells, what each bake is doing, what failed, and who works."""
    from parbake.cli.text import fleet as text
    from parbake.fleet.file import load

    fleet = load(file)

    async def ask(client: Client) -> Any:
        from parbake.fleet.engine import runs

        return await runs.status(client, fleet.name)

    found = asked(state, file, ask)
    return Result(text.status_json(found), lambda: text.status_text(found))


def _tell(what: str, done: str, ask: Callable[[Any, Client, str], Awaitable[None]]) -> Callable[..., Result]:
    """Return a command that tells a run something."""

    def tell(state: State = None, file: FleetPath = DEFAULT_FILE) -> Result:
        from parbake.fleet.file import load

        fleet = load(file)

        async def go(client: Client) -> None:
            from parbake.fleet.engine import runs

            await ask(runs, client, fleet.name)

        asked(state, file, go)
        return Result({"run": f"fleet/{fleet.name}", "told": what}, lambda: f"fleet/{fleet.name}: {done}")

    return tell


command(
    fleets,
    name="pause",
    help="Let the run under way begin nothing new.",
)(_tell("pause", "begins nothing new", lambda runs, client, name: runs.pause(client, name, "by hand")))
command(
    fleets,
    name="resume",
    help="Let a paused run go on, however many of its cells have failed.",
)(_tell("resume", "goes on", lambda runs, client, name: runs.resume(client, name)))
command(
    fleets,
    name="cancel",
    help="End the run under way, with the bakes that it has begun; nothing of them is left.",
)(_tell("cancel", "is being cancelled", lambda runs, client, name: runs.cancel(client, name)))


@command(fleets)
def retry(
    events: Events,
    cell: Annotated[list[str], typer.Argument(help="Cells, such as search@amd64 or search.", metavar="CELL...")],
    file: FleetPath = DEFAULT_FILE,
) -> Result:
    """Let cells be tried again that have failed too often: the next run does."""
    from parbake.fleet import preview, quarantine
    from parbake.fleet.cells import cells, chosen
    from parbake.fleet.file import load
    from parbake.records.store import open_store

    fleet, folder = load(file), file.absolute().parent
    found = preview.look(fleet, folder, chosen(cells(fleet, folder), tuple(cell)), events)
    freed = [each for each in found if each.state == "quarantined"]
    quarantine.lift(open_store(fleet.store), [each.key for each in freed])
    names = [each.cell.name for each in freed]
    return Result(
        {"freed": names}, lambda: "\n".join(f"{name} is tried again" for name in names) or "none was held back"
    )

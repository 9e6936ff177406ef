"""The commands that need the engine of fleets: it and its workers, and the runs that they work on."""

from __future__ import annotations

import asyncio
import getpass
import importlib.util
import os
import shutil
import socket
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import typer

from parbake import __version__
from parbake.cli import choices
from parbake.cli.app import Result, command, out
from parbake.cli.fleet.group import DEFAULT_FILE, Cells, FleetPath, fleets
from parbake.core import printable
from parbake.core.errors import EngineUnreachable, EnvironmentProblem, FleetIncomplete
from parbake.core.events import Events
from parbake.core.extras import how_to_add

if TYPE_CHECKING:
    from parbake.fleet.engine.connect import Client
    from parbake.fleet.engine.rollouts import RolloutStatus
    from parbake.fleet.engine.runs import Status
    from parbake.fleet.engine.tasks import Progress

_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"  # another page, without a cursor; the one of before
_HOME, _REST_OF_LINE, _REST = "\x1b[H", "\x1b[K", "\x1b[J"
State = Annotated[
    Path | None,
    typer.Option(
        help="The folder of `fleet up`: its database, key and logs. Default: .fleet, beside the fleet's file.",
        metavar="FOLDER",
    ),
]
Slots = Annotated[int, typer.Option(min=1, help="How many bakes a worker runs at once.", metavar="COUNT")]
Grace = Annotated[
    float, typer.Option(min=0, help="How long bakes may go on after a worker is told to stop.", metavar="SECONDS")
]


def state_folder(state: Path | None, file: Path) -> Path:
    """Return the folder of `fleet up`."""
    return state.absolute() if state else file.absolute().parent / ".fleet"


def need_engine() -> None:
    """Raise EnvironmentProblem unless the engine's library is installed."""
    if importlib.util.find_spec("temporalio") is None:
        raise EnvironmentProblem("the fleet engine is not installed", hint=how_to_add("fleet"))


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

    It listens on the loopback only. The next `fleet up` continues where this one ended; without its database, the next
    run finds in the store what is done already. Workers bake, which needs root unless all of it are ext4 volumes;
    --workers 0 runs the engine alone.
    """
    need_engine()
    from parbake.fleet.engine.facts import need_powers
    from parbake.fleet.engine.local import Settings
    from parbake.fleet.engine.local import up as run_here
    from parbake.fleet.engine.tasks import QUEUES

    need_powers(QUEUES if workers else (), file)

    def ready(here: dict[str, object]) -> None:
        events.note(f"the engine listens on {here['address']}; its web interface is {here['ui']}; Ctrl-C ends it")

    run_here(state_folder(state, file), Settings(workers, slots, port, ui_port, grace, file), events, ready)


_QUEUES = choices.Choice("--queues", "queue", lambda: ("control", "bake", "place", "roll"))


@command(fleets)
def worker(
    queues: Annotated[
        str,
        typer.Option(
            help="The queues it takes tasks from: control, bake (the only one that may need root), place, roll.",
            metavar="NAMES",
            autocompletion=_QUEUES.complete,
        ),
    ] = "control,bake,place,roll",
    slots: Slots = 1,
    grace: Grace = 5.0,
    pinned: Annotated[
        bool,
        typer.Option(
            "--pinned", help="Let runs that start under this version of parbake end under it: keep its workers."
        ),
    ] = False,
    metrics: Annotated[
        str,
        typer.Option(help="Serve the engine library's metrics for Prometheus at this address.", metavar="HOST:PORT"),
    ] = "",
    state: State = None,
    file: FleetPath = DEFAULT_FILE,
) -> None:
    """Work for the engine until SIGTERM: plan, build and bake, copy to places, write to the targets of rollouts.

    TEMPORAL_ADDRESS names the engine, with its namespace and certificates (TEMPORAL_NAMESPACE, TEMPORAL_TLS_…); without
    it, it is the one that `fleet up` runs here. PARBAKE_FLEET_KEY names the file with the fleet's key, which all
    machines share.
    """
    need_engine()
    from parbake.fleet.engine.connect import Engine
    from parbake.fleet.engine.facts import need_powers
    from parbake.fleet.engine.worker import serve

    named = [each.strip() for each in queues.split(",") if each.strip()]
    need_powers(named, file)
    version = __version__ if pinned else ""
    engine = Engine(state_folder(state, file))
    asyncio.run(serve(engine, queues=named, slots=slots, grace=grace, pinned=version, metrics=metrics))


@command(fleets)
def run(
    events: Events,
    cell: Cells = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait for its end; the exit code is 3 if some cells failed.")
    ] = False,
    heartbeat: Annotated[
        float,
        typer.Option(min=1, help="How long a worker may be silent before it counts as dead.", metavar="SECONDS"),
    ] = 60.0,
    roll_out: Annotated[
        bool, typer.Option("--rollout/--no-rollout", help="Then roll out what is good, if the fleet's file says how.")
    ] = True,
    state: State = None,
    file: FleetPath = DEFAULT_FILE,
) -> Result:
    """Start a run: plan every cell, and let the workers bake what the store lacks.

    If a run of the fleet is under way already, this follows it; if one was cancelled or is being drained, this first
    waits for its end. When all cells are good, and the fleet's file has `rollout`, their rollout starts.
    """
    need_engine()
    from parbake.cli.text import fleet as text
    from parbake.fleet.cells import run_request
    from parbake.fleet.engine import runs, schedules
    from parbake.fleet.file import load
    from parbake.fleet.source import pinned

    fleet, folder = load(file), file.absolute().parent
    root = pinned(fleet.source, folder)
    request = run_request(fleet, file.name, root, folder, named=cell or (), heartbeat=heartbeat, roll_out=roll_out)

    async def start(client: Client) -> str:
        if limit := fleet.quotas.starts_per_second:
            await schedules.limit_starts(client, limit)
        return await runs.start(client, request, events.note)

    if not wait:
        started = asked(state, file, start)
        return Result({"run": started}, lambda: f"{started} is under way: `parbake fleet status` shows how far it is")

    async def to_the_end(client: Client) -> Progress:
        await start(client)
        with events.task("cells", len(request.cells), unit="items") as task:

            def on_status(status: runs.Status) -> None:
                if status.progress:
                    task.advance(status.progress.counts.done - task.done)

            return await runs.follow(client, fleet.name, fleet.store, on_status)

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
def status(
    watch: Annotated[bool, typer.Option("--watch", help="Keep showing it, until Ctrl-C.")] = False,
    every: Annotated[
        float, typer.Option(min=0.1, help="With --watch: how long to wait between two checks.", metavar="SECONDS")
    ] = 2.0,
    state: State = None,
    file: FleetPath = DEFAULT_FILE,
) -> Result | None:
    """Show how far the last run and the last rollout are.

    It shows the cells, what each bake is doing, what failed, and the workers; the waves, and the approvals they need.
    With --watch and --json, it prints one document per line.
    """
    from parbake.cli.text import fleet as text
    from parbake.fleet.file import load

    fleet = load(file)

    async def ask(client: Client) -> tuple[Status, RolloutStatus | None]:
        from parbake.fleet.engine import rollouts, runs

        run = await runs.status(client, fleet.name, fleet.store)
        return run, await rollouts.status(client, fleet.name, fleet.store)

    if watch:
        _watched(state, file, ask, every)
        return None
    found = asked(state, file, ask)
    return Result(text.status_json(*found), lambda: text.status_text(*found))


class Screen:
    """Shows a status again and again until somebody ends it, for ``with``: a page of its own on a terminal.

    A terminal looks afterwards as it did before. Elsewhere, what has changed is printed; as JSON, a document each time.
    """

    def __init__(self, *, as_json: bool = False) -> None:
        self._as_json, self._terminal = as_json, sys.stdout.isatty() and not as_json
        self._shown = ""

    def __enter__(self) -> Self:
        if self._terminal:
            self._write(_ENTER)
        return self

    def __exit__(self, *_: object) -> None:
        if self._terminal:
            self._write(_LEAVE)

    def show(self, document: Any, text: str) -> None:
        """Show the status as it is now."""
        if self._as_json:
            self._write(printable.dump(document) + "\n")
            return
        said = printable.lines(text)
        if self._terminal:
            size = shutil.get_terminal_size()
            lines = [line[: size.columns] + _REST_OF_LINE for line in said.splitlines()[: size.lines - 1]]
            self._write(_HOME + "\r\n".join(lines) + "\r\n" + _REST)
        elif said != self._shown:
            self._write(f"{said}\n\n")
        self._shown = said

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()


def _watched(
    state: Path | None,
    file: Path,
    ask: Callable[[Client], Awaitable[tuple[Status, RolloutStatus | None]]],
    every: float,
) -> None:
    """Show the status until somebody ends us; an engine that does not answer may be back."""
    from parbake.cli.text import fleet as text

    async def go(client: Client) -> None:
        with Screen(as_json=out.as_json) as screen:
            while True:
                try:
                    found = await ask(client)
                    document, said = text.status_json(*found), text.status_text(*found)
                except EngineUnreachable as error:
                    document, said = error.to_json(), error.message
                screen.show(document, said)
                await asyncio.sleep(every)

    asked(state, file, go)


OfRollout = Annotated[bool, typer.Option("--rollout", help="The rollout that is under way, instead of the run.")]


@command(fleets)
def pause(rollout: OfRollout = False, state: State = None, file: FleetPath = DEFAULT_FILE) -> Result:
    """Let the current run start nothing new; with --rollout, let the rollout start no further target."""
    return _told("pause", "starts no further target" if rollout else "starts nothing new", rollout, state, file)


@command(fleets)
def resume(rollout: OfRollout = False, state: State = None, file: FleetPath = DEFAULT_FILE) -> Result:
    """Let a paused run go on, however many of its cells have failed; with --rollout, retry and go on."""
    return _told("resume", "goes on", rollout, state, file)


@command(fleets)
def cancel(rollout: OfRollout = False, state: State = None, file: FleetPath = DEFAULT_FILE) -> Result:
    """Cancel the current run and its bakes, leaving nothing of them behind.

    With --rollout, cancel the rollout: targets keep what they hold.
    """
    kept = "; targets keep what they hold" if rollout else ""
    return _told("cancel", f"is being cancelled{kept}", rollout, state, file)


def _told(
    what: Literal["pause", "resume", "cancel"], done: str, rollout: bool, state: Path | None, file: Path
) -> Result:
    """Tell a run, or a rollout, to pause, to go on, or to end."""
    from parbake.fleet.file import load

    fleet = load(file)

    async def go(client: Client) -> None:
        from parbake.fleet.engine import rollouts, runs

        who = [f"by {whoever()}"] if rollout or what == "pause" else []
        await getattr(rollouts if rollout else runs, what)(client, fleet.name, *who)

    asked(state, file, go)
    name = f"{'rollout' if rollout else 'fleet'}/{fleet.name}"
    return Result({"run": name, "told": what}, lambda: f"{name}: {done}")


def user() -> str:
    """Return who asks, for the record: whoever has the fleet's key is believed."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return f"user {os.getuid()}"


def whoever() -> str:
    """Return who asks, and from where, in words."""
    return f"{user()} on {socket.gethostname()}"


@command(fleets)
def retry(
    events: Events,
    cell: Annotated[
        list[str],
        typer.Argument(help="Cells, such as search@amd64 or search.", metavar="CELL...", autocompletion=choices.cells),
    ],
    file: FleetPath = DEFAULT_FILE,
) -> Result:
    """Release cells from quarantine, so that the next run tries them again."""
    from parbake.fleet import preview, stores
    from parbake.fleet.cells import cells, chosen
    from parbake.fleet.file import load
    from parbake.records.store import open_store

    fleet, folder = load(file), file.absolute().parent
    found = preview.look(fleet, folder, chosen(cells(fleet, folder), tuple(cell)), events)
    freed = [each for each in found if each.state == "quarantined"]
    stores.lift(open_store(fleet.store), [each.key for each in freed])
    names = [each.cell.name for each in freed]
    return Result(
        {"freed": names}, lambda: "\n".join(f"{name} will be retried" for name in names) or "no cell was in quarantine"
    )

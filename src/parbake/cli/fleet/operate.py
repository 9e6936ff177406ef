"""The commands of whoever operates a fleet: its schedule, its health, and its end before maintenance."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from parbake.cli.app import Result, command
from parbake.cli.fleet.group import DEFAULT_FILE, FleetPath, fleets
from parbake.cli.fleet.runs import State, asked, need_engine, state_folder
from parbake.core.errors import EnvironmentProblem, InputError, ParbakeError
from parbake.core.events import Events

if TYPE_CHECKING:
    from parbake.fleet.engine.connect import Client
    from parbake.fleet.file import Fleet
    from parbake.workflows.doctor import Check


@command(fleets)
def apply(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be changed.")] = False,
    heartbeat: Annotated[
        float,
        typer.Option(min=1, help="For scheduled runs: as for `fleet run`.", metavar="SECONDS"),
    ] = 60.0,
    state: State = None,
    file: FleetPath = DEFAULT_FILE,
) -> Result:
    """Give the engine the `schedule` of the fleet's file, and its limit on starts per second (`quotas`).

    It updates what has changed; without `schedule`, it removes the one that the engine has, and without
    `starts_per_second` the limit. A run under way goes on. A scheduled run reads the file as it is then; with `source`,
    the file on the branch.
    """
    need_engine()
    from parbake.fleet.engine import schedules
    from parbake.fleet.engine.tasks import FleetFile
    from parbake.fleet.file import load

    fleet = load(file)
    if fleet.source:
        where = {"git": fleet.source.git, "ref": fleet.source.ref}
    else:
        where = {"folder": str(file.absolute().parent)}
    place = FleetFile(fleet.name, file.name, heartbeat=heartbeat, **where)
    limit = fleet.quotas.starts_per_second

    async def go(client: Client) -> schedules.Applied:
        if not dry_run:
            await schedules.limit_starts(client, limit)
        return await schedules.apply(client, fleet.schedule, place, dry_run=dry_run)

    done = asked(state, file, go)
    document = {
        "schedule": done.runs,
        "prune": done.prune,
        "starts_per_second": limit,
        "held": done.paused or None,
        "dry_run": dry_run,
    }
    lines = [f"schedule of runs: {done.runs}", f"schedule of pruning: {done.prune}"]
    lines += [f"at most {limit} bakes start in a second, and as many copies in each region"] if limit else []
    lines += [f"it is paused: {done.paused}; `parbake fleet resume` lets it go on"] if done.paused else []
    return Result(document, lambda: "\n".join(lines))


@command(fleets)
def drain(
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until nothing is under way.")] = True,
    state: State = None,
    file: FleetPath = DEFAULT_FILE,
) -> Result:
    """Start nothing new and wait until what is under way has ended, before workers or the engine are stopped.

    The schedule is paused until `fleet resume`. The next run does what was not started.
    """
    from parbake.fleet.file import load

    fleet = load(file)

    async def go(client: Client) -> dict[str, Any]:
        from parbake.fleet.engine import runs, schedules

        held = await schedules.hold(client, fleet.name, "drained")
        running = await runs.drain(client, fleet.name)
        ended = await runs.outlast(client, fleet.name) if running and wait else None
        return {
            "schedule_held": held,
            "run": running,
            "done": ended.counts.done if ended else None,
            "left": ended.total - ended.counts.done if ended else None,
        }

    found = asked(state, file, go)
    outcome = "no run was under way"
    if found["run"]:
        outcome = "the run ends once its current bakes have ended"
        if wait:
            outcome = f"the run has ended: {found['done']} cells are done, {found['left']} were not started"
            outcome = "the run was cancelled" if found["done"] is None else outcome
    more = "; the schedule is paused: `parbake fleet resume` lets it go on" if found["schedule_held"] else ""
    return Result(found, lambda: f"{outcome}{more}")


@command(fleets)
def codec(
    events: Events,
    port: Annotated[
        int, typer.Option(min=1, max=65535, help="Where it listens, on the loopback.", metavar="PORT")
    ] = 8234,
    origin: Annotated[
        list[str] | None,
        typer.Option(
            help="Pages that may ask, such as https://cloud.temporal.io; may be given several times. Default: those of "
            "`fleet up`.",
            metavar="URL",
        ),
    ] = None,
    state: State = None,
    file: FleetPath = DEFAULT_FILE,
) -> None:
    """Let the engine's pages, and its own program, show what is sealed, until Ctrl-C.

    It needs the fleet's key, opens only, and listens on the loopback alone. It prints the address that goes into the
    pages' settings, as the codec server. Whoever knows that address can have opened what they have seen: keep it.
    """
    need_engine()
    from parbake.fleet.engine.codec import serve, word
    from parbake.fleet.engine.connect import Engine
    from parbake.fleet.engine.sealing import read_keys

    engine = Engine(state_folder(state, file))
    keys, pages = read_keys(engine.key), set(origin or ([engine.ui] if engine.ui else []))
    if not pages:
        raise InputError(
            "no web page may use the codec server: no origin is named", hint="write --origin https://cloud.temporal.io"
        )
    pages |= {page.replace("//127.0.0.1:", "//localhost:") for page in pages}
    events.note(f"the codec server is http://127.0.0.1:{port}/{word(keys[0])}; Ctrl-C ends it")
    serve(keys, port, {page.rstrip("/") for page in pages})


@command(fleets)
def doctor(state: State = None, file: FleetPath = DEFAULT_FILE) -> Result:
    """Check the fleet: its file, store, key and engine, and each worker.

    The exit code is 1 if a bake could not succeed. It changes nothing, except that it writes an object to the store and
    removes it.
    """
    need_engine()
    from parbake.cli.text import artefacts
    from parbake.fleet.file import load
    from parbake.records.store import open_store
    from parbake.workflows.doctor import store_check

    fleet = load(file)
    checks = (store_check(open_store(fleet.store)), *_of_engine(state_folder(state, file), file, fleet))
    bad = [each for each in checks if each.status == "missing"]

    def judge() -> None:
        if bad:
            raise EnvironmentProblem(bad[0].found, hint=bad[0].hint)

    return Result(artefacts.checks_json(checks), lambda: artefacts.checks_text(checks), then=judge)


def _of_engine(state: Path, file: Path, fleet: Fleet) -> tuple[Check, ...]:
    from parbake.fleet.engine import health
    from parbake.fleet.engine.connect import Engine, connect
    from parbake.fleet.engine.facts import fingerprint, need_root
    from parbake.fleet.engine.sealing import read_keys
    from parbake.workflows.doctor import Check

    engine = Engine(state)

    async def go() -> health.Seen:
        return await health.look(await connect(engine), fleet.name)

    try:
        seen = asyncio.run(go())
        keys = tuple(map(fingerprint, read_keys(engine.key)))
        here = health.Here(
            socket.gethostname(),
            keys,
            fleet.store,
            fleet.verify,
            fleet.rollout is not None,
            bool(fleet.places),
            need_root(file),
        )
        return health.judge(seen, here)
    except ParbakeError as error:
        return (
            Check(
                name="engine",
                purpose="decides who does what",
                needed_by=("fleet",),
                status="missing",
                found=error.message,
                hint=error.hint,
            ),
        )

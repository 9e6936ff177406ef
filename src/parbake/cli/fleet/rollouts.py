"""The commands that hand out what a fleet has baked: waves, approvals, and the way back."""

from __future__ import annotations

import socket
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from parbake.cli import choices
from parbake.cli.app import Result, command
from parbake.cli.fleet.group import DEFAULT_FILE, Cells, FleetPath, fleets
from parbake.cli.fleet.runs import State, asked, need_engine, user, whoever
from parbake.core.errors import FleetIncomplete, InputError, VerificationFailed
from parbake.core.events import Events
from parbake.fleet import words

if TYPE_CHECKING:
    from pathlib import Path

    from parbake.fleet.engine.connect import Client
    from parbake.fleet.engine.rollouts import RolloutStatus
    from parbake.fleet.file import Fleet
    from parbake.fleet.waves import Plan

Wait = Annotated[
    bool,
    typer.Option(
        "--wait", help="Wait until it ends or needs a decision; the exit code is 3 if it failed or is paused."
    ),
]
By = Annotated[str, typer.Option("--by", help="The name for the record. Default: the user's.", metavar="NAME")]
Note = Annotated[str, typer.Option("--note", help="Why, for the record.", metavar="TEXT")]


def _planned(file: Path, cell: list[str] | None) -> tuple[Fleet, Plan]:
    from parbake.fleet import waves
    from parbake.fleet.cells import cells, chosen
    from parbake.fleet.file import load

    fleet, folder = load(file), file.absolute().parent
    if fleet.rollout is None:
        raise InputError(
            f"{file} has no `rollout`",
            hint="write rollout: {waves: [{name: all, rest: true}]}; see docs/how-to/fleet.md",
        )
    found = cells(fleet, folder)
    wanted = {each.name.rpartition("@")[0] for each in chosen(found, tuple(cell or ()))}
    return fleet, waves.plan(fleet.rollout, waves.targets(folder, found), wanted)


@command(fleets)
def rollout(
    events: Events,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show which target gets its artefact in which wave.")
    ] = False,
    again: Annotated[
        bool, typer.Option("--again", help="Also roll out what is older than what was rolled out last.")
    ] = False,
    cell: Cells = None,
    wait: Wait = False,
    state: State = None,
    file: FleetPath = DEFAULT_FILE,
) -> Result:
    """Roll out the artefacts of the last run, in the waves of the fleet's file.

    `parbake fleet run` does so by itself, once for each generation. If the same rollout is under way already, this
    follows it; if another one is, `when_newer` in the fleet's file decides. --cell is for --dry-run.
    """
    from parbake.cli.text import fleet_rollouts as text

    fleet, plan = _planned(file, cell)
    if dry_run:
        return Result(text.plan_json(fleet.name, plan), lambda: text.plan_text(plan))
    need_engine()

    async def start(client: Client) -> str:
        from parbake.fleet.engine import rollouts, runs

        newer = fleet.rollout is not None and fleet.rollout.when_newer == "supersede"
        made = await runs.made(client, fleet.name, fleet.store, whoever())
        return await rollouts.start(client, replace(made, again=again), supersede=newer)

    started = asked(state, file, start)
    if not wait:
        return Result(
            {"rollout": started}, lambda: f"{started} is under way: `parbake fleet status` shows how far it is"
        )
    return _as_it_goes_on(fleet, state, file, events)


def _as_it_goes_on(fleet: Fleet, state: Path | None, file: Path, events: Events, since: str = "") -> Result:
    """Wait until the rollout ends or needs somebody."""
    found = _followed(fleet, state, file, events, since=since)
    good = found.state in {"completed", "approval"} and not found.problem
    return _ended(found, "" if good else found.problem or f"the rollout of {fleet.name} {words.rollout(found.state)}")


def _followed(fleet: Fleet, state: Path | None, file: Path, events: Events, *, since: str = "") -> RolloutStatus:
    """Wait until the rollout ends or needs somebody, and tell its story meanwhile, from a time on."""

    async def follow(client: Client) -> RolloutStatus:
        from parbake.fleet.engine import rollouts

        seen: list[object] = []

        def on_status(status: RolloutStatus) -> None:
            story = status.progress.story if status.progress else []
            for entry in story[story.index(seen[-1]) + 1 if seen and seen[-1] in story else 0 :]:
                if entry.at >= since:
                    events.note(entry.text)
                seen.append(entry)

        return await rollouts.follow(client, fleet.name, fleet.store, on_status)

    return asked(state, file, follow)


def _ended(found: RolloutStatus, problem: str) -> Result:
    from parbake.cli.text import fleet_rollouts as text

    def judge() -> None:
        if problem:
            raise FleetIncomplete(problem, hint="`parbake fleet status` says why")

    return Result(text.rollout_json(found), lambda: text.rollout_text(found), then=judge)


@command(fleets)
def approve(
    events: Events,
    wave: Annotated[
        str,
        typer.Argument(
            help="The wave. Default: the one that is waiting.", metavar="[WAVE]", autocompletion=choices.waves
        ),
    ] = "",
    by: By = "",
    note: Note = "",
    wait: Wait = False,
    state: State = None,
    file: FleetPath = DEFAULT_FILE,
) -> Result:
    """Approve a wave that waits for it, so that the next one starts.

    The name, the time and the machine are recorded; nobody may approve twice. If the wave names users or roles of AWS,
    your AWS credentials prove that you are one of them: they sign a call of GetCallerIdentity, which a worker sends.
    """
    from parbake.fleet.file import load

    fleet, who, now = load(file), by or user(), datetime.now(UTC).isoformat(timespec="seconds")

    async def go(client: Client) -> str:
        from parbake.fleet.engine import rollouts
        from parbake.fleet.engine.rollout_tasks import SignOff

        return await rollouts.approve(client, fleet.name, SignOff(wave, who, socket.gethostname(), note), _proof)

    name = asked(state, file, go)
    message = f"rollout/{fleet.name}: {who} has approved the wave {name}"
    if wait:
        return _as_it_goes_on(fleet, state, file, events, since=now)
    return Result({"rollout": f"rollout/{fleet.name}", "wave": name, "by": who}, lambda: message)


def _proof(purpose: str) -> str:
    from parbake.aws.caller import proof  # loads only where a wave asks for it

    return proof(purpose)


@command(fleets)
def rollback(
    events: Events,
    wait: Wait = False,
    by: By = "",
    note: Note = "",
    state: State = None,
    file: FleetPath = DEFAULT_FILE,
) -> Result:
    """Roll back all targets that the last rollout has written, in reverse order.

    This includes targets that are being written or have failed. A target that now holds something else is left alone.
    """
    from parbake.fleet.file import load

    fleet, who, now = load(file), by or user(), datetime.now(UTC).isoformat(timespec="seconds")
    host = socket.gethostname()

    async def go(client: Client) -> None:
        from parbake.fleet.engine import rollouts

        await rollouts.back(
            client, fleet.name, fleet.store, f"{who} on {host} wants it back{f': {note}' if note else ''}"
        )

    asked(state, file, go)
    if not wait:
        name = f"rollout/{fleet.name}"
        return Result({"rollout": name, "told": "rollback"}, lambda: f"{name}: goes back")
    found = _followed(fleet, state, file, events, since=now)
    whole = found.state == "rolled-back" and found.progress and not found.progress.noted
    return _ended(found, "" if whole else f"some targets of {fleet.name} were not rolled back")


@command(fleets)
def gate(
    events: Events,
    wave: Annotated[str, typer.Argument(help="The wave.", metavar="WAVE", autocompletion=choices.waves)],
    cell: Cells = None,
    generation: Annotated[
        str, typer.Option(help="What the gate's command is told about the rollout.", metavar="NAME")
    ] = "",
    file: FleetPath = DEFAULT_FILE,
) -> Result:
    """Run a wave's checks by hand: whether the nodes of its targets run what these hold, then its gate.

    The exit code is 3 if one of them fails.
    """
    from parbake.cli.text import fleet_rollouts as text
    from parbake.fleet import waves

    fleet, plan = _planned(file, cell)
    answers = waves.ask_gate(fleet.name, plan, wave, file.absolute().parent, events, generation=generation)
    no = [each for each in answers if each.problem]

    def judge() -> None:
        if no:
            raise VerificationFailed(f"{no[0].asked}: {no[0].problem}", hint="correct it, and ask again")

    return Result(text.answers_json(wave, answers), lambda: text.answers_text(answers), then=judge)

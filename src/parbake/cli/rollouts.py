"""The commands that hand artefacts to autoscalers, follow them, and go back."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from parbake.cli.app import DEFAULT_FILE, AsJson, BakefilePath, Progress, answer, app, door, opened_events
from parbake.core.errors import InputError, RolloutError

if TYPE_CHECKING:
    from parbake.core.events import Events
    from parbake.workflows.rollout import Handed

To = Annotated[
    list[str] | None,
    typer.Option("--to", help="A target of the Bakefile; may be given several times. Default: all.", metavar="NAME"),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only show what would be written.")]
Follow = Annotated[bool, typer.Option(help="Watch until the nodes run it.")]
ForceConflicts = Annotated[
    bool, typer.Option("--force-conflicts", help="Take over fields that another manager of the cluster applied.")
]
Deadline = Annotated[
    float | None,
    typer.Option(min=1, help="How long nodes may take, instead of the targets' deadline.", metavar="SECONDS"),
]
Interval = Annotated[float, typer.Option(min=0.05, help="How long to wait between two looks.", metavar="SECONDS")]


@app.command()
def rollout(
    what: Annotated[
        list[str],
        typer.Argument(
            help="A record, an artefact, or the start of a name or key; a machine image, a volume, or one of each.",
            metavar="RECORD...",
        ),
    ],
    to: To = None,
    dry_run: DryRun = False,
    force: Annotated[
        bool, typer.Option("--force", help="Also what is not verified, and what speaks against a target.")
    ] = False,
    force_conflicts: ForceConflicts = False,
    follow: Follow = True,
    deadline: Deadline = None,
    interval: Interval = 5.0,
    file: BakefilePath = DEFAULT_FILE,
    as_json: AsJson = False,
    progress: Progress = "auto",
) -> None:
    """Hand an artefact to the Bakefile's targets, and watch it arrive.

    Only what is verified. Shows what changes, writes it once, and follows until the nodes run it. Targets are taken in
    the Bakefile's order, each to its end. A run that was killed is finished by running it again.
    """
    from parbake.workflows import rollout as workflow

    manner = workflow.Manner(tuple(to or ()), dry_run, force, force_conflicts, follow, deadline, interval)
    _hand_over(lambda events: workflow.rollout(file, what, events, manner), progress, dry_run=dry_run, as_json=as_json)


@app.command()
def rollback(
    to: To = None,
    dry_run: DryRun = False,
    force_conflicts: ForceConflicts = False,
    follow: Follow = True,
    deadline: Deadline = None,
    interval: Interval = 5.0,
    file: BakefilePath = DEFAULT_FILE,
    as_json: AsJson = False,
    progress: Progress = "auto",
) -> None:
    """Return targets to the artefact before, and watch it arrive.

    What that was is written down on the target itself. A target that has returned already is only followed.
    """
    from parbake.workflows import rollout as workflow

    manner = workflow.Manner(
        tuple(to or ()), dry_run, False, force_conflicts, follow=follow, deadline=deadline, interval=interval
    )
    _hand_over(lambda events: workflow.rollback(file, events, manner), progress, dry_run=dry_run, as_json=as_json)


def _hand_over(hand: Callable[[Events], tuple[Handed, ...]], progress: str, *, dry_run: bool, as_json: bool) -> None:
    """Hand over, and say what became of each target."""
    from parbake.cli.text import rollouts

    door.as_json = as_json
    with opened_events(progress) as events:
        handed = hand(events)
    answer(rollouts.handed_json(handed, dry_run=dry_run), lambda: rollouts.handed_text(handed, dry_run=dry_run))


@app.command()
def status(to: To = None, file: BakefilePath = DEFAULT_FILE, as_json: AsJson = False) -> None:
    """Show what each target holds, and how far its nodes are.

    Also what it held before, which is where `parbake rollback` returns to.
    """
    from parbake.cli.text import rollouts
    from parbake.workflows import rollout as workflow

    door.as_json = as_json
    reports = workflow.status(file, tuple(to or ()))
    answer(rollouts.reports_json(reports), lambda: rollouts.reports_text(reports))
    failed = [each.target for each in reports if each.error]
    if failed:
        raise RolloutError(f"nothing is known of {', '.join(failed)}", hint="the table says why")


@app.command()
def freeze(to: To = None, file: BakefilePath = DEFAULT_FILE, as_json: AsJson = False) -> None:
    """Stop targets from replacing nodes, until `parbake thaw`.

    For Karpenter it adds to the NodePools a budget of no node for drift: a rollout can pause there, or be looked at.
    """
    _freeze(to, file, as_json, frozen=True)


@app.command()
def thaw(to: To = None, file: BakefilePath = DEFAULT_FILE, as_json: AsJson = False) -> None:
    """Let targets replace nodes again, after `parbake freeze`."""
    _freeze(to, file, as_json, frozen=False)


def _freeze(to: list[str] | None, file: BakefilePath, as_json: bool, *, frozen: bool) -> None:
    from parbake.cli.text import rollouts
    from parbake.workflows import rollout as workflow

    door.as_json = as_json
    if not to:
        raise InputError("freeze and thaw want to know which target", hint="name it: --to NAME")
    changed = workflow.freeze(file, tuple(to), frozen=frozen)
    document = {"frozen": frozen, "changed": {name: list(what) for name, what in changed.items()}}
    answer(document, lambda: rollouts.frozen_text(changed, frozen=frozen))


@app.command()
def watch(
    once: Annotated[bool, typer.Option("--once", help="Take one turn and end: for cron and CI.")] = False,
    every: Annotated[float, typer.Option(min=1, help="How long to wait between turns.", metavar="SECONDS")] = 300.0,
    roll_out: Annotated[
        bool, typer.Option("--rollout/--no-rollout", help="Roll out to the Bakefile's targets.")
    ] = True,
    to: To = None,
    deadline: Deadline = None,
    prune: Annotated[
        bool, typer.Option("--prune", help="Then let old artefacts go, as the Bakefile's `retention` says.")
    ] = False,
    file: BakefilePath = DEFAULT_FILE,
    as_json: AsJson = False,
    progress: Progress = "auto",
) -> None:
    """Bake and roll out whenever a tag, a build or the base moves.

    Asks registries with HEAD, and finds the base anew. Where something moved: bake, verify, roll out to the Bakefile's
    targets, if it has any. What fails is tried again at the next turn. With --json one document for each turn that
    did something.
    """
    from parbake.bakefile import load
    from parbake.cli.text import rollouts
    from parbake.workflows import watch as workflow
    from parbake.workflows.clean import watch_fast_restores
    from parbake.workflows.rollout import Manner

    door.as_json = as_json
    targets = roll_out and bool(load(file).rollout)
    manner = Manner(tuple(to or ()), deadline=deadline) if targets else None

    def told(turn: workflow.Turn) -> None:
        answer(rollouts.turn_json(turn), lambda: rollouts.turn_text(turn))

    with opened_events(progress) as events:
        turn = workflow.watch(
            lambda: workflow.look(file, events),
            lambda: workflow.act(file, events, manner, prune=prune),
            events,
            once=once,
            interval=every,
            told=told,
            tidy=lambda: watch_fast_restores(file, events),
        )
    if not turn.moved:
        told(turn)

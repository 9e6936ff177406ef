"""The commands that hand artefacts to autoscalers, follow them, and go back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from parbake.cli import choices
from parbake.cli.app import DEFAULT_FILE, BakefilePath, Result, command
from parbake.cli.project import CopyRoles, Store, needed
from parbake.core.errors import InputError, RolloutError
from parbake.core.events import Events

if TYPE_CHECKING:
    from parbake.workflows.rollout import TargetResult

To = Annotated[
    list[str] | None,
    typer.Option(
        "--to",
        help="A target of the Bakefile; may be given several times. Default: all.",
        metavar="NAME",
        autocompletion=choices.targets,
    ),
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
Interval = Annotated[float, typer.Option(min=0.05, help="How long to wait between two checks.", metavar="SECONDS")]


@command()
def rollout(
    events: Events,
    selectors: Annotated[
        list[str] | None,
        typer.Argument(
            help="A record, an artefact, or the start of a name or key: a machine image, a volume, or one of each. A "
            "Bakefile's whole name means its newest artefact that passed verification; so does none.",
            metavar="RECORD...",
            autocompletion=choices.records,
            show_default=False,
        ),
    ] = None,
    to: To = None,
    dry_run: DryRun = False,
    force: Annotated[
        bool, typer.Option("--force", help="Roll out even if unverified, or if a target refuses.")
    ] = False,
    force_conflicts: ForceConflicts = False,
    mount: Annotated[
        bool, typer.Option("--mount/--no-mount", help="Let nodes' user data mount a volume, if the target says so.")
    ] = True,
    follow: Follow = True,
    deadline: Deadline = None,
    interval: Interval = 5.0,
    store: Store = "",
    copy_role: CopyRoles = None,
    superseding: Annotated[
        list[str] | None,
        typer.Option(
            "--superseding",
            help="A rollback of targets that hold this returns to what they held before it: an id, a name or the start "
            "of a key; of several, all.",
            metavar="ID",
            autocompletion=choices.held,
        ),
    ] = None,
    file: BakefilePath = DEFAULT_FILE,
) -> Result:
    """Roll an artefact out to the Bakefile's targets, and follow it to the nodes.

    The artefact must be verified. parbake shows what changes, writes it once, and waits until the nodes run it. It
    takes targets in the Bakefile's order, each to its end. Run it again to finish a run that was killed.
    """
    from parbake.bakefile import store_address
    from parbake.workflows import rollout as workflow

    options = workflow.RolloutOptions(
        tuple(to or ()), dry_run, force, force_conflicts, follow, deadline, interval, mount=mount,
        store=store_address(store) if store else "", copy_roles=tuple(copy_role or ()),
        supersedes=tuple(superseding or ()),
    )  # fmt: skip
    with needed("`rollout` takes the targets from it"):
        return _results(workflow.rollout(file, selectors or (), events, options), dry_run=dry_run)


@command()
def rollback(
    events: Events,
    to: To = None,
    dry_run: DryRun = False,
    force_conflicts: ForceConflicts = False,
    follow: Follow = True,
    deadline: Deadline = None,
    interval: Interval = 5.0,
    holding: Annotated[
        list[str] | None,
        typer.Option(
            "--holding",
            help="Only targets that hold this: an id, a name or the start of a key; of several, all.",
            metavar="ID",
            autocompletion=choices.held,
        ),
    ] = None,
    file: BakefilePath = DEFAULT_FILE,
) -> Result:
    """Return targets to their previous artefact, and follow it to the nodes.

    Each target records its previous artefact itself. A target that has been rolled back already is only followed.
    """
    from parbake.workflows import rollout as workflow

    options = workflow.RolloutOptions(
        tuple(to or ()), dry_run, False, force_conflicts, follow=follow, deadline=deadline, interval=interval,
        holding=tuple(holding or ()),
    )  # fmt: skip
    return _results(workflow.rollback(file, events, options), dry_run=dry_run)


def _results(results: tuple[TargetResult, ...], *, dry_run: bool) -> Result:
    """Say what became of each target."""
    from parbake.cli.text import rollouts

    return Result(
        rollouts.results_json(results, dry_run=dry_run), lambda: rollouts.results_text(results, dry_run=dry_run)
    )


@command()
def status(to: To = None, file: BakefilePath = DEFAULT_FILE) -> Result:
    """Show what each target holds, and how far its nodes are.

    It also shows what each held before, to which `parbake rollback` returns.
    """
    from parbake.cli.text import rollouts
    from parbake.workflows import rollout as workflow

    reports = workflow.status(file, tuple(to or ()))

    def judge() -> None:
        failed = [each.target for each in reports if each.error]
        if failed:
            raise RolloutError(f"the state of {', '.join(failed)} is unknown", hint="the table says why")

    return Result(rollouts.reports_json(reports), lambda: rollouts.reports_text(reports), then=judge)


@command()
def freeze(to: To = None, file: BakefilePath = DEFAULT_FILE) -> Result:
    """Stop targets from replacing nodes, until `parbake thaw`.

    For Karpenter it adds a budget of zero nodes for drift to the NodePools, so that a rollout pauses there.
    """
    return _freeze(to, file, frozen=True)


@command()
def thaw(to: To = None, file: BakefilePath = DEFAULT_FILE) -> Result:
    """Let targets replace nodes again, after `parbake freeze`."""
    return _freeze(to, file, frozen=False)


def _freeze(to: list[str] | None, file: BakefilePath, *, frozen: bool) -> Result:
    from parbake.cli.text import rollouts
    from parbake.workflows import rollout as workflow

    if not to:
        raise InputError("freeze and thaw need a target", hint="name it: --to NAME")
    changed = workflow.freeze(file, tuple(to), frozen=frozen)
    document = {"frozen": frozen, "changed": {name: list(each) for name, each in changed.items()}}
    return Result(document, lambda: rollouts.frozen_text(changed, frozen=frozen))


@command()
def watch(
    events: Events,
    once: Annotated[bool, typer.Option("--once", help="Run once and exit: for cron and CI.")] = False,
    every: Annotated[float, typer.Option(min=1, help="How long to wait between runs.", metavar="SECONDS")] = 300.0,
    roll_out: Annotated[
        bool, typer.Option("--rollout/--no-rollout", help="Roll out to the Bakefile's targets.")
    ] = True,
    to: To = None,
    deadline: Deadline = None,
    prune: Annotated[
        bool, typer.Option("--prune", help="Then remove old artefacts, as the Bakefile's `retention` says.")
    ] = False,
    file: BakefilePath = DEFAULT_FILE,
) -> Result | None:
    """Bake and roll out whenever a tag, a build or the base moves.

    It asks registries with HEAD, and looks up the base again. When something has moved, it bakes, verifies, and rolls
    out to the Bakefile's targets, if it has any. Failures are retried at the next turn. With --json, it prints one
    document for each turn that did something.
    """
    from parbake.bakefile import load
    from parbake.cli.text import rollouts
    from parbake.workflows import watch as workflow
    from parbake.workflows.clean import watch_what_ends
    from parbake.workflows.rollout import RolloutOptions

    targets = roll_out and bool(load(file).rollout)
    options = RolloutOptions(tuple(to or ()), deadline=deadline) if targets else None

    def shown(turn: workflow.Turn) -> Result:
        return Result(rollouts.turn_json(turn), lambda: rollouts.turn_text(turn))

    def look() -> workflow.Seen:
        watch_what_ends(file, events)
        return workflow.look(file, events)

    turn = workflow.watch(
        look,
        lambda: workflow.act(file, events, options, prune=prune),
        events,
        once=once,
        interval=every,
        on_turn=lambda turn: shown(turn).print(),
    )
    return None if turn.moved else shown(turn)

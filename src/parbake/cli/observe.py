"""The command that shows what pods did with a bake."""

from __future__ import annotations

from typing import Annotated

import typer

from parbake import records
from parbake.cli import choices
from parbake.cli.app import DEFAULT_FILE, BakefilePath, Result, command, out
from parbake.cli.project import Project
from parbake.cli.text import observed
from parbake.core.errors import InputError
from parbake.core.events import Events
from parbake.workflows import observe as workflow


@command(progress="plain")
def observe(
    events: Events,
    selectors: Annotated[
        list[str] | None,
        typer.Argument(
            help="Only nodes with these: records, artefacts, or the start of a name or key. Default: with any of which "
            "a record is here.",
            metavar="RECORD...",
            autocompletion=choices.records,
            show_default=False,
        ),
    ] = None,
    context: Annotated[
        str, typer.Option("--context", help="kubectl's context; its current one if left out.", metavar="NAME")
    ] = "",
    nodes: Annotated[
        str,
        typer.Option(
            "--nodes",
            help="The labels of nodes that run RECORD, where the cluster does not say what they run.",
            metavar="SELECTOR",
        ),
    ] = "",
    metrics: Annotated[bool, typer.Option("--metrics", help="Print figures as Prometheus scrapes them.")] = False,
    file: BakefilePath = DEFAULT_FILE,
) -> Result:
    """Show which pods used the bake, which pulled all the same, and why.

    It reads nodes, pods, events and Karpenter's objects, and changes nothing. What it cannot know it calls unknown: an
    API server keeps events for an hour. docs/how-to/observe.md says how it decides.
    """
    if metrics and out.as_json:
        raise InputError("--metrics and --json are two forms of one answer", hint="leave out one of them")
    project = Project(file, selectors or ())
    output = project.output()
    hint = "`parbake list` shows which there are"
    wanted = [records.locate_record(each, output, events, hint=hint)[1] for each in selectors or ()]
    known = [record for _, record in records.find(output)]
    found = workflow.observe(known, wanted, context=context, selector=nodes)
    show = observed.observed_metrics if metrics else observed.observed_text
    return Result(observed.observed_json(found), lambda: show(found), foreign=metrics)

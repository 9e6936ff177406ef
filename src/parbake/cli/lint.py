"""The command that looks at manifests before a cluster does."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from parbake import __version__
from parbake.cli import choices
from parbake.cli.app import DEFAULT_FILE, BakefilePath, KubeContext, Result, command, out
from parbake.cli.project import Project, needed
from parbake.core.errors import InputError, VerificationFailed
from parbake.core.events import Events

_LEVELS = ("error", "warning", "note")
_FORMATS = choices.Choice("--format", "style", lambda: ("text", "json", "sarif"))
_FAIL_ON = choices.Choice("--fail-on", "level", lambda: _LEVELS)


@command(progress="plain")
def lint(
    events: Events,
    paths: Annotated[
        list[str] | None, typer.Argument(help="Manifests: files or folders; - for standard input.", metavar="PATH")
    ] = None,
    from_cluster: Annotated[
        bool, typer.Option("--from-cluster", help="Check the workloads and node classes in kubectl's cluster.")
    ] = False,
    context: KubeContext = "",
    bake: Annotated[
        list[str] | None,
        typer.Option(
            help="A record to compare with; may be given several times.",
            metavar="RECORD",
            autocompletion=choices.records,
        ),
    ] = None,
    style: Annotated[
        str,
        typer.Option(
            "--format",
            help="How to print: text, json, or sarif for code hosts.",
            metavar="STYLE",
            autocompletion=_FORMATS.complete,
        ),
    ] = "text",
    fail_on: Annotated[
        str,
        typer.Option(
            help="Exit with 3 on findings of this level: error, warning or note.",
            metavar="LEVEL",
            autocompletion=_FAIL_ON.complete,
        ),
    ] = "error",
    file: BakefilePath = DEFAULT_FILE,
) -> Result:
    """Find the pods that will not use the bake, and say why.

    It compares workloads and node classes with the Bakefile and its newest record, or with --bake. The exit code is 3
    if there are errors. It changes nothing.
    """
    from parbake.cli.text import artefacts
    from parbake.images import workloads
    from parbake.workflows import lint as workflow

    _FORMATS.need(style)
    _FAIL_ON.need(fail_on)
    out.as_json |= style != "text"
    if not paths and not from_cluster:
        raise InputError("nothing to lint", hint="name files or folders, - for standard input, or --from-cluster")
    documents: list[tuple[str, str]] = []
    for path in paths or ():
        documents += [("standard input", sys.stdin.read())] if path == "-" else workloads.read_folder(Path(path))
    if from_cluster:
        documents += workflow.gather(context)
    there = file if file.exists() or file != DEFAULT_FILE else None
    with needed("`lint` compares with it (or with the records that --bake names)"):
        bakes = workflow.bakes_of(there, Project(file, bake or ()).output(), bake or (), events)
    found = workflow.examine(documents, bakes)
    shown = (
        workflow.sarif(found, version=__version__, folder=Path.cwd())
        if style == "sarif"
        else {"findings": [each.to_json() for each in found], "errors": sum(each.level == "error" for each in found)}
    )

    def judge() -> None:
        bad = [each for each in found if _LEVELS.index(each.level) <= _LEVELS.index(fail_on)]
        if bad:
            counted = f"{len(bad)} {'finding stands' if len(bad) == 1 else 'findings stand'} in the way of the bake"
            raise VerificationFailed(counted, hint="each one says what to change; docs/how-to/lint.md says why")

    return Result(shown, lambda: artefacts.findings_text(found), then=judge, foreign=style == "sarif")

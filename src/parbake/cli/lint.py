"""The commands that hold what a cluster runs against a bake, before nodes do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from parbake import __version__
from parbake.cli import choices
from parbake.cli.app import DEFAULT_FILE, BakefilePath, KubeContext, Result, Selector, command, out
from parbake.cli.project import Project, needed
from parbake.core.errors import InputError, RegistryError, VerificationFailed
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
    offline: Annotated[
        bool,
        typer.Option("--offline", help="Do not ask registries how much of an image that has another name is baked."),
    ] = False,
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
    documents = (*workloads.collect(paths or ()), *(workflow.gather(context) if from_cluster else ()))
    there = file if file.exists() or file != DEFAULT_FILE else None
    project = Project(file, bake or ())
    with needed("`lint` compares with it (or with the records that --bake names)"):
        bakes = workflow.bakes_of(there, project.output(), bake or (), events)
    found = workflow.examine(documents, bakes)
    if not offline and any(each.rule.id == "reference-differs" for each in found):
        from parbake.images.registry.retry import SHORT  # what follows loads only where registries are asked
        from parbake.workflows.coverage import asking, registries

        with registries(project.readable, events, patience=SHORT) as look_up:
            found = workflow.examine(documents, asking(bakes, look_up))
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


@command(progress="plain")
def coverage(
    events: Events,
    selector: Selector = "",
    images: Annotated[
        list[str] | None,
        typer.Argument(help="Images to hold against it. Default: its own, as their tags are now.", metavar="[IMAGE]"),
    ] = None,
    manifests: Annotated[
        list[str] | None,
        typer.Option(
            help="Take the images of these Kubernetes manifests: a file or a folder, - for standard input; may be "
            "given several times.",
            metavar="FILE",
        ),
    ] = None,
    from_cluster: Annotated[
        bool, typer.Option("--from-cluster", help="Take the images of the workloads in kubectl's cluster.")
    ] = False,
    context: KubeContext = "",
    against: Annotated[
        list[str] | None,
        typer.Option(
            help="Take the images of this record, without asking registries: what its deployment costs nodes that "
            "still have the other; may be given several times.",
            metavar="RECORD",
            autocompletion=choices.records,
        ),
    ] = None,
    pull_rate: Annotated[
        float | None, typer.Option(min=0.001, help="How fast your pulls are, in MB of layers a second.", metavar="MB")
    ] = None,
    file: BakefilePath = DEFAULT_FILE,
) -> Result:
    """Show what nodes with a bake still fetch of an image: bytes, layers, seconds.

    It compares by chain of layers, as containerd does: of an image whose tag has moved, a node that has the bake
    fetches only what lies above the layers that it knows. It changes nothing. The exit code is 1 where a registry did
    not tell what an image is.
    """
    from parbake import records
    from parbake.aws import costs
    from parbake.cli.text import artefacts
    from parbake.core.reference import Reference
    from parbake.images import workloads
    from parbake.workflows import coverage as workflow

    project = Project(file, [selector])
    hint = "only what parbake baked has a record of its layers"
    _, record = records.locate_record(project.named(selector), project.output(), events, hint=hint)
    named = [Reference.parse(each) for each in images or ()]
    documents = workloads.collect(manifests or (), cluster=from_cluster, context=context)
    if documents:
        found = workloads.images_in(documents)
        named += [each.reference for each in found.images]
    if against and (named or documents):
        raise InputError("--against takes the images of records: name no others", hint="leave out one of the two")
    if against:
        others = [records.locate_record(each, project.output(), events, hint=hint)[1] for each in against]
        covered = workflow.between(record, others)
    else:
        asked = named if images or documents else workflow.own(record)
        covered = workflow.ask(record, asked, project.readable, events)
    pulls = costs.own_pull(pull_rate) if pull_rate else costs.known_pulls()

    def judge() -> None:
        if covered.unknown:
            counted = f"{len(covered.unknown)} of {len(covered.rows)} images could not be looked up"
            raise RegistryError(counted, hint="each row says why; the others are as shown")

    return Result(artefacts.coverage_json(covered, pulls), lambda: artefacts.coverage_text(covered, pulls), then=judge)

"""The commands of fleets: what is to be baked on many machines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from parbake.cli import choices
from parbake.cli.app import Result, command, written
from parbake.cli.commands import application
from parbake.core.errors import FleetIncomplete, InputError
from parbake.core.events import Events

DEFAULT_FILE = Path("fleet.yaml")
FleetPath = Annotated[Path, typer.Option("-f", "--file", help="The file of the fleet.", metavar="FILE")]
Cells = Annotated[
    list[str] | None,
    typer.Option(
        "--cell",
        help="A cell, such as search@amd64 or search; may be given several times. Default: all.",
        metavar="CELL",
        autocompletion=choices.cells,
    ),
]

Store = Annotated[
    str, typer.Option(help="The store that artefacts are shared through, instead of the fleet's.", metavar="ADDRESS")
]

fleets = application(
    "fleet", help="Bake many Bakefiles for several architectures, on many machines.", no_args_is_help=True
)


@command(fleets)
def init(
    folder: Annotated[
        Path, typer.Argument(help="Where to write fleet.yaml, above the Bakefiles.", metavar="FOLDER")
    ] = Path(),
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> Result:
    """Write a commented fleet.yaml for the Bakefiles below a folder."""
    from parbake.fleet import file

    return written([file.write(folder, force=force)])


@command(fleets)
def plan(events: Events, cell: Cells = None, store: Store = "", file: FleetPath = DEFAULT_FILE) -> Result:
    """Show what a run would do, without doing it.

    It plans every cell, and looks for it in the store. The exit code is 3 if some cells could not be planned.
    """
    from parbake.bakefile import store_address
    from parbake.cli.text import fleet as text
    from parbake.fleet import preview
    from parbake.fleet.cells import cells, chosen
    from parbake.fleet.file import load

    fleet, folder = load(file), file.absolute().parent
    if store:
        fleet = fleet.model_copy(update={"store": store_address(store)})
    found = preview.look(fleet, folder, chosen(cells(fleet, folder), tuple(cell or ())), events)
    wrong = sum(each.state == "wrong" for each in found)

    def judge() -> None:
        if wrong:
            raise FleetIncomplete(
                f"{wrong} of {len(found)} cells cannot be planned", hint="each cell says why; the others can be baked"
            )

    return Result(text.previews_json(fleet.name, found), lambda: text.previews_text(found), then=judge)


_KINDS = choices.Choice("--for", "kind", lambda: ("github", "kubernetes"))


@command(fleets)
def matrix(
    kind: Annotated[
        str,
        typer.Option("--for", help="github or kubernetes.", metavar="KIND", autocompletion=_KINDS.complete),
    ],
    cell: Cells = None,
    image: Annotated[
        str, typer.Option(help="For kubernetes: parbake's own image, by its digest.", metavar="REFERENCE")
    ] = "",
    namespace: Annotated[str, typer.Option(help="For kubernetes: where the Jobs run.", metavar="NAME")] = "parbake",
    file: FleetPath = DEFAULT_FILE,
) -> Result:
    """Print the fleet for a CI or cluster that runs it without an engine.

    For github: the `strategy` of a job, a matrix of the cells. For kubernetes: a List of Jobs, for `kubectl create -f
    -`. Both are JSON.
    """
    from parbake.fleet import matrix as export
    from parbake.fleet.cells import cells, chosen
    from parbake.fleet.file import load

    _KINDS.need(kind)
    fleet, folder = load(file), file.absolute().parent
    found = chosen(cells(fleet, folder), tuple(cell or ()))
    if kind == "github":
        document = export.for_github(fleet, found)
    elif not image:
        raise InputError("the Jobs need parbake's image", hint="give it with --image; deploy/Containerfile builds it")
    else:
        document = export.for_kubernetes(fleet, found, image=image, namespace=namespace)
    return Result(document, lambda: json.dumps(document, indent=2))


@command(fleets)
def schema() -> Result:
    """Print the JSON Schema of fleet.yaml, for editors."""
    from parbake.fleet.file import schema as fleet_schema

    document = fleet_schema()
    return Result(document, lambda: json.dumps(document, indent=2))

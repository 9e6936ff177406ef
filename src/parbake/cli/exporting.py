"""The commands that write other tools' files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from parbake.cli.door import DEFAULT_FILE, AsJson, BakefilePath, answer, app, door, opened_events

exporting = typer.Typer(help="Write the files that other tools take.")
app.add_typer(exporting, name="export", no_args_is_help=True)


@exporting.command()
def packer(
    folder: Annotated[Path, typer.Argument(help="Where to write; made when missing.", metavar="FOLDER")],
    file: BakefilePath = DEFAULT_FILE,
    pin: Annotated[
        bool, typer.Option("--pin", help="Ask the registries, and bake the digests that the tags have now.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace existing files.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a folder for Packer that bakes the images into an AMI.

    Its template has the variables IMAGE, AMI_NAME and SOURCE_AMI and takes the others from the Bakefile. The base must
    be an AMI. Without --pin nothing asks a network.
    """
    from parbake import exports

    door.as_json = as_json
    with opened_events("plain") as events:
        written = exports.to_packer(file, folder, events, pin=pin, force=force)
    answer({"written": [str(path) for path in written]}, lambda: "\n".join(f"wrote {path}" for path in written))

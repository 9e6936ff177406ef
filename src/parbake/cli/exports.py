"""The commands that write other tools' files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from parbake.cli.app import (  # fmt: skip
    DEFAULT_FILE,
    AsJson,
    BakefilePath,
    Progress,
    What,
    answer,
    app,
    door,
    opened_events,
    output,
    trust,
)

Folder = Annotated[Path, typer.Argument(help="Where to write; made when missing.", metavar="FOLDER")]
Force = Annotated[bool, typer.Option("--force", help="Replace files; export what is not verified.")]

exporting = typer.Typer(help="Write the files that other tools take.")
app.add_typer(exporting, name="export", no_args_is_help=True)


@exporting.command()
def packer(
    folder: Folder,
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
    from parbake.workflows import export as workflow

    door.as_json = as_json
    with opened_events("plain") as events:
        written = workflow.to_packer(file, folder, events, pin=pin, force=force)
    _tell(written)


@exporting.command()
def gcp(
    what: What,
    folder: Folder,
    file: BakefilePath = DEFAULT_FILE,
    force: Force = False,
    as_json: AsJson = False,
    progress: Progress = "auto",
) -> None:
    """Write an artefact as Google Compute Engine takes it, and a script that makes an image of it.

    The archive holds disk.raw, filled up to whole GiB. The script uses the gcloud CLI; it asks for a bucket.
    """
    from parbake.workflows import export as workflow

    door.as_json = as_json
    with opened_events(progress) as events:
        written = workflow.to_gcp(what, output(file, what), folder, events, force=force, trust=trust(file))
    _tell(written)


@exporting.command()
def gke(
    what: What,
    folder: Folder,
    file: BakefilePath = DEFAULT_FILE,
    force: Force = False,
    as_json: AsJson = False,
    progress: Progress = "auto",
) -> None:
    """Write a volume as a secondary boot disk for GKE, and a script that makes a disk image of it.

    The layout is that of GKE's own disk image builder, with checksums. Needs root; the volume must be ext4.
    """
    from parbake.workflows import export as workflow

    door.as_json = as_json
    with opened_events(progress) as events:
        written = workflow.to_gke(what, output(file, what), folder, events, force=force, trust=trust(file))
    _tell(written)


@exporting.command()
def azure(
    what: What,
    folder: Folder,
    file: BakefilePath = DEFAULT_FILE,
    force: Force = False,
    as_json: AsJson = False,
    progress: Progress = "auto",
) -> None:
    """Write an artefact as a fixed VHD for Azure, and a script that makes a disk of it, and an image.

    The script uses az and azcopy; it asks for a resource group and a region.
    """
    from parbake.workflows import export as workflow

    door.as_json = as_json
    with opened_events(progress) as events:
        written = workflow.to_azure(what, output(file, what), folder, events, force=force, trust=trust(file))
    _tell(written)


def _tell(written: tuple[Path, ...]) -> None:
    answer({"written": [str(path) for path in written]}, lambda: "\n".join(f"wrote {path}" for path in written))

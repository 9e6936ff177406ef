"""The commands that write other tools' files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from parbake.cli import choices
from parbake.cli.app import DEFAULT_FILE, WHICH, BakefilePath, Folder, Result, Selector, command, last_alone, written
from parbake.cli.commands import application
from parbake.cli.project import Project
from parbake.core.events import Events

if TYPE_CHECKING:
    from parbake.workflows.export import Form

Force = Annotated[bool, typer.Option("--force", help="Replace files, and export even if unverified.")]

exporting = application("export", help="Write files for other tools.", no_args_is_help=True)


_PROGRAMS = choices.Choice("--for", "program", lambda: ("kubelet", "nodeadm"))


@command(exporting, progress="plain")
def packer(
    events: Events,
    folder: Annotated[Path, typer.Argument(help="Where to write; created if missing.", metavar="FOLDER")],
    file: BakefilePath = DEFAULT_FILE,
    pin: Annotated[
        bool, typer.Option("--pin", help="Ask the registries, and bake the digests that the tags have now.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace existing files.")] = False,
) -> Result:
    """Write a folder for Packer that bakes the images into an AMI.

    Its template has the variables IMAGE, AMI_NAME and SOURCE_AMI and takes the others from the Bakefile. The base must
    be an AMI. Without --pin it needs no network.
    """
    from parbake.workflows import export as workflow

    return written(workflow.to_packer(file, folder, events, pin=pin, force=force))


@command(exporting, name="kubelet-config", progress="plain")
def kubelet_config(
    events: Events,
    selector: Annotated[
        str,
        typer.Argument(
            help=f"{WHICH}; none means the Bakefile.",
            metavar="RECORD",
            show_default=False,
            autocompletion=choices.records,
        ),
    ] = "",
    file: BakefilePath = DEFAULT_FILE,
    form: Annotated[
        str,
        typer.Option(
            "--for",
            help="The program to write it for: kubelet, or nodeadm (a NodeConfig).",
            metavar="PROGRAM",
            autocompletion=_PROGRAMS.complete,
        ),
    ] = "kubelet",
) -> Result:
    """Print the kubelet configuration that lets baked images start whatever happens to their registry.

    It allows the baked repositories by name (NeverVerifyAllowlistedImages), and verifies all other images as the
    kubelet does by default. Merge it into the nodes' own configuration.
    """
    from parbake.workflows import export as workflow

    _PROGRAMS.need(form)
    project = Project(file, [selector] if selector else [])
    named = workflow.references(file, project.output(), selector, project.trust if selector else (), events)
    found = workflow.kubelet_document(named, cast("Form", form))
    return Result(found, lambda: workflow.kubelet_text(found), foreign=True)


_CLOUDS = {
    "gcp": """Write an artefact in the format of Google Compute Engine, and a script that makes an image of it.

    The archive holds disk.raw, padded to whole GiB. The script uses the gcloud CLI; it asks for a bucket.
    """,
    "gke": """Write a volume as a secondary boot disk for GKE, and a script that makes a disk image of it.

    The layout is that of GKE's own disk image builder, with checksums. Needs root; the volume must be ext4.
    """,
    "azure": """Write an artefact as a fixed VHD for Azure, and a script that makes a disk of it, and an image.

    The script uses az and azcopy; it asks for a resource group and a region.
    """,
}
"""The clouds that artefacts are written for, with the help of each command."""


def _add(cloud: str) -> None:
    @command(exporting, name=cloud, help=_CLOUDS[cloud])
    def export(
        events: Events,
        selector: Selector = "",
        folder: Folder = None,
        file: BakefilePath = DEFAULT_FILE,
        force: Force = False,
    ) -> Result:
        from parbake.workflows import export as workflow

        to_cloud = {"gcp": workflow.to_gcp, "gke": workflow.to_gke, "azure": workflow.to_azure}[cloud]
        selector, to = last_alone(selector, folder, "FOLDER")
        project = Project(file, [selector], events=events)
        named, output = project.named(selector), project.output()
        options = workflow.ExportOptions(force, project.trust)
        return written(to_cloud(named, output, Path(to), events, options))


for _cloud in _CLOUDS:
    _add(_cloud)

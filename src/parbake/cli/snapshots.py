"""The commands about snapshots of clouds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from parbake.cli.app import Result, command
from parbake.core.events import Events


@command()
def fetch(
    events: Events,
    what: Annotated[str, typer.Argument(help="The id of a snapshot or of an AMI.", metavar="SNAPSHOT|AMI")],
    target: Annotated[Path, typer.Argument(help="The file to write: a raw, sparse disk.", metavar="FILE")],
    region: Annotated[str, typer.Option(help="The region; that of the AWS configuration if left out.")] = "",
) -> Result:
    """Read an EBS snapshot, or the root disk of an AMI, into a file.

    Every block is checked. Public snapshots of other accounts have to be copied first.
    """
    from parbake.aws import ebs
    from parbake.core.units import human_bytes

    fetched = ebs.fetch(what, target, events, region=region)
    size, allocated = fetched.path.stat().st_size, fetched.path.stat().st_blocks * 512
    document = {
        "path": str(fetched.path),
        "snapshot": fetched.snapshot,
        "size": size,
        "allocated": allocated,
        "blocks": {"count": len(fetched.blocks.blocks), "digest": fetched.blocks.digest()},
    }
    size_text = f"{human_bytes(size)}, {human_bytes(allocated)} on disk"
    return Result(document, lambda: f"{fetched.path}: {fetched.snapshot}, {size_text}")

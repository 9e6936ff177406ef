"""The commands about snapshots of clouds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from parbake.cli.app import DEFAULT_FILE, BakefilePath, Result, Selector, command, last_alone
from parbake.cli.project import CopyRoles, Store, needed, overrides
from parbake.core.events import Events


@command()
def fetch(
    events: Events,
    what: Annotated[str, typer.Argument(help="The id of a snapshot or of an AMI.", metavar="SNAPSHOT|AMI")],
    target: Annotated[Path, typer.Argument(help="The file to write: a raw, sparse disk.", metavar="FILE")],
    region: Annotated[
        str, typer.Option(help="The region; that of the AWS configuration if left out.", metavar="REGION")
    ] = "",
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


@command()
def copy(
    events: Events,
    selector: Selector = "",
    region: Annotated[
        str | None,
        typer.Argument(
            help="The region to copy to. One word alone is the region.", metavar="REGION", show_default=False
        ),
    ] = None,
    role: Annotated[
        str,
        typer.Option(
            help="The role, perhaps of another account, that the copy belongs to. Default: the Bakefile's.",
            metavar="ARN",
        ),
    ] = "",
    share_with: Annotated[
        list[str] | None,
        typer.Option(
            "--share-with",
            help="Who may launch it in that region: an account, an organisation or a unit; may be given several times.",
            metavar="ACCOUNT",
        ),
    ] = None,
    copy_role: CopyRoles = None,
    store: Store = "",
    file: BakefilePath = DEFAULT_FILE,
) -> Result:
    """Copy an AMI or a snapshot to another region, and share it there.

    A bake copies and shares as `aws.copy_to` and `aws.share_with` of the Bakefile say; this adds one more place, with
    the same settings, and notes it in the record. To finish a run that was killed, run it again.
    """
    from parbake.workflows import copies as workflow

    selector, to = last_alone(selector, region, "REGION")
    where = workflow.Where(to, role, tuple(share_with or ()))
    with needed("`copy` takes the account, its role and the encryption of the copy from it"):
        done = workflow.copy(file, selector, where, events, overrides("", store, copy_role))
    there = done.there
    document = {
        "artefact": done.artefact,
        "region": done.region,
        "image": there.image or None,
        "snapshots": [each.id for each in there.snapshots],
        "account": there.account or None,
        "shared_with": list(there.shared_with),
        "changed": done.changed,
    }
    said = f"{done.artefact}: {there.image or there.snapshots[0].id} in {done.region}"
    shares = f", shared with {', '.join(there.shared_with)}" if there.shared_with else ""
    return Result(document, lambda: said + shares + ("" if done.changed else " (as before)"))

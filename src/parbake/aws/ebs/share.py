"""What becomes of a volume's snapshot: copies in other regions, accounts that may use it; that it stays.

Every step is "make sure that", so that a run which was cut off is finished by the next. Sources: EC2 API reference,
CopySnapshot, ModifySnapshotAttribute.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from parbake import aws
from parbake.aws import Stamp
from parbake.aws.ebs.upload import look
from parbake.aws.tags import ARTEFACT, EXPIRY, MANAGED, VERIFIED
from parbake.core.events import Events

SOURCE_TAG = "parbake:source"
"""The tag of a copy that names the snapshot which it was made of."""
_WAIT = 6 * 3600.0  # seconds: AWS copies a large snapshot for hours


def copy(
    snapshot: str,
    source: str,
    region: str,
    *,
    stamp: Stamp,
    name: str,
    encrypted: bool = False,
    kms_key: str = "",
    minutes: int = 0,
    events: Events,
) -> str:
    """Make sure that a region has a completed copy of a region's snapshot; return its id.

    A copy is encrypted as its source is, or else where ``encrypted`` says so, with ``kms_key`` of that region (empty:
    the account's key for EBS). ``minutes`` is within how many AWS is to be done (0: whenever it has). AWS looks at the
    key while it copies, so that a copy may fail late; one that failed before is removed. Where the region's role is of
    another account, the copy is that account's, and the snapshot is shared with it. Raises AwsError, AwsNoAccess (of a
    key), DeadlineExceeded.
    """
    ec2 = aws.client("ec2", region)
    filters = [*aws.mine(key=stamp.key), {"Name": f"tag:{SOURCE_TAG}", "Values": [snapshot]}]
    found = list(ec2.pages("describe_snapshots", "Snapshots", OwnerIds=["self"], Filters=filters))
    usable = [str(each["SnapshotId"]) for each in found if each["State"] in {"pending", "completed"}]
    for each in found:
        if each["State"] == "error":
            ec2.delete_snapshot(SnapshotId=each["SnapshotId"])
    if usable:
        made = usable[0]
    else:
        if other := aws.stranger(region, source):
            share(snapshot, source, [other])  # AWS copies what the account that asks may read
        tags = {**stamp.tags("snapshot", name=name), SOURCE_TAG: snapshot}
        wanted: dict[str, Any] = {"TagSpecifications": aws.specifications(tags, "snapshot")}
        if minutes:
            wanted["CompletionDurationMinutes"] = minutes
        if encrypted or kms_key:
            wanted |= {"Encrypted": True, **({"KmsKeyId": kms_key} if kms_key else {})}
        made = str(
            ec2.copy_snapshot(SourceRegion=source, SourceSnapshotId=snapshot, Description=f"parbake {name}", **wanted)[
                "SnapshotId"
            ]
        )
    aws.wait(
        f"copy {made} in {region}",
        lambda: look(made, region),
        seconds=_WAIT,
        events=events,
        hint="run the same command again: AWS keeps copying in the meantime",
    )
    return made


def share(snapshot: str, region: str, accounts: Iterable[str]) -> None:
    """Let accounts make volumes from a snapshot."""
    aws.client("ec2", region).modify_snapshot_attribute(
        SnapshotId=snapshot, Attribute="createVolumePermission", OperationType="add", UserIds=list(accounts)
    )


def mark_permanent(snapshot: str, region: str, *, verified: str = "", events: Events) -> None:
    """Tag a snapshot as what the run was for: no clean-up takes it any more. ``verified`` is when it was."""
    ec2 = aws.client("ec2", region)
    tags = {MANAGED: ARTEFACT, **({VERIFIED: verified} if verified else {})}
    aws.mark(ec2, [snapshot], tags, events)
    ec2.delete_tags(Resources=[snapshot], Tags=[{"Key": EXPIRY}])

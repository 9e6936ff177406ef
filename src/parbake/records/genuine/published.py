"""What AWS says of what a record says to lie there: whether it is there, and of the record's own bake.

Tags tell: parbake writes the content key on all that it makes, and the time of a verification that passed on what did.
Only an account's own tags are shown to it (EC2 API reference, DescribeImages), so that nobody else's image has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from parbake.core.errors import AwsNoAccess, EnvironmentProblem, VerificationFailed
from parbake.core.events import Events
from parbake.core.model import Published
from parbake.records.record import Record

_SIGN = "signed records (`sign`, `trust`) need no such check"


def need_published(record: Record, region: str, events: Events, *, signed: bool) -> None:
    """Raise VerificationFailed unless what a record says of a region is there, and was made by its bake.

    A ``signed`` record, which a trusted key vouches for, may also be of another account, or asked about by nobody:
    whose tags are not shown, and what may not be looked at, is believed then. Raises AwsNoAccess, AwsError.
    """
    there = record.published[region]
    try:
        problem = doubt(record, region, stranger=signed, verified=True)
    except (AwsNoAccess, EnvironmentProblem) as error:
        if not signed:
            raise type(error)(
                f"{record.artefact} cannot be compared with AWS: {error.message}",
                hint=f"let it describe images and snapshots (`parbake iam`); {_SIGN}",
            ) from error
        events.note(f"{record.artefact}: not compared with AWS ({error.message}); its signature counts")
        return
    if problem:
        raise VerificationFailed(
            f"the record of {record.artefact} cannot be trusted: {name(there)} in {region} {problem}",
            hint="somebody has changed the record, or what it names: `parbake bake` writes a correct one",
        )


def name(there: Published) -> str:
    """Return what names an artefact in a region."""
    return there.image or (there.snapshots[0].id if there.snapshots else "nothing")


def doubt(record: Record, region: str, *, stranger: bool = False, verified: bool = False) -> str:
    """Return what speaks against what a record says of a region; empty where nothing does.

    ``stranger``: what shows no tags may be another account's. ``verified``: the tags must also say that a verification
    passed, where the record says so. Raises AwsError, AwsNoAccess, EnvironmentProblem.
    """
    from parbake.aws import images  # loads only where AWS is asked

    there = record.published[region]
    snapshots = [each.id for each in there.snapshots]
    found = images.described_all(region, there.image, snapshots)
    if not found:
        return "is not there"
    if there.image:
        [image] = found
        mapped = {each.get("Ebs", {}).get("SnapshotId") for each in image.get("BlockDeviceMappings", [])} - {None}
        if set(snapshots) - mapped:
            return f"does not have the snapshots {', '.join(snapshots)}"
    doubts = (_doubt_of_one(record, each, there.account, stranger=stranger, verified=verified) for each in found)
    return next(filter(None, doubts), "")


def _doubt_of_one(record: Record, described: Mapping[str, Any], account: str, *, stranger: bool, verified: bool) -> str:
    """Return what speaks against one image or snapshot, as EC2 describes it."""
    from parbake import aws

    tags, owner = aws.as_dict(described), str(described.get("OwnerId") or "")
    if account and owner and owner != account:
        return f"belongs to the account {owner}, not to {account}"
    if aws.KEY not in tags:
        return "" if stranger else f"has no tag {aws.KEY}: no bake of this account made it ({_SIGN})"
    if tags[aws.KEY] != record.key:
        return f"is tagged as made of another plan ({aws.KEY}={tags[aws.KEY][:12]}…)"
    if tags.get(aws.MANAGED) != aws.ARTEFACT:
        return "is tagged as not finished"
    if verified and record.verified and aws.VERIFIED not in tags:
        return f"has no tag {aws.VERIFIED}, although the record says that its verification passed"
    return ""

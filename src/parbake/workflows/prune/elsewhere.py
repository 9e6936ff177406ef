"""A last look before an AMI is removed: who else uses it, in ways that the places of ``references`` do not show.

Asked for the few images alone that are about to go. EC2 knows which of one's own resources refer to an image, those of
EC2 Image Builder too, and makes a report of who uses a shared one in other accounts; the report takes a while, so that
the run after this one reads it. What may not be asked keeps the image.
Sources: EC2 API reference, DescribeImageReferences, CreateImageUsageReport, DescribeImageUsageReports (a report stays
for 30 days), DescribeImageUsageReportEntries, DescribeImageAttribute (``launchPermission``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from parbake.aws import Client, token
from parbake.core.errors import AwsNoAccess, AwsNotFound
from parbake.workflows.prune.decide import Decision

_FRESH = timedelta(days=1)  # an older report says nothing of today
# Parameters are read by their names (``references``): this call wants to read every one, and they may hold secrets.
_KINDS = ("ec2:Instance", "ec2:LaunchTemplate", "imagebuilder:ImageRecipe", "imagebuilder:ContainerRecipe")


def confirm(
    decisions: Iterable[Decision], client_of: Callable[[str], Client], now: datetime, *, dry_run: bool
) -> tuple[Decision, ...]:
    """Look once more at each image that is to be removed; ``client_of`` returns EC2's client of a region.

    Raises AwsError, but not for want of permission: then the image stays.
    """
    return tuple(
        _confirmed(each, client_of(each.item.region), now, dry_run=dry_run)
        if each.action == "remove" and each.item.id.startswith("ami-")
        else each
        for each in decisions
    )


def _confirmed(decision: Decision, ec2: Client, now: datetime, *, dry_run: bool) -> Decision:
    image = decision.item.id
    try:
        if user := _referred_to(ec2, image):
            return replace(decision, action="keep", reason=f"used by {user}")
        if shares := _shared_with(ec2, image):
            return _by_report(decision, ec2, shares, now, dry_run=dry_run)
    except AwsNotFound:  # gone since it was listed
        return decision
    except AwsNoAccess as error:
        hint = "`parbake iam` prints a policy that lets it (prune)"
        return replace(decision, action="keep", reason=f"no right to ask who uses it: {error.message}; {hint}")
    return decision


def _referred_to(ec2: Client, image: str) -> str:
    """Return what of this account refers to an image, empty for nothing."""
    kinds = [{"ResourceType": kind} for kind in _KINDS]
    found = ec2.pages("describe_image_references", "ImageReferences", ImageIds=[image], ResourceTypes=kinds)
    first: Mapping[str, Any] = next(iter(found), {})
    return f"{first['ResourceType']} {first['Arn']}" if first else ""


def _shared_with(ec2: Client, image: str) -> str:
    """Return who else may launch an image, empty for nobody."""
    found = ec2.describe_image_attribute(ImageId=image, Attribute="launchPermission")["LaunchPermissions"]
    names = (str(value) for each in found for value in each.values())
    return ", ".join(sorted(names))


def _by_report(decision: Decision, ec2: Client, shares: str, now: datetime, *, dry_run: bool) -> Decision:
    """Judge by the newest report on the use in other accounts; ask for one where there is none of today."""
    image = decision.item.id
    reports = list(ec2.pages("describe_image_usage_reports", "ImageUsageReports", ImageIds=[image]))
    recent = [each for each in reports if now - _time(each["CreationTime"]) < _FRESH and each["State"] != "error"]
    newest: Mapping[str, Any] = max(recent, key=lambda each: _time(each["CreationTime"]), default={})
    if not newest and dry_run:
        return replace(decision, action="wait", reason=f"shared with {shares}: the next run asks EC2 who uses it there")
    if not newest:
        ec2.create_image_usage_report(
            ImageId=image,
            ResourceTypes=[{"ResourceType": kind} for kind in _KINDS],
            ClientToken=token("usage", image, f"{now:%Y-%m-%dT%H}"),
        )
    if not newest or newest["State"] == "pending":
        reason = f"shared with {shares}: EC2 is finding out who uses it there, and the next run knows"
        return replace(decision, action="wait", reason=reason)
    entries = ec2.pages(
        "describe_image_usage_report_entries", "ImageUsageReportEntries", ReportIds=[newest["ReportId"]]
    )
    used = [each for each in entries if int(each.get("UsageCount", 0))]
    if not used:
        return decision
    told = ", ".join(f"{each['UsageCount']} {each['ResourceType']} of account {each['AccountId']}" for each in used[:3])
    more = f" and {len(used) - 3} more" if len(used) > 3 else ""
    return replace(decision, action="keep", reason=f"used by {told}{more}")


def _time(value: datetime | str) -> datetime:
    found = value if isinstance(value, datetime) else datetime.fromisoformat(value)
    return found if found.tzinfo else found.replace(tzinfo=UTC)

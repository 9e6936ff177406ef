"""Make an AMI of a snapshot. RegisterImage's defaults are wrong for today's nodes.

Source: EC2 API reference, RegisterImage.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from parbake import aws
from parbake.aws import Stamp
from parbake.aws.ebs.traits import ROOT_DEVICE, Traits
from parbake.aws.images import architecture
from parbake.core.errors import AwsError
from parbake.core.events import Events
from parbake.core.model import Platform
from parbake.machine.disk import partitions

# The types of a GPT's partitions (UEFI specification, table 5-7; GRUB manual, "BIOS installation"), and of an MBR's.
_EFI_SYSTEM = {"c12a7328-f81f-11d2-ba4b-00a0c93ec93b", "ef"}
_BIOS_BOOT = {"21686148-6449-6e6f-744e-656564454649"}
_WAIT = 1800.0  # seconds


def boot_mode(raw: Path, platform: Platform) -> str:
    """Return how a disk can boot, in EC2's words: ``uefi``, ``uefi-preferred`` (both ways) or ``legacy-bios``."""
    if platform.architecture == "arm64":
        return "uefi"  # Graviton knows no other
    types = {part.type.lower() for part in partitions(raw)}
    if not types & _EFI_SYSTEM:
        return "legacy-bios"
    # An MBR has room for a boot loader before its first partition.
    return "uefi-preferred" if types & _BIOS_BOOT or "ef" in types else "uefi"


def register(
    snapshot: str,
    *,
    name: str,
    platform: Platform,
    traits: Traits,
    stamp: Stamp,
    events: Events,
    region: str = "",
) -> str:
    """Make sure that a snapshot is the root disk of an available AMI of this name; return the AMI's id.

    It is tagged as temporary: whoever is done with it says so. ``name`` is unique in an account and region.
    ``traits`` is how it starts; NitroTPM holds where that is by UEFI alone. Raises AwsError (also when the name belongs
    to another snapshot).
    """
    ec2 = aws.client("ec2", region)
    found = ec2.describe_images(Owners=["self"], Filters=[{"Name": "name", "Values": [name]}])["Images"]
    ours = [image for image in found if _root(image) == snapshot and image.get("State") != "failed"]
    request: dict[str, Any] = {
        "Name": name,
        "Description": f"parbake {stamp.name}"[:255],
        "Architecture": architecture(platform),
        "VirtualizationType": "hvm",
        "ImdsSupport": "v2.0",
        **traits.request(snapshot),
        "TagSpecifications": aws.specifications(stamp.tags("ami", name=name), "image"),
    }
    image = str(ours[0]["ImageId"]) if ours else _register(ec2, request, snapshot, events)
    aws.wait(f"AMI {image}", lambda: _look(ec2, image), seconds=_WAIT, events=events)
    return image


def _register(ec2: aws.Client, request: dict[str, Any], snapshot: str, events: Events) -> str:
    """Register an AMI; one of that name and snapshot that no list showed yet is taken."""
    try:
        return str(ec2.register_image(**request)["ImageId"])
    except AwsError as error:
        if error.code != "InvalidAMIName.Duplicate":
            raise
        found = aws.named(ec2, request["Name"], events)
        if found and _root(found) == snapshot:
            return str(found["ImageId"])
        hint = (
            "an AMI of that name exists and is made from another snapshot: rename it, or change `name` in the Bakefile"
        )
        raise AwsError(error.message, code=error.code, hint=hint) from error


def _root(image: Mapping[str, Any]) -> str:
    for mapping in image.get("BlockDeviceMappings", ()):
        if mapping.get("DeviceName") == image.get("RootDeviceName", ROOT_DEVICE):
            return str(mapping.get("Ebs", {}).get("SnapshotId", ""))
    return ""


def _look(ec2: aws.Client, image: str) -> aws.Observation:
    found = ec2.describe_images(ImageIds=[image])["Images"]
    state = str(found[0]["State"]) if found else "not known yet"
    reason = found[0].get("StateReason", {}).get("Message", "") if found else ""
    return aws.Observation(
        state == "available", state, failed=f"AWS says {reason or state}" if state == "failed" else ""
    )

"""What an AMI says of itself, and what of that goes into the AMI that is registered of a new root disk.

RegisterImage takes over nothing by itself: nodes look for their root under the device's name, and boot as the AMI says.
Only billing data cannot be taken along: AWS keeps it with the AMI and its snapshots, and an AMI without it runs unpaid
software. Sources: EC2 API reference, RegisterImage ("check the PlatformDetails field … discard the AMI") and
DescribeImageAttribute (``uefiData``); EC2 user guide, "Understand AMI billing information" and "Enable a Linux AMI for
NitroTPM" (boot mode ``uefi``; such an AMI starts on instance types with NitroTPM alone).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

from parbake import aws
from parbake.aws.images import SourceImage, described
from parbake.core.errors import AwsError, AwsNotFound, BadBase
from parbake.core.events import Events

ROOT_DEVICE = "/dev/xvda"
_FREE = "Linux/UNIX"  # the platform that AWS bills nothing for besides the instance
# What RegisterImage takes of a mapping; what is made from a snapshot is encrypted as the snapshot is.
_OF_DISKS = ("DeleteOnTermination", "Iops", "SnapshotId", "Throughput", "VolumeSize", "VolumeType")


@dataclass(frozen=True, slots=True)
class Traits:
    """How an AMI starts: in RegisterImage's words. ``disks`` are the mappings besides the root's.

    ``boot`` is empty where the AMI says nothing. ``uefi`` is its store of UEFI variables (Secure Boot's keys).
    """

    root: str = ROOT_DEVICE
    boot: str = ""
    tpm: bool = False
    ena: bool = True
    sriov: str = ""
    uefi: str = field(default="", repr=False)
    disks: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def read(cls, stored: Mapping[str, Any]) -> Self:
        """Return what ``to_json`` wrote. Raises TypeError, KeyError."""
        return cls(**{**stored, "disks": tuple(stored["disks"])})

    def to_json(self) -> dict[str, Any]:
        """Return the traits as plain data."""
        return asdict(self)

    def request(self, snapshot: str) -> dict[str, Any]:
        """Return what RegisterImage is asked for an AMI whose root disk is a snapshot."""
        disk = {"SnapshotId": snapshot, "VolumeType": "gp3", "DeleteOnTermination": True}
        wanted: dict[str, Any] = {
            "RootDeviceName": self.root,
            "BlockDeviceMappings": [{"DeviceName": self.root, "Ebs": disk}, *map(dict, self.disks)],
            "EnaSupport": self.ena,
            "BootMode": self.boot,
            "SriovNetSupport": self.sriov,
            "UefiData": self.uefi,
            "TpmSupport": "v2.0" if self.tpm and self.boot == "uefi" else "",
        }
        return {name: value for name, value in wanted.items() if value}

    def snapshots(self) -> tuple[str, ...]:
        """Return the snapshots of the further disks."""
        return tuple(str(disk["Ebs"]["SnapshotId"]) for disk in self.disks if disk.get("Ebs", {}).get("SnapshotId"))

    def with_snapshots(self, others: Mapping[str, str]) -> Self:
        """Return the disks with other snapshots in the place of some."""

        def moved(disk: Mapping[str, Any]) -> Mapping[str, Any]:
            snapshot = disk.get("Ebs", {}).get("SnapshotId", "")
            return {**disk, "Ebs": {**disk["Ebs"], "SnapshotId": others[snapshot]}} if snapshot in others else disk

        return replace(self, disks=tuple(map(moved, self.disks)))


def traits_of(ami: str, region: str, events: Events) -> Traits:
    """Ask what an AMI says of itself. Raises AwsNotFound, AwsError."""
    ec2 = aws.client("ec2", region)
    images = ec2.describe_images(ImageIds=[ami])["Images"]
    if not images:
        raise AwsNotFound(f"there is no AMI {ami} in {ec2.region}")
    image, boot = images[0], str(images[0].get("BootMode", ""))
    root = described(image, ec2.region).root_device or ROOT_DEVICE
    return Traits(
        root=root,
        boot=boot,
        tpm=image.get("TpmSupport") == "v2.0",
        ena=bool(image.get("EnaSupport", True)),
        sriov=str(image.get("SriovNetSupport") or ""),
        uefi=_uefi_data(ec2, ami, events) if "uefi" in boot else "",
        disks=tuple(_further(image, root)),
    )


def _uefi_data(ec2: aws.Client, ami: str, events: Events) -> str:
    try:
        found = ec2.describe_image_attribute(ImageId=ami, Attribute="uefiData")
    except AwsError as error:  # AWS tells it of one's own AMIs
        events.note(
            f"the UEFI variables of {ami} cannot be read ({error.code or error.message}): where its Secure Boot has "
            "keys of its own, bake with `builder: ec2`"
        )
        return ""
    return str(found.get("UefiData", {}).get("Value") or "")


def _further(image: Mapping[str, Any], root: str) -> Iterator[Mapping[str, Any]]:
    for mapping in image.get("BlockDeviceMappings", ()):
        if mapping["DeviceName"] == root:
            continue
        if "Ebs" not in mapping:  # an instance store's, or none
            yield mapping
            continue
        ebs = {name: mapping["Ebs"][name] for name in _OF_DISKS if name in mapping["Ebs"]}
        if "SnapshotId" not in ebs and mapping["Ebs"].get("Encrypted"):
            ebs["Encrypted"] = True
        yield {"DeviceName": mapping["DeviceName"], "Ebs": ebs}


def billing(image: SourceImage) -> str:
    """Return what AWS bills an AMI for besides the instance; empty for nothing."""
    platform, codes = str(image.raw.get("PlatformDetails") or _FREE), image.raw.get("ProductCodes") or []
    if codes:
        return f"product code {codes[0].get('ProductCodeId')}"
    return platform if platform != _FREE else ""


def refuse_billed(image: SourceImage) -> None:
    """Refuse an AMI whose billing data would be lost. Raises BadBase."""
    sold = billing(image)
    if not sold:
        return
    raise BadBase(
        f"AWS bills {image.id} ({image.name or 'no name'}) for {sold}, and an AMI registered from a snapshot "
        "loses that",
        hint="write `builder: ec2`: an instance of the base bakes, and its AMI keeps the billing data",
    )

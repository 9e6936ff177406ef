"""Find the AMI to bake onto: by id, by name filter (newest wins), or by an SSM public parameter.

Sources: EC2 API, DescribeImages; the names of EKS's, Bottlerocket's and Canonical's public parameters are in
``bases.AmiSource``.
"""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from parbake.aws.clients import Client, client
from parbake.aws.tags import as_dict, as_list
from parbake.aws.waiters import UNKNOWN_SECONDS, Observation, wait
from parbake.core.errors import AwsNotFound, BadBase, DeadlineExceeded
from parbake.core.events import Events
from parbake.core.families import BOTTLEROCKET, family_of_ami
from parbake.core.model import GIB, Platform, Variant

if TYPE_CHECKING:
    from parbake.bakefile.bases import AmiSource

# EC2's names of architectures.
_ARCHITECTURES = {"amd64": "x86_64", "arm64": "arm64"}
_MOST_SHOWN = 5
# Names of Amazon's AMIs for EKS nodes, such as amazon-eks-node-al2023-x86_64-nvidia-1.36-v20260701.
_EKS = re.compile(r"amazon-eks-node-al2023-[^-]+-(standard|nvidia|neuron)-")


@dataclass(frozen=True, slots=True)
class SourceImage:
    """An AMI as DescribeImages tells of it. ``size`` is that of the root volume in bytes; ``raw`` is all of it."""

    id: str
    name: str
    region: str
    architecture: str
    root_device: str
    size: int
    snapshots: tuple[str, ...] = ()
    raw: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @property
    def is_bottlerocket(self) -> bool:
        """Whether this is Bottlerocket, which has no shell for a guest script."""
        return family_of_ami(self.name) == BOTTLEROCKET

    @property
    def variant(self) -> Variant:
        """Which variant of EKS's images this is, by its name; empty for others, and for what is for two of them."""
        found = _EKS.match(self.name)
        return cast(Variant, found[1]) if found else ""

    def size_of(self, device: str) -> int:
        """Return how large the AMI makes a disk at least, in bytes (0: it has none there)."""
        mappings = self.raw.get("BlockDeviceMappings", [])
        return (
            max((each["Ebs"].get("VolumeSize", 0) for each in mappings if each["DeviceName"] == device), default=0)
            * GIB
        )


def guard_of(image: Mapping[str, Any]) -> str:
    """Return how a described AMI is protected from deregistration, in words; empty: it is not.

    With a cool-down it holds for 24 hours after it was disabled (EC2 API reference,
    EnableImageDeregistrationProtection), which DescribeImages does not call ``disabled`` yet.
    """
    setting = str(image.get("DeregistrationProtection") or "disabled")
    return "" if setting == "disabled" else f"protected from deregistration ({setting})"


def architecture_of(name: str) -> str:
    """Return Go's word for an architecture that EC2 names; what has none stays as it is."""
    return next((word for word, named in _ARCHITECTURES.items() if named == name), name)


def architecture(platform: Platform) -> str:
    """Return EC2's name of a platform's architecture; raises BadBase for one that EC2 does not have."""
    try:
        return _ARCHITECTURES[platform.architecture]
    except KeyError:
        raise BadBase(f"EC2 has no instances for {platform}", hint="write linux/amd64 or linux/arm64") from None


def find_source(source: AmiSource, platform: Platform, region: str = "") -> SourceImage:
    """Return the AMI that a Bakefile's ``base`` names, checked to be usable for the platform.

    Raises AwsNotFound (with the nearest names), BadBase (another architecture, a root that is not an EBS volume).
    """
    ec2 = client("ec2", region)
    wanted = architecture(platform)
    if source.name:
        found = _by_filter(ec2, source, wanted)
    else:
        ami = source.id or _by_parameter(source.parameter(platform), ec2.region)
        images = ec2.describe_images(ImageIds=[ami])["Images"]
        if not images:
            raise AwsNotFound(f"there is no AMI {ami} in {ec2.region}")
        found = images[0]
    return described(found, ec2.region, wanted)


def described(image: Mapping[str, Any], region: str, wanted: str = "") -> SourceImage:
    """Check an image as DescribeImages returns it and return what parbake needs of it."""
    what = f"{image['ImageId']} ({image.get('Name', 'no name')})"
    if wanted and image.get("Architecture") != wanted:
        raise BadBase(
            f"the AMI {what} is for {image.get('Architecture')}, and the Bakefile's platform needs {wanted}",
            hint="change `platform` in the Bakefile, or name an AMI for it",
        )
    if image.get("RootDeviceType", "ebs") != "ebs":
        raise BadBase(f"the root of the AMI {what} is not an EBS volume", hint="name an AMI that is backed by EBS")
    if image.get("State", "available") != "available":
        raise BadBase(f"the AMI {what} is {image['State']}", hint="name an AMI that is available")
    volumes = {each["DeviceName"]: each["Ebs"] for each in image.get("BlockDeviceMappings", []) if "Ebs" in each}
    root = image.get("RootDeviceName") or next(iter(volumes), "")
    ordered = sorted(volumes, key=lambda name: (name != root, name))
    return SourceImage(
        id=image["ImageId"],
        name=image.get("Name", ""),
        region=region,
        architecture=image.get("Architecture", wanted),
        root_device=root,
        size=int(volumes.get(root, {}).get("VolumeSize", 0)) * GIB,
        snapshots=tuple(volumes[name]["SnapshotId"] for name in ordered if "SnapshotId" in volumes[name]),
        raw=image,
    )


def described_all(region: str, image: str, snapshots: Iterable[str] = ()) -> tuple[Mapping[str, Any], ...]:
    """Return an AMI (or, without one, every one of the snapshots) as EC2 describes it; nothing where one is missing."""
    ec2 = client("ec2", region)
    try:
        if image:
            return tuple(ec2.describe_images(ImageIds=[image])["Images"])
        ids = list(snapshots)
        found = ec2.describe_snapshots(SnapshotIds=ids)["Snapshots"] if ids else []
        return tuple(found) if len(found) == len(ids) else ()
    except AwsNotFound:
        return ()


def named(ec2: Client, name: str, events: Events) -> Mapping[str, Any]:
    """Return the account's own AMI of a name that is taken: it may be too new to be in a list. {}: there is none."""

    def look() -> Observation:
        filters = [{"Name": "name", "Values": [name]}]
        found = list(ec2.pages("describe_images", "Images", Owners=["self"], Filters=filters))
        return Observation(bool(found), value=found[0] if found else {})

    try:
        found: Mapping[str, Any] = wait(f"The AMI {name}", look, seconds=UNKNOWN_SECONDS, events=events)
    except DeadlineExceeded:
        return {}
    return found


def mark(ec2: Client, ids: Sequence[str], tags: Mapping[str, str], events: Events) -> None:
    """Tag images and snapshots, and wait until they are seen to be tagged so.

    Until then a clean-up would go by the old tags. Raises DeadlineExceeded, AwsError.
    """
    ec2.create_tags(Resources=list(ids), Tags=as_list(tags))

    def look() -> Observation:
        images = [each for each in ids if each.startswith("ami-")]
        snapshots = [each for each in ids if not each.startswith("ami-")]
        found = ec2.describe_images(ImageIds=images)["Images"] if images else []
        found += ec2.describe_snapshots(SnapshotIds=snapshots)["Snapshots"] if snapshots else []
        return Observation(len(found) == len(ids) and all(tags.items() <= as_dict(each).items() for each in found))

    hint = "AWS does not show the tags yet: run the same command again"
    wait(f"The tags of {ids[0]}", look, seconds=UNKNOWN_SECONDS, events=events, hint=hint)


def _by_parameter(name: str, region: str) -> str:
    try:
        return str(client("ssm", region).get_parameter(Name=name)["Parameter"]["Value"])
    except AwsNotFound as error:
        hint = "check the Kubernetes version, the GPU and the platform: not every combination is published"
        raise AwsNotFound(f"there is no SSM parameter {name} in {region}", code=error.code, hint=hint) from error


def _by_filter(ec2: Client, source: AmiSource, wanted: str) -> Mapping[str, Any]:
    owners = [source.owner or "amazon"]
    filters = [
        {"Name": "name", "Values": [source.name]},
        {"Name": "architecture", "Values": [source.architecture or wanted]},
        {"Name": "state", "Values": ["available"]},
    ]
    found = list(ec2.pages("describe_images", "Images", Owners=owners, Filters=filters))
    # The service's filter knows * and ?; a second look here costs nothing and keeps a stranger's oddity out.
    fitting = [image for image in found if fnmatch.fnmatchcase(image.get("Name", ""), source.name)]
    if fitting:
        return max(fitting, key=lambda image: (image.get("CreationDate", ""), image["ImageId"]))
    about = f"owner {owners[0]}, {source.architecture or wanted}"
    raise AwsNotFound(
        f"no AMI in {ec2.region} matches the name {source.name!r} ({about}){nearest(ec2, source, owners)}",
        hint="correct `base.ami_filter`; * and ? are wildcards, the owner is an account, `amazon` or `self`",
    )


def nearest(ec2: Client, source: AmiSource, owners: list[str]) -> str:
    """Return a sentence with the names that come closest to a filter that found nothing."""
    head = source.name.split("*")[0].split("?")[0]
    for length in (len(head), len(head) // 2, 3):
        if not head[:length]:
            continue
        filters = [{"Name": "name", "Values": [f"{head[:length]}*"]}]
        images = list(ec2.pages("describe_images", "Images", Owners=owners, Filters=filters))
        if images:
            names = _closest(source.name, (image.get("Name", "") for image in images))
            return f"; nearest: {', '.join(names)}"
    return "; this owner has no AMI of a similar name"


def _closest(wanted: str, names: Iterable[str]) -> list[str]:
    unique = sorted(set(names), reverse=True)
    return difflib.get_close_matches(wanted, unique, n=_MOST_SHOWN, cutoff=0.0) or unique[:_MOST_SHOWN]

"""Launch templates of EC2: what a new version says, and numbered versions as the way back. Shared by groups of nodes.

Facts: EC2 API reference, CreateLaunchTemplateVersion: a mapping that is given replaces all that were there, and
snapshots are kept only when they are given. Versions are immutable, so that a number says for ever what nodes run.
"""

from __future__ import annotations

import base64
import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from parbake.aws import Client, client, token, when_known
from parbake.core.errors import AwsNotFound, InputError
from parbake.rollouts import userdata
from parbake.rollouts.protocol import OWNER, History, Identity, Offer, TargetState, gibibytes, names_in

RESOLVED = "resolve:ssm:"
"""How a launch template names the parameter that holds its image, and perhaps a version or label of it."""

PREVIOUS, LEFT, CURRENT = f"{OWNER}:previous", f"{OWNER}:left", f"{OWNER}:current"
"""Tags on a group: the numbered version that it held before, the one that a rollback left, the artefact it holds."""


@dataclass(frozen=True, slots=True)
class Version:
    """One numbered version of a launch template, and what it says. ``pinned``: the group names it by its number."""

    template: str
    number: int
    data: Mapping[str, Any]
    pinned: bool = True

    def __str__(self) -> str:
        return f"{self.template}:{self.number}"

    def held(self, device: str, artefacts: Sequence[str] = ()) -> TargetState:
        """Return what it makes nodes of."""
        image = str(self.data.get("ImageId", ""))
        mapped = (each for each in self.data.get("BlockDeviceMappings", []) if each.get("DeviceName") == device)
        snapshot = next((each.get("Ebs", {}).get("SnapshotId", "") for each in mapped), "")
        by_id = image.startswith("ami-")
        label = "" if by_id else image or "no image of its own"
        return TargetState(
            images=[image] if by_id else (),
            snapshot=snapshot,
            artefacts=artefacts,
            label=label,
            spec={"version": str(self)},
        )


def new_data(
    data: Mapping[str, Any], offer: Offer, *, device: str, disk: Mapping[str, int] = MappingProxyType({})
) -> dict[str, Any]:
    """Return what a version that takes the offer says differently; empty when it says it all already. Pure.

    ``disk`` is what the volume's mapping says of its speed. Raises InputError for user data of no known kind.
    """
    changes: dict[str, Any] = {}
    if offer.image and data.get("ImageId") != offer.image:
        changes["ImageId"] = offer.image
    disks = copy.deepcopy(list(data.get("BlockDeviceMappings", [])))
    for each in disks:
        if offer.image and each.get("DeviceName") in {"/dev/xvda", "/dev/sda1"} and "Ebs" in each:
            _at_least(each["Ebs"], offer.image_size)
    if offer.snapshot:
        mine = next((each for each in disks if each.get("DeviceName") == device), None)
        if mine is None:
            mine = {"DeviceName": device, "Ebs": {"VolumeType": "gp3", "DeleteOnTermination": True}}
            disks.append(mine)
        ebs = mine.setdefault("Ebs", {})
        ebs["SnapshotId"] = offer.snapshot
        for follows_from_the_snapshot in ("Encrypted", "KmsKeyId"):  # EC2 refuses a key without `Encrypted`
            ebs.pop(follows_from_the_snapshot, None)
        _at_least(ebs, offer.snapshot_size)
        ebs |= {name.capitalize(): value for name, value in disk.items()}
        changes |= _with_mount(data, offer.mount)
    before = list(data.get("BlockDeviceMappings", []))
    if disks != before or (changes and before):  # what is not given again loses its snapshot
        changes["BlockDeviceMappings"] = disks
    return changes


def user_data(data: Mapping[str, Any]) -> str | None:
    """Return the user data of a version as text; None for what is not text, such as gzip."""
    try:
        return base64.b64decode(data.get("UserData", ""), validate=True).decode()
    except ValueError:
        return None


def readable(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a version says for people: parbake's parts of the user data in one line each."""
    text = user_data(data)
    return {**data, "UserData": userdata.shown(text)} if text else dict(data)


def _with_mount(data: Mapping[str, Any], part: str) -> dict[str, str]:
    """Return the user data with another part that mounts the volume, or nothing where it stays as it is."""
    text = user_data(data)
    if text is None and part:
        raise InputError(
            "the launch template's user data is not text, so that the part which mounts the volume cannot be put in",
            hint="write it as MIME parts that are not packed (Terraform's cloudinit_config: gzip = false), or "
            "`mount: false` for nodes that mount it themselves",
        )
    new = userdata.with_parts(text, {"mount": part}) if text is not None else None
    return {"UserData": base64.b64encode(new.encode()).decode()} if new is not None and new != text else {}


def _at_least(ebs: dict[str, Any], size: int) -> None:
    if size and ebs.get("VolumeSize", 0) < gibibytes(size):
        ebs["VolumeSize"] = gibibytes(size)


class Templates:
    """The launch templates of one region."""

    def __init__(self, region: str) -> None:
        self.ec2: Client = client("ec2", region)

    def version(self, specification: Mapping[str, Any]) -> Version:
        """Return the version that a group's specification names, by its number; it may be too new to be known."""
        return when_known(lambda: self._version(specification), str(specification.get("LaunchTemplateId") or "lt-"))

    def _version(self, specification: Mapping[str, Any]) -> Version:
        asked = str(specification.get("Version") or "$Default")
        named = {key: specification[key] for key in ("LaunchTemplateId",) if specification.get(key)}
        named = named or {"LaunchTemplateName": specification["LaunchTemplateName"]}
        found = self.ec2.describe_launch_template_versions(**named, Versions=[asked])["LaunchTemplateVersions"]
        if not found:
            raise AwsNotFound(f"launch template {next(iter(named.values()))} has no version {asked}")
        return Version(
            found[0]["LaunchTemplateId"],
            int(found[0]["VersionNumber"]),
            found[0]["LaunchTemplateData"],
            pinned=not asked.startswith("$"),
        )

    def image(self, image: str) -> Mapping[str, Any]:
        """Return an image as EC2 describes it; nothing where there is no such image any more."""
        try:
            found = self.ec2.describe_images(ImageIds=[image], IncludeDeprecated=True)["Images"] if image else []
        except AwsNotFound:
            return {}
        return found[0] if found else {}

    def numbered(self, text: str) -> Version:
        """Return the version that a tag names, as ``lt-…:7``; it is an old one."""
        template, _, number = text.rpartition(":")
        return self._version({"LaunchTemplateId": template, "Version": number})

    def make(self, source: Version, changes: Mapping[str, Any], description: str) -> Version:
        """Make sure that there is a version of the source with these changes; one that a killed run made is taken.

        It is seen before it is returned: other services refuse a version that they do not find yet.
        """
        wanted = {**source.data, **changes}
        listed = self.ec2.pages(
            "describe_launch_template_versions", "LaunchTemplateVersions", LaunchTemplateId=source.template
        )
        for each in listed:
            if each.get("VersionDescription") == description and each["LaunchTemplateData"] == wanted:
                return Version(source.template, int(each["VersionNumber"]), wanted)
        made = self.ec2.create_launch_template_version(
            LaunchTemplateId=source.template,
            SourceVersion=str(source.number),
            VersionDescription=description,
            LaunchTemplateData=dict(changes),
            ClientToken=token("template", str(source), description),
        )["LaunchTemplateVersion"]
        return self.version({"LaunchTemplateId": source.template, "Version": str(made["VersionNumber"])})


def describe(held: Identity) -> str:
    """Return the description of a version, at most 255 characters."""
    return f"{OWNER} {held.name} {held.image} {held.snapshot}".strip()[:255]


def artefacts_of(tags: Mapping[str, str], version: Version) -> tuple[str, ...]:
    """Return the artefacts that a group holds, if it still holds the version that a rollout brought."""
    brought, _, names = tags.get(CURRENT, "").partition(" ")
    return names_in(names) if brought == str(version) else ()


def history_of(tags: Mapping[str, str]) -> History[str]:
    """Return what a group's tags record, as versions (``lt-…:7``)."""
    return History(tags.get(PREVIOUS), tags.get(LEFT), tags.get(CURRENT, "").partition(" ")[0])

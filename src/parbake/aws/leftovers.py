"""Remove what runs left in AWS, from tags alone: a clean-up needs no more to know.

Instances with their spot requests, half-made AMIs with their snapshots, bare snapshots, volumes, security groups, and
Packer's key pairs and launch templates. Each step is "make sure that it is gone", so that a clean-up can be cut off.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from parbake.aws.clients import Client, client
from parbake.aws.tags import KEY, MANAGED, NAME, TEMPORARY, as_dict, expired, mine
from parbake.aws.waiters import Observation, wait, when_known
from parbake.core.errors import AwsError, AwsNotFound
from parbake.core.events import Events

_GONE = 900.0  # seconds for an instance to be terminated
_CREATED = 300.0  # seconds for a volume to be created
_ALIVE = ("pending", "running", "stopping", "stopped", "shutting-down")


@dataclass(frozen=True, slots=True)
class LeftoverFilter:
    """Which leftovers go: those of a content key, or those of a Bakefile's name together with all that have expired.

    Without ``images``, AMIs and snapshots stay. ``packer`` also looks for what Packer alone makes. ``instances`` (as
    RunInstances described them) and ``groups`` go in any case: what was made a moment ago is in no list yet.
    What is of a key in ``busy`` stays: another machine works on it. ``spare`` gets each such key.
    """

    key: str = ""
    name: str = ""
    images: bool = True
    packer: bool = False
    instances: Sequence[Mapping[str, Any]] = ()
    groups: Sequence[str] = ()
    busy: Container[str] = ()
    spare: Callable[[str], object] = lambda _: None

    def filters(self) -> list[dict[str, Any]]:
        """Return what narrows a describe call."""
        return mine(managed=TEMPORARY, **({"key": self.key} if self.key else {}))

    def takes(self, tags: dict[str, str]) -> bool:
        """Whether a resource with these tags goes."""
        if tags.get(MANAGED) != TEMPORARY or not (self.key or tags.get(NAME) == self.name or expired(tags)):
            return False
        if tags.get(KEY) in self.busy:
            self.spare(tags[KEY])
            return False
        return True


def remove(wanted: LeftoverFilter, region: str, events: Events) -> tuple[str, ...]:
    """Remove temporary resources of parbake's in a region and return their ids. Raises AwsError."""
    ec2 = client("ec2", region)
    removed = [*_instances(ec2, wanted, events)]
    packers = (_key_pairs, _templates) if wanted.packer else ()
    volumes, snapshots = partial(_volumes, events=events), partial(_snapshots, events=events)
    for look in (_requests, *((_images, snapshots) if wanted.images else ()), volumes, _groups, *packers):
        removed += look(ec2, wanted)
    return tuple(removed)


def _instances(ec2: Client, wanted: LeftoverFilter, events: Events) -> Iterator[str]:
    states = [{"Name": "instance-state-name", "Values": list(_ALIVE)}]
    reservations = ec2.pages("describe_instances", "Reservations", Filters=[*wanted.filters(), *states])
    found = [each for reservation in reservations for each in reservation["Instances"] if wanted.takes(as_dict(each))]
    listed = {each["InstanceId"] for each in found}
    found += [each for each in wanted.instances if each["InstanceId"] not in listed]
    if found:
        terminate(ec2, found, events)
    yield from (each["InstanceId"] for each in found)


def terminate(ec2: Client, instances: Sequence[Mapping[str, Any]], events: Events) -> None:
    """Terminate instances and wait until they are gone: what they hold (volumes, groups) is free only then."""
    requests = [each["SpotInstanceRequestId"] for each in instances if each.get("SpotInstanceRequestId")]
    if requests:  # a persistent request would start another one
        when_known(lambda: ec2.cancel_spot_instance_requests(SpotInstanceRequestIds=requests), *requests)
    ids = [each["InstanceId"] for each in instances]
    when_known(lambda: ec2.terminate_instances(InstanceIds=ids), *ids)

    def look() -> Observation:
        reservations = list(ec2.pages("describe_instances", "Reservations", InstanceIds=ids))
        states = [each["State"]["Name"] for reservation in reservations for each in reservation["Instances"]]
        gone = len(states) == len(ids) and set(states) == {"terminated"}  # they are shown for an hour
        return Observation(gone, ", ".join(states))

    wait("Terminate the instance", look, seconds=_GONE, events=events, hint="run `parbake clean --aws` later")


def _requests(ec2: Client, wanted: LeftoverFilter) -> Iterator[str]:
    """Cancel open requests whose instance somebody else has ended."""
    states = [{"Name": "state", "Values": ["open", "active", "disabled"]}]
    filters = [*wanted.filters(), *states]
    for request in ec2.pages("describe_spot_instance_requests", "SpotInstanceRequests", Filters=filters):
        if wanted.takes(as_dict(request)):
            identity = request["SpotInstanceRequestId"]
            ec2.cancel_spot_instance_requests(SpotInstanceRequestIds=[identity])
            yield identity


def _images(ec2: Client, wanted: LeftoverFilter) -> Iterator[str]:
    for image in ec2.pages("describe_images", "Images", Owners=["self"], Filters=wanted.filters()):
        if wanted.takes(as_dict(image)):
            remove_image(ec2, image)
            yield image["ImageId"]


def remove_image(ec2: Client, image: dict[str, Any]) -> None:
    """Deregister an AMI and delete its snapshots; what is gone already is fine."""
    _unless_gone(lambda: ec2.deregister_image(ImageId=image["ImageId"]))
    for mapping in image.get("BlockDeviceMappings", []):
        snapshot = mapping.get("Ebs", {}).get("SnapshotId")
        if snapshot:
            _delete_snapshot(ec2, snapshot)


def _delete_snapshot(ec2: Client, snapshot: str) -> None:
    _unless_gone(lambda: ec2.delete_snapshot(SnapshotId=snapshot))


def _snapshots(ec2: Client, wanted: LeftoverFilter, events: Events) -> Iterator[str]:
    for snapshot in ec2.pages("describe_snapshots", "Snapshots", OwnerIds=["self"], Filters=wanted.filters()):
        if wanted.takes(as_dict(snapshot)):
            try:
                _delete_snapshot(ec2, snapshot["SnapshotId"])
            except AwsError as error:
                if error.code != "InvalidSnapshot.InUse":
                    raise
                # By somebody's AMI, or by one of ours that is too new to be in a list: all else goes all the same.
                events.warn(f"{error.message}: it is left in place; run `parbake clean --aws` later")
                continue
            yield snapshot["SnapshotId"]


def _volumes(ec2: Client, wanted: LeftoverFilter, events: Events) -> Iterator[str]:
    for volume in ec2.pages("describe_volumes", "Volumes", Filters=wanted.filters()):
        if wanted.takes(as_dict(volume)) and volume["State"] in {"creating", "available", "error"}:
            identity = volume["VolumeId"]
            _unless_gone(partial(_delete_volume, ec2, identity, volume["State"], events))
            yield identity


def _delete_volume(ec2: Client, volume: str, state: str, events: Events) -> None:
    """Delete a volume; one that is still being created cannot be deleted yet. Raises AwsNotFound, DeadlineExceeded."""

    def look() -> Observation:
        found = ec2.describe_volumes(VolumeIds=[volume])["Volumes"]
        seen = str(found[0]["State"]) if found else "not known yet"
        return Observation(bool(found) and seen != "creating", seen)

    if state == "creating":
        hint = "run `parbake clean --aws` later"
        wait(f"Create {volume}", look, seconds=_CREATED, events=events, hint=hint)
    ec2.delete_volume(VolumeId=volume)


def _groups(ec2: Client, wanted: LeftoverFilter) -> Iterator[str]:
    found = [
        group["GroupId"]
        for group in ec2.pages("describe_security_groups", "SecurityGroups", Filters=wanted.filters())
        if wanted.takes(as_dict(group))
    ]
    for identity in found:
        _unless_gone(partial(ec2.delete_security_group, GroupId=identity))
        yield identity
    for identity in set(wanted.groups).difference(found):
        delete = partial(ec2.delete_security_group, GroupId=identity)
        _unless_gone(partial(when_known, delete, identity))
        yield identity


def _key_pairs(ec2: Client, wanted: LeftoverFilter) -> Iterator[str]:
    for pair in ec2.pages("describe_key_pairs", "KeyPairs", Filters=wanted.filters()):
        if wanted.takes(as_dict(pair)):
            name = pair["KeyName"]
            _unless_gone(partial(ec2.delete_key_pair, KeyName=name))
            yield pair["KeyPairId"]


def _templates(ec2: Client, wanted: LeftoverFilter) -> Iterator[str]:
    for template in ec2.pages("describe_launch_templates", "LaunchTemplates", Filters=wanted.filters()):
        if wanted.takes(as_dict(template)):
            identity = template["LaunchTemplateId"]
            _unless_gone(partial(ec2.delete_launch_template, LaunchTemplateId=identity))
            yield identity


def _unless_gone(call: Callable[[], object]) -> None:
    try:
        call()
    except AwsNotFound:
        return

"""EC2's eventual consistency, put over the stand-in: what was written shows late (EC2 developer guide, "Eventual
consistency in the Amazon EC2 API").

    cloud.eventual = Eventual(late=2)       # what is new is unknown to two calls: not found by id, missing from lists
    cloud.eventual = Eventual(stale=2)      # tags are the old ones, and what was deleted is still described, twice

Calls are counted for each resource, and only those that would have shown it. A write that names what is unknown is
refused as a look is. New versions of launch templates are as all else, also for Auto Scaling and EKS. Not modelled: two
looks of which the second knows less than the first; attributes other than tags and an instance's state; what is new in
one region only.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from botocore.exceptions import ClientError

from standins.policies import Tags

type Ask = Callable[[str, dict[str, Any]], Any]

_ID = re.compile(r"(i|vol|snap|ami|sg|sir)-[0-9a-f]+")
_MISSING = {
    "i": "InvalidInstanceID.NotFound",
    "vol": "InvalidVolume.NotFound",
    "snap": "InvalidSnapshot.NotFound",
    "ami": "InvalidAMIID.NotFound",
    "sg": "InvalidGroup.NotFound",
    "sir": "InvalidSpotInstanceRequestID.NotFound",
}
_NO_NAMES = {"Filters", "TagSpecifications", "Tags", "UserData", "Description", "ClientToken", "Name"}
# What a call describes: the list in its answer, an item's id there, and the list of ids that it can be asked for.
_LISTS = {
    "DescribeInstances": ("Instances", "InstanceId", "InstanceIds"),
    "DescribeImages": ("Images", "ImageId", "ImageIds"),
    "DescribeSnapshots": ("Snapshots", "SnapshotId", "SnapshotIds"),
    "DescribeVolumes": ("Volumes", "VolumeId", "VolumeIds"),
    "DescribeSecurityGroups": ("SecurityGroups", "GroupId", "GroupIds"),
    "DescribeSpotInstanceRequests": ("SpotInstanceRequests", "SpotInstanceRequestId", "SpotInstanceRequestIds"),
}
_DELETES = {
    "TerminateInstances": "DescribeInstances",
    "DeregisterImage": "DescribeImages",
    "DeleteSnapshot": "DescribeSnapshots",
    "DeleteVolume": "DescribeVolumes",
    "DeleteSecurityGroup": "DescribeSecurityGroups",
}
_OURS = {"Name": "tag-key", "Values": ["parbake:managed"]}  # which nothing gets or loses later
_FIELDS = {
    "name": "Name",
    "group-name": "GroupName",
    "vpc-id": "VpcId",
    "state": "State",
    "status": "State",
    "snapshot-id": "SnapshotId",
}


@dataclass
class Eventual:
    """``late`` and ``stale`` are numbers of calls; ``kinds`` are those that are late (``i``, ``snap``; empty: all).

    ``refused`` notes each NotFound, ``hidden`` each item that a list leaves out, ``old`` each that it shows as it was.
    """

    late: int = 0
    stale: int = 0
    kinds: tuple[str, ...] = ()
    refused: list[tuple[str, str]] = field(default_factory=list)
    hidden: list[tuple[str, str]] = field(default_factory=list)
    old: list[tuple[str, str]] = field(default_factory=list)
    _known: set[str] = field(default_factory=set)
    _unknown: dict[str, int] = field(default_factory=dict)
    _tags: dict[str, tuple[int, Tags]] = field(default_factory=dict)
    _ghosts: dict[str, tuple[int, str, dict[str, Any]]] = field(default_factory=dict)

    def settle(self) -> None:
        """Let all be known everywhere from here on."""
        self._unknown.clear()
        self._tags.clear()
        self._ghosts.clear()

    def answer(self, operation: str, asked: dict[str, Any], ask: Ask, region: str) -> Any:
        """Answer a call of EC2's in a region; ``ask`` is EC2 as it is."""
        named = set(_ids({key: value for key, value in asked.items() if key not in _NO_NAMES}))
        for identity in sorted(named):
            if self._unknown.get(identity, 0) > 0:
                self._unknown[identity] -= 1
                self.refused.append((operation, identity))
                code = _MISSING[identity.partition("-")[0]]
                words = f"The ID '{identity}' does not exist"
                raise ClientError({"Error": {"Code": code, "Message": words}}, operation)
        if operation in _LISTS:
            return self._described(operation, asked, ask, region)
        if operation == "DescribeLaunchTemplateVersions":
            return self._versions(asked, ask)
        before = self._before(operation, asked, ask) if self.stale else {}
        answer = ask(operation, asked)
        self._ghosts.update({each: (left, f"{look} {region}", item) for each, (left, look, item) in before.items()})
        also: Any = ()
        if operation in {"CreateImage", "CopyImage", "RegisterImage"}:
            also = ask("DescribeImages", {"ImageIds": [answer["ImageId"]]})["Images"][0]["BlockDeviceMappings"]
        self.made(operation, asked, (answer, also))
        return answer

    def made(self, operation: str, asked: dict[str, Any], answer: Any) -> None:
        """Know of what a call has made, and let the others not know of it yet."""
        if operation == "CreateLaunchTemplateVersion" and self._is_late("lt-"):
            version = _version(answer[0]["LaunchTemplateVersion"])
            if version not in self._known:
                self._known.add(version)
                self._unknown[version] = self.late
        elif not operation.startswith(("Describe", "Get")):
            made = set(_ids(answer)) - set(_ids(asked)) - self._known
            self._known |= made
            self._unknown |= dict.fromkeys(filter(self._is_late, made), self.late)

    def need_version(self, operation: str, template: str, number: str) -> None:
        """Refuse another service's call that names a version which that service does not know yet."""
        version = f"{template}:{number}"
        if self._unknown.get(version, 0) > 0:
            self._unknown[version] -= 1
            self.refused.append((operation, version))
            words = f"You must use a valid fully-formed launch template. There is no version {number} of {template}"
            raise ClientError({"Error": {"Code": "ValidationError", "Message": words}}, operation)

    def _versions(self, asked: dict[str, Any], ask: Ask) -> Any:
        answer, shown = ask("DescribeLaunchTemplateVersions", asked), []
        for each in answer["LaunchTemplateVersions"]:
            version = _version(each)
            if self._unknown.get(version, 0) <= 0:
                shown.append(each)
                continue
            self._unknown[version] -= 1
            template, _, number = version.partition(":")
            if asked.get("Versions") == ["$Latest"]:
                before = {**asked, "Versions": [str(int(number) - 1)]}
                shown += ask("DescribeLaunchTemplateVersions", before)["LaunchTemplateVersions"]
            elif asked.get("Versions"):
                self.refused.append(("DescribeLaunchTemplateVersions", version))
                words = f"Could not find the specified version {number} for the launch template with ID {template}."
                error = {"Code": "InvalidLaunchTemplateId.VersionNotFound", "Message": words}
                raise ClientError({"Error": error}, "DescribeLaunchTemplateVersions")
            self.hidden.append(("DescribeLaunchTemplateVersions", version))
        return {**answer, "LaunchTemplateVersions": shown}

    def _is_late(self, identity: str) -> bool:
        return not self.kinds or identity.partition("-")[0] in self.kinds

    def _before(self, operation: str, asked: dict[str, Any], ask: Ask) -> dict[str, tuple[int, str, dict[str, Any]]]:
        """Note old tags, and return what will be gone as it is shown for a while."""
        if operation in {"CreateTags", "DeleteTags"}:
            for identity in filter(self._is_late, asked["Resources"]):
                for look, (_, key, ids) in _LISTS.items():
                    if identity.startswith(_PREFIX[key]) and look != "DescribeSpotInstanceRequests":
                        for item in _items(look, ask(look, {ids: [identity]})):
                            self._tags.setdefault(identity, (self.stale, tags_of(item)))
        if operation not in _DELETES:
            return {}
        look = _DELETES[operation]
        found = []
        for identity in filter(self._is_late, _ids(asked)):
            found += _items(look, ask(look, {_LISTS[look][2]: [identity]}))
        return {each[_LISTS[look][1]]: (self.stale, look, copy.deepcopy(each)) for each in found}

    def _described(self, operation: str, asked: dict[str, Any], ask: Ask, region: str) -> Any:
        key, name, ids = _LISTS[operation]
        here = f"{operation} {region}"
        ghosts = {each for each, (left, look, _) in self._ghosts.items() if look == here and left}
        plain = dict(asked)
        if self.stale and operation != "DescribeSpotInstanceRequests":
            filters = asked.get("Filters", [])
            plain["Filters"] = [each for each in filters if not each["Name"].startswith("tag") or each == _OURS]
        wanted = asked.get(ids, [])
        plain[ids] = [each for each in wanted if each not in ghosts]
        plain = {each: value for each, value in plain.items() if value or each not in {ids, "Filters"}}
        found = [] if wanted and ids not in plain else _items(operation, ask(operation, plain))
        found = [self._as_it_was(operation, each, name) for each in found if each[name] not in ghosts]
        found += [self._ghost(operation, each) for each in sorted(ghosts) if each in wanted or not wanted]
        shown = [each for each in found if _fits(each, asked.get("Filters", []))] if self.stale else found
        shown = [each for each in shown if not self._hides(operation, each[name])]
        return {"Reservations": [{key: [each]} for each in shown]} if key == "Instances" else {key: shown}

    def _hides(self, operation: str, identity: str) -> bool:
        if self._unknown.get(identity, 0) <= 0:
            return False
        self._unknown[identity] -= 1
        self.hidden.append((operation, identity))
        return True

    def _as_it_was(self, operation: str, item: dict[str, Any], name: str) -> dict[str, Any]:
        left, tags = self._tags.pop(item[name], (0, {}))
        if not left:
            return item
        self._tags[item[name]] = (left - 1, tags)
        self.old.append((operation, item[name]))
        return {**item, "Tags": [{"Key": key, "Value": value} for key, value in tags.items()]}

    def _ghost(self, operation: str, identity: str) -> dict[str, Any]:
        left, look, item = self._ghosts[identity]
        self._ghosts[identity] = (left - 1, look, item)
        self.old.append((operation, identity))
        return copy.deepcopy(item)


_PREFIX = {"InstanceId": "i-", "ImageId": "ami-", "SnapshotId": "snap-", "VolumeId": "vol-", "GroupId": "sg-"}
_PREFIX["SpotInstanceRequestId"] = "sir-"


def tags_of(item: Mapping[str, Any]) -> Tags:
    return {tag["Key"]: tag["Value"] for tag in item.get("Tags") or []}


def _items(operation: str, answer: Any) -> list[dict[str, Any]]:
    if operation == "DescribeInstances":
        return [each for reservation in answer.get("Reservations", []) for each in reservation["Instances"]]
    return list(answer.get(_LISTS[operation][0], []))


def _version(described: Mapping[str, Any]) -> str:
    return f"{described['LaunchTemplateId']}:{described['VersionNumber']}"


def _fits(item: Mapping[str, Any], filters: list[dict[str, Any]]) -> bool:
    tags = tags_of(item)
    for each in filters:
        name, values = each["Name"], each["Values"]
        if name == "tag-key":
            fits = bool(set(values) & set(tags))
        elif name.startswith("tag:"):
            fits = tags.get(name.removeprefix("tag:")) in values
        elif name == "instance-state-name":
            fits = item["State"]["Name"] in values
        else:
            fits = name not in _FIELDS or item.get(_FIELDS[name]) in values
        if not fits:
            return False
    return True


def _ids(said: Any) -> Iterator[str]:
    if isinstance(said, str):
        if _ID.fullmatch(said):
            yield said
    elif isinstance(said, Mapping):
        for key, value in said.items():
            if key not in {"ResponseMetadata", "OwnerId"}:
                yield from _ids(value)
    elif isinstance(said, list | tuple | set):
        for each in said:
            yield from _ids(each)

"""A stand-in for EC2: moto, with what moto leaves out or gets wrong put right. It lives in this process and in memory.

What is added: AMIs must exist and be available to be launched or copied; client tokens are honoured; an instance runs
the **real guest script** on ``hardware`` (a machine of QEMU's, or a folder whose containerd only keeps notes), stops
when that powers off, and shows its console as EC2 does; what its volumes held is in the AMI that is made of it, and
only there; CreateImage makes one snapshot for each volume, refuses names that are taken and instances that run; AMIs
and snapshots are pending for a while, and volumes that came with no instance are being created; a snapshot that an AMI
uses cannot be deleted; a security group that an instance uses neither; deprecation, fast snapshot restore.

What stays untrue: AWS itself takes no time, and nobody is refused for want of a permission.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import boto3
from moto.ec2.models import ec2_backends

from standins.aws.iam_recorder import tags_in_moto
from standins.aws.instances import LOOKS, Hardware, Machine, Notes
from standins.aws.interceptor import Between, Killed, refuse
from standins.aws.mappings import dependency
from standins.fastrestores import FastRestores
from standins.policies import Tags

__all__ = ["Cloud", "Killed", "refuse", "state_of"]


def state_of(instance: str, region: str) -> str:
    """Return an instance's state, without the cost of a call."""
    backend: Any = ec2_backends["123456789012"][region]
    return str(backend.get_instance(instance).state)


@dataclass
class Cloud(Between):
    """EC2 and its neighbours in one account."""

    hardware: Hardware = field(default_factory=Notes)
    machines: dict[str, Machine] = field(default_factory=dict)
    contents: dict[str, Any] = field(default_factory=dict)
    """What snapshots hold, in the hardware's own terms."""
    pending: dict[str, int] = field(default_factory=dict)
    tokens: dict[tuple[str, str, str], tuple[str, str]] = field(default_factory=dict)
    """What a client token made, and by which request."""
    details: dict[str, dict[str, Any]] = field(default_factory=dict)
    fast: FastRestores = field(default_factory=FastRestores)
    spot_interruptions: int = 0
    ends: str = ""
    """The StateReason with which instances end as soon as they are launched; empty: they live."""
    requests: dict[str, dict[str, Any]] = field(default_factory=dict)
    request_tags: dict[str, Tags] = field(default_factory=dict)
    """Also of requests that were cancelled, which AWS shows for a while."""
    """Requests of spot instances that are open: each would start another instance for one that is terminated."""
    _inside: bool = False

    def call(self, client: Any, operation: str, arguments: dict[str, Any]) -> Any:
        """Answer one call; what the stand-in asks itself goes straight to moto."""
        if self._inside:
            return self._real(client, operation, arguments)
        return super().call(client, operation, arguments)

    def real(self, client: Any, service: str, operation: str, arguments: dict[str, Any]) -> Any:
        """Ask moto, or what is better than moto's."""
        own = getattr(self, f"_{service}_{operation}", None)
        self._inside = True
        try:
            return own(client, arguments) if own else self._real(client, operation, arguments)
        finally:
            self._inside = False

    def _made_by(self, token: tuple[str, str, str], arguments: dict[str, Any]) -> str:
        """Return what a client token made before; it is refused with another request."""
        made, request = self.tokens.get(token, ("", "")) if token[2] else ("", "")
        if made and request != repr(arguments):
            raise refuse("IdempotentParameterMismatch", f"{token[0]}: the client token was used with other parameters")
        return made

    def tags_of(self, resource: str) -> Tags:
        """Return the tags of a resource, also of a request that was cancelled."""
        return self.request_tags.get(resource) or tags_in_moto(resource)

    # -- images

    def _ec2_GetEbsDefaultKmsKeyId(self, _client: Any, _arguments: dict[str, Any]) -> Any:  # noqa: N802
        return {"KmsKeyId": "alias/aws/ebs"}

    def _image(self, client: Any, image: str) -> dict[str, Any]:
        found = self._real(client, "DescribeImages", {"ImageIds": [image]})["Images"]
        if not found:
            raise refuse("InvalidAMIID.NotFound", f"The image id '[{image}]' does not exist")
        described: dict[str, Any] = {**found[0], **self.details.get(image, {})}
        return described

    def _ec2_DescribeImages(self, client: Any, arguments: dict[str, Any]) -> Any:  # noqa: N802
        answer = self._real(client, "DescribeImages", arguments)
        for image in answer["Images"]:
            identity = image["ImageId"]
            image.update(self.details.get(identity, {}))
            if self.pending.get(identity, 0) > 0:
                self.pending[identity] -= 1
                image["State"] = "pending"
        return answer

    def _ec2_CreateImage(self, client: Any, arguments: dict[str, Any]) -> Any:  # noqa: N802
        instance = self._instance(client, arguments["InstanceId"])
        assert instance["State"]["Name"] == "stopped", "an AMI of a machine that runs is of nobody knows what"
        if self._real(client, "DescribeImages", {"Filters": [{"Name": "name", "Values": [arguments["Name"]]}]})[
            "Images"
        ]:
            raise refuse("InvalidAMIName.Duplicate", f"AMI name {arguments['Name']} is already in use")
        tags = {spec["ResourceType"]: spec["Tags"] for spec in arguments.get("TagSpecifications", [])}
        mappings = []
        for mapping in instance["BlockDeviceMappings"]:
            volume = self._real(client, "DescribeVolumes", {"VolumeIds": [mapping["Ebs"]["VolumeId"]]})["Volumes"][0]
            wishes: dict[str, Any] = {"VolumeId": volume["VolumeId"]}
            if "snapshot" in tags:
                wishes["TagSpecifications"] = [{"ResourceType": "snapshot", "Tags": tags["snapshot"]}]
            snapshot = self._real(client, "CreateSnapshot", wishes)
            held = self.machines[instance["InstanceId"]].volumes[mapping["DeviceName"]]
            self.contents[snapshot["SnapshotId"]] = self.hardware.snapshot(held)
            self.pending[snapshot["SnapshotId"]] = LOOKS
            ebs = {"SnapshotId": snapshot["SnapshotId"], "VolumeSize": volume["Size"], "Encrypted": volume["Encrypted"]}
            mappings.append({"DeviceName": mapping["DeviceName"], "Ebs": ebs})
        source = self.details[instance["ImageId"]]
        return self._registered(client, arguments["Name"], mappings, tags.get("image", []), source)

    def _registered(
        self,
        client: Any,
        name: str,
        mappings: list[dict[str, Any]],
        tags: list[dict[str, str]],
        source: Mapping[str, Any],
    ) -> dict[str, str]:
        wishes: dict[str, Any] = {
            "Name": name,
            "RootDeviceName": source["RootDeviceName"],
            "BlockDeviceMappings": mappings,
        }
        made: str = self._real(client, "RegisterImage", wishes)["ImageId"]
        accounts: Any = [account[client.meta.region_name] for account in ec2_backends.values()]
        for account in accounts:  # the one that the client acts in: a role's is another than the caller's
            if made in account.amis:
                account.amis[made].architecture = source["Architecture"]  # so that a filter by it finds this one
        if tags:
            self._real(client, "CreateTags", {"Resources": [made], "Tags": tags})
        self.details[made] = {
            "Architecture": source["Architecture"],
            "RootDeviceType": "ebs",
            "RootDeviceName": source["RootDeviceName"],
            "BlockDeviceMappings": mappings,
            "CreationDate": f"2026-01-01T00:00:{len(self.details) % 60:02}.000Z",
        }
        self.pending[made] = LOOKS
        return {"ImageId": made}

    def base(self, region: str, name: str = "node-base", content: Any = None, **more: Any) -> str:
        """Make a base AMI, which nobody may touch; ``content`` is what its snapshot holds, in the hardware's terms."""
        client = boto3.client("ec2", region)
        inside, self._inside = self._inside, True
        try:
            volume = client.create_volume(Size=8, AvailabilityZone=f"{region}a")
            snapshot = client.create_snapshot(VolumeId=volume["VolumeId"])["SnapshotId"]
            client.delete_volume(VolumeId=volume["VolumeId"])
            mapping = {"DeviceName": "/dev/xvda", "Ebs": {"SnapshotId": snapshot, "VolumeSize": 8}}
            source = {"Architecture": "x86_64", "RootDeviceName": "/dev/xvda", **more}
            made = self._registered(client, name, [mapping], [], source)["ImageId"]
        finally:
            self._inside = inside
        self.pending[made] = 0
        self.contents[snapshot] = content
        return made

    def _ec2_CopyImage(self, client: Any, arguments: dict[str, Any]) -> Any:  # noqa: N802
        token = ("CopyImage", client.meta.region_name, arguments.get("ClientToken", ""))
        if known := self._made_by(token, arguments):
            return {"ImageId": known}
        there = boto3.client("ec2", arguments["SourceRegion"])
        source = self._image(there, arguments["SourceImageId"])
        if self.pending.get(source["ImageId"], 0):
            raise refuse("InvalidRequest", "the source image is pending")
        tags = {spec["ResourceType"]: spec["Tags"] for spec in arguments.get("TagSpecifications", [])}
        volume = self._real(client, "CreateVolume", {"Size": 8, "AvailabilityZone": f"{client.meta.region_name}a"})
        wishes: dict[str, Any] = {"VolumeId": volume["VolumeId"]}
        if "snapshot" in tags:
            wishes["TagSpecifications"] = [{"ResourceType": "snapshot", "Tags": tags["snapshot"]}]
        snapshot = self._real(client, "CreateSnapshot", wishes)["SnapshotId"]
        self._real(client, "DeleteVolume", {"VolumeId": volume["VolumeId"]})
        details = self.details[source["ImageId"]]
        self.contents[snapshot] = self.contents[details["BlockDeviceMappings"][0]["Ebs"]["SnapshotId"]]
        mapping = {"DeviceName": "/dev/xvda", "Ebs": {"SnapshotId": snapshot, "VolumeSize": 8}}
        made = self._registered(client, arguments["Name"], [mapping], tags.get("image", []), details)
        self.tokens[token] = (made["ImageId"], repr(arguments))
        return made

    def _ec2_CreateVolume(self, client: Any, arguments: dict[str, Any]) -> Any:  # noqa: N802
        answer = self._real(client, "CreateVolume", arguments)
        self.pending[answer["VolumeId"]] = LOOKS
        return {**answer, "State": "creating"}

    def _ec2_DescribeVolumes(self, client: Any, arguments: dict[str, Any]) -> Any:  # noqa: N802
        answer = self._real(client, "DescribeVolumes", arguments)
        for volume in answer["Volumes"]:
            if self.pending.get(volume["VolumeId"], 0) > 0:
                self.pending[volume["VolumeId"]] -= 1
                volume["State"] = "creating"
        return answer

    def _ec2_DeleteVolume(self, client: Any, arguments: dict[str, Any]) -> Any:  # noqa: N802
        if self.pending.get(arguments["VolumeId"], 0) > 0:
            raise refuse("IncorrectState", f"The volume '{arguments['VolumeId']}' is 'creating'")
        return self._real(client, "DeleteVolume", arguments)

    def _ec2_CreateSnapshot(self, client: Any, arguments: dict[str, Any]) -> Any:  # noqa: N802
        [volume] = self._real(client, "DescribeVolumes", {"VolumeIds": [arguments["VolumeId"]]})["Volumes"]
        if self.pending.get(volume["VolumeId"], 0) > 0:
            raise refuse("IncorrectState", f"The volume '{volume['VolumeId']}' is 'creating'")
        answer = self._real(client, "CreateSnapshot", arguments)
        for attached in volume["Attachments"]:
            instance = self._instance(client, attached["InstanceId"])
            assert instance["State"]["Name"] == "stopped", "a snapshot of a disk in use is of nobody knows what"
            held = self.machines[instance["InstanceId"]].volumes[attached["Device"]]
            self.contents[answer["SnapshotId"]] = self.hardware.snapshot(held)
        self.pending[answer["SnapshotId"]] = LOOKS
        return answer

    def _ec2_DescribeSnapshots(self, client: Any, arguments: dict[str, Any]) -> Any:  # noqa: N802
        answer = self._real(client, "DescribeSnapshots", arguments)
        for snapshot in answer["Snapshots"]:
            identity = snapshot["SnapshotId"]
            snapshot.update({key: value for key, value in self.details.get(identity, {}).items() if key == "State"})
            if self.pending.get(identity, 0) > 0:
                self.pending[identity] -= 1
                snapshot |= {"State": "pending", "Progress": "50%"}
        return answer

    def _ec2_CopySnapshot(self, client: Any, arguments: dict[str, Any]) -> Any:  # noqa: N802
        answer = self._real(client, "CopySnapshot", arguments)
        self.contents[answer["SnapshotId"]] = self.contents[arguments["SourceSnapshotId"]]
        self.pending[answer["SnapshotId"]] = LOOKS
        return answer

    def _ec2_DeleteSnapshot(self, client: Any, arguments: dict[str, Any]) -> Any:  # noqa: N802
        for image in self._real(client, "DescribeImages", {"Owners": ["self"]})["Images"]:
            mappings = self.details.get(image["ImageId"], image).get("BlockDeviceMappings", [])
            if arguments["SnapshotId"] in [each.get("Ebs", {}).get("SnapshotId") for each in mappings]:
                raise refuse("InvalidSnapshot.InUse", f"{arguments['SnapshotId']} is in use by {image['ImageId']}")
        return self._real(client, "DeleteSnapshot", arguments)

    def _ec2_ModifyImageAttribute(self, client: Any, arguments: dict[str, Any]) -> Any:  # noqa: N802
        self._image(client, arguments["ImageId"])
        details = self.details[arguments["ImageId"]]
        if "ImdsSupport" in arguments:
            details["ImdsSupport"] = arguments["ImdsSupport"]["Value"]
        if "LaunchPermission" in arguments:
            details.setdefault("shared", []).extend(arguments["LaunchPermission"]["Add"])
        return {}

    def _ec2_EnableImageDeprecation(self, client: Any, arguments: dict[str, Any]) -> Any:  # noqa: N802
        self._image(client, arguments["ImageId"])
        self.details[arguments["ImageId"]]["DeprecationTime"] = arguments["DeprecateAt"]
        return {"Return": True}

    def _ec2_EnableFastSnapshotRestores(self, client: Any, arguments: dict[str, Any]) -> Any:  # noqa: N802
        self._real(client, "DescribeSnapshots", {"SnapshotIds": arguments["SourceSnapshotIds"]})
        return self.fast.enable(arguments["SourceSnapshotIds"], arguments["AvailabilityZones"])

    def _ec2_DisableFastSnapshotRestores(self, _client: Any, arguments: dict[str, Any]) -> Any:  # noqa: N802
        return self.fast.disable(arguments["SourceSnapshotIds"], arguments["AvailabilityZones"])

    def _ec2_DescribeFastSnapshotRestores(self, _client: Any, arguments: dict[str, Any]) -> Any:  # noqa: N802
        filters = {each["Name"]: each["Values"] for each in arguments["Filters"]}
        return {"FastSnapshotRestores": self.fast.look(filters["snapshot-id"], filters.get("state", ()))}

    def _cloudwatch_GetMetricData(self, _client: Any, arguments: dict[str, Any]) -> Any:  # noqa: N802
        return self.fast.metric_data(arguments["MetricDataQueries"])

    # -- instances

    def _instance(self, client: Any, identity: str) -> dict[str, Any]:
        reservations = self._real(client, "DescribeInstances", {"InstanceIds": [identity]})["Reservations"]
        instance: dict[str, Any] = reservations[0]["Instances"][0]
        return instance

    def _ec2_RunInstances(self, client: Any, arguments: dict[str, Any]) -> Any:  # noqa: N802
        token = ("RunInstances", client.meta.region_name, arguments.get("ClientToken", ""))
        if known := self._made_by(token, arguments):
            return {"Instances": [self._instance(client, known)]}
        image = self._image(client, arguments["ImageId"])
        if self.pending.get(image["ImageId"], 0):
            raise refuse("InvalidAMIID.Unavailable", f"the image {image['ImageId']} is pending")
        assert "KeyName" not in arguments, "nothing gets in"
        assert arguments["MetadataOptions"]["HttpTokens"] == "required"
        user_data = arguments["UserData"]
        data = user_data if isinstance(user_data, bytes) else user_data.encode()
        assert len(data) <= 16 << 10
        tags = [spec for spec in arguments["TagSpecifications"] if spec["ResourceType"] in {"instance", "volume"}]
        plain = {key: value for key, value in arguments.items() if key != "InstanceMarketOptions"}
        plain["BlockDeviceMappings"] = self._mapped(image, arguments["BlockDeviceMappings"])
        if wrong := dependency(each["Ebs"] for each in plain["BlockDeviceMappings"]):
            raise refuse("InvalidParameterDependency", wrong)
        for each in plain["BlockDeviceMappings"]:
            snapshot = each["Ebs"].get("SnapshotId")
            if snapshot and snapshot not in self.contents:
                raise refuse("InvalidSnapshot.NotFound", f"The snapshot '{snapshot}' does not exist.")
        answer = self._real(client, "RunInstances", {**plain, "UserData": "", "TagSpecifications": tags})
        instance = answer["Instances"][0]
        self.tokens[token] = (instance["InstanceId"], repr(arguments))
        volumes = {
            each["DeviceName"]: self.hardware.volume(
                self.contents.get(each["Ebs"].get("SnapshotId", "")), each["Ebs"]["VolumeSize"]
            )
            for each in plain["BlockDeviceMappings"]
        }
        ends = arguments.get("InstanceInitiatedShutdownBehavior", "stop")
        machine = Machine(instance["InstanceId"], client.meta.region_name, data, volumes, ends)
        self.machines[machine.identity] = machine
        if "InstanceMarketOptions" in arguments:
            self._requested(client, arguments, instance)
        if self.ends:
            machine.code, machine.over = self.ends, True
            self._real(client, "TerminateInstances", {"InstanceIds": [machine.identity]})
        elif "InstanceMarketOptions" in arguments and self.spot_interruptions:
            self.spot_interruptions -= 1
            machine.code, machine.over = "Server.SpotInstanceShutdown", True
            self._real(client, "StopInstances", {"InstanceIds": [machine.identity]})
        else:
            self.hardware.start(machine)
        return answer

    def _requested(self, client: Any, arguments: dict[str, Any], instance: dict[str, Any]) -> None:
        """Note a spot instance's request, which is persistent: only such instances stop instead of being terminated."""
        options = arguments["InstanceMarketOptions"]["SpotOptions"]
        assert options == {"SpotInstanceType": "persistent", "InstanceInterruptionBehavior": "stop"}
        tags = {spec["ResourceType"]: spec["Tags"] for spec in arguments["TagSpecifications"]}
        request = instance["SpotInstanceRequestId"] = f"sir-{len(self.tokens):08x}"
        made = {"SpotInstanceRequestId": request, "State": "active", "Tags": tags["spot-instances-request"]}
        self.request_tags[request] = {tag["Key"]: tag["Value"] for tag in made["Tags"]}
        self.requests[request] = {**made, "InstanceId": instance["InstanceId"], "region": client.meta.region_name}

    def _mapped(self, image: Mapping[str, Any], asked: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return all volumes of an instance, the root's first: the AMI's, with what is asked put over them."""
        mapped = {each["DeviceName"]: dict(each["Ebs"]) for each in image["BlockDeviceMappings"]}
        for each in asked:
            least = mapped.get(each["DeviceName"], {}).get("VolumeSize", 0)
            ebs = mapped.setdefault(each["DeviceName"], {})
            ebs.update(each["Ebs"])
            if ebs.get("VolumeSize", 0) < least:
                words = f"Volume of size {ebs['VolumeSize']}GB is smaller than snapshot, expect size >= {least}GB"
                raise refuse("InvalidBlockDeviceMapping", words)
        return [{"DeviceName": device, "Ebs": ebs} for device, ebs in mapped.items()]

    def _ec2_DescribeInstances(self, client: Any, arguments: dict[str, Any]) -> Any:  # noqa: N802
        for machine in self.machines.values():
            if machine.region == client.meta.region_name and not machine.over:
                self._look(client, machine)
        answer = self._real(client, "DescribeInstances", arguments)
        for reservation in answer["Reservations"]:
            for instance in reservation["Instances"]:
                known = self.machines.get(instance["InstanceId"])
                for request, made in self.requests.items():
                    if made["InstanceId"] == instance["InstanceId"]:
                        instance["SpotInstanceRequestId"] = request
                if known and known.over:
                    instance["StateReason"] = {"Code": known.code, "Message": known.code}
        return answer

    def _look(self, client: Any, machine: Machine) -> None:
        if state_of(machine.identity, client.meta.region_name) not in {"pending", "running"}:
            return
        self.hardware.look(machine)
        if machine.over:
            ending = "StopInstances" if machine.ends == "stop" else "TerminateInstances"
            self._real(client, ending, {"InstanceIds": [machine.identity]})

    def _ec2_TerminateInstances(self, client: Any, arguments: dict[str, Any]) -> Any:  # noqa: N802
        for identity in arguments["InstanceIds"]:
            self._instance(client, identity)
            again = [each for each, made in self.requests.items() if made["InstanceId"] == identity]
            assert not again, f"{again} would start another instance in the place of {identity}"
            self.hardware.stop(self.machines[identity])
        return self._real(client, "TerminateInstances", arguments)

    def _ec2_GetConsoleOutput(self, client: Any, arguments: dict[str, Any]) -> Any:  # noqa: N802
        """Without ``Latest``, a console is shown that was posted when the instance stopped; 64 KiB in either case."""
        self._instance(client, arguments["InstanceId"])
        machine = self.machines[arguments["InstanceId"]]
        shown = machine.console[-(64 << 10) :] if machine.over or arguments.get("Latest") else ""
        return {"InstanceId": machine.identity, "Output": shown}

    def _ec2_DescribeSpotInstanceRequests(self, client: Any, arguments: dict[str, Any]) -> Any:  # noqa: N802
        wanted = {each["Name"].removeprefix("tag:"): each["Values"] for each in arguments["Filters"]}
        states, keys = wanted.pop("state"), wanted.pop("tag-key")
        found = []
        for made in self.requests.values():
            tags = {tag["Key"]: tag["Value"] for tag in made["Tags"]}
            fits = set(keys) <= set(tags) and all(tags.get(key) in values for key, values in wanted.items())
            if fits and made["State"] in states and made["region"] == client.meta.region_name:
                found.append(made)
        return {"SpotInstanceRequests": found}

    def _ec2_CancelSpotInstanceRequests(self, client: Any, arguments: dict[str, Any]) -> Any:  # noqa: N802
        del client
        for request in arguments["SpotInstanceRequestIds"]:
            if request not in self.requests and not request.startswith("sir-"):
                raise refuse("InvalidSpotInstanceRequestID.NotFound", f"The request ID '{request}' does not exist")
            self.requests.pop(request, None)
        return {}

    def _ec2_DeleteSecurityGroup(self, client: Any, arguments: dict[str, Any]) -> Any:  # noqa: N802
        for reservation in self._real(client, "DescribeInstances", {})["Reservations"]:
            for instance in reservation["Instances"]:
                used = [group["GroupId"] for group in instance["SecurityGroups"]]
                if arguments["GroupId"] in used and instance["State"]["Name"] != "terminated":
                    raise refuse("DependencyViolation", f"{arguments['GroupId']} has a dependent object")
        return self._real(client, "DeleteSecurityGroup", arguments)

    def _ecr_DescribePullThroughCacheRules(self, _client: Any, _arguments: dict[str, Any]) -> Any:  # noqa: N802
        return {"pullThroughCacheRules": []}

    def _ssm_DescribeParameters(self, client: Any, arguments: dict[str, Any]) -> Any:  # noqa: N802
        """Answer with the parameters that hold images, which moto does not tell from others."""
        if not arguments.get("ParameterFilters"):
            return self._real(client, "DescribeParameters", arguments)
        assert [each["Key"] for each in arguments["ParameterFilters"]] == ["DataType"]
        names = [each["Name"] for each in self._real(client, "DescribeParameters", {})["Parameters"]]
        found = [self._real(client, "GetParameter", {"Name": name})["Parameter"] for name in names]
        return {"Parameters": [{"Name": each["Name"]} for each in found if each["DataType"] == "aws:ec2:image"]}

    # -- what is there

    def left(self, region: str) -> dict[str, list[str]]:
        """Return everything of ours that is in a region, by kind."""
        backend: Any = ec2_backends["123456789012"][region]
        tagged = sorted(identity for identity, tags in backend.tags.items() if "parbake:managed" in tags)
        instances = {
            each.id for all_ in backend.reservations.values() for each in all_.instances if each.state != "terminated"
        }
        groups = {identity for vpc in backend.groups.values() for identity in vpc}
        there: dict[str, Any] = {
            "instances": instances,
            "images": backend.amis,
            "snapshots": backend.snapshots,
            "volumes": backend.volumes,
            "groups": groups,
        }
        found = {kind: [identity for identity in tagged if identity in ids] for kind, ids in there.items()}
        found["requests"] = [each for each, made in self.requests.items() if made["region"] == region]
        return {kind: ids for kind, ids in found.items() if ids}

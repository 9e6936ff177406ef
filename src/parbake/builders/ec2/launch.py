"""Launch one instance with nothing open to it, wherever there is capacity, and follow it to its power-off.

Sources: EC2 API reference, RunInstances and GetConsoleOutput; EC2 user guide, "Spot Instance requests" (only persistent
requests can stop), "Instance console output" (``Latest`` is for running Nitro instances; what is posted after a stop
stays for an hour).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from parbake import aws
from parbake.aws.errors import CAPACITY
from parbake.bakefile import AwsSection
from parbake.builders.ec2.errors import ended, explained
from parbake.builders.guest import Console
from parbake.core.errors import AwsError, AwsLimit, AwsNoAccess, AwsNotFound, BakeFailed, InputError
from parbake.core.events import Events
from parbake.core.model import GIB, Platform
from parbake.core.run import Deadline

_TYPES = {
    "amd64": ("m7i.large", "m6i.large", "m6a.large", "m5.large"),
    "arm64": ("m7g.large", "m6g.large", "t4g.large"),
}
_POLL = 8.0  # seconds between looks at an instance and its console
_AFTER_STOP = 300.0  # seconds until the console of a stopped instance has been posted
_GRACE = 900.0  # seconds beyond the guest's own limit: for launch, boot and power-off
_TAIL = 25


@dataclass(frozen=True, slots=True)
class DataVolume:
    """A second disk: its device's name, its size in bytes, and the snapshot that it is made from (empty: blank)."""

    device: str
    size: int
    snapshot: str = ""


@dataclass(frozen=True, slots=True)
class LaunchSpec:
    """What to launch: the image, where its root lies, how large it becomes (bytes; 0: as the AMI says), and as what."""

    role: str
    image: str
    root_device: str
    user_data: bytes
    stamp: aws.Stamp
    size: int = 0
    profile: str = ""
    data_volume: DataVolume | None = None


@dataclass(slots=True)
class Launcher:
    """Launches instances for one Bakefile's ``aws`` section, and knows those of earlier runs."""

    ec2: aws.Client
    settings: AwsSection
    platform: Platform
    events: Events
    launched: list[dict[str, Any]] = field(default_factory=list)
    """Instances of this run, which EC2's lists may not show yet; and the security groups that it made."""
    made_groups: list[str] = field(default_factory=list)
    _groups: dict[str, str] = field(default_factory=dict)

    def find(self, key: str, role: str) -> dict[str, Any] | None:
        """Return the instance of an earlier run for the same plan that can still be used, the newest."""
        states = {"Name": "instance-state-name", "Values": ["pending", "running", "stopping", "stopped"]}
        filters = [*aws.mine(key=key, role=role, managed=aws.TEMPORARY), states]
        found = [
            instance
            for reservation in self.ec2.pages("describe_instances", "Reservations", Filters=filters)
            for instance in reservation["Instances"]
        ]
        return max(found, key=lambda each: str(each.get("LaunchTime", "")), default=None)

    def launch(self, spec: LaunchSpec, *, on_demand: bool = False) -> dict[str, Any]:
        """Launch, trying purchases, types and zones in order; raises AwsLimit when none has capacity."""
        refused: list[str] = []
        subnets = list(self._subnets())
        for spot, kind, subnet in self._placements(subnets, on_demand=on_demand):
            try:
                return self._run(spec, kind, subnet, spot=spot)
            except AwsLimit as error:
                quota = spot and error.code in {"MaxSpotInstanceCountExceeded", "VcpuLimitExceeded"}
                if error.code not in CAPACITY and not (quota and self.settings.purchase == "spot-first"):
                    raise
                refused.append(f"{kind}{' (spot)' if spot else ''} in {subnet['AvailabilityZone']}: {error.code}")
                self.events.note(f"no capacity for {refused[-1]}")
        shown = "\n".join(f"  {each}" for each in refused)
        raise AwsLimit(
            f"no capacity for any instance type in any zone of {self.ec2.region}:\n{shown}",
            code="InsufficientInstanceCapacity",
            hint="name more `aws.instance_types` or `aws.subnets` in other zones, or try again later",
        )

    def _placements(
        self, subnets: Sequence[dict[str, Any]], *, on_demand: bool
    ) -> Iterator[tuple[bool, str, dict[str, Any]]]:
        purchases = {"on-demand": (False,), "spot": (True,), "spot-first": (True, False)}[self.settings.purchase]
        for spot in (False,) if on_demand else purchases:
            for kind in self.settings.instance_types or _TYPES[self.platform.architecture]:
                for subnet in subnets:
                    yield spot, kind, subnet

    def _subnets(self) -> Iterator[dict[str, Any]]:
        if self.settings.subnets:
            yield from self.ec2.describe_subnets(SubnetIds=list(self.settings.subnets))["Subnets"]
            return
        default = [{"Name": "default-for-az", "Values": ["true"]}]
        found = list(self.ec2.pages("describe_subnets", "Subnets", Filters=default))
        if not found:
            raise InputError(
                f"{self.ec2.region} has no default VPC to launch a builder in",
                hint="name subnets that reach the registry: `aws: {subnets: [subnet-…]}`",
            )
        yield from found

    def _run(self, spec: LaunchSpec, kind: str, subnet: dict[str, Any], *, spot: bool) -> dict[str, Any]:
        stamp, zone = spec.stamp, subnet["AvailabilityZone"]
        tags = stamp.tags(spec.role)
        request: dict[str, Any] = {
            "ImageId": spec.image,
            "InstanceType": kind,
            "MinCount": 1,
            "MaxCount": 1,
            "ClientToken": aws.token(stamp.key, stamp.run, spec.role, kind, subnet["SubnetId"], str(spot)),
            "UserData": spec.user_data,  # boto3 encodes it
            "SubnetId": subnet["SubnetId"],
            "SecurityGroupIds": list(self.settings.security_groups) or [self._group(subnet["VpcId"], stamp)],
            "InstanceInitiatedShutdownBehavior": "stop",
            "MetadataOptions": {"HttpTokens": "required", "HttpEndpoint": "enabled", "HttpPutResponseHopLimit": 1},
            "BlockDeviceMappings": self._disks(spec),
            "TagSpecifications": aws.specifications(tags, "instance", "volume", "network-interface"),
        }
        if spec.profile:
            by = "Arn" if spec.profile.startswith("arn:") else "Name"
            request["IamInstanceProfile"] = {by: spec.profile}
        if spot:
            options = {"SpotInstanceType": "persistent", "InstanceInterruptionBehavior": "stop"}
            request["InstanceMarketOptions"] = {"MarketType": "spot", "SpotOptions": options}
            request["TagSpecifications"] += aws.specifications(tags, "spot-instances-request")
        proven = (spec.image, spec.data_volume.snapshot if spec.data_volume else spec.image)
        new = (*self.made_groups, *(proven if spec.role == "verifier" else ()))
        try:
            answer = aws.when_known(lambda: self.ec2.run_instances(**request), *new)
        except AwsError as error:
            raise explained(error, zone, spec.profile) from error
        instance: dict[str, Any] = answer["Instances"][0]
        self.launched.append(instance)
        self.events.note(f"{spec.role}: {instance['InstanceId']} ({kind}{', spot' if spot else ''}, {zone})")
        return instance

    def _disks(self, spec: LaunchSpec) -> list[dict[str, Any]]:
        usual: dict[str, Any] = {"DeleteOnTermination": True, "VolumeType": "gp3"}
        usual |= {"Iops": self.settings.volume.iops, "Throughput": self.settings.volume.throughput}
        locked: dict[str, Any] = {}
        if self.settings.encrypted and spec.role == "builder":
            key = self.settings.key_in(self.ec2.region)
            locked = {"Encrypted": True, **({"KmsKeyId": key} if key else {})}
        root = {**usual, **locked}
        if spec.size:
            root["VolumeSize"] = -(-spec.size // GIB)
        disks = [{"DeviceName": spec.root_device, "Ebs": root}]
        if spec.data_volume:
            made = {"SnapshotId": spec.data_volume.snapshot} if spec.data_volume.snapshot else locked
            data_volume = {**usual, **made, "VolumeSize": -(-spec.data_volume.size // GIB)}
            disks.append({"DeviceName": spec.data_volume.device, "Ebs": data_volume})
        return disks

    def _group(self, vpc: str, stamp: aws.Stamp) -> str:
        """Return a security group without any inbound rule, made once for each plan and VPC."""
        if vpc not in self._groups:
            name = f"parbake-{stamp.key[:12]}"
            named = [{"Name": "group-name", "Values": [name]}, {"Name": "vpc-id", "Values": [vpc]}]

            def look() -> aws.Observation:
                found = list(self.ec2.pages("describe_security_groups", "SecurityGroups", Filters=named))
                return aws.Observation(bool(found), value=found[0]["GroupId"] if found else "")

            self._groups[vpc] = look().value or self._new_group(vpc, name, stamp) or self._wait_for_group(name, look)
        return self._groups[vpc]

    def _new_group(self, vpc: str, name: str, stamp: aws.Stamp) -> str:
        """Return the id of a new group; empty: there is one of that name, which is in no list yet."""
        try:
            made = self.ec2.create_security_group(
                GroupName=name,
                Description="parbake builder: nothing comes in",
                VpcId=vpc,
                TagSpecifications=aws.specifications(stamp.tags("group"), "security-group"),
            )
        except AwsError as error:
            if error.code != "InvalidGroup.Duplicate":
                raise
            return ""
        self.made_groups.append(str(made["GroupId"]))
        return self.made_groups[-1]

    def _wait_for_group(self, name: str, look: Callable[[], aws.Observation]) -> str:
        hint = "run the same command again"
        return str(aws.wait(f"The group {name}", look, seconds=aws.UNKNOWN_SECONDS, events=self.events, hint=hint))

    # -- following

    def follow(self, identity: str, console: Console, limit: float) -> str:
        """Follow an instance's console until it has powered itself off; return the console's last lines.

        Raises what ``refusals.ended`` makes of an end that was not its own (SpotReclaimed: a spot instance was taken
        away), BakeFailed when it does not end in time, AwsLimit when AWS did not let the end of the console be read.
        """
        deadline = Deadline(limit + _GRACE, f"the guest on {identity}")
        unknown = Deadline(aws.UNKNOWN_SECONDS, identity)
        after: Deadline | None = None
        tail = ""
        while True:
            instance = self.look(identity)
            state = instance["State"]["Name"] if instance else "unknown"
            if instance:
                unknown = Deadline(aws.UNKNOWN_SECONDS, identity)
            elif not unknown.left:
                raise AwsNotFound(
                    f"EC2 has not listed {identity} for {unknown.seconds:.0f} s",
                    hint="somebody has removed it, or AWS has a problem: run the same command again",
                )
            text, throttled = self._console(identity, runs=state in {"running", "stopping"})
            tail = "\n".join([line for line in text.splitlines() if line.strip()][-_TAIL:]) or tail
            for stage in console.read(text):
                self.events.note(f"guest: {stage}")
            if instance and state in {"stopped", "terminated", "shutting-down"}:
                reason = instance.get("StateReason", {}).get("Code", "")
                if not console.over and (why := ended(identity, reason)):
                    raise why
                after = after or Deadline(_AFTER_STOP, f"the console of {identity}")
                if console.over or not after.left or state != "stopped":
                    if throttled and not console.over:
                        raise throttled
                    return tail
            if not deadline.left:
                raise BakeFailed(
                    f"{identity} did not power off within {deadline.seconds:.0f} s; its last stage was "
                    f"`{console.stage}`\n{tail}",
                    hint="raise `time_limit` in the Bakefile if it only needs longer",
                )
            deadline.sleep(_POLL)

    def look(self, identity: str) -> dict[str, Any] | None:
        """Describe an instance."""
        try:
            found = self.ec2.describe_instances(InstanceIds=[identity])["Reservations"]
        except AwsNotFound:
            return None  # just made, and not known everywhere yet
        return found[0]["Instances"][0] if found else None

    def _console(self, identity: str, *, runs: bool) -> tuple[str, AwsLimit | None]:
        """Return what the console shows, and that AWS throttles where it does: the next look may be let through."""
        for latest in ({"Latest": True}, {}) if runs else ({},):
            try:
                answer = self.ec2.get_console_output(InstanceId=identity, **latest)
            except AwsNoAccess:
                raise
            except AwsLimit as error:
                return "", error
            except AwsError:
                continue  # not posted yet; an instance type without `Latest`
            if text := str(answer.get("Output") or ""):
                return text, None
        return "", None

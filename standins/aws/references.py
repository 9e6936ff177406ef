"""Every way in which something may refer to an artefact: each function here makes one reference in the stand-ins.

Each can be made several times in one world, for different artefacts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from parbake.rollouts import Offer
from parbake.rollouts.files import render, values
from parbake.rollouts.protocol import History
from standins.aws.boto_clients import raw
from standins.kubernetes.server import Server
from standins.spot import Spot
from tests.unit.rollouts.test_node_classes import COMMON

KNOWN = "ami-12c6146b"
"""An image that moto has from the start."""
ROLE = "arn:aws:iam::123456789012:role/nodes"


@dataclass(repr=False)
class World:
    """The stand-ins, and the targets of the Bakefile that prunes."""

    server: Server
    spot: Spot
    targets: list[Mapping[str, Any]] = field(default_factory=list)
    numbers: count[int] = field(default_factory=count)
    cleared: list[Mapping[str, Any]] = field(default_factory=list)
    """Targets of worlds before."""

    def clear(self) -> None:
        """Forget what was made in the cluster and in Ocean; AWS is cleared by who made it."""
        self.server.store.objects.clear()
        self.spot.specifications = {name: {"imageId": "ami-0", "tags": []} for name in ("ols-1", "ols-2", "o-1")}
        self.cleared += self.targets
        self.targets.clear()

    def name(self, word: str) -> str:
        """Return a name that nothing else has."""
        return f"{word}-{next(self.numbers)}"

    def target(self, kind: str, options: Any) -> None:
        """Add a target to the Bakefile."""
        self.targets.append({"name": self.name(kind), kind: options})

    def node_class(self, spec: dict[str, Any], **metadata: Any) -> str:
        """Make a node class, in a cluster that a target names; the target's own node class is another."""
        name = self.name("class")
        self.server.create("ec2nodeclasses", name, metadata=metadata, spec={**COMMON, "amiFamily": "AL2023", **spec})
        if not any("karpenter" in each for each in self.targets):
            terms = [{"id": "ami-0"}]
            self.server.create(
                "ec2nodeclasses", "own", spec={**COMMON, "amiFamily": "AL2023", "amiSelectorTerms": terms}
            )
            self.target("karpenter", {"nodeclass": "own"})
        return name


Use = Callable[[World, str], None]


def snapshot_of(ami: str) -> str:
    """Return the snapshot of an image."""
    found = raw("ec2").describe_images(ImageIds=[ami])["Images"][0]
    return str(found["BlockDeviceMappings"][0]["Ebs"]["SnapshotId"])


# -- EC2


def by_instance(world: World, ami: str) -> None:
    del world
    raw("ec2").run_instances(ImageId=ami, MinCount=1, MaxCount=1)


def by_stopped_instance(world: World, ami: str) -> None:
    del world
    made = raw("ec2").run_instances(ImageId=ami, MinCount=1, MaxCount=1)["Instances"][0]["InstanceId"]
    raw("ec2").stop_instances(InstanceIds=[made])


def by_volume(world: World, ami: str) -> None:
    """A volume that was made of the snapshot, on an instance of another image."""
    ec2 = raw("ec2")
    place = {"AvailabilityZone": "eu-west-1a"}
    instance = ec2.run_instances(ImageId=KNOWN, MinCount=1, MaxCount=1, Placement=place)["Instances"][0]["InstanceId"]
    volume = ec2.create_volume(SnapshotId=snapshot_of(ami), **place)["VolumeId"]
    ec2.attach_volume(VolumeId=volume, InstanceId=instance, Device="/dev/xvdb")
    del world


# -- launch templates and what they launch


def template(world: World, *versions: dict[str, Any]) -> str:
    """Make a launch template with these versions; the first is the default. Return its id."""
    ec2 = raw("ec2")
    made = ec2.create_launch_template(LaunchTemplateName=world.name("nodes"), LaunchTemplateData=versions[0])
    identity = str(made["LaunchTemplate"]["LaunchTemplateId"])
    for each in versions[1:]:
        ec2.create_launch_template_version(LaunchTemplateId=identity, LaunchTemplateData=each)
    return identity


OTHER = {"ImageId": "ami-0", "InstanceType": "m5.large"}


def between(world: World, ami: str) -> str:
    """Make a launch template whose second of three versions names the image: neither the default nor the latest."""
    return template(world, OTHER, {**OTHER, "ImageId": ami}, OTHER)


def by_default_version(world: World, ami: str) -> None:
    template(world, {**OTHER, "ImageId": ami}, OTHER)


def by_latest_version(world: World, ami: str) -> None:
    template(world, OTHER, {**OTHER, "ImageId": ami})


def by_snapshot_in_a_template(world: World, ami: str) -> None:
    disks = [{"DeviceName": "/dev/xvdb", "Ebs": {"SnapshotId": snapshot_of(ami)}}]
    template(world, {**OTHER, "BlockDeviceMappings": disks})


def by_parameter_of_a_template(world: World, ami: str) -> None:
    """A chain: a version names a parameter, of no special data type, which names the image."""
    name = world.name("/plain")
    raw("ssm").put_parameter(Name=name, Value=ami, Type="String")
    template(world, {**OTHER, "ImageId": f"resolve:ssm:{name}"})


def group(world: World, launch: dict[str, Any]) -> str:
    """Make an Auto Scaling group; return its name."""
    name, subnet = world.name("workers"), raw("ec2").describe_subnets()["Subnets"][0]["SubnetId"]
    more = {"MinSize": 0, "MaxSize": 2, "VPCZoneIdentifier": subnet}
    raw("autoscaling").create_auto_scaling_group(AutoScalingGroupName=name, **more, **launch)
    return name


def by_group(world: World, ami: str) -> None:
    group(world, {"LaunchTemplate": {"LaunchTemplateId": between(world, ami), "Version": "2"}})


def by_override_of_a_mixed_group(world: World, ami: str) -> None:
    override = {"LaunchTemplateSpecification": {"LaunchTemplateId": between(world, ami), "Version": "2"}}
    specification = {"LaunchTemplateId": template(world, OTHER), "Version": "1"}
    mixed = {"LaunchTemplateSpecification": specification, "Overrides": [{"InstanceType": "m5.large", **override}]}
    group(world, {"MixedInstancesPolicy": {"LaunchTemplate": mixed}})


def by_way_back_of_a_group(world: World, ami: str) -> None:
    made = between(world, ami)
    name = group(world, {"LaunchTemplate": {"LaunchTemplateId": made, "Version": "1"}})
    tag = {"ResourceId": name, "ResourceType": "auto-scaling-group", "PropagateAtLaunch": False}
    raw("autoscaling").create_or_update_tags(Tags=[{**tag, "Key": "parbake:previous", "Value": f"{made}:2"}])


def by_launch_configuration(world: World, ami: str) -> None:
    raw("autoscaling").create_launch_configuration(
        LaunchConfigurationName=world.name("old"), ImageId=ami, InstanceType="m5.large"
    )


def node_group(world: World, version: dict[str, str], tags: dict[str, str] | None = None) -> None:
    """Make a managed node group."""
    eks = raw("eks")
    subnets = [each["SubnetId"] for each in raw("ec2").describe_subnets()["Subnets"]][:2]
    if "prod" not in eks.list_clusters()["clusters"]:
        eks.create_cluster(name="prod", roleArn=ROLE, resourcesVpcConfig={"subnetIds": subnets})
    eks.create_nodegroup(
        clusterName="prod",
        nodegroupName=world.name("nodes"),
        nodeRole=ROLE,
        subnets=subnets,
        amiType="CUSTOM",
        launchTemplate=version,
        tags=tags or {},
    )


def by_node_group(world: World, ami: str) -> None:
    node_group(world, {"id": between(world, ami), "version": "2"})


def by_way_back_of_a_node_group(world: World, ami: str) -> None:
    made = between(world, ami)
    node_group(world, {"id": made, "version": "1"}, {"parbake:previous": f"{made}:2"})


# -- parameters


def by_parameter(world: World, ami: str) -> None:
    raw("ssm").put_parameter(Name=world.name("/any"), Value=ami, Type="String", DataType="aws:ec2:image")


def by_target_parameter(world: World, ami: str) -> None:
    """A snapshot in a parameter has no special data type: only the target tells of it."""
    name = world.name("/data")
    raw("ssm").put_parameter(Name=name, Value=snapshot_of(ami), Type="String")
    world.target("ssm", name)


def by_history_of_a_parameter(world: World, ami: str) -> None:
    name = world.name("/gpu")
    for value in (ami, "ami-0"):
        raw("ssm").put_parameter(Name=name, Value=value, Type="String", Overwrite=True)
    world.target("ssm", name)


# -- node classes in a cluster


def by_node_class(world: World, ami: str) -> None:
    world.node_class({"amiSelectorTerms": [{"id": ami}]})


def by_disk_of_a_node_class(world: World, ami: str) -> None:
    disks = [{"deviceName": "/dev/xvdb", "ebs": {"snapshotID": snapshot_of(ami), "volumeSize": "30Gi"}}]
    world.node_class({"amiSelectorTerms": [{"id": "ami-0"}], "blockDeviceMappings": disks})


def by_tag_of_a_node_class(world: World, ami: str) -> None:
    """The node class has no status yet: what its terms mean is found out."""
    value = world.name("gpu")
    raw("ec2").create_tags(Resources=[ami], Tags=[{"Key": "image", "Value": value}])
    world.node_class({"amiSelectorTerms": [{"tags": {"image": value}, "owner": "self"}]})


def by_name_in_a_node_class(world: World, ami: str) -> None:
    name = raw("ec2").describe_images(ImageIds=[ami])["Images"][0]["Name"]
    world.node_class({"amiSelectorTerms": [{"name": name, "owner": "self"}]})


def by_parameter_of_a_node_class(world: World, ami: str) -> None:
    name = world.name("/nodes")
    raw("ssm").put_parameter(Name=name, Value=ami, Type="String")
    world.node_class({"amiSelectorTerms": [{"ssmParameter": name}]})


def by_status_of_a_node_class(world: World, ami: str) -> None:
    """A parameter moved on, and Karpenter has not seen it yet: nodes still start from what it has resolved."""
    name = world.node_class({"amiSelectorTerms": [{"ssmParameter": "/moved/on"}]})
    arch = [{"key": "kubernetes.io/arch", "operator": "In", "values": ["amd64"]}]
    world.server.set_status("ec2nodeclasses", name, {"amis": [{"id": ami, "requirements": arch}]})


def by_way_back_of_a_node_class(world: World, ami: str) -> None:
    note = json.dumps({"previous": {"images": [ami]}, "current": {"images": ["ami-0"]}})
    world.node_class({"amiSelectorTerms": [{"id": "ami-0"}]}, annotations={"parbake/rollout": note})


def by_node_template(world: World, ami: str) -> None:
    """The API of before v0.32, in the same cluster."""
    world.node_class({"amiSelectorTerms": [{"id": "ami-0"}]})
    selector = {"aws-ids": f"ami-0,{ami}"}
    world.server.create("awsnodetemplates", world.name("old"), "v1alpha1", spec={"amiSelector": selector})


def by_tag_of_a_node_template(world: World, ami: str) -> None:
    world.node_class({"amiSelectorTerms": [{"id": "ami-0"}]})
    value = world.name("old")
    raw("ec2").create_tags(Resources=[ami], Tags=[{"Key": "generation", "Value": value}])
    selector = {"generation": value}
    world.server.create("awsnodetemplates", world.name("old"), "v1alpha1", spec={"amiSelector": selector})


# -- files


def _manifest(world: World, image: str, **metadata: Any) -> None:
    path = Path(f"{world.name('gpu')}.yaml")
    spec = {"amiSelectorTerms": [{"id": image}]}
    path.write_text(json.dumps({"kind": "EC2NodeClass", "metadata": {"name": "x", **metadata}, "spec": spec}))
    world.target("gitops", {"file": str(path)})


def by_manifest(world: World, ami: str) -> None:
    _manifest(world, ami)


def by_way_back_of_a_manifest(world: World, ami: str) -> None:
    note = json.dumps({"previous": {"images": [ami]}, "current": {"images": ["ami-0"]}})
    _manifest(world, "ami-0", annotations={"parbake/rollout": note})


def by_values_of_a_chart(world: World, ami: str) -> None:
    path = Path(f"{world.name('values')}.yaml")
    path.write_text(f"nodes: {{image: {ami}}}\n")
    world.target("gitops", {"file": str(path), "image_at": "nodes.image"})


def by_way_back_of_a_file(world: World, ami: str) -> None:
    path = Path(f"{world.name('image')}.json")
    offer = Offer(artefacts=("node",), keys=("k",), architectures=("amd64",))
    now, before = (values(offer.model_copy(update={"images": (each,)})) for each in ("ami-0", ami))
    path.write_text(render("json", now, History(before)))
    world.target("file", str(path))


# -- Ocean


def by_virtual_node_group(world: World, ami: str) -> None:
    """One that no target names, beside one that a target names."""
    world.spot.specifications[world.name("ols")] = {"imageId": ami}
    world.target("ocean", {"cluster": "o-1", "groups": ["ols-1"]})


def by_disk_of_a_virtual_node_group(world: World, ami: str) -> None:
    disks = [{"deviceName": "/dev/xvdb", "ebs": {"snapshotId": snapshot_of(ami)}}]
    world.spot.specifications[world.name("ols")] = {"imageId": "ami-0", "blockDeviceMappings": disks}
    world.target("ocean", {"cluster": "o-1", "groups": ["ols-1"]})


def by_ocean_cluster(world: World, ami: str) -> None:
    world.spot.specifications["o-1"] = {"imageId": ami, "tags": []}
    world.target("ocean", {"cluster": "o-1", "groups": ["ols-1"]})


def by_way_back_of_ocean(world: World, ami: str) -> None:
    name = world.name("ols")
    world.spot.specifications[name] = {
        "imageId": "ami-0",
        "tags": [{"tagKey": "parbake:previous", "tagValue": ami}],
    }
    world.target("ocean", {"cluster": "o-1", "groups": [name]})


USES: tuple[Use, ...] = tuple(value for key, value in list(globals().items()) if key.startswith("by_"))
ONCE: frozenset[Use] = frozenset({by_ocean_cluster})
"""What there is once in a world."""

"""The stand-in for EC2 refuses what EC2 refuses: a client token's second request, ids that nobody has."""

from __future__ import annotations

from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from parbake.aws.leftovers import LeftoverFilter, remove
from parbake.core.events import Events
from standins.aws import lean
from standins.aws.ec2 import Cloud
from standins.aws.ec2_support import OTHER, Bake, bake, cloud, named, plan
from tests.aws.conftest import REGION

__all__ = ["bake", "cloud", "plan"]

NO = "0123456789abcdef0"
TAGS = [{"Key": "parbake:managed", "Value": "temporary"}]
TO = {"UserIds": ["123456789012"]}
# Writes that name what does not exist, and the code of their refusal.
UNKNOWN: dict[str, tuple[str, dict[str, Any], str]] = {
    "terminate": ("terminate_instances", {"InstanceIds": [f"i-{NO}"]}, "InvalidInstanceID.NotFound"),
    "console": ("get_console_output", {"InstanceId": f"i-{NO}"}, "InvalidInstanceID.NotFound"),
    "image of": ("create_image", {"InstanceId": f"i-{NO}", "Name": "xyz"}, "InvalidInstanceID.NotFound"),
    "snapshot of": ("create_snapshot", {"VolumeId": f"vol-{NO}"}, "InvalidVolume.NotFound"),
    "volume": ("delete_volume", {"VolumeId": f"vol-{NO}"}, "InvalidVolume.NotFound"),
    "snapshot": ("delete_snapshot", {"SnapshotId": f"snap-{NO}"}, "InvalidSnapshot.NotFound"),
    "image": ("deregister_image", {"ImageId": f"ami-{NO}"}, "InvalidAMIID.NotFound"),
    "group": ("delete_security_group", {"GroupId": f"sg-{NO}"}, "InvalidGroup.NotFound"),
    "copy": (
        "copy_image",
        {"Name": "xyz", "SourceImageId": f"ami-{NO}", "SourceRegion": REGION},
        "InvalidAMIID.NotFound",
    ),
    "tags of a snapshot": ("create_tags", {"Resources": [f"snap-{NO}"], "Tags": TAGS}, "InvalidSnapshot.NotFound"),
    "tags of an image": ("create_tags", {"Resources": [f"ami-{NO}"], "Tags": TAGS}, "InvalidAMIID.NotFound"),
    "share": (
        "modify_snapshot_attribute",
        {"SnapshotId": f"snap-{NO}", "Attribute": "createVolumePermission", "OperationType": "add"} | TO,
        "InvalidSnapshot.NotFound",
    ),
    "copy of a snapshot": (
        "copy_snapshot",
        {"SourceSnapshotId": f"snap-{NO}", "SourceRegion": REGION},
        "InvalidSnapshot.NotFound",
    ),
    "share of an image": (
        "modify_image_attribute",
        {"ImageId": f"ami-{NO}", "ImdsSupport": {"Value": "v2.0"}},
        "InvalidAMIID.NotFound",
    ),
    "deprecation": (
        "enable_image_deprecation",
        {"ImageId": f"ami-{NO}", "DeprecateAt": "2027-01-01T00:00:00Z"},
        "InvalidAMIID.NotFound",
    ),
}


@pytest.mark.parametrize("what", UNKNOWN)
def test_ids_that_nobody_has_are_refused(cloud: Cloud, what: str) -> None:
    del cloud
    call, asked, code = UNKNOWN[what]
    with pytest.raises(ClientError) as caught:
        getattr(boto3.client("ec2", REGION), call)(**asked)
    assert caught.value.response["Error"]["Code"] == code


def test_a_client_token_acts_once_and_for_one_request(cloud: Cloud) -> None:
    source, ec2 = cloud.base(REGION), boto3.client("ec2", OTHER)
    wishes = {"Name": "copy", "SourceImageId": source, "SourceRegion": REGION, "ClientToken": "t"}
    assert ec2.copy_image(**wishes)["ImageId"] == ec2.copy_image(**wishes)["ImageId"]
    with pytest.raises(ClientError, match="IdempotentParameterMismatch"):
        ec2.copy_image(**{**wishes, "Name": "another"})


def test_a_launch_whose_answer_was_lost_is_sent_again_and_acts_once(cloud: Cloud, bake: Bake) -> None:
    """What botocore sends twice is the same to the last byte: one instance, and no mismatch."""
    bake(verify=False)
    [wishes] = named(cloud, "RunInstances")
    again = boto3.client("ec2", REGION).run_instances(**wishes)["Instances"]
    assert [each["InstanceId"] for each in again] == list(cloud.machines)
    with pytest.raises(ClientError, match="IdempotentParameterMismatch"):
        boto3.client("ec2", REGION).run_instances(**{**wishes, "TagSpecifications": []})


def test_a_volume_of_a_snapshot_that_nobody_has_is_refused(cloud: Cloud, bake: Bake) -> None:
    bake(verify=False)
    [wishes] = named(cloud, "RunInstances")
    disk = {"DeviceName": "/dev/xvdz", "Ebs": {"SnapshotId": f"snap-{NO}", "VolumeSize": 8}}
    asked = {**wishes, "ClientToken": "new", "BlockDeviceMappings": [*wishes["BlockDeviceMappings"], disk]}
    with pytest.raises(ClientError, match=r"InvalidSnapshot\.NotFound"):
        boto3.client("ec2", REGION).run_instances(**asked)


def test_a_volume_that_is_being_created_takes_nothing_yet_and_a_clean_up_waits_for_it(cloud: Cloud) -> None:
    ec2 = boto3.client("ec2", REGION)
    tags = [{"ResourceType": "volume", "Tags": [*TAGS, {"Key": "parbake:name", "Value": "shop"}]}]
    made = ec2.create_volume(Size=1, AvailabilityZone=f"{REGION}a", TagSpecifications=tags)
    assert made["State"] == "creating"
    for call in (ec2.create_snapshot, ec2.delete_volume):
        with pytest.raises(ClientError, match="IncorrectState"):
            call(VolumeId=made["VolumeId"])
    cloud.pending[made["VolumeId"]] = 3
    assert remove(LeftoverFilter(name="shop"), REGION, Events()) == (made["VolumeId"],)
    assert cloud.left(REGION) == {}


def test_what_is_written_quicker_reads_the_same(cloud: Cloud, bake: Bake, monkeypatch: pytest.MonkeyPatch) -> None:
    bake(copy_to=(OTHER,))
    ec2 = boto3.client("ec2", REGION)
    snapshot = ec2.describe_snapshots()["Snapshots"][0]["SnapshotId"]
    ec2.create_tags(Resources=[snapshot], Tags=[{"Key": "a&b <c>", "Value": "\"d' é"}, {"Key": "e", "Value": ""}])
    template = {"ImageId": cloud.base(REGION), "Monitoring": {"Enabled": True}, "TagSpecifications": []}
    ec2.create_launch_template(LaunchTemplateName="nodes", LaunchTemplateData=template)
    looks = [
        *("images", "instances", "security_groups", "snapshots", "subnets", "tags", "volumes", "vpcs"),
        *("availability_zones", "key_pairs", "launch_templates", "regions"),
    ]

    def seen() -> dict[str, Any]:
        answers = {look: getattr(ec2, f"describe_{look}")() for look in looks}
        answers["versions"] = ec2.describe_launch_template_versions(LaunchTemplateName="nodes")
        for answer in answers.values():
            del answer["ResponseMetadata"]
        return answers

    quick = seen()
    for (owner, name), slow in lean.SLOW.items():
        monkeypatch.setattr(owner, name, slow)
    assert quick == seen()
    assert {"Key": "a&b <c>", "Value": "\"d' é"} in quick["snapshots"]["Snapshots"][0]["Tags"]

"""Volumes on EC2's stand-in: an instance fills its second disk, the snapshot of it is proven beside the same base."""

from __future__ import annotations

from typing import Any

import pytest

from parbake import aws
from parbake.core.errors import AwsError, InputError
from parbake.core.model import Plan
from standins.aws.ec2 import Cloud
from standins.aws.ec2_support import APP, OTHER, Bake, bake, cloud, named, notes, plan, volume
from tests.aws.conftest import REGION

__all__ = ["APP", "bake", "cloud", "plan", "volume"]


def test_a_second_disk_becomes_a_snapshot_that_starts(cloud: Cloud, volume: Plan, bake: Bake) -> None:
    baked = bake(of=volume, tags={"team": "x"})
    there = baked.published[REGION]
    assert baked.verdict
    assert baked.verdict.passed
    assert baked.verdict.images[0].start_seconds is not None
    assert (there.image, [each.size for each in there.snapshots]) == ("", [volume.size])
    assert cloud.left(REGION) == {"snapshots": [there.snapshots[0].id]}
    [described] = aws.client("ec2", REGION).describe_snapshots(SnapshotIds=[there.snapshots[0].id])["Snapshots"]
    tags = aws.as_dict(described)
    assert (tags[aws.KEY], tags[aws.MANAGED], tags["team"]) == (volume.key, "artefact", "x")
    assert tags[aws.VERIFIED] == baked.verdict.verified_at
    assert "parbake:expires" not in tags

    builder, verifier = [each["BlockDeviceMappings"] for each in named(cloud, "RunInstances")]
    assert [each["DeviceName"] for each in builder] == ["/dev/xvda", "/dev/xvdb"]
    assert "VolumeSize" not in builder[0]["Ebs"], "the base's disk stays as it is"
    assert builder[1]["Ebs"] | {"VolumeSize": 0} == {
        "DeleteOnTermination": True,
        "VolumeType": "gp3",
        "Iops": 3000,
        "Throughput": 500,
        "VolumeSize": 0,
    }
    assert verifier[1]["Ebs"]["SnapshotId"] == there.snapshots[0].id
    assert {each["ImageId"] for each in named(cloud, "RunInstances")} == {volume.base.identity}


def test_what_exists_is_taken(cloud: Cloud, volume: Plan, bake: Bake) -> None:
    first = bake(of=volume)
    cloud.calls.clear()
    again = bake(of=volume)
    assert again.published == first.published
    assert named(cloud, "RunInstances", "CreateSnapshot") == []
    other = bake(of=volume, fresh=True)
    assert other.published != first.published
    assert len(cloud.left(REGION)["snapshots"]) == 2


def test_copies_shares_and_fast_restore(cloud: Cloud, volume: Plan, bake: Bake) -> None:
    baked = bake(
        of=volume,
        copy_to=(OTHER,),
        share_with=("210987654321",),
        fast_snapshot_restore=(f"{OTHER}b",),
        encrypted=True,
        kms_key="alias/nodes",
    )
    assert list(baked.published) == [REGION, OTHER]
    for region, there in baked.published.items():
        [snapshot] = there.snapshots
        assert cloud.left(region) == {"snapshots": [snapshot.id]}
        asked = {"SnapshotId": snapshot.id, "Attribute": "createVolumePermission"}
        shared = aws.client("ec2", region).describe_snapshot_attribute(**asked)["CreateVolumePermissions"]
        assert shared == [{"UserId": "210987654321"}]
    assert named(cloud, "RunInstances")[0]["BlockDeviceMappings"][1]["Ebs"]["KmsKeyId"] == "alias/nodes"
    assert "Encrypted" not in named(cloud, "RunInstances")[1]["BlockDeviceMappings"][1]["Ebs"], "its snapshot says it"
    [fast] = named(cloud, "EnableFastSnapshotRestores")
    assert fast["SourceSnapshotIds"] == [baked.published[OTHER].snapshots[0].id]


def test_a_volume_that_does_not_start_is_kept_and_marked(cloud: Cloud, volume: Plan, bake: Bake) -> None:
    notes(cloud).prepare = lambda node: (node.fake / "code").write_text("3")
    baked = bake(of=volume, copy_to=(OTHER,))
    assert baked.verdict
    assert not baked.verdict.passed
    assert cloud.left(REGION) == {"snapshots": [baked.published[REGION].snapshots[0].id]}
    assert cloud.left(OTHER) == {}, "what is not proven goes nowhere"


def test_a_snapshot_that_fails_is_removed_by_the_next_run(cloud: Cloud, volume: Plan, bake: Bake) -> None:
    def broken(_service: str, operation: str, _arguments: dict[str, Any]) -> None:
        if operation == "CreateSnapshot":
            made = list(cloud.pending)[-1]
            cloud.details[made], cloud.pending[made] = {"State": "error"}, 0

    cloud.after.append(broken)
    with pytest.raises(AwsError, match="error"):
        bake(of=volume)
    cloud.after.remove(broken)
    baked = bake(of=volume)
    assert cloud.left(REGION) == {"snapshots": [baked.published[REGION].snapshots[0].id]}


@pytest.mark.parametrize(
    "settings", [{"share_with": ("arn:aws:organizations::123456789012:ou/o-abc/ou-abc",)}, {"deprecate_after": "9d"}]
)
def test_what_only_amis_can_do_is_refused(cloud: Cloud, volume: Plan, bake: Bake, settings: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        bake(of=volume, **settings)
    assert cloud.calls == []

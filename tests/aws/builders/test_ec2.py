"""Bakes on EC2's stand-in: the whole builder, its faults, and what is left after each."""

from __future__ import annotations

from typing import Any

import boto3
import pytest

from parbake import aws
from parbake.core import events
from parbake.core.errors import AwsLimit, DeadlineExceeded
from parbake.core.events import Event
from parbake.core.model import Plan
from standins.aws.ec2 import Cloud, refuse
from standins.aws.ec2_support import APP, OTHER, Bake, bake, cloud, named, notes, plan, volume
from tests.aws.conftest import REGION

__all__ = ["APP", "bake", "cloud", "plan", "volume"]


def test_a_bake_makes_an_ami_that_starts_and_leaves_nothing_else(cloud: Cloud, plan: Plan, bake: Bake) -> None:
    baked = bake()
    there = baked.published[REGION]
    assert baked.verdict
    assert baked.verdict.passed
    assert baked.verdict.accelerator == "ec2"
    assert baked.verdict.images[0].start_seconds is not None
    assert cloud.left(REGION) == {"images": [there.image], "snapshots": [each.id for each in there.snapshots]}
    described = aws.client("ec2", REGION).describe_images(ImageIds=[there.image])["Images"][0]
    tags = aws.as_dict(described)
    assert (tags[aws.KEY], tags[aws.MANAGED]) == (plan.key, "artefact")
    assert tags[aws.VERIFIED] == baked.verdict.verified_at
    assert described["Name"] == f"shop-{plan.key[:12]}"
    assert described["ImdsSupport"] == "v2.0"


def test_the_builder_is_closed_and_everything_is_tagged(cloud: Cloud, bake: Bake) -> None:
    boto3.client("iam").create_instance_profile(InstanceProfileName="baker")
    bake(instance_profile="baker", tags={"team": "x"})
    launched = named(cloud, "RunInstances")
    assert [each["InstanceInitiatedShutdownBehavior"] for each in launched] == ["stop", "stop"]
    assert launched[0]["IamInstanceProfile"] == {"Name": "baker"}
    assert "IamInstanceProfile" not in launched[1], "who verifies pulls nothing"
    assert launched[0]["BlockDeviceMappings"][0]["Ebs"]["Throughput"] == 500
    assert named(cloud, "AuthorizeSecurityGroupIngress") == []
    for _, operation, arguments in cloud.calls:
        if operation in {"RunInstances", "CreateSecurityGroup", "CreateImage", "CopyImage"}:
            for specification in arguments["TagSpecifications"]:
                keys = {tag["Key"] for tag in specification["Tags"]}
                assert {"parbake:managed", "parbake:key", "parbake:run", "parbake:expires", "team"} <= keys


@pytest.mark.parametrize("kind", ["plan", "volume"])
def test_the_guest_and_the_snapshots_are_followed(
    bake: Bake, kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "_REPORT_INTERVAL", 0.0)
    seen: list[Event] = []
    bake(of=request.getfixturevalue(kind), seen=seen)
    said = [each.text for each in seen if each.kind == "note"]
    stages = ["guest: runtime", f"guest: pull {APP.reference}", "guest: seal", f"guest: start {APP.reference}"]
    assert [each for each in said if each in stages] == [*stages[:3], stages[0], stages[3]], "bake, then proof"
    waits = [each for each in seen if each.kind == "task-progress" and each.text.startswith("Wait for ")]
    assert (waits[0].done, waits[0].total) == (50, 100), "the snapshot's own percentage"


def test_the_second_bake_does_nothing_but_look(cloud: Cloud, bake: Bake) -> None:
    first = bake()
    cloud.calls.clear()
    assert bake().published == first.published
    assert {operation for _, operation, _ in cloud.calls if not operation.startswith(("Describe", "Get"))} <= {
        "CreateTags"
    }


def test_fresh_makes_another_and_leaves_the_old_one(cloud: Cloud, bake: Bake) -> None:
    first = bake().published[REGION].image
    second = bake(fresh=True).published[REGION].image
    assert first != second
    assert set(cloud.left(REGION)["images"]) == {first, second}


def test_copies_shares_deprecation_and_fast_restore(cloud: Cloud, bake: Bake) -> None:
    organisation = "arn:aws:organizations::123456789012:organization/o-abc"
    baked = bake(
        copy_to=(OTHER,),
        share_with=("210987654321", organisation),
        deprecate_after="90d",
        fast_snapshot_restore=(f"{REGION}a", f"{OTHER}b"),
    )
    assert list(baked.published) == [REGION, OTHER]
    for region, there in baked.published.items():
        details = cloud.details[there.image]
        assert details["shared"] == [{"UserId": "210987654321"}, {"OrganizationArn": organisation}]
        assert details["DeprecationTime"]
        assert cloud.fast.on(there.snapshots[0].id) == {f"{region}{'a' if region == REGION else 'b'}"}
        assert cloud.left(region) == {"images": [there.image], "snapshots": [each.id for each in there.snapshots]}
        ec2 = aws.client("ec2", region)
        permission = ec2.describe_snapshot_attribute(
            SnapshotId=there.snapshots[0].id, Attribute="createVolumePermission"
        )["CreateVolumePermissions"]
        assert permission == [{"UserId": "210987654321"}]


def test_encryption_is_of_the_builders_volume(cloud: Cloud, bake: Bake) -> None:
    bake(encrypted=True, kms_key="alias/nodes", verify=False)
    assert named(cloud, "RunInstances")[0]["BlockDeviceMappings"][0]["Ebs"]["KmsKeyId"] == "alias/nodes"


# -- what goes wrong


def test_an_ami_whose_images_do_not_start_is_kept_and_marked(cloud: Cloud, bake: Bake) -> None:
    notes(cloud).prepare = lambda node: (node.fake / "code").write_text("3")
    baked = bake(copy_to=(OTHER,))
    assert baked.verdict
    assert not baked.verdict.passed
    assert "ended with code 3" in baked.verdict.images[0].problems[0]
    assert cloud.left(REGION)["images"] == [baked.published[REGION].image]
    assert cloud.left(OTHER) == {}, "what is not proven goes nowhere"
    assert "instances" not in cloud.left(REGION)


def test_capacity_is_looked_for_in_other_zones_types_and_purchases(cloud: Cloud, bake: Bake) -> None:
    tried: list[tuple[bool, str, str]] = []

    def refused(_service: str, operation: str, asked: dict[str, Any]) -> None:
        if operation == "RunInstances":
            tried.append(("InstanceMarketOptions" in asked, asked["InstanceType"], asked["SubnetId"]))
            if len(tried) < 9:
                raise refuse("InsufficientInstanceCapacity", "none left", operation)

    cloud.before.append(refused)
    bake(purchase="spot-first", instance_types=("m7i.large", "m6i.large"), verify=False)
    subnets = [subnet for _, _, subnet in tried[:3]]
    assert len(set(subnets)) == 3, "a zone each"
    ways = [(spot, kind, subnet) for spot in (True, False) for kind in ("m7i.large", "m6i.large") for subnet in subnets]
    assert tried == ways[:9]
    assert cloud.requests == {}


def test_a_spot_instance_that_is_taken_away_is_replaced_on_demand(cloud: Cloud, bake: Bake) -> None:
    cloud.spot_interruptions = 1
    bake(purchase="spot-first", verify=False)
    spot, demand = named(cloud, "RunInstances")
    assert spot["InstanceMarketOptions"]["SpotOptions"]["InstanceInterruptionBehavior"] == "stop"
    assert "InstanceMarketOptions" not in demand
    assert "instances" not in cloud.left(REGION)


def test_a_spot_instance_that_is_taken_away_is_said(cloud: Cloud, bake: Bake) -> None:
    cloud.spot_interruptions = 1
    with pytest.raises(AwsLimit, match="took the spot instance"):
        bake(purchase="spot")
    assert cloud.left(REGION) == {}


def test_an_ami_that_fails_is_removed_by_the_next_run(cloud: Cloud, bake: Bake) -> None:
    states = iter(["failed"])

    def broken(_service: str, operation: str, _arguments: dict[str, Any]) -> None:
        if operation == "CreateImage":
            made = list(cloud.details)[-1]
            cloud.details[made]["State"], cloud.pending[made] = next(states, "available"), 0

    cloud.after.append(broken)
    with pytest.raises(Exception, match="is failed"):
        bake(verify=False)
    baked = bake(verify=False)
    assert cloud.left(REGION)["images"] == [baked.published[REGION].image]


def test_waiting_too_long_keeps_the_ami_for_the_next_run(
    cloud: Cloud, bake: Bake, monkeypatch: pytest.MonkeyPatch
) -> None:
    from parbake.builders.ec2 import image as images

    monkeypatch.setattr(images, "_WAIT", 0.0)
    with pytest.raises(DeadlineExceeded, match="last seen: pending") as caught:
        bake()
    assert "to keep waiting" in caught.value.hint
    half = cloud.left(REGION)
    assert "instances" not in half
    monkeypatch.setattr(images, "_WAIT", 60.0)
    assert bake().published[REGION].image == half["images"][0]

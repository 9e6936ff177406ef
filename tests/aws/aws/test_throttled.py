"""AWS throttles any one call, for longer than anybody tries: that is said, nothing is lost, and the next run finishes.

botocore's own tries are the only ones (``tests/aws/aws/test_clients.py`` counts them): nothing above makes a call
again.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import boto3
import pytest

from parbake.aws.leftovers import LeftoverFilter, remove
from parbake.builders import Publication
from parbake.core.errors import AwsLimit
from parbake.core.events import Events
from parbake.core.model import Plan
from standins.aws.ebs_direct_in_process import Direct
from standins.aws.ec2 import Cloud
from standins.aws.ec2_support import OTHER, Bake, bake, cloud, plan, volume
from standins.aws.interceptor import throttled_everywhere
from tests.aws.aws.test_ebs_crash import artefacts, left
from tests.aws.aws.test_ebs_crash import settings_for as ebs_settings
from tests.aws.aws.test_eventual import killed_after, only_artefacts
from tests.aws.builders.test_ebs_builder import MACHINE, VOLUME, FakeBuilder, build, direct, fake_builder
from tests.aws.builders.test_ec2_crash import settings_for
from tests.aws.conftest import REGION

__all__ = ["bake", "cloud", "direct", "fake_builder", "plan", "volume"]

# A look at a console that is refused is followed by the next look; all else is over, and at most cleaned up after.
POLLED = {"GetConsoleOutput"}
MOST = 4


def said(came: Exception | None, throttled: Counter[str]) -> None:
    """Check what a run said, of which one operation was throttled at each try."""
    [(operation, times)] = throttled.items()
    assert times <= MOST or operation in POLLED, f"{operation} was tried {times} times"
    if came:
        if not isinstance(came, AwsLimit):
            raise came
        assert "throttles" in came.hint
        assert operation in came.message


@pytest.mark.parametrize("kind", ["plan", "volume"])
def test_a_bake_on_an_instance(cloud: Cloud, bake: Bake, kind: str, request: pytest.FixtureRequest) -> None:
    wanted: Plan = request.getfixturevalue(kind)
    done: list[Publication] = []
    met = throttled_everywhere(cloud, lambda: done.append(bake(of=wanted, **settings_for(wanted))), said)
    assert met >= {"RunInstances", "DescribeInstances", "GetConsoleOutput", "CreateTags", "TerminateInstances"}
    assert done[-1].verdict
    assert done[-1].verdict.passed
    only_artefacts(cloud, done[-1].published)


@pytest.mark.parametrize("wanted", [VOLUME, MACHINE], ids=lambda plan: plan.name)
def test_a_bake_without_one(tmp_path: Path, fake_builder: FakeBuilder, direct: Direct, wanted: Plan) -> None:
    def judge(came: Exception | None, throttled: Counter[str]) -> None:
        assert came
        said(came, throttled)

    met = throttled_everywhere(direct, lambda: build(tmp_path, wanted, **ebs_settings(wanted)), judge)
    assert met >= {"StartSnapshot", "CompleteSnapshot", "DescribeSnapshots", "CreateTags"}
    assert left(direct.world) == artefacts(wanted, REGION) + artefacts(wanted, OTHER)
    assert len(fake_builder.bakes) == 1


def test_a_clean_up(cloud: Cloud, bake: Bake, plan: Plan) -> None:
    """Of all that there can be: an instance, its group and request, an AMI, a snapshot, a volume."""
    leave_all(cloud, bake)

    def judge(came: Exception | None, throttled: Counter[str]) -> None:
        assert came
        said(came, throttled)

    met = throttled_everywhere(cloud, lambda: remove(LeftoverFilter(name=plan.name), REGION, Events()), judge)
    assert {each for each in met if not each.startswith("Describe")} == {
        "CancelSpotInstanceRequests",
        "TerminateInstances",
        "DeregisterImage",
        "DeleteSnapshot",
        "DeleteVolume",
        "DeleteSecurityGroup",
    }
    assert cloud.left(REGION) == {}


def leave_all(cloud: Cloud, bake: Bake) -> None:
    """Leave something of each kind."""
    killed_after(cloud, "CreateImage", bake, purchase="spot")
    tags = [{"Key": "parbake:managed", "Value": "temporary"}, {"Key": "parbake:name", "Value": "shop"}]
    wanted = [{"ResourceType": "volume", "Tags": tags}]
    ec2 = boto3.client("ec2", REGION)
    volume = ec2.create_volume(Size=1, AvailabilityZone=f"{REGION}a", TagSpecifications=wanted)["VolumeId"]
    ec2.describe_volumes(VolumeIds=[volume])
    made = ec2.create_snapshot(VolumeId=volume)["SnapshotId"]
    ec2.create_tags(Resources=[made], Tags=tags)
    assert set(cloud.left(REGION)) == {"instances", "requests", "groups", "images", "snapshots", "volumes"}

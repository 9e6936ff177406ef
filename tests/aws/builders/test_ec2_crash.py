"""Killed after any call that changes something: the same command finishes, and a clean-up would leave nothing.

"Killed" means that the process makes no further call, not even to clean up. Between two such calls nothing changes in
AWS, so that a kill before one is a kill after the one before it.
"""

from __future__ import annotations

from typing import Any

import pytest

from parbake import aws
from parbake.aws.leftovers import LeftoverFilter, remove
from parbake.builders import Publication
from parbake.core.events import Events
from parbake.core.model import Plan
from standins.aws.ec2 import Cloud, Killed
from standins.aws.ec2_support import OTHER, Bake, bake, cloud, plan, policy_for, volume
from standins.aws.iam_recorder import allowed_by
from standins.aws.interceptor import READING, killed_everywhere
from standins.forks import in_child
from tests.aws.conftest import REGION

pytestmark = pytest.mark.slow

__all__ = ["bake", "cloud", "plan", "volume"]

SETTINGS: dict[str, Any] = {
    "copy_to": (OTHER,),
    "purchase": "spot-first",
    "share_with": ("210987654321",),
    "deprecate_after": "90d",
    "fast_snapshot_restore": (f"{OTHER}b",),
}


class Killer:
    """Kills after the ``number``-th call that changes something: AWS has acted, and nobody has heard of it."""

    def __init__(self, cloud: Cloud, number: int) -> None:
        self.number, self.seen, self.dead = number, 0, False
        cloud.before.append(self.on_the_way_there)
        cloud.after.append(self.on_the_way_back)

    def on_the_way_there(self, _service: str, operation: str, _arguments: dict[str, Any]) -> None:
        if self.dead:
            raise Killed
        self.seen += not operation.startswith(READING)

    def on_the_way_back(self, _service: str, operation: str, _arguments: dict[str, Any]) -> None:
        if not operation.startswith(READING) and self.seen == self.number:
            self.dead = True
            raise Killed


def settings_for(plan: Plan) -> dict[str, Any]:
    """Return all that can become of an artefact."""
    ami = plan.artefact.kind == "machine-image"
    return {key: value for key, value in SETTINGS.items() if ami or key != "deprecate_after"}


def killed_at(cloud: Cloud, bake: Bake, number: int) -> bool:
    """Bake and be killed; return whether that happened."""
    killer = Killer(cloud, number)
    try:
        bake(**SETTINGS)
    except Killed:
        return True
    finally:
        cloud.before.remove(killer.on_the_way_there)
        cloud.after.remove(killer.on_the_way_back)
    return False


@pytest.mark.parametrize("kind", ["plan", "volume"])
def test_killed_at_any_call(cloud: Cloud, bake: Bake, kind: str, request: pytest.FixtureRequest) -> None:
    wanted: Plan = request.getfixturevalue(kind)

    def whole() -> Publication:
        return bake(of=wanted, **settings_for(wanted))

    def finishes() -> None:
        assert in_child(lambda: clean_up_leaves_nothing(cloud, wanted)) == 0
        baked = whole()
        assert baked.verdict
        assert baked.verdict.passed
        for region, there in baked.published.items():
            only = {"images": [there.image] * bool(there.image), "snapshots": [each.id for each in there.snapshots]}
            assert cloud.left(region) == {kind: ids for kind, ids in only.items() if ids}

    assert len(killed_everywhere(cloud, whole, finishes)) >= 12


def clean_up_leaves_nothing(cloud: Cloud, plan: Plan) -> None:
    for region in (REGION, OTHER):
        with allowed_by(policy_for(plan, settings_for(plan))):
            remove(LeftoverFilter(name=plan.name), region, Events())
        left = cloud.left(region)
        assert set(left) <= {"images", "snapshots"}, left
        there = [*left.get("images", []), *left.get("snapshots", [])]
        assert all(is_artefact(region, each) for each in there), "what is done stays"
        assert len(there) in {0, 2 if plan.artefact.kind == "machine-image" else 1}


def is_artefact(region: str, identity: str) -> bool:
    ec2 = aws.client("ec2", region)
    if identity.startswith("ami-"):
        [described] = ec2.describe_images(ImageIds=[identity])["Images"]
    else:
        [described] = ec2.describe_snapshots(SnapshotIds=[identity])["Snapshots"]
    return aws.as_dict(described)[aws.MANAGED] == aws.ARTEFACT


def test_a_clean_up_takes_nothing_of_others(cloud: Cloud, bake: Bake) -> None:
    """Another Bakefile's leftovers stay until they expire; what nobody tagged stays for good."""
    assert killed_at(cloud, bake, 3)
    ec2 = aws.client("ec2", REGION)
    foreign = ec2.create_volume(Size=1, AvailabilityZone=f"{REGION}a")["VolumeId"]
    before = cloud.left(REGION)
    assert remove(LeftoverFilter(name="another"), REGION, Events()) == ()
    assert cloud.left(REGION) == before
    past = [{"Key": aws.EXPIRY, "Value": "2020-01-01T00:00:00Z"}]
    ec2.create_tags(Resources=[each for ids in before.values() for each in ids], Tags=past)
    assert remove(LeftoverFilter(name="another"), REGION, Events())
    assert cloud.left(REGION) == {}
    assert ec2.describe_volumes(VolumeIds=[foreign])["Volumes"]


def test_an_older_ami_is_touched_by_nothing(cloud: Cloud, bake: Bake) -> None:
    old = bake().published[REGION]
    cloud.calls.clear()
    bake(fresh=True)
    ids = {old.image, *(each.id for each in old.snapshots)}
    acts = [call for call in cloud.calls if not call[1].startswith(READING)]
    assert not [call for call in acts if any(identity in str(call[2]) for identity in ids)]


def test_a_request_whose_instance_somebody_ended_starts_no_other(cloud: Cloud, plan: Plan, bake: Bake) -> None:
    assert killed_at(cloud, bake, 2)
    ec2 = aws.client("ec2", REGION)
    [request] = cloud.requests.values()
    cloud.requests.clear()  # the stand-in would not let it go otherwise
    ec2.terminate_instances(InstanceIds=[request["InstanceId"]])
    cloud.requests[request["SpotInstanceRequestId"]] = request
    assert request["SpotInstanceRequestId"] in remove(LeftoverFilter(name=plan.name), REGION, Events())
    assert cloud.left(REGION) == {}

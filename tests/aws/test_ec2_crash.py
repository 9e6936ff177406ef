"""Killed after any call that changes something: the same command finishes, and a clean-up would leave nothing.

"Killed" means that the process makes no further call, not even to clean up. Between two such calls nothing changes in
AWS, so that a kill before one is a kill after the one before it.
"""

from __future__ import annotations

from typing import Any

from parbake import aws
from parbake.aws.leftovers import Wanted, remove
from parbake.events import Events
from parbake.model import Plan
from tests.aws.cloud import Cloud, Killed
from tests.aws.conftest import REGION
from tests.aws.ec2_support import OTHER, Bake, bake, cloud, plan, policy_for
from tests.aws.recorder import allowed_by
from tests.support.children import in_child

__all__ = ["bake", "cloud", "plan"]

SETTINGS: dict[str, Any] = {
    "copy_to": (OTHER,),
    "purchase": "spot-first",
    "share_with": ("210987654321",),
    "deprecate_after": "90d",
    "fast_snapshot_restore": (f"{OTHER}b",),
}
READING = ("Describe", "Get")


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


def reset(cloud: Cloud, plan: Plan) -> None:
    """Take away all that there is, artefacts included: the next case begins with nothing."""
    for region in (REGION, OTHER):
        ec2 = aws.client("ec2", region)
        for image in cloud.left(region).get("images", []):
            tags = [{"Key": aws.MANAGED, "Value": aws.TEMPORARY}]
            described = ec2.describe_images(ImageIds=[image])["Images"][0]
            snapshots = [each["Ebs"]["SnapshotId"] for each in described["BlockDeviceMappings"]]
            ec2.create_tags(Resources=[image, *snapshots], Tags=tags)
        remove(Wanted(key=plan.key), region, Events())
        assert cloud.left(region) == {}
    cloud.tokens.clear()


def test_killed_at_any_call(cloud: Cloud, plan: Plan, bake: Bake) -> None:
    number = 0
    while killed_at(cloud, bake, number := number + 1):
        assert in_child(lambda: clean_up_leaves_nothing(cloud, plan)) == 0, f"killed at call {number}"
        baked = bake(**SETTINGS)
        assert baked.verdict
        assert baked.verdict.passed, number
        for region in (REGION, OTHER):
            there = baked.published[region]
            only = {"images": [there.image], "snapshots": [each.id for each in there.snapshots]}
            assert cloud.left(region) == only, f"killed at call {number}"
        reset(cloud, plan)
    assert number > 15


def clean_up_leaves_nothing(cloud: Cloud, plan: Plan) -> None:
    for region in (REGION, OTHER):
        with allowed_by(policy_for(plan, SETTINGS)):
            remove(Wanted(name=plan.name), region, Events())
        left = cloud.left(region)
        kept = [image for image in left.get("images", []) if is_artefact(region, image)]
        assert set(left) <= {"images", "snapshots"}, left
        assert left.get("images", []) == kept
        assert len(left.get("snapshots", [])) == len(kept), "what is done stays, with its snapshots"


def is_artefact(region: str, image: str) -> bool:
    described = aws.client("ec2", region).describe_images(ImageIds=[image])["Images"][0]
    return aws.as_dict(described)[aws.MANAGED] == aws.ARTEFACT


def test_a_clean_up_takes_nothing_of_others(cloud: Cloud, bake: Bake) -> None:
    """Another Bakefile's leftovers stay until they expire; what nobody tagged stays for good."""
    assert killed_at(cloud, bake, 3)
    ec2 = aws.client("ec2", REGION)
    foreign = ec2.create_volume(Size=1, AvailabilityZone=f"{REGION}a")["VolumeId"]
    before = cloud.left(REGION)
    assert remove(Wanted(name="another"), REGION, Events()) == ()
    assert cloud.left(REGION) == before
    past = [{"Key": aws.EXPIRY, "Value": "2020-01-01T00:00:00Z"}]
    ec2.create_tags(Resources=[each for ids in before.values() for each in ids], Tags=past)
    assert remove(Wanted(name="another"), REGION, Events())
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
    assert request["SpotInstanceRequestId"] in remove(Wanted(name=plan.name), REGION, Events())
    assert cloud.left(REGION) == {}

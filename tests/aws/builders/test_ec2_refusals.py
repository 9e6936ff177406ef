"""What is wrong with the input, the account or the network: one clear error with the next step, and nothing runs on."""

from __future__ import annotations

from typing import Any

import boto3
import pytest

from parbake.core.errors import (
    ArtefactFull,
    AwsError,
    AwsLimit,
    AwsNoAccess,
    AwsNotFound,
    BakeFailed,
    InputError,
    ParbakeError,
)
from parbake.core.events import Event
from parbake.core.model import Plan, RegistryOptions
from standins.aws.ec2 import Cloud, refuse
from standins.aws.ec2_support import APP, OTHER, Bake, bake, cloud, failing, notes, plan, plan_for
from standins.plans import image
from tests.aws.conftest import REGION

__all__ = ["APP", "bake", "cloud", "plan"]

ECR = "123456789012.dkr.ecr.eu-west-1.amazonaws.com"

# A call, AWS's code and words (EC2's own, where they decide), and what the error is and its hint names.
REFUSALS: dict[str, tuple[str, str, str, type[ParbakeError], str]] = {
    "capacity": ("RunInstances", "InsufficientInstanceCapacity", "none left", AwsLimit, "more `aws.instance_types`"),
    "no such type in a zone": ("RunInstances", "Unsupported", "not in your zone", AwsLimit, "`aws.subnets`"),
    "full subnets": ("RunInstances", "InsufficientFreeAddressesInSubnet", "no address", AwsLimit, "`aws.subnets`"),
    "quota of CPUs": ("RunInstances", "VcpuLimitExceeded", "more vCPU than allowed", AwsLimit, "Service Quotas"),
    "quota of volumes": ("RunInstances", "VolumeLimitExceeded", "too many", AwsLimit, "Service Quotas"),
    "quota of AMIs": ("CreateImage", "AMIQuotaExceeded", "too many", AwsLimit, "`parbake prune`"),
    "permission": ("RunInstances", "UnauthorizedOperation", "You are not authorized", AwsNoAccess, "`parbake iam`"),
    "key": ("RunInstances", "InvalidKMSKey.InvalidState", "disabled", AwsNoAccess, "kms:CreateGrant"),
    "expired": ("DescribeImages", "RequestExpired", "has expired", AwsNoAccess, "log in again"),
    "expired later": ("GetConsoleOutput", "RequestExpired", "has expired", AwsNoAccess, "same command again"),
    "throttled": ("CreateSecurityGroup", "RequestLimitExceeded", "slow down", AwsLimit, "in some minutes"),
    "no such subnet": ("DescribeSubnets", "InvalidSubnetID.NotFound", "does not exist", AwsNotFound, "`aws.region`"),
    "region not enabled": ("DescribeImages", "OptInRequired", "not subscribed", AwsNoAccess, "enable the region"),
    "region of others": ("DescribeImages", "AuthFailure", "could not validate", AwsNoAccess, "region is enabled"),
    "type of another architecture": (
        "RunInstances",
        "InvalidParameterValue",
        "The architecture 'arm64' of the specified instance type does not match the architecture 'x86_64' of the AMI",
        InputError,
        "for the Bakefile's `platform` in `aws.instance_types`",
    ),
    "no such type": (
        "RunInstances",
        "InvalidParameterValue",
        "Invalid value 'm99.large' for InstanceType",
        InputError,
        "correct `aws.instance_types`",
    ),
    "volume smaller than the AMI's": (
        "RunInstances",
        "InvalidBlockDeviceMapping",
        "Volume of size 4GB is smaller than snapshot",
        AwsError,
        "raise `size`",
    ),
    "no such role": (
        "RunInstances",
        "InvalidParameterValue",
        "Value (baker) for parameter iamInstanceProfile.name is invalid",
        AwsNotFound,
        "`aws.instance_profile` (baker)",
    ),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_what_aws_refuses_is_said_with_the_next_step(cloud: Cloud, bake: Bake, what: str) -> None:
    operation, code, words, error, step = REFUSALS[what]
    boto3.client("iam").create_instance_profile(InstanceProfileName="baker")
    failing(cloud, operation, code, words)
    with pytest.raises(error) as caught:
        bake(instance_profile="baker")
    assert step in caught.value.hint
    assert code in caught.value.message
    if what != "capacity":
        assert words in caught.value.message or issubclass(error, AwsLimit)
    assert cloud.left(REGION) == {}


ENDS: dict[str, tuple[type[ParbakeError], str]] = {
    "Client.InternalError": (AwsNoAccess, "kms:CreateGrant"),
    "Client.InvalidKMSKey.InvalidState": (AwsNoAccess, "the key must be enabled"),
    "Client.VolumeLimitExceeded": (AwsLimit, "Service Quotas"),
    "Client.InvalidSnapshot.NotFound": (AwsNotFound, "check its id"),
    "Client.UserInitiatedShutdown": (AwsError, "let nobody stop"),
    "Server.InsufficientInstanceCapacity": (AwsLimit, "`aws.subnets`"),
    "Server.InternalError": (AwsError, "run the same command again"),
}


@pytest.mark.parametrize("code", ENDS)
def test_an_instance_that_ends_at_its_launch_says_why(cloud: Cloud, bake: Bake, code: str) -> None:
    """A key without a grant is no refusal of RunInstances: the instance is there, and gone again."""
    cloud.ends, (error, step) = code, ENDS[code]
    with pytest.raises(error) as caught:
        bake(encrypted=True, kms_key="alias/nodes")
    assert code in caught.value.message
    assert step in caught.value.hint
    assert cloud.left(REGION) == {}


GUESTS = {
    "dial tcp 10.0.0.1:443: i/o timeout": (BakeFailed, "the registry cannot be reached from here (subnet, route"),
    "lookup registry.example: no such host": (BakeFailed, "cannot be resolved from here"),
    "no match for platform in manifest: not found": (BakeFailed, "it has no variant for linux/amd64"),
    "unexpected status: 403 Forbidden": (BakeFailed, "refuses this login (instance profile"),
    "write /var/lib/containerd/x: no space left on device": (ArtefactFull, "the volume is too small: raise size"),
}


@pytest.mark.parametrize("said", GUESTS)
def test_a_failed_bake_shows_the_guests_own_log(cloud: Cloud, bake: Bake, said: str) -> None:
    error, words = GUESTS[said]
    notes(cloud).prepare = lambda node: (node.fake / "refuse").write_text(f"{said}\n")
    with pytest.raises(error) as caught:
        bake()
    first, _, log = caught.value.message.partition("\n")
    assert words in first, "in one line"
    assert said in log
    assert cloud.left(REGION) == {}


def test_a_login_that_expires_meanwhile_loses_nothing(cloud: Cloud, bake: Bake) -> None:
    """Nothing can be removed then; the instance powers itself off, and the same command goes on with it."""

    def expired(_service: str, _operation: str, _arguments: dict[str, Any]) -> None:
        if cloud.machines:
            raise refuse("RequestExpired", "The token has expired")

    cloud.before.append(expired)
    with pytest.raises(AwsNoAccess, match="RequestExpired") as caught:
        bake()
    assert "log in again" in caught.value.hint
    [instance] = cloud.left(REGION)["instances"]
    cloud.before.remove(expired)
    baked = bake()
    assert next(iter(cloud.machines)) == instance
    assert len(cloud.machines) == 2, "the second one proves"
    assert set(cloud.left(REGION)) == {"images", "snapshots"}
    assert baked.verdict


def test_a_key_of_another_region_fails_the_copy(cloud: Cloud, bake: Bake) -> None:
    def refused(_service: str, operation: str, _arguments: dict[str, Any]) -> None:
        if operation == "CopyImage":
            made = list(cloud.details)[-1]
            cloud.details[made] |= {"State": "failed", "StateReason": {"Message": "Given key ID is not accessible"}}
            cloud.pending[made] = 0

    cloud.after.append(refused)
    with pytest.raises(AwsNoAccess, match="Given key ID is not accessible") as caught:
        bake(copy_to=(OTHER,), encrypted=True, kms_key="alias/nodes")
    assert "kms:CreateGrant" in caught.value.hint
    cloud.after.remove(refused)
    assert set(bake(copy_to=(OTHER,), encrypted=True, kms_key="alias/nodes").published) == {REGION, OTHER}


def test_an_account_without_a_default_vpc(cloud: Cloud, bake: Bake) -> None:
    ec2 = boto3.client("ec2", REGION)
    for subnet in ec2.describe_subnets()["Subnets"]:
        ec2.delete_subnet(SubnetId=subnet["SubnetId"])
    with pytest.raises(InputError, match="no default VPC") as caught:
        bake()
    assert "aws: {subnets:" in caught.value.hint
    assert cloud.left(REGION) == {}


def test_a_private_registry_without_a_role_is_refused_before_anything_is_made(
    cloud: Cloud, plan: Plan, bake: Bake
) -> None:
    private = plan.model_copy(update={"images": (image(f"{ECR}/app:1"),)})
    with pytest.raises(InputError, match=f"{ECR} is private") as caught:
        bake(of=private)
    assert "parbake iam" in caught.value.hint
    assert cloud.calls == []


def test_no_secret_is_handed_to_an_instance(cloud: Cloud, bake: Bake) -> None:
    registries = {"registry.example": RegistryOptions(credentials="environment")}
    with pytest.raises(InputError, match="gives instances no secrets") as caught:
        bake(registries=registries)
    assert "ECR" in caught.value.hint
    assert cloud.calls == []
    seen: list[Event] = []
    bake(registries={"registry.example": RegistryOptions(mirrors=("mirror.example",))}, seen=seen, verify=False)
    assert any("not from its mirrors" in each.text for each in seen if each.kind == "warning")


def test_an_ami_of_another_region(bake: Bake) -> None:
    with pytest.raises(AwsNotFound, match="ami-0123456789abcdef0") as caught:
        bake(of=plan_for("ami-0123456789abcdef0"))
    assert "aws.region" in caught.value.hint


def test_an_ami_of_bottlerocket_is_refused_with_the_way_that_works(cloud: Cloud, bake: Bake) -> None:
    base = cloud.base(REGION, "bottlerocket-aws-k8s-1.33-x86_64-v1.2")
    with pytest.raises(InputError, match="does not boot a modified AMI") as caught:
        bake(of=plan_for(base))
    assert "kind: volume" in caught.value.hint
    assert cloud.left(REGION) == {}


def test_an_image_of_no_registry_is_refused_before_anything_is_made(cloud: Cloud, plan: Plan, bake: Bake) -> None:
    local = image("localhost/a:1", layout="/here")
    with pytest.raises(InputError, match="not in a registry"):
        bake(of=plan.model_copy(update={"images": (local,)}))
    assert cloud.calls == []

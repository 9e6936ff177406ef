"""`parbake doctor --aws`: what it sees of an account, what it says of that, and what it may not ask."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from parbake.aws import clients
from parbake.bakefile import Bakefile, load
from parbake.workflows.doctor import Check
from parbake.workflows.doctor.account import AccountFacts, gather, judge
from standins.aws.account import Account
from standins.aws.boto_clients import raw
from standins.aws.iam_recorder import NOTED, attach, printed
from standins.clusters import parbake
from standins.policies import refused
from tests.aws.conftest import REGION

OTHER = "us-east-1"
READS = ("Describe", "Get", "List")


@pytest.fixture
def account(aws_mock: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Account]:
    """An account; whatever is asked, is asked for by reading."""
    del aws_mock
    account, before, make = Account(), len(NOTED), clients._make

    def made(service: str, region: str, *more: Any) -> Any:
        client = make(service, region, *more)
        attach(client, region)
        account.attach(client, service)
        return client

    monkeypatch.setattr(clients, "_make", made)
    yield account
    assert all(check.action.partition(":")[2].startswith(READS) for check in NOTED[before:])


def written(folder: Path, *, base: str = "none", builder: str = "ebs", **settings: Any) -> Bakefile:
    document = {"version": 1, "images": ["registry.example/app:1"], "base": base, "builder": builder}
    path = folder / "parbake.yaml"
    path.write_text(json.dumps({**document, "aws": {"region": REGION, **settings}}))
    return load(path)


def examined(bakefile: Bakefile) -> dict[str, Check]:
    """Look, by the policy that is printed for it; return the checks by name."""
    before = len(NOTED)
    found = {check.name: check for check in judge(gather(bakefile))}
    assert refused([printed(bakefile)["doctor"]], NOTED[before:]) == []
    return found


def an_image(account: Account, **said: Any) -> str:
    ec2 = raw("ec2")
    volume = ec2.create_volume(Size=8, AvailabilityZone=f"{REGION}a")["VolumeId"]
    snapshot = ec2.create_snapshot(VolumeId=volume)["SnapshotId"]
    mapping = {"DeviceName": "/dev/xvda", "Ebs": {"SnapshotId": snapshot, "VolumeSize": 8}}
    made: str = ec2.register_image(
        Name=f"base-{len(account.images)}",
        Architecture="x86_64",
        RootDeviceName="/dev/xvda",
        BlockDeviceMappings=[mapping],
    )["ImageId"]
    account.images[made] = {"Architecture": "x86_64", "RootDeviceType": "ebs", **said}
    return made


def test_what_an_account_has_settled(tmp_path: Path, account: Account) -> None:
    raw("ec2", OTHER).enable_ebs_encryption_by_default()
    account.fast.states = {(f"snap-{number}", f"{REGION}a"): "enabled" for number in range(5)}
    found = examined(written(tmp_path, copy_to=[OTHER]))
    assert found["AWS account"].found.startswith("123456789012, arn:aws:")
    assert found[f"encryption by default in {REGION}"].found == "off"
    assert found[f"encryption by default in {OTHER}"].found.startswith("on, with ")
    fast = found[f"fast snapshot restore in {REGION}"]
    assert (fast.status, fast.found) == ("warn", "5 of 5 snapshots")
    assert "Service Quotas" in fast.hint
    assert found[f"snapshot quota of {REGION}"].found == "100000 snapshots"
    assert found[f"public access in {OTHER}"].found == "snapshots block-all-sharing, AMIs block-new-sharing"
    assert {check.status for check in found.values()} == {"ok", "warn"}


@pytest.mark.parametrize("builder", ["ebs", "ec2"])
def test_a_base(tmp_path: Path, account: Account, builder: str) -> None:
    image = an_image(account, PlatformDetails="SUSE Linux", ImageAllowed=False)
    account.allowed_images = "enabled"
    found = examined(written(tmp_path, base=image, builder=builder))
    assert (found["base"].status, "SUSE Linux" in found["base"].found) == (
        "missing" if builder == "ebs" else "ok",
        True,
    )
    assert found["Allowed AMIs"].status == "missing"
    account.allowed_images = "audit-mode"
    assert examined(written(tmp_path, base=image, builder=builder))["Allowed AMIs"].status == "ok"
    gone = examined(written(tmp_path, base="ami-0123456789abcdef0", builder=builder))["base"]
    assert (gone.status, "ami-0123456789abcdef0" in gone.hint) == ("missing", True)


def test_types_profile_and_ways_to_the_registry(tmp_path: Path, account: Account) -> None:
    image, ec2 = an_image(account), raw("ec2")
    subnet = ec2.describe_subnets()["Subnets"][0]
    bakefile = written(
        tmp_path, base=image, builder="ec2", instance_types=["m5.large", "m6g.large", "z9.huge"],
        instance_profile="baker", subnets=[subnet["SubnetId"]],
    )  # fmt: skip
    found = examined(bakefile)
    kinds = {name: found[name].status for name in ("m5.large", "m6g.large", "z9.huge")}
    assert kinds == {"m5.large": "ok", "m6g.large": "missing", "z9.huge": "missing"}
    assert found["z9.huge"].found == "not in this region"
    assert found["instance profile baker"].status == "missing"
    closed = found[subnet["SubnetId"]]
    assert (closed.status, "ecr.api, ecr.dkr, s3" in closed.hint) == ("warn", True)

    iam = raw("iam")
    iam.create_instance_profile(InstanceProfileName="baker")
    assert examined(bakefile)["instance profile baker"].found == "without a role"
    iam.create_role(RoleName="baker", AssumeRolePolicyDocument="{}")
    iam.add_role_to_instance_profile(InstanceProfileName="baker", RoleName="baker")
    gateway = ec2.create_internet_gateway()["InternetGateway"]["InternetGatewayId"]
    ec2.attach_internet_gateway(InternetGatewayId=gateway, VpcId=subnet["VpcId"])
    [table] = ec2.describe_route_tables(Filters=[{"Name": "vpc-id", "Values": [subnet["VpcId"]]}])["RouteTables"]
    ec2.create_route(RouteTableId=table["RouteTableId"], DestinationCidrBlock="0.0.0.0/0", GatewayId=gateway)
    found = examined(bakefile)
    assert found["instance profile baker"].status == "ok"
    assert subnet["SubnetId"] not in found


def test_images_that_nobody_can_remove(tmp_path: Path, account: Account) -> None:
    image = an_image(account, DeregistrationProtection="enabled-without-cooldown")
    an_image(account)
    raw("ec2").create_tags(Resources=[image], Tags=[{"Key": "parbake:managed", "Value": "artefact"}])
    check = examined(written(tmp_path))[f"deregistration protection in {REGION}"]
    assert (check.status, check.found) == ("warn", "1 AMIs")


def test_what_a_bake_would_be_refused_for(tmp_path: Path, account: Account) -> None:
    del account
    raw("ec2").enable_ebs_encryption_by_default()
    check = examined(written(tmp_path, share_with=["210987654321"]))["the bake"]
    assert (check.status, "kms_key: alias/NAME" in check.hint) == ("missing", True)


EVERY_QUESTION = {
    "GetEbsEncryptionByDefault", "ListServiceQuotas", "DescribeFastSnapshotRestores", "DescribeImages",
    "GetSnapshotBlockPublicAccessState", "GetImageBlockPublicAccessState", "GetAllowedImagesSettings",
    "DescribeInstanceTypes", "GetInstanceProfile", "DescribeSubnets",
}  # fmt: skip


@pytest.mark.parametrize("some", [EVERY_QUESTION, {"GetEbsDefaultKmsKeyId"}], ids=["all", "one"])
def test_what_may_not_be_asked_is_said(tmp_path: Path, account: Account, some: set[str]) -> None:
    image = an_image(account)
    account.denied = some
    bakefile = written(
        tmp_path, base=image, builder="ec2", instance_types=["m5.large"], instance_profile="baker",
        subnets=["subnet-0123456789abcdef0"],
    )  # fmt: skip
    if some != EVERY_QUESTION:
        bakefile = written(tmp_path)
    found = examined(bakefile)
    rights = found["rights to ask"]
    assert rights.status == "warn"
    assert all(each in rights.found for each in some)
    if some == EVERY_QUESTION:
        assert set(found) == {"AWS account", "rights to ask"}


def test_without_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    [check] = judge(gather(written(tmp_path)))
    assert (check.status, "aws sso login" in check.hint) == ("missing", True)
    assert judge(AccountFacts(unreachable="no AWS region is set"))[0].hint == "no AWS region is set"


@pytest.mark.usefixtures("account")
def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    written(tmp_path)
    monkeypatch.chdir(tmp_path)
    code, checks = parbake(capsys, "doctor", "--aws")
    assert code == 0, checks
    assert {check["name"] for check in checks} >= {"root", "AWS account"}

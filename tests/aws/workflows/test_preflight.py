"""What the plan asks an account, and what it refuses before a bake costs anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from parbake.aws import ebs
from parbake.aws.ebs import UploadRequest
from parbake.aws.images import described
from parbake.aws.tags import Stamp
from parbake.bakefile import Bakefile, load
from parbake.core.errors import BadBase, InputError
from parbake.core.events import Events
from parbake.images.registry import Registry
from parbake.workflows import plan
from parbake.workflows.identity import acting
from parbake.workflows.plan import Session
from parbake.workflows.preflight import account_cautions
from standins.aws.ebs_direct_in_process import Direct
from standins.aws.iam_recorder import allowed_by, printed
from standins.aws.interceptor import refuse
from standins.ebs_direct_server import EBS_KEY, Cloud
from tests.aws.aws.test_ebs import SMALL, disk_of
from tests.aws.builders.test_ebs_builder import cloud, direct
from tests.aws.conftest import REGION

__all__ = ["cloud", "direct"]

OTHER = "us-east-1"
OWN = f"arn:aws:kms:{REGION}:123456789012:key/{'1' * 32}"


def written(folder: Path, *, base: str = "none", builder: str = "ebs", **settings: Any) -> Bakefile:
    document = {"version": 1, "images": ["registry.example/app:1"], "base": base, "builder": builder}
    path = folder / "parbake.yaml"
    path.write_text(json.dumps({**document, "aws": {"region": REGION, **settings}}))
    return load(path)


def asked(bakefile: Bakefile) -> tuple[str, ...]:
    """Ask as a bake does; the policy for it must allow every call."""
    with allowed_by(printed(bakefile, default_keys=(OWN,))["caller"]):
        return account_cautions(bakefile, REGION)


@pytest.mark.usefixtures("cloud")
def test_nothing_is_said_of_an_account_that_settles_nothing(tmp_path: Path) -> None:
    assert asked(written(tmp_path, copy_to=[OTHER], share_with=["210987654321"])) == ()
    assert account_cautions(written(tmp_path, base="debian", builder="local"), REGION) == ()


@pytest.mark.usefixtures("cloud")
@pytest.mark.parametrize(("account", "key"), [("210987654321", ""), ("210987654321", OWN), ("123456789012", "")])
def test_what_another_account_copies_is_encrypted_by_a_key_of_ones_own(tmp_path: Path, account: str, key: str) -> None:
    settings: dict[str, Any] = {"copy_to": [OTHER], "copy_roles": {OTHER: f"arn:aws:iam::{account}:role/copies"}}
    settings |= {"kms_key": {REGION: key, OTHER: "alias/theirs"}} if key else {}
    bakefile = written(tmp_path, encrypted=True, **settings)
    with acting(bakefile):
        if key or account == "123456789012":
            assert account_cautions(bakefile, REGION) == ()
            return
        with pytest.raises(InputError, match="the account's own EBS key encrypts the result in eu-west-1") as caught:
            account_cautions(bakefile, REGION)
    assert "copy_roles" in caught.value.hint


@pytest.mark.parametrize("where", [REGION, OTHER])
def test_what_the_default_key_encrypts_is_not_shared(tmp_path: Path, cloud: Cloud, where: str) -> None:
    cloud.by_default[where] = EBS_KEY
    settings: dict[str, Any] = {"copy_to": [OTHER], "share_with": ["210987654321"]}
    with pytest.raises(InputError, match=f"{where} encrypts snapshots by default, with AWS's own key") as caught:
        asked(written(tmp_path, **settings))
    assert "kms_key: alias/NAME" in caught.value.hint
    assert asked(written(tmp_path, copy_to=[OTHER])) == (), "it need not be shared"
    assert asked(written(tmp_path, **settings, encrypted=True, kms_key="alias/nodes")) == ()
    cloud.by_default[where] = cloud.key_arn(EBS_KEY, where)
    with pytest.raises(InputError, match="AWS's own key"):
        account_cautions(written(tmp_path, **settings), REGION)
    assert set(cloud.calls) <= {"EC2", "DescribeKey", "GetEbsEncryptionByDefault", "GetEbsDefaultKmsKeyId"}


def test_an_own_default_key_can_be_shared(tmp_path: Path, cloud: Cloud) -> None:
    cloud.by_default[REGION] = OWN
    assert asked(written(tmp_path, share_with=["210987654321"])) == ()


def test_a_parent_that_is_not_encrypted_is_refused(tmp_path: Path, cloud: Cloud) -> None:
    disk_of(tmp_path / "disk.raw", SMALL)
    stamp = Stamp("k", "r", "n")
    parent = ebs.upload(UploadRequest(tmp_path / "disk.raw", tmp_path / "j", stamp, "n", REGION), Events()).snapshot
    assert asked(written(tmp_path, parent_snapshot=parent)) == ()
    cloud.by_default[REGION] = EBS_KEY
    with pytest.raises(InputError, match="is not encrypted") as caught:
        asked(written(tmp_path, parent_snapshot=parent))
    assert "copy-snapshot --encrypted" in caught.value.hint
    with pytest.raises(InputError, match="there is no snapshot"):
        asked(written(tmp_path, parent_snapshot="snap-0123456789abcdef0"))
    cloud.snapshots[parent].encrypted = True
    assert asked(written(tmp_path, parent_snapshot=parent)) == ()


@pytest.mark.usefixtures("cloud")
@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("alias/missing", "there is no KMS key alias/missing in eu-west-1"),
        ("alias/dying", "the KMS key alias/dying in eu-west-1 is PendingDeletion"),
        (f"arn:aws:kms:{REGION}:123456789012:key/mrk-{'1' * 32}", ""),
        ({REGION: "alias/nodes", OTHER: "alias/missing"}, "there is no KMS key alias/missing in us-east-1"),
    ],
)
def test_a_key_that_cannot_encrypt_is_refused(tmp_path: Path, key: str | dict[str, str], said: str) -> None:
    bakefile = written(tmp_path, encrypted=True, kms_key=key, copy_to=[OTHER])
    if not said:
        assert account_cautions(bakefile, REGION) == ()
        return
    with pytest.raises(InputError, match=said):
        account_cautions(bakefile, REGION)


def test_the_key_by_which_an_own_ebs_key_is_named_otherwise(tmp_path: Path, cloud: Cloud) -> None:
    arn = cloud.key_arn(EBS_KEY, REGION)
    with pytest.raises(InputError, match="AWS's own key"):
        account_cautions(written(tmp_path, encrypted=True, kms_key=arn, share_with=["210987654321"]), REGION)


@pytest.mark.parametrize(
    ("call", "settings", "said"),
    [
        ("GetEbsEncryptionByDefault", {}, "may not ask whether eu-west-1 encrypts by default"),
        ("GetEbsDefaultKmsKeyId", {"share_with": ["210987654321"]}, ""),
        ("DescribeKey", {"encrypted": True, "kms_key": "alias/nodes"}, "may not look at the KMS key alias/nodes"),
        ("DescribeKey", {"share_with": ["210987654321"]}, ""),
    ],
)
def test_what_may_not_be_asked_is_said_and_not_fatal(
    tmp_path: Path, direct: Direct, call: str, settings: dict[str, Any], said: str
) -> None:
    direct.world.by_default[REGION] = OWN

    def refused(_service: str, operation: str, _arguments: dict[str, Any]) -> None:
        if operation == call:
            raise refuse("UnauthorizedOperation", "You are not authorized to perform this operation.", operation)

    direct.before.append(refused)
    found = account_cautions(written(tmp_path, **settings), REGION)
    assert [said in each for each in found] == ([True] if said else [])


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({"PlatformDetails": "Red Hat Enterprise Linux"}, "bills ami-1 .* for Red Hat Enterprise Linux"),
        ({"PlatformDetails": "SUSE Linux"}, "SUSE Linux"),
        ({"PlatformDetails": "Ubuntu Pro"}, "Ubuntu Pro"),
        ({"PlatformDetails": "Linux/UNIX", "ProductCodes": [{"ProductCodeId": "abc"}]}, "product code abc"),
        ({"PlatformDetails": "Linux/UNIX", "ProductCodes": []}, ""),
        ({}, ""),
    ],
)
def test_a_base_that_aws_bills_for(raw: dict[str, Any], said: str) -> None:
    image = described({"ImageId": "ami-1", "Name": "base", **raw}, REGION)
    if not said:
        ebs.refuse_billed(image)
        return
    with pytest.raises(BadBase, match=said) as caught:
        ebs.refuse_billed(image)
    assert "builder: ec2" in caught.value.hint


@pytest.mark.parametrize("builder", ["ebs", "ec2"])
def test_a_billed_base_is_refused_where_its_billing_data_would_be_lost(
    tmp_path: Path, cloud: Cloud, builder: str
) -> None:
    disk_of(tmp_path / "disk.raw", SMALL)
    stamp = Stamp("k", "r", "n")
    snapshot = ebs.upload(UploadRequest(tmp_path / "disk.raw", tmp_path / "j", stamp, "n", REGION), Events()).snapshot
    bakefile = written(tmp_path, base="ami-0123456789abcdef0", builder=builder)
    how: dict[str, Any] = {"name": "rhel", "platform": bakefile.platform, "stamp": stamp, "region": REGION}
    image = ebs.register(snapshot, traits=ebs.Traits(boot="uefi"), events=Events(), **how)
    cloud.images[image]["attributes"]["PlatformDetails"] = "Red Hat Enterprise Linux"
    bakefile = written(tmp_path, base=image, builder=builder)
    with Registry({}, events=Events()) as registry:
        run = Session(bakefile, registry, Events())
        if builder == "ec2":
            assert plan.base_of(run).identity == image
            return
        with pytest.raises(BadBase, match="AWS bills"):
            plan.base_of(run)

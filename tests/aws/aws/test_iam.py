"""The policies: they cover every call that is made, and no more than the Bakefile at hand needs."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from parbake.aws import iam
from parbake.bakefile import Bakefile, load
from parbake.core.model import Plan
from parbake.images.registry import ecr
from parbake.records.store import needs
from standins.aws.boto_clients import raw
from standins.aws.ec2 import Cloud
from standins.aws.ec2_support import OTHER, Bake, bake, cloud, plan, policy_for, volume
from standins.aws.iam_recorder import NOTED, printed
from standins.policies import checks, mistakes, refused
from tests.aws.conftest import REGION

__all__ = ["bake", "cloud", "plan", "volume"]

SOURCE = Path(__file__).parents[3] / "src" / "parbake"
PLAIN = "version: 1\nimages: [{image}]\nbuilder: {builder}\nbase: {base}\naws:\n  region: eu-west-1\n"
FULL = """\
  purchase: spot-first
  instance_profile: baker
  encrypted: true
  kms_key: alias/nodes
  copy_to: [us-east-1]
  share_with: ["210987654321"]
  deprecate_after: 90d
  fast_snapshot_restore: [eu-west-1a]
"""
ECR = "123456789012.dkr.ecr.eu-west-1.amazonaws.com/shop/api:1"


def written(folder: Path, more: str = "", **words: str) -> Bakefile:
    usual = {"builder": "ec2", "image": "registry.example/app:1", "base": "ami-0123456789abcdef0"}
    path = folder / "parbake.yaml"
    path.write_text(PLAIN.format(**{**usual, **words}) + more)
    return load(path)


TARGETS = """\
rollout:
  - asg: {group: workers}
    region: eu-west-1
  - nodegroup: {cluster: prod, group: gpu}
  - ssm: /nodes/gpu
"""


def made(cloud: Cloud) -> set[str]:
    """Return the actions of all calls that were made."""
    return {f"{service}:{operation}" for service, operation, _ in cloud.calls} - {"sts:GetCallerIdentity"}


def test_a_plain_bake_wants_nothing_more(bake: Bake, tmp_path: Path) -> None:
    bake()  # which fails where its policy does not allow a call
    allowed = iam.actions(printed(written(tmp_path))["caller"])
    for action in ("ec2:CopyImage", "ec2:ModifySnapshotAttribute", "ec2:EnableFastSnapshotRestores", "iam:PassRole"):
        assert action not in allowed


EVERYTHING: dict[str, Any] = {
    "purchase": "spot-first",
    "copy_to": (OTHER,),
    "share_with": ("210987654321",),
    "deprecate_after": "90d",
    "fast_snapshot_restore": (f"{REGION}a",),
    "encrypted": True,
    "kms_key": "alias/nodes",
    "instance_profile": "baker",
}


def test_a_bake_with_everything_is_covered(cloud: Cloud, bake: Bake, plan: Plan) -> None:
    """And each action that changes something is needed: without it, a call is refused."""
    cloud.spot_interruptions = 1
    raw("iam").create_instance_profile(InstanceProfileName="baker")
    before = len(NOTED)
    bake(**EVERYTHING)
    wanted, policy = NOTED[before:], policy_for(plan, EVERYTHING)
    assert refused([policy], wanted) == []
    needed = {check.action for check in wanted}
    for action in sorted(needed):
        assert refused([without(policy, action)], wanted), action
    idle = iam.actions(dict(policy)) - needed
    assert {action for action in idle if not re.search(":(Describe|Get)", action)} <= IDLE


def test_a_volume_is_covered(cloud: Cloud, bake: Bake, volume: Plan) -> None:
    cloud.spot_interruptions = 1
    raw("iam").create_instance_profile(InstanceProfileName="baker")
    settings = {key: value for key, value in EVERYTHING.items() if key != "deprecate_after"}
    bake(of=volume, **settings)
    allowed = iam.actions(dict(policy_for(volume, settings)))
    assert not allowed & {"ec2:CreateImage", "ec2:CopyImage", "ec2:EnableImageDeprecation"}
    assert not mistakes(policy_for(volume, settings))


# What a bake that goes well has no need of: the clean-up after others.
IDLE = {"ec2:DeleteVolume", "ec2:DeleteTags", "ec2:DeleteSnapshot", "ec2:DeregisterImage"}
IDLE |= {"ec2:DisableFastSnapshotRestores"}


def without(policy: Mapping[str, Any], action: str) -> dict[str, Any]:
    """Return a policy that allows one action less."""
    kept = [{**each, "Action": [one for one in each["Action"] if one != action]} for each in policy["Statement"]]
    return {"Statement": kept}


@pytest.mark.parametrize("builder", ["ec2", "ebs", "packer"])
def test_aws_would_grant_what_the_policies_say(tmp_path: Path, builder: str) -> None:
    """Actions exist, are checked for the resources that stand beside them, and know the conditions."""
    full = FULL.replace("  purchase: spot-first\n", "") if builder == "ebs" else FULL
    for more in ("", full, full + TARGETS):
        bakefile = written(tmp_path, more, builder=builder, image=ECR)
        for found in (printed(bakefile), iam.policies(bakefile)):
            for name, policy in found.items():
                assert name == "instance_role_trust" or mistakes(policy) == [], name


def test_bottlerocket_alone_wants_systems_manager(tmp_path: Path) -> None:
    base = '{eks: bottlerocket, kubernetes: "1.33"}\nartefact: {kind: volume}'
    found = iam.policies(written(tmp_path, FULL.replace("  deprecate_after: 90d\n", ""), base=base, image=ECR))
    for name, wanted in {"caller": "ssm:SendCommand", "instance_role": "ssm:UpdateInstanceInformation"}.items():
        assert wanted in iam.actions(found[name])
        assert mistakes(found[name]) == []
        assert wanted not in iam.actions(iam.policies(written(tmp_path))[name])


def statement(action: str, resource: str, **condition: dict[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {"Sid": "x", "Effect": "Allow", "Action": [action], "Resource": [resource]}
    return {"Statement": [{**found, "Condition": condition} if condition else found]}


ANY_SNAPSHOT = "arn:aws:ec2:*:*:snapshot/*"
TAGGED = {"aws:ResourceTag/parbake:managed": "*"}


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        (statement("ec2:DeleteSnapshots", "*"), "there is no ec2:DeleteSnapshots"),
        (statement("ec2:DescribeImages", "arn:aws:ec2:*:*:image/*"), "is not checked for"),
        (statement("ec2:DeleteSnapshot", "arn:aws:ec2:*:*:volume/*"), "is not checked for"),
        (statement("ec2:CopySnapshot", ANY_SNAPSHOT, StringLike=TAGGED), "knows no aws:ResourceTag/parbake:managed"),
        (statement("ec2:DeleteSnapshot", ANY_SNAPSHOT, StringLike=TAGGED), ""),
    ],
)
def test_mistakes_are_found(policy: dict[str, Any], said: str) -> None:
    found = mistakes(policy)
    assert [said in each for each in found] == ([True] if said else [])


@pytest.mark.parametrize(
    ("policy", "tags", "allowed"),
    [
        (statement("ec2:DeleteSnapshot", ANY_SNAPSHOT, StringLike=TAGGED), {"parbake:managed": "temporary"}, True),
        (statement("ec2:DeleteSnapshot", ANY_SNAPSHOT, StringLike=TAGGED), {"team": "a"}, False),
        (statement("ec2:DeleteSnapshot", "arn:aws:ec2:eu-west-2:*:snapshot/*"), {}, False),
        (statement("ec2:DeleteSnapshot", "arn:aws:ec2:eu-west-1:*:snapshot/snap-2*"), {}, False),
        (statement("ec2:DeleteVolume", "*"), {}, False),
        (statement("ec2:Delete*", "*"), {}, True),
    ],
)
def test_what_is_refused(policy: dict[str, Any], tags: dict[str, str], allowed: bool) -> None:
    wanted = checks("ec2", "DeleteSnapshot", {"SnapshotId": "snap-1"}, "eu-west-1", lambda _: tags)
    assert [str(each).partition(" (")[0] for each in wanted] == [
        "ec2:DeleteSnapshot on arn:aws:ec2:eu-west-1::snapshot/snap-1"
    ]
    assert (refused([policy], wanted) == []) == allowed


def test_each_resource_of_a_call_must_be_allowed() -> None:
    asked = {"Resources": ["ami-1", "snap-1"], "Tags": [{"Key": "a", "Value": "b"}]}
    wanted = checks("ec2", "CreateTags", asked, "eu-west-1", lambda _: {})
    images, snapshots = (statement("ec2:CreateTags", f"arn:aws:ec2:*:*:{kind}/*") for kind in ("image", "snapshot"))
    assert len(refused([images], wanted)) == len(refused([snapshots], wanted)) == 1
    assert refused([images, snapshots], wanted) == []


KEY_ID = "1234abcd-12ab-34cd-56ef-1234567890ab"


@pytest.mark.parametrize(
    ("key", "resource", "condition"),
    [
        ("alias/nodes", "eu-west-1:123456789012:key/*", ["alias/nodes"]),
        ("arn:aws:kms:eu-west-1:210987654321:alias/nodes", "eu-west-1:210987654321:key/*", ["alias/nodes"]),
        (KEY_ID, f"eu-west-1:123456789012:key/{KEY_ID}", None),
        (f"arn:aws:kms:eu-west-1:123456789012:key/{KEY_ID}", f"eu-west-1:123456789012:key/{KEY_ID}", None),
    ],
)
def test_a_key_is_named_as_kms_wants_it(tmp_path: Path, key: str, resource: str, condition: list[str] | None) -> None:
    policy = printed(written(tmp_path, f"  encrypted: true\n  kms_key: {key}\n", builder="ebs"))["caller"]
    [found] = [each for each in policy["Statement"] if each["Sid"] == "Encrypt"]
    assert found["Resource"] == [f"arn:aws:kms:{resource}"]
    assert found.get("Condition", {}).get("ForAnyValue:StringEquals", {}).get("kms:ResourceAliases") == condition
    assert {"kms:DescribeKey", "kms:GenerateDataKey"} <= set(found["Action"])
    [grant] = [each for each in policy["Statement"] if "kms:CreateGrant" in each["Action"]]
    assert grant["Condition"]["Bool"] == {"kms:GrantIsForAWSResource": "true"}


CALL = re.compile(r"^(describe|create|delete|modify|enable|run|terminate|get|register|deregister|copy|cancel)_[a-z_]+$")
EBS = {"start_snapshot", "put_snapshot_block", "complete_snapshot", "list_snapshot_blocks", "get_snapshot_block"}
EBS |= {"list_changed_blocks"}
OTHERS = {
    "get_paginator",
    "get_caller_identity",
    "get_parameter",
    "get_authorization_token",
    "get_auth_instance",
    "get_close_matches",
    "get_frozen_credentials",  # botocore's own
    "get_metric_data",  # of rollouts, and CloudWatch's
    "get_public_key",
    "describe_key",
}


PACKERS = {f"ec2:{call}{what}" for call, what in (("Describe", "KeyPairs"), ("Delete", "KeyPair"))}
PACKERS |= {"ec2:DescribeLaunchTemplates", "ec2:DeleteLaunchTemplate"}
"""What only Packer makes, and the clean-up after it looks for."""


SSM = {"describe_instance_information", "get_command_invocation", "send_command"}


def calls_in(*folders: str) -> set[str]:
    """Return the EC2 and EBS actions that code calls, as far as their names stand in it."""
    found = set()
    for folder in folders:
        for path in [*(SOURCE / folder).rglob("*.py"), *(SOURCE.glob(f"{folder}.py"))]:
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                    words = [node.func.attr, *(each.value for each in node.args if isinstance(each, ast.Constant))]
                    found |= {str(word) for word in words if CALL.match(str(word)) or word in EBS}
    service = {name: "ebs" if name in EBS else "ssm" if name in SSM else "ec2" for name in found - OTHERS}
    return {f"{service[name]}:{''.join(part.capitalize() for part in name.split('_'))}" for name in service}


@pytest.mark.parametrize(
    ("builder", "folders"),
    [
        ("ec2", ("builders/ec2", "aws/*")),
        ("ebs", ("aws/ebs", "builders/ebs", "aws/*")),
        ("packer", ("builders/packer/builder", "aws/*")),
    ],
)
def test_every_call_in_the_code_is_covered(tmp_path: Path, builder: str, folders: tuple[str, ...]) -> None:
    full = FULL.replace("  purchase: spot-first\n", "") if builder == "ebs" else FULL
    full += "rollout: [{karpenter: {nodeclass: gpu, remedy: boost}}]\n"
    found = calls_in(*folders)
    assert len(found) > 5
    allowed = iam.actions(iam.policies(written(tmp_path, full, builder=builder))["caller"])
    if builder in {"ec2", "ebs"}:  # volumes are of these, and need other calls
        volume = full.replace("  deprecate_after: 90d\n", "") + "artefact: {kind: volume}\n"
        bases = ["none"] if builder == "ebs" else ["ami-0123456789abcdef0", '{eks: bottlerocket, kubernetes: "1.33"}']
        for base in bases:
            allowed |= iam.actions(iam.policies(written(tmp_path, volume, builder=builder, base=base))["caller"])
    if builder == "ebs":  # the clean-up of what it never makes
        found -= {"ec2:CancelSpotInstanceRequests"}
    if builder != "packer":
        assert not PACKERS & allowed
        found -= PACKERS
    assert found <= allowed


def statements(policy: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = policy["Statement"]
    return found


def test_what_ends_or_changes_something_is_for_ours_alone(tmp_path: Path) -> None:
    for statement in statements(iam.policies(written(tmp_path, FULL))["caller"]):
        for action in statement["Action"]:
            if re.match(r"ec2:(Terminate|Delete|Deregister|Modify|Enable|Cancel|GetConsole)", action):
                condition = statement["Condition"]["StringLike"]
                assert condition == {"aws:ResourceTag/parbake:managed": "*"}, action
            if statement["Resource"] == ["*"]:
                assert re.match(r"ec2:(Describe|GetEbs)|ecr:GetAuthorizationToken", action), action


def test_registries_are_named(tmp_path: Path) -> None:
    found = iam.policies(written(tmp_path, image=ECR))
    [pull] = [each for each in statements(found["instance_role"]) if each["Sid"] == "Pull"]
    assert pull["Resource"] == ["arn:aws:ecr:eu-west-1:123456789012:repository/shop/api"]
    assert not iam.actions(found["instance_role"]) - iam.actions(found["caller"])
    assert found["instance_role_trust"]["Statement"][0]["Principal"] == {"Service": "ec2.amazonaws.com"}
    assert "karpenter" not in found


@pytest.mark.parametrize(("region", "partition"), [("cn-north-1", "aws-cn"), ("us-gov-west-1", "aws-us-gov")])
def test_other_partitions(tmp_path: Path, region: str, partition: str) -> None:
    """China's and GovCloud's: every ARN is of the partition, and a key of it is understood."""
    key = f"arn:{partition}:kms:{region}:123456789012:key/{KEY_ID}"
    role = f"arn:{partition}:iam::123456789012:role/baker"
    settings = FULL.replace("alias/nodes", key).replace("  copy_to: [us-east-1]\n", f"  role: {role}\n")
    text = (settings + TARGETS).replace("eu-west-1", region)
    path = tmp_path / "parbake.yaml"
    plain = PLAIN.format(image="a.example/b:1", builder="ec2", base="ami-0123456789abcdef0")
    path.write_text(plain.replace("eu-west-1", region) + text)
    found = printed(load(path), region=region)
    assert set(re.findall(r'"arn:([a-z-]+):', json.dumps(found))) == {partition}
    service = found["instance_role_trust"]["Statement"][0]["Principal"]["Service"]
    assert service == ("ec2.amazonaws.com.cn" if partition == "aws-cn" else "ec2.amazonaws.com")
    for name, policy in found.items():
        assert name.endswith("_trust") or mistakes(policy) == [], name


def test_a_local_bake_needs_nothing_of_ec2(tmp_path: Path) -> None:
    path = tmp_path / "parbake.yaml"
    path.write_text("version: 1\nimages: [registry.example/app:1]\n")
    assert iam.policies(load(path)) == {"caller": {"Version": "2012-10-17", "Statement": []}}


def test_sids_are_unique_and_valid(tmp_path: Path) -> None:
    for builder in ("ec2", "packer"):
        for policy in iam.policies(written(tmp_path, FULL + TARGETS, builder=builder, image=ECR)).values():
            sids = [each["Sid"] for each in statements(policy) if "Sid" in each]
            assert len(set(sids)) == len(sids)
            assert all(re.fullmatch("[A-Za-z0-9]+", sid) for sid in sids)


# Packer's Amazon plugin, "IAM Task or Instance Role": the calls of its builder amazon-ebs, and those for spot. Its
# list also has what its other builders do: volumes of their own, registering, Windows' password.
DOCUMENTED = {
    "AuthorizeSecurityGroupIngress", "CopyImage", "CreateFleet", "CreateImage", "CreateKeyPair",
    "CreateLaunchTemplate", "CreateSecurityGroup", "CreateTags", "DeleteKeyPair", "DeleteLaunchTemplate",
    "DeleteSecurityGroup", "DeleteSnapshot", "DeleteVolume", "DeregisterImage", "DescribeImageAttribute",
    "DescribeImages", "DescribeInstanceStatus", "DescribeInstances", "DescribeRegions", "DescribeSecurityGroups",
    "DescribeSnapshots", "DescribeSpotPriceHistory", "DescribeSubnets", "DescribeTags", "DescribeVolumes",
    "ModifyImageAttribute", "ModifySnapshotAttribute", "RunInstances", "StopInstances", "TerminateInstances",
}  # fmt: skip


def test_what_packer_calls_is_covered(tmp_path: Path) -> None:
    wanted = {f"ec2:{call}" for call in DOCUMENTED} | {"iam:CreateServiceLinkedRole"}
    packers = iam.policies(written(tmp_path, FULL, builder="packer"))["caller"]
    assert wanted <= iam.actions(packers)
    for statement in statements(packers):
        if statement["Resource"] == ["*"]:
            assert all(re.match("ec2:(Describe|GetEbs)", action) for action in statement["Action"]), statement
    once = iam.actions(iam.policies(written(tmp_path, builder="packer"))["caller"])
    assert not once & {"ec2:CreateFleet", "ec2:CreateLaunchTemplate", "iam:CreateServiceLinkedRole"}
    assert "ec2:CreateKeyPair" in once
    assert "ec2:CreateKeyPair" not in iam.actions(iam.policies(written(tmp_path, FULL))["caller"])


@pytest.mark.parametrize("create", [True, False])
def test_repositories_are_made_where_the_bakefile_says_so(cloud: Cloud, tmp_path: Path, create: bool) -> None:
    (tmp_path / "Containerfile").write_text("FROM scratch\n")
    host, _, path = ECR.partition("/")
    image = f"{{reference: {ECR}, build: {{context: .}}}}"
    bakefile = written(tmp_path, f"registries: {{{host}: {{create: {str(create).lower()}}}}}\n", image=image)
    caller = iam.policies(bakefile)["caller"]
    assert ecr.ensure_repository(host, path.partition(":")[0], bakefile.registries[host]) == create
    ecr.login(host, ecr.parse(host) or ecr.EcrHost(""))
    assert made(cloud) <= iam.actions(caller)
    named = [each["Resource"] for each in statements(caller) if "ecr:CreateRepository" in each["Action"]]
    assert named == ([["arn:aws:ecr:eu-west-1:123456789012:repository/shop/api"]] if create else [])
    assert ("ecr:DescribeRepositories" in iam.actions(caller)) == ("ecr:TagResource" in iam.actions(caller)) == create


def test_rollouts_have_a_policy_of_their_own(tmp_path: Path) -> None:
    found = printed(written(tmp_path, TARGETS), templates=("lt-1",))
    named = {each["Sid"]: each["Resource"] for each in statements(found["rollout"])}
    here = "eu-west-1:123456789012"
    assert named["RefreshGroups"] == [f"arn:aws:autoscaling:{here}:autoScalingGroup:*:autoScalingGroupName/workers"]
    assert named["UpdateNodeGroups"] == [f"arn:aws:eks:{here}:nodegroup/prod/gpu/*"]
    assert named["Parameters"] == [f"arn:aws:ssm:{here}:parameter/nodes/gpu"]
    assert named["NewVersions"] == [f"arn:aws:ec2:{here}:launch-template/lt-1"]
    assert named["PassTheNodesRole"] == ["arn:aws:iam::123456789012:role/nodes"]
    [karpenter] = statements(found["karpenter"])
    assert (karpenter["Action"], karpenter["Resource"]) == (["ssm:GetParameter"], named["Parameters"])
    for statement in statements(found["rollout"]):
        if statement["Resource"] == ["*"] and "ArnLike" not in statement["Condition"]:
            assert all(re.search(":(Describe|List)", action) for action in statement["Action"]), statement
            assert statement["Condition"] == {"StringEquals": {"aws:RequestedRegion": ["eu-west-1"]}}
    alone = iam.policies(written(tmp_path, "rollout: [{nodegroup: {cluster: prod, group: gpu}}]\n"))
    assert not {each for each in iam.actions(alone["rollout"]) if re.match("autoscaling|iam|ssm", each)}
    assert "karpenter" not in alone
    looks = iam.policies(written(tmp_path, "rollout: [{karpenter: {nodeclass: gpu}}]\n"))["rollout"]
    assert iam.actions(looks) == {"ec2:DescribeImages", "ec2:DescribeSnapshots"}, (
        "to compare records with what is there"
    )


def test_what_a_canary_proves_is_tagged_so_and_with_nothing_else(tmp_path: Path) -> None:
    canary = "rollout: [{karpenter: {nodeclass: a}, canary: {min_hit_rate: 1}}]\n"
    for proof in ("", "verify: canary\n"):
        policy = printed(written(tmp_path, canary + proof))["rollout"]
        for tag, of in (("parbake:verified", OURS), ("parbake:key", OURS), ("parbake:verified", {})):
            asked = {"Resources": ["snap-1"], "Tags": [{"Key": tag, "Value": "x"}]}
            wanted = checks("ec2", "CreateTags", asked, "eu-west-1", partial(_tags, of))
            allowed = bool(proof and of) and tag == "parbake:verified"
            assert (refused([policy], wanted) == []) == allowed, (proof, tag, of)


OURS = {"parbake:managed": "artefact"}


def _tags(tags: dict[str, str], _: str) -> dict[str, str]:
    return tags


def test_pruning_removes_ours_alone(tmp_path: Path) -> None:
    for statement in statements(iam.policies(written(tmp_path))["prune"]):
        reads = all(re.search(":(Describe|List|Get)", action) for action in statement["Action"])
        assert (
            reads
            or statement["Effect"] == "Deny"
            or statement["Action"] == ["ec2:CreateImageUsageReport"]  # which needs an image besides, of ours
            or statement["Condition"] == {"StringLike": {"aws:ResourceTag/parbake:managed": "*"}}
        )


def test_a_store_is_one_prefix_of_one_bucket(tmp_path: Path) -> None:
    found = iam.policies(written(tmp_path, f"store: s3://shop-parbake/nodes\n{TARGETS}"))
    of_store = {
        name: {each["Sid"]: each for each in statements(policy) if "TheStore" in each.get("Sid", "")}
        for name, policy in found.items()
    }
    assert {name: here["UseTheStore"]["Action"] for name, here in of_store.items() if here} == {
        "caller": ["s3:GetObject", "s3:PutObject"],
        "rollout": ["s3:GetObject"],
        "prune": ["s3:DeleteObject", "s3:GetObject"],
    }
    assert of_store["caller"]["UseTheStore"]["Resource"] == ["arn:aws:s3:::shop-parbake/nodes/*"]
    notes = of_store["rollout"]["NoteInTheStore"]
    assert (notes["Action"], notes["Resource"]) == (
        ["s3:PutObject"],
        [f"arn:aws:s3:::shop-parbake/nodes/{needs.FOLDER}*"],
    )
    listing = of_store["prune"]["ListTheStore"]
    assert listing["Resource"] == ["arn:aws:s3:::shop-parbake"]
    assert listing["Condition"] == {"StringLike": {"s3:prefix": ["nodes/*"]}}
    on_this_machine = iam.policies(written(tmp_path, f"store: shared\n{TARGETS}"))
    assert not any("s3:GetObject" in iam.actions(policy) for policy in on_this_machine.values())

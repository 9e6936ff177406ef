"""What somebody tries who holds a policy that `parbake iam` prints, and wants more than parbake does.

Each attack is a call, or the first one of a chain, that has to be refused in every world (``standins.policies``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from parbake import cli
from parbake.aws import iam
from parbake.aws.tags import as_list
from standins.aws.iam_recorder import printed
from standins.policies import AMAZONS, WORLDS, Check, arn, checks, pass_role, refused
from tests.aws.aws.test_iam import ECR, FULL, PLAIN, TARGETS, written

HOME, COPIES, ELSEWHERE = "eu-west-1", "us-east-1", "ap-south-1"
OURS = {"parbake:managed": "artefact", "parbake:key": "k"}
THEIRS, MINE = "snap-0bad", "snap-0a"
NODES, TOLD, AMAZONS_IMAGE = "ami-0123456789abcdef1", "snap-0123456789abcdef1", "ami-0a3a"
AMAZONS.add(AMAZONS_IMAGE)
TAGS = {
    NODES: {},
    "ami-0bad": {},
    THEIRS: {"backup": "daily"},
    MINE: OURS,
    "ami-0a": OURS,
    "i-0bad": {},
    "vol-0bad": {},
    "vol-0a": OURS,
    "vol-0b": {"parbake:boost": "3000/125"},
}
EVERYTHING = FULL + TARGETS + "  - karpenter: {nodeclass: gpu, tag: image=gpu, remedy: boost}\n"
BUILDERS = ("ec2", "ebs", "packer")
VOLUME = "artefact: {kind: volume}\n"


def bakefile_text(builder: str) -> str:
    return EVERYTHING.replace("  purchase: spot-first\n", "") if builder == "ebs" else EVERYTHING


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> Mapping[tuple[str, str], Any]:
    """The policies of each builder, with all names told: by builder and name."""
    found, tmp_path = {}, tmp_path_factory.mktemp("bakefiles")
    for builder in BUILDERS:
        bakefile = written(tmp_path, bakefile_text(builder), builder=builder, image=ECR)
        for name, policy in printed(
            bakefile, templates=("lt-0a",), base_snapshots=("snap-0ba5e",), launched=(NODES, TOLD)
        ).items():
            found[builder, name] = policy
        volume = bakefile_text(builder).replace("  deprecate_after: 90d\n", "") + VOLUME
        if builder != "packer":
            found[f"{builder} volume", "caller"] = printed(
                written(tmp_path, volume, builder=builder, **({"base": "none"} if builder == "ebs" else {}))
            )["caller"]
    return found


@dataclass(frozen=True)
class Attack:
    """A call that must be refused by all policies that are named (empty: by every one)."""

    what: str
    service: str
    operation: str
    asked: Mapping[str, Any] = field(default_factory=dict)
    region: str = HOME
    by: str = ""

    def refused(self, policy: Mapping[str, Any], world: Any) -> bool:
        wanted = checks(self.service, self.operation, self.asked, self.region, lambda name: TAGS.get(name, {}), world)
        assert wanted
        return bool(refused([policy], wanted))


def made(kind: str, tags: Mapping[str, str] = OURS) -> list[dict[str, Any]]:
    return [{"ResourceType": kind, "Tags": as_list(tags)}]


def launch(**more: Any) -> dict[str, Any]:
    tagged = [*made("instance"), *made("volume"), *made("network-interface")]
    return {"ImageId": "ami-0123456789abcdef0", "InstanceType": "m5.large", "TagSpecifications": tagged, **more}


def disk(snapshot: str) -> dict[str, Any]:
    return {"BlockDeviceMappings": [{"DeviceName": "/dev/sdf", "Ebs": {"SnapshotId": snapshot}}]}


def by_template(data: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """A launch by the template that targets use, of a version that says ``data``."""
    return {"LaunchTemplate": {"LaunchTemplateId": "lt-0a"}, "LaunchTemplateData": data, **more}


ATTACKS = (
    # Take over what is not parbake's: then every condition on its tag holds.
    Attack("tag a snapshot", "ec2", "CreateTags", {"Resources": [THEIRS], "Tags": as_list(OURS)}),
    Attack("tag an image", "ec2", "CreateTags", {"Resources": ["ami-0bad"], "Tags": as_list(OURS)}),
    Attack("tag an instance", "ec2", "CreateTags", {"Resources": ["i-0bad"], "Tags": as_list(OURS)}),
    Attack("tag a volume", "ec2", "CreateTags", {"Resources": ["vol-0bad"], "Tags": as_list(OURS)}),
    Attack("tag a request", "ec2", "CreateTags", {"Resources": ["sir-0bad"], "Tags": as_list(OURS)}),
    Attack("tag a group", "ec2", "CreateTags", {"Resources": ["sg-0bad"], "Tags": as_list(OURS)}),
    Attack("tag a copy's region", "ec2", "CreateTags", {"Resources": [THEIRS], "Tags": as_list(OURS)}, COPIES),
    Attack("tag elsewhere", "ec2", "CreateTags", {"Resources": [THEIRS], "Tags": as_list(OURS)}, ELSEWHERE),
    Attack("tag ours and theirs at once", "ec2", "CreateTags", {"Resources": [MINE, THEIRS], "Tags": as_list(OURS)}),
    Attack("tag with one key", "ec2", "CreateTags", {"Resources": [THEIRS], "Tags": as_list({"parbake:managed": ""})}),
    # Make something of theirs that is parbake's from the start.
    Attack("a child of a snapshot", "ebs", "StartSnapshot", {"ParentSnapshotId": THEIRS, "Tags": as_list(OURS)}),
    Attack("an image of a snapshot", "ec2", "RegisterImage", {
        "Name": "x", "BlockDeviceMappings": [{"Ebs": {"SnapshotId": THEIRS}}], "TagSpecifications": made("image")}),
    Attack("an image of an instance", "ec2", "CreateImage", {
        "InstanceId": "i-0bad", "TagSpecifications": [*made("image"), *made("snapshot")]}),
    Attack("a snapshot of a volume", "ec2", "CreateSnapshot", {
        "VolumeId": "vol-0bad", "TagSpecifications": made("snapshot")}),
    Attack("a disk of a snapshot", "ec2", "RunInstances", launch(
        BlockDeviceMappings=[{"DeviceName": "/dev/sdf", "Ebs": {"SnapshotId": THEIRS}}])),
    Attack("an instance of an image", "ec2", "RunInstances", launch(ImageId="ami-0bad")),
    Attack("a fleet of an image", "ec2", "CreateFleet", {
        "LaunchTemplateConfigs": [{"Overrides": [{"ImageId": "ami-0bad"}]}], "TagSpecifications": made("fleet")}),
    Attack("a copy at home", "ec2", "CopySnapshot", {
        "SourceSnapshotId": THEIRS, "SourceRegion": HOME, "TagSpecifications": made("snapshot")}),
    Attack("a copy of an image at home", "ec2", "CopyImage", {
        "SourceImageId": "ami-0bad", "SourceRegion": HOME, "Name": "x",
        "TagSpecifications": [*made("image"), *made("snapshot")]}),
    Attack("a copy from elsewhere", "ec2", "CopySnapshot", {
        "SourceSnapshotId": THEIRS, "SourceRegion": ELSEWHERE, "TagSpecifications": made("snapshot")}),
    Attack("a copy without the tag", "ec2", "CopySnapshot", {
        "SourceSnapshotId": MINE, "SourceRegion": HOME}, COPIES),
    Attack("a copy elsewhere", "ec2", "CopySnapshot", {
        "SourceSnapshotId": MINE, "SourceRegion": HOME, "TagSpecifications": made("snapshot")}, ELSEWHERE),
    # Read and hand out.
    Attack("list a snapshot", "ebs", "ListSnapshotBlocks", {"SnapshotId": THEIRS}),
    Attack("read a snapshot", "ebs", "GetSnapshotBlock", {"SnapshotId": THEIRS}),
    Attack("read a copy", "ebs", "GetSnapshotBlock", {"SnapshotId": MINE}, COPIES),
    Attack("write a snapshot", "ebs", "PutSnapshotBlock", {"SnapshotId": THEIRS}),
    Attack("share a snapshot", "ec2", "ModifySnapshotAttribute", {
        "SnapshotId": THEIRS, "UserIds": ["210987654321"]}),
    Attack("share a snapshot there", "ec2", "ModifySnapshotAttribute", {
        "SnapshotId": THEIRS, "UserIds": ["210987654321"]}, COPIES),
    Attack("share ours with a stranger", "ec2", "ModifySnapshotAttribute", {
        "SnapshotId": MINE, "UserIds": ["666666666666"]}),
    Attack("share ours with a stranger too", "ec2", "ModifySnapshotAttribute", {
        "SnapshotId": MINE, "UserIds": ["210987654321", "666666666666"]}),
    Attack("publish ours", "ec2", "ModifySnapshotAttribute", {
        "SnapshotId": MINE, "UserIds": ["210987654321"], "GroupNames": ["all"]}),
    Attack("share an image", "ec2", "ModifyImageAttribute", {"ImageId": "ami-0bad"}),
    Attack("share an image there", "ec2", "ModifyImageAttribute", {"ImageId": "ami-0bad"}, COPIES),
    # End.
    Attack("delete a snapshot", "ec2", "DeleteSnapshot", {"SnapshotId": THEIRS}),
    Attack("deregister an image", "ec2", "DeregisterImage", {"ImageId": "ami-0bad"}),
    Attack("end an instance", "ec2", "TerminateInstances", {"InstanceIds": ["i-0bad"]}),
    Attack("delete ours elsewhere", "ec2", "DeleteSnapshot", {"SnapshotId": MINE}, ELSEWHERE),
    Attack("wipe all tags of an image", "ec2", "DeleteTags", {"Resources": ["ami-0bad"]}),
    Attack("wipe all tags of an image of a target", "ec2", "DeleteTags", {"Resources": ["ami-0c"]}),
    Attack("ask who uses an image", "ec2", "CreateImageUsageReport", {"ImageId": "ami-0bad"}),
    Attack("ask who uses ours elsewhere", "ec2", "CreateImageUsageReport", {"ImageId": "ami-0a"}, ELSEWHERE),
    Attack("look at a role's profile", "iam", "GetInstanceProfile", {"InstanceProfileName": "admin"}),
    Attack("end a protection", "ec2", "DisableImageDeregistrationProtection", {"ImageId": "ami-0a"}),
    Attack("switch off encryption", "ec2", "DisableEbsEncryptionByDefault", {}),
    # Raised volumes: the nodes' role changes those that are launched so, and makes no other one of them.
    Attack("raise a volume", "ec2", "ModifyVolume", {"VolumeId": "vol-0bad", "Iops": 80_000}),
    Attack("raise a builder's volume", "ec2", "ModifyVolume", {"VolumeId": "vol-0a", "Iops": 80_000}),
    Attack("change a raised volume elsewhere", "ec2", "ModifyVolume", {"VolumeId": "vol-0b"}, ELSEWHERE),
    Attack("see changes elsewhere", "ec2", "DescribeVolumesModifications", {"VolumeIds": ["vol-0b"]}, ELSEWHERE),
    Attack("tag a volume as raised", "ec2", "CreateTags", {
        "Resources": ["vol-0bad"], "Tags": as_list({"parbake:boost": "3000/125"})}),
    Attack("untag a raised volume", "ec2", "DeleteTags", {"Resources": ["vol-0b"]}),
    Attack("detach a raised volume", "ec2", "DetachVolume", {"VolumeId": "vol-0b"}),
    Attack("delete a raised volume", "ec2", "DeleteVolume", {"VolumeId": "vol-0b"}),
    # Secrets.
    Attack("read a parameter", "ssm", "GetParameter", {"Name": "/prod/password", "WithDecryption": True}),
    Attack("read parameters", "ssm", "GetParameters", {"Names": ["/nodes/gpu", "/prod/password"]}),
    Attack("read a history", "ssm", "GetParameterHistory", {"Name": "/prod/password"}),
    Attack("read a target's elsewhere", "ssm", "GetParameter", {"Name": "/nodes/gpu"}, ELSEWHERE),
    Attack("write a parameter", "ssm", "PutParameter", {"Name": "/prod/password", "Value": "x"}),
    # Rollouts.
    Attack("promote an image", "ec2", "CreateTags", {
        "Resources": ["ami-0bad"], "Tags": as_list({"image": "gpu"})}),
    Attack("a version of a template", "ec2", "CreateLaunchTemplateVersion", {"LaunchTemplateId": "lt-0bad"}),
    Attack("launch of a template", "ec2", "RunInstances", {"LaunchTemplate": {"LaunchTemplateId": "lt-0bad"}}),
    Attack("an image by a version", "ec2", "RunInstances", by_template({"ImageId": "ami-0bad"})),
    Attack("a snapshot by a version", "ec2", "RunInstances", by_template({"ImageId": "ami-0a", **disk(THEIRS)})),
    Attack("an image besides a version", "ec2", "RunInstances", by_template({"ImageId": "ami-0a"}, ImageId="ami-0bad")),
    Attack("our image besides a version", "ec2", "RunInstances", by_template({"ImageId": NODES}, ImageId="ami-0a")),
    Attack("a snapshot besides a version", "ec2", "RunInstances", by_template({"ImageId": "ami-0a"}, **disk(THEIRS))),
    Attack("our snapshot besides a version", "ec2", "RunInstances", by_template({"ImageId": "ami-0a"}, **disk(MINE))),
    Attack("a key besides a version", "ec2", "RunInstances", by_template({"ImageId": "ami-0a"}, KeyName="key-0bad")),
    Attack("another role by a version", "ec2", "RunInstances", by_template({
        "ImageId": "ami-0a", "IamInstanceProfile": {"Name": "admin"}})),
    Attack("an image by a version elsewhere", "ec2", "RunInstances", by_template({"ImageId": "ami-0a"}), ELSEWHERE),
    Attack("the template elsewhere", "ec2", "CreateLaunchTemplateVersion", {"LaunchTemplateId": "lt-0a"}, ELSEWHERE),
    Attack("refresh a group", "autoscaling", "StartInstanceRefresh", {"AutoScalingGroupName": "payments"}),
    Attack("look elsewhere", "ec2", "DescribeInstances", {}, ELSEWHERE),
)  # fmt: skip
TAGS["ami-0c"] = {"image": "gpu"}


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.what.replace(" ", "-"))
def test_no_policy_lets_its_holder(policies: Mapping[tuple[str, str], Any], attack: Attack) -> None:
    let = [
        (*named, world)
        for named, policy in policies.items()
        if named[1] != "instance_role_trust"
        for world in WORLDS
        if not attack.refused(policy, world)
    ]
    assert let == []


SUBNET = {"SubnetId": "subnet-0a"}  # which a group says itself
ALLOWED: dict[str, dict[str, Any]] = {
    "a-machine-image": by_template({"ImageId": "ami-0a"}, **SUBNET),
    "a-volume-for-their-own-nodes": by_template({"ImageId": NODES, **disk(MINE)}, **SUBNET),
    "a-volume-for-amazons-nodes": by_template({"ImageId": AMAZONS_IMAGE, **disk(MINE)}, **SUBNET),
    "a-volume-where-eks-chooses-the-image": by_template(disk(MINE), ImageId=AMAZONS_IMAGE),
    "a-disk-of-their-own-that-was-told": by_template({"ImageId": "ami-0a", **disk(TOLD)}),
    "all-that-a-template-may-say": by_template({
        "ImageId": "ami-0a", "KeyName": "key-0a", "SecurityGroupIds": ["sg-0a"],
        "IamInstanceProfile": {"Name": "nodes"}, "TagSpecifications": made("instance", {"team": "a"})}, **SUBNET),
}  # fmt: skip


@pytest.mark.parametrize("launch", ALLOWED)
def test_a_group_may_launch(policies: Mapping[tuple[str, str], Any], launch: str) -> None:
    """What rollouts bring, and go back to: without it AWS refuses the group its new version."""
    for builder in BUILDERS:
        for world in WORLDS:
            wanted = checks("ec2", "RunInstances", ALLOWED[launch], HOME, lambda name: TAGS.get(name, {}), world)
            assert refused([policies[builder, "rollout"]], wanted) == []


def test_the_nodes_of_another_account_may_launch_what_is_shared_with_it(tmp_path: Path) -> None:
    """No tag of parbake's is to be seen there: its owner counts, who has shared it."""
    target = "rollout: [{name: prod, asg: {group: workers}, role: 'arn:aws:iam::210987654321:role/r'}]\n"
    policy = printed(written(tmp_path, target, builder="ebs"), templates=("lt-0a",))["role_of_prod"]
    for world in WORLDS:
        for owner, allowed in (("123456789012", True), ("666666666666", False)):
            wanted = [
                in_account(each, "210987654321", owner)
                for each in checks("ec2", "RunInstances", by_template({"ImageId": "ami-0a"}), HOME, lambda _: {}, world)
            ]
            assert (refused([policy], wanted) == []) == allowed


def in_account(check: Check, account: str, owner: str) -> Check:
    """Return a check as it is made in another account, of an image that somebody shares with it."""
    context = {key: tuple(each.replace("123456789012", account) for each in its) for key, its in check.context.items()}
    context |= {"ec2:Owner": (owner,)} if "ec2:Owner" in context else {}
    return Check(check.action, check.resource.replace("123456789012", account), context)


def test_a_node_may_take_its_raised_volume_back_and_nothing_else(policies: Mapping[tuple[str, str], Any]) -> None:
    policy, caller = policies["ebs", "nodes"], policies["ebs", "caller"]
    for operation in ("ModifyVolume", "DescribeVolumesModifications"):
        names = "VolumeIds" if operation.startswith("Describe") else "VolumeId"
        asked = {names: ["vol-0b"] if names == "VolumeIds" else "vol-0b"}
        for world in WORLDS:
            wanted = checks("ec2", operation, asked, HOME, lambda name: TAGS.get(name, {}), world)
            assert refused([policy], wanted) == refused([caller], wanted) == []
    assert iam.actions(policy) == {"ec2:ModifyVolume", "ec2:DescribeVolumesModifications"}


def test_the_nodes_policy_is_printed_where_a_target_boosts_or_somebody_asks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written(tmp_path, TARGETS)
    policy: dict[str, Any] = {}
    for asks in (False, True):
        assert cli.run(["iam", "-f", str(tmp_path / "parbake.yaml"), "--json", *["--boost"] * asks]) == 0
        policy = json.loads(capsys.readouterr().out).get("nodes", {})
        assert bool(policy) is asks
    assert iam.actions(policy) == {"ec2:ModifyVolume", "ec2:DescribeVolumesModifications"}


ROLES = (pass_role("admin"), pass_role("nodes", "lambda.amazonaws.com"), pass_role("baker-admin"))


@pytest.mark.parametrize("check", ROLES, ids=lambda check: check.resource.rpartition("/")[2])
def test_no_policy_hands_over_another_role(policies: Mapping[tuple[str, str], Any], check: Check) -> None:
    assert [
        named
        for named, policy in policies.items()
        if named[1] != "instance_role_trust" and not refused([policy], [check])
    ] == []
    assert refused([policies["ec2", "rollout"]], [pass_role("nodes")]) == []
    assert refused([policies["ec2", "caller"]], [pass_role("baker")]) == []


def test_a_role_with_more_rights_takes_nothing_over(policies: Mapping[tuple[str, str], Any]) -> None:
    """Another policy of the same role lets it tag everything: the denial wins."""
    all_tags = {"Statement": [{"Sid": "x", "Effect": "Allow", "Action": ["ec2:CreateTags"], "Resource": ["*"]}]}
    theirs = {"Resources": [THEIRS], "Tags": as_list({"Parbake:Managed": "artefact"})}  # IAM takes it for the same
    own = {"Resources": [THEIRS], "Tags": as_list({"team": "a"})}
    for (builder, name), policy in policies.items():
        if name in {"caller", "rollout", "prune"}:
            for world in WORLDS:
                wanted = checks("ec2", "CreateTags", theirs, HOME, lambda name: TAGS.get(name, {}), world)
                assert refused([policy, all_tags], wanted), (builder, name)
                wanted = checks("ec2", "CreateTags", own, HOME, lambda name: TAGS.get(name, {}), world)
                assert refused([policy, all_tags], wanted) == [], (
                    "what is no tag of parbake's is no matter of parbake's"
                )


@pytest.mark.parametrize(
    ("parent", "allowed"), [("", True), (MINE, True), ("snap-0ba5e", True), (THEIRS, False)],
    ids=["none", "ours", "the-base", "theirs"],
)  # fmt: skip
def test_a_snapshot_begins_alone_or_on_what_may_be_read(
    policies: Mapping[tuple[str, str], Any], parent: str, allowed: bool
) -> None:
    asked = {"Tags": as_list(OURS), "VolumeSize": 8, **({"ParentSnapshotId": parent} if parent else {})}
    for world in WORLDS:
        wanted = checks("ebs", "StartSnapshot", asked, HOME, lambda name: TAGS.get(name, {}), world)
        assert (refused([policies["ebs", "caller"]], wanted) == []) == allowed
        read = checks("ebs", "GetSnapshotBlock", {"SnapshotId": parent or MINE}, HOME, lambda name: TAGS.get(name, {}))
        assert (refused([policies["ebs", "caller"]], read) == []) == allowed
    bare = checks("ebs", "StartSnapshot", {**asked, "Tags": []}, HOME, lambda name: TAGS.get(name, {}))
    assert refused([policies["ebs", "caller"]], bare), "without the tag nothing begins"


def test_account_and_regions_are_named(policies: Mapping[tuple[str, str], Any]) -> None:
    """Of what a statement allows; a denial holds everywhere."""
    for (_, name), policy in policies.items():
        for statement in policy["Statement"]:
            if name == "instance_role_trust" or statement["Effect"] == "Deny":
                continue
            for resource in statement["Resource"]:
                if resource == "*":
                    assert "Condition" in statement or statement["Action"][0].startswith("ecr:"), statement
                    continue
                _, _, service, region, account, rest = resource.split(":", 5)
                assert region or service == "iam", resource
                assert region in {"", HOME, COPIES}, resource
                aws = rest.startswith(("image/", "snapshot/", "parameter/aws/service/", "document/AWS-"))
                assert account == "123456789012" or aws, resource


def test_names_that_are_missing_are_placeholders_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "parbake.yaml"
    path.write_text(PLAIN.format(image=ECR, builder="ebs", base="ami-0123456789abcdef0") + TARGETS)
    assert cli.run(["iam", "-f", str(path), "--json"]) == 0
    shown = capsys.readouterr()
    for name in ("ACCOUNT_ID", "LAUNCH_TEMPLATE_ID", "NODES_ROLE", "NODES_IMAGE_ID", "BASE_SNAPSHOT_ID"):
        assert name in shown.out
        assert f"parbake: {name} stands for " in shown.err
    told = ["--account", "123456789012", "--template", "lt-0123456789abcdef0", "--role", "team/nodes"]
    told += ["--base-snapshot", "snap-0123456789abcdef0", "--parameter", "/images/*"]
    told += ["--launches", "ami-0123456789abcdef0", "--launches", "snap-0123456789abcdef0"]
    assert cli.run(["iam", "-f", str(path), "--json", *told]) == 0
    shown = capsys.readouterr()
    assert shown.err.startswith("parbake: whoever has rollout decides by a new launch template version ")
    assert (shown.err.count("\n"), "_ID" in shown.out) == (1, False)
    found = json.loads(shown.out)
    [read] = [each for each in found["prune"]["Statement"] if each["Sid"] == "ReadParameters"]
    assert "arn:aws:ssm:eu-west-1:123456789012:parameter/images/*" in read["Resource"]


@pytest.mark.parametrize(
    "options", [("--account", "*"), ("--account", "12345678901"), ("--template", "lt-*"), ("--role", "*"),
                ("--role", "arn:aws:iam::123456789012:role/x"), ("--parameter", "*"), ("--base-snapshot", "snap-*")],
    ids=" ".join,
)  # fmt: skip
def test_an_option_names_one_thing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, str]
) -> None:
    path = tmp_path / "parbake.yaml"
    path.write_text(PLAIN.format(image=ECR, builder="ec2", base="ami-0123456789abcdef0"))
    assert cli.run(["iam", "-f", str(path), *options]) == 2
    assert options[0] in capsys.readouterr().err


def test_the_creating_call_alone_tags(policies: Mapping[tuple[str, str], Any]) -> None:
    """What parbake does: tags come with the call; a new snapshot has no id yet."""
    new = Check("ec2:CreateTags", arn("ec2", "snapshot", "*", HOME), {"aws:RequestTag/parbake:managed": ("temporary",)})
    assert refused([policies["ebs", "caller"]], [new]) == []
    there = Check("ec2:CreateTags", arn("ec2", "snapshot", THEIRS, HOME), new.context)
    assert refused([policies["ebs", "caller"]], [there])

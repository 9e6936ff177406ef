"""Rollouts to Auto Scaling groups, managed node groups and parameters, from the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from moto.ec2.models import ec2_backends
from moto.ssm.models import ssm_backends

from parbake.aws import clients, iam
from parbake.aws.tags import as_dict
from parbake.bakefile import load
from parbake.core.events import Events
from parbake.core.model import GIB
from parbake.rollouts import Offer
from parbake.rollouts.asg import Asg
from parbake.rollouts.parameter import Parameter
from parbake.rollouts.templates import new_data
from parbake.workflows import rollout
from standins import clusters
from standins.aws.autoscaling import Fleets
from standins.aws.boto_clients import raw
from standins.aws.iam_recorder import NOTED, attach, printed, tags_in_moto
from standins.aws.interceptor import Killed
from standins.clusters import SHOWN, goes_out_again, machine_image, parbake, project, volume
from standins.policies import refused
from tests.aws.conftest import REGION

pytestmark = pytest.mark.usefixtures("aws_mock", "made_up_records")

QUICK = ("--interval", "0.05")
FIRST, SECOND = machine_image("first", "ami-1", region=REGION), machine_image("second", "ami-2", region=REGION)
DATA = volume("data", "snap-9", region=REGION)
BOTTLEROCKETS = DATA.model_copy(
    update={"published": {REGION: DATA.published[REGION].model_copy(update={"family": "Bottlerocket"})}}
)
GROUP = {"asg": {"group": "workers"}}
NODES = {"nodegroup": {"cluster": "prod", "group": "nodes"}}
PARAMETER = {"ssm": "/nodes/gpu"}
DISKS = [{"DeviceName": "/dev/xvda", "Ebs": {"VolumeSize": 20, "VolumeType": "gp3"}}]


@pytest.fixture
def fleets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Fleets]:
    """What moto lacks, in every client that parbake makes; and the policy must cover each call that a test makes."""
    fleets = Fleets()
    before = len(NOTED)
    make = clients._make

    def made(service: str, region: str, *more: Any) -> Any:
        client = make(service, region, *more)
        attach(client, region, tags_shown)
        fleets.attach(client, "auto-scaling" if service == "autoscaling" else service)
        return client

    monkeypatch.setattr(clients, "_make", made)
    monkeypatch.chdir(tmp_path)
    yield fleets
    assert NOTED[before:]
    policy = printed(load(tmp_path / "parbake.yaml"), launched=their_own_images())["rollout"]
    assert refused([policy], NOTED[before:]) == []


def tags_shown(resource: str) -> Mapping[str, str]:
    """Return the tags of a resource: an artefact of a record that a test has made up has those of its bake."""
    return as_dict(SHOWN[resource]) if resource in SHOWN else tags_in_moto(resource)


def their_own_images() -> tuple[str, ...]:
    """Return the images of the versions that tests begin with, which users name to `parbake iam`."""
    templates = ec2_backends["123456789012"][REGION].launch_templates.values()
    return tuple(str(each.versions[0].data.get("ImageId", "ami-0")) for each in templates)


def template(image: str = "ami-0", **more: Any) -> str:
    data = {"InstanceType": "m7i.large", "BlockDeviceMappings": DISKS, **({"ImageId": image} if image else {}), **more}
    made = raw("ec2").create_launch_template(LaunchTemplateName="nodes", LaunchTemplateData=data)
    return str(made["LaunchTemplate"]["LaunchTemplateId"])


def group(version: str = "1", image: str = "ami-0") -> str:
    """Make an Auto Scaling group of two instances; return its launch template."""
    made = template(image)
    ec2 = raw("ec2")
    subnet = ec2.describe_subnets()["Subnets"][0]["SubnetId"]
    raw("autoscaling").create_auto_scaling_group(
        AutoScalingGroupName="workers",
        MinSize=2,
        MaxSize=2,
        LaunchTemplate={"LaunchTemplateId": made, "Version": version},
        VPCZoneIdentifier=subnet,
    )
    return made


def versions(made: str) -> list[dict[str, Any]]:
    found = raw("ec2").describe_launch_template_versions(LaunchTemplateId=made)
    return sorted(found["LaunchTemplateVersions"], key=lambda each: each["VersionNumber"])


def held() -> str:
    found = raw("autoscaling").describe_auto_scaling_groups()["AutoScalingGroups"][0]
    return str(found["LaunchTemplate"]["Version"])


def test_a_target_in_another_account(fleets: Fleets, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is written in its role there, which may do what `parbake iam` prints for it."""
    del fleets
    role = "arn:aws:iam::210987654321:role/rollout"
    project(tmp_path, [{**PARAMETER, "role": role, "external_id": "fleet-7"}], FIRST)
    assert parbake(capsys, "rollout", FIRST.key, *QUICK)[0] == 0
    there: Any = ssm_backends["210987654321"][REGION]
    assert there.get_parameter("/nodes/gpu").value == "ami-1"
    assert raw("ssm").describe_parameters()["Parameters"] == []
    assert parbake(capsys, "status")[1][0]["holds"]["images"] == ["ami-1"]
    found = printed(load(tmp_path / "parbake.yaml"))
    assert found["assume"]["Statement"][0]["Resource"] == [role]
    trust = found["role_of_ssm_trust"]["Statement"][0]
    assert trust["Condition"] == {"StringEquals": {"sts:ExternalId": "fleet-7"}}
    put = [each for each in found["role_of_ssm"]["Statement"] if "ssm:PutParameter" in each["Action"]]
    assert [each["Resource"] for each in put] == [["arn:aws:ssm:eu-west-1:210987654321:parameter/nodes/gpu"]]
    assert "ssm:PutParameter" not in iam.actions(found["rollout"])
    # The calls of this test are noted as if all were made in one account: by the policies of that account's roles.
    project(tmp_path, [PARAMETER], FIRST)


def test_a_group_and_back(fleets: Fleets, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = group()
    project(tmp_path, [{"asg": {"group": "workers", "checkpoints": [50, 100], "healthy": 80, "warmup": "30s"}}], FIRST)
    code, shown = parbake(capsys, "rollout", FIRST.key, "--dry-run")
    assert (code, len(versions(made))) == (0, 1), "a dry run makes no version"
    assert '+  "ImageId": "ami-1"' in shown["targets"][0]["diff"]
    code, done = parbake(capsys, "rollout", FIRST.key, *QUICK)
    assert (code, done["targets"][0]["follow"]["ready"], held()) == (0, 2, "2")
    asked = fleets.refreshes[0].preferences
    assert (asked["MinHealthyPercentage"], asked["SkipMatching"], asked["AutoRollback"]) == (80, "true", "true")
    assert (asked["CheckpointPercentages.member.1"], asked["InstanceWarmup"]) == (50, 30)
    code, done = parbake(capsys, "rollout", FIRST.key, *QUICK)
    assert (code, done["changed"], len(versions(made)), len(fleets.refreshes)) == (0, False, 2, 1)
    report = parbake(capsys, "status")[1][0]
    assert (report["holds"]["artefacts"], report["previous"]["images"]) == ([FIRST.artefact], ["ami-0"])
    code, done = parbake(capsys, "rollback", *QUICK)
    assert (code, done["changed"], held()) == (0, True, "1")
    code, done = parbake(capsys, "rollback", *QUICK)
    assert (code, done["changed"], held()) == (0, False, "1"), "it has gone back already"
    assert not goes_out_again(tmp_path, FIRST)
    assert parbake(capsys, "rollout", FIRST.key, *QUICK)[0] == 0
    assert goes_out_again(tmp_path, FIRST), "somebody has said so"
    project(tmp_path, [GROUP], FIRST, SECOND)
    assert parbake(capsys, "rollout", SECOND.key, "--superseding", "ami-1", *QUICK)[0] == 0
    assert parbake(capsys, "rollback", *QUICK)[0] == 0
    assert held() == "1", "what was superseded is no way back"


def test_a_group_that_fails_goes_back_by_itself(
    fleets: Fleets, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    group()
    project(tmp_path, [GROUP], FIRST)
    fleets.fails = "1 instance failed its health check"
    code, error = parbake(capsys, "rollout", FIRST.key, *QUICK)
    assert (code, held()) == (1, "1")
    assert "RollbackSuccessful: 1 instance failed its health check" in error["message"]
    code, _ = parbake(capsys, "rollout", FIRST.key, *QUICK)
    assert (code, held()) == (0, "2"), "the version that was made is taken"


def test_going_back_while_a_refresh_is_under_way(
    fleets: Fleets, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    group()
    project(tmp_path, [GROUP], FIRST, SECOND)
    fleets.stuck = True
    code, error = parbake(capsys, "rollout", FIRST.key, *QUICK, "--deadline", "1")
    assert (code, error["error"]) == (1, "Stalled")
    assert "instance refresh Pending" in error["message"]
    code, error = parbake(capsys, "rollout", SECOND.key, *QUICK)
    assert (code, error["error"]) == (1, "TargetMoved"), "one refresh at a time"
    fleets.stuck = False
    code, _ = parbake(capsys, "rollback", *QUICK)
    assert (code, held(), fleets.refreshes[-1].status) == (0, "1", "RollbackSuccessful")


@pytest.mark.parametrize(("version", "image"), [("$Latest", "ami-0"), ("1", "resolve:ssm:/x")])
def test_a_group_that_cannot_go_back_by_itself(
    fleets: Fleets, tmp_path: Path, capsys: pytest.CaptureFixture[str], version: str, image: str
) -> None:
    made = group(version, "ami-0")
    if image != "ami-0":
        changes = {"ImageId": image, "BlockDeviceMappings": DISKS}
        raw("ec2").create_launch_template_version(LaunchTemplateId=made, SourceVersion="1", LaunchTemplateData=changes)
        specification = {"LaunchTemplateId": made, "Version": "2"}
        raw("autoscaling").update_auto_scaling_group(AutoScalingGroupName="workers", LaunchTemplate=specification)
    project(tmp_path, [GROUP], FIRST)
    code, done = parbake(capsys, "rollout", FIRST.key, *QUICK)
    assert code == 0
    assert "without auto-rollback" in done["targets"][0]["cautions"][0]
    assert held() == str(len(versions(made))), "a number, from now on"
    assert fleets.refreshes[0].preferences["AutoRollback"] == "false"
    assert parbake(capsys, "rollback", *QUICK)[0] == 0, "to the number that it was"


def test_instances_of_before_are_refreshed(fleets: Fleets, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that was killed between the new version and the refresh of a group that follows $Latest."""
    made = group("$Latest")
    fleets.instances["workers"] = ["1", "1"]
    changes = {"ImageId": "ami-1", "BlockDeviceMappings": DISKS}
    raw("ec2").create_launch_template_version(LaunchTemplateId=made, SourceVersion="1", LaunchTemplateData=changes)
    project(tmp_path, [GROUP], FIRST)
    code, done = parbake(capsys, "rollout", FIRST.key, *QUICK)
    assert (code, done["changed"], fleets.instances["workers"]) == (0, True, ["2", "2"])


@pytest.mark.parametrize(
    ("target", "service", "call"),
    [
        (GROUP, "autoscaling", "CreateOrUpdateTags"),
        (GROUP, "autoscaling", "StartInstanceRefresh"),
        (NODES, "eks", "TagResource"),
        (NODES, "eks", "UpdateNodegroupVersion"),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_a_run_that_ends_before_a_call_is_finished(
    fleets: Fleets,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    target: dict[str, Any],
    service: str,
    call: str,
) -> None:
    made = group() if target is GROUP else node_group("CUSTOM")
    project(tmp_path, [target], FIRST)

    def die(**_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        make = clients._make

        def dying(service_: str, region: str, *more: Any) -> Any:
            client = make(service_, region, *more)
            if service_ == service:
                client.meta.events.register_first(f"before-call.{service}.{call}".replace("autos", "auto-s"), die)
            return client

        patched.setattr(clients, "_make", dying)
        with pytest.raises(Killed):
            rollout.rollout(tmp_path / "parbake.yaml", [FIRST.key], Events(), rollout.RolloutOptions(interval=0.05))
        clients.forget()
    assert len(versions(made)) == 2
    assert parbake(capsys, "rollout", FIRST.key, *QUICK)[0] == 0
    assert len(versions(made)) == 2, "the version that was made is taken"
    report = parbake(capsys, "status")[1][0]
    assert (report["holds"]["artefacts"], report["previous"]["images"]) == ([FIRST.artefact], ["ami-0"])
    assert parbake(capsys, "rollback", *QUICK)[0] == 0
    del fleets


def _somebody_moves_the_group() -> None:
    made = versions(raw("ec2").describe_launch_templates()["LaunchTemplates"][0]["LaunchTemplateId"])[0]
    identity = made["LaunchTemplateId"]
    raw("ec2").create_launch_template_version(LaunchTemplateId=identity, LaunchTemplateData={"ImageId": "ami-7"})
    specification = {"LaunchTemplateId": identity, "Version": "2"}
    raw("autoscaling").update_auto_scaling_group(AutoScalingGroupName="workers", LaunchTemplate=specification)


def _somebody_puts_the_parameter() -> None:
    raw("ssm").put_parameter(Name="/nodes/gpu", Value="ami-7", Type="String", Overwrite=True)


@pytest.mark.parametrize(
    ("target", "kind", "meanwhile", "says"),
    [
        (GROUP, Asg, _somebody_moves_the_group, "it holds"),
        (PARAMETER, Parameter, _somebody_puts_the_parameter, "it has version 2 now, not 1"),
    ],
    ids=["asg", "ssm"],
)
def test_two_rollouts_race(
    fleets: Fleets,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    target: dict[str, Any],
    kind: Any,
    meanwhile: Callable[[], None],
    says: str,
) -> None:
    """Between the look and the write, somebody else writes: nothing is written then, and the next run sees it."""
    group()
    raw("ssm").put_parameter(Name="/nodes/gpu", Value="ami-0", Type="String")
    project(tmp_path, [target], FIRST)
    decided = kind.plan

    def plan(self: Any, offer: Offer) -> Any:
        change = decided(self, offer)
        meanwhile()
        return change

    with monkeypatch.context() as patched:
        patched.setattr(kind, "plan", plan)
        code, error = parbake(capsys, "rollout", FIRST.key, "--no-follow")
    clusters.refused((code, error), 1, "TargetMoved", says, "run the same command again")
    assert (fleets.refreshes, parbake(capsys, "status")[1][0]["holds"]["images"]) == ([], ["ami-7"])
    assert parbake(capsys, "rollout", FIRST.key, *QUICK)[0] == 0
    assert parbake(capsys, "status")[1][0]["previous"]["images"] == ["ami-7"], "the way back is to what was there"


@pytest.mark.parametrize("target", [GROUP, NODES], ids=["asg", "nodegroup"])
def test_an_image_of_another_architecture(
    fleets: Fleets, tmp_path: Path, capsys: pytest.CaptureFixture[str], target: dict[str, Any]
) -> None:
    arm = raw("ec2").register_image(Name="arm", RootDeviceName="/dev/xvda")["ImageId"]
    ec2_backends["123456789012"][REGION].amis[arm].architecture = "arm64"  # moto notes none
    made = group(image=arm) if target is GROUP else node_group("CUSTOM", arm)
    project(tmp_path, [target], FIRST)
    code, error = parbake(capsys, "rollout", FIRST.key)
    assert (code, len(versions(made))) == (1, 1)
    assert f"its nodes run arm64 ({arm}), and {FIRST.artefact} is for amd64" in error["message"]
    assert parbake(capsys, "rollout", FIRST.key, "--force", "--no-follow")[0] == 0
    del fleets


def test_node_groups_go_back_by_going_forward(
    fleets: Fleets, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = node_group("CUSTOM")
    project(tmp_path, [NODES], FIRST, DATA)
    code, _ = parbake(capsys, "rollout", FIRST.key, DATA.key, *QUICK)
    assert (code, fleets.versions) == (0, {"nodes": "2"})
    said = versions(made)[1]["LaunchTemplateData"]
    assert (said["ImageId"], said["BlockDeviceMappings"][1]["Ebs"]["SnapshotId"]) == ("ami-1", "snap-9")
    code, done = parbake(capsys, "rollout", FIRST.key, DATA.key, *QUICK)
    assert (code, done["changed"]) == (0, False)
    code, done = parbake(capsys, "rollback", *QUICK)
    assert (code, done["changed"], fleets.versions) == (0, True, {"nodes": "3"})
    said = versions(made)[2]["LaunchTemplateData"]
    assert (said["ImageId"], said["BlockDeviceMappings"]) == ("ami-0", DISKS)
    code, done = parbake(capsys, "rollback", *QUICK)
    assert (code, done["changed"]) == (0, False)
    assert not goes_out_again(tmp_path, FIRST, DATA)


def test_a_node_group_that_fails(fleets: Fleets, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    node_group("CUSTOM")
    project(tmp_path, [NODES], FIRST)
    fleets.fails = "Reached max retries while trying to evict pods from nodes"
    code, error = parbake(capsys, "rollout", FIRST.key, *QUICK)
    assert code == 1
    assert "PodEvictionFailure: Reached max retries" in error["message"]
    code, _ = parbake(capsys, "rollout", FIRST.key, *QUICK)
    assert (code, fleets.versions) == (0, {"nodes": "2"})


def test_a_node_group_whose_images_eks_chooses(
    fleets: Fleets, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = node_group("AL2023_x86_64_STANDARD", image="")
    project(tmp_path, [NODES], FIRST, DATA)
    code, error = parbake(capsys, "rollout", FIRST.key)
    assert (code, len(versions(made))) == (1, 1)
    assert "EKS chooses the images" in error["message"]
    assert parbake(capsys, "rollout", DATA.key, *QUICK)[0] == 0, "a volume it takes"
    assert fleets.versions == {"nodes": "2"}


def node_group(kind: str, image: str = "ami-0") -> str:
    made = template(image)
    eks = raw("eks")
    role = "arn:aws:iam::123456789012:role/nodes"
    subnets = [each["SubnetId"] for each in raw("ec2").describe_subnets()["Subnets"]][:2]
    eks.create_cluster(name="prod", roleArn=role, resourcesVpcConfig={"subnetIds": subnets})
    eks.create_nodegroup(
        clusterName="prod",
        nodegroupName="nodes",
        nodeRole=role,
        subnets=subnets,
        amiType=kind,
        launchTemplate={"id": made, "version": "1"},
        scalingConfig={"minSize": 2, "maxSize": 2, "desiredSize": 2},
    )
    return made


def test_a_parameter_and_its_history(fleets: Fleets, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    del fleets
    ssm = raw("ssm")
    project(tmp_path, [PARAMETER], FIRST, SECOND)
    code, error = parbake(capsys, "rollback")
    assert (code, error["error"]) == (2, "InputError")
    assert parbake(capsys, "rollout", FIRST.key, *QUICK)[0] == 0
    made = ssm.get_parameter(Name="/nodes/gpu")["Parameter"]
    assert (made["Value"], made["DataType"]) == ("ami-1", "aws:ec2:image")
    assert parbake(capsys, "rollback")[0] == 2, "it never had another value"
    assert parbake(capsys, "rollout", SECOND.key, *QUICK)[0] == 0
    report = parbake(capsys, "status")[1][0]
    assert (report["holds"]["artefacts"], report["previous"]["artefacts"]) == ([SECOND.artefact], [FIRST.artefact])
    code, done = parbake(capsys, "rollback", *QUICK)
    assert (code, done["changed"]) == (0, True)
    code, done = parbake(capsys, "rollback", *QUICK)
    assert (code, done["changed"]) == (0, False), "it has gone back already"
    assert [goes_out_again(tmp_path, each) for each in (FIRST, SECOND)] == [True, False]
    values = [each["Value"] for each in ssm.get_parameter_history(Name="/nodes/gpu")["Parameters"]]
    assert values == ["ami-1", "ami-2", "ami-1"]
    assert parbake(capsys, "rollout", SECOND.key, *QUICK)[0] == 0
    third = machine_image("third", "ami-3", region=REGION)
    project(tmp_path, [PARAMETER], FIRST, SECOND, third)
    assert parbake(capsys, "rollout", third.key, "--superseding", "ami-2", *QUICK)[0] == 0
    report = parbake(capsys, "status")[1][0]
    assert (report["holds"]["artefacts"], report["previous"]["images"]) == ([third.artefact], ["ami-1"])
    assert parbake(capsys, "rollback", *QUICK)[0] == 0
    assert ssm.get_parameter(Name="/nodes/gpu")["Parameter"]["Value"] == "ami-1", "what was superseded is no way back"


def test_targets_that_are_not_there(fleets: Fleets, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    del fleets
    group()
    project(tmp_path, [{"asg": {"group": "wrokers"}}, NODES], FIRST)
    code, error = parbake(capsys, "rollout", FIRST.key, "--to", "asg")
    assert (code, error["hint"]) == (2, "there are: workers")
    code, error = parbake(capsys, "rollout", FIRST.key, "--to", "nodegroup")
    assert (code, error["hint"]) == (2, "there are the clusters: none")


def test_what_a_new_version_says() -> None:
    offer = Offer(artefacts=("a",), keys=("k",), architectures=("amd64",), images=("ami-1",), image_size=30 * GIB)
    data = {"ImageId": "ami-0", "BlockDeviceMappings": DISKS, "InstanceType": "x"}
    grown = [{"DeviceName": "/dev/xvda", "Ebs": {"VolumeSize": 30, "VolumeType": "gp3"}}]
    assert new_data(data, offer, device="/dev/xvdb") == {"ImageId": "ami-1", "BlockDeviceMappings": grown}
    assert new_data({**data, "ImageId": "ami-1", "BlockDeviceMappings": grown}, offer, device="/dev/xvdb") == {}
    assert new_data({"ImageId": "ami-0"}, offer, device="/dev/xvdb") == {"ImageId": "ami-1"}
    kept = [{"DeviceName": "/dev/sdf", "Ebs": {"SnapshotId": "snap-0", "VolumeSize": 5}}]
    said = new_data({"ImageId": "ami-0", "BlockDeviceMappings": kept}, offer, device="/dev/xvdb")
    assert said["BlockDeviceMappings"] == kept, "a snapshot that is not given again is lost"

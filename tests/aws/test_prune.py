"""Retention in EC2: what is used in each of the ways stays, the rest goes in two steps."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from parbake import records
from parbake.aws import clients
from parbake.aws.tags import as_dict
from parbake.bakefile import load
from parbake.iam import pruning, rollouts
from parbake.retention.stock import RETIRED
from tests.aws.conftest import REGION
from tests.aws.fleets import Fleets
from tests.aws.raw import raw
from tests.aws.shelves import Shelves
from tests.aws.test_rollouts import group, node_group, template
from tests.support.clusters import kitchen, machine_image, parbake

pytestmark = pytest.mark.usefixtures("aws_mock")
OURS = [{"Key": "parbake:managed", "Value": "artefact"}]
FIRST = machine_image("first", "ami-1", region=REGION)


@pytest.fixture
def shelves(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Shelves]:
    """What moto lacks, in every client that parbake makes; and the policies must cover each call that a test makes."""
    shelves, fleets = Shelves(), Fleets()
    called: set[str] = set()

    def note(model: Any, **_: Any) -> None:
        called.add(f"{model.service_model.service_name}:{model.name}")

    make = clients._make

    def made(service: str, region: str, *more: Any) -> Any:
        client = make(service, region, *more)
        client.meta.events.register_first("before-call", note)
        shelves.attach(client, service, region)
        fleets.attach(client, "auto-scaling" if service == "autoscaling" else service)
        return client

    monkeypatch.setattr(clients, "_make", made)
    monkeypatch.chdir(tmp_path)
    kitchen(tmp_path, [], FIRST)
    yield shelves
    bakefile = load(tmp_path / "parbake.yaml")
    both = [*pruning.statements(bakefile), *rollouts.statements(bakefile)]
    assert called <= {action for statement in both for action in statement["Action"]}


def image(name: str, *, ours: bool = True) -> str:
    """Make an image with a snapshot."""
    ec2 = raw("ec2")
    instance = ec2.run_instances(
        ImageId="ami-12c6146b",  # one that moto knows
        MinCount=1,
        MaxCount=1,
    )["Instances"][0]["InstanceId"]
    made = str(ec2.create_image(InstanceId=instance, Name=f"{name}-0123456789ab")["ImageId"])
    ec2.terminate_instances(InstanceIds=[instance])
    if ours:
        ec2.create_tags(Resources=[made, snapshot_of(made)], Tags=OURS)
    return made


def snapshot_of(ami: str) -> str:
    found = raw("ec2").describe_images(ImageIds=[ami])["Images"][0]
    return str(found["BlockDeviceMappings"][0]["Ebs"]["SnapshotId"])


def there() -> tuple[set[str], set[str]]:
    """Return the images and snapshots of parbake that there are."""
    ec2 = raw("ec2")
    filters = [{"Name": "tag-key", "Values": ["parbake:managed"]}]
    images = ec2.describe_images(Owners=["self"], Filters=filters)["Images"]
    snapshots = ec2.describe_snapshots(OwnerIds=["self"], Filters=filters)["Snapshots"]
    return {each["ImageId"] for each in images}, {each["SnapshotId"] for each in snapshots}


def age(ami: str, days: float) -> None:
    """Let an image have been retired some days ago."""
    when = (datetime.now(UTC) - timedelta(days=days)).strftime("%Y-%m-%dT%H:%M:%SZ")
    tags = [{"Key": RETIRED, "Value": when}]
    raw("ec2").create_tags(Resources=[ami, snapshot_of(ami)], Tags=tags)


def by_instance(ami: str) -> None:
    raw("ec2").run_instances(ImageId=ami, MinCount=1, MaxCount=1)


def by_template(ami: str) -> None:
    template(ami)


def by_latest(ami: str) -> None:
    made = template("ami-0")
    raw("ec2").create_launch_template_version(LaunchTemplateId=made, LaunchTemplateData={"ImageId": ami})


def _version_between(made: str, ami: str) -> None:
    """Let the second of three versions name the image: neither default nor latest."""
    ec2 = raw("ec2")
    for each in (ami, "ami-0"):
        ec2.create_launch_template_version(LaunchTemplateId=made, LaunchTemplateData={"ImageId": each})


def by_group(ami: str) -> None:
    made = group()
    _version_between(made, ami)
    specification = {"LaunchTemplateId": made, "Version": "2"}
    raw("autoscaling").update_auto_scaling_group(AutoScalingGroupName="workers", LaunchTemplate=specification)


def by_way_back_of_a_group(ami: str) -> None:
    made = group()
    _version_between(made, ami)
    tag = {"ResourceId": "workers", "ResourceType": "auto-scaling-group", "PropagateAtLaunch": False}
    tag |= {"Key": "parbake:previous", "Value": f"{made}:2"}
    raw("autoscaling").create_or_update_tags(Tags=[tag])


def by_launch_configuration(ami: str) -> None:
    raw("autoscaling").create_launch_configuration(LaunchConfigurationName="old", ImageId=ami, InstanceType="m5.large")


def by_node_group(ami: str) -> None:
    _version_between(node_group("CUSTOM"), ami)
    raw("eks").delete_nodegroup(clusterName="prod", nodegroupName="nodes")
    made = raw("ec2").describe_launch_templates()["LaunchTemplates"][0]["LaunchTemplateId"]
    subnets = [each["SubnetId"] for each in raw("ec2").describe_subnets()["Subnets"]][:2]
    raw("eks").create_nodegroup(
        clusterName="prod",
        nodegroupName="nodes",
        nodeRole="arn:aws:iam::123456789012:role/nodes",
        subnets=subnets,
        amiType="CUSTOM",
        launchTemplate={"id": made, "version": "2"},
    )


def by_parameter(ami: str) -> None:
    raw("ssm").put_parameter(Name="/any", Value=ami, Type="String", DataType="aws:ec2:image")


def by_way_back_of_a_parameter(ami: str) -> None:
    ssm = raw("ssm")
    for value in (ami, "ami-0"):
        ssm.put_parameter(Name="/nodes/gpu", Value=value, Type="String", Overwrite=True)
    kitchen(Path(), [{"ssm": "/nodes/gpu"}], FIRST)


def by_file(ami: str) -> None:
    document = {"kind": "EC2NodeClass", "metadata": {"name": "x"}, "spec": {"amiSelectorTerms": [{"id": ami}]}}
    Path("gpu.yaml").write_text(json.dumps(document))
    kitchen(Path(), [{"gitops": {"file": "gpu.yaml"}}], FIRST)


USERS = (
    by_instance, by_template, by_latest, by_group, by_way_back_of_a_group, by_launch_configuration, by_node_group,
    by_parameter, by_way_back_of_a_parameter, by_file,
)  # fmt: skip


@pytest.mark.parametrize("use", USERS, ids=lambda use: use.__name__)
def test_what_is_used_stays(shelves: Shelves, capsys: pytest.CaptureFixture[str], use: Callable[[str], None]) -> None:
    used, unused = image("a"), image("b")
    use(used)
    code, done = parbake(capsys, "prune", "--aws", "--keep", "0", "--grace", "0")
    actions = {each["id"]: each["action"] for each in done["aws"]["decisions"]}
    assert (code, actions) == (0, {used: "keep", unused: "remove"})
    assert there() == ({used}, {snapshot_of(used)})
    assert done["aws"]["freed"] > 0
    assert done["aws"]["saved_month"] > 0
    del shelves


def test_two_steps_and_a_way_back(shelves: Shelves, capsys: pytest.CaptureFixture[str]) -> None:
    ami = image("a")
    snapshot = snapshot_of(ami)
    shelves.fast[snapshot] = ["eu-west-1a", "eu-west-1b"]
    prune = ("prune", "--aws", "--keep", "0")
    assert parbake(capsys, *prune, "--dry-run")[1]["aws"]["decisions"][0]["action"] == "retire"
    assert shelves.deprecated == {}, "a dry run does nothing"
    parbake(capsys, *prune)
    assert (set(shelves.deprecated), there()) == ({ami}, ({ami}, {snapshot}))
    assert parbake(capsys, *prune)[1]["aws"]["decisions"][0]["action"] == "wait"
    by_parameter(ami)
    assert parbake(capsys, *prune)[1]["aws"]["decisions"][0]["action"] == "restore"
    tags = as_dict(raw("ec2").describe_images(ImageIds=[ami])["Images"][0])
    assert (shelves.deprecated, RETIRED in tags) == ({}, False)
    raw("ssm").delete_parameter(Name="/any")
    age(ami, 8)
    assert parbake(capsys, *prune)[1]["aws"]["decisions"][0]["action"] == "remove"
    assert (there(), shelves.fast) == ((set(), set()), {})
    assert parbake(capsys, *prune)[1]["aws"]["decisions"] == []


def test_what_a_killed_run_left_goes_with_the_next(shelves: Shelves, capsys: pytest.CaptureFixture[str]) -> None:
    ami = image("a")
    age(ami, 8)
    raw("ec2").deregister_image(ImageId=ami)
    assert there()[0] == set()
    code, done = parbake(capsys, "prune", "--aws", "--keep", "0")
    assert (code, done["aws"]["decisions"][0]["action"], there()) == (0, "remove", (set(), set()))
    del shelves


def test_what_is_not_ours_is_not_touched(shelves: Shelves, capsys: pytest.CaptureFixture[str]) -> None:
    theirs = image("theirs", ours=False)
    code, done = parbake(capsys, "prune", "--aws", "--keep", "0", "--grace", "0")
    assert (code, done["aws"]["decisions"]) == (0, [])
    assert raw("ec2").describe_images(ImageIds=[theirs])["Images"]
    del shelves


def test_a_place_that_cannot_be_read_ends_the_run(
    shelves: Shelves, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ami = image("a")
    make = clients._make

    def made(service: str, region: str, *more: Any) -> Any:
        client = make(service, region, *more)
        error = {"Error": {"Code": "AccessDeniedException", "Message": "not authorized"}}
        denied = SimpleNamespace(status_code=403)
        client.meta.events.register("before-call.eks.ListClusters", lambda **_: (denied, error))
        return client

    monkeypatch.setattr(clients, "_make", made)
    code, error = parbake(capsys, "prune", "--aws", "--keep", "0", "--grace", "0")
    assert (code, error["error"], there()[0]) == (1, "AwsNoAccess", {ami})
    assert "ListClusters" in error["message"]
    del shelves


def test_the_record_of_what_is_published_stays(
    shelves: Shelves, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    failed = machine_image("failed", "ami-2", passed=False, region=REGION)
    records.write(tmp_path / "artefacts", failed)
    decided = {each["artefact"]: each for each in parbake(capsys, "prune", "--keep", "0")[1]["decisions"]}
    assert decided[failed.artefact] == {"artefact": failed.artefact, "keep": True, "reason": f"published in {REGION}"}
    assert len(records.find(tmp_path / "artefacts")) == 2
    del shelves

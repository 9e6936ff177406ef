"""Retention in EC2: what is used in each of the ways stays, the rest goes in two steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from moto.moto_api._internal.models import moto_api_backend

from parbake import records
from parbake.aws import clients
from parbake.aws.tags import KEY, as_dict
from parbake.bakefile import load
from parbake.core.events import Events
from parbake.records.store import Lease, Need, note
from parbake.records.store.folder import FolderStore
from parbake.workflows import prune as retention
from parbake.workflows import watch
from parbake.workflows.prune.decide import RetentionRules
from parbake.workflows.prune.inventory import RETIRED
from standins.aws.autoscaling import Fleets
from standins.aws.boto_clients import raw
from standins.aws.iam_recorder import NOTED, attach, printed
from standins.aws.image_lifecycle import Shelves
from standins.aws.references import (
    KNOWN,
    USES,
    Use,
    World,
    by_history_of_a_parameter,
    by_target_parameter,
    snapshot_of,
)
from standins.clusters import NEEDS_KUBECTL, machine_image, parbake, project
from standins.kubernetes.server import serving
from standins.policies import refused
from standins.spot import serving_spot
from tests.aws.conftest import REGION
from tests.unit.rollouts.test_node_classes import NEW, OLD

pytestmark = pytest.mark.usefixtures("aws_mock", "made_up_records")
OURS = [{"Key": "parbake:managed", "Value": "artefact"}]
FIRST = machine_image("first", "ami-1", region=REGION)


@pytest.fixture
def shelves(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Shelves]:
    """What moto lacks, in every client that parbake makes; and the policies must cover each call that a test makes."""
    shelves, fleets = Shelves(), Fleets()
    before = len(NOTED)
    make = clients._make

    def made(service: str, region: str, *more: Any) -> Any:
        client = make(service, region, *more)
        attach(client, region)
        shelves.attach(client, service, region)
        fleets.attach(client, "auto-scaling" if service == "autoscaling" else service)
        return client

    monkeypatch.setattr(clients, "_make", made)
    monkeypatch.chdir(tmp_path)
    project(tmp_path, [], FIRST, builder="ebs")
    yield shelves
    assert refused([pruner(tmp_path / "parbake.yaml")], NOTED[before:]) == []


def pruner(file: Path) -> Mapping[str, Any]:
    """Return the policy of whoever prunes, who was told of the parameters that are no target's."""
    policy: Mapping[str, Any] = printed(load(file), parameters=("/any*", "/plain*", "/nodes*", "/moved/on"))["prune"]
    return policy


def image(name: str, *, ours: bool = True) -> str:
    """Make an image with a snapshot."""
    ec2 = raw("ec2")
    instance = ec2.run_instances(
        ImageId=KNOWN,
        MinCount=1,
        MaxCount=1,
    )["Instances"][0]["InstanceId"]
    made = str(ec2.create_image(InstanceId=instance, Name=f"{name}-0123456789ab")["ImageId"])
    ec2.terminate_instances(InstanceIds=[instance])
    if ours:
        ec2.create_tags(Resources=[made, snapshot_of(made)], Tags=OURS)
    return made


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


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A cluster with Karpenter's kinds, old and new, and Ocean, beside AWS."""
    with serving(tmp_path, NEW, OLD) as server, serving_spot(monkeypatch) as spot:
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig))
        world = World(server, spot)
        yield world
        project(tmp_path, [*world.cleared, *world.targets], FIRST)  # the policy must cover all of them, the last too


@NEEDS_KUBECTL
def test_what_is_used_in_each_way_stays(shelves: Shelves, world: World, capsys: pytest.CaptureFixture[str]) -> None:
    used = {use.__name__: image(use.__name__) for use in USES}
    for use in USES:
        use(world, used[use.__name__])
    unused = image("unused")
    project(Path(), world.targets, FIRST, builder="ebs")
    code, done = parbake(capsys, "prune", "--aws", "--keep", "0", "--grace", "0")
    assert code == 0
    actions = {each["id"]: each["action"] for each in done["aws"]["decisions"]}
    assert {name: actions[ami] for name, ami in used.items() if actions[ami] != "keep"} == {}
    assert actions[unused] == "remove"
    assert there() == (set(used.values()), {snapshot_of(ami) for ami in used.values()})
    assert done["aws"]["freed"] > 0
    assert done["aws"]["saved_month"] > 0
    del shelves


def pruned(capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, dict[str, Any]]:
    """Prune whatever is old; return the decisions by id."""
    code, done = parbake(capsys, "prune", "--aws", "--keep", "0", "--grace", "0", *more)
    assert code == 0
    return {each["id"]: each for each in done["aws"]["decisions"]}


def test_what_is_protected_waits_and_says_how_it_goes(shelves: Shelves, capsys: pytest.CaptureFixture[str]) -> None:
    guarded, free = image("guarded"), image("free")
    shelves.protected[guarded] = "enabled-with-cooldown"
    found = pruned(capsys)
    assert (found[guarded]["action"], found[free]["action"]) == ("wait", "remove")
    assert "protected from deregistration (enabled-with-cooldown)" in found[guarded]["reason"]
    assert f"--image-id {guarded}" in found[guarded]["reason"]
    assert there() == ({guarded}, {snapshot_of(guarded)})
    shelves.protected.clear()
    assert pruned(capsys)[guarded]["action"] == "remove"


def test_what_other_accounts_use_stays(shelves: Shelves, capsys: pytest.CaptureFixture[str]) -> None:
    """EC2 makes a report of that, which the next run reads."""
    used, unused, alone = image("used"), image("unused"), image("alone")
    for each in (used, unused):
        raw("ec2").modify_image_attribute(ImageId=each, LaunchPermission={"Add": [{"UserId": "210987654321"}]})
    shelves.elsewhere[used] = [("210987654321", "ec2:Instance", 3), ("210987654321", "ec2:LaunchTemplate", 0)]
    assert pruned(capsys, "--dry-run")[used]["reason"].startswith("shared with 210987654321: the next run asks EC2")
    assert shelves.reports == {}
    found = pruned(capsys)
    assert {each: found[each]["action"] for each in found} == {used: "wait", unused: "wait", alone: "remove"}
    assert pruned(capsys)[used]["action"] == "wait", "the report is pending"
    found = pruned(capsys)
    assert found[unused]["action"] == "remove"
    assert (found[used]["action"], found[used]["reason"]) == ("keep", "used by 3 ec2:Instance of account 210987654321")
    assert there() == ({used}, {snapshot_of(used)})
    shelves.reports[used][0] -= timedelta(days=2)
    assert pruned(capsys)[used]["action"] == "wait", "an old report says nothing of today"


def test_what_image_builder_starts_from_stays(shelves: Shelves, capsys: pytest.CaptureFixture[str]) -> None:
    used = image("used")
    arn = "arn:aws:imagebuilder:eu-west-1:123456789012:image-recipe/nodes/1.0.0"
    shelves.references[used] = [("imagebuilder:ImageRecipe", arn)]
    assert pruned(capsys)[used]["reason"] == f"used by imagebuilder:ImageRecipe {arn}"


@pytest.mark.parametrize("call", ["DescribeImageReferences", "DescribeImageUsageReports", "CreateImageUsageReport"])
def test_what_may_not_be_asked_keeps_the_image(shelves: Shelves, capsys: pytest.CaptureFixture[str], call: str) -> None:
    shared = image("shared")
    raw("ec2").modify_image_attribute(ImageId=shared, LaunchPermission={"Add": [{"UserId": "210987654321"}]})
    shelves.denied.add(call)
    found = pruned(capsys)[shared]
    assert (found["action"], call in found["reason"], "parbake iam" in found["reason"]) == ("keep", True, True)


@given(
    graph=st.lists(st.tuples(st.sampled_from(USES), st.integers(0, 3)), max_size=6, unique_by=lambda each: each[0]),
    retired=st.sets(st.integers(0, 3)),
    rules=st.builds(RetentionRules, st.integers(0, 1), grace=st.sampled_from([timedelta(), timedelta(days=7)])),
)
@example(graph=[(by_target_parameter, 0)], retired=set(), rules=RetentionRules(1))  # reads the history of a parameter
@example(graph=[(by_history_of_a_parameter, 1), (by_target_parameter, 0)], retired={0}, rules=RetentionRules(0))
@settings(
    max_examples=8,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@NEEDS_KUBECTL
def test_for_any_graph_of_references_nothing_that_is_used_goes(
    shelves: Shelves, world: World, graph: list[tuple[Use, int]], retired: set[int], rules: RetentionRules
) -> None:
    moto_api_backend.reset()  # a world of its own for each graph
    shelves.deprecated.clear()
    world.clear()
    amis = [image(f"node{number}") for number in range(4)]
    for use, number in graph:
        use(world, amis[number])
    for number in retired:
        age(amis[number], 8)
    file, before = project(Path(), world.targets, FIRST, builder="ebs"), len(NOTED)
    for _ in range(2):
        retention.prune_published(file, rules, Events(), dry_run=False)
    assert refused([pruner(file)], NOTED[before:]) == [], "the policy of this Bakefile covers each call"
    used = {amis[number] for _, number in graph}
    images, snapshots = there()
    assert used <= images
    assert {snapshot_of(ami) for ami in used} <= snapshots
    assert not used & set(shelves.deprecated)
    if not rules.keep and not rules.grace:
        assert images == used, "and nothing else stays"


def test_an_image_of_somebody_else_uses_its_snapshot(shelves: Shelves, capsys: pytest.CaptureFixture[str]) -> None:
    """They registered one with a volume's snapshot: EC2 would refuse to delete it, at every run."""
    theirs = image("theirs", ours=False)
    raw("ec2").create_tags(Resources=[snapshot_of(theirs)], Tags=OURS)
    code, done = parbake(capsys, "prune", "--aws", "--keep", "0", "--grace", "0")
    assert (code, done["aws"]["decisions"][0]["reason"]) == (0, f"used by image {theirs}")
    del shelves


@pytest.mark.usefixtures("made_up_records", "shelves")
def test_a_target_that_is_not_made_yet_uses_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    project(Path(), [{"ssm": "/not/yet"}, {"file": "ami.json"}], FIRST)
    ami = image("a")
    code, done = parbake(capsys, "prune", "--aws", "--keep", "0", "--grace", "0")
    assert (code, [each["id"] for each in done["aws"]["decisions"]]) == (0, [ami])


def test_two_steps_and_a_way_back(shelves: Shelves, capsys: pytest.CaptureFixture[str]) -> None:
    ami = image("a")
    snapshot = snapshot_of(ami)
    shelves.fast.enable([snapshot], ["eu-west-1a", "eu-west-1b"])
    shelves.fast.look([snapshot])  # AWS optimises it by now
    prune = ("prune", "--aws", "--keep", "0")
    assert parbake(capsys, *prune, "--dry-run")[1]["aws"]["decisions"][0]["action"] == "retire"
    assert shelves.deprecated == {}, "a dry run does nothing"
    parbake(capsys, *prune)
    assert (set(shelves.deprecated), there()) == ({ami}, ({ami}, {snapshot}))
    assert parbake(capsys, *prune)[1]["aws"]["decisions"][0]["action"] == "wait"
    raw("ssm").put_parameter(Name="/any", Value=ami, Type="String", DataType="aws:ec2:image")
    assert parbake(capsys, *prune)[1]["aws"]["decisions"][0]["action"] == "restore"
    tags = as_dict(raw("ec2").describe_images(ImageIds=[ami])["Images"][0])
    assert (shelves.deprecated, RETIRED in tags) == ({}, False)
    raw("ssm").delete_parameter(Name="/any")
    age(ami, 8)
    assert parbake(capsys, *prune)[1]["aws"]["decisions"][0]["action"] == "remove"
    assert (there(), shelves.fast.on(snapshot)) == ((set(), set()), set())
    assert parbake(capsys, *prune)[1]["aws"]["decisions"] == []


def test_the_bakefile_says_what_is_kept(shelves: Shelves, capsys: pytest.CaptureFixture[str]) -> None:
    """And options override it; ``watch --prune`` goes by it alone."""
    ami = image("a")
    file = project(Path(), [], FIRST, builder="ebs", retention={"keep": 0, "grace": "2d"})
    age(ami, 1)
    prune = ("prune", "--aws")
    assert parbake(capsys, *prune, "--keep", "1", "--dry-run")[1]["aws"]["decisions"][0]["action"] == "restore"
    assert parbake(capsys, *prune, "--younger", "1", "--dry-run")[1]["aws"]["decisions"][0]["action"] == "restore"
    assert parbake(capsys, *prune, "--grace", "1", "--dry-run")[1]["aws"]["decisions"][0]["action"] == "remove"
    assert parbake(capsys, *prune, "--dry-run")[1]["aws"]["decisions"][0]["action"] == "wait"
    age(ami, 3)
    tidied = watch.tidy(file, Events())
    assert tidied.pruned
    assert [each.action for each in tidied.pruned.decisions] == ["remove"]
    assert there() == (set(), set())
    assert [each.action for each in tidied.decisions] == ["keep"]
    del shelves


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


def test_a_parameter_that_no_policy_names_is_told(
    shelves: Shelves, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may hold a secret, so that a policy names it only where somebody says so."""
    image("a")
    raw("ssm").put_parameter(Name="/any", Value="ami-0", Type="String", DataType="aws:ec2:image")
    make = clients._make

    def made(service: str, region: str, *more: Any) -> Any:
        client = make(service, region, *more)
        error = {"Error": {"Code": "AccessDeniedException", "Message": "not authorized"}}
        client.meta.events.register(
            "before-call.ssm.GetParameters", lambda **_: (SimpleNamespace(status_code=403), error)
        )
        return client

    monkeypatch.setattr(clients, "_make", made)
    code, said = parbake(capsys, "prune", "--aws")
    assert (code, said["error"]) == (1, "AwsNoAccess")
    assert "parbake iam --parameter /any" in said["hint"]
    del shelves


def test_what_is_being_baked_or_rolled_out_stays(
    shelves: Shelves, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The store says so, by content key, by image or by snapshot; no engine is asked."""
    baked, offered, before, disk, old = (image(name) for name in ("baked", "offered", "before", "disk", "old"))
    for ami, letter in ((baked, "b"), (offered, "c"), (old, "d")):
        raw("ec2").create_tags(Resources=[ami], Tags=[{"Key": KEY, "Value": letter * 64}])
    store = FolderStore(tmp_path / "store")
    lease = Lease(holder="m1", host="baker-7", what="node-b", run="r", began="2026-11-24T00:00:00Z")
    store.add(f"leases/{'b' * 64}", lease.text())
    note(store, Need(fleet="shop", keys=("c" * 32,)))
    note(store, Need(fleet="shop", target="canary of node", held=(before, snapshot_of(disk))))
    note(store, Need(fleet="shop", target="gone of node", held=(old,)))
    note(store, Need(fleet="shop", target="gone of node"))  # a later rollout, which writes nothing there
    project(tmp_path, [], FIRST, builder="ebs", store=str(tmp_path / "store"))
    found = pruned(capsys)
    way_back = "canary of node in the fleet shop would go back to it"
    assert {name: found[name]["reason"] for name in (baked, offered, before, disk)} == {
        baked: "baker-7 is baking it",
        offered: "the last rollout of the fleet shop hands it out",
        before: way_back,
        disk: way_back,
    }
    assert found[old]["action"] == "remove"
    assert there()[0] == {baked, offered, before, disk}
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

"""Node classes that choose their image by a tag or a parameter: kubectl, the API server, Karpenter's double, moto."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from parbake.aws import clients
from parbake.bakefile import load
from parbake.core.errors import InputError, TargetMoved
from parbake.rollouts.karpenter import Karpenter as Target
from parbake.rollouts.pointers import ParameterPointer, TagPointer
from standins.aws.boto_clients import raw
from standins.aws.iam_recorder import NOTED, attach, printed
from standins.clusters import NEEDS_KUBECTL, machine_image, parbake, project, volume
from standins.kubernetes.karpenter import Ami, Karpenter
from standins.kubernetes.server import Server, serving
from standins.policies import Check, refused
from tests.aws.conftest import REGION, aws_mock, environment
from tests.unit.rollouts.test_karpenter import QUICK, images, pool, terms, use, without_kubectl
from tests.unit.rollouts.test_node_classes import ALIAS, BOTH, COMMON, NEW, OLD

__all__ = ["aws_mock", "environment", "without_kubectl"]
pytestmark = [NEEDS_KUBECTL, pytest.mark.usefixtures("aws_mock", "made_up_records")]
BY_TAG = {"name": "gpu", "karpenter": {"nodeclass": "gpu", "tag": "image=gpu"}}
BY_PARAMETER = {"name": "gpu", "karpenter": {"nodeclass": "gpu", "parameter": "/nodes/gpu"}}
TERM = {"tags": {"image": "gpu"}, "owner": "self"}
DATA = volume("data", "snap-9", region=REGION)


class InTheCloud(Karpenter):
    """Karpenter's double, with the images and parameters that moto has."""

    def step(self) -> None:
        self.look()
        super().step()

    def look(self) -> None:
        found = raw("ec2").describe_images(Owners=["self"])["Images"]
        ours = [Ami(i["ImageId"], i["Name"], i["CreationDate"], tags=tags_of(i)) for i in found]
        self.amis = [Ami("ami-0", "al2023-node"), *ours]
        ssm = raw("ssm")
        names = [each["Name"] for each in ssm.describe_parameters()["Parameters"]]
        self.parameters = {name: ssm.get_parameter(Name=name)["Parameter"]["Value"] for name in names}


def tags_of(resource: dict[str, Any]) -> dict[str, str]:
    return {each["Key"]: each["Value"] for each in resource.get("Tags", [])}


def register(name: str) -> str:
    made = str(raw("ec2").register_image(Name=name, RootDeviceName="/dev/xvda")["ImageId"])
    raw("ec2").create_tags(Resources=[made], Tags=[{"Key": "parbake:managed", "Value": "artefact"}])
    return made


def tagged() -> list[str]:
    found = raw("ec2").describe_images(Owners=["self"], Filters=[{"Name": "tag:image", "Values": ["gpu"]}])
    return [str(each["ImageId"]) for each in found["Images"]]


def value() -> str:
    return str(raw("ssm").get_parameter(Name="/nodes/gpu")["Parameter"]["Value"])


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> list[Check]:
    """Return what the calls need that parbake makes from now on."""
    make, before = clients._make, len(NOTED)

    def made(service: str, region: str, *more: Any) -> Any:
        client = make(service, region, *more)
        attach(client, region)
        return client

    monkeypatch.setattr(clients, "_make", made)
    del NOTED[:before]
    return NOTED


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with serving(tmp_path, NEW, "karpenter.sh_nodepools.v1", "karpenter.sh_nodeclaims.v1") as server:
        use(server, monkeypatch)
        yield server


@pytest.fixture
def cluster(server: Server) -> InTheCloud:
    server.create("ec2nodeclasses", "gpu", spec=ALIAS["spec"])
    server.create("nodepools", "gpu", spec=pool("gpu"))
    karpenter = InTheCloud(server, [])
    karpenter.look()
    karpenter.start_nodes("gpu", "gpu", 2)
    return karpenter


@pytest.mark.usefixtures("without_kubectl")
@pytest.mark.parametrize(
    ("target", "now", "term"),
    [(BY_TAG, lambda: tagged()[0], TERM), (BY_PARAMETER, value, {"ssmParameter": "/nodes/gpu"})],
    ids=["tag", "parameter"],
)
def test_promoted_and_back(
    cluster: InTheCloud,
    server: Server,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    target: dict[str, Any],
    now: Any,
    term: dict[str, Any],
    noted: list[Check],
) -> None:
    one, two = register("first"), register("second")
    first, second = machine_image("first", one, region=REGION), machine_image("second", two, region=REGION)
    project(tmp_path, [target], first, second)
    code, shown = parbake(capsys, "rollout", first.key, "--dry-run")
    assert (code, terms(server), tagged()) == (0, [{"alias": "al2023@latest"}], []), "a dry run writes nothing"
    assert one in shown["targets"][0]["diff"]
    with cluster:
        code, done = parbake(capsys, "rollout", first.key, *QUICK)
        assert (code, terms(server), now(), images(server)) == (0, [term], one, [one, one])
        assert "is replaced by the" in done["targets"][0]["cautions"][0]
        generation = server.get("ec2nodeclasses", "gpu")["metadata"]["generation"]
        assert parbake(capsys, "rollout", first.key, *QUICK)[1]["changed"] is False, "the same again is nothing"
        code, _ = parbake(capsys, "rollout", second.key, *QUICK)
        assert (code, now(), images(server)) == (0, two, [two, two])
        assert server.get("ec2nodeclasses", "gpu")["metadata"]["generation"] == generation, "the spec stays"
        report = parbake(capsys, "status")[1][0]
        assert (report["holds"]["artefacts"], report["previous"]["artefacts"]) == ([second.artefact], [first.artefact])
        assert parbake(capsys, "rollback", *QUICK)[0] == 0
        assert (now(), images(server)) == (one, [one, one])
        assert parbake(capsys, "rollback", *QUICK)[1]["changed"] is False, "going back twice is going back once"
    assert len(tagged()) <= 1, "a tag is on one image"
    assert {check.action for check in noted} >= {"ec2:CreateTags" if target is BY_TAG else "ssm:PutParameter"}
    assert refused([printed(load(tmp_path / "parbake.yaml"))["rollout"]], noted) == []


@pytest.mark.usefixtures("without_kubectl")
def test_the_first_rollout_goes_back_to_the_alias(
    cluster: InTheCloud, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project(tmp_path, [BY_TAG], first := machine_image("first", register("first"), region=REGION))
    with cluster:
        assert parbake(capsys, "rollout", first.key, *QUICK)[0] == 0
        assert parbake(capsys, "rollback", *QUICK)[0] == 0
    assert (terms(server), images(server)) == ([{"alias": "al2023@latest"}], ["ami-0", "ami-0"])


@pytest.mark.usefixtures("without_kubectl")
@pytest.mark.parametrize("broken", ["patch", "move"])
def test_a_run_that_ends_between_its_two_writes_is_finished(
    cluster: InTheCloud,
    server: Server,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    broken: str,
) -> None:
    one, two = register("first"), register("second")
    first, second = machine_image("first", one, region=REGION), machine_image("second", two, region=REGION)
    project(tmp_path, [BY_TAG], first, second)
    owner, name = (Target, "_patch") if broken == "patch" else (TagPointer, "move")

    def killed(command: str, *arguments: str) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, lambda *_: (_ for _ in ()).throw(TargetMoved("killed")))
            assert parbake(capsys, command, *arguments, *QUICK, "--no-follow")[0] == 1
        assert parbake(capsys, command, *arguments, *QUICK)[0] == 0

    with cluster:
        killed("rollout", first.key)
        assert (tagged(), images(server)) == ([one], [one, one])
        killed("rollout", second.key)
        assert (tagged(), images(server)) == ([two], [two, two])
        assert parbake(capsys, "status")[1][0]["previous"]["artefacts"] == [first.artefact]
        killed("rollback")
        assert (tagged(), images(server)) == ([one], [one, one])
        assert parbake(capsys, "status")[1][0]["holds"]["artefacts"] == [first.artefact]


@pytest.mark.usefixtures("without_kubectl")
def test_image_and_volume_are_two_writes_and_that_is_said(
    cluster: InTheCloud, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = machine_image("first", register("first"), region=REGION)
    project(tmp_path, [BY_TAG], first, DATA)
    with cluster:
        code, done = parbake(capsys, "rollout", first.key, DATA.key, *QUICK)
    assert (code, terms(server)) == (0, [TERM])
    assert any("nodes may be replaced twice" in each for each in done["targets"][0]["cautions"])
    assert server.get("ec2nodeclasses", "gpu")["spec"]["blockDeviceMappings"][-1]["ebs"]["snapshotID"] == "snap-9"


@pytest.mark.usefixtures("without_kubectl")
def test_somebody_else_promotes_meanwhile(
    cluster: InTheCloud,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one, two, third = register("first"), register("second"), register("third")
    first, second = machine_image("first", one, region=REGION), machine_image("second", two, region=REGION)
    project(tmp_path, [BY_TAG], first, second)
    with cluster:
        parbake(capsys, "rollout", first.key, *QUICK)
    decided = Target.plan

    def plan(self: Target, offer: Any) -> Any:
        change = decided(self, offer)
        TagPointer("image=gpu", REGION).move(one, third, "")
        return change

    monkeypatch.setattr(Target, "plan", plan)
    code, error = parbake(capsys, "rollout", second.key, *QUICK)
    assert (code, error["error"], tagged()) == (1, "TargetMoved", [third])
    assert f"it names {third} now, not {one}" in error["message"]


def test_what_cannot_be_pointed_to(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server.create("ec2nodeclasses", "gpu", spec=ALIAS["spec"])
    project(tmp_path, [BY_TAG], first := machine_image("first", "ami-00000000", region=REGION))
    code, error = parbake(capsys, "rollout", first.key, *QUICK)
    assert code in {1, 2}
    assert "ami-00000000" in error["message"]
    raw("ssm").put_parameter(Name="/x", Value="ami-1", Type="String")
    with pytest.raises(TargetMoved, match="it holds ami-1 now, not nothing"):
        ParameterPointer("/x", REGION).move("", "ami-2", "a")


def test_old_node_classes_take_ids_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = machine_image("first", register("first"), region=REGION)
    project(tmp_path, [BY_TAG], first)
    with serving(tmp_path, OLD) as server:
        use(server, monkeypatch)
        server.create("awsnodetemplates", "gpu", "v1alpha1", spec={"amiSelector": {"aws-ids": "ami-0"}})
        code, error = parbake(capsys, "rollout", first.key)
    assert code == 2
    assert "cannot choose by the tag image=gpu" in error["message"]


def test_a_field_that_the_cluster_does_not_know_is_said_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = machine_image("first", register("first"), region=REGION)
    rate = {"name": "gpu", "karpenter": {"nodeclass": "gpu", "remedy": "rate"}}
    with serving(tmp_path, BOTH) as server:
        use(server, monkeypatch)
        for key in [each for each in server.store.kinds if each[1] == "v1" and each[0]]:
            del server.store.kinds[key]
        server.create("ec2nodeclasses", "gpu", "v1beta1", spec={**COMMON, "amiFamily": "AL2023"})
        project(tmp_path, [BY_PARAMETER], first, DATA)
        code, error = parbake(capsys, "rollout", first.key)
        assert code == 2
        assert "does not know ssmParameter" in error["message"]
        assert "v1.4" in error["hint"]
        project(tmp_path, [rate], DATA)
        code, error = parbake(capsys, "rollout", DATA.key)
        assert code == 2
        assert "does not know volumeInitializationRate" in error["message"]
        assert "v1.5" in error["hint"]
        found = server.get("ec2nodeclasses", "gpu", "v1beta1")
        assert json.dumps(found).count("parbake") == 0


def test_both_ways_at_once(tmp_path: Path) -> None:
    project(tmp_path, [{"karpenter": {"nodeclass": "gpu", "tag": "a=b", "parameter": "/x"}}])
    with pytest.raises(InputError, match="not by both"):
        load(tmp_path / "parbake.yaml")
    project(tmp_path, [{"karpenter": {"nodeclass": "gpu", "tag": "parbake:managed=x"}}])
    with pytest.raises(InputError, match="are reserved"):
        load(tmp_path / "parbake.yaml")

"""Rollouts to Karpenter that stand still or may not go on: each says who or what holds them."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from parbake.bakefile.targets import KarpenterTarget
from parbake.rollouts import karpenter as rollouts
from parbake.rollouts.karpenter import judge
from parbake.rollouts.protocol import TargetState
from standins.clusters import NEEDS_KUBECTL, machine_image, parbake, project
from standins.kubernetes.karpenter import Karpenter
from standins.kubernetes.server import Server, serving
from standins.kubernetes.store import Kind
from tests.unit.rollouts.test_karpenter import (
    AMIS,
    FIRST,
    GPU,
    QUICK,
    cluster,
    images,
    in_turns,
    pool,
    server,
    terms,
    use,
    without_kubectl,
)
from tests.unit.rollouts.test_node_classes import ALIAS

__all__ = ["cluster", "in_turns", "server", "without_kubectl"]

pytestmark = [NEEDS_KUBECTL, pytest.mark.usefixtures("made_up_records")]


@pytest.mark.usefixtures("in_turns")
def test_what_holds_nodes_back_is_named(
    cluster: Karpenter, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project(tmp_path, [GPU], FIRST)
    held = server.list("nodeclaims")[0]["metadata"]["name"]
    cluster.blocked[held] = "default/web"
    code, error = parbake(capsys, "rollout", FIRST.key, "--deadline", "2")
    assert (code, error["error"]) == (1, "Stalled")
    assert "1 of 2 nodes" in error["message"]
    assert 'pdb "default/web" prevents pod evictions' in error["message"]
    cluster.blocked.clear()
    code, done = parbake(capsys, "rollout", FIRST.key)
    assert (code, done["changed"], images(server)) == (0, False, ["ami-1", "ami-1"]), "it goes on following"


@pytest.mark.usefixtures("in_turns")
def test_a_budget_is_named(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One of the users' own, and not that of ``parbake freeze``."""
    project(tmp_path, [GPU], FIRST)
    server.change("nodepools", "gpu", {"spec": {"disruption": {"budgets": [{"nodes": "0"}]}}})
    code, error = parbake(capsys, "rollout", FIRST.key, "--deadline", "1.5")
    node = server.list("nodeclaims")[0]["status"]["nodeName"]
    assert (code, error["error"]) == (1, "Stalled")
    blocked = "No allowed disruptions for disruption reason Drifted due to blocking budget"
    assert f"{node}: runs ami-0; NodePool gpu: {blocked}" in error["message"]


@pytest.mark.usefixtures("in_turns")
def test_no_capacity_is_named(cluster: Karpenter, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    project(tmp_path, [GPU], FIRST)
    cluster.unlaunchable = "no g5.xlarge in eu-central-1a"
    code, error = parbake(capsys, "rollout", FIRST.key, "--deadline", "2")
    assert code == 1
    assert re.search(r"NodeClaim gpu-\d+: no g5.xlarge in eu-central-1a", error["message"])


@pytest.mark.usefixtures("in_turns")
def test_no_capacity_is_named_while_there_is_no_node(
    cluster: Karpenter, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Karpenter deletes a claim for which it finds no instance: only an event tells of it."""
    project(tmp_path, [GPU], FIRST)
    for claim in server.list("nodeclaims"):
        server.delete("nodeclaims", claim["metadata"]["name"])
    cluster.pending, cluster.unlaunchable = {"gpu"}, "no g5.xlarge in eu-central-1a"
    cluster.step()
    code, error = parbake(capsys, "rollout", FIRST.key, "--deadline", "1")
    assert (code, error["error"]) == (1, "Stalled"), error
    assert re.search(r"NodeClaim gpu-\d+: no g5.xlarge in eu-central-1a", error["message"])
    cluster.unlaunchable = ""
    assert parbake(capsys, "rollout", FIRST.key)[0] == 0
    assert images(server) == ["ami-1"]


def test_what_karpenter_says_of_other_classes_or_said_long_ago_holds_nothing_back(server: Server) -> None:
    """Neither of a pool whose name begins alike, nor once a node has started; and what is normal is none."""
    server.create("ec2nodeclasses", "gpu", spec=ALIAS["spec"])
    server.create("nodepools", "gpu", spec=pool("gpu"))
    karpenter = Karpenter(server, AMIS)
    karpenter.step()
    target = rollouts.Karpenter(KarpenterTarget(nodeclass="gpu"), "")
    wanted, now = TargetState(images=("ami-0",)), datetime.now(UTC)

    def told(name: str, kind: str = "NodeClaim", minutes: float = 0, **how: str) -> None:
        said: dict[str, Any] = {"type": "Warning", "message": f"no {name}", "source": {"component": "karpenter"}, **how}
        server.create("events", f"{kind.lower()}.{name}", metadata={"namespace": "default"},
            involvedObject={"kind": kind, "name": name}, reason="InsufficientCapacityError",
            lastTimestamp=f"{now - timedelta(minutes=minutes):%Y-%m-%dT%H:%M:%SZ}", **said)  # fmt: skip

    told("gpu-aaaaa", minutes=5)
    told("gpu-large-aaaaa")
    told("cpu", "NodePool")
    told("gpu", "NodePool", type="Normal")
    told("web", "Pod")
    assert target.follow(wanted).done
    told("gpu-bbbbb")
    assert target.follow(wanted).waiting == ("NodeClaim gpu-bbbbb: no gpu-bbbbb",)
    assert not target.follow(wanted).done
    karpenter.start_nodes("gpu", "gpu", 1)
    assert target.follow(wanted).done


@pytest.mark.usefixtures("in_turns")
def test_an_image_that_karpenter_does_not_find(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    project(tmp_path, [GPU], lost := machine_image("lost", "ami-404"))
    code, error = parbake(capsys, "rollout", lost.key, "--deadline", "1.5")
    assert code == 1
    assert "Karpenter has not resolved ami-404 yet" in error["message"]
    assert "AMISelector did not match any AMIs" in error["message"]


@pytest.mark.usefixtures("in_turns")
@pytest.mark.parametrize("nodes", [0, 2])
def test_a_class_that_cannot_be_validated_is_no_success(
    cluster: Karpenter, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], nodes: int
) -> None:
    """Ready is Unknown then, of the new generation, and not False: as Karpenter 1.13 said of user data with CRLF."""
    project(tmp_path, [GPU], FIRST)
    for claim in server.list("nodeclaims")[nodes:]:
        server.delete("nodeclaims", claim["metadata"]["name"])
    cluster.step()
    cluster.invalid = True
    code, error = parbake(capsys, "rollout", FIRST.key, "--deadline", "2")
    assert (code, error["error"]) == (1, "Stalled"), error
    for said in (
        "0 of 2 nodes run it" if nodes else "no node runs it yet",
        "the node class is not Ready: ReconcilingDependents: ValidationSucceeded=True",
        "Karpenter has not come to ValidationSucceeded since the change",
        "NodePool gpu is not Ready: NodeClassReady: NodeClass not ready",
    ):
        assert said in error["message"]
    assert "`parbake rollback`" in error["hint"]
    cluster.invalid = False
    assert parbake(capsys, "rollback")[0] == 0
    assert images(server) == ["ami-0"] * nodes


@pytest.mark.parametrize(("version", "done"), [("v1", False), ("v1beta1", True)])
def test_a_class_of_which_karpenter_says_nothing_is_ready_only_before_v1(version: str, done: bool) -> None:
    found = {"apiVersion": f"karpenter.k8s.aws/{version}", "metadata": {"name": "gpu", "generation": 1}, "status": {}}
    assert judge(found, [], [], TargetState(snapshot="snap-1")).done is done


def test_bad_input_is_told(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    project(tmp_path, [GPU], FIRST)
    code, error = parbake(capsys, "rollout", FIRST.key)
    assert (code, error["hint"]) == (2, "there are: none")
    server.create("ec2nodeclasses", "cpu", spec=ALIAS["spec"])
    code, error = parbake(capsys, "rollout", FIRST.key)
    assert (code, error["hint"]) == (2, "there are: cpu")
    assert "there is no ec2nodeclasses 'gpu'" in error["message"]
    code, error = parbake(capsys, "rollout", FIRST.key, "--to", "nothing")
    assert (code, error["hint"]) == (2, "there are: gpu")
    project(tmp_path, [{"karpenter": {"nodeclass": "cpu", "context": "nowhere"}}])
    code, error = parbake(capsys, "rollout", FIRST.key)
    assert (code, error["message"]) == (2, 'context nowhere: context "nowhere" does not exist')
    assert error["hint"] == "`kubectl config get-contexts` lists the contexts"
    project(tmp_path, [{"karpenter": {"nodeclass": "cpu"}}])
    server.store.forbidden.add(("patch", "ec2nodeclasses"))
    code, error = parbake(capsys, "rollout", FIRST.key, "--no-follow")
    assert code == 1
    assert 'cannot patch resource "ec2nodeclasses"' in error["message"]
    server.store.unauthorized = True
    assert parbake(capsys, "rollout", FIRST.key)[0] == 1
    code, reports = parbake(capsys, "status")
    assert code == 1
    assert "does not know you" in reports[0]["error"]


@pytest.mark.usefixtures("cluster")
def test_nothing_to_go_back_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    project(tmp_path, [GPU])
    code, error = parbake(capsys, "rollback")
    assert code == 2
    assert "records no rollout" in error["message"]


def test_a_cluster_without_karpenter(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    project(tmp_path, [GPU], FIRST)
    with serving(tmp_path) as server:
        use(server, monkeypatch)
        code, error = parbake(capsys, "rollout", FIRST.key)
    assert code == 2
    assert "serves no API karpenter.k8s.aws" in error["message"]


def test_a_version_that_is_not_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    project(tmp_path, [GPU], FIRST)
    with serving(tmp_path) as server:
        use(server, monkeypatch)
        kind = Kind("karpenter.k8s.aws", "v2", "ec2nodeclasses", "EC2NodeClass")
        server.store.kinds[kind.group, kind.version, kind.plural] = kind
        code, error = parbake(capsys, "rollout", FIRST.key)
    assert code == 2
    assert "serves v2 of karpenter.k8s.aws" in error["message"]


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(
    ("verb", "plural"), [("get", "ec2nodeclasses"), ("list", "nodepools"), ("list", "nodeclaims"), ("list", "events")]
)
def test_who_may_not_is_told_what(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str, plural: str
) -> None:
    project(tmp_path, [GPU], FIRST)
    server.store.forbidden.add((verb, plural))
    code, error = parbake(capsys, "rollout", FIRST.key, *QUICK, "--deadline", "1")
    assert code == 1
    if plural == "events":  # without them it is only not known why
        assert error["error"] == "Stalled"
        return
    assert f'cannot {verb} resource "{plural}" in API group' in error["message"]
    assert "ask the cluster's administrators" in error["hint"]
    assert terms(server) == [{"alias": "al2023@latest"}]

"""What `init --for eks` makes of the node classes and nodes of a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from parbake.bakefile import load
from parbake.core.errors import InputError, RolloutError
from parbake.core.events import Events
from parbake.rollouts.cluster import Cluster
from parbake.workflows import init

AL2023, BOTTLEROCKET = {"amiSelectorTerms": [{"alias": "al2023@latest"}]}, {"amiFamily": "Bottlerocket"}


def node(region: str, architecture: str) -> dict[str, Any]:
    labels = {"topology.kubernetes.io/region": region, "kubernetes.io/arch": architecture}
    return {"metadata": {"name": f"{region}-{architecture}", "labels": labels}}


def written(
    folder: Path, monkeypatch: pytest.MonkeyPatch, classes: dict[str, Any], *nodes: dict[str, Any], context: str = ""
) -> str:
    """Return the Bakefile that is written for a cluster with these node classes; without nodes none may be listed."""

    def items(_: Cluster, resource: str) -> list[dict[str, Any]]:
        if resource == "nodes" and not nodes:
            raise RolloutError("nodes: forbidden")
        listed = [{"metadata": {"name": name}, "spec": spec} for name, spec in classes.items()]
        return list(nodes) if resource == "nodes" else listed

    monkeypatch.setattr(Cluster, "served", lambda *_: ("v1",) if classes else ())
    monkeypatch.setattr(Cluster, "items", items)
    init.begin(folder, Events(), init.InitOptions(images=("registry.example/app:1",), context=context, eks=True))
    return (folder / "parbake.yaml").read_text()


def test_the_first_node_class_is_the_target_and_the_others_are_comments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classes = {"web": AL2023, "gpu": AL2023, "small": BOTTLEROCKET, "own": {"amiFamily": "Custom"}}
    nodes = node("eu-west-1", "arm64"), node("eu-west-1", "arm64")
    text = written(tmp_path, monkeypatch, classes, *nodes, context="prod: 1")
    shown = "rollout:\n  - {name: gpu, karpenter: {nodeclass: gpu, context: 'prod: 1'}}\n#  - {name: own, karpenter: "
    assert shown in text
    assert "#  - {name: web, karpenter: {nodeclass: web" in text
    assert "small" not in text.partition("\nrollout:")[2], "Bottlerocket's nodes do not take this volume"
    bakefile = load(tmp_path / "parbake.yaml")
    assert (bakefile.builder, bakefile.artefact.kind, bakefile.aws.region) == ("ebs", "volume", "eu-west-1")
    assert str(bakefile.platform) == "linux/arm64"
    [target] = bakefile.rollout
    assert target.name == "gpu"


def test_a_comment_switched_on_is_a_second_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = written(tmp_path, monkeypatch, {"a": AL2023, "b": AL2023}, node("eu-west-1", "amd64"))
    (tmp_path / "parbake.yaml").write_text(text.replace("\n#  - {name", "\n  - {name"))
    assert [target.name for target in load(tmp_path / "parbake.yaml").rollout] == ["a", "b"]


def test_nodes_of_two_architectures_leave_the_platform_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = node("eu-west-1", "amd64"), node("eu-west-1", "arm64")
    assert "\nplatform:" not in written(tmp_path, monkeypatch, {"a": AL2023}, *nodes)


def test_who_may_list_no_nodes_gets_the_region_of_aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "ap-south-1")
    written(tmp_path, monkeypatch, {"a": AL2023})
    assert load(tmp_path / "parbake.yaml").aws.region == "ap-south-1"


@pytest.mark.parametrize(
    ("classes", "says"),
    [
        ({"b": BOTTLEROCKET, "a": BOTTLEROCKET}, "(not a, b)"),
        ({"b": {"amiSelectorTerms": [{"alias": "bottlerocket@latest"}]}}, "(not b)"),
        ({"w": {"amiFamily": "Windows2022"}}, "(not w)"),
        ({}, "the cluster has no EC2NodeClass of Karpenter"),
    ],
)
def test_a_cluster_without_a_class_that_takes_the_volume_is_told(
    classes: dict[str, Any], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError) as caught:
        written(tmp_path / "new", monkeypatch, classes, node("eu-west-1", "amd64"))
    assert says in caught.value.message
    assert "`builder: ec2`" in caught.value.hint
    assert not (tmp_path / "new").exists()

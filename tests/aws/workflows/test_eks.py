"""The pages on Karpenter by copy: from a cluster's pods to its nodes and back, on stand-ins of EBS and Karpenter."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from parbake.aws import clients
from parbake.core import run
from parbake.core.errors import CommandFailed
from parbake.core.model import Verdict
from parbake.images import workloads
from parbake.rollouts.cluster import Cluster
from parbake.workflows import verify
from parbake.workflows.bake import clouds
from standins import documents
from standins.aws import lean
from standins.aws.account import Account
from standins.aws.ebs_direct_in_process import Direct
from standins.documents import ROOT, shapes
from standins.here import follow, parbake
from standins.images import image, layer, push
from standins.kubernetes.karpenter import Ami, Karpenter
from standins.kubernetes.kubectl_in_process import kubectl
from standins.kubernetes.server import Server, serving
from standins.registry import DockerRegistry
from standins.runs import private_places
from tests.unit.rollouts.test_karpenter import pool
from tests.unit.rollouts.test_node_classes import NEW, node_class

__all__ = ["private_places"]
HOST = "registry.example.com"


@pytest.fixture
def server(private_places: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with serving(private_places, NEW, "karpenter.sh_nodepools.v1", "karpenter.sh_nodeclaims.v1") as server:
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig))
        yield server


@pytest.fixture
def karpenter(server: Server) -> Karpenter:
    return Karpenter(server, [Ami("ami-0", "al2023-node")])


@pytest.fixture
def host(private_places: Path, karpenter: Karpenter, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The registry's host: EBS and a registry are there, and at each question Karpenter does a round."""
    Direct().install(monkeypatch)
    clients.forget()

    def asks(cluster: Cluster, arguments: list[str]) -> run.Result:
        karpenter.step()
        try:
            return kubectl(karpenter.server, arguments)
        except CommandFailed as error:
            raise cluster._translated(arguments, error) from error

    monkeypatch.setattr(Cluster, "_run", asks)
    with DockerRegistry(private_places / "registry") as registry:
        push(registry.url, "team/app", image(layer({"app": b"#!/bin/sh\n"}), config={"Cmd": ["/app"]}), "1.4")
        yield registry.host


@pytest.fixture
def proven(monkeypatch: pytest.MonkeyPatch) -> None:
    """Proofs say yes, and boot nothing."""
    passed = Verdict(passed=True, accelerator="tcg", boot_seconds=1.0, verified_at="2026-01-01T00:00:00Z")
    monkeypatch.setattr(clouds, "boot", lambda *_: passed)
    monkeypatch.setattr(verify, "can_boot", lambda *_: True)
    monkeypatch.setattr(clouds, "need_rights", lambda *_: None)


def nodes_of(karpenter: Karpenter, name: str) -> None:
    """Make a node class, its NodePool, and two nodes."""
    spec = node_class(amiFamily="AL2023", amiSelectorTerms=[{"alias": "al2023@v20261120"}])["spec"]
    karpenter.server.create("ec2nodeclasses", name, spec=spec)
    karpenter.server.create("nodepools", name, spec=pool(name))
    karpenter.start_nodes(name, name, 2)


def snapshots(server: Server, name: str) -> list[str]:
    """Return the devices of a node class that hold a snapshot."""
    disks = server.get("ec2nodeclasses", name)["spec"].get("blockDeviceMappings", [])
    return [each["deviceName"] for each in disks if "snapshotID" in each["ebs"]]


def pods(host: str) -> str:
    container = {
        "name": "app",
        "image": f"{host}/team/app:1.4",
        "env": [{"name": "MODE", "value": "web"}],
        "securityContext": {"readOnlyRootFilesystem": True},
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }
    spec = {"containers": [container], "volumes": [{"name": "tmp", "emptyDir": {}}]}
    metadata = {"name": "app", "namespace": "shop"}
    app = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": {"template": {"spec": spec}}}
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": [app]})


def made_of(account: Account, make: Callable[..., Any]) -> Callable[..., Any]:
    """Return what makes clients that are answered for what moto lacks."""

    def made(service: str, region: str, *more: Any) -> Any:
        client = make(service, region, *more)
        account.attach(client, service)
        return client

    return made


def followed(page: Path, folder: Path, host: str) -> tuple[str, list[str]]:
    """Follow a page in a new folder; return what was said, and the commands of parbake that were run."""
    ran: list[str] = []

    def command(words: list[str]) -> int:
        waits = ["--interval", "0.1"]
        extra = {"rollout": waits, "rollback": waits, "bake": ["--no-rehearse"], "init": ["--no-sizes"]}
        ran.append(" ".join(words))
        with ExitStack() as stack:
            if words[0] == "doctor":  # which asks more of AWS than EBS's stand-in knows
                stack.enter_context(lean.mock_aws())
                patch = stack.enter_context(pytest.MonkeyPatch.context())
                patch.setattr(clients, "_make", made_of(Account(), clients._make))
                clients.forget()
                stack.callback(clients.forget)
            code = parbake([*words, *extra.get(words[0], [])])
        return code if words[0] != "doctor" else 0  # it says what this machine lacks

    folder.mkdir()
    return follow(page, folder, {"parbake": command}, change=lambda text: text.replace(HOST, host)), ran


@pytest.mark.usefixtures("proven")
def test_the_page_of_eks_leads_from_the_cluster_to_its_nodes(
    private_places: Path, karpenter: Karpenter, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes_of(karpenter, "gpu")
    listed = (("the cluster", pods(host)),)
    monkeypatch.setattr(workloads, "from_cluster", lambda *_: listed)
    monkeypatch.setattr("parbake.workflows.lint.from_cluster", lambda *_: listed)
    page = ROOT / "docs/how-to/eks.md"
    said, ran = followed(page, private_places / "page", host)
    shown = page.read_text().split("```text\n")[1].split("```")[0].replace(HOST, host)
    assert shapes(shown) <= shapes(said)
    assert [each.split()[0] for each in ran] == ["init", "doctor", "bake", "lint", "rollout", "rollout", "status"]
    assert snapshots(karpenter.server, "gpu") == ["/dev/xvdb"]
    assert "2 of 2 nodes run" in said
    first = next(block for block in documents.read(ROOT / "README.md") if block.language == "sh")
    commands = [line.partition("#")[0].split() for line in first.text.splitlines()]
    assert [" ".join(each) for each in commands] == [f"parbake {ran[number]}" for number in (0, 2, 4)]


@pytest.mark.usefixtures("proven")
def test_the_page_of_karpenter_rolls_out_what_its_first_bakefile_says(
    private_places: Path, karpenter: Karpenter, host: str
) -> None:
    for name in ("gpu", "gpu-canary"):
        nodes_of(karpenter, name)
    said, ran = followed(ROOT / "docs/how-to/karpenter.md", private_places / "page", host)
    assert [each.split()[0] for each in ran] == [
        "bake", "rollout", "rollout", "rollout", "status", "rollback", "freeze", "thaw",
    ]  # fmt: skip
    assert (snapshots(karpenter.server, "gpu-canary"), snapshots(karpenter.server, "gpu")) == (["/dev/xvdb"], [])
    assert said.count("2 of 2 nodes run") >= 2

"""docs/how-to/eks.md by copy: from a cluster's pods to its node class, on stand-ins of EBS and Karpenter."""

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
from parbake.workflows.bake import make
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
PAGE = ROOT / "docs/how-to/eks.md"


@pytest.fixture
def server(private_places: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with serving(private_places, NEW, "karpenter.sh_nodepools.v1", "karpenter.sh_nodeclaims.v1") as server:
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig))
        spec = node_class(amiFamily="AL2023", amiSelectorTerms=[{"alias": "al2023@v20261120"}])["spec"]
        server.create("ec2nodeclasses", "gpu", spec=spec)
        server.create("nodepools", "gpu", spec=pool("gpu"))
        yield server


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


def test_the_page_leads_from_the_cluster_to_its_nodes(
    private_places: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    Direct().install(monkeypatch)
    clients.forget()
    passed = Verdict(passed=True, accelerator="tcg", boot_seconds=1.0, verified_at="2026-01-01T00:00:00Z")
    monkeypatch.setattr(make, "boot", lambda *_: passed)
    monkeypatch.setattr(make, "can_boot", lambda *_: True)
    monkeypatch.setattr(make, "need_rights", lambda *_: None)
    karpenter = Karpenter(server, [Ami("ami-0", "al2023-node")])
    karpenter.start_nodes("gpu", "gpu", 2)
    ran: list[tuple[str, int]] = []

    def command(words: list[str]) -> int:
        extra = {"rollout": ["--interval", "0.1"], "bake": ["--no-rehearse"], "init": ["--no-sizes"]}
        with ExitStack() as stack:
            if words[0] == "doctor":  # which asks more of AWS than EBS's stand-in knows
                stack.enter_context(lean.mock_aws())
                patch = stack.enter_context(pytest.MonkeyPatch.context())
                patch.setattr(clients, "_make", made_of(Account(), clients._make))
                clients.forget()
                stack.callback(clients.forget)
            code = parbake([*words, *extra.get(words[0], [])])
        ran.append((words[0], code))
        return code if words[0] != "doctor" else 0  # it says what this machine lacks

    def asks(cluster: Cluster, arguments: list[str]) -> run.Result:
        karpenter.step()
        try:
            return kubectl(server, arguments)
        except CommandFailed as error:
            raise cluster._translated(arguments, error) from error

    monkeypatch.setattr(Cluster, "_run", asks)
    with DockerRegistry(private_places / "registry") as registry:
        push(registry.url, "team/app", image(layer({"app": b"#!/bin/sh\n"}), config={"Cmd": ["/app"]}), "1.4")
        listed = (("the cluster", pods(registry.host)),)
        monkeypatch.setattr(workloads, "from_cluster", lambda *_: listed)
        monkeypatch.setattr("parbake.workflows.lint.from_cluster", lambda *_: listed)
        folder = private_places / "page"
        folder.mkdir()
        said = follow(PAGE, folder, {"parbake": command})
    shown = PAGE.read_text().split("```text\n")[1].split("```")[0].replace("registry.example.com", registry.host)
    assert shapes(shown) <= shapes(said)
    assert [word for word, _ in ran] == ["init", "doctor", "bake", "lint", "rollout", "rollout", "status"]
    [mapping] = [
        each
        for each in server.get("ec2nodeclasses", "gpu")["spec"]["blockDeviceMappings"]
        if "snapshotID" in each["ebs"]
    ]
    assert mapping["deviceName"] == "/dev/xvdb"
    assert "2 of 2 nodes run" in said

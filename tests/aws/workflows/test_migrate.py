"""docs/how-to/migrate.md step by step, on stand-ins of EC2 and Karpenter: from Packer's AMI to parbake's, and back."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from parbake import aws
from parbake.core import run
from parbake.core.errors import CommandFailed
from parbake.rollouts.cluster import Cluster
from standins import packer_program
from standins.aws.boto_clients import raw
from standins.aws.ec2 import Cloud
from standins.aws.ec2_support import cloud
from standins.documents import ROOT
from standins.here import follow, parbake
from standins.images import image, layer, push
from standins.kubernetes.kubectl_in_process import kubectl
from standins.kubernetes.server import Server, serving
from standins.registry import DockerRegistry
from standins.runs import private_places
from tests.aws.conftest import REGION
from tests.unit.rollouts.test_karpenter import pool
from tests.unit.rollouts.test_node_classes import NEW, node_class
from tests.unit.rollouts.test_pointers import InTheCloud, tags_of

__all__ = ["cloud", "private_places"]

PAGE = ROOT / "docs/how-to/migrate.md"


@pytest.fixture
def server(private_places: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with serving(private_places, NEW, "karpenter.sh_nodepools.v1", "karpenter.sh_nodeclaims.v1") as server:
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig))
        yield server


def test_each_step_does_what_the_page_says(
    cloud: Cloud, private_places: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloud.base(REGION, "amazon-eks-node-al2023-x86_64-nvidia-1.36-v20261120")
    before = cloud.base(REGION, "gpu-node-1.3")  # what Packer made last, and somebody wrote into the node class
    raw("iam").create_instance_profile(InstanceProfileName="parbake-bake")
    server.create(
        "ec2nodeclasses", "gpu", spec=node_class(amiFamily="AL2023", amiSelectorTerms=[{"id": before}])["spec"]
    )
    server.create("nodepools", "gpu", spec=pool("gpu"))
    karpenter = InTheCloud(server, [])
    karpenter.look()
    karpenter.start_nodes("gpu", "gpu", 2)
    held: list[tuple[str, str]] = []
    rolled_out: dict[str, str] = {}

    def command(words: list[str]) -> int:
        code = parbake([*words, "--interval", "0.1"] if words[0] in {"rollout", "rollback"} else words)
        [term] = server.get("ec2nodeclasses", "gpu")["spec"]["amiSelectorTerms"]
        held.append((words[0], term["id"]))
        if words[0] == "bake" and not code:
            [made] = [
                each for each in raw("ec2").describe_images(Owners=["self"])["Images"] if aws.KEY in tags_of(each)
            ]
            rolled_out.update(tags_of(made), id=made["ImageId"])
        return code

    def amazon(words: list[str]) -> int:
        """Stand for aws, as far as the page calls it."""
        assert words[:3] == ["ec2", "create-tags", "--resources"]
        at = words.index("--tags")
        [(key, value)] = [re.fullmatch(r"Key=(.*),Value=(.*)", word).groups() for word in words[at + 1 :]]  # type: ignore[union-attr]
        raw("ec2").create_tags(Resources=words[3:at], Tags=[{"Key": key, "Value": value}])
        return 0

    (private_places / "bin").mkdir()
    packer = private_places / "bin/packer"
    packer.write_text(f'#!/bin/sh\nexec {sys.executable} {packer_program.__file__} "$@"\n')
    packer.chmod(0o755)

    def asks(cluster: Cluster, arguments: list[str]) -> run.Result:
        karpenter.step()  # time passes while a rollout looks
        try:
            return kubectl(server, arguments)
        except CommandFailed as error:
            raise cluster._translated(arguments, error) from error

    monkeypatch.setattr(Cluster, "_run", asks)
    with DockerRegistry(private_places / "registry") as registry:
        push(registry.url, "team/app", image(layer({"app": b"#!/bin/sh\n"}), config={"Cmd": ["/app"]}), "1.4")
        [mapping] = raw("ec2").describe_images(ImageIds=[before])["Images"][0]["BlockDeviceMappings"]
        theirs = {
            "registry.example.com": registry.host,
            '"602401143452"': "self",
            "ami-0123456789abcdef0": before,
            "snap-0123456789abcdef0": mapping["Ebs"]["SnapshotId"],
        }

        def place(text: str) -> str:
            for ours, other in theirs.items():
                text = text.replace(ours, other)
            return text

        folder = private_places / "page"
        folder.mkdir()
        said = follow(PAGE, folder, {"parbake": command, "aws": amazon}, change=place)
    theirs_again = said.rpartition("Find what is published")[2]
    assert [after for word, after in held if word == "rollout"] == [before, rolled_out["id"]], "first a dry run"
    assert [after for word, after in held if word == "rollback"] == [before]
    assert said.count("2 of 2 nodes run") == 4, "rollout, status, rollback, status"
    assert before in theirs_again, "what was tagged is parbake's, and kept"

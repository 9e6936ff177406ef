"""The whole story on stand-ins: a tag moves in a registry, and nodes run what was baked of it. Killed, raced, back.

Real are the registry, the bakes, the upload's protocol, kubectl and the file; stand-ins are EBS and EC2
(standins/ebs_direct_server), the API server and Karpenter (standins/kubernetes), and what a machine would say of
a bake (standins/proven): tests/vm boots volumes.
"""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from standins import images
from standins.clusters import NEEDS_KUBECTL
from standins.command import Corner, documents
from standins.ebs_direct_server import Cloud
from standins.images import image, layer, push
from standins.kubernetes.karpenter import Ami, Karpenter
from standins.kubernetes.server import Server, serving
from standins.registry import DockerRegistry
from tests.unit.rollouts.test_karpenter import pool
from tests.unit.rollouts.test_node_classes import ALIAS, NEW

pytestmark = [pytest.mark.root, pytest.mark.slow, NEEDS_KUBECTL]
AWS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_REGION": "eu-west-1"}
WATCH = ("watch", "--every", "1", "--json", "--progress", "json")
PROVEN = Path(images.__file__).with_name("proven")
QUICK = ("--interval", "0.1", "--json", "--progress", "json")


def release(registry: DockerRegistry, version: str) -> None:
    """Let the tag mean another image: a program that is there, and a file that differs."""
    busybox = shutil.which("busybox")
    assert busybox, "apt-get install busybox-static"
    files = {"bin/busybox": Path(busybox).read_bytes(), "version": version.encode()}
    made = image(layer(files), config={"Cmd": ["/bin/busybox", "cat", "/version"]})
    push(registry.url, "team/app", made, "stable")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path, NEW, "karpenter.sh_nodepools.v1", "karpenter.sh_nodeclaims.v1") as server:
        server.create("ec2nodeclasses", "gpu", spec=ALIAS["spec"])
        server.create("nodepools", "gpu", spec=pool("gpu"))
        yield server


def snapshot_of(server: Server) -> str:
    disks = server.get("ec2nodeclasses", "gpu")["spec"].get("blockDeviceMappings", [])
    return next((str(each["ebs"]["snapshotID"]) for each in disks if each["ebs"].get("snapshotID")), "")


def test_from_a_tag_to_nodes_and_back(tmp_path: Path, server: Server) -> None:
    karpenter = Karpenter(server, [Ami("ami-0", "al2023-node")])
    karpenter.start_nodes("gpu", "gpu", 2)
    cloud = Cloud()
    with DockerRegistry(tmp_path / "registry") as registry, cloud.serve() as url, karpenter:
        env = {"AWS_ENDPOINT_URL": url, "AWS_EC2_METADATA_DISABLED": "true", "KUBECONFIG": str(server.kubeconfig)}
        corner = Corner(tmp_path / "corner", **AWS, **env, PYTHONPATH=str(PROVEN))
        app = {"reference": f"{registry.host}/team/app:stable", "startup": {"up": "exit"}}
        targets = [{"name": "gpu", "karpenter": {"nodeclass": "gpu"}}, {"file": "image.json"}]
        corner.write(
            "parbake.yaml",
            json.dumps(
                {"version": 1, "name": "data", "builder": "ebs", "base": "none", "images": [app], "rollout": targets}
            ),
        )
        release(registry, "1")
        old = corner.parbake("bake", "--json").document
        first = old["published"]["eu-west-1"]["snapshots"][0]["id"]
        assert corner.parbake("rollout", old["key"], *QUICK).code == 0
        assert (snapshot_of(server), said(corner)["snapshot"], running(server)) == (first, first, 2)

        with corner.start(*WATCH) as run:  # dies as soon as the node class is written
            run.wait_for("stage-end", "follow-file")
            assert not [event for event in run.seen if event["name"] == "fill"], "nothing has moved"
            release(registry, "2")
            run.wait_for("stage-end", "write-gpu")
            run.kill(signal.SIGKILL)
            assert run.finish().code == -signal.SIGKILL
        second = snapshot_of(server)
        assert second not in {"", first}
        assert said(corner)["snapshot"] == first

        with corner.start(*WATCH) as run:
            run.wait_for("stage-end", "follow-file")
            assert not [event for event in run.seen if event["name"] == "fill"], "it is baked already"
            run.kill(signal.SIGINT)  # the last act is over: a signal that comes now waits until the turn is told
            done = run.finish()
        assert done.code == 130, done
        (turn,) = documents(done.stdout)
        assert (turn["moved"], turn["baked"]) == ([app["reference"], "base"], False)
        assert (said(corner)["snapshot"], running(server)) == (second, 2)

        records = corner.parbake("list", "--json").document
        assert [each["verified"] for each in records] == [True, True]
        back = corner.parbake("rollback", *QUICK)
        assert (back.code, snapshot_of(server), said(corner)["snapshot"]) == (0, first, first), back.said
        once = corner.parbake("watch", "--once", "--json", "--progress", "json")
        assert (once.code, snapshot_of(server), once.document["rollout"]["targets"]) == (0, first, []), once.said
        with corner.start("rollout", turn["key"], *QUICK) as run:  # said by hand, it goes out again
            run.wait_for("stage-end", "write-gpu")
            run.kill(signal.SIGKILL)
        assert corner.parbake("rollout", turn["key"], *QUICK).code == 0
        assert (snapshot_of(server), said(corner)["snapshot"], running(server)) == (second, second, 2)
        assert corner.leaked() == []


def said(corner: Corner) -> Any:
    return json.loads((corner.folder / "image.json").read_text())


def running(server: Server) -> int:
    """Return how many nodes run what the node class says."""
    wanted = server.get("ec2nodeclasses", "gpu")["metadata"]["annotations"]["karpenter.k8s.aws/ec2nodeclass-hash"]
    claims = server.list("nodeclaims")
    return sum(each["metadata"]["annotations"]["karpenter.k8s.aws/ec2nodeclass-hash"] == wanted for each in claims)

"""The builder `ebs` by the command, from a registry to a stand-in for EBS: whole, again, changed, and killed."""

from __future__ import annotations

import json
import random
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from parbake.coldstart.trace import hydrate_list, load
from parbake.core.model import EBS_BLOCK
from parbake.machine.ext4 import Volume
from standins.command import Corner
from standins.disks import sh
from standins.ebs_direct_server import Cloud
from standins.hydrated import brought
from standins.images import image, layer, push
from standins.registry import DockerRegistry
from tests.system.coldstart.test_layout import MIB, STARTUP
from tests.system.coldstart.test_layout import registry as startable

__all__ = ["startable"]
pytestmark = pytest.mark.root

BAKE = ("bake", "--no-verify", "--json", "--progress", "json")
AWS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_REGION": "eu-west-1"}


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    data = random.Random(1).randbytes(24 << 20)
    with DockerRegistry(tmp_path_factory.mktemp("registry")) as running:
        for tag in ("1", "2"):
            push(running.url, "app", image(layer({"app": data}), layer({"version": tag.encode()})), tag)
        yield running


@pytest.fixture
def cloud() -> Iterator[tuple[Cloud, str]]:
    made = Cloud()
    with made.serve() as url:
        yield made, url


def corner_of(folder: Path, url: str, host: str, tag: str = "1") -> Corner:
    corner = Corner(folder, **AWS, AWS_ENDPOINT_URL=url, AWS_EC2_METADATA_DISABLED="true")
    corner.alone = True  # what is uploaded from the tests' process makes it grow by 200 MiB
    bakefile(corner, host, tag)
    return corner


def bakefile(corner: Corner, host: str, tag: str) -> None:
    corner.write("parbake.yaml", f"version: 1\nname: data\nbuilder: ebs\nbase: none\nimages: ['{host}/app:{tag}']\n")


def test_a_volume_goes_to_ebs_and_comes_back(
    tmp_path: Path, registry: DockerRegistry, cloud: tuple[Cloud, str]
) -> None:
    aws, url = cloud
    corner = corner_of(tmp_path / "corner", url, registry.host)
    made = corner.bake()
    (snapshot,) = made["published"]["eu-west-1"]["snapshots"]
    assert aws.snapshots[snapshot["id"]].state == "completed"
    assert made["artefact"].endswith(".snapshot")
    assert not (corner.output / made["artefact"]).exists()
    assert made["blocks"]["count"] == len(aws.snapshots[snapshot["id"]].written)
    assert [each["artefact"] for each in corner.parbake("list", "--json").document] == [made["artefact"]]

    calls = aws.calls.copy()
    assert corner.bake()["changed"] is False
    assert corner.parbake("plan", "--json").document["exists"] is True
    assert aws.calls["PutSnapshotBlock"] == calls["PutSnapshotBlock"]

    back = corner.folder / "back.raw"
    fetched = corner.parbake("fetch", snapshot["id"], str(back), "--json", "--progress", "none").document
    assert fetched["size"] == back.stat().st_size == made["size"]
    assert fetched["blocks"]["count"] == made["blocks"]["count"]
    sh("e2fsck", "-fn", back)

    (corner.output / f"{made['artefact']}.json").unlink()
    found = corner.bake()
    assert found["published"] == made["published"], "what AWS has is found by its tags"
    assert aws.calls["PutSnapshotBlock"] == calls["PutSnapshotBlock"]
    assert corner.left() == []
    assert corner.leaked() == []


def test_a_changed_image_sends_less(tmp_path: Path, registry: DockerRegistry, cloud: tuple[Cloud, str]) -> None:
    aws, url = cloud
    corner = corner_of(tmp_path / "corner", url, registry.host)
    first = corner.bake()["published"]["eu-west-1"]["snapshots"][0]["id"]
    bakefile(corner, registry.host, "2")
    second = corner.bake()["published"]["eu-west-1"]["snapshots"][0]["id"]
    assert aws.snapshots[second].parent == first
    assert len(aws.content(second)) * EBS_BLOCK > 24 << 20


NODE_CLASS = """apiVersion: karpenter.k8s.aws/v1
kind: EC2NodeClass
metadata: {name: gpu}
spec:
  role: nodes
  amiSelectorTerms: [{alias: al2023@v20260101}]
  subnetSelectorTerms: [{tags: {team: ml}}]
  securityGroupSelectorTerms: [{tags: {team: ml}}]
"""


def test_what_is_sent_is_laid_out_and_its_nodes_hydrate_from_its_trace(
    tmp_path: Path, startable: DockerRegistry, cloud: tuple[Cloud, str]
) -> None:
    aws, url = cloud
    corner = corner_of(tmp_path / "corner", url, startable.host)
    corner.write("gpu.yaml", NODE_CLASS)
    rollout = [{"name": "gpu", "gitops": {"file": "gpu.yaml", "hydrate": True}}]

    def bakefile_of(version: int) -> None:
        app = {"reference": f"{startable.host}/team/app:{version}", "startup": STARTUP}
        document = {"version": 1, "name": "data", "builder": "ebs", "base": "none", "images": [app], "rollout": rollout}
        corner.write("parbake.yaml", json.dumps(document))

    bakefile_of(1)
    done = corner.parbake(*BAKE, "--rehearse-in", "host")
    assert done.code == 0, done
    made = done.document
    snapshot = made["published"]["eu-west-1"]["snapshots"][0]["id"]
    trace = load(corner.output / f"{made['artefact']}.trace")
    assert made["trace"]["file"] == f"{made['artefact']}.trace"
    assert made["trace"]["hot_blocks"] < 0.7 * trace.scattered

    back = corner.folder / "back.raw"
    assert corner.parbake("fetch", snapshot, str(back), "--json").code == 0
    sh("e2fsck", "-fn", back)
    with Volume(back) as volume:
        assert str(uuid.UUID(bytes=volume.superblock.uuid)) == trace.uuid
        hot = [range(start * 8, end * 8) for start, end in volume.hot]
    reads = [read for part in trace.parts for read in part.reads]
    together = sum(read.length for read in reads if any(read.sector in part for part in hot))
    assert together > 0.75 * sum(read.length for read in reads), "the hot zone was sent"

    done = corner.parbake("rollout", made["artefact"], "--force", "--json")
    assert done.code == 0, done
    edited = (corner.folder / "gpu.yaml").read_text()
    assert snapshot in edited
    assert brought(edited)["hydrate.list"] == hydrate_list(trace)

    again = corner.parbake("trace", made["artefact"], "--json", "--progress", "none")
    assert again.code == 0, again
    # What is read ahead differs from run to run, and more so on a busy machine.
    ratio = again.document["hot_blocks"] / made["trace"]["hot_blocks"]
    assert 0.5 < ratio < 2, "it is read back to be rehearsed"

    before = aws.calls["PutSnapshotBlock"]
    bakefile_of(2)
    second = corner.parbake(*BAKE, "--rehearse-in", "host").document
    (child,) = [each for each in aws.snapshots.values() if each.id != snapshot]
    assert child.parent == snapshot
    assert child.id == second["published"]["eu-west-1"]["snapshots"][0]["id"]
    sent = aws.calls["PutSnapshotBlock"] - before
    assert sent * EBS_BLOCK < 1.5 * 3.1 * MIB + 16 * MIB, "the layers that stay, stay where they are"
    assert corner.left() == []
    assert corner.leaked() == []


def test_a_disk_that_is_never_here_is_not_rehearsed_in_silence(tmp_path: Path) -> None:
    corner = Corner(tmp_path / "corner", **AWS)
    document = {"version": 1, "builder": "ec2", "base": {"ami": "ami-0123456789abcdef0"}, "images": ["x.example/a:1"]}
    corner.write("parbake.yaml", json.dumps(document))
    done = corner.parbake("bake", "--rehearse", "--json")
    assert (done.code, done.document["error"]) == (2, "InputError")
    assert "builder: ebs" in done.said


def test_killed_while_it_uploads(tmp_path: Path, registry: DockerRegistry, cloud: tuple[Cloud, str]) -> None:
    aws, url = cloud
    corner = corner_of(tmp_path / "corner", url, registry.host)
    aws.rate = 15.0
    with corner.start(*BAKE) as run:
        run.wait_for("task-progress", "upload")
        run.kill(signal.SIGKILL)
        assert run.finish().code == -signal.SIGKILL
    assert corner.leaked() == []
    (pending,) = aws.snapshots.values()
    assert pending.state == "pending"
    aws.rate = 0.0
    with corner.start(*BAKE) as run:
        done = run.finish()
        assert not [event for event in run.seen if event["name"] == "fill"], "what was baked is not baked again"
    assert done.code == 0, done
    assert list(aws.snapshots) == [pending.id]
    assert pending.state == "completed"
    assert corner.left() == []


def test_errors_say_the_next_step(tmp_path: Path, registry: DockerRegistry, cloud: tuple[Cloud, str]) -> None:
    _, url = cloud
    corner = corner_of(tmp_path / "corner", url, registry.host)
    for name in AWS:
        corner.env.pop(name)
    corner.env["AWS_REGION"] = "eu-west-1"
    done = corner.parbake(*BAKE)
    assert (done.code, done.document["error"]) == (1, "AwsNoAccess")
    assert "aws configure" in done.said
    missing = corner.parbake("fetch", "vol-1", "x", "--json")
    assert (missing.code, json.loads(missing.stdout)["error"]) == (2, "InputError")

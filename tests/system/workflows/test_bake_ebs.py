"""The builder `ebs` by the command, from a registry to a stand-in for EBS: whole, again, changed, and killed."""

from __future__ import annotations

import json
import random
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from parbake.coldstart.trace import hydrate_list, load
from parbake.core.events import Events
from parbake.core.model import EBS_BLOCK
from parbake.machine.disk import block_list
from parbake.machine.ext4 import Volume
from standins.command import Corner
from standins.disks import sh
from standins.ebs_direct_server import Cloud
from standins.hydrated import brought
from standins.images import image, layer, push
from standins.registry import DockerRegistry
from standins.runs import private_places
from standins.trees import differences
from tests.system.coldstart.test_layout import MIB, STARTUP
from tests.system.coldstart.test_layout import registry as startable
from tests.system.machine.disk.test_inherited import overwrite
from tests.system.workflows.test_volumes import look

__all__ = ["private_places", "startable"]
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
    done = corner.bake()
    second = done["published"]["eu-west-1"]["snapshots"][0]["id"]
    assert aws.snapshots[second].parent == first
    assert len(aws.content(second)) * EBS_BLOCK > 24 << 20


def fetched(corner: Corner, made: dict[str, Any]) -> tuple[Path, list[str]]:
    """Return the disk that a cloud has of what was baked, and the blocks of the record's list."""
    snapshot = made["published"]["eu-west-1"]["snapshots"][0]["id"]
    back = corner.folder / f"{snapshot}.raw"
    assert corner.parbake("fetch", snapshot, str(back), "--json").code == 0
    sh("e2fsck", "-fn", back)
    return back, (corner.output / f"{made['artefact']}.blocks").read_text().splitlines()


def test_a_changed_image_is_written_over_the_disk_before(
    tmp_path: Path, private_places: Path, registry: DockerRegistry, cloud: tuple[Cloud, str]
) -> None:
    """No copy and no other bytes are written or read: what the cloud has then holds the same trees as a whole bake."""
    aws, url = cloud
    corner = corner_of(tmp_path / "corner", url, registry.host)
    first = corner.bake()
    (disk,) = (corner.cache / "volumes").glob("*.raw")
    inode, before = disk.stat().st_ino, aws.calls["PutSnapshotBlock"]
    bakefile(corner, registry.host, "2")
    second = corner.bake()
    assert second["parent"] == first["artefact"]
    assert "copy" not in second["timings"]
    assert disk.stat().st_ino == inode
    sent = aws.calls["PutSnapshotBlock"] - before
    assert 0 < sent < 20, "of 24 MiB"
    back, listed = fetched(corner, second)
    blocks = block_list(back, Events())
    assert list(blocks.text())[1:] == [f"{line}\n" for line in listed[1:]]
    assert corner.left() == []

    whole, _ = fetched(corner, corner.bake("--force"))
    names, trees, usages = look({"artefact_path": back}, private_places / "look1")
    all_names, all_trees, all_usages = look({"artefact_path": whole}, private_places / "look2")
    assert (names, usages, trees.keys()) == (all_names, all_usages, all_trees.keys())
    for chain, tree in all_trees.items():
        assert differences(tree, trees[chain]) == []


@pytest.mark.parametrize("stage", ["fill", "check", "upload"])
def test_killed_while_it_changes_the_disk_before(
    stage: str, tmp_path: Path, registry: DockerRegistry, cloud: tuple[Cloud, str]
) -> None:
    """The disk is spent then, and what the next run makes has the same blocks; it is kept for the next in turn."""
    _, url = cloud
    corner = corner_of(tmp_path / "corner", url, registry.host)
    corner.bake()
    bakefile(corner, registry.host, "2")
    with corner.start(*BAKE) as run:
        for event in run.events():
            if event["kind"] == "stage-start" and event["name"] == stage:
                run.kill(signal.SIGKILL)
                break
        assert run.finish().code == -signal.SIGKILL
    made = corner.bake()
    back, listed = fetched(corner, made)
    assert [line.rstrip() for line in block_list(back, Events()).text()][1:] == listed[1:]
    assert bool(made["parent"]) == (stage == "upload"), "what was kept to be sent is sent"
    assert len(list((corner.cache / "volumes").glob("*.raw"))) == 1
    assert corner.left() == []


def test_a_disk_that_others_have_written_to_is_no_start(
    tmp_path: Path, registry: DockerRegistry, cloud: tuple[Cloud, str]
) -> None:
    _, url = cloud
    corner = corner_of(tmp_path / "corner", url, registry.host)
    corner.bake()
    (disk,) = (corner.cache / "volumes").glob("*.raw")
    overwrite(disk, 20 * EBS_BLOCK, b"x")
    bakefile(corner, registry.host, "2")
    made = corner.bake()
    assert made["parent"] == ""
    fetched(corner, made)


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
    rollout = [{"name": "gpu", "gitops": {"file": "gpu.yaml", "remedy": "hydrate"}}]

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

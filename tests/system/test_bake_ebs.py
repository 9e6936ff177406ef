"""The builder `ebs` by the command, from a registry to a stand-in for EBS: whole, again, changed, and killed."""

from __future__ import annotations

import json
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from parbake.disk import BLOCK
from tests.support.bakes import Corner
from tests.support.disks import sh
from tests.support.ebsdirect import Cloud
from tests.support.images import image, layer, push
from tests.support.registry import DockerRegistry

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
    assert len(aws.content(second)) * BLOCK > 24 << 20


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

"""The commands on EC2's stand-in: plan, bake, bake again, list, clean."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from parbake.aws import clients
from standins.aws.ec2 import Cloud
from standins.aws.ec2_support import cloud, failing, notes
from standins.images import image, layer, push
from standins.registry import DockerRegistry
from standins.runs import bakefile, parbake, private_places
from tests.aws.conftest import REGION

__all__ = ["cloud", "private_places"]


@pytest.fixture
def file(cloud: Cloud, private_places: Path) -> Iterator[Path]:
    base = cloud.base(REGION, "my-node-1")
    with DockerRegistry(private_places / "registry") as registry:
        push(registry.url, "team/app", image(layer({"app": b"#!/bin/sh\n"}), config={"Cmd": ["/app"]}), "1")
        host = registry.url.removeprefix("http://")
        images = [{"reference": f"{host}/team/app:1", "startup": {"up": "exit"}}]
        path = bakefile(private_places / "bake", images, builder="ec2", base=base, aws={"region": REGION})
        yield path


def test_the_commands(cloud: Cloud, file: Path) -> None:
    planned = parbake("plan", "-f", file, "--json").good()
    assert cloud.left(REGION) == {}
    baked = parbake("bake", "-f", file, "--json", "--progress", "none").good()
    there = baked["published"][REGION]
    assert baked["verdict"]["passed"]
    assert baked["key"] == planned["key"]
    assert cloud.left(REGION)["images"] == [there["image"]]
    again = parbake("bake", "-f", file, "--json", "--progress", "none").good()
    assert not again["changed"]
    assert again["published"] == baked["published"]
    assert there["image"] in parbake("show", "-f", file, "node").out
    assert parbake("clean", "-f", file, "--aws", "--json").good()["removed"] == []
    assert cloud.left(REGION)["images"] == [there["image"]]


def test_a_record_that_was_lost_is_made_again_from_what_aws_knows(file: Path) -> None:
    baked = parbake("bake", "-f", file, "--json", "--progress", "none").good()
    Path(baked["record_path"]).unlink()
    again = parbake("bake", "-f", file, "--json", "--progress", "none").good()
    assert again["published"] == baked["published"]
    assert again["verified"]


def test_an_ami_that_does_not_start_fails_the_command(cloud: Cloud, file: Path) -> None:
    notes(cloud).prepare = lambda node: (node.fake / "code").write_text("3")
    done = parbake("bake", "-f", file, "--json", "--progress", "none")
    assert done.code == 3
    assert "ended with code 3" in done.err


@pytest.mark.parametrize(
    ("wrong", "error", "step"),
    [
        ("credentials", "AwsNoAccess", "aws sso login"),
        ("token", "AwsNoAccess", "log in again"),
        ("region", "AwsFault", "is a region that exists"),
        ("name", "AwsNotFound", "nearest: my-node-1"),
    ],
)
def test_what_is_wrong_is_said_before_anything_begins(
    cloud: Cloud, file: Path, monkeypatch: pytest.MonkeyPatch, wrong: str, error: str, step: str
) -> None:
    match wrong:
        case "credentials":
            monkeypatch.delenv("AWS_ACCESS_KEY_ID")
            monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        case "token":
            failing(cloud, "DescribeImages", "ExpiredToken", "The security token included in the request is expired")
        case "region":
            monkeypatch.setattr(clients, "_TRIES", 1)
            monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # nobody listens there
        case "name":
            base = {"ami_filter": {"name": "my-node-2*", "owner": "self"}}
            file.write_text(json.dumps({**json.loads(file.read_text()), "base": base}))
    clients.forget()
    done = parbake("bake", "-f", file, "--json", "--progress", "none")
    assert (done.code, done.document["error"]) == (1, error)
    assert step in done.err
    assert cloud.left(REGION) == {}

"""Volumes that nodes left raised: found by their tag and figures, taken back, and no other volume is touched."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from moto.ec2.models import ec2_backends
from moto.ec2.models.elastic_block_store import VolumeAttachment

from parbake.aws.ebs import raised
from parbake.aws.tags import as_list
from parbake.core.events import Event, Events
from standins.aws.boto_clients import raw
from standins.aws.ec2 import Cloud
from standins.aws.ec2_support import cloud
from standins.aws.interceptor import killed_everywhere, refuse
from standins.policies import ACCOUNT
from tests.aws.conftest import REGION

__all__ = ["cloud"]

TAG = {"parbake:boost": "/dev/xvdb 16000/1000"}


def volume(tags: dict[str, str] = TAG, *, node: str = "", device: str = "/dev/xvdb", age: int = 60, **more: Any) -> str:
    """Make a volume of so many minutes; ``node`` is the instance that has it."""
    usual: dict[str, Any] = {"Size": 40, "VolumeType": "gp3", "Iops": 16_000, "Throughput": 1_000, **more}
    tagged = [{"ResourceType": "volume", "Tags": as_list(tags)}] if tags else []
    made: str = raw("ec2").create_volume(AvailabilityZone=f"{REGION}a", TagSpecifications=tagged, **usual)["VolumeId"]
    known = ec2_backends[ACCOUNT][REGION].volumes[made]
    known.create_time = (datetime.now(UTC) - timedelta(minutes=age)).isoformat()
    if node:
        known.attachment = VolumeAttachment(known, SimpleNamespace(id=node), device, "attached")
    return made


@pytest.fixture
def prompt(cloud: Cloud) -> Cloud:
    """AWS whose volumes are made at once."""
    cloud.after.append(lambda *_: cloud.pending.clear())
    return cloud


def has(name: str) -> tuple[int, int]:
    [found] = raw("ec2").describe_volumes(VolumeIds=[name])["Volumes"]
    return found["Iops"], found["Throughput"]


def taken(seen: list[str] | None = None) -> tuple[str, ...]:
    def note(event: Event) -> None:
        if seen is not None:
            seen.append(str(event.text))

    return raised.take_back(REGION, Events(note))


@pytest.mark.usefixtures("prompt")
def test_what_a_dead_or_slow_node_left_raised_goes_back_and_the_bill_is_named() -> None:
    node = "i-0123456789abcdef0"
    gone, late = volume(), volume(node=node)
    others = {
        "starting": volume(node=node, age=10),
        "root": volume(node=node, device="/dev/xvda"),
        "given other figures since": volume(Iops=6_000),
        "nobody's": volume({}),
        "of another tag": volume({"parbake:managed": "temporary"}),
        "back": volume(Iops=3_000, Throughput=125),
        "odd": volume({"parbake:boost": "true"}),
    }
    before = {what: has(name) for what, name in others.items()}
    seen: list[str] = []
    assert set(taken(seen)) == {gone, late}
    assert has(gone) == has(late) == (3_000, 125)
    assert {what: has(name) for what, name in others.items()} == before
    assert any(
        f"{gone}, whose node is gone, had 16,000 IOPS and 1,000 MiB/s, for 0.1370 USD an hour" in each for each in seen
    )
    assert any(f"{late}, of i-" in each for each in seen)
    assert taken() == ()


@pytest.mark.parametrize("code", ["IncorrectModificationState", "VolumeModificationRateExceeded", "IncorrectState"])
def test_what_aws_refuses_is_told_and_the_next_volume_goes_back(prompt: Cloud, code: str) -> None:
    first, second = sorted((volume(), volume()))

    def hook(_service: str, operation: str, arguments: dict[str, Any]) -> None:
        if operation == "ModifyVolume" and arguments["VolumeId"] == first:
            raise refuse(code, "not now", operation)

    prompt.before.append(hook)
    seen: list[str] = []
    assert taken(seen) == (second,)
    assert any(first in each and "stays raised" in each and "parbake clean --aws" in each for each in seen)
    prompt.before.remove(hook)
    assert taken() == (first,)


def test_killed_at_any_call_the_next_clean_up_finishes(prompt: Cloud) -> None:
    names = [volume(), volume()]

    def finish() -> None:
        taken()
        assert {has(name) for name in names} == {(3_000, 125)}

    assert killed_everywhere(prompt, taken, finish) == ["ModifyVolume", "ModifyVolume"]

"""What a bake sends to EBS: only what differs from the snapshot that it grows from, whoever chose that."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from parbake.aws import Stamp, ebs
from parbake.builders.ebs import base_of
from parbake.core.errors import AwsError, InputError
from parbake.core.events import Events
from parbake.core.model import EBS_BLOCK, GIB, Artefact, Base
from standins.aws.ebs_direct_in_process import Direct
from standins.aws.interceptor import refuse
from standins.ebs_direct_server import EBS_KEY, Cloud
from tests.aws.aws.test_ebs import held
from tests.aws.builders.test_ebs_builder import MACHINE, VOLUME, FakeBuilder, build, cloud, direct, fake_builder

__all__ = ["cloud", "direct", "fake_builder"]


def test_the_next_of_a_name_sends_what_differs(tmp_path: Path, fake_builder: FakeBuilder, cloud: Cloud) -> None:
    first = build(tmp_path, VOLUME).published["eu-west-1"].snapshots[0].id
    fake_builder.content = {0: b"boot", 5: b"changed", 901: b"new"}
    changed = VOLUME.model_copy(update={"keep_layers": True})
    before = cloud.calls["PutSnapshotBlock"]
    second = build(tmp_path, changed).published["eu-west-1"].snapshots[0].id
    assert cloud.snapshots[second].parent == first
    assert cloud.calls["PutSnapshotBlock"] - before == 3, "5 is another, 900 is zeros, 901 is new"
    assert set(held(cloud, second)) == {0, 5, 901}
    other = build(tmp_path, VOLUME.model_copy(update={"name": "data-2"})).published["eu-west-1"].snapshots[0].id
    assert cloud.snapshots[other].parent == "", "another name, another lineage"


def test_encrypted_and_not_do_not_mix(tmp_path: Path, fake_builder: FakeBuilder, cloud: Cloud) -> None:
    build(tmp_path, VOLUME)
    fake_builder.content = {7: b"x"}
    locked = {"kind": "volume", "format": "snapshot", "encrypted": True, "kms_key": "alias/nodes"}
    wanted = VOLUME.model_copy(update={"artefact": Artefact.model_validate(locked)})
    made = cloud.snapshots[build(tmp_path, wanted).published["eu-west-1"].snapshots[0].id]
    assert (made.parent, made.encrypted) == ("", True)
    child = cloud.snapshots[
        build(tmp_path, wanted.model_copy(update={"keep_layers": True})).published["eu-west-1"].snapshots[0].id
    ]
    assert (child.parent, child.key) == (made.id, made.key)


def test_where_aws_encrypts_by_default_the_second_bake_sends_what_differs(
    tmp_path: Path, fake_builder: FakeBuilder, cloud: Cloud
) -> None:
    oldest = build(tmp_path, VOLUME).published["eu-west-1"].snapshots[0].id
    cloud.by_default["eu-west-1"] = EBS_KEY
    wanted = [VOLUME.model_copy(update={"keep_layers": True, "size": size * GIB}) for size in (1, 2, 3)]
    wanted = [each.model_copy(update={"size_is_fixed": True}) for each in wanted]
    first = cloud.snapshots[build(tmp_path, wanted[0]).published["eu-west-1"].snapshots[0].id]
    assert (first.encrypted, first.parent) == (True, ""), f"{oldest} is not encrypted, and AWS takes no such parent"
    fake_builder.content = {0: b"boot", 5: b"changed", 900: b"more"}
    before = cloud.calls["PutSnapshotBlock"]
    second = cloud.snapshots[build(tmp_path, wanted[1]).published["eu-west-1"].snapshots[0].id]
    assert (second.parent, set(second.written)) == (first.id, {5})
    assert cloud.calls["PutSnapshotBlock"] - before == 1
    cloud.by_default["eu-west-1"] = f"arn:aws:kms:eu-west-1:123456789012:key/{'1' * 32}"
    third = cloud.snapshots[build(tmp_path, wanted[2]).published["eu-west-1"].snapshots[0].id]
    assert (third.parent, third.key) == ("", cloud.by_default["eu-west-1"]), "its parent's key would be another"


@pytest.mark.parametrize("call", ["GetEbsEncryptionByDefault", "GetEbsDefaultKmsKeyId", "DescribeKey"])
def test_who_may_not_ask_how_aws_encrypts_still_sends_what_differs(
    tmp_path: Path, fake_builder: FakeBuilder, direct: Direct, call: str
) -> None:
    cloud = direct.world
    cloud.by_default["eu-west-1"] = EBS_KEY

    def refused(_service: str, operation: str, _arguments: dict[str, Any]) -> None:
        if operation == call:
            raise refuse("UnauthorizedOperation", "You are not authorized to perform this operation.", operation)

    direct.before.append(refused)
    first = build(tmp_path, VOLUME).published["eu-west-1"].snapshots[0].id
    fake_builder.content = {0: b"boot", 5: b"changed", 900: b"more"}
    second = build(tmp_path, VOLUME.model_copy(update={"keep_layers": True})).published["eu-west-1"].snapshots[0].id
    assert (cloud.snapshots[second].parent, set(cloud.snapshots[second].written)) == (first, {5})


def test_a_parent_that_the_user_names(tmp_path: Path, fake_builder: FakeBuilder, cloud: Cloud) -> None:
    path = tmp_path / "parent.raw"
    with path.open("wb") as file:
        file.truncate(GIB)
        os.pwrite(file.fileno(), b"boot", 0)
        os.pwrite(file.fileno(), b"old", 7 * EBS_BLOCK)
    request = ebs.UploadRequest(path, tmp_path / "j", Stamp("p", "r", "p"), "p", "eu-west-1")
    parent = ebs.upload(request, Events()).snapshot
    before = cloud.calls["PutSnapshotBlock"]
    made = build(tmp_path, VOLUME, parent_snapshot=parent).published["eu-west-1"].snapshots[0].id
    assert cloud.snapshots[made].parent == parent
    assert cloud.calls["PutSnapshotBlock"] - before == 3, "what it holds was read: 0 is the same"
    assert set(held(cloud, made)) == {0, 5, 900}

    cloud.snapshots[parent].gib = 9
    with pytest.raises(InputError, match="has 1 GiB"):
        build(tmp_path, VOLUME.model_copy(update={"keep_layers": True}), parent_snapshot=parent)
    with pytest.raises(AwsError, match="does not exist"):
        build(tmp_path, VOLUME.model_copy(update={"keep_layers": True}), parent_snapshot="snap-0123456789abcdef0")
    assert len(fake_builder.bakes) == 2, "the disk waits for a better answer"


def test_an_ami_as_base_is_fetched_once_and_is_the_parent(
    tmp_path: Path, fake_builder: FakeBuilder, cloud: Cloud
) -> None:
    base = build(tmp_path, MACHINE).published["eu-west-1"]
    onto = MACHINE.model_copy(update={"name": "onto", "base": Base(kind="ami", identity=base.image, size=GIB)})
    fake_builder.content = {6: b"baked"}
    there = build(tmp_path, onto).published["eu-west-1"]
    made = there.snapshots[0].id
    assert cloud.snapshots[made].parent == base.snapshots[0].id
    assert set(cloud.snapshots[made].written) == {6}
    assert set(held(cloud, made)) == {0, 5, 6, 900}
    before = cloud.calls["GetSnapshotBlock"]
    build(tmp_path, onto.model_copy(update={"keep_layers": True}))
    assert cloud.calls["GetSnapshotBlock"] == before
    assert base_of(base.image, "eu-west-1", Events()).blocks.blocks.keys() == {0, 5, 900}

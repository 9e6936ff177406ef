"""Rollouts of volumes to Auto Scaling groups and managed node groups: what mounts them, and where nothing would."""

from __future__ import annotations

import base64
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from parbake.core.errors import InputError
from parbake.core.model import GIB
from parbake.machine.disk import filesystem_uuid
from parbake.rollouts import Offer, mount
from parbake.rollouts.templates import new_data
from parbake.rollouts.userdata import part_of
from standins.aws.autoscaling import Fleets
from standins.aws.boto_clients import raw
from standins.clusters import parbake, project
from tests.aws.rollouts.test_rollouts import (
    BOTTLEROCKETS,
    DATA,
    DISKS,
    GROUP,
    NODES,
    QUICK,
    fleets,
    group,
    node_group,
    versions,
)

__all__ = ["fleets"]

pytestmark = pytest.mark.usefixtures("aws_mock", "made_up_records")


@pytest.mark.parametrize("target", [GROUP, NODES], ids=["asg", "nodegroup"])
@pytest.mark.parametrize("name", ["node-al2023-1", "bottlerocket-aws-k8s-1.33-x86_64-v1", ""])
def test_a_volume_of_bottlerockets_own(
    fleets: Fleets, tmp_path: Path, capsys: pytest.CaptureFixture[str], target: dict[str, Any], name: str
) -> None:
    """Whose nodes these are, their image's name says; of an image that is gone nobody knows."""
    ami = raw("ec2").register_image(Name=name, RootDeviceName="/dev/xvda")["ImageId"] if name else "ami-0"
    made = group(image=ami) if target is GROUP else node_group("CUSTOM", ami)
    project(tmp_path, [target], BOTTLEROCKETS)
    code, done = parbake(capsys, "rollout", BOTTLEROCKETS.key, *QUICK)
    if name.startswith("node"):
        assert (code, len(versions(made))) == (1, 1)
        assert f"the volume is Bottlerocket's own, and its nodes run {name} ({ami})" in done["message"]
        return
    assert code == 0
    [kind] = target
    project(tmp_path, [{kind: {**target[kind], "device": "/dev/sdf"}}], BOTTLEROCKETS)
    code, error = parbake(capsys, "rollout", BOTTLEROCKETS.key, *QUICK)
    assert code == 1
    assert "looks for its data volume on /dev/xvdb" in error["message"]
    del fleets


def user_data(version: dict[str, Any]) -> str:
    return base64.b64decode(version["LaunchTemplateData"].get("UserData", "")).decode()


@pytest.mark.parametrize("target", [GROUP, NODES], ids=["asg", "nodegroup"])
def test_a_volume_is_mounted_by_user_data(
    fleets: Fleets, tmp_path: Path, capsys: pytest.CaptureFixture[str], target: dict[str, Any]
) -> None:
    script = "#!/bin/sh\necho theirs\n"
    made = group() if target is GROUP else node_group("CUSTOM")
    locked = {"DeviceName": "/dev/xvdb", "Ebs": {"VolumeSize": 50, "Encrypted": True, "KmsKeyId": "alias/theirs"}}
    theirs = {
        **versions(made)[0]["LaunchTemplateData"],
        "UserData": base64.b64encode(script.encode()).decode(),
        "BlockDeviceMappings": [*DISKS, locked],
    }
    raw("ec2").create_launch_template_version(LaunchTemplateId=made, LaunchTemplateData=theirs)
    if target is GROUP:
        specification = {"LaunchTemplateId": made, "Version": "2"}
        raw("autoscaling").update_auto_scaling_group(AutoScalingGroupName="workers", LaunchTemplate=specification)
    else:
        fleets.versions["nodes"] = "2"
    [kind] = target
    project(tmp_path, [{kind: {**target[kind], "throughput": 500, "iops": 6000}}], DATA)
    code, shown = parbake(capsys, "rollout", DATA.key, "--dry-run")
    assert "(mount, " in shown["targets"][0]["diff"], "and not kilobytes of base64"
    assert ["had the key alias/theirs" in each for each in shown["targets"][0]["cautions"]] == [True]
    code, _ = parbake(capsys, "rollout", DATA.key, *QUICK)
    assert code == 0
    new = versions(made)[-1]
    assert part_of(user_data(new), "mount") == mount.user_data("", uuid=filesystem_uuid(DATA.key))
    assert script in user_data(new)
    ebs = new["LaunchTemplateData"]["BlockDeviceMappings"][1]["Ebs"]
    assert (ebs["SnapshotId"], ebs["Throughput"], ebs["Iops"]) == ("snap-9", 500, 6000)
    assert not {"Encrypted", "KmsKeyId"} & set(ebs), "EC2 takes no key without `Encrypted`, and neither with a snapshot"
    assert parbake(capsys, "rollout", DATA.key, *QUICK)[1]["changed"] is False
    assert parbake(capsys, "rollout", DATA.key, "--no-mount", *QUICK)[0] == 0
    assert user_data(versions(made)[-1]) == script
    assert parbake(capsys, "rollback", *QUICK)[0] == 0
    assert part_of(user_data(versions(made)[-1] if target is NODES else new), "mount")


@pytest.mark.parametrize("target", [GROUP, NODES], ids=["asg", "nodegroup"])
def test_where_user_data_cannot_mount_a_volume(
    fleets: Fleets, tmp_path: Path, capsys: pytest.CaptureFixture[str], target: dict[str, Any]
) -> None:
    """A bake that nothing would use is not rolled out."""
    ami = raw("ec2").register_image(Name="bottlerocket-aws-k8s-1.36-x86_64-v1", RootDeviceName="/dev/xvda")["ImageId"]
    made = group(image=ami) if target is GROUP else node_group("BOTTLEROCKET_x86_64", image="")
    project(tmp_path, [target], DATA)
    code, error = parbake(capsys, "rollout", DATA.key, *QUICK)
    assert (code, len(versions(made))) == (1, 1)
    assert (
        "which mounts only volumes in its own layout" in error["message"]
        or "whose nodes cannot mount" in error["message"]
    )
    del fleets


def test_nodes_that_would_not_use_the_bake_are_refused(
    fleets: Fleets, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = group()
    config = (
        "apiVersion: node.eks.aws/v1alpha1\nkind: NodeConfig\n"
        "spec: {featureGates: {FastImagePull: true}, instance: {localStorage: {strategy: RAID0}}}\n"
    )
    theirs = {**versions(made)[0]["LaunchTemplateData"], "UserData": base64.b64encode(config.encode()).decode()}
    raw("ec2").create_launch_template_version(LaunchTemplateId=made, LaunchTemplateData=theirs)
    specification = {"LaunchTemplateId": made, "Version": "2"}
    raw("autoscaling").update_auto_scaling_group(AutoScalingGroupName="workers", LaunchTemplate=specification)
    project(tmp_path, [GROUP], DATA)
    code, error = parbake(capsys, "rollout", DATA.key, *QUICK)
    assert (code, len(versions(made))) == (1, 2)
    assert "FastImagePull makes soci the snapshotter" in error["message"]
    code, shown = parbake(capsys, "rollout", DATA.key, "--dry-run", "--force")
    assert (code, ["copies the baked store" in each for each in shown["targets"][0]["refusals"]]) == (0, [False, True])
    del fleets


def test_user_data_that_is_not_text_stays_as_it_is() -> None:
    offer = Offer(artefacts=("a",), keys=("k",), architectures=("amd64",), snapshot="snap-1", snapshot_size=GIB)
    data = {"UserData": base64.b64encode(gzip.compress(b"#!/bin/sh\n")).decode()}
    assert "UserData" not in new_data(data, offer, device="/dev/xvdb")
    with pytest.raises(InputError, match="is not text") as raised:
        new_data(data, offer.model_copy(update={"mount": "#cloud-boothook\n"}), device="/dev/xvdb")
    assert "mount: false" in raised.value.hint


@pytest.mark.parametrize("kind", ["AL2023_x86_64_STANDARD", "BOTTLEROCKET_x86_64"])
def test_a_volume_of_bottlerockets_own_where_eks_chooses_the_image(
    fleets: Fleets, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    node_group(kind, image="")
    project(tmp_path, [NODES], BOTTLEROCKETS)
    code, done = parbake(capsys, "rollout", BOTTLEROCKETS.key, *QUICK)
    assert (code, fleets.versions) == ((0, {"nodes": "2"}) if kind.startswith("BOTTLE") else (1, {}))
    if code:
        assert f"EKS runs this group with amiType {kind}" in done["message"]


def test_a_mapping_that_was_encrypted_is_told(
    fleets: Fleets, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    del fleets
    disk = {"DeviceName": "/dev/xvdb", "Ebs": {"Encrypted": True, "VolumeSize": 50}}
    monkeypatch.setattr(f"{group.__module__}.DISKS", [*DISKS, disk])
    group()
    project(tmp_path, [GROUP], DATA)
    code, done = parbake(capsys, "rollout", DATA.key, "--dry-run")
    assert code == 0, done
    assert "/dev/xvdb was `encrypted: true`" in json.dumps(done)

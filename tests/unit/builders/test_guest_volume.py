"""The guest's script where the artefact is a volume: a disk of its own, found by what it is, sealed, proven."""

from __future__ import annotations

from typing import Any

import pytest

from parbake.aws import limits
from parbake.builders.guest import user_data
from parbake.core.model import GIB, Artefact, Image, Plan
from parbake.machine import disk
from standins.guests import Node, bake
from standins.plans import image
from tests.unit.builders.test_guest import node, plan_of, read

__all__ = ["node"]


def volume_of(*images: Image, **more: Any) -> Plan:
    return plan_of(*images, artefact=Artefact(kind="volume", format="snapshot"), **more)


def test_a_volume_is_a_disk_of_its_own_that_takes_the_pause_image_along(node: Node) -> None:
    app, pause = image("registry.example/app:1"), "localhost/kubernetes/pause:latest"
    plan = volume_of(app)
    node.second_disk(plan.size)
    node.put(f"{pause} sha256:p\nnode/agent:1 sha256:a\n---\n{pause}\n")
    (node.root / "etc").mkdir()
    (node.root / "etc/machine-id").write_text("0123\n")
    text = node.run(bake(plan))
    read(text).judge([app], text)
    assert node.stored() == f"{pause} sha256:p\nnode/agent:1 sha256:a\n---\n{pause}\n", (
        "the node's own store is as it was"
    )
    held, _, pinned = node.stored(on="volume-").partition("---\n")
    assert {line.split()[0] for line in held.splitlines()} == {pause, *app.names}
    assert set(pinned.split()) == {pause, *app.names}
    store = node.root / "var/lib/containerd"
    order = [
        "systemctl stop containerd",
        next(call for call in node.calls if call.startswith("mkfs.ext4 ") and call.endswith(" /dev/nvme1n1")),
        f"mount /dev/nvme1n1 {store}",
        f"umount {store}",
        "systemctl poweroff --force",
    ]
    assert sorted(order, key=node.calls.index) == order
    assert disk.filesystem_uuid(plan.key) in order[1]
    assert (node.root / "etc/machine-id").read_text() == "0123\n", "the machine is thrown away"


def test_a_machine_that_cannot_make_the_file_system_says_so(node: Node) -> None:
    plan = plan_of(image(), artefact=Artefact(kind="volume", format="snapshot", filesystem="xfs"))
    node.second_disk(plan.size)
    text = node.run(bake(plan), PATH=f"{node.folder / 'bin'}:/usr/bin:/bin")
    assert "no mkfs.xfs: write another filesystem" in read(text).failure


def test_a_volume_without_a_pause_image_is_warned_of(node: Node) -> None:
    plan = volume_of(image())
    node.second_disk(plan.size)
    [warning] = read(node.run(bake(plan))).warnings
    assert "no pinned pause image" in warning


def test_a_volume_with_a_pause_image_of_its_own_takes_none(node: Node) -> None:
    plan = volume_of(image(), sandbox=image("registry.example/pause:3"))
    node.second_disk(plan.size)
    node.put("localhost/kubernetes/pause:latest sha256:p\n---\nlocalhost/kubernetes/pause:latest\n")
    console = read(node.run(bake(plan)))
    assert console.finished
    assert not console.warnings
    assert "localhost/kubernetes" not in node.stored(on="volume-")


@pytest.mark.parametrize(
    ("size", "blank", "model", "said"),
    [
        (1, True, "", "no disk of 1073741824 bytes is there"),
        (GIB, False, "", "no disk of 1073741824 bytes is there"),
        (GIB, True, "Amazon EC2 NVMe Instance Storage", "no disk of 1073741824 bytes is there"),
    ],
)
def test_only_a_blank_disk_of_the_right_size_is_taken(
    node: Node, size: int, blank: bool, model: str, said: str
) -> None:
    node.second_disk(size, blank=blank)
    folder = node.root / "sys/block/nvme1n1/device"
    folder.mkdir(parents=True)
    (folder / "model").write_text(f"{model}\n")
    assert said in read(node.run(bake(volume_of(image())))).failure
    assert not [call for call in node.calls if call.startswith(("mkfs", "mount"))]


def test_two_disks_that_could_be_the_volume_are_left_alone(node: Node) -> None:
    node.second_disk(GIB)
    (node.fake / "disks").write_text(f"nvme1n1 {GIB} disk\nnvme2n1 {GIB} disk\n")
    (node.fake / "blank").write_text("/dev/nvme1n1\n/dev/nvme2n1\n")
    assert "more than one disk could be" in read(node.run(bake(volume_of(image())))).failure
    assert not [call for call in node.calls if call.startswith("mkfs")]


def test_a_volume_is_proven_where_nodes_mount_it(node: Node) -> None:
    app = image("registry.example/app:1")
    plan = volume_of(app)
    node.second_disk(plan.size, blank=False)
    node.put(f"{app.names[0]} {app.target.digest}\n---\n{app.names[0]}\n", on="volume-")
    text = node.run(user_data(plan, "run-1", "verify", limit=600, registries={}))
    console = read(text)
    console.judge([app], text, mode="verify")
    assert console.proved[app.names[0]]["problems"] == []
    assert f"blkid -U {disk.filesystem_uuid(plan.key)}" in node.calls
    assert not [call for call in node.calls if call.startswith("mkfs")]


def test_a_machine_image_is_told_nothing_of_volumes() -> None:
    assert "mkfs" not in bake(plan_of(image())).decode()
    many = [image(f"registry.example/{number}:1") for number in range(60)]
    data = user_data(volume_of(*many), "run-1", "verify", limit=600, registries={})
    assert len(data) <= limits.USER_DATA_LIMIT

"""A node that cloud-init sets up mounts a baked volume by its user data alone: grown, pinned, and started offline.

Without the disk it keeps its own store: ``tests/vm/machine/base/test_base.py``.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from parbake.containerd import Daemon, connect
from parbake.containerd.labels import PINNED
from parbake.core import run
from parbake.machine import disk
from parbake.machine.vm import Drive, Machine
from tests.fakes.base import default_base, in_journal, mounting
from tests.fakes.containerd_support import busybox, fill, pause

__all__ = ["default_base"]
pytestmark = [pytest.mark.root, pytest.mark.vm, pytest.mark.slow(90)]

GIB = 1 << 30
APP, PAUSE = "registry.test/team/app:1", "localhost/parbake/pause:1"


def test_a_small_volume_on_a_large_disk_is_the_nodes_store(default_base: Path, tmp_path: Path) -> None:
    """4 GiB were baked; the disk has 20 GiB. The node starts containerd beside cloud-init: it runs by then."""
    volume = tmp_path / "volume.raw"
    disk.make_filesystem(volume, "ext4", 4 * GIB, name="volume")
    run.run(["tune2fs", "-L", "parbake", str(volume)])
    with (
        disk.private_mounts(),
        disk.mount(volume, tmp_path / "mnt", filesystem="ext4") as mounted,
        Daemon(mounted.path, tmp_path / "run") as daemon,
        daemon.client() as client,
    ):
        fill(client, APP, busybox({"greeting": b"hello from the bake\n"}))
        fill(client, PAUSE, pause())
    with volume.open("r+b") as file:
        file.truncate(20 * GIB)

    drives = [Drive(volume, "volume", "raw")]
    with Machine(default_base, tmp_path / "vm", seed=mounting(PAUSE), drives=drives) as machine:
        machine.wait_agent()
        guest = machine.guest
        within = 120 * machine.stretch
        # Said once containerd runs on the volume: until then it may still run on the node's own store.
        assert in_journal(machine, "is mounted at /var/lib/containerd")
        with connect(machine.containerd(), patience=machine.stretch) as client:
            images = {each.name: each.labels for each in client.images.list()}
            assert images[APP].items() >= PINNED.items()
            assert images[PAUSE].items() >= PINNED.items()
        size = int(guest.check(["df", "--output=size", "-B1", "/var/lib/containerd"]).split()[-1])
        assert size >= 0.93 * 20 * GIB, "all of the disk but ext4's tables of inodes, one of 256 bytes for each 4 KiB"
        options = guest.check(["findmnt", "-no", "OPTIONS", "/var/lib/containerd"])
        assert "noatime" in options
        started = ["ctr", "-n", "k8s.io", "run", "--rm", APP, "once", "/bin/busybox", "cat", "/greeting"]
        assert "hello from the bake" in guest.check(started, timeout=within), "there is no network to pull it from"
        unit = guest.check(["systemctl", "show", "-p", "Before", "--value", "parbake-mount.service"], timeout=within)
        assert "containerd.service" in unit, "from the second boot on systemd mounts it before the runtime starts"

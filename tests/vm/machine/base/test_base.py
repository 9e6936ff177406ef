"""The default base boots by BIOS with cloud-init, offline, into a node whose containerd waits for nothing.

By UEFI, and without cloud-init, it boots in ``tests/vm/verify/test_verify.py``. Its user data mounts a baked volume: at
the boot no disk is labelled as one, and the node keeps its own store; then one is.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from parbake.containerd import Daemon, connect
from parbake.containerd.labels import PINNED
from parbake.core import run
from parbake.core.events import Events
from parbake.core.model import GIB
from parbake.machine import disk
from parbake.machine.vm import Drive, Machine
from parbake.verify import Verification
from tests.fakes.base import check_node, default_base, in_journal, mounting
from tests.fakes.containerd_support import busybox, fill, pause

__all__ = ["default_base"]

pytestmark = [pytest.mark.root, pytest.mark.vm, pytest.mark.slow(120)]

APP, PAUSE = "registry.test/team/app:1", "localhost/parbake/pause:1"


def reaches(machine: Machine, host: str, port: socket.socket | None) -> str:
    """Say why a place cannot be connected to from the machine; empty: it can."""
    number = port.getsockname()[1] if port else 80
    program = f"import socket; socket.create_connection(('{host}', {number}), timeout=10)"
    ran = machine.guest.run(["python3", "-c", program], timeout=30 * machine.stretch)
    if ran.code == 0 and port:  # QEMU's network says yes before it knows
        port.settimeout(10)
        try:
            port.accept()[0].close()
        except TimeoutError:
            return "nobody came"
    return "" if ran.code == 0 else ran.output


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4 GiB were baked; the disk has 20 GiB."""
    folder = tmp_path_factory.mktemp("volume")
    made = folder / "volume.raw"
    disk.make_filesystem(made, "ext4", 4 * GIB, name="volume")
    run.run(["tune2fs", "-L", "later", str(made)])
    with (
        disk.private_mounts(),
        disk.mount(made, folder / "mnt", filesystem="ext4") as mounted,
        Daemon(mounted.path, folder / "run") as daemon,
        daemon.client() as client,
    ):
        fill(client, APP, busybox({"greeting": b"hello from the bake\n"}))
        fill(client, PAUSE, pause())
    with made.open("r+b") as file:
        file.truncate(20 * GIB)
    return made


@pytest.fixture(scope="module")
def rehearsal(default_base: Path, volume: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Verification]:
    """The default base as a file: a machine image, no plan, nothing in its store, not even a sandbox image."""
    folder = tmp_path_factory.mktemp("base")
    image = folder / "base.qcow2"
    run.run(["qemu-img", "convert", "-O", "qcow2", str(default_base), str(image)])
    made = Verification(image, None, events=Events(), folder=folder)
    made.node.machine._seed = mounting(PAUSE)
    made.node.machine._drives = [Drive(volume, "volume")]
    with made:
        yield made
        console = made.node.machine.console_log.read_text(errors="replace")
        assert ": not found" not in console, "a script lacks a program"
        assert made.node.machine.power_off()


def test_the_base_boots_by_bios_with_cloud_init_as_a_bare_disk_is_verified(rehearsal: Verification) -> None:
    machine, guest, verdict = rehearsal.node.machine, rehearsal.node.machine.guest, rehearsal.verdict()
    assert verdict.images == ()
    assert verdict.problems == ("there is no image in the runtime's store (namespace k8s.io)",)
    assert not verdict.passed
    [warning] = verdict.warnings
    assert "no sandbox (pause) image localhost/parbake/pause:1" in warning
    assert verdict.boot_seconds is not None

    lent, other = (socket.create_server(("127.0.0.1", 0)) for _ in range(2))
    machine.attach_network(lent.getsockname()[1])
    waited = guest.run(
        ["sh", "-c", "until ip -4 -o address show scope global | grep 10.0.2.15; do sleep 0.5; done"],
        timeout=60 * machine.stretch,
    )
    assert waited.code == 0, "a network card that is plugged in later is configured by DHCP"
    with lent, other:
        assert reaches(machine, "10.0.2.2", lent) == "", "the port that was lent"
        assert reaches(machine, "10.0.2.2", other), "another port of this machine's loopback"
        assert reaches(machine, "169.254.169.254", None), "the metadata service of a cloud"
    check_node(machine, uefi=False)
    assert in_journal(machine, "no disk labelled parbake within 8 s: the node keeps its own store, and pulls")
    assert guest.run(["mountpoint", "-q", "/var/lib/containerd"]).code != 0


def test_a_small_volume_on_a_large_disk_is_the_nodes_store(rehearsal: Verification) -> None:
    """Grown, pinned, and started offline, by the program that cloud-init runs; the runtime runs by then."""
    machine, guest = rehearsal.node.machine, rehearsal.node.machine.guest
    within = 120 * machine.stretch
    guest.check(["e2label", "/dev/disk/by-id/virtio-volume", "parbake"])
    guest.check(["sh", "/etc/parbake/mount.sh"], timeout=within)
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
    assert "hello from the bake" in guest.check(started, timeout=within), "no registry serves it"

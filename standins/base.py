"""The default base, built once for all tests (and for the demo) in the user's cache."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from parbake.core.events import Events
from parbake.core.workspace import cache_folder
from parbake.images.pause import REFERENCE
from parbake.machine import base, disk
from parbake.machine.vm import Machine
from parbake.machine.vm.seed import Seed, agent_seed
from parbake.rollouts import mount
from parbake.rollouts.userdata import with_parts
from parbake.verify.booted import BootedNode
from standins.newer import programs_of_newer


@pytest.fixture(scope="session")
def default_base() -> Path:
    """The raw disk of the default base. Never write to it."""
    return base.ensure(cache_folder(), Events())


def check_node(node: BootedNode, *, uefi: bool) -> None:
    """Check that a machine with the default base came up whole, by this firmware, and holds no secrets."""
    machine, guest = node.machine, node.machine.guest
    assert guest.run(["test", "-d", "/sys/firmware/efi"]).code == (0 if uefi else 1)
    within = 120 * machine.stretch
    state = guest.run(["systemctl", "is-system-running", "--wait"], timeout=within).output.strip()
    assert state == "running", guest.run(["systemctl", "--failed", "--no-legend"]).output
    assert len(guest.read("/etc/machine-id").strip()) == 32
    assert "console=ttyS0" in guest.read("/proc/cmdline").decode()
    assert guest.check(["findmnt", "-no", "FSTYPE,OPTIONS", "/"]).split()[0] == "ext4"
    assert node.settings.sandbox == REFERENCE
    assert guest.check(["passwd", "--status", "root"]).split()[:2] == ["root", "L"]
    assert guest.run(["sh", "-c", "ls /etc/ssh/ssh_host_* /root/.ssh /home/*/.ssh"]).code != 0


LEFT_OUT = (
    "dev-hugepages.mount",
    "dev-mqueue.mount",
    "run-lock.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "e2scrub_reap.service",
    "getty@tty1.service",
    "kmod-static-nodes.service",
    "serial-getty@ttyS0.service",
    "systemd-journal-flush.service",
    "systemd-logind.service",
    "systemd-modules-load.service",
    "systemd-random-seed.service",
    "systemd-resolved.service",
    "systemd-timesyncd.service",
    "systemd-tmpfiles-setup-dev-early.service",
    "systemd-tmpfiles-setup-dev.service",
    "systemd-user-sessions.service",
)
DEVICES = """\
[Service]
ExecStart=
ExecStart=-udevadm trigger --type=devices --action=add --prioritized-subsystem=module,block,tpmrm,net,input {}
"""
OTHER_DEVICES = (
    "ata_device",
    "ata_link",
    "ata_port",
    "clockevents",
    "clocksource",
    "cpu",
    "event_source",
    "machinecheck",
    "memory",
    "tty",
    "vc",
    "wakeup",
    "workqueue",
)


def lean(root: Path) -> None:
    """Leave out of a node's boot what no test looks at, nobody who logs in needs, and emulation takes seconds for.

    For nodes that a test makes: the default base itself is booted as it is.
    """
    units = root / "etc/systemd/system"
    for unit in LEFT_OUT:
        (units / unit).unlink(missing_ok=True)
        (units / unit).symlink_to("/dev/null")
    trigger = units / "systemd-udev-trigger.service.d/test.conf"  # read after the base's own
    trigger.parent.mkdir(exist_ok=True)
    trigger.write_text(DEVICES.format(" ".join(f"--subsystem-nomatch={name}" for name in OTHER_DEVICES)))


def lean_node(default_base: Path, image: Path, change: Callable[[Path], None] = lambda _: None) -> Path:
    """Make the image of a node of the user's own: the default base, lean, and what ``change`` does to its root."""
    disk.copy_sparse(default_base, image, Events())
    with disk.private_mounts():
        root = disk.find_root(image)
        at, kind = image.with_suffix(".mnt"), root.filesystem
        with disk.mount(image, at, offset=root.start, size=root.size, filesystem=kind) as mounted:
            lean(mounted.path)
            change(mounted.path)
    return image


PAUSE = "localhost/kubernetes/pause"
NEWER_CONFIG = f"""\
version = 3
[plugins."io.containerd.cri.v1.images"]
discard_unpacked_layers = true
[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "{PAUSE}"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
SystemdCgroup = true
"""
"""How the nodes of EKS's AL2023 configure theirs, in what matters here."""


def newer_node(default_base: Path, image: Path, *, pause: str = PAUSE) -> Path:
    """Make the image of a node as people run them today: containerd 2, configured in version 3 of the format."""
    programs = programs_of_newer()

    def change(root: Path) -> None:
        for each in programs:
            shutil.copy(each, root / "usr/bin" / each.name)
        (root / "etc/containerd/config.toml").write_text(NEWER_CONFIG.replace(PAUSE, pause))

    return lean_node(default_base, image, change)


def mounting(pause: str) -> Seed:
    """Return what a cloud would start a node with that mounts a baked volume: one user data of several parts."""
    seed = agent_seed()
    return Seed(with_parts(seed.user_data, {"mount": mount.user_data(pause)}), seed.files)


def in_journal(machine: Machine, line: str) -> bool:
    """Tell whether the node's journal gets the line: while journald moves it to the disk it reads as truncated."""
    until = time.monotonic() + 60 * machine.stretch
    while time.monotonic() < until:
        said = machine.guest.run(["journalctl", "--no-pager", "-o", "cat", "-t", "parbake-mount"])
        if line in said.output:
            return True
        time.sleep(0.5)
    return False

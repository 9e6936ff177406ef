"""Small disk images of machines: every kind of partition table and file system that a base may have."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Literal

from parbake.machine import disk

MIB = 1 << 20
Label = Literal["gpt", "dos", ""]

LINUX = {"gpt": "0FC63DAF-8483-4772-8E79-3D69D8477DE4", "dos": "83"}
SMALLEST = {"ext4": 24 * MIB, "xfs": 320 * MIB}


def sh(*command: str | Path, text: str = "") -> str:
    """Run a program; its words when it fails."""
    done = subprocess.run(list(map(str, command)), input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def root_tree(folder: Path) -> Path:
    """Make the least that looks like a root: an os-release behind its usual link, and a file to recognise."""
    (folder / "etc").mkdir(parents=True, exist_ok=True)
    (folder / "usr/lib").mkdir(parents=True)
    (folder / "usr/lib/os-release").write_text("ID=sample\n")
    (folder / "etc/os-release").symlink_to("../usr/lib/os-release")
    (folder / "etc/canary").write_text("still here")
    return folder


def filesystem(path: Path, kind: str, tree: Path, size: int = 0) -> Path:
    """Make a file system image that holds ``tree``."""
    size = size or SMALLEST[kind]
    with path.open("wb") as file:
        file.truncate(size)
    if kind == "ext4":
        sh("mke2fs", "-q", "-F", "-t", "ext4", "-d", tree, path)
        return path
    sh("mkfs.xfs", "-q", path)
    with disk.private_mounts(), disk.mount(path, path.with_suffix(".mnt"), filesystem=kind) as mounted:
        sh("cp", "-a", f"{tree}/.", mounted.path)
    return path


def node_tree(folder: Path, *, config: str = "", containerd: bool = True) -> Path:
    """Make the root of a node that ran once: a containerd with this ``config``, and all that one machine leaves."""
    root_tree(folder)
    files = {
        "etc/machine-id": "0123456789abcdef0123456789abcdef\n",
        "etc/hostname": "builder-7\n",
        "etc/resolv.conf": "nameserver 10.0.0.2\n",
        "etc/ssh/sshd_config": "PermitRootLogin no\n",
        "etc/ssh/ssh_host_ed25519_key": "private",
        "etc/ssh/ssh_host_ed25519_key.pub": "public",
        "var/lib/cloud/instances/i-1/user-data.txt": "#!/bin/sh\n",
        "var/lib/dhcp/dhclient.leases": "lease {}\n",
        "var/log/syslog": "a line\n",
        "root/.bash_history": "docker login\n",
        "root/.docker/config.json": "{}",
    }
    if containerd:
        files["usr/bin/containerd"] = "#!/bin/sh\n"
    if config:
        files["etc/containerd/config.toml"] = config
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


def machine(
    path: Path, label: Label, kind: str, tree: Path, *, behind: bool = False, small: bool = True, size: int = 0
) -> Path:
    """Make a disk with a root file system in it: a small partition first, ``behind``: another one after the root.

    ``size`` is that of the root file system in bytes.
    """
    inner = filesystem(path.with_suffix(".fs"), kind, tree, size)
    if not label:
        return inner.rename(path)
    size = inner.stat().st_size
    lines = [f"label: {label}", "unit: sectors"]
    if small:
        lines.append(f"start=2048, size=8192, type={LINUX[label]}")
    root = f"start=10240, size={size // 512}, type={LINUX[label]}"
    if label == "gpt":
        root += ', name="the root", uuid=11111111-2222-3333-4444-555555555555, attrs="LegacyBIOSBootable"'
    lines.append(f"{root}, bootable" if label == "dos" else root)
    if behind:
        lines.append(f"start={10240 + size // 512}, size=2048, type={LINUX[label]}")
    with path.open("wb") as file:
        file.truncate(5 * MIB + size + 4 * MIB)
    sh("sfdisk", "-q", path, text="\n".join(lines) + "\n")
    with path.open("r+b") as file, inner.open("rb") as source:
        file.seek(10240 * 512)
        shutil.copyfileobj(source, file, MIB)
    inner.unlink()
    return path


def loops_of(image: Path) -> str:
    """Return what losetup lists for a file: empty when no loop device uses it."""
    return sh("losetup", "--associated", image)

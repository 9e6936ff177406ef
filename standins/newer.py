"""What nodes run: a newer Debian's containerd, Docker, SOCI's snapshotter. `make setup` fetches them into .venv/newer.

    PROGRAMS = [pytest.param(MACHINES, id="1.7"), pytest.param(NEWER, id="2")]
    with Daemon(root, folder, containerd=program_of(which)) as daemon: ...

    install_docker(root)                                             # into the mounted root of a node

Where it could not be had, tests with it are skipped and say so; in CI they fail.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from parbake.core import run

MACHINES, NEWER = "installed", "newer"

FOLDER = Path(sys.prefix) / "newer"
_PROGRAM = FOLDER / "usr/bin/containerd"


def program_of(which: str) -> str:
    """Return the path of a containerd: the machine's own, or the newer one."""
    if which == MACHINES:
        return run.need("containerd")
    if not _PROGRAM.exists() and not os.environ.get("CI"):
        pytest.skip("no containerd 2 is in .venv/newer: `make setup` fetches it where apt has a mirror of Debian")
    assert _PROGRAM.exists(), "CI must have containerd 2: tools/fetch-newer says why it has not"
    return str(_PROGRAM)


def soci_snapshotter() -> str:
    """Return the path of SOCI's snapshotter."""
    program_of(NEWER)
    return str(FOLDER / "usr/bin/soci-snapshotter-grpc")


def programs_of_newer() -> list[Path]:
    """Return the newer containerd's programs."""
    folder = Path(program_of(NEWER)).parent
    return sorted([*folder.glob("containerd*"), folder / "ctr"])


def install_docker(root: Path) -> None:
    """Put Debian's Docker into the root of a node whose kubelet uses it; its containers are on the host's network.

    The packages' own files as they are, without the scripts that would be run: a group, and two links. Instead of
    iptables, which Docker needs for a bridge, a configuration that wants none.
    """
    program_of(NEWER)
    for name in ("usr/bin/docker", "usr/sbin/dockerd"):
        shutil.copy(FOLDER / name, root / name)
    units = root / "etc/systemd/system"
    for unit in ("docker.service", "docker.socket"):
        [path] = [each for each in FOLDER.rglob(unit) if "systemd/system" in str(each)]
        shutil.copy(path, root / "usr/lib/systemd/system" / unit)
        wants = units / ("multi-user.target.wants" if unit == "docker.service" else "sockets.target.wants")
        wants.mkdir(parents=True, exist_ok=True)
        (wants / unit).symlink_to(f"/usr/lib/systemd/system/{unit}")
    with (root / "etc/group").open("a") as file:
        file.write("docker:x:995:\n")
    (root / "etc/docker").mkdir()
    settings = {"bridge": "none", **dict.fromkeys(("iptables", "ip6tables", "userland-proxy"), False)}
    (root / "etc/docker/daemon.json").write_text(json.dumps(settings))
    program(root / "usr/local/bin/kubelet", "echo Kubernetes v1.22.17-eks-1")


def program(path: Path, text: str) -> None:
    """Write a shell script."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)

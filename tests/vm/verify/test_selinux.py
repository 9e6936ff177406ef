"""A node whose kernel enforces SELinux starts what was baked into it, and what a volume brings: one boot for both.

The policy is Debian's own, as it is: it lets a container runtime read no file without a label.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from parbake import records
from parbake.core.events import Events
from parbake.core.model import ExitProbe, Startup
from parbake.core.run import Deadline
from parbake.machine import disk
from parbake.verify import Verification
from parbake.verify.booted import RUNTIME_ROOT
from tests.fakes.base import default_base
from tests.fakes.images import Built, image, layer, push
from tests.fakes.registry import DockerRegistry
from tests.fakes.runs import bake, bakefile, traces
from tests.fakes.selinux import LABEL, enforcing_node, wrong

__all__ = ["default_base"]
pytestmark = [pytest.mark.root, pytest.mark.vm, pytest.mark.slow(200)]

WHO = ("/bin/busybox", "cat", "/proc/self/attr/current", "/proof")
STARTUP: dict[str, Any] = {"command": WHO, "up": "exit"}
PAUSE = "localhost/parbake/pause:1"


def an_image(name: str) -> Built:
    """Return an image of one layer, which is no other's."""
    return image(layer({"bin/busybox": Path("/bin/busybox").read_bytes(), "proof": f"{name}\n".encode()}))


def take_labels(root: Path, name: str) -> None:
    """Leave the layer of an image as a bake leaves it that labels nothing."""
    for proof in root.glob(f"{RUNTIME_ROOT[1:]}/*/snapshots/*/fs/proof"):
        if proof.read_text() == f"{name}\n":
            for path in proof.parent.rglob("*"):
                os.removexattr(path, LABEL, follow_symlinks=False)


def test_it_starts_what_has_labels(default_base: Path, tmp_path: Path) -> None:
    with DockerRegistry(tmp_path / "registry") as registry:
        names = {}
        for name in ("baked", "bare", "volume"):
            push(registry.url, f"team/{name}", an_image(name), "1")
            names[name] = f"{registry.host}/team/{name}:1"
        images = [{"reference": name, "startup": STARTUP} for name in names.values()]
        base = {"file": enforcing_node(default_base, tmp_path / "node.raw")}
        machine = bake(bakefile(tmp_path / "machine", images[:2], base=base, artefact="raw", sandbox=PAUSE))
        volume = bake(bakefile(tmp_path / "volume", images[2:], base="none", sandbox=PAUSE))

    node = Path(machine["artefact_path"])
    root = disk.find_root(node)
    with (
        disk.private_mounts(),
        disk.mount(node, tmp_path / "mnt", offset=root.start, size=root.size, filesystem=root.filesystem) as mounted,
    ):
        assert wrong(mounted.path) == "", "the labels are those of the base's own file_contexts"
        take_labels(mounted.path, "bare")
        assert "bin/busybox" in wrong(mounted.path)

    plan = records.read(Path(volume["record_path"])).plan
    path = Path(volume["artefact_path"])
    with Verification(path, plan, events=Events(), folder=tmp_path / "run", base=node) as verification:
        guest, cri, stretch = verification.node.machine.guest, verification.node.cri, verification.node.machine.stretch
        assert guest.read("/sys/fs/selinux/enforce") == b"1"
        verdict = verification.verdict()
        assert verdict.passed, "a volume has one label for all of it"
        assert confined(verdict.images[0].output, "volume")

        for act in (
            ["systemctl", "stop", "containerd"],
            ["umount", RUNTIME_ROOT],
            ["systemctl", "start", "containerd"],
        ):
            guest.check(act, timeout=60 * stretch)
        cri.wait_ready(Deadline(60 * stretch, "the runtime runs on the node's own store"))
        startup = Startup(command=WHO, up=ExitProbe())
        started = verification.starter.start(names["baked"], startup)
        assert started.problems == ()
        assert confined(started.output, "baked")
        [problem] = verification.starter.start(names["bare"], startup).problems
        assert "permission denied" in problem
    assert traces(tmp_path) == []


def confined(output: str, proof: str) -> bool:
    """Tell whether a container ran under the policy and read its image's file."""
    return "system_u:system_r:container_t:" in output and output.endswith(proof)

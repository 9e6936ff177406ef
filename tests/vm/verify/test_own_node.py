"""A node of the user's own: with containerd 2, its own configuration, and a kernel that enforces SELinux.

A volume is proven on it by a bake; the same machine then starts what was baked into the node itself. The policy is
Debian's own, as it is: it lets a container runtime read no file without a label. One boot for all of it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from parbake.core.model import ExitProbe, Startup
from parbake.core.run import Deadline
from parbake.machine import disk
from parbake.verify import Verification
from parbake.verify.booted import RUNTIME_ROOT
from standins.base import default_base, newer_node
from standins.further import Steps
from standins.images import Built, image, layer, push
from standins.registry import DockerRegistry
from standins.runs import bake, bakefile, parbake, traces
from standins.selinux import LABEL, enforcing_node, wrong

__all__ = ["default_base"]
pytestmark = [pytest.mark.root, pytest.mark.vm, pytest.mark.slow(150)]

WHO = ("/bin/busybox", "cat", "/proc/self/attr/current", "/proof")
STARTUP: dict[str, Any] = {"command": WHO, "up": "exit"}
PAUSE, ITS_PAUSE = "localhost/parbake/pause:1", "localhost/kubernetes/pause"
"""What is baked, and what the node's runtime looks for when it is proven."""


@dataclass(frozen=True)
class Proof:
    """What the bake of a volume said, what setfiles said of the node, and what is done in the machine afterwards.

    ``labels`` is empty where all are right, ``without`` is what is wrong once an image's are taken away.
    """

    name: str
    weights: str
    document: dict[str, Any]
    labels: str
    without: str
    steps: Steps


def an_image(name: str) -> Built:
    """Return an image of one layer, which is no other's."""
    return image(layer({"bin/busybox": Path("/bin/busybox").read_bytes(), "proof": f"{name}\n".encode()}))


def take_labels(root: Path, name: str) -> None:
    """Leave the layer of an image as a bake leaves it that labels nothing."""
    for proof in root.glob(f"{RUNTIME_ROOT[1:]}/*/snapshots/*/fs/proof"):
        if proof.read_text() == f"{name}\n":
            for path in proof.parent.rglob("*"):
                os.removexattr(path, LABEL, follow_symlinks=False)


def without_cloud_init(verification: Verification) -> None:
    """Let the node boot without: its own systemd starts the agent, and Debian's policy would not let cloud-init."""
    verification.node.machine._seed = None


def enforces(verification: Verification) -> None:
    assert verification.node.machine.guest.read("/sys/fs/selinux/enforce") == b"1"


def has_its_own_store(verification: Verification) -> None:
    """Take the volume away, and let the runtime start on what is baked into the node."""
    guest, stretch = verification.node.machine.guest, verification.node.machine.stretch
    for act in (["systemctl", "stop", "containerd"], ["umount", RUNTIME_ROOT], ["systemctl", "start", "containerd"]):
        guest.check(act, timeout=60 * stretch)
    verification.node.cri.wait_ready(Deadline(60 * stretch, "the runtime runs on the node's own store"))
    assert verification.provide_sandbox() == ((), ())


def starts_what_has_labels(name: str, verification: Verification) -> None:
    started = verification.starter.start(name, Startup(command=WHO, up=ExitProbe()))
    assert started.problems == ()
    assert confined(started.output, "baked")


def does_not_start_what_has_none(name: str, verification: Verification) -> None:
    [problem] = verification.starter.start(name, Startup(command=WHO, up=ExitProbe())).problems
    assert "permission denied" in problem


@pytest.fixture(scope="module")
def proof(default_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proof]:
    folder = tmp_path_factory.mktemp("node")
    newer = newer_node(default_base, folder / "newer.raw", pause=PAUSE)
    base = {"file": enforcing_node(newer, folder / "enforcing.raw")}
    newer.unlink()
    with DockerRegistry(folder / "registry") as registry, pytest.MonkeyPatch.context() as patch:
        for name in ("baked", "bare", "volume"):
            push(registry.url, f"team/{name}", an_image(name), "1")
        push(registry.url, "team/weights", image(layer({"models/": None, "models/weights": b"1" * 9000})), "1")
        baked, bare, name, weights = (
            f"{registry.host}/team/{name}:1" for name in ("baked", "bare", "volume", "weights")
        )
        machine = bake(bakefile(folder / "machine", [baked, bare], base=base, artefact="raw", sandbox=PAUSE))
        node = folder / "node.raw"
        Path(machine["artefact_path"]).rename(node)
        root = disk.find_root(node)
        with (
            disk.private_mounts(),
            disk.mount(node, folder / "mnt", offset=root.start, size=root.size, filesystem=root.filesystem) as mounted,
        ):
            labels = wrong(mounted.path)
            config = mounted.path / "etc/containerd/config.toml"  # as a node's configuration comes with its start
            config.write_text(config.read_text().replace(PAUSE, ITS_PAUSE))
            take_labels(mounted.path, "bare")
            without = wrong(mounted.path)
        images = [
            {"reference": name, "startup": STARTUP},
            {"reference": weights, "startup": {"up": {"mounted": "/models/weights"}}},
        ]
        steps = Steps(
            {
                "enforces": enforces,
                "own store": has_its_own_store,
                "baked": partial(starts_what_has_labels, baked),
                "bare": partial(does_not_start_what_has_none, bare),
            },
            prepare=without_cloud_init,
        )
        steps.join(patch, "parbake.verify.verify")
        path = bakefile(folder / "volume", images, base="none", verify={"base": node})
        document = parbake("bake", "-f", path, "--json").good()
    yield Proof(name, weights, document, labels, without, steps)
    assert traces(folder) == []


def test_a_volume_is_proven_on_the_users_own_node(proof: Proof) -> None:
    verdict = proof.document["verdict"]
    assert verdict["passed"], verdict
    assert verdict["base"] == "node.raw"
    assert verdict["runtime"].startswith("containerd 2.")
    [app, by_digest, volume, volume_by_digest, sandbox] = verdict["images"]
    assert (app["pinned"], app["unpacked"], app["problems"]) == (True, True, [])
    assert app["start_seconds"] > 0
    assert by_digest["reference"].startswith(proof.name.removesuffix(":1") + "@sha256:")
    assert (by_digest["problems"], volume_by_digest["problems"], sandbox["problems"]) == ([], [], [])
    assert (volume["reference"], volume["problems"]) == (proof.weights, []), "a pod has it as a volume"
    assert volume["start_seconds"] > 0
    shown = json.loads(parbake("show", proof.document["record_path"], "--json").out)
    assert "containerd 2." in json.dumps(shown)


def test_a_volume_has_one_label_for_all_of_it(proof: Proof) -> None:
    proof.steps.check("enforces")
    assert confined(proof.document["verdict"]["images"][0]["output"], "volume")


def test_the_node_keeps_its_own_store_below_the_volume(proof: Proof) -> None:
    proof.steps.check("own store")


def test_what_is_baked_into_the_node_has_the_labels_of_its_own_lists(proof: Proof) -> None:
    assert proof.labels == ""
    proof.steps.check("baked")


def test_without_labels_nothing_starts(proof: Proof) -> None:
    """What the test of the labels would miss if the policy were not enforced."""
    assert "bin/busybox" in proof.without
    proof.steps.check("bare")


def confined(output: str, proof: str) -> bool:
    """Tell whether a container ran under the policy and read its image's file."""
    return "system_u:system_r:container_t:" in output and output.endswith(proof)

"""A node whose kubelet uses Docker, as a machine: `builder: qemu` bakes it with its own Docker, and it proves itself.

The registry wants a login and has an authority of its own, which only this host knows; the machine that is proven has
no network. Scripts that log in by themselves meet a real Docker in tests/system/builders/test_ecr.py.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from parbake import records
from parbake.core.events import Events
from parbake.core.model import EBS_BLOCK, Base, Verdict
from parbake.machine.disk import data_blocks
from parbake.verify import Verification
from standins.base import default_base, lean_node
from standins.every_layer_feature import busybox_layer
from standins.images import image, index, push
from standins.loopback import address
from standins.newer import install_docker
from standins.registry import DockerRegistry, certificates
from standins.runs import bake, bakefile, private_places, traces

__all__ = ["address", "default_base", "private_places"]

pytestmark = [pytest.mark.root, pytest.mark.vm, pytest.mark.slow(200)]

USER, WORD = "ann", "correct-horse-battery-staple"
# Of cloud-init's modules, what starts the script: AMIs of nodes have such a list. All of them run in test_ec2_pipeline.
MODULES = {"cloud_init_modules": ["bootcmd"], "cloud_config_modules": [], "cloud_final_modules": ["scripts_user"]}
SAYS = {"Entrypoint": ["/bin/busybox", "sh", "-c", "echo app is ready; exec /bin/busybox sleep 1000"]}


@dataclass(frozen=True)
class Outcome:
    """A bake, and what was said of it."""

    artefact: Path
    baked: Verdict


def docker_node(root: Path) -> None:
    """Make a root that of such a node."""
    install_docker(root)
    (root / "etc/cloud/cloud.cfg.d/95_node.cfg").write_text(json.dumps(MODULES))  # JSON is YAML


@pytest.fixture(scope="module")
def outcome(default_base: Path, tmp_path_factory: pytest.TempPathFactory, address: str) -> Iterator[Outcome]:
    folder = tmp_path_factory.mktemp("docker")
    authority = certificates(folder / "tls", names=f"IP:{address}")
    both = index(image(busybox_layer(), config=SAYS), image(busybox_layer(), platform="linux/arm64", config=SAYS))
    with (
        DockerRegistry(folder / "own", tls=authority, users={USER: WORD}, address=address) as registry,
        pytest.MonkeyPatch.context() as patch,
    ):
        push(registry.url, "team/app", both, "1", user=(USER, WORD), ca=registry.ca)
        login = base64.b64encode(f"{USER}:{WORD}".encode()).decode()
        (folder / "login").mkdir()
        (folder / "login/config.json").write_text(json.dumps({"auths": {registry.host: {"auth": login}}}))
        patch.setenv("DOCKER_CONFIG", str(folder / "login"))
        patch.setenv("PARBAKE_CACHE", str(folder / "cache"))
        path = bakefile(
            folder / "here",
            [{"reference": f"{registry.host}/team/app:1", "startup": {"up": {"log": "^app is ready"}, "watch": "1s"}}],
            builder="qemu",
            base={"file": str(lean_node(default_base, folder / "node.raw", docker_node))},
            artefact="raw",
            registries={registry.host: {"ca": registry.ca}},
        )
        document = bake(path)
        artefact = Path(document["artefact_path"])
        plan = records.read(Path(document["record_path"])).plan
    offline = plan.model_copy(update={"base": Base(kind="debian")})  # which needs no cloud-init, as it did to bake
    with Verification(artefact, offline, events=Events(), folder=folder / "offline") as rehearsal:
        baked = rehearsal.verdict()
    yield Outcome(artefact, baked)
    assert traces(folder) == []


def test_a_bake_of_qemus_is_proven_through_docker(outcome: Outcome) -> None:
    """What a login of this host pulled starts after a reboot, without a network, under both of its names."""
    verdict = outcome.baked
    assert verdict.passed, verdict
    assert verdict.runtime.startswith("docker 26.")
    [proof] = verdict.images
    assert proof.output == "app is ready"
    assert proof.start_seconds is not None
    assert "Docker runs this node" in verdict.warnings[0]


def test_the_login_to_the_registry_is_not_in_the_artefact(outcome: Outcome) -> None:
    secrets = (WORD.encode(), base64.b64encode(f"{USER}:{WORD}".encode()))
    with outcome.artefact.open("rb") as file:
        for number in data_blocks(file.fileno(), outcome.artefact.stat().st_size):
            held = os.pread(file.fileno(), EBS_BLOCK + len(secrets[1]), number * EBS_BLOCK)
            assert not any(secret in held for secret in secrets)

"""A volume is proven on the image of a node of the user's own: its containerd, which is 2.x, and its configuration."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.fakes.base import default_base, newer_node
from tests.fakes.every_layer_feature import busybox_layer
from tests.fakes.images import image, layer, push
from tests.fakes.registry import DockerRegistry
from tests.fakes.runs import bakefile, parbake, traces

__all__ = ["default_base"]
pytestmark = [pytest.mark.root, pytest.mark.vm, pytest.mark.slow(90)]


def test_a_volume_is_proven_on_the_users_own_node(default_base: Path, tmp_path: Path) -> None:
    node = newer_node(default_base, tmp_path / "node.raw")
    built = image(busybox_layer(), config={"Cmd": ["/bin/busybox", "sleep", "100"]})
    with DockerRegistry(tmp_path / "registry") as registry:
        push(registry.url, "team/app", built, "1")
        push(registry.url, "team/weights", image(layer({"models/": None, "models/weights": b"1" * 9000})), "1")
        name = f"{registry.host}/team/app:1"
        weights = {"reference": f"{registry.host}/team/weights:1", "startup": {"up": {"mounted": "/models/weights"}}}
        path = bakefile(tmp_path / "here", [name, weights], base="none", verify={"base": node})
        document = parbake("bake", "-f", path, "--json").good()
    verdict = document["verdict"]
    assert verdict["passed"]
    assert verdict["base"] == "node.raw"
    assert verdict["runtime"].startswith("containerd 2.")
    [app, by_digest, volume, volume_by_digest, sandbox] = verdict["images"]
    assert (app["pinned"], app["unpacked"], app["problems"]) == (True, True, [])
    assert app["start_seconds"] > 0
    assert by_digest["reference"].startswith(name.removesuffix(":1") + "@sha256:")
    assert (by_digest["problems"], volume_by_digest["problems"], sandbox["problems"]) == ([], [], [])
    assert (volume["reference"], volume["problems"]) == (weights["reference"], []), "a pod has it as a volume"
    assert volume["start_seconds"] > 0
    shown = json.loads(parbake("show", document["record_path"], "--json").out)
    assert "containerd 2." in json.dumps(shown)
    assert traces(tmp_path) == []

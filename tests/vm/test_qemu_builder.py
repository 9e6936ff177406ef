"""The guest's script for real: the default base boots, pulls from the loopback, seals itself, and is verified."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support.baking import bakefile, parbake, traces
from tests.support.base import default_base
from tests.support.images import image, index, push
from tests.support.registry import DockerRegistry
from tests.support.variety import busybox_layer

__all__ = ["default_base"]

pytestmark = [pytest.mark.root, pytest.mark.vm, pytest.mark.slow]


@pytest.mark.usefixtures("default_base")
def test_a_machine_bakes_itself(tmp_path: Path) -> None:
    """In one boot; a second one, without a network, proves that all is there: names, digests, pins, snapshots."""
    shell = busybox_layer()
    with DockerRegistry(tmp_path / "registry") as registry:
        runs = {"Cmd": ["/bin/busybox", "sleep", "60"], "Env": ["PATH=/bin"]}
        push(registry.url, "team/app", index(image(shell, config=runs), image(shell, platform="linux/arm64")), "1")
        push(registry.url, "team/same", image(shell, config={**runs, "Labels": {"a": "b"}}), "1")
        host = registry.url.removeprefix("http://")
        images: list[str | Mapping[str, Any]] = [
            {"reference": f"{host}/team/app:1", "also_by_digest": True},
            f"{host}/team/same:1",
        ]
        path = bakefile(tmp_path / "bake", images, builder="qemu", artefact="qcow2", time_limit="5m")
        done = parbake("bake", "-f", path, "--json").good()
    assert done["builder"] == "qemu"
    assert done["verdict"]["passed"]
    assert len(done["verdict"]["images"]) == 4
    assert all(seen["pinned"] and seen["unpacked"] for seen in done["verdict"]["images"])
    assert traces(tmp_path) == []

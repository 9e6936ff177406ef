"""The guest's script for real: the default base boots, pulls from the loopback, seals itself, and is verified."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from parbake.machine.disk import BLOCK, data_blocks
from tests.fakes.base import default_base
from tests.fakes.every_layer_feature import busybox_layer
from tests.fakes.images import image, index, push
from tests.fakes.registry import DockerRegistry, certificates
from tests.fakes.runs import bakefile, parbake, traces

__all__ = ["default_base"]

pytestmark = [pytest.mark.root, pytest.mark.vm, pytest.mark.slow]


USER, WORD = "ann", "correct-horse-battery-staple"


@pytest.mark.usefixtures("default_base")
def test_a_machine_bakes_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one boot; a second one, without a network, proves that all is there: names, digests, pins, snapshots.

    The registry wants a login and has an authority of its own: neither is in the artefact.
    """
    monkeypatch.setenv("PARBAKE_USERNAME", USER)
    monkeypatch.setenv("PARBAKE_PASSWORD", WORD)
    shell, login = busybox_layer(), {"user": (USER, WORD)}
    with DockerRegistry(tmp_path / "registry", tls=certificates(tmp_path), users={USER: WORD}) as registry:
        runs = {"Cmd": ["/bin/busybox", "sleep", "60"], "Env": ["PATH=/bin"]}
        both = index(image(shell, config=runs), image(shell, platform="linux/arm64"))
        push(registry.url, "team/app", both, "1", **login, ca=registry.ca)
        same = image(shell, config={**runs, "Labels": {"a": "b"}})
        push(registry.url, "team/same", same, "1", **login, ca=registry.ca)
        images: list[str | Mapping[str, Any]] = [
            {"reference": f"{registry.host}/team/app:1", "also_by_digest": True},
            f"{registry.host}/team/same:1",
        ]
        options = {registry.host: {"ca": registry.ca, "credentials": "environment"}}
        path = bakefile(tmp_path / "bake", images, builder="qemu", artefact="raw", time_limit="5m", registries=options)
        done = parbake("bake", "-f", path, "--json").good()
    assert done["builder"] == "qemu"
    assert done["verdict"]["passed"]
    assert len(done["verdict"]["images"]) == 4
    assert all(seen["pinned"] and seen["unpacked"] for seen in done["verdict"]["images"])
    assert traces(tmp_path) == []
    artefact = Path(done["artefact_path"])
    with artefact.open("rb") as disk:
        for number in data_blocks(disk.fileno(), artefact.stat().st_size):
            held = os.pread(disk.fileno(), BLOCK + len(WORD), number * BLOCK)
            assert WORD.encode() not in held
            assert base64.b64encode(f"{USER}:{WORD}".encode()) not in held

"""One Bakefile for two platforms: an artefact for each, by one bake."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from standins.images import image, index, layer, push
from standins.registry import DockerRegistry
from standins.runs import bakefile, opened, parbake, private_places

__all__ = ["private_places"]
pytestmark = pytest.mark.root
BOTH = ["linux/amd64", "linux/arm64"]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    with DockerRegistry(tmp_path_factory.mktemp("registry")) as served:
        both = index(*(image(layer({"srv/app": each.encode()}), platform=each) for each in BOTH))
        push(served.url, "team/app", both, "1")
        yield served


def test_a_bake_for_each_platform(registry: DockerRegistry, private_places: Path) -> None:
    name = f"{registry.host}/team/app:1"
    path = bakefile(private_places, [name], base="none", sandbox="none", platforms=BOTH)
    planned = parbake("plan", "-f", path, "--json").good()
    assert [each["platform"]["architecture"] for each in planned["artefacts"]] == ["amd64", "arm64"]
    made = parbake("bake", "-f", path, "--no-verify", "--json").good()
    assert (made["changed"], [each["key"] for each in made["artefacts"]]) == (
        True,
        [each["key"] for each in planned["artefacts"]],
    )
    for each, platform in zip(made["artefacts"], BOTH, strict=True):
        folder = private_places / platform.replace("/", "-")
        with opened(Path(each["artefact_path"]), folder, "ext4") as (_, daemon), daemon.client() as client:
            (found,) = each["plan"]["images"]
            config = json.loads(client.content.read(found["config"]["digest"]))
            assert f"linux/{config['architecture']}" == platform
    again = parbake("bake", "-f", path, "--no-verify", "--json").good()
    assert again["changed"] is False
    alone = parbake("bake", "-f", path, "--no-verify", "--platform", "linux/arm64", "--json").good()
    assert alone["key"] == made["artefacts"][1]["key"]
    parbake("bake", "-f", path, "--expect-key", alone["key"], "--json").refused(
        2, "InputError", "--expect-key applies to one"
    )
    parbake("watch", "-f", path, "--once", "--json").refused(2, "InputError", "a watch applies to one artefact")

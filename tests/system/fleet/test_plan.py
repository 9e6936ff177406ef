"""What a run of a fleet would do, asked of a real registry and a store that others have filled."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from parbake.fleet.stores import Note, quarantine
from standins.command import Corner
from standins.images import image, layer, push
from standins.registry import DockerRegistry

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    with DockerRegistry(tmp_path_factory.mktemp("registry")) as running:
        for tag in ("1", "2"):
            push(running.url, "app", image(layer({"app": random.Random(1).randbytes(1 << 18), "v": tag.encode()})), tag)
        yield running


def test_each_cell_says_what_is_to_be_done(tmp_path: Path, registry: DockerRegistry) -> None:
    corner = Corner(tmp_path / "corner")
    usual = "version: 1\nbase: none\nsize: 32MiB\n"
    corner.write("one/parbake.yaml", f"{usual}images: ['{registry.host}/app:1']\n")
    corner.write("two/parbake.yaml", f"{usual}images: ['{registry.host}/app:2']\n")
    corner.write("gone/parbake.yaml", f"{usual}images: ['{registry.host}/app:3']\n")
    build = f"{usual}images: [{{reference: '{registry.host}/made:1', build: .}}]\n"
    corner.write("made/parbake.yaml", build)
    corner.write("made/Containerfile", "FROM scratch\n")
    assert corner.parbake("fleet", "init", "--json").code == 0
    made = corner.parbake("bake", "-f", "one/parbake.yaml", "--no-verify", "--json", "--store", "store")
    assert made.code == 0
    done = corner.parbake("fleet", "plan", "--json", "--progress", "none")
    assert done.code == 3
    document = done.document
    assert {each["cell"]: each["state"] for each in document["cells"]} == {
        "gone@amd64": "wrong",
        "made@amd64": "build",
        "one@amd64": "unverified",
        "two@amd64": "bake",
    }
    assert not (corner.folder / "two/artefacts").exists(), "a plan only reads"
    assert document["counts"] == {"there": 0, "unverified": 1, "bake": 1, "build": 1, "quarantined": 0, "wrong": 1}
    one = next(each for each in document["cells"] if each["cell"] == "one@amd64")
    assert one["key"] == made.document["key"]
    assert "FleetIncomplete" not in done.stdout, "one document, whatever happens"
    assert "1 of 4 cells cannot be planned" in done.said
    said = corner.parbake("fleet", "plan", "--cell", "two", "--cell", "gone", "--progress", "none")
    assert said.code == 3
    assert "two@amd64" in said.stdout
    assert "made@amd64" not in said.stdout
    assert "gone@amd64: " in said.stdout
    assert said.stdout.rstrip().endswith("2 cells: 1 to bake, 1 wrong")
    assert corner.parbake("bake", "-f", "two/parbake.yaml", "--no-verify", "--json").code == 0
    alone = corner.parbake("fleet", "plan", "--cell", "two", "--json", "--progress", "none").document["cells"][0]
    assert alone["state"] == "bake", "it is on this machine alone, and nobody else has it"
    quarantine(str(corner.folder / "store"), alone["key"], Note("two@amd64", "WorkerLost", "its workers died"))
    held = corner.parbake("fleet", "plan", "--cell", "two", "--json", "--progress", "none").document["cells"][0]
    assert held["state"] == "quarantined"
    corner.write("two/parbake.yaml", f"{usual.replace('32MiB', '33MiB')}images: ['{registry.host}/app:2']\n")
    mended = corner.parbake("fleet", "plan", "--cell", "two", "--json", "--progress", "none").document["cells"][0]
    assert (mended["state"], mended["key"] == alone["key"]) == ("bake", False), "a mended Bakefile is free by itself"

"""Volumes of parbake's own writer, baked for real: the same bytes each time, and a start from the one before."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from parbake.core.blocks import BlockList
from standins.command import Corner
from standins.images import Built, image, layer, push
from standins.registry import DockerRegistry
from standins.runs import bake, bakefile, opened, parbake, private_places
from standins.store import snapshot_folders
from standins.trees import Node, differences, scan

__all__ = ["private_places"]
pytestmark = pytest.mark.root

MIB = 1 << 20
HASHED = 512 << 10


def noise(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


@cache
def below() -> tuple[bytes, bytes]:
    bottom = layer({f"lib/{number}": noise(40_000, number) for number in range(200)})
    return bottom, layer({"opt/data": noise(3 * MIB, 1), "lib/.wh.7": b""})


def app(version: int) -> Built:
    return image(*below(), layer({"srv/app": noise(MIB, 100 + version), "srv/version": b"%d" % version}))


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    with DockerRegistry(tmp_path_factory.mktemp("registry")) as served:
        for version in range(4):
            push(served.url, "team/app", app(version), str(version))
        push(served.url, "team/other", image(layer({"etc/other": noise(2 * MIB, 50)})), "1")
        yield served


def test_the_same_plan_gives_the_same_bytes(private_places: Path, registry: DockerRegistry) -> None:
    images = [f"{registry.host}/team/app:1", f"{registry.host}/team/other:1"]
    path = bakefile(private_places, images, base="none")
    record = bake(path)
    first = Path(record["artefact_path"] + ".blocks").read_bytes()
    record = bake(path, "--force")
    assert record["parent"] == ""
    assert Path(record["artefact_path"] + ".blocks").read_bytes() == first


def test_images_alone_are_what_a_bakefile_would_say(
    private_places: Path, registry: DockerRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(private_places)
    images = [f"{registry.host}/team/app:1", f"{registry.host}/team/other:1"]
    alone = parbake("bake", "--no-verify", "-q", "--image", images[0], "--image", images[1])
    assert (alone.code, alone.err) == (0, "")
    Path("parbake.yaml").write_text(f"version: 1\nname: app\nbase: none\nimages: {images}\n")
    record = bake(Path("parbake.yaml"))
    assert (record["changed"], record["artefact"]) == (False, alone.out.strip())


def look(record: dict[str, Any], folder: Path) -> tuple[list[str], dict[str, dict[bytes, Node]], dict[str, Any]]:
    """Return the names in a volume's store, and each snapshot's tree and what containerd says that it takes."""
    with opened(Path(record["artefact_path"]), folder, "ext4") as (_, daemon), daemon.client() as client:
        names = sorted(found.name for found in client.images.list())
        chains = [found.name for found in client.snapshots.list()]
        found = {chain: scan(snapshot_folders(client, (chain,))[-1]) for chain in chains}
        return names, found, {chain: client.snapshots.usage(chain) for chain in chains}


def test_a_bake_starts_from_the_one_before(private_places: Path, registry: DockerRegistry) -> None:
    path = bakefile(private_places, [f"{registry.host}/team/app:1", f"{registry.host}/team/other:1"], base="none")
    first = bake(path)
    path = bakefile(private_places, [f"{registry.host}/team/app:2"], base="none")  # another version, and one image less
    second = bake(path)
    assert second["key"] != first["key"]
    shown = BlockList.read(Path(second["artefact_path"] + ".blocks"))
    before = BlockList.read(Path(first["artefact_path"] + ".blocks"))
    changed = len(shown.changed_since(before)) * HASHED
    assert changed < 1.5 * 1.1 * MIB + 16 * MIB
    assert second["parent"] == first["artefact"]
    names, found, usages = look(second, private_places / "look1")
    whole = bake(path, "--force")
    assert whole["parent"] == ""
    all_names, all_found, all_usages = look(whole, private_places / "look2")
    assert (names, usages, found.keys()) == (all_names, all_usages, all_found.keys())
    for chain, tree in all_found.items():
        assert differences(tree, found[chain]) == []
    assert bake(path)["changed"] is False


def test_from_scratch_and_a_parent_that_is_damaged(private_places: Path, registry: DockerRegistry) -> None:
    path = bakefile(private_places, [f"{registry.host}/team/app:1"], base="none")
    first = Path(bake(path)["artefact_path"])
    path = bakefile(private_places, [f"{registry.host}/team/app:2"], base="none")
    assert bake(path, "--from-scratch")["parent"] == ""
    with first.open("rb+") as file:  # its superblock is gone: it cannot serve, and the bake does without
        file.seek(1024)
        file.write(bytes(1024))
    for older in private_places.glob("artefacts/*"):
        if first.name not in older.name:
            older.unlink()
    again = bake(path)
    assert (again["changed"], again["parent"]) == (True, "")


@pytest.mark.parametrize("stage", ["copy", "fill", "check", "digest"])
def test_killed_while_it_starts_from_the_one_before(stage: str, tmp_path: Path, registry: DockerRegistry) -> None:
    corner = Corner(tmp_path / "corner")
    text = "version: 1\nname: node\nbase: none\nimages: ['%s/team/app:%d']\n"
    corner.write("parbake.yaml", text % (registry.host, 1))
    corner.bake()
    corner.write("parbake.yaml", text % (registry.host, 2))
    with corner.start("bake", "--no-verify", "--json", "--progress", "json") as run:
        for event in run.events():
            if event["kind"] == "stage-start" and event["name"] == stage:
                run.kill(signal.SIGKILL)
                break
        assert run.finish().code == -signal.SIGKILL
    assert corner.leaked() == []
    assert corner.bake()["changed"]
    assert corner.left() == []

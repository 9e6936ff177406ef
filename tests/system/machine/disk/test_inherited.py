"""A bake that starts from an earlier volume which somebody, or its disk, has changed makes what it would make without.

On a file system that shares blocks between copies (XFS with reflinks), where nothing of the earlier volume is read
without need, and on one that does not.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from parbake import records
from parbake.core import run
from parbake.core.blocks import BlockList
from parbake.core.events import Events
from parbake.core.model import GIB
from parbake.machine import disk
from parbake.machine.ext4 import Volume
from parbake.records import held
from standins.images import Built, image, layer, push
from standins.registry import DockerRegistry
from standins.runs import Done, bake, bakefile, parbake, private_places
from tests.system.workflows.test_volumes import noise

__all__ = ["private_places"]
pytestmark = pytest.mark.root

MIB, PAGE = 1 << 20, 4096


@cache
def big() -> bytes:
    return noise(6 * MIB, 1)


def app(version: int) -> Built:
    return image(layer({"opt/data": big()}), layer({"srv/app": noise(MIB // 4, 100 + version)}))


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    with DockerRegistry(tmp_path_factory.mktemp("registry")) as served:
        for version in range(1, 4):
            push(served.url, "team/app", app(version), str(version))
        yield served


class Place:
    """A file system in a file, mounted below a folder of the test."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.file, self.at = folder / "place.raw", folder / "place"
        self.at.mkdir()
        with self.file.open("wb") as made:
            made.truncate(4 * GIB)
        run.run([f"mkfs.{kind}", "-q", str(self.file)], timeout=60)
        run.run(["mount", "-o", "loop", str(self.file), str(self.at)])

    def unmount(self) -> None:
        run.run(["umount", str(self.at)])

    def rot(self, file: Path, place: int) -> None:
        """Change a page of a file as a disk does that loses it: no time tells, nor the pages that are in memory."""
        listed = run.run(["filefrag", "-v", f"-b{PAGE}", "-s", str(file)]).text
        found = [tuple(map(int, row)) for row in re.findall(r"^ *\d+: +(\d+)\.\. +(\d+): +(\d+)\.\.", listed, re.M)]
        physical = next(at + place // PAGE - first for first, last, at in found if first <= place // PAGE <= last)
        os.sync()
        with self.file.open("rb+") as disk_file:
            disk_file.seek(physical * PAGE)
            disk_file.write(b"\xa5" * PAGE)


@pytest.fixture
def shared(private_places: Path) -> Iterator[Place]:
    place = Place(private_places, "xfs")
    yield place
    place.unmount()


@pytest.fixture(params=["xfs", "ext4"])
def place(request: pytest.FixtureRequest, private_places: Path) -> Iterator[Path]:
    made = Place(private_places, request.param)
    yield made.at
    made.unmount()


def write(place: Path, registry: DockerRegistry, version: int) -> Path:
    return bakefile(place, [f"{registry.host}/team/app:{version}"], base="none", size="512MiB")


def again(path: Path) -> Done:
    done = parbake("bake", "-f", path, "--no-verify", "--json", "--progress", "plain")
    assert done.code == 0, done.err
    return done


def overwrite(volume: Path, place: int, data: bytes) -> None:
    """Write into a volume, and set its times back as far as anybody can."""
    before = volume.stat()
    with volume.open("rb+") as file:
        file.seek(place)
        file.write(data)
    os.utime(volume, ns=(before.st_atime_ns, before.st_mtime_ns))


def place_of(content: bytes, volume: Path) -> int:
    """Return where content lies in a volume, a part of which is in memory at a time; -1: nowhere."""
    step = 16 * MIB
    with volume.open("rb") as file:
        for start in range(0, volume.stat().st_size, step):
            file.seek(start)
            found = file.read(step + len(content) - 1).find(content)
            if found >= 0:
                return start + found
    return -1


def damage(answer: dict[str, Any]) -> str:
    """Return what a comparison with the record says of a volume."""
    volume = Path(answer["artefact_path"])
    return held.damage(volume, records.read(Path(f"{volume}.json")), Events())


def test_a_volume_is_inherited_while_nobody_writes_to_it(place: Path, registry: DockerRegistry) -> None:
    first = Path(bake(write(place, registry, 1))["artefact_path"])
    done = again(write(place, registry, 2))
    assert done.document["parent"] == first.name
    assert "warning" not in done.err
    assert place_of(big(), Path(done.document["artefact_path"])) > 0
    assert damage(done.document) == ""


def test_4_kib_that_others_wrote_into_the_earlier_volume_stand_in_no_new_one(
    place: Path, registry: DockerRegistry
) -> None:
    first = Path(bake(write(place, registry, 1))["artefact_path"])
    overwrite(first, place_of(big(), first) + 3 * MIB, b"\xa5" * PAGE)
    done = again(write(place, registry, 2))
    assert place_of(big(), Path(done.document["artefact_path"])) > 0
    assert done.document["parent"] == ""
    assert damage(done.document) == ""
    said = " ".join(done.err.split())
    assert f"warning: {first.name} is damaged (1 block of 512 KiB differs from its record: " in said
    for each in first.parent.glob(f"{first.name}*"):  # times of records are in seconds: it may count as the newer one
        each.unlink()
    assert again(write(place, registry, 3)).document["parent"] == Path(done.document["artefact_path"]).name


def test_a_volume_from_a_cache_that_others_write_is_compared(place: Path, registry: DockerRegistry) -> None:
    """Another inode with all its times and another byte, as a restored archive has it; then one without."""
    first = Path(bake(write(place, registry, 1))["artefact_path"])
    kept, status, at = place.with_name("kept"), first.stat(), place_of(big(), first)
    shutil.copyfile(first, kept)
    for version, damaged in ((2, True), (3, False)):
        for path in place.glob("artefacts/*.raw*"):
            if not path.name.startswith(first.name):
                path.unlink()
        first.unlink()
        shutil.copyfile(kept, first)
        with first.open("rb+") as file:
            file.seek(at)
            file.write(b"\xa5" if damaged else big()[:1])
        os.utime(first, ns=(status.st_atime_ns, status.st_mtime_ns))
        answer = again(write(place, registry, version)).document
        assert answer["parent"] == ("" if damaged else first.name)
        assert place_of(big(), Path(answer["artefact_path"])) > 0


def test_rot_in_a_block_that_a_bake_writes_to_is_not_given_a_new_digest(
    shared: Place, registry: DockerRegistry
) -> None:
    first = Path(bake(write(shared.at, registry, 1))["artefact_path"])
    shared.rot(first, 20 * PAGE)  # beside the superblock, which every bake writes
    done = again(write(shared.at, registry, 2))
    assert done.document["parent"] == ""
    assert "is damaged (1 block of 512 KiB differs from its record: 0)" in " ".join(done.err.split())
    assert damage(done.document) == ""


def test_rot_is_found_where_all_is_compared(shared: Place, registry: DockerRegistry) -> None:
    """By a bake that is proven, at once; after one that is not, by the verification before it is rolled out."""
    first = Path(bake(write(shared.at, registry, 1))["artefact_path"])
    listed = BlockList.read(Path(f"{first}.blocks"))
    shared.rot(first, place_of(big(), first) + 3 * MIB)
    with pytest.raises(disk.NotAsListed, match="1 block of 512 KiB differs"):
        disk.copy_listed(first, shared.at / "copy.raw", listed, Events(), memory=None)
    assert not (shared.at / "copy.raw").exists()
    done = again(write(shared.at, registry, 2))
    assert done.document["parent"] == first.name
    assert "1 block of 512 KiB differs" in damage(done.document)


def test_rot_that_the_check_of_the_file_system_finds_is_compared_the_next_time(
    shared: Place, registry: DockerRegistry
) -> None:
    first = Path(bake(write(shared.at, registry, 1))["artefact_path"])
    with Volume(first) as volume:
        kept = next(each for each in volume.placed.values() if sum(end - at for at, end in each.blocks) >= 6 * 256)
    shared.rot(first, (kept.blocks[-1][1] - 1) * PAGE)  # a folder's entries follow the files
    path = write(shared.at, registry, 2)
    assert parbake("bake", "-f", path, "--no-verify", "--json").code == 1
    done = again(path)
    assert done.document["parent"] == ""
    assert f"{first.name} is damaged" in " ".join(done.err.split())
    assert place_of(big(), Path(done.document["artefact_path"])) > 0


@pytest.mark.parametrize("forged", ["key", "verdict", "size", "blocks", "plan"])
def test_a_record_that_does_not_fit_its_volume_names_no_parent(
    forged: str, private_places: Path, registry: DockerRegistry
) -> None:
    answer = bake(write(private_places, registry, 1))
    path = Path(answer["artefact_path"] + ".json")
    statement = json.loads(path.read_text())
    found = statement["parbake"]
    match forged:
        case "key":
            found["key"] = "0" * 64
        case "verdict":
            found["verdict"] = {"passed": False, "accelerator": "tcg", "boot_seconds": 1.0}
        case "size":
            found["size"] += 4096
        case "blocks":
            found["blocks"]["digest"] = "0" * 64
        case "plan":  # it says of layers that they are there
            found["plan"]["images"][0]["layers"][0]["diff_id"] = "sha256:" + "0" * 64
    path.write_text(json.dumps(statement))
    assert again(write(private_places, registry, 2)).document["parent"] == ""

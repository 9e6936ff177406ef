"""Full disks, of the host and in the artefact: the error says which and what to do, nothing is left, and with room the
same command succeeds.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from parbake import records
from parbake.core.errors import DiskFull
from parbake.core.workspace import work_folder
from parbake.machine import disk
from standins import disks
from standins.command import Corner, Done
from standins.images import image, layer, push
from standins.leaks import files
from standins.plans import record, release
from standins.registry import DockerRegistry

pytestmark = pytest.mark.root

MIB = 1 << 20


def noise(size: int, *, seed: int = 1) -> bytes:
    """Return so many MiB of what does not compress."""
    return random.Random(seed).randbytes(size * MIB)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    with DockerRegistry(tmp_path_factory.mktemp("registry")) as running:
        push(running.url, "big", image(layer({"big": noise(6)})), "1")
        push(running.url, "half", image(layer({"digits": noise(3).hex().encode()})), "1")  # of 6 MiB, half travels
        # How much a stream inflates to, its registry cannot tell.
        push(running.url, "unknown", image(layer({"big": noise(40)}), compression="zstd-stream"), "1")
        empty = {f"{number}": b"" for number in range(9000)}
        push(running.url, "many", image(layer(empty)), "1")
        few = {f"{number}": b"" for number in range(700)}
        push(running.url, "some", image(layer({**few, "big": noise(20)})), "1")
        yield running


@pytest.fixture
def mounts() -> Iterator[None]:
    """What a test mounts, its programs see, and nobody else."""
    with disk.private_mounts():
        yield


@contextmanager
def small_disk(corner: Corner, at: Path, size: int) -> Iterator[None]:
    """Mount a file system of so many KiB."""
    at.mkdir(parents=True, exist_ok=True)
    disks.sh("mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", at)
    corner.look()
    try:
        yield
    finally:
        disks.sh("umount", at)


def machine(folder: Path, image: str, *, size: str = "128MiB") -> Corner:
    """A corner with a base that takes little of the disk, and a machine image as qcow2."""
    corner = Corner(folder)
    tree = disks.root_tree(folder / "tree")
    for name in ("usr/bin/containerd", "etc/containerd/config.toml"):
        corner.write(f"tree/{name}", "")
    base = disks.machine(folder / "base.raw", "gpt", "ext4", tree)
    disks.sh("fallocate", "--dig-holes", base)
    bakefile(corner, image, size=size, base="{file: base.raw}", artefact="qcow2")
    return corner


def bakefile(corner: Corner, image: str, **more: str) -> None:
    lines = [f"{key}: {value}" for key, value in {"version": "1", "images": f"['{image}:1']", **more}.items()]
    corner.write("parbake.yaml", "\n".join(lines) + "\n")


def bake(corner: Corner) -> tuple[Done, str]:
    """Bake, and return how it ended and the stage that it came to."""
    with corner.start("bake", "--no-verify", "--json", "--progress", "json") as run:
        done = run.finish()
        stages = [event["name"] for event in run.seen if event["kind"] == "stage-start"]
    return done, stages[-1] if stages else ""


def check_full(corner: Corner, done: Done, *words: str, error: str = "DiskFull") -> dict[str, Any]:
    """It failed since there is no space, says where and what to do, and has left nothing."""
    assert done.code == 1, done
    document: dict[str, Any] = done.document
    assert document["error"] == error, done
    assert document["hint"]
    for word in words:
        assert word in document["message"] + document["hint"], done
    assert corner.left() == []
    assert files(corner.output) == set()
    assert corner.leaked() == []
    return document


@pytest.mark.usefixtures("mounts")
def test_the_hosts_disk_fills_up_wherever_it_may(tmp_path: Path, registry: DockerRegistry) -> None:
    """The less space, the earlier it ends; each time for that reason, although programs only see broken disks."""
    corner = machine(tmp_path / "host", f"{registry.host}/half")
    ended = []
    for size in (5000, 8000, 24000):
        with small_disk(corner, corner.output, size):
            done, stage = bake(corner)
            if done.code == 0:
                ended.append("")
                continue
            check_full(corner, done, "no space left", "output", str(corner.output))
            ended.append(stage)
    assert ended == ["trim", "convert", ""]
    assert corner.bake()["changed"] is True


@pytest.mark.usefixtures("mounts")
def test_the_record_does_not_fit(tmp_path: Path) -> None:
    """The artefact is under its name by then: it goes again."""
    corner, made = Corner(tmp_path / "record"), record()
    with small_disk(corner, corner.output, 400), work_folder(corner.output, "bake") as work:
        (work / "disk.raw").write_bytes(noise(1)[: 64 << 10])
        kept = records.keep(work / "disk.raw", made, corner.output, work)
        with pytest.raises(OSError, match="No space left"):
            (work / "ballast").write_bytes(bytes(1 << 20))
        with (work / "ballast").open("r+b") as ballast:
            ballast.truncate((work / "ballast").stat().st_size - 4096)  # for the note of what is being done
        with pytest.raises(DiskFull, match=f"no space left for .*/{made.file_name}"):
            records.publish_artefact(kept, made, corner.output, work)
        assert files(corner.output) == {str(path.relative_to(corner.output)) for path in work.iterdir()}
        (work / "ballast").unlink()
        (work / "disk.raw").write_bytes(b"again")
        release(work / "disk.raw", made, corner.output, work)
        assert [found for _, found in records.find(corner.output)] == [made]


@pytest.mark.usefixtures("mounts")
def test_the_base_does_not_fit(tmp_path: Path, registry: DockerRegistry) -> None:
    corner = machine(tmp_path / "copy", f"{registry.host}/many")
    base = corner.folder / "base.raw"
    with base.open("r+b") as file:  # beyond the partitions, where nothing changes it
        file.seek(0, 2)
        file.write(noise(4, seed=2))
    with small_disk(corner, corner.output, 3000):
        done, stage = bake(corner)
        assert stage == "copy"
        check_full(corner, done, "no space left", "output")


@pytest.mark.usefixtures("mounts")
def test_too_little_for_the_images_is_said_before_any_work(tmp_path: Path, registry: DockerRegistry) -> None:
    corner = machine(tmp_path / "early", f"{registry.host}/big")
    with small_disk(corner, corner.output, 2000):
        done, stage = bake(corner)
        assert stage == ""
        check_full(corner, done, "has 1 MiB of free space", "more than 6 MiB", "output")


@pytest.mark.usefixtures("mounts")
def test_the_caches_disk_is_full(tmp_path: Path, registry: DockerRegistry) -> None:
    corner = Corner(tmp_path / "cache")
    corner.write("app/Containerfile", "FROM scratch\nCOPY data /data\n")
    (corner.folder / "app/data").write_bytes(noise(4, seed=3))
    bakefile(corner, f"{registry.host}/big", base="none", size="64MiB")
    with small_disk(corner, corner.cache, 8):
        done, _ = bake(corner)
        check_full(corner, done, "PARBAKE_CACHE")
    bakefile(corner, "", base="none", size="64MiB", images=f"[{{reference: '{registry.host}/b:1', build: app}}]")
    with small_disk(corner, corner.cache, 2000):
        done, _ = bake(corner)
        check_full(corner, done)
    assert corner.bake()["changed"] is True


def test_a_fixed_size_that_nobody_could_know_to_be_too_small(tmp_path: Path, registry: DockerRegistry) -> None:
    corner = Corner(tmp_path / "fixed")
    bakefile(corner, f"{registry.host}/unknown", base="none", size="32MiB")
    done, stage = bake(corner)
    assert stage == "fill"
    check_full(corner, done, "artefact of 32 MiB", "the size that `size` sets", "raise `size`", error="ArtefactFull")
    bakefile(corner, f"{registry.host}/unknown", base="none", size="64MiB")
    assert corner.bake()["size"] == 64 * MIB


def test_more_files_than_inodes(tmp_path: Path, registry: DockerRegistry) -> None:
    corner = Corner(tmp_path / "inodes")
    bakefile(corner, f"{registry.host}/many", base="none", size="32MiB")
    done, _ = bake(corner)
    check_full(corner, done, "artefact of 32 MiB", "raise `size`", error="ArtefactFull")
    bakefile(corner, f"{registry.host}/many", base="none", size="64MiB")
    assert corner.bake()["changed"] is True


def test_an_automatic_size_that_was_too_small_grows(tmp_path: Path, registry: DockerRegistry) -> None:
    """The base's file system has one inode for each MiB: in the size that looked right, half of what is needed."""
    corner = machine(tmp_path / "grows", f"{registry.host}/some", size="auto")
    with (corner.folder / "base.raw").open("wb") as file:
        file.truncate(64 * MIB)
    disks.sh(
        "mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-i", str(MIB), "-d", corner.folder / "tree",
        corner.folder / "base.raw",
    )  # fmt: skip
    planned = corner.parbake("plan", "--json").document
    with corner.start("bake", "--no-verify", "--json", "--progress", "json") as run:
        done = run.finish()
        warnings = [event["text"] for event in run.seen if event["kind"] == "warning"]
    assert done.code == 0, done
    assert planned["size"] == 1 << 30
    assert done.document["plan"]["size"] == 2 << 30
    assert done.document["key"] == planned["key"]
    assert "baking again with a disk of 2048 MiB" in "\n".join(warnings)
    assert corner.left() == []
    assert corner.bake()["changed"] is False

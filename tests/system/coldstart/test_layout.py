"""Volumes that are laid out by what their starts read: smaller starts, the same files, and whole at any moment."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from parbake.coldstart.rehearsal.volume import files_read
from parbake.coldstart.trace import Read, Trace, data_below, data_of, described, load, merged, prefetch_list
from parbake.core.blocks import BlockList
from parbake.core.events import Events
from parbake.machine import disk
from parbake.machine.ext4 import PREFETCH, Volume
from standins.command import Corner
from standins.images import Built, image, layer, push
from standins.registry import DockerRegistry
from standins.runs import bake, bakefile, private_places, traces
from standins.trees import differences
from tests.system.workflows.test_volumes import HASHED, look

__all__ = ["private_places"]
pytestmark = pytest.mark.root

MIB = 1 << 20
READ = range(0, 400, 9)
STARTUP = {
    "command": ["/bin/busybox", "cat", *(f"/lib/{n}" for n in READ), "/srv/app"],
    "up": "exit",
}


@cache
def bottom() -> bytes:
    program = {"bin/": None, "bin/busybox": Path("/bin/busybox").read_bytes()}
    return layer({**program, **{f"lib/{n}": random.Random(n).randbytes(30_000) for n in range(400)}})


def app(version: int) -> Built:
    own = {"srv/app": random.Random(-version).randbytes(MIB), "srv/unread": random.Random(version).randbytes(2 * MIB)}
    return image(bottom(), layer(own))


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    with DockerRegistry(tmp_path_factory.mktemp("registry")) as served:
        for version in (1, 2):
            push(served.url, "team/app", app(version), str(version))
        yield served


def write_bakefile(folder: Path, registry: DockerRegistry, version: int, **more: Any) -> Path:
    entry = {"reference": f"{registry.host}/team/app:{version}", "startup": STARTUP}
    return bakefile(folder, [entry], base="none", **more)


def trace_of(record: dict[str, Any]) -> Trace:
    return load(Path(record["artefact_path"] + ".trace"))


def listed(record: dict[str, Any]) -> BlockList:
    """Return the list of a volume's blocks, which must be true."""
    path = Path(record["artefact_path"])
    found = BlockList.read(Path(f"{path}.blocks"))
    assert found == disk.block_list(path, Events(), algorithm="blake3")
    return found


def test_a_start_reads_less_of_the_same_files(private_places: Path, registry: DockerRegistry) -> None:
    path = write_bakefile(private_places, registry, 1)
    plain = bake(path, "--rehearse-in", "host", "--no-layout")
    scattered = len(merged(trace_of(plain)))
    assert plain["trace"]["scattered_blocks"] == 0
    names, found, usages = look(plain, private_places / "look1")
    volume = bake(path, "--force", "--rehearse-in", "host")
    laid_names, laid_found, laid_usages = look(volume, private_places / "look2")
    assert (laid_names, laid_usages, laid_found.keys()) == (names, usages, found.keys())
    for chain, tree in laid_found.items():
        assert differences(tree, found[chain]) == []
    listed(volume)
    # Its trace is that of the layout, and by that a start touches little more than it reads.
    told, trace = volume["trace"], trace_of(volume)
    assert told["scattered_blocks"] == trace.scattered
    assert abs(trace.scattered - scattered) < scattered // 4  # a start is not quite the same each time
    assert told["hot_blocks"] == len(merged(trace)) < 0.7 * trace.scattered
    assert {part.name for part in trace.parts} == {f"{registry.host}/team/app:1"}
    hot = [range(start * 8, end * 8) for start, end in _zone(volume)]
    reads = [read for part in trace.parts for read in part.reads]
    together = sum(read.length for read in reads if any(read.sector in part for part in hot))
    assert together > 0.75 * sum(read.length for read in reads)
    assert traces(private_places) == []
    # Whose data that is, the volume itself says as the kernel does, without being mounted.
    artefact, at = Path(volume["artefact_path"]), private_places / "mounted"
    whole = [Read(0, sector, 8) for sector in range(0, artefact.stat().st_size // 512, 8)]
    with disk.private_mounts(), disk.mount(artefact, at, filesystem="ext4", read_only=True):
        for asked in (reads, whole):
            assert files_read(artefact, "ext4", asked, Path("nowhere")) == described(data_below(at), asked)


def _zone(record: dict[str, Any]) -> list[tuple[int, int]]:
    with Volume(Path(record["artefact_path"])) as volume:
        return volume.hot


def test_a_bake_starts_from_one_that_is_laid_out(private_places: Path, registry: DockerRegistry) -> None:
    first = bake(write_bakefile(private_places, registry, 1), "--rehearse-in", "host")
    before = listed(first)
    path = write_bakefile(private_places, registry, 2)
    second = bake(path, "--rehearse-in", "host")
    assert second["parent"] == first["artefact"]
    changed = len(listed(second).changed_since(before)) * HASHED
    assert changed < 1.5 * 3.1 * MIB + 16 * MIB
    assert second["trace"]["hot_blocks"] < 0.7 * first["trace"]["scattered_blocks"]
    whole = bake(path, "--force", "--no-rehearse")
    names, found, usages = look(second, private_places / "look1")
    all_names, all_found, all_usages = look(whole, private_places / "look2")
    assert (names, usages, found.keys()) == (all_names, all_usages, all_found.keys())
    for chain, tree in all_found.items():
        assert differences(tree, found[chain]) == []


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_the_prefetch_list_lies_in_the_volume(private_places: Path, registry: DockerRegistry, kind: str) -> None:
    """What it names are files of this volume, and all of those that the start reads; a bake without is empty."""
    path = write_bakefile(private_places, registry, 1, artefact={"kind": "volume", "filesystem": kind})
    if kind == "ext4":
        with volume_of(bake(path, "--no-rehearse"), private_places, kind) as found:
            assert (found / os.fsdecode(PREFETCH)).read_bytes() == b""
    record = bake(path, "--force", "--rehearse-in", "host")
    trace = trace_of(record)
    assert prefetch_list(trace).startswith("parbake-prefetch 1\n")
    named = {file.path.rpartition("/fs/")[2] for file in trace.files if file.ranges}
    assert {f"lib/{n}" for n in READ} | {"srv/app", "bin/busybox"} <= named
    assert not {"srv/unread", "lib/1"} & named
    with volume_of(record, private_places, kind) as found:
        at = found / os.fsdecode(PREFETCH)
        assert at.read_text() == prefetch_list(trace)
        assert (at.stat().st_uid, at.stat().st_mode & 0o7777) == (0, 0o644)
        with at.open("rb") as file:
            places = [(first, first + count) for _, first, count in data_of(file.fileno())]
        for each in trace.files:
            assert (found / each.path).stat().st_size > max(offset for offset, _ in each.ranges)
    if kind == "ext4":
        listed(record)
        zone = [(start * 8, end * 8) for start, end in _zone(record)]
        assert all(any(start <= first and last <= end for start, end in zone) for first, last in places)


@contextmanager
def volume_of(record: dict[str, Any], folder: Path, kind: str) -> Iterator[Path]:
    """Mount a volume for reading."""
    artefact = Path(record["artefact_path"])
    with disk.private_mounts(), disk.mount(artefact, folder / "at", filesystem=kind, read_only=True) as mounted:
        yield mounted.path


def test_killed_at_the_layout(tmp_path: Path, registry: DockerRegistry) -> None:
    corner = Corner(tmp_path / "corner")
    corner.write("parbake.yaml", write_bakefile(tmp_path / "here", registry, 1).read_text())
    with corner.start("bake", "--no-verify", "--rehearse-in", "host", "--json", "--progress", "json") as run:
        run.wait_for("stage-start", "layout")
        run.kill(signal.SIGKILL)
        assert run.finish().code == -signal.SIGKILL
    assert corner.leaked() == []
    document = corner.parbake("bake", "--no-verify", "--rehearse-in", "host", "--json").document
    assert document["changed"]
    assert document["trace"]["scattered_blocks"] > document["trace"]["hot_blocks"]
    listed(document)
    assert corner.left() == []

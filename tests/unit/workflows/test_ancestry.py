"""What a bake may start from, and what is remembered of its file."""

from __future__ import annotations

import mmap
import os
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest

from parbake import records
from parbake.builders import ParentVolume, earlier
from parbake.core.events import Events
from parbake.core.model import EBS_BLOCK, GIB, MIB, Platform, Verdict
from parbake.machine import disk
from parbake.machine.disk import CopyTakesLonger, Memory, NotAsListed, block_list, copy_listed, inherit
from parbake.records import Blocks, Record
from parbake.workflows.bake import ancestry
from standins.plans import digest, image, layer, plan

KEPT = layer("kept")


def _baked(folder: Path, *, passed: bool | None, at: int = 0, architecture: str = "") -> Record:
    """Put an artefact of two blocks, its list and its record into a folder."""
    wanted = plan(
        images=(image(f"registry.example/app:{at}", layers=(KEPT, layer(f"top {at}", size=1000))),),
        platform=Platform(architecture=architecture or Platform.host().architecture),
    )
    artefact = folder / wanted.artefact_name
    artefact.write_bytes(b"ab" * EBS_BLOCK)
    blocks = block_list(artefact, Events(), algorithm="blake3")
    blocks.write(records.blocks_path(artefact))
    made = Record(
        artefact=artefact.name,
        key=wanted.key,
        blocks=Blocks(algorithm="blake3", count=2, digest=blocks.digest()),
        size=2 * EBS_BLOCK,
        allocated=2 * EBS_BLOCK,
        builder="local",
        parbake="0",
        started_at="",
        finished_at=f"2026-11-24T00:01:{at:02}Z",
        plan=wanted,
        verdict=None if passed is None else Verdict(passed=passed, accelerator="tcg", boot_seconds=1.0),
    )
    records.write(folder, made)
    return made


def _parent(folder: Path, *, verify: bool, rehearse: bool = False, architecture: str = "") -> str:
    wanted = plan(
        images=(image(layers=(KEPT, layer("new", size=1000))),),
        platform=Platform(architecture=architecture or Platform.host().architecture),
    )
    found = ancestry.parent_of(wanted, folder, folder / "cache", verify=verify, rehearse=rehearse)
    assert found is None or (found.memory is None) == (verify or rehearse), "who proves, compares"
    return found.name if found else ""


def test_a_bake_that_will_be_proven_starts_only_from_what_was(tmp_path: Path) -> None:
    proven, _failed, not_looked_at = (
        _baked(tmp_path, passed=passed, at=at).artefact for at, passed in enumerate((True, False, None))
    )
    assert _parent(tmp_path, verify=True) == proven
    assert _parent(tmp_path, verify=False) == not_looked_at
    assert _parent(tmp_path, verify=False, rehearse=True) == not_looked_at
    (tmp_path / f"{not_looked_at}.json").unlink()
    assert _parent(tmp_path, verify=False) == proven, "never one that has failed"


def test_what_this_machine_cannot_prove_starts_from_what_nobody_has(tmp_path: Path) -> None:
    other = "riscv64"
    made = _baked(tmp_path, passed=None, architecture=other).artefact
    assert _parent(tmp_path, verify=True, architecture=other) == made


def test_what_lies_in_a_cloud_starts_from_the_disk_that_was_kept_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARBAKE_CACHE", str(tmp_path / "cache"))
    made = _baked(tmp_path, passed=True)
    assert made.blocks
    wanted = plan(images=(image(layers=(KEPT, layer("new", size=1000))),))

    def taken(*, rehearse: bool = False) -> ParentVolume | None:
        (tmp_path / "parent.raw").unlink(missing_ok=True)
        return ancestry.shipped_parent(wanted, tmp_path, tmp_path, verify=False, rehearse=rehearse)

    assert taken() is None
    for rehearse in (False, True):
        shutil.copyfile(tmp_path / made.artefact, tmp_path / "disk.raw")
        earlier.keep(tmp_path / "disk.raw", wanted, made.blocks.digest, tmp_path / "cache")
        found = taken(rehearse=rehearse)
        assert found
        assert (found.name, found.path, found.spent) == (made.artefact, tmp_path / "parent.raw", True)
        assert (found.memory is None) == rehearse, "who lays out, compares"
        assert taken() is None


def test_a_record_under_another_name_names_no_parent(tmp_path: Path) -> None:
    made = _baked(tmp_path, passed=True)
    (tmp_path / made.file_name).rename(tmp_path / "other.json")
    assert _parent(tmp_path, verify=False) == ""


def test_the_last_whole_bake_tells_what_an_earlier_volume_saves(tmp_path: Path) -> None:
    """Of its two layers (10 MiB and 1000 bytes), which took a second for each of its MiB, the plan has the first."""
    made = _baked(tmp_path, passed=None)
    size = 10 * MIB + 1000
    whole = made.model_copy(update={"timings": {"fill": size / MIB - 1, "format": 1.0, "digest": 100.0}})
    slow = made.model_copy(update={"timings": {"fill": 1000.0}})
    again = made.model_copy(update={"timings": {"fill": 0.1, "copy": 9.0}, "parent": "node-0.raw"})
    wanted = plan(images=(image(layers=(KEPT, layer("new", size=1000))),))
    saved = ancestry.seconds_saved(wanted, made, [slow, whole, again])
    assert saved == pytest.approx(10.0)
    assert ancestry.seconds_saved(wanted, made, [again]) is None
    assert ancestry.seconds_saved(plan(name="other"), made, [whole]) is None


@pytest.mark.parametrize(
    ("size", "rate", "saves", "copied"), [(4, 1, 5.0, True), (4, 1, 3.0, False), (4, 2, 3.0, True)]
)
def test_a_copy_is_made_where_it_takes_less_than_it_saves(size: int, rate: int, saves: float, copied: bool) -> None:
    said = r"4\.0 GiB takes 4\.0 s here \(1024 MiB/s.* anew 3\.0 s"
    with nullcontext() if copied else pytest.raises(CopyTakesLonger, match=said):
        inherit.need_quick(size * GIB, rate * GIB, saves)


def test_no_large_volume_is_read_whose_copy_takes_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a measured rate: what a copy saves is so little here, or so much, that any disk decides alike."""
    monkeypatch.setattr(inherit, "_WORTH_ASKING", 8 * EBS_BLOCK)
    monkeypatch.setattr(inherit, "reflink", lambda *_: False)
    source, target = tmp_path / "a", tmp_path / "b"
    source.write_bytes(os.urandom(8 * EBS_BLOCK))
    listed = block_list(source, Events(), algorithm="blake3")
    with pytest.raises(CopyTakesLonger):
        copy_listed(source, target, listed, Events(), memory=None, saves=1e-9)
    assert not target.exists()
    copy_listed(source, target, listed, Events(), memory=None, saves=1e9)
    assert target.read_bytes() == source.read_bytes(), "the sample leaves nothing"


@pytest.fixture
def memory(tmp_path: Path) -> Memory:
    (tmp_path / "file").write_bytes(b"ab" * EBS_BLOCK)
    known = Memory(tmp_path / "file", digest("x")[7:], tmp_path / "cache")
    known.remember()
    assert known.holds(known.path.stat())
    return known


@pytest.mark.parametrize("how", ["written", "times set back", "mapped", "another inode", "mode"])
def test_a_file_that_changed_is_not_remembered(how: str, memory: Memory) -> None:
    before = memory.path.stat()
    match how:
        case "written" | "times set back":
            with memory.path.open("rb+") as file:
                file.write(b"x")
        case "mapped":
            with memory.path.open("rb+") as file, mmap.mmap(file.fileno(), 0) as mapped:
                mapped[5] = 7
                mapped.flush()
        case "another inode":
            content = memory.path.read_bytes()
            memory.path.unlink()
            memory.path.write_bytes(content)
        case "mode":
            memory.path.chmod(0o640)
    if how != "written":
        os.utime(memory.path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert not memory.holds(memory.path.stat())


def test_a_write_right_after_the_look_at_the_file_shows(tmp_path: Path) -> None:
    """The kernel's clock for files has ticks: a write within the tick of the one before would have its time."""
    path = tmp_path / "file"
    for number in range(10):
        path.write_bytes(b"a" * 100)
        known = Memory(path, digest("x")[7:], tmp_path / "cache")
        known.remember()
        path.write_bytes(b"%d" % number * 100)
        assert not known.holds(path.stat())


@pytest.mark.parametrize("planted", ["digest", "of another state", "of another key", "folder"])
def test_a_memory_that_others_have_written_is_none(
    planted: str, memory: Memory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (note,) = (tmp_path / "cache/digests").iterdir()
    match planted:
        case "digest":
            note.write_text(digest("y")[7:])
        case "of another state":
            memory.path.write_bytes(b"other")
            note.rename(f"{memory._note(memory.path.stat())}.seal")
        case "of another key":
            monkeypatch.setenv("PARBAKE_CACHE_KEY", "k" * 32)
        case "folder":
            note.parent.rename(tmp_path / "theirs")
            note.parent.symlink_to(tmp_path / "theirs")
    assert not memory.holds(memory.path.stat())


def test_what_is_forgotten_is_compared(memory: Memory) -> None:
    memory.forget()
    assert not memory.holds(memory.path.stat())
    memory.forget()


def test_a_copy_is_hashed_on_its_way(tmp_path: Path) -> None:
    """Holes stay holes, zeros become some, and an end within a block is one in the copy as well."""
    source, target = tmp_path / "a", tmp_path / "b"
    with source.open("wb") as file:
        file.write(b"x" * EBS_BLOCK + bytes(EBS_BLOCK))
        file.seek(20 * EBS_BLOCK)
        file.write(os.urandom(4 * EBS_BLOCK + 777))
    listed = block_list(source, Events(), algorithm="blake3")
    assert copy_listed(source, target, listed, Events(), memory=None) is None
    assert target.read_bytes() == source.read_bytes()
    assert target.stat().st_blocks < source.stat().st_blocks
    target.unlink()
    for place, size in ((5, 1), (3 * EBS_BLOCK, 1), (24 * EBS_BLOCK + 776, 1), (24 * EBS_BLOCK + 777, 1)):
        content = source.read_bytes()
        with source.open("rb+") as file:
            file.seek(place)
            file.write(b"\x01" * size)
        with pytest.raises(NotAsListed, match=r"record"):
            copy_listed(source, target, listed, Events(), memory=None)
        assert not target.exists()
        source.write_bytes(content)


def test_only_some_blocks_are_compared(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"ab" * EBS_BLOCK)
    listed = block_list(path, Events(), algorithm="blake3")
    path.write_bytes(b"ab" * (EBS_BLOCK // 2) + b"ac" * (EBS_BLOCK // 2))
    disk.compare(path, listed, Events(), {0})
    with pytest.raises(NotAsListed):
        disk.compare(path, listed, Events(), {0, 1})

"""Disks that are kept for the next bake: whose they are, that they are given away once, and how many there are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from parbake.builders import earlier
from parbake.core.errors import EnvironmentProblem
from parbake.machine.disk import Memory
from standins.plans import digest, plan

DIGEST = digest("list")[7:]


def made(folder: Path, content: bytes = b"a disk") -> Path:
    path = folder / "made.raw"
    path.write_bytes(content)
    return path


def test_a_disk_is_given_to_one_bake_of_its_name_and_bytes(tmp_path: Path) -> None:
    cache, target = tmp_path / "cache", tmp_path / "taken.raw"
    earlier.keep(made(tmp_path, b"first"), plan(), "0" * 64, cache)
    earlier.keep(made(tmp_path), plan(), DIGEST, cache)
    assert not (tmp_path / "made.raw").exists()
    assert not earlier.take(target, plan(name="other"), DIGEST, cache)
    assert not earlier.take(target, plan(), "0" * 64, cache), "of that name there is the last one"
    assert earlier.take(target, plan(), DIGEST, cache)
    assert target.read_bytes() == b"a disk"
    assert not earlier.take(target, plan(), DIGEST, cache)
    assert not list((cache / earlier.FOLDER).iterdir())


@pytest.mark.parametrize("how", ["written", "copied", "link", "killed"])
def test_a_disk_that_others_have_touched_is_given_to_nobody(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, target = tmp_path / "cache", tmp_path / "taken.raw"
    if how == "killed":  # before its digest was remembered
        monkeypatch.setattr(Memory, "remember", lambda _: None)
    earlier.keep(made(tmp_path), plan(), DIGEST, cache)
    (kept,) = (cache / earlier.FOLDER).iterdir()
    before = kept.stat()
    match how:
        case "written":
            kept.write_bytes(b"a risk")
        case "copied":
            kept.unlink()
            kept.write_bytes(b"a disk")
        case "link":
            kept.rename(tmp_path / "elsewhere.raw")
            kept.symlink_to(tmp_path / "elsewhere.raw")
    os.utime(kept, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert not earlier.take(target, plan(), DIGEST, cache)
    assert not target.exists()


def test_few_disks_are_kept_and_none_where_there_is_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    for number in range(earlier.MOST + 2):
        path = made(tmp_path)
        os.utime(path, ns=(number, number))
        earlier.keep(path, plan(name=f"app{number}"), DIGEST, cache)
    kept = cache / earlier.FOLDER
    assert sorted(path.stat().st_mtime_ns for path in kept.iterdir()) == list(range(2, earlier.MOST + 2))
    monkeypatch.setattr(earlier, "usage", lambda _: (1, 1))
    earlier.keep(made(tmp_path), plan(name="app5"), DIGEST, cache)
    assert not (tmp_path / "made.raw").exists()
    assert len(list(kept.iterdir())) == earlier.MOST - 1


def test_a_link_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / earlier.FOLDER).symlink_to(tmp_path)
    with pytest.raises(EnvironmentProblem, match="is a link"):
        earlier.keep(made(tmp_path), plan(), DIGEST, tmp_path / "cache")
    assert (tmp_path / "made.raw").exists()

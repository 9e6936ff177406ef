"""Modes of what parbake makes: opened to whom a Bakefile says, past links and other people's files."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from parbake import records
from parbake.core import access
from parbake.core.access import ReadableBy
from parbake.core.errors import EnvironmentProblem
from standins.plans import record


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "artefacts"
    made.mkdir(mode=0o700)
    return made


@pytest.mark.parametrize(("by", "file", "around"), [("owner", 0o600, 0o700), ("group", 0o640, 0o750)])
def test_what_a_body_writes_is_readable_when_it_ends(tmp_path: Path, by: ReadableBy, file: int, around: int) -> None:
    folder = tmp_path / "new" / "artefacts"
    with access.readable(folder, [folder / "a", folder / "missing"], by):
        assert mode(folder) == 0o700
        (folder / "a").touch(mode=0o600)
    assert (mode(folder / "a"), mode(folder)) == (file, around)
    assert mode(tmp_path / "new") & 0o077, "what lies above is not ours to close"


def test_no_planted_link_is_opened_to_everyone(folder: Path, tmp_path: Path) -> None:
    shadow = tmp_path / "shadow"
    shadow.touch(mode=0o600)
    (folder / "link").symlink_to(shadow)
    (folder / "other-name").hardlink_to(shadow)
    os.mkfifo(folder / "pipe", 0o600)
    access.give(folder, [folder / name for name in ("link", "other-name", "pipe", "missing")], "everyone")
    assert (mode(shadow), mode(folder / "pipe"), mode(folder)) == (0o600, 0o600, 0o755)


def test_a_private_folder(tmp_path: Path) -> None:
    made = access.private_folder(tmp_path / "a" / "b")
    assert (mode(made), mode(made.parent) & 0o077 > 0) == (0o700, True)
    made.chmod(0o755)
    assert mode(access.private_folder(made)) == 0o700
    (tmp_path / "link").symlink_to(made)
    made.chmod(0o755)
    access.private_folder(tmp_path / "link")
    assert mode(made) == 0o755, "where a user's link leads is theirs"


def test_a_record_that_is_written_again_stays_as_readable_as_it_was(folder: Path) -> None:
    path = records.write(folder, record("a"))
    assert mode(path) == 0o600
    path.chmod(0o644)
    assert mode(records.write(folder, record("a", passed=True))) == 0o644


@contextmanager
def as_nobody() -> Iterator[None]:
    os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


@pytest.mark.root
def test_records_that_are_not_for_this_user_are_not_passed_over() -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        folder.chmod(0o755)
        path = records.write(folder, record("a"))
        with as_nobody(), pytest.raises(EnvironmentProblem, match="belongs to another user") as caught:
            records.find(folder)
        assert "readable_by" in caught.value.hint
        path.chmod(0o644)
        folder.chmod(0o700)
        with as_nobody(), pytest.raises(EnvironmentProblem, match="belongs to another user"):
            records.find(folder)
    finally:
        shutil.rmtree(folder)

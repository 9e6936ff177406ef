"""The one way in which a file is replaced."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from parbake.core import atomic


def test_a_replaced_file_is_the_old_one_or_the_new_one(tmp_path: Path) -> None:
    """Many write side by side, and some are killed: whoever reads finds one whole text, and nothing is left beside."""
    path = tmp_path / "file"
    texts = {f"{number}" * 300_000 for number in range(4)}
    program = (
        "import sys; from pathlib import Path; from parbake.core import atomic\n"
        "while True: atomic.replace(Path(sys.argv[1]), sys.argv[2] * 300_000)"
    )
    runs = [subprocess.Popen([sys.executable, "-c", program, str(path), str(number)]) for number in range(4)]
    over = threading.Event()
    found: set[str] = set()

    def read() -> None:
        while not over.is_set() or not found:
            if path.exists():
                found.add(path.read_text())

    reader = threading.Thread(target=read)
    reader.start()
    while len(found) < 2:
        over.wait(0.05)
    for run in runs:
        run.send_signal(signal.SIGKILL)
        run.wait()
    over.set()
    reader.join()
    assert found <= texts
    (tmp_path / f".file.{'0' * 16}.draft").write_text("of a run that was killed")
    atomic.replace(path, "last", mode=0o644)
    assert {entry.name: entry.stat().st_mode & 0o777 for entry in tmp_path.iterdir()} == {"file": 0o644}


def test_a_draft_of_a_living_writer_stays(tmp_path: Path) -> None:
    held = tmp_path / f".file.{'1' * 16}.draft"
    with held.open("w") as living:
        fcntl.flock(living, fcntl.LOCK_EX)
        atomic.replace(tmp_path / "file", "x")
        assert held.exists()
    atomic.replace(tmp_path / "file", "y")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_what_cannot_be_written_leaves_the_old_file_and_no_draft(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    with pytest.raises(IsADirectoryError):
        atomic.replace(tmp_path / "file", "x")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_drafts_of_killed_writers_go_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    dead, living, other = (tmp_path / f".{name}.draft" for name in ("a.json." + "0" * 16, "b." + "1" * 16, "c.mine"))
    for path in (dead, living, other):
        path.write_text("half")
    with living.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert atomic.sweep(tmp_path) == (dead,)
    assert sorted(tmp_path.iterdir()) == sorted([living, other])


@pytest.mark.parametrize("durable", [True, False])
def test_the_disk_is_waited_for_only_where_content_must_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, durable: bool
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    atomic.replace(tmp_path / "note", "text", durable=durable)
    assert (tmp_path / "note").read_text() == "text"
    assert bool(synced) is durable

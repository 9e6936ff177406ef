from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from parbake.core import workspace
from parbake.core.errors import DeadlineExceeded


def test_work_folders_vanish_and_leftovers_are_found(tmp_path: Path) -> None:
    with workspace.work_folder(tmp_path, "job") as folder:
        (folder / "half").write_text("x")
        assert workspace.leftovers(tmp_path) == ()
    assert not folder.exists()
    dead = tmp_path / workspace.WORK / "job.1.dead"
    dead.mkdir(parents=True)
    (dead / "half").mkdir(mode=0o500)
    assert workspace.remove_leftovers(tmp_path) == (dead,)
    assert list(tmp_path.iterdir()) == []


def test_work_folder_can_be_kept(tmp_path: Path) -> None:
    with workspace.work_folder(tmp_path, "job", keep=True) as folder:
        pass
    assert workspace.remove_leftovers(tmp_path) == ()
    assert folder.exists()
    assert workspace.remove_leftovers(tmp_path, kept=True) == (folder,)
    assert not folder.exists()


def test_work_folders_of_many_runs_never_meet(tmp_path: Path) -> None:
    """Runs make and remove their folders while others clean: nobody loses what is his, and nothing is left."""
    program = (
        "import sys, time; from pathlib import Path; from parbake.core import workspace\n"
        "place, end = Path(sys.argv[1]), time.monotonic() + 1\n"
        "while time.monotonic() < end:\n"
        "    with workspace.work_folder(place, 'job') as folder:\n"
        "        (folder / 'mine').write_text('')\n"
        "        workspace.remove_leftovers(place)\n"
        "        with workspace.lock(place / workspace.WORK / 'it.lock', what='it'):\n"
        "            assert (folder / 'mine').exists()\n"
    )
    runs = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path)]) for _ in range(4)]
    assert [running.wait(60) for running in runs] == [0, 0, 0, 0]
    assert list(tmp_path.iterdir()) == []


def test_locks_that_nobody_holds_are_removed(tmp_path: Path) -> None:
    stale, held = (tmp_path / workspace.WORK / name for name in ("a.lock", "b.lock"))
    with workspace.lock(held, what="b"):
        stale.touch()
        workspace.remove_leftovers(tmp_path)
        assert held.exists()
        assert not stale.exists()


def test_who_waits_for_a_lock_is_told_once(tmp_path: Path) -> None:
    told: list[str] = []
    path = tmp_path / "lock"
    with (
        workspace.lock(path, what="it"),
        pytest.raises(DeadlineExceeded),
        workspace.lock(path, what="it", timeout=0.3, waiting=lambda: told.append("waiting")),
    ):
        pass
    assert told == ["waiting"]


def test_remove_tree_does_not_hide_what_stays(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    workspace.remove_tree(tmp_path / "missing")
    with pytest.raises(NotADirectoryError):
        workspace.remove_tree(tmp_path / "file" / "below")


def test_the_second_waits_for_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with (
        workspace.lock(path, what="it"),
        pytest.raises(DeadlineExceeded, match="another parbake that works on it"),
        workspace.lock(path, what="it", timeout=0.05),
    ):
        pass
    with workspace.lock(path, what="it", timeout=0):
        pass


def test_a_lock_does_not_swallow_the_bodys_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), workspace.lock(tmp_path / "lock", what="it"):
        raise FileNotFoundError


def test_publish_replaces_at_once(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("new")
    (tmp_path / "b").write_text("old")
    workspace.publish(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_text() == "new"
    assert not (tmp_path / "a").exists()


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("PARBAKE_CACHE", raising=False)
    assert workspace.cache_folder() == tmp_path / "parbake"
    monkeypatch.setenv("PARBAKE_CACHE", "/x")
    assert workspace.cache_folder() == Path("/x")

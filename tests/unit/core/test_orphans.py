"""Names that say whose a thing is: who is dead, who lives, and whom nobody can judge from here."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from parbake.core import orphans
from parbake.core.cgroups import name

HOST, CONTAINER, OTHER = 0xEFFFFFFC, 4026532001, 4026532002


@pytest.fixture
def processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A /proc of our own: nobody is in it yet."""
    monkeypatch.setattr(orphans, "_PROC", tmp_path)
    return tmp_path


def lives(processes: Path, pid: str | int, namespace: int) -> None:
    """Let a process live in a namespace."""
    folder = processes / str(pid)
    (folder / "ns").mkdir(parents=True)
    (folder / "ns/pid").symlink_to(f"pid:[{namespace}]")
    (folder / "stat").write_text(f"{pid} (a b) c) S {'0 ' * 18}100 0")


def test_this_process_owns_what_it_names() -> None:
    names = {orphans.new_name() for _ in range(3)}
    assert len(names) == 3
    assert not any(map(orphans.is_orphan, names))
    started = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    assert {each.split("-")[2:4] == [str(os.getpid()), started] for each in names} == {True}
    assert name().startswith("/parbake-")
    assert not orphans.is_orphan(name().removeprefix("/"))


@pytest.mark.parametrize("where", [HOST, CONTAINER])
@pytest.mark.parametrize(
    ("pid", "started", "dead"), [(9, "100", False), (9, "99", True), (8, "100", True)], ids=["lives", "other", "none"]
)
def test_an_owner_in_the_same_namespace(processes: Path, where: int, pid: int, started: str, *, dead: bool) -> None:
    lives(processes, "self", where)
    lives(processes, 9, where)
    assert orphans.is_orphan(f"parbake-{where}-{pid}-{started}-0123abcd") is dead


def test_an_owner_in_a_container_that_lives_or_has_ended(processes: Path) -> None:
    lives(processes, "self", HOST)
    lives(processes, 9, HOST)
    lives(processes, 70, CONTAINER)
    assert not orphans.is_orphan(f"parbake-{CONTAINER}-9-99-0123abcd")  # 9 is somebody else in there
    assert orphans.is_orphan(f"parbake-{OTHER}-9-100-0123abcd")


def test_nobody_is_judged_from_within_a_container(processes: Path) -> None:
    lives(processes, "self", CONTAINER)
    lives(processes, 9, CONTAINER)
    for outside in (HOST, OTHER):
        assert not orphans.is_orphan(f"parbake-{outside}-9-99-0123abcd")


@pytest.mark.parametrize("other", ["parbake-1-2-0123abcd", "parbake-1-2-3-xyz", "kubepods", "parbake-1-2-3-0123abcd/x"])
def test_names_of_others(processes: Path, other: str) -> None:
    lives(processes, "self", HOST)
    assert not orphans.is_orphan(other)

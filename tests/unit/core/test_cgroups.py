"""Limits of what runs on this machine, in the words of both versions of cgroups."""

from __future__ import annotations

from pathlib import Path

import pytest

from parbake.core.cgroups import Limits

V1 = """31 23 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu
32 23 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
33 23 0:30 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
"""
V2 = "31 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n"
LIMITS = Limits(memory=128 << 20, tasks=150)


def machine(at: Path, mounts: str, files: dict[str, str]) -> Path:
    for name, text in {"proc/self/mountinfo": mounts, **files}.items():
        (at / name).parent.mkdir(parents=True, exist_ok=True)
        (at / name).write_text(text)
    return at


def test_a_half_of_the_memory_and_15_percent_of_the_threads(tmp_path: Path) -> None:
    files = {
        "proc/meminfo": "MemTotal:        8388608 kB\nMemFree:         1234 kB\n",
        "proc/sys/kernel/threads-max": "62000\n",
        "proc/sys/kernel/pid_max": "32768\n",
    }
    assert Limits.of_machine(machine(tmp_path, V2, files)) == Limits(memory=4 << 30, tasks=4915)


@pytest.mark.parametrize(
    ("mounts", "before", "after"),
    [
        (V2, {"p/memory.max": "max", "p/memory.swap.max": "max", "p/pids.max": "max"}, ["134217728", "0", "150"]),
        (V1, {"memory/p/memory.limit_in_bytes": "9", "pids/p/pids.max": "max"}, ["134217728", "150"]),
    ],
)
def test_limits_are_written_where_the_kernel_has_them(
    mounts: str, before: dict[str, str], after: list[str], tmp_path: Path
) -> None:
    files = {f"sys/fs/cgroup/{name}": text for name, text in before.items()}
    assert LIMITS.set("/p", machine(tmp_path, mounts, files))
    assert [(tmp_path / name).read_text() for name in files] == after
    assert not (tmp_path / "sys/fs/cgroup/cpu").exists()


def test_where_one_of_them_cannot_be_set_it_is_told(tmp_path: Path) -> None:
    assert not LIMITS.set("/p", machine(tmp_path, V2, {"sys/fs/cgroup/p/memory.max": "max"}))


def test_what_was_reached_is_said_in_words(tmp_path: Path) -> None:
    at = "sys/fs/cgroup/p"
    files = {f"{at}/memory.events": "low 0\nmax 12\noom 0\noom_kill 0\n", f"{at}/pids.events": "max 0\n"}
    assert LIMITS.reached("/p", machine(tmp_path, V2, files)) == ""
    machine(tmp_path, V2, {f"{at}/memory.events": "oom 1\noom_kill 1\n", f"{at}/pids.peak": "150\n"})
    memory, tasks = LIMITS.reached("/p", tmp_path).split("; ")
    assert memory == "it had used all of the 128 MiB of memory that it gets on this machine"
    assert tasks == "it had started all of the 150 processes and threads that it gets on this machine"

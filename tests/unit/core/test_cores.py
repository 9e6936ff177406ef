"""How many cores a process gets time on: cgroups of both versions, as containers see them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from parbake.core import cores

V2 = "0 0 0:1 {root} /sys/fs/cgroup rw - cgroup2 cgroup2 rw"
V1 = "0 0 0:1 {root} /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct"


def system(folder: Path, group: str, mount: str, files: dict[str, str], *, root: str = "/") -> Path:
    """Make what a process sees of its cgroups."""
    texts = {"proc/self/cgroup": group + "\n", "proc/self/mountinfo": mount.format(root=root) + "\n", **files}
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_no_quota(tmp_path: Path) -> None:
    assert list(cores.quotas(tmp_path)) == []
    there = system(tmp_path, "0::/", V2, {"sys/fs/cgroup/cpu.max": "max 100000\n"})
    assert list(cores.quotas(there)) == []


def test_the_quotas_of_a_group_and_of_those_above_it(tmp_path: Path) -> None:
    files = {"sys/fs/cgroup/pods/cpu.max": "400000 100000\n", "sys/fs/cgroup/pods/one/cpu.max": "150000 100000\n"}
    assert list(cores.quotas(system(tmp_path, "0::/pods/one", V2, files))) == [4.0, 1.5]


def test_version_1(tmp_path: Path) -> None:
    files = {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}
    there = system(tmp_path, "3:cpuset:/a\n2:cpu,cpuacct:/docker/f00", V1, files, root="/docker/f00")
    assert list(cores.quotas(there)) == [0.5]
    (there / "sys/fs/cgroup/cpu/cpu.cfs_quota_us").write_text("-1\n")
    assert list(cores.quotas(there)) == []


def test_a_container_that_sees_its_own_group_alone(tmp_path: Path) -> None:
    """Its group's name is that of the node, and the hierarchy begins at it."""
    there = system(tmp_path, "0::/../pod", V2, {"sys/fs/cgroup/cpu.max": "200000 100000\n"}, root="/kubepods/pod")
    assert list(cores.quotas(there)) == [2.0]


@pytest.mark.parametrize(("limits", "count"), [([], 8), ([2.5], 3), ([16.0], 8), ([4.0, 0.1], 1)])
def test_cores_that_get_time(monkeypatch: pytest.MonkeyPatch, limits: list[float], count: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(cores, "quotas", lambda: iter(limits))
    assert cores.available() == count

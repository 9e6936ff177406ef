"""How many cores this process gets time on: those that it may run on, and no more than the quotas of its cgroups.

A container sees all cores of its node, and a CPU limit gives it time on some of them: with more processes than those,
all are halted for a part of each period.

Sources: kernel documentation, "Control Group v2" (``cpu.max``) and "CFS Bandwidth Control" (cgroup v1:
``cpu.cfs_quota_us`` of each ``cpu.cfs_period_us``); proc_pid_mountinfo(5).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath


def available() -> int:
    """Return how many cores this process gets time on, 1 or more."""
    return max(1, min([len(os.sched_getaffinity(0)), *map(math.ceil, quotas())]))


def quotas(system: Path = Path("/")) -> Iterator[float]:
    """Yield in cores what the cgroups of this process are limited to, those above them included.

    ``system`` is where /proc and the cgroups are mounted.
    """
    with suppress(OSError):
        groups = dict[str, str]()
        for line in (system / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            groups |= dict.fromkeys(controllers.split(","), path)
        for line in (system / "proc/self/mountinfo").read_text().splitlines():
            fields, _, rest = line.partition(" - ")
            root, point = fields.split()[3:5]
            kind, _, options = rest.split(" ", 2)
            controller = {"cgroup2": "", "cgroup": "cpu" if "cpu" in options.split(",") else None}.get(kind)
            if controller in groups:
                yield from _along(system / point.lstrip("/"), root, groups[controller])


def _along(folder: Path, root: str, group: str) -> Iterator[float]:
    """Yield the quotas on the way from where a hierarchy's ``root`` is mounted down to a group."""
    path = PurePosixPath(group)
    parts = path.relative_to(root).parts if path.is_relative_to(root) else ()  # a container may see its own group alone
    for part in ("", *parts):
        folder /= part
        with suppress(OSError, ValueError):  # the topmost has no limit to read; "max" is none
            yield _quota(folder)


def _quota(folder: Path) -> float:
    """Return what a cgroup is limited to; raises OSError or ValueError where it is not."""
    if (limit := folder / "cpu.max").exists():
        quota, period = map(int, limit.read_text().split())
    else:
        quota, period = (int((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
    if quota <= 0:
        raise ValueError("no limit")
    return quota / period

"""The cgroups of our pods and builds: named after their owner, so that a later run can remove what a dead one left.

The kernel removes processes and mounts with their namespaces, but a cgroup is a folder that stays. Works with cgroup
v1, v2 and both at once: every hierarchy that is mounted is looked at.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from parbake.core import orphans, run

_LAST_PROCESS = 5.0  # seconds that killed processes may take to leave


def name() -> str:
    """Return a new cgroup's path, whose name says that it is this process's."""
    return f"/{orphans.new_name()}"


@contextmanager
def owned(path: str) -> Iterator[None]:
    """Remove the cgroup at the end, and at the start those of owners that are dead."""
    for root in _hierarchies():
        for folder in root.glob("parbake-*"):
            if orphans.is_orphan(folder.name):
                _remove(folder)
    try:
        yield
    finally:
        deadline = run.Deadline(_LAST_PROCESS, f"removing cgroup {path}")
        folders = [root / path.lstrip("/") for root in _hierarchies()]
        while not all(_remove(folder) for folder in folders) and deadline.left:
            run.sleep(0.01)


def _hierarchies() -> Iterator[Path]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, kind = line.partition(" - ")
        if kind.split()[0] in {"cgroup", "cgroup2"}:
            yield Path(fields.split()[4])


def _remove(folder: Path) -> bool:
    """Remove a cgroup with those below it; False when a process is still in one."""
    if not folder.is_dir():
        return True
    for current, _, _ in os.walk(folder, topdown=False):
        try:
            Path(current).rmdir()
        except FileNotFoundError:
            continue
        except OSError:
            return False
    return True

"""The cgroups of our pods and builds: named so that a later run can tell whose they are, removed when empty.

The kernel removes processes and mounts with their namespaces, but a cgroup is a folder that stays. Works with cgroup
v1, v2 and both at once: every hierarchy that is mounted is looked at.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from parbake.core import run

_NAME = re.compile(r"parbake-(\d+)-(\d+)-[0-9a-f]{8}")
_LAST_PROCESS = 5.0  # seconds that killed processes may take to leave


def name() -> str:
    """Return a new cgroup's path: it names this process, by id and start time, as the owner."""
    pid = os.getpid()
    return f"/parbake-{pid}-{started(pid)}-{os.urandom(4).hex()}"


@contextmanager
def owned(path: str) -> Iterator[None]:
    """Remove the cgroup at the end, and at the start those of owners that are dead."""
    for root in _hierarchies():
        for folder in root.glob("parbake-*"):
            owner = _NAME.fullmatch(folder.name)
            if owner and started(int(owner[1])) != owner[2]:
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


def started(pid: int) -> str:
    """Return the start time of a process in ticks since boot (proc(5), stat), "" when there is none."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return ""


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

"""The cgroups of our pods and builds: named after their owner, so that a later run can remove what a dead one left.

The kernel removes processes and mounts with their namespaces, but a cgroup is a folder that stays. Works with cgroup
v1, v2 and both at once: every hierarchy that is mounted is looked at.

Sources: kernel documentation, "Control Group v2", "Memory Resource Controller" (v1) and "Process Number Controller".
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from parbake.core import orphans, run
from parbake.core.units import human_size

_LAST_PROCESS = 5.0  # seconds that killed processes may take to leave
_MEMORY_OF_MACHINE = 0.5
_TASKS_OF_MACHINE = 0.15  # systemd's DefaultTasksMax= (systemd-system.conf(5))


@dataclass(frozen=True, slots=True)
class Limits:
    """What the processes of a cgroup get at most together: ``memory`` in bytes, without swap; ``tasks`` are threads."""

    memory: int
    tasks: int

    @classmethod
    def of_machine(cls, system: Path = Path("/")) -> Self:
        """Return half of this machine's memory, and 15 % of the threads that its kernel can have."""
        proc = system / "proc"
        memory = int((proc / "meminfo").read_text().split()[1]) << 10  # "MemTotal: 16384 kB"
        tasks = min(int((proc / "sys/kernel" / name).read_text()) for name in ("threads-max", "pid_max"))
        return cls(int(memory * _MEMORY_OF_MACHINE), int(tasks * _TASKS_OF_MACHINE))

    def set(self, path: str, system: Path = Path("/")) -> bool:
        """Make a cgroup with these limits; False where this machine's cgroups cannot have (one of) them."""
        done = set[str]()
        for root in _hierarchies("memory", "pids", system=system):
            with suppress(OSError):  # in v2 it may be so already, and in a container it may not be allowed
                (root / "cgroup.subtree_control").write_text("+memory +pids")
            folder = root / path.lstrip("/")
            folder.mkdir(exist_ok=True)
            for file, limit in self._files().items():
                with suppress(OSError):
                    if (folder / file).exists():
                        (folder / file).write_text(str(limit))
                        done.add(file)
        return "pids.max" in done and not done.isdisjoint({"memory.max", "memory.limit_in_bytes"})

    def _files(self) -> dict[str, int]:
        """Return the files of v2 and v1, each with its limit; the kernel need not have those of swap."""
        return {
            "memory.max": self.memory,
            "memory.swap.max": 0,
            "memory.limit_in_bytes": self.memory,
            "memory.memsw.limit_in_bytes": self.memory,  # both together, and never less than that of the memory
            "pids.max": self.tasks,
        }

    def reached(self, path: str, system: Path = Path("/")) -> str:
        """Return which of the limits a cgroup that ``set`` made has reached, as a sentence; "" for none.

        Memory counts when something was killed for it, in v1 when all was in use, also for cached files. Of
        processes v1 tells nothing that outlives the container.
        """
        words = []
        for root in _hierarchies("memory", "pids", system=system):
            folder = root / path.lstrip("/")
            filled = _count(folder / "memory.max_usage_in_bytes") >= self.memory
            if filled or _count(folder / "memory.events", "oom_kill"):
                words.append(f"it had used all of the {human_size(self.memory)} of memory that it gets on this machine")
            if _count(folder / "pids.events", "max") or _count(folder / "pids.peak") >= self.tasks:
                words.append(
                    f"it had started all of the {self.tasks} processes and threads that it gets on this machine"
                )
        return "; ".join(words)


def can_limit() -> bool:
    """Tell by trying whether cgroups of this machine can have limits; in a container they often cannot."""
    group = name()
    with owned(group):
        return Limits.of_machine().set(group)


def name() -> str:
    """Return a new cgroup's path, whose name says that it is this process's."""
    return f"/{orphans.new_name()}"


@contextmanager
def owned(path: str, limits: Limits | None = None) -> Iterator[None]:
    """Remove the cgroup at the end, and at the start those of owners that are dead; give it limits where it can be."""
    for root in _hierarchies():
        for folder in root.glob("parbake-*"):
            if orphans.is_orphan(folder.name):
                _remove(folder)
    try:
        if limits is not None:
            limits.set(path)
        yield
    finally:
        deadline = run.Deadline(_LAST_PROCESS, f"removing cgroup {path}")
        folders = [root / path.lstrip("/") for root in _hierarchies()]
        while not all(_remove(folder) for folder in folders) and deadline.left:
            run.sleep(0.01)


def _hierarchies(*controllers: str, system: Path = Path("/")) -> Iterator[Path]:
    """Yield where hierarchies are mounted: all of them, or those of v2 and those of v1 with one of the controllers."""
    for line in (system / "proc/self/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        kind, _, options = rest.split(" ", 2)
        if kind == "cgroup2" or (kind == "cgroup" and (not controllers or {*options.split(",")} & {*controllers})):
            yield system / fields.split()[4].lstrip("/")


def _count(file: Path, key: str = "") -> int:
    """Return a number of a cgroup, or that of a key in a file of several; 0 where there is none."""
    with suppress(OSError, ValueError):
        words = file.read_text().split()
        return int(words[words.index(key) + 1] if key else words[0])
    return 0


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

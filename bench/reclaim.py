"""A kernel that takes memory back: what a process has read is charged to a control group of its own, and reclaimed.

It is the kernel's own reclaim (cgroups v1 and v2, Documentation/admin-guide/cgroup-v2.rst, "memory.reclaim", and
cgroup-v1/memory.rst), which takes what was used least, mapped pages too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from parbake.core import run

_PLACES = (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup"))  # of v1, or both; of v2


@dataclass(frozen=True)
class Group:
    """A control group of memory, by its folder."""

    folder: Path

    def running(self, words: list[str]) -> list[str]:
        """Return the words that run a program in it, from its first read on."""
        return ["sh", "-c", 'echo $$ >"$0" && exec "$@"', str(self.folder / "cgroup.procs"), *words]

    @property
    def bytes(self) -> int:
        """What is charged now."""
        names = ("memory.usage_in_bytes", "memory.current")
        return next(int((self.folder / name).read_text()) for name in names if (self.folder / name).exists())

    def take_back(self, share: float) -> int:
        """Have the kernel reclaim a share of what is charged; return how many bytes it took."""
        before, limit = self.bytes, self.folder / "memory.limit_in_bytes"
        with suppress(OSError):  # EBUSY, EAGAIN: it has not found as much
            if limit.exists():
                limit.write_text(str(max(1 << 20, int(before * (1 - share)))))
            else:
                (self.folder / "memory.reclaim").write_text(str(int(before * share)))
        if limit.exists():
            limit.write_text("-1")
        return max(0, before - self.bytes)


@contextmanager
def reclaimable() -> Iterator[Group]:
    """Yield a control group; what is in it at the end goes back to the root's. Raises OSError where there is none."""
    place = next(each for each in _PLACES if (each / "cgroup.procs").exists())
    folder = place / f"parbake-bench-{os.getpid()}"
    folder.mkdir()
    try:
        yield Group(folder)
    finally:
        for process in (folder / "cgroup.procs").read_text().split():
            with suppress(OSError):
                (place / "cgroup.procs").write_text(process)
        deadline = run.Deadline(10.0, f"the end of {folder}")
        while folder.exists() and deadline.left:
            with suppress(OSError):
                folder.rmdir()
                break
            run.sleep(0.05)

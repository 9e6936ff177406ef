"""Peak memory of a process tree, sampled from procfs."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import Self

_INTERVAL = 0.05  # seconds
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Peak:
    """The largest sum of resident memory of all descendants of this process that begin within the ``with`` block.

    Sampled every 50 ms. Shared pages count once for each process, so the figure is an upper bound of what the tree
    takes, up to what comes and goes between two samples.
    """

    def __init__(self) -> None:
        self.bytes = 0
        self._others = _descendants(os.getpid())
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(_INTERVAL):
            pids = _descendants(os.getpid()) - self._others
            self.bytes = max(self.bytes, sum(map(_resident, pids)))


def _descendants(pid: int) -> set[int]:
    found: set[int] = set()
    waiting = [pid]
    while waiting:
        parent = waiting.pop()
        with suppress(OSError):
            for task in Path(f"/proc/{parent}/task").iterdir():
                with suppress(OSError):
                    children = (task / "children").read_text().split()
                    waiting += map(int, children)
                    found |= set(map(int, children))
    return found


def _resident(pid: int) -> int:
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
    return 0

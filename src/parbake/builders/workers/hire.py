"""Worker processes: how one is started, and one that is started ahead.

What this room imports is little: the one that starts ahead is to load its code while this process loads its own.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from parbake.builders.workers.wire import SLOT, SLOTS, slots
from parbake.core.run import Process


@dataclass(frozen=True, slots=True)
class Hired:
    """A worker process: our end of its socket, and the memory that both sides share."""

    end: socket.socket
    memory: list[memoryview]
    process: Process


@contextmanager
def hired(start: Callable[[tuple[int, int]], AbstractContextManager[Process]]) -> Iterator[Hired]:
    """Yield a worker; ``start`` runs it with the socket and the memory that it inherits."""
    ours, theirs = socket.socketpair()
    with ours, ExitStack() as stack:
        with theirs:
            memory = os.memfd_create("parbake-layer")
            stack.callback(os.close, memory)
            os.ftruncate(memory, SLOTS * SLOT)
            process = stack.enter_context(start((theirs.fileno(), memory)))
        yield Hired(ours, slots(memory), process)


def worker_process(files: tuple[int, int], log: Path) -> Process:
    """Return a worker, not yet started, that inherits socket and memory; ``log`` gets what it prints."""
    command = [sys.executable, "-I", "-m", f"{__package__}.worker", *map(str, files)]
    return Process(command, log=log, pass_fds=files)


class Spare:
    """A worker that starts while nobody knows yet what there is to do: loading its code takes a tenth of a second.

    A context manager, which ends it where nobody has taken it. Enter it as ``Workers``.
    """

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._worker: Hired | None = None

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            log = os.memfd_create("parbake-worker")
            stack.callback(os.close, log)
            path = Path(f"/proc/{os.getpid()}/fd/{log}")
            self._worker = stack.enter_context(hired(lambda files: worker_process(files, path)))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def take(self) -> Hired | None:
        """Return the worker; None where it is not there any more. It ends with this spare at the latest."""
        worker, self._worker = self._worker, None
        return worker

"""A ring of buffers between one producer and some consumers, each in a thread of its own.

Buffers are allocated once and handed on without a copy. The interpreter's lock is held only to pass a number, since
the queues wait in C.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from threading import Lock


class Stopped(Exception):
    """Another thread has failed: the work is over. Its error is the one to report."""


def memory(slots: int, size: int) -> list[memoryview]:
    """Return new buffers of ``size`` bytes each."""
    return [memoryview(mmap.mmap(-1, size)) for _ in range(slots)]


class Ring:
    """Buffers that are filled in turns; every consumer sees every filled buffer, in order."""

    def __init__(self, buffers: Sequence[memoryview], consumers: int = 1) -> None:
        self._buffers = buffers
        self._slots = slots = len(buffers)
        self._free: list[SimpleQueue[int]] = [SimpleQueue() for _ in range(consumers)]
        self._full: list[SimpleQueue[int]] = [SimpleQueue() for _ in range(consumers)]
        self._next = 0
        for queue in self._free:
            for _ in range(slots):
                queue.put(0)

    def vacant(self) -> memoryview:
        """Return the next buffer, for the producer, once every consumer is done with it; raises Stopped."""
        for queue in self._free:
            if queue.get() < 0:
                queue.put(-1)  # the next to ask must hear it too
                raise Stopped
        return self._buffers[self._next % self._slots]

    def publish(self, count: int) -> None:
        """Hand on the buffer from ``vacant`` with ``count`` bytes in it; 0 ends the stream."""
        self._next += 1
        for queue in self._full:
            queue.put(count)

    def pump(self, source: Callable[[memoryview], int]) -> None:
        """Let ``source`` fill buffers until one stays short of full, which ends the stream.

        Raises Stopped, and what the source raises.
        """
        while True:
            buffer = self.vacant()
            count = source(buffer)
            if count:
                self.publish(count)
            if count < len(buffer):
                self.publish(0)
                return

    def reader(self, consumer: int = 0) -> Callable[[], memoryview | None]:
        """Return the function by which a consumer gets the next buffer (giving back the one before).

        It returns None at the end of the stream, and raises Stopped.
        """
        full, free = self._full[consumer], self._free[consumer]
        buffers, slots = self._buffers, self._slots
        at = 0
        ended = False

        def more() -> memoryview | None:
            nonlocal at, ended
            if ended:
                return None
            if at:
                free.put(0)
            count = full.get()
            if count < 0:
                full.put(-1)
                raise Stopped
            if count == 0:
                ended = True
                return None
            view = buffers[at % slots][:count]
            at += 1
            return view

        return more

    def stop(self) -> None:
        """Wake everyone who waits and end the work; callable from any thread."""
        for queue in (*self._free, *self._full):
            queue.put(-1)


class FirstFailure:
    """Keeps the first error of several threads and stops their rings."""

    def __init__(self, *rings: Ring) -> None:
        self._rings = rings
        self._lock = Lock()
        self.error: BaseException | None = None

    def report(self, error: BaseException) -> None:
        """Note an error; only the first counts, and Stopped is none."""
        with self._lock:
            if self.error is None and not isinstance(error, Stopped):
                self.error = error
        for ring in self._rings:
            ring.stop()

    def guard(self, work: Callable[[], None]) -> Callable[[], None]:
        """Return ``work`` for a thread: whatever it raises is reported."""

        def guarded() -> None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001 (a thread has no caller: `Failure` raises it where one is)
                self.report(error)

        return guarded

"""Layers' bytes on their way to more than one place, and streams that end when the fill does."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from queue import Full, Queue
from typing import TYPE_CHECKING, Final

from parbake.core.errors import Interrupted

if TYPE_CHECKING:
    from parbake.core.events import Task
    from parbake.core.sources import Readable

_PIECE: Final = 1 << 20


def pieces(stream: Readable, task: Task) -> Iterator[bytes]:
    """Yield a stream in pieces of one MiB and count them."""
    buffer = memoryview(bytearray(_PIECE))
    while count := stream.readinto(buffer):
        task.advance(count)
        yield bytes(buffer[:count])


class Endable:
    """A stream that ends with Interrupted once the fill is over: nobody waits for gigabytes after an error."""

    def __init__(self, stream: Readable, over: threading.Event) -> None:
        self._stream, self._over = stream, over

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill the start of ``buffer`` (``sources.Readable``)."""
        if self._over.is_set():
            raise Interrupted("the fill ended early")
        return self._stream.readinto(buffer)


class Tee:
    """Hands what the engine receives to a writer in another thread, as an iterable; a context manager.

    The engine's ``keep`` takes any object with ``write``. A writer that ends early (the blob is there) is not an error.
    """

    def __init__(self, writer: Callable[[Iterator[bytes]], None]) -> None:
        self._writer = writer
        self._queue: Queue[bytes | None] = Queue(8)
        self._ended = threading.Event()
        self._failure: BaseException | None = None
        self._whole = False
        self._thread = threading.Thread(target=self._run, name="keep-layer")

    def write(self, data: memoryview) -> int:
        """Pass on a copy of ``data``."""
        self._put(bytes(data))
        return len(data)

    def _put(self, piece: bytes | None) -> None:
        while not self._ended.is_set():
            try:
                self._queue.put(piece, timeout=0.1)
            except Full:
                continue
            return

    def _iterate(self) -> Iterator[bytes]:
        while (piece := self._queue.get()) is not None:
            yield piece
        if not self._whole:
            raise Interrupted("the layer ended early")

    def _run(self) -> None:
        try:
            self._writer(self._iterate())
        except BaseException as error:  # noqa: BLE001 (a thread has no caller: __exit__ raises it)
            self._failure = error
        finally:
            self._ended.set()

    def __enter__(self) -> Tee:
        self._thread.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._whole = kind is None
        self._put(None)
        self._thread.join()
        if self._failure is not None and kind is None:
            raise self._failure

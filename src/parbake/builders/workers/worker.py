"""The process that writes layers into a volume: ``python -I -m parbake.builders.workers.worker SOCKET MEMORY``.

It inherits both open files, and works until the other end of the socket is closed. What it imports is little: each
worker has its own memory, and a bake waits for the first one.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final, NamedTuple

from parbake.builders.workers.wire import SLOTS, Message, Wire, failure, raised, slots
from parbake.core.errors import Interrupted
from parbake.images.layers import TreeSink, complete_tree, unpack
from parbake.machine.ext4.allocator import Zone
from parbake.machine.ext4.layer import LayerWriter, WrittenLayer
from parbake.machine.ext4.reader import Reader
from parbake.machine.ext4.stream import Buffers, Hashes, Stream, open_direct
from parbake.machine.ext4.superblock import Range, Superblock, merged

_TOLD: Final = 4 << 20
"""Bytes of a tar after which the others hear of them: together they have an allowance."""


class ComingLayer(NamedTuple):
    """What is known of a layer before it comes (``layers.engine.ExpectedLayer``)."""

    digest: str
    size: int
    diff_id: str
    chain_id: str


class Worker:
    """Writes one layer after the other."""

    def __init__(self, wire: Wire, memory: int) -> None:
        self._wire, self._slots = wire, slots(memory)
        self._jobs: SimpleQueue[Message | None] = SimpleQueue()
        # Of the job that is under way: what comes next of its bytes, and answers to what it asked.
        self._data: SimpleQueue[int] = SimpleQueue()
        self._answers: SimpleQueue[Message] = SimpleQueue()
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="volume")
        self._buffers = Buffers()

    def listen(self, gone: Callable[[], object]) -> None:
        """Sort messages until the other end is gone; call ``gone`` then. In a thread of its own."""
        while (message := self._wire.receive()) is not None:
            kind = message["is"]
            if kind == "data":
                self._data.put(message["count"])
            elif kind == "job":  # what an earlier one left unread goes with its queues
                self._data, self._answers = SimpleQueue(), SimpleQueue()
                self._jobs.put(message)
            else:
                self._answers.put(message)
        gone()
        self._data.put(-1)
        self._jobs.put(None)

    def work(self) -> None:
        """Do jobs as they come, and say how each ended."""
        while (job := self._jobs.get()) is not None:
            try:
                answer: Message = {"is": "done", **self._write(job)}
            except Exception as error:  # noqa: BLE001 (the other process raises it)
                answer = failure(error)
            with suppress(OSError):  # nobody is there to hear it
                self._wire.send(answer)

    def _write(self, job: Message) -> dict[str, Any]:
        hashes, told = Hashes(), _Told(self._wire)
        with _opened(Path(job["path"])) as (superblock, direct):
            superblock.written = hashes.touch
            blocks = Zone(_ranges(job["blocks"]), lambda: self._more("blocks"))
            inodes = Zone(_ranges(job["inodes"]), lambda: self._more("inodes"))
            stream = Stream(direct, blocks, self._threads, hashes, self._buffers)
            writer = LayerWriter(superblock, stream, blocks, inodes, hashes)
            sink = TreeSink("the volume", writer)
            unpacked = unpack(
                _Arriving(self._slots, self._data, self._wire), ComingLayer(*job["layer"]), sink,
                bound=job["bound"], progress=lambda _: None, allowance=told,
            )  # fmt: skip
            told.rest()
            if sink.tree.implied:
                reader = Reader(superblock)
                complete_tree(sink.tree, [reader.node(root) for root in self._ask("lowers")])
            written = writer.write(sink.tree.root, sink.tree.unused)
        return {"entries": unpacked.entries, "raw_size": unpacked.raw_size, **packed(written)}

    def _more(self, what: str) -> Range:
        start, end = self._ask(what)
        return start, end

    def _ask(self, what: str) -> list[int]:
        self._wire.send({"is": what})
        answer = self._answers.get()
        if answer["is"] == "failed":
            raise raised(answer)
        found: list[int] = answer["answer"]
        return found


class _Arriving:
    """The layer's compressed bytes (``sources.Readable``), in ``buffers`` that the other process fills in turns.

    Who reads into these buffers in turns finds the bytes there; into any other they are copied.
    """

    def __init__(self, buffers: Sequence[memoryview], filled: SimpleQueue[int], wire: Wire) -> None:
        self.buffers = buffers
        self._filled, self._wire = filled, wire
        self._turn = self._lent = 0
        self._view = memoryview(b"")
        self._ended = False

    def readinto(self, buffer: memoryview, /) -> int:
        if buffer is self.buffers[self._turn % SLOTS]:
            if self._lent == SLOTS:  # whoever reads is done with what was in it before
                self._wire.send({"is": "free"})
            else:
                self._lent += 1
            return self._next()
        for _ in range(self._lent):  # nobody looks at those any more: it is the end, or what came is damaged
            self._wire.send({"is": "free"})
        self._lent = 0
        while not self._view and not self._ended:
            count = self._next()
            self._view = self.buffers[(self._turn - 1) % SLOTS][:count]
        count = min(len(buffer), len(self._view))
        buffer[:count] = self._view[:count]
        self._view = self._view[count:]
        if count and not self._view:
            self._wire.send({"is": "free"})
        return count

    def _next(self) -> int:
        """Wait for the next buffer; return how many bytes are in it, 0 at the end."""
        if self._ended:
            return 0
        count = self._filled.get()
        if count < 0:
            raise Interrupted("the fill ended early")
        self._turn += 1
        self._ended = not count
        return count


class _Told:
    """Tells how many bytes a tar has (``layers.engine.Bytes``), now and then; who counts them may end the job."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._count = 0

    def take(self, count: int) -> None:
        self._count += count
        if self._count >= _TOLD:
            self.rest()

    def rest(self) -> None:
        """Tell of those that were not told yet."""
        self._wire.send({"is": "raw", "count": self._count})
        self._count = 0


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Superblock, int]]:
    """Open a volume for one layer: through the page cache, and past it."""
    handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        direct = open_direct(path)
        try:
            yield Superblock(handle), direct
        finally:
            os.close(direct)
    finally:
        os.close(handle)


def _ranges(found: Sequence[Sequence[int]]) -> list[Range]:
    return [(start, end) for start, end in found]


def packed(written: WrittenLayer) -> dict[str, Any]:
    """Return a layer that was written as a part of a message."""
    placed, hashes = written.placed, written.hashes
    return {
        "holder": placed.holder, "root": placed.root, "blocks": placed.blocks, "inodes": placed.inodes,
        "folders": placed.folders, "blocks_left": written.blocks_left, "inodes_left": written.inodes_left,
        "touched": merged((number, number + 1) for number in hashes.touched),
        "known": {number: digest.hex() for number, digest in hashes.known.items()},
    }  # fmt: skip


def main() -> None:
    """Work for the process that started this one, and end with it."""
    end, memory = (int(number) for number in sys.argv[1:])
    worker = Worker(Wire(socket.socket(fileno=end)), memory)
    threading.Thread(target=worker.listen, args=(lambda: os._exit(0),), name="listen", daemon=True).start()
    worker.work()


if __name__ == "__main__":
    main()

"""Worker processes, and layers on their way through them."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Final, Self

from parbake.builders.workers.hire import Hired, Spare, hired, worker_process
from parbake.builders.workers.wire import SLOT, SLOTS, Message, Wire, failure, raised
from parbake.core import cores
from parbake.core.errors import Interrupted, LayerError, ParbakeError
from parbake.core.run import Process
from parbake.images.layers import inflate
from parbake.machine.ext4.layer import PlacedLayer, WrittenLayer
from parbake.machine.ext4.stream import Hashes

if TYPE_CHECKING:
    from parbake.core.model import Layer
    from parbake.core.sources import Progress, Readable
    from parbake.images.layers.engine import BlobCopy, Bytes
    from parbake.machine.ext4 import LayerArea

_MOST: Final = 16
_LARGE: Final = 1 << 20
_SMALL_ONES: Final = 4
"""Layers below ``_LARGE`` bytes that one worker does as fast as others would start: each costs 0.15 s of a core."""
_MEMORY: Final = 2 << 30
"""Bytes that this machine should have for each worker beyond the second: it takes 40 MiB or so for itself, a layer of
the most and longest names that are taken 1.2 GiB."""


@dataclass(frozen=True, slots=True)
class LayerJob:
    """A layer, where it goes, and what it may cost (``layers.unpack``).

    ``lowers`` waits until the layers below are placed, and returns their roots' inode numbers, the top one first.
    ``begun`` is called once a worker has taken it.
    """

    layer: Layer
    area: LayerArea
    lowers: Callable[[], Sequence[int]]
    bound: int
    allowance: Bytes
    begun: Callable[[], object] = lambda: None


@dataclass(frozen=True, slots=True)
class Done:
    """A layer that a worker has written; ``entries`` counts what was applied, ``raw_size`` the bytes of its tar."""

    entries: int
    raw_size: int
    written: WrittenLayer


def worth_starting(sizes: Collection[int]) -> int:
    """Return how many workers layers of so many compressed bytes keep busy, whatever the number of cores."""
    large = sum(size >= _LARGE for size in sizes)
    return max(1, large, -(-len(sizes) // _SMALL_ONES))


def most(count: int, memory: int) -> int:
    """Return how many workers there should be at most on so many cores, with so many bytes of memory."""
    return min(count, _MOST, max(2, memory // _MEMORY))


def count_for(sizes: Collection[int]) -> int:
    """Return how many workers to start here for layers of so many compressed bytes."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGESIZE")
    return min(worth_starting(sizes), most(cores.available(), memory))


class Workers:
    """Processes that write layers into volumes. A context manager; ``write`` from as many threads as there are.

    Enter it in a thread that lives as long: the kernel ends processes with the thread that started them.
    """

    def __init__(self, log: Path, count: int, spare: Spare | None = None) -> None:
        """``log`` gets what they print; ``spare`` has the first one, if it is still there."""
        self.count = count
        self._log, self._spare = log, spare
        self._idle: SimpleQueue[_Hand] = SimpleQueue()
        self._stack = ExitStack()
        self._hands: list[_Hand] = []
        self._stopped = threading.Event()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            spare = self._spare.take() if self._spare else None
            for _ in range(self.count):
                worker, spare = spare or stack.enter_context(hired(self._process)), None
                hand = _Hand(worker, self._stopped)
                self._hands.append(hand)
                self._idle.put(hand)
            self._stack = stack.pop_all()
        return self

    def _process(self, files: tuple[int, int]) -> AbstractContextManager[Process]:
        """Return the process that inherits socket and memory."""
        return worker_process(files, self._log)

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._stack.close()

    def stop(self) -> None:
        """End the work: whoever waits for a worker gets Interrupted. Callable from any thread."""
        self._stopped.set()
        for hand in self._hands:
            hand.hang_up()

    def write(self, job: LayerJob, stream: Readable, *, progress: Progress, keep: BlobCopy | None = None) -> Done:
        """Have a worker write a layer; it need not be settled yet (``LayerArea.settle``).

        Raises what ``layers.unpack``, ``complete_tree`` and ``LayerWriter.write`` raise, Interrupted after ``stop``.
        """
        hand = self._idle.get()
        job.begun()
        try:
            return hand.write(job, stream, progress, keep)
        finally:
            self._idle.put(hand)


_QUESTIONS: Final = frozenset({"blocks", "inodes", "lowers"})


class _Failed(Exception):
    """The worker has failed in its job, and waits for the next."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


class _Hand:
    """One worker, as this process sees it."""

    def __init__(self, worker: Hired, stopped: threading.Event) -> None:
        self._socket, self._wire, self._slots = worker.end, Wire(worker.end), worker.memory
        self._process, self._stopped = worker.process, stopped
        self._free = SLOTS

    def hang_up(self) -> None:
        """Let both ends see the end of the socket, upon which the worker goes."""
        with suppress(OSError):  # it is gone already
            self._socket.shutdown(socket.SHUT_RDWR)

    def write(self, job: LayerJob, stream: Readable, progress: Progress, keep: BlobCopy | None) -> Done:
        layer, area = job.layer, job.area
        self._free = SLOTS
        self._send({
            "is": "job", "path": str(area.path), "bound": job.bound, "blocks": area.blocks, "inodes": area.inodes,
            "layer": (layer.digest, layer.size, layer.diff_id, layer.chain_id),
        })  # fmt: skip
        try:
            done = self._pump(job, stream, progress, keep)
            while done is None:
                done = self._answer(job)
        except _Failed as failed:
            raise failed.error from None
        except BaseException:
            self._abandon()
            raise
        return done

    def _abandon(self) -> None:
        """Let the worker end its job, and wait for that: it can do another then."""
        self._send({"is": "data", "count": -1})
        while (message := self._wire.receive()) is not None and message["is"] not in {"done", "failed"}:
            if message["is"] in _QUESTIONS:
                self._send(failure(Interrupted("the fill ended early")))

    def _pump(self, job: LayerJob, stream: Readable, progress: Progress, keep: BlobCopy | None) -> Done | None:
        """Pass on the layer's bytes, and then their end."""
        turn, count = 0, SLOT
        while count == SLOT:
            while not self._free:
                if (done := self._answer(job)) is not None:
                    return done
            buffer = self._slots[turn % SLOTS]
            count = inflate.fill(stream, buffer)
            if count:
                if keep is not None:
                    keep.write(buffer[:count])
                progress(count)
                self._send({"is": "data", "count": count})
                self._free -= 1
                turn += 1
        self._send({"is": "data", "count": 0})
        return None

    def _answer(self, job: LayerJob) -> Done | None:
        """Take the worker's next message; return what it has done when it is done. Raises what it raised."""
        message = self._wire.receive()
        if message is None:
            raise _Failed(self._gone(job))
        match message["is"]:
            case "free":
                self._free += 1
            case "raw":
                _account(job, message["count"])
            case "blocks":
                self._reply(job.area.more_blocks)
            case "inodes":
                self._reply(job.area.more_inodes)
            case "lowers":
                self._reply(job.lowers)
            case "done":
                return _done(message)
            case "failed":
                raise _Failed(raised(message))
        return None

    def _reply(self, find: Callable[[], Sequence[int]]) -> None:
        """Answer a question; an error is the worker's, which cannot go on then."""
        try:
            answer: Message = {"is": "answer", "answer": find()}
        except ParbakeError as error:
            answer = failure(error)
        self._send(answer)

    def _send(self, message: Message) -> None:
        with suppress(OSError):  # it is gone, as whoever waits for its answer will see
            self._wire.send(message)

    def _gone(self, job: LayerJob) -> ParbakeError:
        if self._stopped.is_set():
            return Interrupted("the fill ended early")
        self._process.stop()
        return ParbakeError(
            f"layer {job.layer.digest}: the process that unpacked it has ended (code {self._process.code})\n"
            f"{self._process.tail}".rstrip(),
            hint="code -9 most often means that memory ran out (`dmesg` says); anything else is a bug in parbake",
        )


def _account(job: LayerJob, count: int) -> None:
    try:
        job.allowance.take(count)
    except LayerError as error:  # as the engine says it of a layer of its own process
        raise type(error)(f"layer {job.layer.digest}: {error.message}", hint=error.hint) from None


def _done(message: Message) -> Done:
    hashes = Hashes()
    hashes.touched = {number for start, end in message["touched"] for number in range(start, end)}
    hashes.known = {int(number): bytes.fromhex(digest) for number, digest in message["known"].items()}
    placed = PlacedLayer(
        message["holder"], message["root"], _ranges(message["blocks"]), _ranges(message["inodes"]),
        {int(group): count for group, count in message["folders"].items()},
    )  # fmt: skip
    written = WrittenLayer(placed, _ranges(message["blocks_left"]), _ranges(message["inodes_left"]), hashes)
    return Done(message["entries"], message["raw_size"], written)


def _ranges(found: Sequence[Sequence[int]]) -> tuple[tuple[int, int], ...]:
    return tuple((start, end) for start, end in found)

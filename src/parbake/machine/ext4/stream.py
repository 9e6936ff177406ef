"""Data on its way into a volume's file: gathered into large aligned buffers, written past the page cache.

Files lie one after the other, each from a block of its own. A second thread writes and hashes what the first has
filled, so that neither waits for the other.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import TYPE_CHECKING, Final

from blake3 import blake3

from parbake.core.files import write_all
from parbake.core.filetree import NO_DATA, Extents
from parbake.machine.ext4.superblock import BLOCK

if TYPE_CHECKING:
    from parbake.machine.ext4.allocator import Zone

HASHED: Final = 512 << 10
"""Bytes of the blocks that are hashed on their way: the unit of cloud snapshots."""
_BUFFER: Final = 2 << 20
_BUFFERS: Final = 4
_ZEROS: Final = memoryview(bytes(BLOCK))
_NOTHING: Final = blake3(bytes(HASHED)).digest()


def open_direct(path: Path) -> int:
    """Open a file for writing without the page cache, or with it where its file system cannot do without."""
    try:
        return os.open(path, os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.open(path, os.O_WRONLY | os.O_CLOEXEC)


class Hashes:
    """BLAKE3 of the volume's 512 KiB blocks, as far as they were written whole and not touched since."""

    def __init__(self) -> None:
        self.known: dict[int, bytes] = {}
        """By the number of the block; blocks of zeros are left out."""
        self.touched: set[int] = set()
        """Numbers of all blocks that were written to."""

    def whole(self, data: memoryview, start: int) -> None:
        """Hash the whole blocks in what is written at ``start`` (bytes); each is written once."""
        self.touched.update(range(start // HASHED, -(-(start + len(data)) // HASHED)))
        for at in range(-start % HASHED, len(data) - HASHED + 1, HASHED):
            digest = blake3(data[at : at + HASHED]).digest()
            if digest != _NOTHING:
                self.known[(start + at) // HASHED] = digest

    def touch(self, start: int, end: int) -> None:
        """Forget the hashes of what was written to (bytes)."""
        for number in range(start // HASHED, -(-end // HASHED)):
            self.touched.add(number)
            self.known.pop(number, None)

    def take_over(self, others: Hashes) -> None:
        """Add what another has seen of other blocks of the same volume."""
        for number in others.touched:
            self.known.pop(number, None)
        self.touched |= others.touched
        self.known |= others.known


class Buffers:
    """Memory that streams have one after the other, from any thread."""

    def __init__(self) -> None:
        self._free: list[list[memoryview]] = []

    def take(self) -> list[memoryview]:
        """Return the buffers for one stream."""
        try:
            return self._free.pop()
        except IndexError:
            return [memoryview(mmap.mmap(-1, _BUFFER)) for _ in range(_BUFFERS)]

    def give(self, buffers: list[memoryview]) -> None:
        """Take back what a stream does not need any more."""
        self._free.append(buffers)


class Stream:
    """Writes into one zone of blocks, in order. Use from one thread; ``flush`` before anything is read back."""

    def __init__(self, handle: int, zone: Zone, workers: Executor, hashes: Hashes, memory: Buffers) -> None:
        """``handle`` comes from ``open_direct``."""
        self._handle, self._zone, self._workers, self._hashes = handle, zone, workers, hashes
        self._memory = memory
        # Many layers have their places before their bytes come: memory is taken by the first of those, until `flush`.
        self._buffers: list[memoryview] = []
        self._pending: list[list[Future[None]]] = [[] for _ in range(_BUFFERS)]
        self._turn = 0
        self._buffer = memoryview(b"")
        # In bytes: where the buffer's start belongs in the file, what is in it, and what it may hold.
        self._start = self._at = self._room = 0
        self._extents: list[tuple[int, int, int]] = []

    # -- files

    def put(self, pieces: Iterable[memoryview]) -> Extents:
        """Write the data of one file and return where it lies."""
        first, logical = -1, 0
        for data in pieces:
            if first < 0:
                self._open_block()
                first = self._block()
            left = len(data)
            done = 0
            while left:
                room = self._room - self._at
                if not room:
                    logical = self._close_extent(logical, first)
                    self._open_block()
                    first = self._block()
                    continue
                count = min(room, left)
                self._buffer[self._at : self._at + count] = data[done : done + count]
                self._at += count
                done += count
                left -= count
        if first < 0:
            return NO_DATA
        self._pad()
        self._close_extent(logical, first)
        extents = tuple(joined(self._extents))
        self._extents.clear()
        return extents

    def put_whole(self, data: memoryview) -> Extents:
        """Write the data of one file that are there in one piece: most often one copy."""
        at, size = self._at, len(data)
        count = -(-size // BLOCK)
        end = at + count * BLOCK
        if not count or end > self._room:
            return self.put((data,))
        first = self._block()
        self._buffer[at : at + size] = data
        if tail := end - at - size:
            self._buffer[at + size : end] = _ZEROS[:tail]
        self._at = end
        return ((0, first, count),)

    def put_sparse(self, segments: Iterable[tuple[int, Iterable[memoryview]]]) -> Extents:
        """Write pieces of a file at their offsets (bytes, ascending); whole blocks between them stay holes."""
        found: list[tuple[int, int, int]] = []
        waiting = bytearray()
        begun = 0  # where in the file the first waiting byte belongs: always the start of a block

        def write(size: int) -> int:
            if size:
                whole = bytes(waiting[:size])
                del waiting[:size]
                block = begun // BLOCK
                extents = self.put([memoryview(whole)])
                found.extend((block + logical, place, count) for logical, place, count in extents)
            return begun + size

        for offset, pieces in segments:
            if offset >= begun + -(-len(waiting) // BLOCK) * BLOCK:
                write(len(waiting))
                begun = offset // BLOCK * BLOCK
            waiting += bytes(offset - begun - len(waiting))
            for piece in pieces:
                waiting += piece
                if len(waiting) >= _BUFFER:
                    begun = write(len(waiting) // BLOCK * BLOCK)
        write(len(waiting))
        return tuple(joined(found))

    # -- blocks

    def block(self, data: bytes | bytearray) -> int:
        """Write one block of metadata and return its number."""
        self._open_block()
        number = self._block()
        self._buffer[self._at : self._at + BLOCK] = data
        self._at += BLOCK
        return number

    def next_block(self) -> int:
        """Return the number that the next ``block`` will have: for checksums that depend on it."""
        self._open_block()
        return self._block()

    def flush(self) -> None:
        """Have everything written; raises what writing raised."""
        self._hand_over()
        for pending in self._pending:
            for future in pending:
                future.result()
            pending.clear()
        self._buffer = memoryview(b"")
        if self._buffers:
            self._memory.give(self._buffers)
            self._buffers = []

    # -- the buffer

    def _block(self) -> int:
        return (self._start + self._at) // BLOCK

    def _open_block(self) -> None:
        """Make sure that the buffer has a place in the file and room for a block."""
        if self._at < self._room:
            return
        self._hand_over()
        if not self._buffers:
            self._buffers = self._memory.take()
        for future in self._pending[self._turn]:
            future.result()
        self._pending[self._turn].clear()
        self._buffer = self._buffers[self._turn]
        block, run = self._zone.run()
        self._start, self._at = block * BLOCK, 0
        # Buffers end where a hashed block ends, so that nearly all of them can be hashed whole.
        to_border = _BUFFER - self._start % _BUFFER
        self._room = min(to_border, run * BLOCK)

    def _pad(self) -> None:
        tail = -self._at % BLOCK
        if tail:
            self._buffer[self._at : self._at + tail] = _ZEROS[:tail]
            self._at += tail

    def _close_extent(self, logical: int, first: int) -> int:
        count = self._block() - first
        if count:
            self._extents.append((logical, first, count))
        return logical + count

    def _hand_over(self) -> None:
        """Give what the buffer holds to the workers, and its blocks away for good."""
        if not self._at:
            return
        self._zone.take(self._at // BLOCK)
        data, start = self._buffer[: self._at], self._start
        self._pending[self._turn] += [
            self._workers.submit(write_all, self._handle, data, start),
            self._workers.submit(self._hashes.whole, data, start),
        ]
        self._turn = (self._turn + 1) % _BUFFERS
        self._at = self._room = 0


def joined(extents: Iterable[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Return extents as few as they can be: those that follow on each other are one."""
    found: list[tuple[int, int, int]] = []
    for logical, place, count in extents:
        if found:
            before, at, length = found[-1]
            if before + length == logical and at + length == place:
                found[-1] = (before, at, length + count)
                continue
        found.append((logical, place, count))
    return found

"""The blocks of disks: which are not all zeros, what they hold, and the list of them (``parbake.core.blocks``)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from blake3 import blake3

from parbake.core import cores
from parbake.core.blocks import Algorithm, BlockList
from parbake.core.errors import InputError
from parbake.core.events import Events, Task
from parbake.core.files import write_all
from parbake.core.model import EBS_BLOCK
from parbake.machine.disk.files import BECAME_SHORTER, extents

ZEROS: Final = bytes(EBS_BLOCK)
_BATCH = 4  # blocks for one read: enough to make calls rare, little enough for a buffer in each thread
_MOST_THREADS = 16
HASHES: Final[dict[str, Callable[[bytes | bytearray | memoryview], bytes]]] = {
    "sha256": lambda data: hashlib.sha256(data).digest(),
    "blake3": lambda data: blake3(data).digest(),
}


def block_list(
    path: Path,
    events: Events,
    known: Mapping[int, bytes] | None = None,
    *,
    algorithm: Algorithm = "sha256",
    copy_to: int = -1,
) -> BlockList:
    """Hash the blocks of a raw disk on all cores; holes are not read. ``known`` blocks are taken as they are.

    With ``copy_to``, an open file of the same length that is all zeros, what is hashed is also written there. Raises
    InputError when the file becomes shorter meanwhile.
    """
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        found = dict(known or {})
        batches = _batches([index for index in data_blocks(file.fileno(), size) if index not in found])
        total = sum(count for _, count in batches) * EBS_BLOCK
        with events.task(f"blocks {path.name}", total) as task:
            reader = _Reader(path, file.fileno(), size, batches, task, HASHES[algorithm], copy_to)
            threads = min(cores.available(), _MOST_THREADS)
            with ThreadPoolExecutor(threads) as pool:
                try:
                    for hashed in [pool.submit(reader.work) for _ in range(threads)]:
                        found.update(hashed.result())
                except BaseException:
                    reader.stopped = True
                    raise
    return BlockList(size, found, algorithm)


def data_blocks(handle: int, size: int) -> Iterator[int]:
    """Yield the blocks of an open file that are not wholly in holes, ascending."""
    following = 0
    for start, end in extents(handle, size):
        first = max(start // EBS_BLOCK, following)
        following = max(following, -(-end // EBS_BLOCK))
        yield from range(first, following)


def _batches(indices: list[int]) -> list[tuple[int, int]]:
    """Return runs of at most _BATCH neighbours as (first, count)."""
    batches: list[tuple[int, int]] = []
    for index in indices:
        first, count = batches[-1] if batches else (index, 0)
        if count and count < _BATCH and index == first + count:
            batches[-1] = (first, count + 1)
        else:
            batches.append((index, 1))
    return batches


class _Reader:
    """Hashes batches of blocks; ``work`` runs in several threads, each takes the next batch until there is none."""

    def __init__(
        self,
        path: Path,
        handle: int,
        size: int,
        batches: list[tuple[int, int]],
        task: Task,
        digest: Callable[[bytearray], bytes],
        copy_to: int,
    ) -> None:
        self._path, self._handle, self._size, self._task, self._digest = path, handle, size, task, digest
        self._copy_to = copy_to
        self._batches = iter(batches)  # a list's iterator may be shared between threads
        self.stopped = False

    def work(self) -> dict[int, bytes]:
        # Comparing with a bytearray is one memcmp(3); with a memoryview it would go item by item.
        buffers = [bytearray(EBS_BLOCK) for _ in range(_BATCH)]
        found: dict[int, bytes] = {}
        for first, count in self._batches:
            if self.stopped:
                break
            self._fill(buffers[:count], first * EBS_BLOCK)
            for index, buffer in enumerate(buffers[:count], first):
                if buffer != ZEROS:
                    found[index] = self._digest(buffer)
                    if self._copy_to >= 0:
                        self._write(buffer, index * EBS_BLOCK)
            self._task.advance(count * EBS_BLOCK)
        return found

    def _write(self, buffer: bytearray, place: int) -> None:
        write_all(self._copy_to, memoryview(buffer)[: self._size - place], place)

    def _fill(self, buffers: list[bytearray], place: int) -> None:
        read_blocks(self._path, self._handle, self._size, buffers, place)


def read_blocks(path: Path, handle: int, size: int, buffers: list[bytearray], place: int) -> None:
    """Fill buffers from an open file of ``size`` bytes; what lies behind its end is zeros.

    Raises InputError when the file has become shorter.
    """
    wanted = min(len(buffers) * EBS_BLOCK, size - place)
    count = os.preadv(handle, buffers, place)
    while count < wanted:
        whole, rest = divmod(count, EBS_BLOCK)
        views: list[memoryview | bytearray] = [memoryview(buffers[whole])[rest:], *buffers[whole + 1 :]]
        more = os.preadv(handle, views, place + count)
        if not more:
            raise InputError(f"{path} shrank while it was read", hint=BECAME_SHORTER)
        count += more
    if count < len(buffers) * EBS_BLOCK:
        whole, rest = divmod(wanted, EBS_BLOCK)
        buffers[whole][rest:] = bytes(EBS_BLOCK - rest)
        for buffer in buffers[whole + 1 :]:
            buffer[:] = ZEROS

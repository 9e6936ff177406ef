"""Folders' blocks: entries one after the other, and a checksum at the end of each block.

Source: kernel documentation, ext4, "Directory Entries", "Linear (Classic) Directories".
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from parbake.machine.ext4 import checksums
from parbake.machine.ext4.superblock import BLOCK

_ENTRY: Final = struct.Struct("<IHBB")
_TAIL: Final = 12
_ROOM: Final = BLOCK - _TAIL
_TAIL_TYPE: Final = 0xDE
_PACK: Final = [struct.Struct(f"<IHBB{max(0, size - 8)}s").pack for size in range(0, 8 + 256 + 1, 4)]
"""Packs an entry whose name is filled up with zeros, by a quarter of its size."""
_TYPES: Final = {
    mode >> 12: number
    for mode, number in (
        (stat.S_IFREG, 1), (stat.S_IFDIR, 2), (stat.S_IFCHR, 3), (stat.S_IFBLK, 4), (stat.S_IFIFO, 5),
        (stat.S_IFSOCK, 6), (stat.S_IFLNK, 7),
    )
}  # fmt: skip
"""By the four bits of a mode that say what it is."""

type Entry = tuple[bytes, int, int]
"""Name, inode number, mode."""


def blocks_of(entries: Iterable[Entry], seed: int) -> Iterator[bytes]:
    """Yield the blocks of a folder, ``.`` and ``..`` first among its entries; ``seed`` is its inode's."""
    parts: list[bytes] = []
    at = last = 0
    for name, number, mode in entries:
        length = len(name)
        size = length + 11 & ~3  # that of an empty name is 8
        if at + size > _ROOM:
            yield _finished(parts, last, seed)
            parts, at = [], 0
        last = at
        at += size
        parts.append(_PACK[size >> 2](number, size, length, _TYPES[mode >> 12], name))
    yield _finished(parts, last, seed)


def _finished(parts: Sequence[bytes], last: int, seed: int) -> bytes:
    """Let the last entry, which begins at ``last``, reach to the tail, and write that."""
    data = bytearray(b"".join(parts).ljust(_ROOM, b"\0"))
    struct.pack_into("<H", data, last + 4, _ROOM - last)
    data += struct.pack("<IHBBI", 0, _TAIL, 0, _TAIL_TYPE, checksums.crc(seed, data))
    return bytes(data)


def entries_of(data: bytes) -> Iterator[tuple[bytes, int]]:
    """Yield names and inode numbers of one block, ``.`` and ``..`` left out."""
    at = 0
    while at + _ENTRY.size <= len(data):
        number, size, length, _ = _ENTRY.unpack_from(data, at)
        if size < _ENTRY.size:
            return
        name = data[at + _ENTRY.size : at + _ENTRY.size + length]
        if number and name not in {b".", b".."}:
            yield name, number
        at += size

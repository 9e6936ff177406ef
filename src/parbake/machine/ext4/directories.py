"""Folders' blocks: entries one after the other, and a checksum at the end of each block.

Source: kernel documentation, ext4, "Directory Entries", "Linear (Classic) Directories".
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterable, Iterator
from typing import Final

from parbake.machine.ext4 import checksums
from parbake.machine.ext4.superblock import BLOCK

_ENTRY: Final = struct.Struct("<IHBB")
_TAIL: Final = 12
_ROOM: Final = BLOCK - _TAIL
_TAIL_TYPE: Final = 0xDE
_TYPES: Final = {
    stat.S_IFREG: 1, stat.S_IFDIR: 2, stat.S_IFCHR: 3, stat.S_IFBLK: 4, stat.S_IFIFO: 5, stat.S_IFSOCK: 6,
    stat.S_IFLNK: 7,
}  # fmt: skip

type Entry = tuple[bytes, int, int]
"""Name, inode number, mode."""


def blocks_of(entries: Iterable[Entry], seed: int) -> Iterator[bytes]:
    """Yield the blocks of a folder, ``.`` and ``..`` first among its entries; ``seed`` is its inode's."""
    data = bytearray()
    last = 0
    for name, number, mode in entries:
        size = _ENTRY.size + -(-len(name) // 4) * 4
        if len(data) + size > _ROOM:
            yield _finished(data, last, seed)
            data = bytearray()
        last = len(data)
        data += _ENTRY.pack(number, size, len(name), _TYPES[stat.S_IFMT(mode)]) + name
        data += bytes(last + size - len(data))
    yield _finished(data, last, seed)


def _finished(data: bytearray, last: int, seed: int) -> bytes:
    """Let the last entry reach to the tail, and write that."""
    struct.pack_into("<H", data, last + 4, _ROOM - last)
    data += bytes(_ROOM - len(data))
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

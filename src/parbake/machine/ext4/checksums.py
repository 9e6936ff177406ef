"""Checksums of ext4's metadata: CRC-32C without the final inversion (kernel documentation, ext4, "Checksums")."""

from __future__ import annotations

import struct
from typing import Final

from google_crc32c import extend as _extend

_ALL: Final = 0xFFFFFFFF
_U32: Final = struct.Struct("<I")
_INODE: Final = struct.Struct("<II")  # number and generation


def crc(seed: int, data: bytes | bytearray | memoryview) -> int:
    """Continue a checksum over ``data``; the first seed of all is all ones."""
    return int(_extend(seed ^ _ALL, bytes(data))) ^ _ALL


def first(data: bytes | bytearray | memoryview) -> int:
    """Start a checksum."""
    return crc(_ALL, data)


def of_inode(seed: int, number: int) -> int:
    """Return the seed for what belongs to one inode of generation 0; ``seed`` is the file system's."""
    return int(_extend(seed ^ _ALL, _INODE.pack(number, 0))) ^ _ALL


def of_whole_inode(seed: int, number: int, inode: bytes | memoryview) -> int:
    """Return an inode's checksum, with its fields for that zero; ``seed`` is the file system's."""
    return int(_extend(_extend(seed ^ _ALL, _INODE.pack(number, 0)), bytes(inode))) ^ _ALL


def of_group(seed: int, number: int, descriptor: bytes | bytearray) -> int:
    """Return the 16 bits that go into a group's descriptor, in which their field is zero."""
    return crc(crc(seed, _U32.pack(number)), descriptor) & 0xFFFF

"""Extended attributes as ext4 stores them: behind an inode's fields where they fit, else in a block of their own.

Sources: kernel documentation, ext4, "Extended Attributes"; hashes as in e2fsprogs ``lib/ext2fs/ext_attr.c``; Linux
``fs/ext4/acl.h``, of the form in which ext4 stores POSIX ACLs, shorter than the one that programs set.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Final

from parbake.core.errors import LayerError
from parbake.core.filetree import Acl, acl_value, parse_acl
from parbake.machine.ext4 import checksums
from parbake.machine.ext4.superblock import BLOCK

_MAGIC: Final = 0xEA020000
_ENTRY: Final = struct.Struct("<BBHIII")
_HEADER: Final = 32
_U32: Final = 0xFFFFFFFF
# The longest names first: `system.posix_acl_access` is a name of its own.
_PREFIXES: Final = (
    (b"system.posix_acl_access", 2), (b"system.posix_acl_default", 3),
    (b"user.", 1), (b"trusted.", 4), (b"security.", 6),
)  # fmt: skip
_ACL_SHORT: Final = struct.Struct("<HH")
_ACL_LONG: Final = struct.Struct("<HHI")
_ACL_HEAD: Final = struct.pack("<I", 1)
_ACL_WITH_ID: Final = frozenset({0x02, 0x08})  # a user's entry, a group's
_NAMES: Final = {number: prefix for prefix, number in _PREFIXES}

type Attribute = tuple[int, bytes, bytes]
"""Index of the prefix, rest of the name, value as it is stored."""


def attributes(found: Mapping[bytes, bytes]) -> list[Attribute]:
    """Return attributes in the order in which ext4 wants them in a block."""
    result: list[Attribute] = []
    for name, value in found.items():
        for prefix, number in _PREFIXES:
            if name.startswith(prefix):
                stored = _stored_acl(value) if number in {2, 3} else value
                result.append((number, name[len(prefix) :], stored))
                break
    return sorted(result, key=lambda one: (one[0], len(one[1]), one[1]))


def inside(found: list[Attribute], room: int) -> bytes | None:
    """Return attributes in the form for the end of an inode, ``room`` bytes, or None when they do not fit."""
    packed = _pack(found, room - 4, 0, hashed=False)
    return None if packed is None else struct.pack("<I", _MAGIC) + packed


def block(found: list[Attribute], seed: int, number: int) -> bytes:
    """Return the block ``number`` with attributes; ``seed`` is the file system's. Raises LayerError (too many)."""
    packed = _pack(found, BLOCK - _HEADER, _HEADER, hashed=True)
    if packed is None:
        raise LayerError(
            "its extended attributes take more than 4 KiB, which ext4 cannot hold",
            hint="bake onto xfs (`filesystem: xfs`)",
        )
    whole = 0
    for _, name, value in found:
        one = _hash(name, value)
        whole = (whole << 16 ^ whole >> 16 ^ one) & _U32
        if not one:  # such a block is shared with none
            whole = 0
            break
    return at_block(struct.pack("<IIIII12x", _MAGIC, 1, 1, whole, 0) + packed, seed, number)


def at_block(data: bytes, seed: int, number: int) -> bytes:
    """Return a block with attributes as it is as the block ``number``: its checksum depends on that."""
    new = bytearray(data)
    struct.pack_into("<I", new, 16, 0)
    check = checksums.crc(checksums.crc(seed, struct.pack("<Q", number)), new)
    struct.pack_into("<I", new, 16, check)
    return bytes(new)


def unpack(data: bytes, names: int, values: int) -> dict[bytes, bytes]:
    """Read attributes: entries begin at ``names``, values are counted from ``values``."""
    found: dict[bytes, bytes] = {}
    at = names
    while at + _ENTRY.size <= len(data) and data[at : at + 4] != b"\0\0\0\0":
        length, index, offset, _, size, _ = _ENTRY.unpack_from(data, at)
        name = data[at + _ENTRY.size : at + _ENTRY.size + length]
        value = data[values + offset : values + offset + size]
        found[_NAMES.get(index, b"") + name] = _spoken_acl(value) if index in {2, 3} else value
        at += _entry_size(name)
    return found


def read_inside(inode: bytes, start: int) -> dict[bytes, bytes]:
    """Read the attributes at the end of an inode, which begin at ``start``."""
    if len(inode) < start + 4 or struct.unpack_from("<I", inode, start)[0] != _MAGIC:
        return {}
    return unpack(inode, start + 4, start + 4)


def read_block(data: bytes) -> dict[bytes, bytes]:
    """Read a block of attributes."""
    return unpack(data, _HEADER, 0)


def _entry_size(name: bytes) -> int:
    return _ENTRY.size + -(-len(name) // 4) * 4


def _pack(found: list[Attribute], room: int, base: int, *, hashed: bool) -> bytes | None:
    """Lay entries out from the front and values from the back; offsets count from ``base`` bytes before the front."""
    data = bytearray(room)
    front, back = 0, room
    for index, name, value in found:
        back -= -(-len(value) // 4) * 4
        if front + _entry_size(name) + 4 > back:
            return None
        data[back : back + len(value)] = value
        mark = _hash(name, value) if hashed else 0
        offset = back + base if value else 0
        data[front : front + _ENTRY.size] = _ENTRY.pack(len(name), index, offset, 0, len(value), mark)
        data[front + _ENTRY.size : front + _ENTRY.size + len(name)] = name
        front += _entry_size(name)
    return bytes(data)


def _hash(name: bytes, value: bytes) -> int:
    mark = 0
    for byte in name:
        mark = (mark << 5 ^ mark >> 27 ^ byte) & _U32
    padded = value + bytes(-len(value) % 4)
    for (word,) in struct.iter_unpack("<I", padded):
        mark = (mark << 16 ^ mark >> 16 ^ word) & _U32
    return mark


def _stored_acl(value: bytes) -> bytes:
    """Turn the form that programs set into the one that ext4 stores; raises LayerError."""
    parts = [_ACL_HEAD]
    for tag, permissions, who in parse_acl(value):
        whose = tag in _ACL_WITH_ID
        parts.append(_ACL_LONG.pack(tag, permissions, who) if whose else _ACL_SHORT.pack(tag, permissions))
    return b"".join(parts)


def _spoken_acl(value: bytes) -> bytes:
    """Turn the stored form into the one that programs see."""
    acl: Acl = []
    at = len(_ACL_HEAD)
    while at + _ACL_SHORT.size <= len(value):
        tag, permissions = _ACL_SHORT.unpack_from(value, at)
        whose = tag in _ACL_WITH_ID
        acl.append(_ACL_LONG.unpack_from(value, at) if whose else (tag, permissions, 0xFFFFFFFF))
        at += _ACL_LONG.size if whose else _ACL_SHORT.size
    return acl_value(acl)

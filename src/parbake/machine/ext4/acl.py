"""POSIX ACLs: their form in the attributes that programs set, and the shorter one that ext4 stores.

Sources: Linux ``include/uapi/linux/posix_acl_xattr.h`` and ``fs/ext4/acl.h``.
"""

from __future__ import annotations

import struct
from typing import Final

from parbake.core.errors import LayerError

_SPOKEN: Final = struct.Struct("<HHI")
_SHORT: Final = struct.Struct("<HH")
_LONG: Final = struct.Struct("<HHI")
_SPOKEN_VERSION, _STORED_VERSION = 2, 1
_WITH_ID: Final = frozenset({0x02, 0x08})  # a user's entry, a group's

type Acl = list[tuple[int, int, int]]
"""Entries: tag, permissions, and the id of a user or group."""


def parse(value: bytes) -> Acl:
    """Read the form that programs set; raises LayerError."""
    if len(value) < 4 or len(value) % 8 != 4 or struct.unpack_from("<I", value)[0] != _SPOKEN_VERSION:
        raise LayerError("a POSIX ACL in an unknown form")
    return [_SPOKEN.unpack_from(value, at) for at in range(4, len(value), 8)]


def as_xattr(acl: Acl) -> bytes:
    """Return the form that programs see."""
    return struct.pack("<I", _SPOKEN_VERSION) + b"".join(_SPOKEN.pack(*entry) for entry in acl)


def stored_acl(value: bytes) -> bytes:
    """Turn the form that programs set into the one that ext4 stores; raises LayerError."""
    parts = [struct.pack("<I", _STORED_VERSION)]
    for tag, permissions, who in parse(value):
        parts.append(_LONG.pack(tag, permissions, who) if tag in _WITH_ID else _SHORT.pack(tag, permissions))
    return b"".join(parts)


def spoken_acl(value: bytes) -> bytes:
    """Turn the stored form into the one that programs see."""
    acl: Acl = []
    at = 4
    while at + _SHORT.size <= len(value):
        tag, permissions = _SHORT.unpack_from(value, at)
        if tag in _WITH_ID:
            acl.append(_LONG.unpack_from(value, at))
            at += _LONG.size
        else:
            acl.append((tag, permissions, 0xFFFFFFFF))
            at += _SHORT.size
    return as_xattr(acl)

"""A tree of files before it lies on any file system: what a layer says, and what a writer of file systems needs.

Names are bytes. Times are nanoseconds since 1970. A node that several names lead to (hard links) is one object.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterable, Iterator, MutableMapping
from typing import Final, Protocol

from parbake.core.errors import LayerError

type Extents = tuple[tuple[int, int, int], ...]
"""Where a file's data lie: (first block of the file, first block of the volume, count), ascending; gaps are holes."""

NO_DATA: Extents = ()

type Acl = list[tuple[int, int, int]]
"""Entries of a POSIX ACL: tag, permissions, and the id of a user or group."""

_ACL_ENTRY: Final = struct.Struct("<HHI")
ACL_HEAD: Final = struct.pack("<I", 2)  # the version; Linux, ``include/uapi/linux/posix_acl_xattr.h``


def parse_acl(value: bytes) -> Acl:
    """Read an ACL in the form that programs set as an attribute; raises LayerError."""
    if len(value) < 4 or len(value) % 8 != 4 or value[:4] != ACL_HEAD:
        raise LayerError("a POSIX ACL in an unknown form")
    return [_ACL_ENTRY.unpack_from(value, at) for at in range(4, len(value), 8)]


def acl_value(acl: Acl) -> bytes:
    """Return an ACL in that form."""
    return ACL_HEAD + b"".join(_ACL_ENTRY.pack(*entry) for entry in acl)


class FileNode:
    """A file, folder, link or device.

    ``mode`` has the type in it, as in ``stat``; ``data`` is the target of a symbolic link; ``rdev`` a device's number;
    ``children`` is None unless it is a folder; ``links`` counts the names of everything else; ``size`` is in bytes.
    ``number`` is the inode number once a writer has given one.
    """

    __slots__ = (
        "accessed", "children", "data", "extents", "gid", "links", "mode", "modified", "number", "rdev", "size", "uid",
        "xattrs",
    )  # fmt: skip

    def __init__(self, mode: int, uid: int = 0, gid: int = 0, modified: int = 0, accessed: int | None = None) -> None:
        self.mode, self.uid, self.gid = mode, uid, gid
        self.modified = modified
        self.accessed = modified if accessed is None else accessed
        self.size = 0
        self.links = 1
        self.rdev = 0
        self.number = 0
        self.data = b""
        self.extents = NO_DATA
        self.xattrs: dict[bytes, bytes] | None = None
        self.children: MutableMapping[bytes, FileNode] | None = {} if stat.S_ISDIR(mode) else None

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder."""
        return self.children is not None

    @property
    def is_link(self) -> bool:
        """Whether it is a symbolic link."""
        return stat.S_ISLNK(self.mode)

    @property
    def is_file(self) -> bool:
        """Whether it is a regular file."""
        return stat.S_ISREG(self.mode)


class DataStore(Protocol):
    """Takes data of files as they arrive."""

    def put(self, pieces: Iterable[memoryview]) -> Extents:
        """Store the data of one file; the views are valid only until the next."""
        ...

    def put_whole(self, data: memoryview) -> Extents:
        """Store the data of one file that are there in one piece."""
        ...

    def put_sparse(self, segments: Iterable[tuple[int, Iterable[memoryview]]]) -> Extents:
        """Store pieces of one file, each with its offset in bytes, ascending and without overlap."""
        ...


def walk(root: FileNode) -> Iterator[FileNode]:
    """Yield every node below and with ``root`` once, folders before what is in them, in the order of insertion."""
    seen: set[int] = set()
    waiting = [root]
    while waiting:
        node = waiting.pop()
        yield node
        if node.children:
            below: list[FileNode] = []
            for child in node.children.values():
                if child.children is None and child.links > 1:
                    if id(child) in seen:
                        continue
                    seen.add(id(child))
                if child.children is not None:
                    below.append(child)
                else:
                    yield child
            waiting.extend(reversed(below))

"""Reads back what lies in a volume: folders' metadata, files' data. Only what parbake's own writer makes."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Final

from parbake.core.errors import ParbakeError
from parbake.core.filetree import Extents, FileNode
from parbake.machine.ext4 import directories, inodes, xattrs
from parbake.machine.ext4.superblock import BLOCK, INODE, ForeignVolume, Superblock

_PIECE: Final = 1 << 20
_ROOT: Final = 2
_DEEPEST, _MOST_TREE = 5, 1 << 16
"""Levels of a file's extent tree (the kernel's limit), and blocks of it that are read: enough for 80 GB in pieces of
4 KiB."""
_SENSELESS: Final = (struct.error, IndexError, ValueError, RecursionError)


class _Children(MutableMapping[bytes, FileNode]):
    """A folder's children, read when they are asked for."""

    def __init__(self, reader: Reader, numbers: dict[bytes, int]) -> None:
        self._reader, self._numbers = reader, numbers

    def __getitem__(self, name: bytes) -> FileNode:
        return self._reader.node(self._numbers[name])

    def __setitem__(self, name: bytes, node: FileNode) -> None:
        raise TypeError("a tree on the volume is read-only")

    def __delitem__(self, name: bytes) -> None:
        raise TypeError("a tree on the volume is read-only")

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)


class Reader:
    """Reads nodes and data through the page cache; what is written past it must be flushed first."""

    def __init__(self, superblock: Superblock) -> None:
        self._superblock = superblock

    def node(self, number: int) -> FileNode:
        """Return the node of an inode; a folder's children are read when they are asked for."""
        raw = os.pread(self._superblock.handle, INODE, self._superblock.inode_place(number))
        low, high = struct.unpack_from("<H", raw, 2)[0], struct.unpack_from("<H", raw, 0x78)[0]
        group, group_high = struct.unpack_from("<H", raw, 0x18)[0], struct.unpack_from("<H", raw, 0x7A)[0]
        accessed, _, modified = struct.unpack_from("<III", raw, 8)
        modified_more, accessed_more = struct.unpack_from("<II", raw, 0x88)
        mode = struct.unpack_from("<H", raw, 0)[0]
        node = FileNode(
            mode, low | high << 16, group | group_high << 16,
            inodes.time_of(modified, modified_more), inodes.time_of(accessed, accessed_more),
        )  # fmt: skip
        node.number = number
        node.links = struct.unpack_from("<H", raw, 0x1A)[0]
        node.size = struct.unpack_from("<I", raw, 4)[0] | struct.unpack_from("<I", raw, 0x6C)[0] << 32
        found = xattrs.read_inside(raw, inodes.INSIDE_AT)
        if acl := inodes.attributes_block(raw):
            found |= xattrs.read_block(self._block(acl))
        node.xattrs = found or None
        if inodes.has_tree(raw):
            node.extents = self.extents(raw[inodes.BODY])
        self._fill(node, raw[inodes.BODY])
        return node

    def _fill(self, node: FileNode, body: bytes) -> None:
        if node.is_folder:
            numbers: dict[bytes, int] = {}
            for _, place, count in node.extents:
                for block in range(place, place + count):
                    numbers.update(directories.entries_of(self._block(block)))
            node.children = _Children(self, numbers)
        elif node.is_link:
            node.data = b"".join(self.pieces(node)) if node.extents else body[: node.size]
        elif not node.is_file:
            old, new = struct.unpack_from("<II", body)
            major, minor = (
                (old >> 8 & 0xFF, old & 0xFF) if old else (new >> 8 & 0xFFF, new & 0xFF | new >> 12 & 0xFFF00)
            )
            node.rdev = major << 32 | minor

    def pieces(self, node: FileNode) -> Iterator[memoryview]:
        """Yield a file's data where it has some; holes at its end or between are left out (see ``segments``)."""
        for _, pieces in self.segments(node):
            yield from pieces

    def segments(self, node: FileNode) -> Iterator[tuple[int, Iterator[memoryview]]]:
        """Yield the parts of a file that have data, each with its offset in bytes."""
        for logical, place, count in node.extents:
            start = logical * BLOCK
            yield start, self._read(place * BLOCK, min(count * BLOCK, max(node.size - start, 0)))

    def _read(self, place: int, size: int) -> Iterator[memoryview]:
        while size:
            data = os.pread(self._superblock.handle, min(size, _PIECE), place)
            if not data:
                raise ParbakeError("the volume's file ends within a file", hint="bake it again")
            yield memoryview(data)
            place += len(data)
            size -= len(data)

    def _block(self, number: int) -> bytes:
        return os.pread(self._superblock.handle, BLOCK, number * BLOCK)

    def extents(self, data: bytes, tree: list[int] | None = None) -> Extents:
        """Return what a node of an extent tree leads to; ``tree`` gets the numbers of the blocks below it.

        Raises ForeignVolume for a tree that nothing would have made, such as one that leads to itself.
        """
        tree = [] if tree is None else tree
        _, count, _, depth = struct.unpack_from("<HHHH", data)
        if depth > _DEEPEST or len(tree) > _MOST_TREE:
            raise ForeignVolume("a file's extents make no sense", hint="bake it again, with --from-scratch")
        found: list[tuple[int, int, int]] = []
        for at in range(12, 12 + 12 * count, 12):
            if depth:
                low, high = struct.unpack_from("<IH", data, at + 4)
                tree.append(low | high << 32)
                found += self.extents(self._block(low | high << 32), tree)
            else:
                logical, length, high, low = struct.unpack_from("<IHHI", data, at)
                found.append((logical, low | high << 32, length))
        return tuple(found)


def files_in(path: Path) -> Iterator[tuple[bytes, Extents]]:
    """Yield the regular files of a volume that have data, by their path below its root; a hard-linked one once.

    The file at ``path`` is only read, and nobody need be root. Raises ForeignVolume for what parbake's writer has not
    made, however much has come by then.
    """
    with path.open("rb", buffering=0) as file:
        try:
            yield from _files(Reader(Superblock(file.fileno())))
        except _SENSELESS as error:
            raise ForeignVolume(f"{path} is damaged: {error}", hint="bake it again, with --from-scratch") from error


def _files(reader: Reader) -> Iterator[tuple[bytes, Extents]]:
    seen, folders = {_ROOT}, [(b"", reader.node(_ROOT))]
    while folders:
        above, folder = folders.pop()
        for name, node in sorted((folder.children or {}).items()):
            if node.number in seen:
                continue
            seen.add(node.number)
            if node.is_folder:
                folders.append((above + name + b"/", node))
            elif node.is_file and node.extents:
                yield above + name, node.extents

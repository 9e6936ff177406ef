"""Writes a tree of nodes into a volume: folders' blocks, attributes, inodes."""

from __future__ import annotations

import stat
from collections.abc import Callable, Container, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from parbake.core.errors import LayerError
from parbake.core.filetree import FileNode, walk
from parbake.machine.ext4 import checksums, directories, inodes, xattrs
from parbake.machine.ext4.superblock import BLOCK, INODE, Superblock

if TYPE_CHECKING:
    from parbake.machine.ext4.allocator import Zone
    from parbake.machine.ext4.stream import Stream

_ROOM_INSIDE: Final = INODE - inodes.INSIDE_AT
_MOST_LINKS: Final = 65000
_AT_ONCE: Final = (1 << 20) // INODE


class TreeWriter:
    """Gives nodes their numbers and writes them. Data of files are in the volume already (``Node.extents``)."""

    def __init__(self, superblock: Superblock, stream: Stream, numbers: Zone) -> None:
        self._superblock, self._stream, self._zone = superblock, stream, numbers
        self.folders: dict[int, int] = {}
        """How many folders lie in each block group."""

    def write(self, root: FileNode, parent: int, done: Container[int] = ()) -> None:
        """Write a tree whose root lies in the folder ``parent`` (an inode number).

        Nodes without a number get one; those whose number is in ``done`` are on the volume already.
        Raises LayerError, DiskFull.
        """
        found = list(walk(root))
        self._number([node for node in found if not node.number])
        nodes = [node for node in found if node.number not in done]
        parents = {root.number: parent}
        for node in nodes:
            if node.children:
                for child in node.children.values():
                    if child.children is not None:
                        parents[child.number] = node.number
        at = 0
        while at < len(nodes):
            first = nodes[at].number
            most = min(_AT_ONCE, self._superblock.inodes_beside(first), len(nodes) - at)
            count = 1
            while count < most and nodes[at + count].number == first + count:
                count += 1
            self._write_run(nodes[at : at + count], self._superblock.inode_place(first), parents)
            at += count

    def _number(self, nodes: Sequence[FileNode]) -> None:
        """Give nodes their inode numbers, in order; raises DiskFull."""
        at = 0
        while at < len(nodes):
            _, room = self._zone.run()
            count = min(room, len(nodes) - at)
            first = self._zone.take(count)
            for number, node in enumerate(nodes[at : at + count], first):
                node.number = number
            at += count

    def _write_run(self, nodes: Sequence[FileNode], start: int, parents: Mapping[int, int]) -> None:
        """Write nodes whose inodes lie side by side, from ``start`` (bytes)."""
        table = memoryview(bytearray(len(nodes) * INODE))
        for index in inodes.pack_files_into(table, nodes, self._superblock.seed):
            node = nodes[index]
            self._write(table, index * INODE, node, parents.get(node.number, 0))
        self._superblock.put(table, start)

    def _write(self, table: memoryview, at: int, node: FileNode, parent: int) -> None:
        """Write one node, whose children have their numbers; its inode into a part of the table."""
        if node.children is not None:
            self._write_folder(node, node.children, parent)
        elif node.links > _MOST_LINKS:
            raise LayerError(f"a file has {node.links} names; ext4 allows {_MOST_LINKS}", hint="bake onto xfs")
        elif node.is_link:
            if not inodes.is_short_link(node):
                node.extents = self._stream.put_whole(memoryview(node.data))
            node.size = len(node.data)
        seed = checksums.of_inode(self._superblock.seed, node.number)
        blocks = sum(count for _, _, count in node.extents)
        if (node.is_link and not node.extents) or not (node.is_file or node.is_folder or node.is_link):
            body = inodes.body_without_data(node)
        else:
            body, more = inodes.body_of_extents(node.extents, self._block, seed)
            blocks += more
        attributes, acl = self._attributes(node.xattrs) if node.xattrs else (b"", 0)
        inodes.pack_into(
            table, at, node, seed=seed, body=body, blocks=blocks + bool(acl), attributes=attributes, acl=acl
        )

    def _write_folder(self, node: FileNode, children: Mapping[bytes, FileNode], parent: int) -> None:
        seed = checksums.of_inode(self._superblock.seed, node.number)
        entries = [(b".", node.number, stat.S_IFDIR), (b"..", parent, stat.S_IFDIR)]
        entries += [(name, child.number, child.mode) for name, child in children.items()]
        found: list[tuple[int, int, int]] = []
        for logical, data in enumerate(directories.blocks_of(entries, seed)):
            place = self._stream.block(data)
            if found and found[-1][1] + found[-1][2] == place:
                found[-1] = (found[-1][0], found[-1][1], found[-1][2] + 1)
            else:
                found.append((logical, place, 1))
        node.extents = tuple(found)
        node.size = sum(count for _, _, count in found) * BLOCK
        node.links = 2 + sum(child.children is not None for child in children.values())
        group = (node.number - 1) // self._superblock.inodes_per_group
        self.folders[group] = self.folders.get(group, 0) + 1

    def _block(self, make: Callable[[int], bytes]) -> int:
        return self._stream.block(make(self._stream.next_block()))

    def _attributes(self, named: Mapping[bytes, bytes]) -> tuple[bytes, int]:
        found = xattrs.attributes(named)
        inside = xattrs.inside(found, _ROOM_INSIDE)
        if inside is not None:
            return inside, 0
        return b"", self._block(lambda number: xattrs.block(found, self._superblock.seed, number))

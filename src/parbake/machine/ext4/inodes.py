"""Inodes: a node's metadata, and where its data lie, in 256 bytes.

Source: kernel documentation, ext4, "Index Nodes" and "The Contents of inode.i_block". Times of change and of birth are
the time of modification: the moment of the bake is not part of a volume.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from parbake.core.filetree import FileNode
from parbake.machine.ext4 import checksums
from parbake.machine.ext4.superblock import BLOCK, INODE

if TYPE_CHECKING:
    from parbake.core.filetree import Extents

EXTENTS_FLAG: Final = 0x80000
_EXTRA: Final = 32
INSIDE_AT: Final = 128 + _EXTRA
BODY: Final = slice(0x28, 0x28 + 60)
"""Where an inode says where its data lie."""
_SHORT_LINK: Final = 59
_LONGEST_EXTENT: Final = 32768
_EXTENT_MAGIC: Final = 0xF30A
_IN_INODE, _IN_BLOCK = 4, (BLOCK - 12) // 12
_MOST_LINKS: Final = 65000
_SECOND: Final = 1_000_000_000
_REGULAR: Final = stat.S_IFREG >> 12
_U32: Final = 0xFFFFFFFF

# mode uid size_lo atime ctime mtime dtime gid links blocks_lo flags version | i_block | generation acl_lo size_hi
# obsolete blocks_hi acl_hi uid_hi gid_hi checksum_lo unused | extra_isize checksum_hi ctime+ mtime+ atime+ crtime
# crtime+ version_hi projid
_INODE: Final = struct.Struct("<HHIIIIIHHIII60sIIIIHHHHHHHHIIIIIII")
_CHECK_LO, _CHECK_HI = 0x7C, 0x82
USAGE: Final = struct.Struct("<26xHI84xH138x")
"""Of an inode: its links, and how many sectors all belong to it (low, high)."""
SECTOR: Final = 512
_U16: Final = struct.Struct("<H")
# The inode of a file whose data are one extent. What lies between the fields that files differ in comes from `_alike`.
_FILE: Final = struct.Struct("<4sI20sI24sHHI192s")
# Where its checksum is, with the two fields between the halves.
_FILE_CHECK: Final = struct.Struct("<HHHH")
# The root of an extent tree with one extent, which is what nearly every file has.
_ONE_EXTENT: Final = struct.Struct("<HHHHIIHHI36x")


def pack_into(
    table: memoryview, at: int, node: FileNode, *, seed: int, body: bytes, blocks: int, attributes: bytes, acl: int
) -> None:
    """Write a node's inode at an offset of a table, which is zero there.

    ``seed`` is the inode's; ``body`` what goes where block numbers used to be; ``blocks`` counts all blocks that belong
    to it; ``attributes`` are for the inode's end, ``acl`` is the block with those that do not fit.
    """
    modified, modified_more = _time(node.modified)
    accessed, accessed_more = _time(node.accessed)
    flags = EXTENTS_FLAG if _has_extents(node) else 0
    sectors = blocks * (BLOCK // SECTOR)
    links = node.links
    if node.children is not None and links > _MOST_LINKS:
        links = 1  # dir_nlink: too many to count
    _INODE.pack_into(
        table, at,
        node.mode, node.uid & 0xFFFF, node.size & 0xFFFFFFFF, accessed, modified, modified, 0, node.gid & 0xFFFF,
        links, sectors & 0xFFFFFFFF, flags, 0, body, 0, acl & 0xFFFFFFFF, node.size >> 32, 0,
        sectors >> 32 & 0xFFFF, acl >> 32 & 0xFFFF, node.uid >> 16, node.gid >> 16, 0, 0, _EXTRA, 0, modified_more,
        modified_more,
        accessed_more, modified, modified_more, 0, 0,
    )  # fmt: skip
    if attributes:
        table[at + INSIDE_AT : at + INSIDE_AT + len(attributes)] = attributes
    _check(table, at, seed)


def pack_files_into(table: memoryview, nodes: Sequence[FileNode], seed: int) -> list[int]:
    """Do what ``pack_into`` does for all files without attributes whose data are one extent: nearly all nodes.

    The table has a place for each node, in order; ``seed`` is the file system's. Returns which nodes are others.
    """
    others: list[int] = []
    for index, node in enumerate(nodes):
        extents, size = node.extents, node.size
        if (
            len(extents) != 1
            or node.xattrs is not None
            or node.mode >> 12 != _REGULAR
            or node.links > _MOST_LINKS
            or size > _U32
        ):
            others.append(index)
            continue
        ((logical, place, count),) = extents
        if logical or count > _LONGEST_EXTENT:
            others.append(index)
            continue
        owner, times, layout, rest = _alike(node.mode, node.uid, node.gid, node.links, node.modified, node.accessed)
        at = index * INODE
        _FILE.pack_into(
            table, at, owner, size, times, count * (BLOCK // SECTOR), layout, count, place >> 32, place & _U32, rest
        )
        check = checksums.of_whole_inode(seed, node.number, table[at : at + INODE])
        _FILE_CHECK.pack_into(table, at + _CHECK_LO, check & 0xFFFF, 0, _EXTRA, check >> 16)
    return others


@lru_cache(4096)
def _alike(mode: int, uid: int, gid: int, links: int, modified: int, accessed: int) -> tuple[bytes, ...]:
    """Return the parts of a plain file's inode that do not depend on its data: layers have few different ones."""
    node = FileNode(mode, uid, gid, modified, accessed)
    node.links = links
    table = memoryview(bytearray(INODE))
    body = _ONE_EXTENT.pack(_EXTENT_MAGIC, 1, _IN_INODE, 0, 0, 0, 0, 0, 0)
    pack_into(table, 0, node, seed=0, body=body, blocks=0, attributes=b"", acl=0)
    _U16.pack_into(table, _CHECK_LO, 0)
    _U16.pack_into(table, _CHECK_HI, 0)
    raw = bytes(table)
    return raw[:4], raw[8:28], raw[32:56], raw[64:]


def moved(raw: bytes, number: int, seed: int, *, body: bytes, blocks: int, acl: int, size: int = -1) -> bytes:
    """Return an inode whose data lie elsewhere now, and are ``size`` bytes (-1: as before); see ``pack_into``.

    ``seed`` is the file system's.
    """
    new = memoryview(bytearray(raw))
    new[BODY] = body
    sectors = blocks * (BLOCK // SECTOR)
    for at, form, value in (
        (0x1C, "<I", sectors & 0xFFFFFFFF), (0x74, "<H", sectors >> 32),
        (0x68, "<I", acl & 0xFFFFFFFF), (0x76, "<H", acl >> 32), (_CHECK_LO, "<H", 0), (_CHECK_HI, "<H", 0),
    ):  # fmt: skip
        struct.pack_into(form, new, at, value)
    if size >= 0:
        struct.pack_into("<I", new, 4, size & 0xFFFFFFFF)
        struct.pack_into("<I", new, 0x6C, size >> 32)
    _check(new, 0, checksums.of_inode(seed, number))
    return bytes(new)


def _check(table: memoryview, at: int, seed: int) -> None:
    """Write the checksum into an inode in which its fields are zero; ``seed`` is the inode's."""
    check = checksums.crc(seed, table[at : at + INODE])
    _U16.pack_into(table, at + _CHECK_LO, check & 0xFFFF)
    _U16.pack_into(table, at + _CHECK_HI, check >> 16)


def attributes_block(raw: bytes) -> int:
    """Return the block with an inode's extended attributes, 0 where they have none of their own."""
    return int(struct.unpack_from("<I", raw, 0x68)[0] | struct.unpack_from("<H", raw, 0x76)[0] << 32)


def has_tree(raw: bytes) -> bool:
    """Whether an inode's data are found by extents."""
    return bool(struct.unpack_from("<I", raw, 0x20)[0] & EXTENTS_FLAG)


def _has_extents(node: FileNode) -> bool:
    if node.is_link:
        return len(node.data) > _SHORT_LINK
    return node.is_file or node.is_folder


def is_short_link(node: FileNode) -> bool:
    """Whether a symbolic link's target lies in the inode itself."""
    return node.is_link and len(node.data) <= _SHORT_LINK


def body_without_data(node: FileNode) -> bytes:
    """Return what lies in the inode of a short symbolic link or a device."""
    if node.is_link:
        return node.data.ljust(60, b"\0")
    if stat.S_ISCHR(node.mode) or stat.S_ISBLK(node.mode):
        major, minor = node.rdev >> 32, node.rdev & 0xFFFFFFFF
        if major < 256 and minor < 256:
            return struct.pack("<I56x", major << 8 | minor)
        return struct.pack("<II52x", 0, minor & 0xFF | major << 8 | (minor & ~0xFF) << 12)
    return bytes(60)


def body_of_extents(
    extents: Extents, new_block: Callable[[Callable[[int], bytes]], int], seed: int
) -> tuple[bytes, int]:
    """Return the root of an extent tree for an inode, and how many blocks the rest of the tree takes.

    ``new_block`` writes a block whose bytes may depend on its number, and returns that; ``seed`` is the inode's.
    """
    if len(extents) == 1 and extents[0][2] <= _LONGEST_EXTENT:
        logical, place, count = extents[0]
        return _ONE_EXTENT.pack(_EXTENT_MAGIC, 1, _IN_INODE, 0, 0, logical, count, place >> 32, place & 0xFFFFFFFF), 0
    leaves = [
        struct.pack(
            "<IHHI", logical + done, min(count - done, _LONGEST_EXTENT), place + done >> 32, place + done & 0xFFFFFFFF
        )
        for logical, place, count in extents
        for done in range(0, count, _LONGEST_EXTENT)
    ]  # fmt: skip
    depth = taken = 0
    entries: Sequence[bytes] = leaves
    while len(entries) > _IN_INODE:
        above = []
        for at in range(0, len(entries), _IN_BLOCK):
            part = entries[at : at + _IN_BLOCK]
            data = _tree_node(part, _IN_BLOCK, depth).ljust(BLOCK - 4, b"\0")
            data += struct.pack("<I", checksums.crc(seed, data))
            number = new_block(lambda _, data=data: data)  # type: ignore[misc]
            taken += 1
            above.append(part[0][:4] + struct.pack("<IHH", number & 0xFFFFFFFF, number >> 32, 0))
        entries = above
        depth += 1
    return _tree_node(entries, _IN_INODE, depth).ljust(60, b"\0"), taken


def _tree_node(entries: Sequence[bytes], most: int, depth: int) -> bytes:
    return struct.pack("<HHHHI", _EXTENT_MAGIC, len(entries), most, depth, 0) + b"".join(entries)


@lru_cache(4096)
def _time(nanoseconds: int) -> tuple[int, int]:
    """Return a time's low 32 bits of seconds, and the field with nanoseconds and two more bits of seconds."""
    seconds, rest = divmod(nanoseconds, _SECOND)
    seconds = min(seconds, (1 << 34) - 1 - (1 << 31))  # what the two bits reach: the year 2446
    epoch = (seconds + (1 << 31) >> 32) & 3
    return seconds & 0xFFFFFFFF, rest << 2 | epoch


def time_of(low: int, more: int) -> int:
    """Return nanoseconds since 1970 from the two fields of a time."""
    signed = low - (1 << 32) if low & 1 << 31 else low
    return (signed + ((more & 3) << 32)) * _SECOND + (more >> 2)

"""The frame of an ext4 file system that mke2fs has made: superblock, group descriptors, bitmaps.

Only what parbake's own volumes have is read: 4 KiB blocks, 256-byte inodes, 64-bit descriptors, metadata checksums;
anything else is refused. Layout and field offsets: kernel documentation, ext4, "Global Structures".
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from parbake.core.errors import ParbakeError
from parbake.core.files import write_all
from parbake.machine.ext4 import checksums

BLOCK: Final = 4096
INODE: Final = 256
DESCRIPTOR: Final = 64
_SUPERBLOCK_AT: Final = 1024
_MAGIC: Final = 0xEF53
_NEEDED: Final = 0x2 | 0x40 | 0x80 | 0x200  # filetype, extents, 64bit, flex_bg
_KNOWN: Final = _NEEDED | 0x2000  # metadata_csum_seed
_RO_NEEDED: Final = 0x400  # metadata_csum
_INODE_UNINIT, _BLOCK_UNINIT = 0x1, 0x2
_SEED_FEATURE: Final = 0x2000
_ANEW: Final = "bake it again, with --from-scratch"

type Range = tuple[int, int]
"""Start and end (which is not in it)."""


class ForeignVolume(ParbakeError):
    """A file that is not a volume of parbake's writer, or one of another version."""


def merged(ranges: Iterable[Range]) -> list[Range]:
    """Return ranges sorted and joined where they touch."""
    found: list[Range] = []
    for start, end in sorted(ranges):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        elif start < end:
            found.append((start, end))
    return found


def without(ranges: Sequence[Range], gone: Sequence[Range]) -> list[Range]:
    """Return what of ``ranges`` is not in ``gone``; both are merged."""
    found: list[Range] = []
    at = 0
    for start, end in ranges:
        while at < len(gone) and gone[at][1] <= start:
            at += 1
        place, index = start, at
        while index < len(gone) and gone[index][0] < end:
            if place < gone[index][0]:
                found.append((place, gone[index][0]))
            place = max(place, gone[index][1])
            index += 1
        if place < end:
            found.append((place, end))
    return found


def shared(ranges: Sequence[Range], others: Sequence[Range]) -> list[Range]:
    """Return what is in both; both are merged."""
    return without(ranges, without(ranges, others))


@dataclass(slots=True)
class Group:
    """One block group: where its bitmaps and its inode table begin, and its raw descriptor."""

    raw: bytearray
    block_bitmap: int
    inode_bitmap: int
    inode_table: int


class Superblock:
    """The superblock and the groups of a file; ``close`` is the caller's (it owns the descriptor)."""

    def __init__(self, handle: int) -> None:
        """``handle`` is the image file, open for reading and writing. Raises ForeignVolume."""
        self.handle = handle
        self.written: Callable[[int, int], None] = lambda _start, _end: None
        """Is told of every write of metadata: start and end in bytes."""
        raw = self.superblock = bytearray(os.pread(handle, 1024, _SUPERBLOCK_AT))
        if len(raw) < 1024 or struct.unpack_from("<H", raw, 0x38)[0] != _MAGIC:
            raise ForeignVolume("it is not an ext4 file system", hint=_ANEW)
        log_size, incompat, read_only = *struct.unpack_from("<I", raw, 0x18), *struct.unpack_from("<II", raw, 0x60)
        inode_size, descriptor_size = *struct.unpack_from("<H", raw, 0x58), *struct.unpack_from("<H", raw, 0xFE)
        if (
            log_size != 2 or inode_size != INODE or descriptor_size != DESCRIPTOR
            or incompat & _NEEDED != _NEEDED or incompat & ~_KNOWN or not read_only & _RO_NEEDED
        ):  # fmt: skip
            raise ForeignVolume("parbake did not make this file system", hint=_ANEW)
        self.blocks: int = struct.unpack_from("<I", raw, 0x4)[0] | struct.unpack_from("<I", raw, 0x150)[0] << 32
        self.blocks_per_group: int = struct.unpack_from("<I", raw, 0x20)[0]
        self.inodes_per_group: int = struct.unpack_from("<I", raw, 0x28)[0]
        self.reserved_gdt: int = struct.unpack_from("<H", raw, 0xCE)[0]
        self.uuid = bytes(raw[0x68:0x78])
        seeded = incompat & _SEED_FEATURE
        self.seed: int = struct.unpack_from("<I", raw, 0x270)[0] if seeded else checksums.first(self.uuid)
        self.first_inode: int = struct.unpack_from("<I", raw, 0x54)[0]
        count = -(-self.blocks // self.blocks_per_group)
        self.descriptor_blocks = -(-count * DESCRIPTOR // BLOCK)
        table = os.pread(handle, count * DESCRIPTOR, BLOCK)
        self.groups = [_group(table[at : at + DESCRIPTOR]) for at in range(0, len(table), DESCRIPTOR)]
        self.inodes = count * self.inodes_per_group

    # -- what mke2fs has taken

    def taken(self) -> list[Range]:
        """Return the blocks that are in use as far as the bitmaps say."""
        ranges = self.frame()
        for number, group in enumerate(self.groups):
            if not self._flags(group) & _BLOCK_UNINIT:
                bitmap = os.pread(self.handle, BLOCK, group.block_bitmap * BLOCK)
                base = number * self.blocks_per_group
                length = min(self.blocks_per_group, self.blocks - base)
                ranges += [(base + start, base + end) for start, end in bits(bitmap, length)]
        return merged(ranges)

    def frame(self) -> list[Range]:
        """Return the blocks of the groups' own: copies of the superblock and descriptors, bitmaps, tables of inodes."""
        ranges = [self._head(number) for number in range(len(self.groups))]
        for group in self.groups:
            ranges.append((group.block_bitmap, group.block_bitmap + 1))
            ranges.append((group.inode_bitmap, group.inode_bitmap + 1))
            ranges.append((group.inode_table, group.inode_table + self.inodes_per_group * INODE // BLOCK))
        return merged(ranges)

    def taken_inodes(self) -> list[Range]:
        """Return the inode numbers that are in use."""
        ranges: list[Range] = [(1, self.first_inode)]
        for number, group in enumerate(self.groups):
            if not self._flags(group) & _INODE_UNINIT:
                bitmap = os.pread(self.handle, BLOCK, group.inode_bitmap * BLOCK)
                base = number * self.inodes_per_group + 1
                ranges += [(base + start, base + end) for start, end in bits(bitmap, self.inodes_per_group)]
        return merged(ranges)

    def _head(self, number: int) -> Range:
        """Return the copy of superblock and descriptors that a group begins with, if it has one (sparse_super)."""
        base = number * self.blocks_per_group
        has_copy = number < 2 or any(_is_power(number, of) for of in (3, 5, 7))
        return (base, base + 1 + self.descriptor_blocks + self.reserved_gdt if has_copy else base)

    # -- places

    def inode_place(self, number: int) -> int:
        """Return where in the file an inode lies, in bytes."""
        group, index = divmod(number - 1, self.inodes_per_group)
        return self.groups[group].inode_table * BLOCK + index * INODE

    def inodes_beside(self, number: int) -> int:
        """Return how many inodes lie side by side from one on: those of its group."""
        return self.inodes_per_group - (number - 1) % self.inodes_per_group

    def inode_tables(self, start: int, end: int) -> Iterator[tuple[int, bytes]]:
        """Yield inodes that lie side by side: the first one's number, and the bytes of all."""
        for group, ranges in _by_group([(start - 1, end - 1)], self.inodes_per_group).items():
            for first, last in ranges:
                place = self.groups[group].inode_table * BLOCK + first * INODE
                yield group * self.inodes_per_group + first + 1, os.pread(self.handle, (last - first) * INODE, place)

    def inodes_in(self, start: int, end: int) -> Iterator[tuple[int, bytes]]:
        """Yield numbers and bytes of inodes."""
        for number, table in self.inode_tables(start, end):
            for at in range(0, len(table), INODE):
                yield number + at // INODE, table[at : at + INODE]

    def folders(self) -> dict[int, int]:
        """Return how many folders lie in each group, as the descriptors say."""
        fields = ((number, group.raw) for number, group in enumerate(self.groups))
        return {
            number: struct.unpack_from("<H", raw, 0x10)[0] | struct.unpack_from("<H", raw, 0x30)[0] << 16
            for number, raw in fields
        }

    # -- writing it back

    def put(self, data: bytes | bytearray | memoryview, at: int) -> None:
        """Write metadata; raises OSError."""
        write_all(self.handle, memoryview(data), at)
        self.written(at, at + len(data))

    def write(self, blocks: Sequence[Range], inodes: Sequence[Range], folders: dict[int, int]) -> None:
        """Write bitmaps, descriptors and superblock for what is in use.

        ``blocks`` and ``inodes`` are all that are in use, merged; ``folders`` counts folders by group.
        """
        block_ranges = _by_group(blocks, self.blocks_per_group)
        inode_ranges = _by_group([(start - 1, end - 1) for start, end in inodes], self.inodes_per_group)
        free_blocks = free_inodes = 0
        for number, group in enumerate(self.groups):
            length = min(self.blocks_per_group, self.blocks - number * self.blocks_per_group)
            used = block_ranges.get(number, [])
            free_blocks += self._write_blocks(group, used, length)
            free_inodes += self._write_inodes(group, inode_ranges.get(number, []), folders.get(number, 0))
            group.raw[0x1E:0x20] = b"\0\0"
            struct.pack_into("<H", group.raw, 0x1E, checksums.of_group(self.seed, number, group.raw))
        self.put(b"".join(group.raw for group in self.groups), BLOCK)
        raw = self.superblock
        _put(raw, free_blocks, (0xC, "<I", 32), (0x158, "<I", 32))
        struct.pack_into("<I", raw, 0x10, free_inodes)
        struct.pack_into("<I", raw, 0x3FC, checksums.first(raw[:0x3FC]))
        self.put(raw, _SUPERBLOCK_AT)

    def rename(self, uuid: bytes) -> None:
        """Give the file system another UUID, written with the next ``write``; its checksums keep their seed."""
        if not struct.unpack_from("<I", self.superblock, 0x60)[0] & _SEED_FEATURE:
            raise ForeignVolume("its checksums follow from its UUID", hint=_ANEW)
        self.uuid = uuid
        self.superblock[0x68:0x78] = uuid

    def _write_blocks(self, group: Group, used: Sequence[Range], length: int) -> int:
        if not used and self._flags(group) & _BLOCK_UNINIT:
            return length
        bitmap = bitmap_of(used, length)
        self.put(bitmap, group.block_bitmap * BLOCK)
        check = checksums.crc(self.seed, bitmap[: self.blocks_per_group // 8])
        _put(group.raw, check, (0x18, "<H", 16), (0x38, "<H", 16))
        free = length - sum(end - start for start, end in used)
        _put(group.raw, free, (0xC, "<H", 16), (0x2C, "<H", 16))
        struct.pack_into("<H", group.raw, 0x12, self._flags(group) & ~_BLOCK_UNINIT)
        return free

    def _write_inodes(self, group: Group, used: Sequence[Range], folders: int) -> int:
        free = self.inodes_per_group - sum(end - start for start, end in used)
        _put(group.raw, free, (0xE, "<H", 16), (0x2E, "<H", 16))
        _put(group.raw, folders, (0x10, "<H", 16), (0x30, "<H", 16))
        if not used and self._flags(group) & _INODE_UNINIT:
            return free
        unused = self.inodes_per_group - (used[-1][1] if used else 0)
        _put(group.raw, unused, (0x1C, "<H", 16), (0x32, "<H", 16))
        bitmap = bitmap_of(used, self.inodes_per_group)
        self.put(bitmap, group.inode_bitmap * BLOCK)
        check = checksums.crc(self.seed, bitmap[: self.inodes_per_group // 8])
        _put(group.raw, check, (0x1A, "<H", 16), (0x3A, "<H", 16))
        struct.pack_into("<H", group.raw, 0x12, self._flags(group) & ~_INODE_UNINIT)
        return free

    @staticmethod
    def _flags(group: Group) -> int:
        return int(struct.unpack_from("<H", group.raw, 0x12)[0])


def _group(raw: bytes) -> Group:
    low = struct.unpack_from("<III", raw, 0)
    high = struct.unpack_from("<III", raw, 0x20)
    places = [part | top << 32 for part, top in zip(low, high, strict=True)]
    return Group(bytearray(raw), *places)


def _is_power(number: int, of: int) -> bool:
    while number % of == 0:
        number //= of
    return number == 1


def _put(raw: bytearray, value: int, *fields: tuple[int, str, int]) -> None:
    """Write a number that lies in two fields, low bits first: (offset, format, bits)."""
    for offset, form, width in fields:
        struct.pack_into(form, raw, offset, value & (1 << width) - 1)
        value >>= width


def bits(bitmap: bytes, length: int) -> Iterator[Range]:
    """Yield the ranges of set bits among the first ``length``."""
    number = int.from_bytes(bitmap, "little") & (1 << length) - 1
    at = 0
    while number:
        skip = (number & -number).bit_length() - 1
        number >>= skip
        at += skip
        run = (~number & number + 1).bit_length() - 1
        yield at, at + run
        number >>= run
        at += run


def bitmap_of(used: Iterable[Range], length: int) -> bytes:
    """Return a block with the bits of ranges set, and all bits behind ``length`` (as mke2fs pads bitmaps)."""
    number = (1 << BLOCK * 8) - (1 << length)
    for start, end in used:
        number |= (1 << end) - (1 << start)
    return number.to_bytes(BLOCK, "little")


def _by_group(ranges: Sequence[Range], size: int) -> dict[int, list[Range]]:
    """Split ranges at group borders; the parts count from their group's start."""
    found: dict[int, list[Range]] = {}
    for start, end in ranges:
        place = start
        while place < end:
            group = place // size
            stop = min(end, (group + 1) * size)
            found.setdefault(group, []).append((place - group * size, stop - group * size))
            place = stop
    return found

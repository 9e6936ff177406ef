"""From blocks to files: whose data the traced sectors are.

A mounted file system is asked through FIEMAP (Documentation/filesystems/fiemap.rst), ext4 and xfs alike. A volume of
parbake's own is read as it is (``machine.ext4.files_in``), which takes no root.
"""

from __future__ import annotations

import bisect
import fcntl
import os
import stat
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypedDict
from urllib.parse import quote

from parbake.coldstart.trace.data import LONGEST, SECTOR, HotEntry, Read, spans

_FIEMAP = 0xC020660B
_HEAD = struct.Struct("=QQIIII")  # start, length, flags, mapped extents, room for extents, reserved
_EXTENT = struct.Struct("=QQQ16xI12x")  # logical, physical, length, flags
_ROOM = 128
_PAGE: Final = 4096
_PER_PAGE: Final = _PAGE // SECTOR
_LARGEST: Final = 1 << 40  # pages: runs of any length
Range = tuple[int, int]
type FileData = tuple[bytes, Sequence[tuple[int, int, int]]]
"""A file's path below the root of its file system, and where its data are: offset in bytes, first sector, count."""
_LAST, _NOT_ON_DISK = 0x1, 0x2 | 0x4 | 0x200  # unknown, delayed allocation, inline data


class Described(TypedDict, total=False):
    """What a trace says of files and metadata."""

    files: tuple[HotEntry, ...]
    metadata: tuple[Range, ...]


@dataclass(frozen=True, slots=True)
class HotFile:
    """A file of which something was read: path below the root, bytes of it that were, all of its bytes on disk.

    ``ranges`` are what was read: offset and length in bytes, ascending, by pages.
    """

    path: bytes
    read: int
    size: int
    ranges: tuple[Range, ...]


def data_of(file: int) -> Iterator[tuple[int, int, int]]:
    """Yield (offset in bytes, first sector, count) of an open file's data; nothing where its system cannot say."""
    start = 0
    while True:
        request = bytearray(_HEAD.pack(start, (1 << 64) - 1 - start, 0, 0, _ROOM, 0) + bytes(_EXTENT.size * _ROOM))
        try:
            fcntl.ioctl(file, _FIEMAP, request)
        except OSError:
            return
        count = _HEAD.unpack_from(request)[3]
        flags = _LAST
        for index in range(count):
            logical, physical, length, flags = _EXTENT.unpack_from(request, _HEAD.size + index * _EXTENT.size)
            start = logical + length
            if not flags & _NOT_ON_DISK:
                yield logical, physical // SECTOR, -(-length // SECTOR)
        if flags & _LAST:
            return


def owned(data: Iterable[FileData], reads: Iterable[Read]) -> tuple[tuple[HotFile, ...], tuple[Range, ...]]:
    """Return the files whose ``data`` reads touched, and what they read that belongs to no file.

    Both are in the order of the first touch; the latter are ranges of the device: offset and length in bytes, by pages.
    """
    begins, ends, owners, offsets = list[int](), list[int](), list[int](), list[int]()
    paths, sizes, mapped = list[bytes](), list[int](), list[tuple[int, int, int, int]]()
    for path, found in data:
        mapped += [(first, first + count, len(paths), logical) for logical, first, count in found]
        paths.append(path)
        sizes.append(sum(count for _, _, count in found) * SECTOR)
    for begin, end, owner, logical in sorted(mapped):
        begins.append(begin)
        ends.append(end)
        owners.append(owner)
        offsets.append(logical)
    seen: dict[int, set[int]] = {}
    rest: dict[int, None] = {}
    for read in reads:
        pages = dict.fromkeys(range(read.sector // _PER_PAGE, -(-(read.sector + read.length) // _PER_PAGE)))
        place = max(0, bisect.bisect_right(begins, read.sector) - 1)
        while place < len(begins) and begins[place] < read.sector + read.length:
            first, last = max(begins[place], read.sector), min(ends[place], read.sector + read.length)
            if first < last:
                touched = range(first // _PER_PAGE, -(-last // _PER_PAGE))
                inside = offsets[place] // _PAGE - begins[place] // _PER_PAGE
                seen.setdefault(owners[place], set()).update(page + inside for page in touched)
                for page in touched:
                    pages.pop(page, None)
            place += 1
        rest.update(pages)
    files = tuple(
        HotFile(
            paths[owner],
            min(len(touched) * _PAGE, sizes[owner]),
            sizes[owner],
            tuple((first * _PAGE, count * _PAGE) for first, count in spans(sorted(touched), most=_LARGEST)),
        )
        for owner, touched in seen.items()
    )
    return files, tuple((first * _PAGE, count * _PAGE) for first, count in spans(rest, most=_LARGEST))


def described(data: Iterable[FileData], reads: Iterable[Read]) -> Described:
    """Return what a trace says of a file system's files: ``files`` and ``metadata``, as its keywords.

    Names are percent-encoded. A file whose name is longer than a trace holds is left out.
    """
    files, metadata = owned(data, reads)
    named = ((quote(file.path, safe="/+@=,:"), file) for file in files)
    return {
        "files": tuple(HotEntry(name, file.read, file.ranges) for name, file in named if len(name) <= LONGEST),
        "metadata": metadata,
    }


def data_below(root: Path) -> Iterator[FileData]:
    """Yield the regular files below a mounted root that have data on the device."""
    for path in _regular_files(root):
        with suppress(OSError):
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NOATIME | os.O_CLOEXEC)
            try:
                found = list(data_of(handle))
            finally:
                os.close(handle)
            if found:
                yield os.path.relpath(path, os.fsencode(root)), found


def _regular_files(root: Path) -> Iterator[bytes]:
    """Yield regular files, a hard-linked one once, in the order of the folders."""
    linked = set()
    for folder, _, names in os.walk(os.fsencode(root)):
        for name in names:
            path = folder + b"/" + name
            with suppress(OSError):
                status = os.lstat(path)
                if not stat.S_ISREG(status.st_mode) or not status.st_blocks:
                    continue
                if status.st_nlink > 1:
                    if status.st_ino in linked:
                        continue
                    linked.add(status.st_ino)
                yield path

"""Hot first on a file system that is not parbake's own: the kernel brings together what starts read.

A machine image's root comes from a distribution, with features that ``parbake.machine.ext4`` does not know. So the
kernel moves data there, by the call that online defragmentation is made of (EXT4_IOC_MOVE_EXT: fs/ext4/move_extent.c,
used by e4defrag of e2fsprogs): it exchanges blocks of a file with those of another one, which has one free range here,
and is then removed. Files keep their contents, times and attributes. Folders and other metadata stay where they are.
"""

from __future__ import annotations

import bisect
import fcntl
import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Final

from parbake.coldstart.trace import SECTOR, data_below, data_of
from parbake.core.model import EBS_BLOCK

_MOVE: Final = 0xC028660F
_ARGUMENTS: Final = struct.Struct("=IIQQQQ")  # reserved, file, first block, its first block, count; moved
_PAGE: Final = 4096
_UNIT: Final = EBS_BLOCK // _PAGE
_KEPT: Final = 64 << 20
"""Bytes of free space that stay free while data move."""
_BY_PLACE: Final = {"core.img", "ldlinux.sys"}
"""Files that a boot loader may find by the numbers of their blocks (GRUB without a place of its own, extlinux)."""


@dataclass(frozen=True, slots=True)
class Gathered:
    """The new places of blocks of 4 KiB by their old ones, and how many could not be moved."""

    places: dict[int, int]
    left: int


@dataclass(frozen=True, slots=True)
class _Piece:
    """Neighbouring blocks of a file: where in the file, where on the device, how many."""

    path: bytes
    logical: int
    physical: int
    count: int


def gather(root: Path, requests: Iterable[tuple[int, int]]) -> Gathered:
    """Bring files' data together on a mounted ext4; ``requests`` are ranges of blocks of 4 KiB, in the start's order.

    What the file system has no room for stays where it is, the last requests first; so does what the kernel does not
    move (immutable files). Raises OSError.
    """
    status = os.statvfs(root)
    if status.f_frsize != _PAGE:
        return Gathered({}, 0)
    pieces = list(_pieces(root, requests))
    wanted = sum(piece.count for piece in pieces)
    count = min(wanted, status.f_bfree - _KEPT // _PAGE - _UNIT)
    if count <= 0:
        return Gathered({}, wanted)
    places: dict[int, int] = {}
    with ExitStack() as stack:
        zone = os.open(root, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        stack.callback(os.close, zone)
        os.posix_fallocate(zone, 0, (count + _UNIT) * _PAGE)
        slots = [
            block
            for _, sector, length in data_of(zone)
            for block in range(sector * SECTOR // _PAGE, (sector + length) * SECTOR // _PAGE)
        ]
        at = next((number for number, block in enumerate(slots) if block % _UNIT == 0), 0)
        end = min(at + count, len(slots))
        for piece in pieces:
            room = min(piece.count, end - at)
            moved = _move(piece, room, zone, at) if room else 0
            places.update(zip(range(piece.physical, piece.physical + moved), slots[at : at + moved], strict=True))
            at += moved
        os.fsync(zone)
    return Gathered(places, wanted - len(places))


def _move(piece: _Piece, count: int, zone: int, at: int) -> int:
    """Exchange the first blocks of a piece with those of ``zone`` from ``at`` on; return how many were."""
    with suppress(OSError), ExitStack() as stack:
        handle = os.open(piece.path, os.O_RDWR | os.O_NOFOLLOW | os.O_NOATIME | os.O_CLOEXEC)
        stack.callback(os.close, handle)
        request = bytearray(_ARGUMENTS.pack(0, zone, piece.logical, at, count, 0))
        fcntl.ioctl(handle, _MOVE, request)
        return int(_ARGUMENTS.unpack(request)[-1])
    return 0


def _pieces(root: Path, requests: Iterable[tuple[int, int]]) -> Iterator[_Piece]:
    """Yield what is to be moved, each block once, in the order of the requests."""
    found: list[_Piece] = []
    for name, data in data_below(root):
        path = os.fsencode(root) + b"/" + name
        if PurePath(os.fsdecode(path)).name in _BY_PLACE:
            continue
        for logical, sector, length in data:
            place = sector * SECTOR // _PAGE
            found.append(_Piece(path, logical // _PAGE, place, -(-length * SECTOR // _PAGE)))
    found.sort(key=lambda piece: piece.physical)
    begins = [piece.physical for piece in found]
    seen: set[int] = set()
    waiting: _Piece | None = None
    for start, end in requests:
        for block in range(start, end):
            owner = bisect.bisect_right(begins, block) - 1
            if block in seen or owner < 0 or block >= begins[owner] + found[owner].count:
                continue
            seen.add(block)
            piece = found[owner]
            logical = piece.logical + block - piece.physical
            if waiting and (waiting.path, waiting.logical + waiting.count, waiting.physical + waiting.count) == (
                piece.path, logical, block,
            ):  # fmt: skip
                waiting = _Piece(piece.path, waiting.logical, waiting.physical, waiting.count + 1)
                continue
            if waiting:
                yield waiting
            waiting = _Piece(piece.path, logical, block, 1)
    if waiting:
        yield waiting

"""The disk formats that clouds import: Google's archive and Azure's VHD.

Sources: Compute Engine documentation, "Import boot disk images manually" (``disk.raw`` in a gzipped tar of the old GNU
kind, and a size of whole GiB; the same disk gives the same bytes); Azure documentation, "Prepare Linux for imaging in
Azure" (fixed, whole MiB, no rounding to cylinders); Virtual Hard Disk Image Format Specification 1.0, "Hard Disk Footer
Format".
"""

from __future__ import annotations

import struct
import tarfile
from pathlib import Path
from typing import BinaryIO

from isal import igzip_threaded

from parbake.core import cores
from parbake.core.errors import BadContent, InputError
from parbake.core.events import Events
from parbake.core.model import GIB, MIB
from parbake.core.workspace import room_for
from parbake.machine import disk

_DISK_NAME = "disk.raw"
_LEVEL = 1  # ISA-L's levels end at 3, which is 5 % smaller in twice the time
_PIECE = MIB
_ZEROS = bytes(_PIECE)
_MOST_THREADS = 8
_FOOTER = struct.Struct(">8sIIQ4s4s4s4sQQ4sII16sB")
_FIXED = 2
_FOOTER_SIZE = 512  # bytes of the footer


def write_archive(raw: Path, target: Path, events: Events) -> int:
    """Write a raw disk, filled up with zeros to whole GiB, as an archive; return the disk's size in it, in bytes.

    Holes are not read. Raises DiskFull, InputError (the disk becomes shorter meanwhile).
    """
    size = raw.stat().st_size
    whole = -(-size // GIB) * GIB
    threads = min(cores.available(), _MOST_THREADS)
    with (
        room_for(target),
        raw.open("rb", buffering=0) as source,
        _compressed(target, threads) as archive,
        events.task(f"pack {raw.name}", whole) as task,
    ):
        entry = tarfile.TarInfo(_DISK_NAME)
        entry.size, entry.mode = whole, 0o644
        archive.write(entry.tobuf(tarfile.GNU_FORMAT))
        place = 0
        for start, end in [*disk.extents(source.fileno(), size), (whole, whole)]:
            task.advance(start - place)
            _write_zeros(archive, start - place)
            source.seek(start)
            place = start
            while place < end:
                piece = source.read(min(_PIECE, end - place))
                if not piece:
                    raise InputError(f"{raw} shrank while it was packed", hint="make sure that nothing writes to it")
                archive.write(piece)
                place += len(piece)
                task.advance(len(piece))
        _write_zeros(archive, tarfile.RECORDSIZE - tarfile.BLOCKSIZE - whole % tarfile.RECORDSIZE)
    return whole


def _compressed(target: Path, threads: int) -> BinaryIO:
    made: BinaryIO = igzip_threaded.open(target, "wb", compresslevel=_LEVEL, threads=threads)  # type: ignore[no-untyped-call]
    return made


def _write_zeros(archive: BinaryIO, count: int) -> None:
    while count > 0:
        archive.write(_ZEROS[: min(count, _PIECE)])
        count -= _PIECE


def vhd_size(raw: Path) -> int:
    """Return the size of the VHD of a raw disk, in bytes, with its footer."""
    return -(-raw.stat().st_size // MIB) * MIB + _FOOTER_SIZE


def write_vhd(raw: Path, target: Path, work: Path, events: Events) -> None:
    """Write a raw disk, filled up with zeros to whole MiB, as a fixed VHD.

    ``work`` is a folder on the same file system, for a copy where the disk is not of whole MiB. What was written is
    checked. Raises DiskFull, CommandFailed, BadContent.
    """
    whole = vhd_size(raw) - _FOOTER_SIZE
    if whole != raw.stat().st_size:
        padded = work / "padded.raw"
        disk.copy_sparse(raw, padded, events)
        with padded.open("r+b") as file:
            file.truncate(whole)
        raw = padded
    with events.stage("convert", f"Write {target.name}"):
        disk.convert(raw, target, "vhd")
    check_vhd(target, whole)


def check_vhd(path: Path, size: int) -> None:
    """Raise BadContent unless a file is a fixed VHD with a disk of ``size`` bytes, whole MiB."""
    with path.open("rb") as file:
        file.seek(-_FOOTER_SIZE, 2)
        at, footer = file.tell(), file.read(_FOOTER_SIZE)
    cookie, _, _, data, _, _, _, _, original, current, _, kind, checksum, _, _ = _FOOTER.unpack_from(footer)
    summed = ~(sum(footer) - sum(footer[64:68])) & 0xFFFFFFFF
    wrong = {
        "it has no footer": cookie != b"conectix",
        "its footer is damaged": checksum != summed,
        "it is not fixed": kind != _FIXED or data != 0xFFFFFFFFFFFFFFFF,
        f"its disk has {current} bytes, not {size}": not at == original == current == size,
        "its disk is not of whole MiB": bool(current % MIB),
    }
    for problem, is_so in wrong.items():
        if is_so:
            raise BadContent(f"{path} is not a VHD for Azure: {problem}", hint="is qemu-img that of the distribution?")

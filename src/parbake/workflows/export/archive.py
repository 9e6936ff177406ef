"""The archive that Google Compute Engine makes images of: ``disk.raw`` in a gzipped tar of the old GNU kind.

Source: Compute Engine documentation, "Import boot disk images manually": the name, the kind of tar, and a size of whole
GiB. The same disk gives the same bytes.
"""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import BinaryIO

from isal import igzip_threaded

from parbake.core import cores
from parbake.core.errors import InputError
from parbake.core.events import Events
from parbake.core.model import GIB, MIB
from parbake.core.workspace import room_for
from parbake.machine.disk import extents

_NAME = "disk.raw"
_LEVEL = 1  # ISA-L's levels end at 3, which is 5 % smaller in twice the time
_PIECE = MIB
_ZEROS = bytes(_PIECE)
_MOST_THREADS = 8


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
        entry = tarfile.TarInfo(_NAME)
        entry.size, entry.mode = whole, 0o644
        archive.write(entry.tobuf(tarfile.GNU_FORMAT))
        place = 0
        for start, end in [*extents(source.fileno(), size), (whole, whole)]:
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

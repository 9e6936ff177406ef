"""The one door to the bytes of an artefact that exists: compared with its record, and held while something uses them.

A file is opened once, and what is compared is what is used: it gets a second name in a work folder, where nobody else
can put another file in its place; a copy that shares its blocks (reflink), where the file system can, so that nobody
can write to it either. Elsewhere that second name is a hard link, which others may write to through the first one: then
its time of last change (ctime), which nobody sets back, says so, and the bytes are compared once more at the end.

Two others read artefacts, and compare each block on the way: the copy of an earlier volume that a bake starts from
(``machine.disk.inherit``), and what is sent to a store (``store.packs``).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from parbake.core.errors import InputError, VerificationFailed
from parbake.core.events import Events
from parbake.core.files import open_file
from parbake.machine import disk
from parbake.records.folder import blocks_of, blocks_path
from parbake.records.record import Record

type State = tuple[int, ...]
"""What tells a file that nobody has written to from one that somebody has: device, inode, size, mtime, ctime (ns)."""

_NO_LINK = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOENT}


class NotAsRecorded(VerificationFailed):
    """An artefact whose bytes are not those of its record; ``differs`` says in what."""

    def __init__(self, artefact: Path, differs: str) -> None:
        super().__init__(f"{artefact.name} is not what its record says: {differs}", hint=_AGAIN)
        self.differs = differs


_AGAIN = "bake it again: `parbake bake --force`"


def state(path: Path) -> State:
    """Return the state of a file, for ``held``: what made it vouches for its bytes as long as it stays so."""
    return _state(path.stat())


def _state(status: os.stat_result) -> State:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


@dataclass(slots=True)
class Held:
    """An artefact's bytes under a name of their own, ``path``; ``compared`` with its record, or just made by this run.

    ``as_compared`` is the state of a file that others may write to.
    """

    artefact: Path
    path: Path
    record: Record
    events: Events
    compared: bool
    as_compared: State | None

    def need_unchanged(self) -> None:
        """Compare once more where somebody may have written to the file meanwhile; raises NotAsRecorded."""
        if self.as_compared is None or (now := state(self.path)) == self.as_compared:
            return
        self.as_compared = now
        if differs := damage(self.path, self.record, self.events, beside=self.artefact):
            raise NotAsRecorded(self.artefact, f"{differs} (it was written to meanwhile)")


@contextmanager
def held(artefact: Path, record: Record, work: Path, events: Events, *, known: State | None = None) -> Iterator[Held]:
    """Compare an artefact's bytes with its record, and yield them for use; ``work`` is a folder of this run alone.

    ``known`` is the state of the file in which this run has made it: then its bytes are not read to be compared.
    Raises NotAsRecorded, before anything uses them or, where they were written to meanwhile, at the end; InputError
    where there is no such file; DiskFull.
    """
    file = _opened(artefact)
    handle = file.fileno()
    folder = work / "held"
    folder.mkdir(mode=0o700)
    path = folder / artefact.name
    try:
        fresh = known is not None and _state(os.fstat(handle)) == known
        is_copy = _named(handle, path, events)
        bytes_ = Held(artefact, path, record, events, not fresh, None if is_copy else state(path))
        if not fresh:
            with events.stage("compare", f"Compare {artefact.name} with its record"):
                if differs := damage(path, record, events, beside=artefact):
                    raise NotAsRecorded(artefact, differs)
        yield bytes_
        bytes_.need_unchanged()
    finally:
        file.close()
        path.unlink(missing_ok=True)
        folder.rmdir()


def damage(path: Path, record: Record, events: Events, *, beside: Path | None = None) -> str:
    """Compare a file with a record: say what differs, or nothing. Raises InputError, DiskFull.

    The list of blocks ``beside`` an artefact is written anew where it is missing or damaged itself.
    """
    if record.blocks is None:
        digest = disk.sha256_file(path, events)
        return "" if digest == record.sha256 else f"its SHA-256 is {digest}, not the {record.sha256} of its record"
    artefact = beside or path
    found = disk.block_list(path, events, algorithm=record.blocks.algorithm)
    known = blocks_of(artefact, record)
    if found.digest() == record.blocks.digest:
        if known is None:
            found.write(blocks_path(artefact))
        return ""
    if known is None:
        return f"its bytes do not match its record, and {blocks_path(artefact).name} does not say which"
    return found.damage(known)


def _opened(artefact: Path) -> BinaryIO:
    try:
        return open_file(artefact)
    except OSError as error:
        raise InputError(f"cannot read {artefact}: {error.strerror}", hint=_AGAIN) from None


def _named(handle: int, path: Path, events: Events) -> bool:
    """Give an open file a second name; return whether it is a copy, which nobody else can write to."""
    source = Path(f"/proc/self/fd/{handle}")
    with path.open("xb") as copy:
        if disk.reflink(handle, copy.fileno()):
            return True
    path.unlink()
    try:
        # With a folder's descriptor, which an absolute path makes no use of, Python calls linkat(2) and it follows.
        os.link(source, path, src_dir_fd=handle, follow_symlinks=True)
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        disk.copy_sparse(source, path, events)
        return True
    return False

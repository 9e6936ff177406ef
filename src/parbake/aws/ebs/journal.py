"""What is to be uploaded, and the journal of it: what a pending snapshot, which cannot be read, holds already.

The journal lies beside the disk, or where machines share a store, in that: another machine then goes on with the
snapshot. Its own disk may differ (two bakes of one key do not have the same bytes), so that the journal says before the
first block which blocks may be written at all: what the dead one has written and not noted is written again.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from parbake import aws
from parbake.aws import Stamp
from parbake.core.blocks import BlockList
from parbake.core.claim import Notes
from parbake.core.errors import ClaimLost, ParbakeError
from parbake.core.files import read_file
from parbake.core.model import GIB
from parbake.machine.disk import ZEROS
from parbake.machine.disk.blocks import HASHES

_LINE = re.compile(r"(\d+) ([0-9a-f]{64})")
_RANGE = re.compile(r"(\d+)-(\d+)")
_LARGEST = 256 << 20  # bytes: a line of some 80 for each block of 512 KiB
_COMPLETE, _WILL, _SAME = "complete", "will", "same"
_SHARED_EVERY = 5.0  # seconds between additions to what machines share: what was not added, is written again


@dataclass(frozen=True, slots=True)
class ParentSnapshot:
    """A completed snapshot that the new one builds on, and what it holds."""

    snapshot: str
    blocks: BlockList


@dataclass(frozen=True, slots=True)
class UploadRequest:
    """What to upload, and as what.

    ``journal`` is the file that notes what has been written; it stays until whoever is done with the disk removes it.
    With ``shared`` it is noted there instead, and ``about`` with it, for whoever takes over. ``encrypted`` and
    ``kms_key`` (alias, id or ARN) are for a snapshot without a parent: with one, the parent decides (StartSnapshot
    refuses to be told both). ``inherited`` are the SHA-256 of blocks that whoever made the disk knows: where the parent
    has the same, they are not read.
    """

    path: Path
    journal: Path
    stamp: Stamp
    name: str
    region: str = ""
    parent: ParentSnapshot | None = None
    encrypted: bool = False
    kms_key: str = ""
    shared: Notes | None = None
    about: Mapping[str, str] = field(default_factory=dict)
    inherited: Mapping[int, bytes] = field(default_factory=dict)


class Journal:
    """What a pending snapshot holds already, as a file that survives a kill, or in notes; use with ``with``.

    The first line says how the snapshot was started; then come its id and when that was, the blocks that AWS has
    acknowledged with their SHA-256 (the last one of a block counts), and the word that all are there. A last line that
    was torn does not count. In notes there is also which blocks may be written from then on, and which of them were
    not: they are as they were before.
    """

    def __init__(self, path: Path, start: Mapping[str, Any], shared: Notes | None = None) -> None:
        self.path = path
        self.start = dict(start)
        self.snapshot = ""
        self.began_at = 0.0  # seconds since 1970
        self.written: dict[int, bytes] = {}
        self.unsure: set[int] = set()
        """Blocks that a machine which has died since may have written, with whatever content."""
        self.complete = False
        self.completed_by = ""
        self.replaced = ""
        """The snapshot of another start of the same upload: it is not resumed."""
        self._shared = shared
        self._begun = False
        self._handle = -1
        self._waiting: list[str] = []
        self._shared_at = time.monotonic()
        self._sharing = threading.Lock()

    @classmethod
    def open(cls, path: Path, request: UploadRequest) -> Self:
        """Go on with the journal of an upload that was started alike, or begin one."""
        same = {
            "key": request.stamp.key,
            "region": request.region,
            "gib": -(-request.path.stat().st_size // GIB),
            "parent": request.parent.snapshot if request.parent else "",
            "encrypted": request.encrypted,
            "kms_key": request.kms_key,
        }
        before = cls.read(request.shared, path)
        if before and {name: before.start.get(name) for name in same} == same:
            return before
        shared = request.shared
        # A machine that takes over makes the same request, and gets the same snapshot.
        own = (request.stamp.run, str(shared.series)) if shared else ()
        token = aws.token(*map(str, same.values()), *own) if shared else secrets.token_hex(32)
        tags = request.stamp.tags("snapshot", name=request.name)
        about = {"about": dict(request.about)} if shared else {}
        made = cls(path, {**same, "token": token, "tags": tags, **about}, shared)
        made.replaced = before.snapshot if before and shared else ""
        return made

    @classmethod
    def read(cls, shared: Notes | None, path: Path = Path()) -> Self | None:
        """Return what is noted, where anything is."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            lines = (shared.read() if shared else read_file(path, _LARGEST).decode()).splitlines(keepends=True)
            if not lines:
                return None
            made = cls(path, json.loads(lines[0]), shared)
            made._begun = True
            for line in (line.strip() for line in lines[1:] if line.endswith("\n")):
                made._heard(line)
            return made
        return None

    def _heard(self, line: str) -> None:
        word, _, rest = line.partition(" ")
        if block := _LINE.fullmatch(line):
            self.written[int(block[1])] = bytes.fromhex(block[2])
            self.unsure.discard(int(block[1]))
        elif word == _COMPLETE:
            self.complete, self.completed_by = True, rest
        elif word == _WILL:
            self.unsure.update(_indices(rest))
        elif word == _SAME:
            self.unsure.discard(int(rest))
        else:
            self.snapshot, self.began_at = word, float(rest or 0)

    def __enter__(self) -> Self:
        fresh = not self.written and not self.snapshot
        if self._shared is None:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC | (os.O_TRUNC if fresh else 0)
            self._handle = os.open(self.path, flags, 0o600)
            if fresh:
                self._note(json.dumps(self.start))
        elif not self._begun:
            self._shared.begin(json.dumps(self.start))
        return self

    def __exit__(self, *_: object) -> None:
        if self._shared is None:
            os.close(self._handle)
        else:
            with suppress(ParbakeError):  # what is not noted there is written again
                self._share()

    def _note(self, line: str, *, now: bool = False) -> None:
        """Note a line; with ``now`` it is where it belongs when this returns."""
        if self._shared is None:
            os.write(self._handle, f"{line}\n".encode())  # one call: threads do not mix their lines
            return
        self._waiting.append(line)
        if now:
            self._share()
        elif time.monotonic() - self._shared_at > _SHARED_EVERY and self._sharing.acquire(blocking=False):
            self._sharing.release()
            try:
                self._share()
            except ClaimLost:
                raise
            except ParbakeError:  # the store cannot be asked now; the claim says when that lasts too long
                self._shared_at = time.monotonic()

    def _share(self) -> None:
        with self._sharing:
            lines = list(self._waiting)
            if lines and self._shared:
                self._shared.add("".join(f"{line}\n" for line in lines))
                del self._waiting[: len(lines)]
            self._shared_at = time.monotonic()

    def began(self, snapshot: str) -> None:
        """Note the id of the snapshot."""
        self.snapshot, self.began_at = snapshot, time.time()
        self._note(f"{snapshot} {self.began_at:.0f}", now=True)

    def announce(self, indices: Iterable[int]) -> None:
        """Note which blocks may be written from now on, where another machine may have to know."""
        if self._shared:
            self._note(f"{_WILL} {_ranges(indices)}", now=True)

    def left(self, index: int) -> None:
        """Note that a block which was announced was not written: it was there."""
        if self._shared:
            self._note(f"{_SAME} {index}")

    def wrote(self, index: int, digest: bytes) -> None:
        """Note a block that AWS has acknowledged, with its SHA-256."""
        self.written[index] = digest
        self._note(f"{index} {digest.hex()}")

    def completed(self) -> None:
        """Note that every block is there."""
        self.complete = True
        self.completed_by = self._shared.holder if self._shared else ""
        self._note(f"{_COMPLETE} {self.completed_by}".rstrip(), now=True)

    def forget(self) -> None:
        """Remove what is noted."""
        if self._shared:
            self._shared.forget()
        else:
            self.path.unlink(missing_ok=True)

    def blocks(self, below: BlockList | None, size: int) -> BlockList:
        """Return the list of the blocks that the snapshot has when it is complete."""
        zeros = HASHES["sha256"](ZEROS)
        found = {**(below.blocks if below else {}), **self.written}
        return BlockList(size, {index: found[index] for index in sorted(found) if found[index] != zeros})


def _ranges(indices: Iterable[int]) -> str:
    """Return numbers as ranges, such as ``0-3 9-9``."""
    found: list[list[int]] = []
    for index in sorted(indices):
        if found and found[-1][1] == index - 1:
            found[-1][1] = index
        else:
            found.append([index, index])
    return " ".join(f"{first}-{last}" for first, last in found)


def _indices(ranges: str) -> Iterator[int]:
    for first, last in _RANGE.findall(ranges):
        yield from range(int(first), int(last) + 1)

"""Copies of volumes that others may have written to meanwhile: their bytes are compared with the list of their blocks.

Hashing a volume reads all of it, which takes as long as its disk gives bytes; a copy that shares blocks (reflink) reads
nothing. So a file can be remembered as it was when its bytes were hashed: by its inode and the time of its last change
(ctime), which the kernel sets on each write and nobody sets back. What a disk changes by itself (bit rot) that does not
show. It is good for bakes that are not proven; others compare every byte.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from parbake.core import sealed
from parbake.core.blocks import BlockList
from parbake.core.errors import EnvironmentProblem, ParbakeError
from parbake.core.events import Events
from parbake.core.run import sleep
from parbake.core.workspace import part_of, room_for
from parbake.machine.disk.blocks import block_list
from parbake.machine.disk.files import complete_or_absent, reflink, state

_CLOCK_OF_CHANGES: Final = 5
"""CLOCK_REALTIME_COARSE (clock_gettime(2)), which Python does not name: the kernel takes ctimes from this clock.

Newer kernels (6.13) may take a finer one, which is never behind it. It ticks every 1 to 10 ms.
"""


class NotAsListed(ParbakeError):
    """A volume whose bytes are not those of the list of its blocks; the message says which."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What is remembered of a file in a folder ``digests`` of the cache: that its bytes had a digest when it was so."""

    path: Path
    digest: str
    cache: Path

    def holds(self, status: os.stat_result) -> bool:
        """Whether a file in this state is known to have these bytes, from a note with the seal of this user's key."""
        with suppress(EnvironmentProblem):
            return sealed.is_sealed(self._note(status), self.digest)
        return False

    def remember(self) -> None:
        """Remember that the file's bytes are these as it is now. Raises OSError, DiskFull, EnvironmentProblem."""
        now = time.clock_gettime_ns(_CLOCK_OF_CHANGES)
        while (status := self.path.stat()).st_ctime_ns >= now:  # a change in this same tick would not show
            sleep(0.001)
            now = time.clock_gettime_ns(_CLOCK_OF_CHANGES)
        with room_for(self.cache):
            sealed.seal(self._note(status), self.digest, durable=False)

    def forget(self) -> None:
        """Compare the file's bytes the next time."""
        with suppress(OSError, EnvironmentProblem):
            sealed.loosen(self._note(self.path.stat()))

    def _note(self, status: os.stat_result) -> Path:
        name = hashlib.sha256(json.dumps(["blocks", *state(self.path, status)]).encode()).hexdigest()
        return part_of(self.cache, "digests") / name


def copy_listed(source: Path, target: Path, listed: BlockList, events: Events, *, memory: Memory | None) -> Path | None:
    """Copy a volume, by reflink where the file system can, and compare all bytes of the copy with the list.

    They are not compared where the copy took no reading and the file is as ``memory`` knows it: then a second copy is
    returned, for ``compare``. The volume itself may still be in memory as it was before its disk changed it. Raises
    NotAsListed, DiskFull; there is no copy then.
    """
    with complete_or_absent(target), source.open("rb") as reader, target.open("xb") as writer:
        before = os.fstat(reader.fileno())
        if reflink(reader.fileno(), writer.fileno()):
            same = os.fstat(reader.fileno()).st_ctime_ns == before.st_ctime_ns
            if memory and same and memory.holds(before):
                return _second(target)
            found = block_list(target, events, algorithm=listed.algorithm)
        else:
            writer.truncate(before.st_size)
            found = block_list(source, events, algorithm=listed.algorithm, copy_to=writer.fileno())
        if damage := found.damage(listed):
            raise NotAsListed(damage, hint=_AGAIN)
    return None


def _second(copy: Path) -> Path:
    second = copy.with_name(f"{copy.name}.before")
    with copy.open("rb") as reader, second.open("xb") as writer:
        reflink(reader.fileno(), writer.fileno())
    return second


def compare(path: Path, listed: BlockList, events: Events, blocks: Collection[int]) -> None:
    """Compare some blocks of a copy with the list; raises NotAsListed."""
    others = {index: digest for index, digest in listed.blocks.items() if index not in blocks}
    found = block_list(path, events, others, algorithm=listed.algorithm)
    if damage := found.damage(listed):
        raise NotAsListed(damage, hint=_AGAIN)


_AGAIN = "bake it again: `parbake bake --force`"

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
from parbake.core.files import write_all
from parbake.core.model import EBS_BLOCK, GIB, MIB
from parbake.core.run import sleep
from parbake.core.workspace import part_of, room_for
from parbake.machine.disk.blocks import block_list, data_blocks
from parbake.machine.disk.files import complete_or_absent, reflink, state

_CLOCK_OF_CHANGES: Final = 5
"""CLOCK_REALTIME_COARSE (clock_gettime(2)), which Python does not name: the kernel takes ctimes from this clock.

Newer kernels (6.13) may take a finer one, which is never behind it. It ticks every 1 to 10 ms.
"""


_WORTH_ASKING: Final = 256 << 20
"""Bytes of the smallest volume whose copy can take noticeably longer than the look how long it would."""
_SAMPLES: Final = 64  # blocks of 512 KiB: enough to outlast a disk's own cache of writes, 0.1 to 0.5 s


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


class CopyTakesLonger(ParbakeError):
    """A volume that is made anew in less time than it is copied; the message has the figures."""


def copy_listed(
    source: Path,
    target: Path,
    listed: BlockList,
    events: Events,
    *,
    memory: Memory | None,
    saves: float | None = None,
) -> Path | None:
    """Copy a volume, by reflink where the file system can, and compare all bytes of the copy with the list.

    Where it cannot, a copy that would take longer than it ``saves`` (seconds) is not made: raises CopyTakesLonger.
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
            if saves is not None and len(listed.blocks) * EBS_BLOCK >= _WORTH_ASKING:
                need_quick(len(listed.blocks) * EBS_BLOCK, copy_rate(reader.fileno(), writer.fileno()), saves)
            writer.truncate(before.st_size)
            found = block_list(source, events, algorithm=listed.algorithm, copy_to=writer.fileno())
        if damage := found.damage(listed):
            raise NotAsListed(damage, hint=_AGAIN)
    return None


def need_quick(size: int, rate: float, saves: float) -> None:
    """Raise CopyTakesLonger where copying ``size`` bytes, ``rate`` a second, takes longer than it saves (s). Pure."""
    if (seconds := size / rate) > saves:
        raise CopyTakesLonger(
            f"copying its {size / GIB:.1f} GiB takes {seconds:.1f} s here ({rate / MIB:.0f} MiB/s, without reflinks), "
            f"writing its layers anew {saves:.1f} s, as in the last whole bake",
            hint="on XFS or Btrfs a copy takes no time",
        )


def copy_rate(source: int, target: int) -> float:
    """Return how many bytes a second are copied from an open file to another's disk. Raises OSError.

    A sample from all over the source is written to the start of the target, which is empty again then.
    """
    places = list(data_blocks(source, os.fstat(source).st_size))
    places = places[:: max(1, len(places) // _SAMPLES)]
    started = time.monotonic()
    for number, place in enumerate(places):
        data = os.pread(source, EBS_BLOCK, place * EBS_BLOCK)
        write_all(target, memoryview(data), number * EBS_BLOCK)
    os.fdatasync(target)
    seconds = time.monotonic() - started
    os.ftruncate(target, 0)
    return len(places) * EBS_BLOCK / seconds


def _second(copy: Path) -> Path:
    second = copy.with_name(f"{copy.name}.before")
    with copy.open("rb") as reader, second.open("xb") as writer:
        reflink(reader.fileno(), writer.fileno())
    return second


def compare(path: Path, listed: BlockList, events: Events, blocks: Collection[int] | None = None) -> None:
    """Compare some blocks of a copy with the list, all of them by default; raises NotAsListed."""
    others = {}
    if blocks is not None:
        others = {index: digest for index, digest in listed.blocks.items() if index not in blocks}
    found = block_list(path, events, others, algorithm=listed.algorithm)
    if damage := found.damage(listed):
        raise NotAsListed(damage, hint=_AGAIN)


_AGAIN = "bake it again: `parbake bake --force`"

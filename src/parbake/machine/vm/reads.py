"""What a guest reads of its disks, from QEMU's own trace events: the firmware's and the boot loader's reads as well.

A line of QEMU's log is ``PID@SECONDS.MICROSECONDS:EVENT ARGUMENTS`` (QEMU, docs/devel/tracing.rst, backend "log";
hw/block/trace-events). Positions are those of the disk that the guest sees, whatever the format of the file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Final

MOST_READS: Final = 1 << 20
"""Lines of a log that count: the start of a large application makes 17,000 reads, a hostile one any number."""
_LONGEST: Final = 256  # characters of a line

READ_EVENT = "virtio_blk_handle_read"
_LINE = re.compile(
    rf"^\d{{1,10}}@(\d{{1,12}})\.(\d{{6}}):{READ_EVENT} vdev (0x[0-9a-f]{{1,16}}) req 0x[0-9a-f]{{1,16}} "
    r"sector (\d{1,18}) nsectors (\d{1,9})$"
)


@dataclass(frozen=True, slots=True)
class GuestRead:
    """One read: seconds since the epoch, first sector, count of sectors (512 bytes)."""

    at: float
    sector: int
    length: int


Disks = Sequence[Sequence[GuestRead]]
"""The reads of each disk, in order. Which disk that is, the log does not say."""


def read_log(log: Path) -> tuple[Disks, float]:
    """Return the reads in a log, and until when it counts: in seconds since the epoch, infinity for all of it."""
    with log.open(errors="replace") as file:
        lines = iter(partial(file.readline, _LONGEST), "")
        disks = by_disk(islice(lines, MOST_READS))
        is_whole = next(lines, None) is None
    return disks, math.inf if is_whole else max((reads[-1].at for reads in disks), default=0.0)


def by_disk(lines: Iterable[str]) -> Disks:
    """Return the reads in the lines of a log; lines that say something else are left out. Pure."""
    disks: dict[str, list[GuestRead]] = {}
    for line in lines:
        match = _LINE.match(line.rstrip("\n"))
        if match and int(match[5]):
            at = int(match[1]) + int(match[2]) / 1e6
            disks.setdefault(match[3], []).append(GuestRead(at, int(match[4]), int(match[5])))
    return list(disks.values())


def busiest_disk(disks: Disks) -> Sequence[GuestRead]:
    """Return the reads of the disk of which most was read: the one that was booted. Pure."""
    return max(disks, key=lambda reads: sum(read.length for read in reads), default=())


def marked_disk(disks: Disks, marks: Sequence[int]) -> Sequence[GuestRead]:
    """Return the reads of the disk of which these single sectors were read in this order; none without one. Pure."""
    for reads in disks:
        single = (read.sector for read in reads if read.length == 1)
        if all(mark in single for mark in marks):  # each looks on from where the one before was found
            return reads
    return ()

"""What a guest reads of its disks, from QEMU's own trace events: the firmware's and the boot loader's reads as well.

A line of QEMU's log is ``PID@SECONDS.MICROSECONDS:EVENT ARGUMENTS`` (QEMU, docs/devel/tracing.rst, backend "log";
hw/block/trace-events). Positions are those of the disk that the guest sees, whatever the format of the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

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


def busiest_disk(lines: Iterable[str]) -> tuple[GuestRead, ...]:
    """Return the reads of the disk of which most was read, in order: the one that was booted. Pure.

    Lines that say something else are left out.
    """
    disks: dict[str, list[GuestRead]] = {}
    for line in lines:
        match = _LINE.match(line.rstrip("\n"))
        if match and int(match[5]):
            at = int(match[1]) + int(match[2]) / 1e6
            disks.setdefault(match[3], []).append(GuestRead(at, int(match[4]), int(match[5])))
    return tuple(max(disks.values(), key=lambda reads: sum(read.length for read in reads), default=[]))

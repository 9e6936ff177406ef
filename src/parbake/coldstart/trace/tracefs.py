"""Record the reads of one block device through tracefs, in a trace instance of our own.

The event is ``block_bio_queue``: every request as it enters the block layer, in order, metadata included, whatever
overlayfs stands above. Its ``dev`` may be the partition's or the disk's, its ``sector`` counts from the disk's start
(Documentation/trace/ftrace.rst, events.rst; include/trace/events/block.h). Instances are independent: others may trace
at the same time, and we see only what our filter lets through.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from parbake.coldstart.trace.data import SECTOR, Read
from parbake.core import orphans, run
from parbake.core.errors import EnvironmentProblem, ParbakeError

_PLACES = ("/sys/kernel/tracing", "/sys/kernel/debug/tracing")
_EVENT = "events/block/block_bio_queue"
_LINE = re.compile(
    r"^.{1,80}?\s(\d{1,12})\.(\d{6}): block_bio_queue: (\d{1,10}),(\d{1,10}) ([A-Z]{1,10}) (\d{1,19}) \+ (\d{1,10}) \["
)
BUFFER = 4 << 10
"""KiB of a processor's buffer to begin with: some 60,000 reads."""
LARGEST_BUFFER = 64 << 10


class Overrun(ParbakeError):
    """The kernel's buffer was too small, so reads are missing from the trace."""

    usual_hint = "trace again while the machine does less, or for a shorter time"


@dataclass(frozen=True, slots=True)
class Device:
    """Where a file system lies: sectors ``start`` to ``start + count`` of a disk; ``numbers`` are (major, minor).

    ``numbers`` holds the device's own and, for a partition, its disk's: the event may name either.
    """

    path: str
    numbers: tuple[tuple[int, int], ...]
    start: int
    count: int


def device_of(path: str) -> Device:
    """Look up a block device (a disk, a loop device, a partition); raises EnvironmentProblem for anything else."""
    try:
        status = os.stat(path)  # noqa: PTH116 - a device's numbers
        own = (os.major(status.st_rdev), os.minor(status.st_rdev))
        folder = Path(f"/sys/dev/block/{own[0]}:{own[1]}").resolve(strict=True)
        count = int((folder / "size").read_text())
        if not (folder / "partition").exists():
            return Device(path, (own,), 0, count)
        major, _, minor = (folder.parent / "dev").read_text().strip().partition(":")
        return Device(path, (own, (int(major), int(minor))), int((folder / "start").read_text()), count)
    except (OSError, ValueError):
        raise EnvironmentProblem(f"{path} is not a block device", hint="`lsblk` lists them") from None


def mounted_at(place: Path) -> str:
    """Return the block device on which a folder's file system lies; raises EnvironmentProblem when it has none."""
    number = place.stat().st_dev
    with suppress(OSError):
        for line in Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/uevent").read_text().splitlines():
            if line.startswith("DEVNAME="):
                return f"/dev/{line.removeprefix('DEVNAME=')}"
    raise EnvironmentProblem(f"{place} lies on no block device", hint="name the device; `findmnt` lists them")


def parse_lines(text: Iterable[str], device: Device, *, since: float) -> tuple[Read, ...]:
    """Return the reads of a device from the lines of a ``trace`` file; ``since`` is in seconds of its clock. Pure.

    Other lines (other events or devices, and flushes, which carry no data) are skipped, and never an error.
    """
    found = []
    for line in text:
        match = _LINE.match(line)
        if match is None or "R" not in match[5]:
            continue
        sector, count = int(match[6]) - device.start, int(match[7])
        if (int(match[3]), int(match[4])) not in device.numbers or count <= 0 or sector < 0:
            continue
        count = min(count, device.count - sector)  # a request may be larger than what is left of the partition
        if count <= 0:
            continue
        ms = max(0, round((int(match[1]) + int(match[2]) / 1e6 - since) * 1000))
        found.append(Read(ms, sector, count))
    return tuple(found)


def overruns(stats: str) -> int:
    """Return how many events a processor's buffer lost, from its ``stats`` file. Pure."""
    lost = 0
    for line in stats.splitlines():
        name, _, value = line.partition(":")
        if name in {"overrun", "commit overrun", "dropped events"} and value.strip().isdecimal():
            lost += int(value)
    return lost


@contextmanager
def tracefs() -> Iterator[Path]:
    """Yield the root of tracefs, for this process only; raises EnvironmentProblem without it.

    Where it is not mounted, it is for as long as it takes to open it: the root goes by its handle, so that nobody else
    who unmounts it takes it from us, and nothing stays mounted after a kill.
    """
    handle = next((found for found in map(_opened, _PLACES) if found is not None), None)
    if handle is None:
        with suppress(OSError):
            Path(_PLACES[0]).mkdir(exist_ok=True)
        if not run.run(["mount", "-t", "tracefs", "tracefs", _PLACES[0]], check=False).code:
            handle = _opened(_PLACES[0])
            run.run(["umount", "--lazy", _PLACES[0]], check=False)
    if handle is None:
        raise EnvironmentProblem(
            "the kernel's tracefs cannot be mounted", hint="it needs root, and a kernel with CONFIG_FTRACE"
        )
    try:
        yield Path(f"/proc/self/fd/{handle}")
    finally:
        os.close(handle)


def _opened(place: str) -> int | None:
    """Open the root of a tracefs; None where there is none."""
    with suppress(OSError):
        handle = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        if Path(f"/proc/self/fd/{handle}/instances").is_dir():
            return handle
        os.close(handle)
    return None


class Recorder:
    """Records the reads of one device while entered; ``reads`` afterwards. Use with ``with``. Needs root.

    ``buffer`` is KiB for each processor: what does not fit is lost, and then ``reads`` raises Overrun. Instances that
    dead processes left are removed first. Raises EnvironmentProblem where the kernel cannot trace.
    """

    def __init__(self, device: Device, *, buffer: int = BUFFER) -> None:
        self.device, self.buffer = device, buffer
        self._stack = ExitStack()
        self._folder: Path
        self._since = 0.0
        self._found: tuple[Read, ...] = ()
        self._lost = 0

    def __enter__(self) -> Self:
        run.need_root("tracing")
        with ExitStack() as stack:
            root = stack.enter_context(tracefs())
            if not (root / _EVENT).is_dir():
                raise EnvironmentProblem(
                    "the kernel has no block events to trace", hint="it needs CONFIG_BLK_DEV_IO_TRACE"
                )
            sweep(root)
            self._folder = root / "instances" / orphans.new_name()
            self._folder.mkdir()
            stack.callback(_remove, self._folder)
            self._write("trace_clock", "mono")
            self._write("buffer_size_kb", str(self.buffer))
            devices = " || ".join(f"dev == {major << 20 | minor}" for major, minor in self.device.numbers)
            self._write(f"{_EVENT}/filter", f'({devices}) && rwbs ~ "*R*"')
            self._write(f"{_EVENT}/enable", "1")
            self._since = _now()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        with self._stack:
            self._write("tracing_on", "0")
            self._lost = sum(overruns(path.read_text()) for path in self._folder.glob("per_cpu/cpu*/stats"))
            with (self._folder / "trace").open(errors="replace") as lines:
                self._found = parse_lines(lines, self.device, since=self._since)

    def _write(self, name: str, text: str) -> None:
        (self._folder / name).write_text(text)

    @property
    def reads(self) -> tuple[Read, ...]:
        """What was read, in order; raises Overrun when the buffer lost some of it."""
        if self._lost:
            raise Overrun(f"{self._lost} reads of {self.device.path} were lost: the trace's buffer was too small")
        return self._found

    @property
    def read_bytes(self) -> int:
        """Bytes of all reads that were seen, lost ones not counted."""
        return sum(read.length for read in self._found) * SECTOR


def sweep(root: Path) -> tuple[str, ...]:
    """Remove the trace instances of processes that are dead; return their names."""
    removed = []
    for folder in sorted((root / "instances").glob("parbake-*")):
        if orphans.is_orphan(folder.name):
            _remove(folder)
            removed.append(folder.name)
    return tuple(removed)


def _remove(folder: Path) -> None:
    with suppress(OSError):  # a reader that is just ending: the next sweep takes it
        (folder / "tracing_on").write_text("0")
        folder.rmdir()


def _now() -> float:
    return time.clock_gettime(time.CLOCK_MONOTONIC)

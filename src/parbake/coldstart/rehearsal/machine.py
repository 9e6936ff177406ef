"""Rehearse in a virtual machine: start each image there, and learn from QEMU which blocks of its disk are read.

A machine image is what boots. A volume is attached to a node as it is when it is verified, and comes cold to each
image: it is unmounted, and mounted anew under a runtime that starts anew.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from parbake.coldstart.rehearsal.cold_start import NotStarted, stages_of, wait_image
from parbake.coldstart.rehearsal.overlay import writable
from parbake.coldstart.rehearsal.volume import files_read, identify
from parbake.coldstart.trace import SECTOR, Part, Read, Trace, data_below, described
from parbake.coldstart.trace.owners import Described
from parbake.core import run
from parbake.core.cgroups import Limits
from parbake.core.errors import ContainerdError, DeadlineExceeded, EnvironmentProblem, MachineError
from parbake.core.model import Image, Plan, Startup
from parbake.core.plan import starting
from parbake.core.timestamps import timestamp
from parbake.machine import disk
from parbake.machine.vm import GuestRead, accelerator, busiest_disk, marked_disk, read_log
from parbake.machine.vm.firmware import qemu_format
from parbake.verify import Verification
from parbake.verify.booted import VOLUME_DEVICE

if TYPE_CHECKING:
    from pathlib import Path

    from parbake.core.events import Events
    from parbake.verify.booted import BootedNode


_MARKS: Final = 3
_EACH: Final = f'for at; do dd if={VOLUME_DEVICE} of=/dev/null bs={SECTOR} count=1 iflag=direct skip="$at"; done'
_RUNTIME: Final = "containerd.service"
_LIMIT: Final = 60.0  # seconds with hardware virtualisation
_FORGET: Final = "echo 3 >/proc/sys/vm/drop_caches"
_MEMORY: Final = (2048, 8192)  # MiB: what emulated machines have that resume, and what is enough for any start
_TOO_MUCH: Final = "it read more often than a trace can hold"


@dataclass(frozen=True, slots=True)
class TraceWindow:
    """A part of a trace whose reads are to be found: when it began and ended, in seconds since the epoch."""

    name: str
    kind: Literal["boot", "image"]
    begun: float
    ended: float
    seconds: float
    stages: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TracedStarts:
    """What was started in a machine, what was not and why, and how a volume's disk was marked (``mark``).

    ``failed`` are those of the skipped that would not start on a node either.
    """

    windows: list[TraceWindow]
    skipped: dict[str, str]
    marks: tuple[int, ...] = ()
    failed: list[str] = field(default_factory=list)


def rehearse_machine(image: Path, plan: Plan, events: Events, work: Path, base: Path | None = None) -> Trace:
    """Boot a machine without a network, start images with cold caches, and return what is read.

    ``image`` is not changed. A machine image's trace begins with its boot, firmware and kernel included, as far as they
    read the root file system; a volume is attached to ``base``, the image of a node (None: the default base). An image
    that does not start is skipped. Root is needed for a machine image, and for a volume with another file system than
    parbake's ext4. Raises MachineError when the machine does not boot, EnvironmentProblem where QEMU cannot tell what
    is read.
    """
    log, memory = work / "reads.log", _MEMORY[0]
    if accelerator(plan.platform.architecture) == "kvm":  # as much as on the host, as far as that is of use
        memory = min(max(memory, Limits.of_machine().memory >> 20), _MEMORY[1])
    with Verification(
        image, plan, events=events, folder=work / "boot", reads=log, base=base, memory=memory
    ) as verification:
        started = start_all(verification, plan)
    return trace_of(image, plan, log, started, work)


def start_all(verification: Verification, plan: Plan) -> TracedStarts:
    """Start the images of a plan in a machine that was booted for it, each with cold caches."""
    node, events = verification.node, verification.events
    if node.is_docker:
        raise EnvironmentProblem("a node that runs Docker is not rehearsed", hint="bake without --rehearse")
    if verification.kind == "volume":
        found = TracedStarts([], {}, mark(node, verification.artefact))
    else:
        found = TracedStarts([TraceWindow("boot", "boot", 0.0, time.time(), round(node.boot_seconds, 3))], {})
    verification.provide_sandbox()
    for image in starting(plan):
        with events.stage(f"rehearse {image.reference}", f"Rehearse {image.reference} with cold caches"):
            try:
                found.windows.append(_start(verification, plan, image))
            except NotStarted as error:
                found.skipped[str(image.reference)] = str(error)
                if error.by_itself:
                    found.failed.append(str(image.reference))
    return found


def _start(verification: Verification, plan: Plan, image: Image) -> TraceWindow:
    node, stages = verification.node, dict[str, float]()
    try:
        if verification.kind == "volume":
            let_go(node)
        else:
            with suppress(MachineError):  # what a cache holds then is missing from this part alone
                node.machine.guest.check(["sh", "-c", _FORGET])
        begun = time.time()
        if verification.kind == "volume":
            stages = take_up(node, plan.artefact.filesystem)
            wait_image(node.cri, image, stretch=node.machine.stretch)
        started = verification.starter.start(image.names[0], image.startup or Startup())
    except (MachineError, ContainerdError, DeadlineExceeded) as error:
        raise NotStarted(error.message) from error
    stages = stages_of(stages, started)
    return TraceWindow(str(image.reference), "image", begun, time.time(), round(sum(stages.values()), 3), stages)


def trace_of(image: Path, plan: Plan, log: Path, starts: TracedStarts, work: Path) -> Trace:
    """Put what QEMU logged onto the file system that is traced, and into the part in whose time it was read.

    Raises EnvironmentProblem where nothing was logged of the disk.
    """
    disks, until = read_log(log)
    reads = marked_disk(disks, starts.marks) if starts.marks else busiest_disk(disks)
    if not reads:
        raise EnvironmentProblem(
            f"QEMU has not logged what was read of {image.name}",
            hint="it takes a QEMU with the trace backend `log`; "
            + ("--rehearse-in host does without" if starts.marks else "bake without --rehearse"),
        )
    with _traced(image, plan, work) as traced:
        parts, skipped = parts_of(starts, reads, until, traced.start // SECTOR, traced.size // SECTOR)
        of_files = traced.describe([read for part in parts for read in part.reads])
    return Trace(
        uuid=traced.uuid,
        filesystem=traced.filesystem,
        size=traced.size,
        how="boot",
        made_at=timestamp(),
        parts=parts,
        skipped={name: reason[:2000] for name, reason in skipped.items()},
        failed=tuple(starts.failed),
        **of_files,
    )


@dataclass(frozen=True, slots=True)
class _FileSystem:
    """The file system that is traced: where it lies on its disk, in bytes, and how to say whose data were read."""

    filesystem: str
    uuid: str
    start: int
    size: int
    describe: Callable[[Sequence[Read]], Described]


@contextmanager
def _traced(image: Path, plan: Plan, work: Path) -> Iterator[_FileSystem]:
    """Yield the file system that is traced; to look into a machine image's root takes root."""
    at = work / "owners"
    if plan.artefact.kind == "volume":
        kind, uuid = identify(image)
        yield _FileSystem(kind, uuid, 0, image.stat().st_size, lambda reads: files_read(image, kind, reads, at))
        return
    shown_as = qemu_format(plan.artefact.format)
    with disk.private_mounts(), writable(image, work / "shown", image_format=shown_as) as shown:
        root = disk.find_root(shown)
        start, size = root.start, root.size
        with disk.loop_device(shown, offset=start, size=size, read_only=True) as device:
            kind, uuid = identify(Path(device))
        with disk.mount(shown, at, offset=start, size=size, filesystem=kind, read_only=True):
            yield _FileSystem(kind, uuid, start, size, lambda reads: described(data_below(at), reads))


def parts_of(
    starts: TracedStarts, reads: Sequence[GuestRead], until: float, start: int, size: int
) -> tuple[tuple[Part, ...], dict[str, str]]:
    """Return the parts of a trace, and what is not in it with the reason; see ``_part``. Pure.

    What ended later than ``until``, when the log does not count any more, is not in it.
    """
    parts = tuple(_part(window, reads, start, size) for window in starts.windows if window.ended < until)
    return parts, starts.skipped | {window.name: _TOO_MUCH for window in starts.windows if window.ended >= until}


def _part(window: TraceWindow, reads: Sequence[GuestRead], start: int, size: int) -> Part:
    """Return what was read in a window of the sectors from ``start``, ``size`` of them. Pure."""
    origin, end = reads[0].at if window.kind == "boot" else window.begun, start + size
    return Part(
        name=window.name,
        kind=window.kind,
        seconds=window.seconds,
        stages=window.stages,
        reads=tuple(
            Read(max(0, round((read.at - origin) * 1000)), read.sector - start, min(read.length, end - read.sector))
            for read in reads
            if window.begun <= read.at < window.ended and start <= read.sector < end
        ),
    )


def mark(node: BootedNode, volume: Path) -> tuple[int, ...]:
    """Have some sectors of the volume read in the machine, each by itself; return them, for ``vm.marked_disk``.

    A file system reads larger blocks, and nobody knows beforehand which sectors these are. Raises MachineError.
    """
    marks = tuple(random.SystemRandom().sample(range(volume.stat().st_size // SECTOR), _MARKS))
    words = ["sh", "-ec", _EACH, "sh", *map(str, marks)]
    node.machine.guest.check(words, timeout=_LIMIT * node.machine.stretch)
    return marks


def let_go(node: BootedNode) -> None:
    """Stop the runtime and unmount the volume, so that no cache of the machine has anything of it.

    Raises MachineError, also where something that was started still uses it.
    """
    *_, place = node.mounting
    # At the end: udev looks at a disk that nobody uses any more, and what it reads is none of the next start's.
    for act in (["systemctl", "stop", _RUNTIME], ["umount", place], ["udevadm", "settle"]):
        node.machine.guest.check(act, timeout=_LIMIT * node.machine.stretch)


def take_up(node: BootedNode, filesystem: str) -> dict[str, float]:
    """Mount the volume and start the runtime on it; return the seconds of both stages.

    Its ``filesystem`` is named, so that nobody searches all of the disk for signatures: that was udev's, at the attach.
    Raises MachineError, ContainerdError, DeadlineExceeded.
    """
    limit, begun = _LIMIT * node.machine.stretch, time.monotonic()
    node.machine.guest.check([*node.mounting, "-t", filesystem], timeout=limit)
    mounted = time.monotonic()
    node.machine.guest.check(["systemctl", "start", _RUNTIME], timeout=limit)
    node.cri.wait_ready(run.Deadline(limit, "the runtime is ready for pods"))
    return {"mount": mounted - begun, "containerd": time.monotonic() - mounted}

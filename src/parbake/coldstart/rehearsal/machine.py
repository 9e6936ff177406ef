"""Rehearse a machine image: boot it, start each image, and learn from QEMU which blocks of its root are read."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from parbake.coldstart.rehearsal.overlay import writable
from parbake.coldstart.rehearsal.volume import identify
from parbake.coldstart.trace import Part, Read, Trace, described
from parbake.core.errors import EnvironmentProblem, MachineError
from parbake.core.model import Plan, Startup
from parbake.core.plan import starting
from parbake.core.timestamps import timestamp
from parbake.machine import disk
from parbake.machine.vm import GuestRead, busiest_disk
from parbake.machine.vm.firmware import qemu_format
from parbake.verify import Verification

if TYPE_CHECKING:
    from parbake.core.events import Events

_FORGET = "echo 3 >/proc/sys/vm/drop_caches"


def rehearse_machine(image: Path, plan: Plan, events: Events, work: Path) -> Trace:
    """Boot a machine image without a network, start its images with cold caches, and return what its root reads.

    The image is not changed. The first part of the trace is the boot itself, firmware and kernel included, as far as
    they read the root file system. An image that does not start is skipped. Raises MachineError when it does not boot.
    """
    log = work / "reads.log"
    parts: list[tuple[str, float, float, float | None, dict[str, float]]] = []
    skipped = {}
    with Verification(image, plan, events=events, folder=work / "boot", reads=log) as verification:
        if verification.node.is_docker:
            raise EnvironmentProblem("a node that runs Docker is not rehearsed", hint="bake without --rehearse")
        parts.append(("boot", 0.0, time.time(), round(verification.node.boot_seconds, 3), {}))
        verification.provide_sandbox()
        for each in starting(plan):
            with events.stage(f"rehearse {each.reference}", f"Rehearse {each.reference} with cold caches"):
                with suppress(MachineError):  # what a cache holds then is missing from this part alone
                    verification.node.machine.guest.check(["sh", "-c", _FORGET])
                begun = time.time()
                started = verification.starter.start(each.names[0], each.startup or Startup())
            if started.seconds is None:
                skipped[each.reference] = "; ".join(started.problems)[:2000]
                continue
            stages = {"sandbox": round(started.sandbox_seconds or 0.0, 3), "start": round(started.seconds, 3)}
            parts.append((each.reference, begun, time.time(), round(sum(stages.values()), 3), stages))
    with log.open(errors="replace") as lines:
        reads = busiest_disk(lines)
    return _trace(image, plan, parts, reads, skipped, work)


def _trace(
    image: Path,
    plan: Plan,
    parts: list[tuple[str, float, float, float | None, dict[str, float]]],
    reads: tuple[GuestRead, ...],
    skipped: dict[str, str],
    work: Path,
) -> Trace:
    """Put reads of the disk onto the root file system, and into the part in whose time they were."""
    with (
        disk.private_mounts(),
        writable(image, work / "shown", image_format=qemu_format(plan.artefact.format)) as shown,
    ):
        root = disk.find_root(shown)
        start, size = root.start // 512, root.size // 512
        with disk.loop_device(shown, offset=root.start, size=root.size) as device:
            filesystem, uuid = identify(Path(device))
        found = []
        for name, begin, end, seconds, stages in parts:
            inside = [read for read in reads if begin <= read.at < end and start <= read.sector < start + size]
            origin = begin or (reads[0].at if reads else 0.0)
            moved = tuple(
                Read(
                    round((read.at - origin) * 1000), read.sector - start, min(read.length, start + size - read.sector)
                )
                for read in inside
            )
            kind = "image" if begin else "boot"
            found.append(Part.model_validate(
                {"name": name, "kind": kind, "seconds": seconds, "stages": stages, "reads": moved}
            ))  # fmt: skip
        with disk.mount(shown, work / "owners", offset=root.start, size=root.size, filesystem=filesystem,
                        read_only=True):  # fmt: skip
            of_files = described(work / "owners", [read for part in found for read in part.reads])
    return Trace(
        uuid=uuid,
        filesystem=filesystem,
        size=root.size,
        how="boot",
        made_at=timestamp(),
        parts=tuple(found),
        skipped=skipped,
        **of_files,
    )

"""Rehearse a volume: on a loop device of its own, freshly mounted for each image, so that nothing is in a cache."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from parbake.coldstart.rehearsal.cold_start import NotStarted, cold_start
from parbake.coldstart.rehearsal.overlay import writable
from parbake.coldstart.trace import SECTOR, Overrun, Part, Read, Recorder, Trace, data_below, described, device_of
from parbake.coldstart.trace.owners import Described
from parbake.coldstart.trace.tracefs import BUFFER, LARGEST_BUFFER
from parbake.core import cgroups, run
from parbake.core.model import Image, Plan, Platform
from parbake.core.netns import no_network
from parbake.core.plan import starting
from parbake.core.timestamps import timestamp
from parbake.machine import disk
from parbake.machine.ext4 import BLOCK, ForeignVolume, files_in

if TYPE_CHECKING:
    from parbake.core.events import Events


def rehearse_volume(artefact: Path, plan: Plan, events: Events, work: Path) -> Trace:
    """Start every image of a volume with cold caches and return what each reads. Needs root.

    The artefact is not changed, other disks may be busy, and no network can be reached. An image that does not start
    by itself is skipped, with the reason in the trace. Raises EnvironmentProblem where this machine cannot trace.
    """
    filesystem, uuid = identify(artefact)
    parts, skipped, failed = [], {}, []
    if plan.platform.architecture != Platform.host().architecture:
        why = f"it is for {plan.platform} and this machine is {Platform.host()}: record a trace on a node"
        skipped = {str(image.reference): why for image in plan.images}
    elif not cgroups.can_limit():
        events.warn("the rehearsed images get no limit of memory and processes: cgroups cannot be limited here")
    with disk.private_mounts(), no_network():
        for number, image in enumerate(starting(plan) if not skipped else ()):
            with events.stage(f"rehearse {image.reference}", f"Rehearse {image.reference} with cold caches"):
                try:
                    parts.append(_trace(artefact, plan, image, work / f"rehearsal{number}", filesystem, events))
                except (NotStarted, Overrun) as error:
                    skipped[str(image.reference)] = str(error)
                    if isinstance(error, NotStarted) and error.by_itself:
                        failed.append(str(image.reference))
        of_files = files_read(artefact, filesystem, [read for part in parts for read in part.reads], work / "owners")
    return Trace(
        uuid=uuid,
        filesystem=filesystem,
        size=artefact.stat().st_size,
        how="loop",
        made_at=timestamp(),
        parts=tuple(parts),
        skipped={name: reason[:2000] for name, reason in skipped.items()},
        failed=tuple(failed),
        **of_files,
    )


def identify(image: Path) -> tuple[str, str]:
    """Return the type and the UUID of the file system in a file or on a device; empty where there is none."""
    shown = run.run(["blkid", "-p", "-o", "export", str(image)], check=False).text
    tags = dict(line.partition("=")[::2] for line in shown.splitlines())
    return tags.get("TYPE", ""), tags.get("UUID", "")


def _trace(artefact: Path, plan: Plan, image: Image, folder: Path, filesystem: str, events: Events) -> Part:
    """Trace one start, again with a larger buffer as long as some reads were lost."""
    buffer = BUFFER
    while True:
        try:
            return _start(artefact, plan, image, folder / str(buffer), filesystem, buffer)
        except Overrun as error:
            if buffer >= LARGEST_BUFFER:
                raise
            events.note(f"{error.message}: rehearsing again with a larger one")
            buffer *= 4


def _start(artefact: Path, plan: Plan, image: Image, folder: Path, filesystem: str, buffer: int) -> Part:
    """Start one image on a fresh overlay with nothing in any cache, and return what it read until it was up."""
    with ExitStack() as stack:
        shown = stack.enter_context(writable(artefact, folder))
        device = stack.enter_context(disk.loop_device(shown))
        disk.read_ahead(device)  # as the disks of nodes do: what is read ahead counts as hot
        recorder = Recorder(device_of(device), buffer=buffer)
        with recorder:
            stages = cold_start(device, filesystem, plan, image, folder, stack)
    return Part(name=str(image.reference), seconds=round(sum(stages.values()), 3), stages=stages, reads=recorder.reads)


def files_read(volume: Path, filesystem: str, reads: Sequence[Read], at: Path) -> Described:
    """Return whose data was read of a volume; any but parbake's own ext4 is mounted for that, which takes root."""
    if not reads:
        return Described()
    pages = BLOCK // SECTOR
    with suppress(ForeignVolume):
        return described(
            (
                (path, [(logical * BLOCK, place * pages, count * pages) for logical, place, count in extents])
                for path, extents in files_in(volume)
            ),
            reads,
        )
    with disk.private_mounts(), disk.mount(volume, at, filesystem=filesystem, read_only=True):
        return described(data_below(at), reads)

"""The cold start's part of the story: trace what a start reads, keep it beside the artefact, hand it to nodes."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from parbake import disk, nodefiles, records, run
from parbake.builders import Disk
from parbake.economics import Situation
from parbake.errors import DiskFull, EnvironmentProblem, InputError
from parbake.model import Plan, Platform
from parbake.records import Record
from parbake.signing import Signer
from parbake.trace import (
    Part,
    Recorder,
    Trace,
    described,
    device_of,
    hydrate_list,
    load,
    merged,
    prefetch_list,
    relocated,
    requests,
    save,
    summary,
)
from parbake.trace.owners import Described
from parbake.trace.tracefs import LARGEST_BUFFER, mounted_at
from parbake.workspace import work_folder

if TYPE_CHECKING:
    from parbake.events import Events

_TICK = 0.1


def rehearse(artefact: Path, record: Record, events: Events, signer: Signer | None = None) -> Record:
    """Start every image of an artefact once with cold caches, and keep what it reads beside the artefact.

    A machine image is booted for that; what lies in EC2 alone is fetched first. Returns the record with the trace's
    summary. What cannot be rehearsed is said, and in the summary. Raises EnvironmentProblem where this machine cannot
    trace, MachineFault for one that does not boot, AwsFault where it cannot be fetched.
    """
    run.need_root("rehearsing")
    records.need_signer(artefact, signer)
    with work_folder(artefact.parent, "rehearse") as work:
        there = artefact if artefact.exists() else _fetched(record, work, events)
        trace = _traced(there, record.plan, events, work)
    return keep(artefact, record, trace, signer)


def _fetched(record: Record, work: Path, events: Events) -> Path:
    """Read the disk of an artefact that lies in EC2. Raises InputError where it is nowhere."""
    if not record.published:
        raise InputError(f"{record.artefact} is not there, and its record names no cloud that has it")
    from parbake import ebs  # loads only where AWS is asked

    region, there = next(iter(record.published.items()))
    what = there.snapshots[0].id
    with events.stage("fetch", f"Fetch {what}"):
        return ebs.fetch(what, work / "disk.raw", events, region=region).path


def _traced(image: Path, plan: Plan, events: Events, work: Path) -> Trace:
    from parbake.rehearse import rehearse_machine, rehearse_volume  # gRPC loads only where something is started

    if plan.artefact.kind == "volume":
        return rehearse_volume(image, plan, events, work)
    if plan.platform.architecture != Platform.host().architecture:
        raise EnvironmentProblem(
            f"{image.name} is for {plan.platform} and this machine is {Platform.host()}, which boots only its own kind",
            hint="record a trace on a node that booted from it (`parbake trace /`), and bring it with --trace",
        )
    return rehearse_machine(image, plan, events, work)


def prepare(disk: Disk, plan: Plan, work: Path, *, events: Events, layout: bool = True) -> Disk:
    """Rehearse a disk that is being baked, and let its cold starts profit from that; return it with its trace.

    A volume is laid out hot-first (``layout``; ext4 only), and rehearsed again as it is then. So are the files of a
    machine image's root, whose trace follows from what moved; the image gets the hydrate service with the list of the
    blocks that its boot and its images' starts read. A disk that is ``final`` is rehearsed as it is. A machine that
    cannot rehearse is a warning for a volume, which is complete without; for a machine image it raises
    EnvironmentProblem. What is for another architecture is left as it is, with a warning. Raises MachineFault when an
    image does not boot.
    """
    if disk.trace is not None:
        return disk
    if plan.platform.architecture != Platform.host().architecture:
        events.warn(
            f"no start-up trace: the artefact is for {plan.platform} and this machine is {Platform.host()}, so nothing "
            "of it starts here. `parbake trace` records one on a node, `parbake trace RECORD --trace FILE` brings it"
        )
        return disk
    if plan.artefact.kind == "volume":
        return _laid_out(disk, plan, work, events=events, layout=layout and not disk.final)
    if disk.final:
        events.warn(
            "no start-up trace: this machine image was baked by an earlier run, without the hydrate service; "
            "`parbake bake --force --rehearse` makes one that has it"
        )
        return disk
    trace = _traced(disk.path, plan, events, work)
    return replace(disk, trace=_install(disk.path, plan, trace, events, work, layout=layout))


def _laid_out(built: Disk, plan: Plan, work: Path, *, events: Events, layout: bool) -> Disk:
    from parbake.ext4 import Volume, lay_out  # loads only where something is built

    (again := work / "laid-out").mkdir()
    try:
        trace = _traced(built.path, plan, events, work)
    except EnvironmentProblem as error:
        events.warn(f"no start-up trace: {error.message} ({error.hint})")
        return built
    asked = requests(trace)
    if not layout or plan.artefact.filesystem != "ext4" or not asked:
        return replace(built, trace=trace) if built.final else _with_list(built, plan, trace, work, events)
    with events.stage("layout", "Bring together what starts read"):
        with Volume(built.path) as volume:
            moved = lay_out(volume, asked)
        disk.check_filesystem(built.path, "ext4")
    hashes = {block: digest for block, digest in built.hashes.items() if block not in volume.hashes.touched}
    if moved.left:
        events.warn(
            f"{moved.left * 4 // 1024} MiB that starts read stay where they are: the volume has no room to bring them "
            "together (a larger `size` gives it)"
        )
    found = _traced(built.path, plan, events, again)
    before, after = len(merged(trace)), len(merged(found))
    events.note(f"starts read {after} blocks of 512 KiB, {before} before the layout")
    built = replace(built, hashes=hashes | volume.hashes.known)
    return _with_list(built, plan, found.model_copy(update={"scattered": before}), work, events)


def _with_list(built: Disk, plan: Plan, trace: Trace, work: Path, events: Events) -> Disk:
    """Write into a volume what nodes are to read into memory from it; no other file changes."""
    from parbake.ext4 import PREFETCH, Volume  # loads only where something is built

    listed, kind, hashes = prefetch_list(trace).encode(), plan.artefact.filesystem, built.hashes
    if not listed:
        return replace(built, trace=trace)
    with events.stage("prefetch", "Write the prefetch list into the volume"):
        try:
            if kind == "ext4":
                with Volume(built.path) as volume:
                    volume.put_prefetch_list(listed)
                kept = {block: digest for block, digest in hashes.items() if block not in volume.hashes.touched}
                hashes = kept | volume.hashes.known
            else:
                with disk.mount(built.path, work / "prefetch", filesystem=kind, options=disk.FAST[kind]) as mounted:
                    (mounted.path / os.fsdecode(PREFETCH)).write_bytes(listed)
                    disk.trim(mounted)
        except DiskFull as error:
            events.warn(f"no prefetch list in the volume: {error.message} (a larger `size` gives it room)")
        disk.check_filesystem(built.path, kind)
    return replace(built, hashes=hashes, trace=trace)


def _install(image: Path, plan: Plan, trace: Trace, events: Events, work: Path, *, layout: bool) -> Trace:
    """Put the hydrate service into a machine image, which is changed in its own format; return its trace from then on.

    With ``layout`` its files are laid out hot-first before that.
    """
    from parbake.rehearse import qemu_format, writable

    with (
        disk.private_mounts(),
        writable(image, work / "install", image_format=qemu_format(plan), in_place=True) as shown,
    ):
        root = disk.find_root(shown)
        at = work / "install/mnt"
        kind = root.filesystem
        with disk.mount(
            shown, at, offset=root.start, size=root.size, filesystem=kind, options=disk.FAST[kind]
        ) as mounted:
            if layout and kind == "ext4":
                trace = _gathered(mounted, trace, events)
            with events.stage("hydrate", "Put the hydrate service into the machine image"):
                if not nodefiles.install(mounted.path, hydrate_list(trace), prefetch_list(trace)):
                    events.warn("the machine image has no systemd: nothing in it reads the hot blocks early")
            disk.trim(mounted)
        disk.check_filesystem(shown, kind, offset=root.start, size=root.size)
        with shown.open("rb+") as file:
            os.fsync(file.fileno())
    return trace


def _gathered(mounted: disk.Mounted, trace: Trace, events: Events) -> Trace:
    """Let the kernel bring together what starts read of a mounted root."""
    from parbake.rehearse import gather

    with events.stage("layout", "Bring together what starts read"):
        found = gather(mounted.path, requests(trace))
    if found.left:
        events.warn(f"{found.left * 4 / 1024:.1f} MiB of files that starts read stay where they are")
    moved = relocated(trace, found.places)
    events.note(f"starts read {len(merged(moved))} blocks of 512 KiB, {moved.scattered} before the layout")
    return moved


def bring(artefact: Path, record: Record, file: Path, signer: Signer | None = None) -> Record:
    """Take a trace that was recorded elsewhere; raises InputError when it is not of this artefact's file system."""
    records.need_signer(artefact, signer)
    return keep(artefact, record, recorded_elsewhere(file, artefact, record.plan), signer)


def recorded_elsewhere(file: Path, disk_path: Path, plan: Plan) -> Trace:
    """Read a trace that was recorded on a node; raises InputError when it is not of this disk's file system.

    What lies in a cloud alone is known by its plan where this machine made its file system; an instance's own is not.
    """
    from parbake.rehearse.volume import identify

    trace = load(file)
    if disk_path.exists():
        _, uuid = identify(disk_path)
    else:
        by_us = plan.artefact.kind == "volume" and plan.base.kind == "none"
        uuid = disk.filesystem_uuid(plan.key) if by_us else ""
    if not trace.uuid or (uuid and trace.uuid != uuid):
        raise InputError(
            f"{file} is a trace of the file system {trace.uuid or '(unknown)'}, and {plan.artefact_name} is {uuid}",
            hint="blocks of one file system mean nothing on another: trace a node that uses this artefact",
        )
    return trace


def keep(artefact: Path, record: Record, trace: Trace, signer: Signer | None = None) -> Record:
    """Write a trace beside its artefact and its summary into the record; hold ``records.in_use``."""
    save(trace, artefact.with_name(record.trace_name))
    record = record.model_copy(update={"trace": summary(trace, file=record.trace_name)})
    records.write(artefact.parent, record, signer)
    return record


def trace_of(artefact: Path, record: Record | None) -> Trace:
    """Return the trace beside an artefact; raises InputError when there is none."""
    path = artefact.with_name(artefact.name + records.TRACE_SUFFIX)
    if record is None or not path.exists():
        raise InputError(
            f"{artefact.name} has no start-up trace beside it", hint=f"`parbake trace {artefact.name}` makes one"
        )
    return load(path)


def record_node(what: str, seconds: float, events: Events) -> Trace:
    """Record for some seconds what is read of a device, or of the one that is mounted at a folder. Needs root.

    Raises EnvironmentProblem where that cannot be traced, Overrun when more was read than the buffers hold.
    """
    from parbake.rehearse.volume import identify

    path = Path(what)
    place = path if path.is_dir() else None
    if place is not None:
        what = mounted_at(place)
    device = device_of(what)
    filesystem, uuid = identify(Path(what))
    with (
        Recorder(device, buffer=LARGEST_BUFFER // 2) as recorder,
        events.task(f"Record what is read of {what}", round(seconds), unit="items") as task,
    ):
        deadline = run.Deadline(seconds, "recording")
        told = 0
        while deadline.left:
            deadline.sleep(_TICK)
            passed = round(seconds - deadline.left)
            task.advance(passed - told)
            told = passed
    reads = recorder.reads
    of_files = described(place, reads) if place is not None and reads else Described()
    return Trace(
        uuid=uuid,
        filesystem=filesystem,
        size=device.count * 512,
        how="node",
        made_at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        parts=(Part(name=os.uname().nodename, kind="node", seconds=seconds, reads=reads),),
        **of_files,
    )


def situation(
    record: Record,
    *,
    launches: float,
    zones: int,
    boot: float,
    burst: int,
    volume: int,
    hot: int | None,
) -> Situation:
    """Return what there is to advise on: sizes from the record, its trace, and what the user says. Bytes.

    Raises InputError when neither the record nor the user says how much a start reads.
    """
    traced = record.trace is not None and record.trace.hot_blocks > 0  # all images may have been skipped
    if hot is None and not traced:
        raise InputError(
            f"{record.artefact} has no start-up trace, so how much a start reads is not known",
            hint=f"`parbake trace {record.artefact}` finds out, or say it with --hot",
        )
    found = record.trace.hot_bytes if hot is None and record.trace else hot or 0
    return Situation(
        volume=max(volume, record.size),
        data=max(record.allocated, 1),
        hot=found,
        transfer=sum(image.size for image in record.plan.images),
        launches=launches,
        zones=zones,
        boot=boot,
        burst=burst,
    )


def known(what: str, folder: Path) -> tuple[Record, Trace | None]:
    """Return the record that a user names, and its trace where there is one; raises InputError without a record."""
    artefact, record = records.locate(what, folder)
    if record is None:
        raise InputError(f"{artefact} has no record beside it", hint="`parbake list` shows the records there are")
    path = artefact.with_name(record.trace_name)
    return record, load(path) if path.exists() else None

"""Get a disk that is being baked ready for cold starts: rehearse it, lay it out, install the hydrate service."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from parbake.builders import Disk, RehearsalPlace
from parbake.coldstart import hydrate
from parbake.coldstart.trace import Trace, hydrate_list, merged, prefetch_list, relocated, requests
from parbake.core.errors import DiskFull, EnvironmentProblem, InputError
from parbake.core.model import Plan, Platform
from parbake.core.run import CAP_SYS_ADMIN, capable, need_root
from parbake.machine import disk

if TYPE_CHECKING:
    from parbake.core.events import Events


def place_of(plan: Plan, asked: Literal["machine", "host"] | None) -> Literal["machine", "host"]:
    """Return where a plan's images are rehearsed, as ``asked`` (None: here, unless KVM works or this is not root).

    A machine image boots, always. Raises InputError where it is asked for otherwise, and EnvironmentProblem where a
    machine is asked for that cannot be had, or this machine without root.
    """
    if plan.artefact.kind == "machine-image":
        if asked == "host":
            raise InputError(
                f"--rehearse-in host: {plan.name} is a machine image, which is rehearsed from its boot on",
                hint="leave the option out; only a volume can be rehearsed on this machine itself",
            )
        asked = "machine"
    if asked == "host":
        need_root("a rehearsal on this machine", hint="leave --rehearse-in host out: a virtual machine needs no root")
        return asked
    from parbake.machine.vm import accelerator  # loads only where something is rehearsed

    can_be_here = asked is None and capable(CAP_SYS_ADMIN)
    try:
        found = accelerator(plan.platform.architecture)
    except EnvironmentProblem:
        if not can_be_here:
            raise
        return "host"
    return "host" if can_be_here and found == "tcg" else "machine"


def rehearse_disk(image: Path, plan: Plan, events: Events, work: Path, where: RehearsalPlace) -> Trace:
    """Start what is in a disk with cold caches, and return what that read of it; warn of what is skipped.

    Raises what ``place_of`` does, EnvironmentProblem where this machine cannot trace or boot it, MachineError for a
    machine that fails.
    """
    # gRPC loads only where something is started
    from parbake.coldstart.rehearsal import rehearse_machine, rehearse_volume

    if place_of(plan, where.asked) == "host":
        trace = rehearse_volume(image, plan, events, work)
    elif plan.platform.architecture != Platform.host().architecture:
        raise EnvironmentProblem(
            f"{image.name} is for {plan.platform} and this machine is {Platform.host()}: what a start reads in "
            "emulation is not what it reads on a node",
            hint="record a trace on a node that uses it (`parbake trace /`), and bring it with --trace",
        )
    else:
        trace = rehearse_machine(image, plan, events, work, where.base)
    for reference, reason in trace.skipped.items():
        events.warn(f"{reference} is not in the start-up trace: {reason}")
    return trace


def prepare(
    disk: Disk,
    plan: Plan,
    work: Path,
    *,
    events: Events,
    where: RehearsalPlace,
    layout: bool = True,
    proven: bool = False,
) -> Disk:
    """Rehearse a disk that is being baked, and let its cold starts profit from that; return it with its trace.

    A volume is laid out hot-first (``layout``; ext4 only), and rehearsed again as it is then. So are the files of a
    machine image's root, whose trace follows from what moved; the image gets the hydrate service with the list of the
    blocks that its boot and its images' starts read. A disk that is ``final`` is rehearsed as it is. A machine that
    cannot rehearse is a warning for a volume, which is complete without; for a machine image, and where a user says
    ``where``, it raises EnvironmentProblem. What is to be ``proven`` next is not laid out any more once an image failed
    here. What is for another architecture is left as it is, with a warning. Raises MachineError when a machine does not
    boot.
    """
    if disk.trace is not None:
        return disk
    if plan.platform.architecture != Platform.host().architecture:
        events.warn(
            f"no start-up trace: the artefact is for {plan.platform} and this machine is {Platform.host()}, so nothing "
            "of it starts here. `parbake trace` records one on a node, `parbake trace RECORD --trace FILE` brings it"
        )
        return disk
    is_volume = plan.artefact.kind == "volume"
    if disk.final and not is_volume:
        events.warn(
            "no start-up trace: this machine image was baked by an earlier run, without the hydrate service; "
            "`parbake bake --force --rehearse` makes one that has it"
        )
        return disk
    try:
        trace = rehearse_disk(disk.path, plan, events, work, where)
    except EnvironmentProblem as error:
        if where.asked or not is_volume:
            raise
        events.warn(f"no start-up trace: {error.message} ({error.hint})")
        return disk
    fails = proven and bool(trace.failed)
    if is_volume and not fails:
        return _laid_out(disk, plan, trace, work, events=events, where=where, layout=layout and not disk.final)
    return replace(disk, trace=trace if fails else _install(disk.path, plan, trace, events, work, layout=layout))


def _laid_out(
    built: Disk, plan: Plan, trace: Trace, work: Path, *, events: Events, where: RehearsalPlace, layout: bool
) -> Disk:
    from parbake.machine.ext4 import Volume, lay_out  # loads only where something is built

    (again := work / "laid-out").mkdir()
    asked = requests(trace)
    if not layout or plan.artefact.filesystem != "ext4" or not asked:
        return replace(built, trace=trace) if built.final else _with_list(built, plan, trace, work, events)
    with events.stage("layout", "Move what starts read together"):
        with Volume(built.path) as volume:
            moved = lay_out(volume, asked)
        disk.check_filesystem(built.path, "ext4")
    built = built.written(volume.hashes.touched, volume.hashes.known)
    if moved.left:
        events.warn(
            f"{moved.left * 4 // 1024} MiB of hot data could not be moved: the volume is too full "
            "(a larger `size` gives it room)"
        )
    found = rehearse_disk(built.path, plan, events, again, where)
    before, after = len(merged(trace)), len(merged(found))
    events.note(f"starts read {after} blocks of 512 KiB, {before} before the layout")
    return _with_list(built, plan, found.model_copy(update={"scattered": before}), work, events)


def _with_list(built: Disk, plan: Plan, trace: Trace, work: Path, events: Events) -> Disk:
    """Write into a volume what nodes are to read into memory from it; no other file changes."""
    from parbake.machine.ext4 import PREFETCH, Volume  # loads only where something is built

    listed, kind = prefetch_list(trace).encode(), plan.artefact.filesystem
    if not listed:
        return replace(built, trace=trace)
    with events.stage("prefetch", "Write the prefetch list into the volume"):
        try:
            if kind == "ext4":
                with Volume(built.path) as volume:
                    volume.put_prefetch_list(listed)
                built = built.written(volume.hashes.touched, volume.hashes.known)
            else:
                at = work / "prefetch"
                # Where others see a mount, whoever makes a namespace meanwhile keeps it: the log is written back late.
                with (
                    disk.private_mounts(),
                    disk.mount(built.path, at, filesystem=kind, options=disk.FAST[kind]) as mounted,
                ):
                    (mounted.path / os.fsdecode(PREFETCH)).write_bytes(listed)
                    disk.trim(mounted)
        except DiskFull as error:
            events.warn(f"no prefetch list in the volume: {error.message} (a larger `size` gives it room)")
        disk.check_filesystem(built.path, kind)
    return replace(built, trace=trace)


def _install(image: Path, plan: Plan, trace: Trace, events: Events, work: Path, *, layout: bool) -> Trace:
    """Put the hydrate service into a machine image, which is changed in its own format; return its trace from then on.

    With ``layout`` its files are laid out hot-first before that.
    """
    from parbake.coldstart.rehearsal import writable
    from parbake.machine.vm.firmware import qemu_format

    with (
        disk.private_mounts(),
        writable(image, work / "install", image_format=qemu_format(plan.artefact.format), in_place=True) as shown,
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
                if not hydrate.install(mounted.path, hydrate_list(trace), prefetch_list(trace)):
                    events.warn("the machine image has no systemd: nothing in it reads the hot blocks early")
            disk.trim(mounted)
        disk.check_filesystem(shown, kind, offset=root.start, size=root.size)
        with shown.open("rb+") as file:
            os.fsync(file.fileno())
    return trace


def _gathered(mounted: disk.Mounted, trace: Trace, events: Events) -> Trace:
    """Let the kernel bring together what starts read of a mounted root."""
    from parbake.coldstart.rehearsal import gather

    with events.stage("layout", "Move what starts read together"):
        found = gather(mounted.path, requests(trace))
    if found.left:
        events.warn(f"{found.left * 4 / 1024:.1f} MiB of hot files could not be moved")
    moved = relocated(trace, found.places)
    events.note(f"starts read {len(merged(moved))} blocks of 512 KiB, {moved.scattered} before the layout")
    return moved

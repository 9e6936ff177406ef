"""The cold start's part of the story: trace what a start reads, keep it beside the artefact, hand it to nodes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from parbake import records
from parbake.builders import RehearsalPlace
from parbake.builders.coldstart import place_of, rehearse_disk
from parbake.coldstart.trace import (
    Part,
    Recorder,
    Trace,
    data_below,
    described,
    device_of,
    load,
    parse,
    read_whole,
    save,
    summary,
    with_misses,
)
from parbake.coldstart.trace.owners import Described
from parbake.coldstart.trace.tracefs import LARGEST_BUFFER, mounted_at
from parbake.core import run
from parbake.core.errors import InputError
from parbake.core.files import read_file
from parbake.core.model import Plan
from parbake.core.signing import Signer
from parbake.core.timestamps import timestamp
from parbake.core.workspace import work_folder
from parbake.machine import disk
from parbake.records import Record, genuine
from parbake.records.held import NotAsRecorded, held

if TYPE_CHECKING:
    from parbake.aws.costs import Situation
    from parbake.core.events import Events

_TICK = 0.1
_LARGEST_LOG = 256 << 20  # bytes
_TRACE_LINE = b'{"parbake-trace"'


def rehearse(
    artefact: Path,
    record: Record,
    events: Events,
    signer: Signer | None = None,
    *,
    plan: Plan | None = None,
    where: RehearsalPlace | None = None,
) -> Record:
    """Start every image of an artefact once with cold caches, and keep what it reads beside the artefact.

    A machine image is booted for that; what lies in EC2 alone is fetched first. All but ext4 volumes take root.
    Returns the record with the trace's summary. It lists what could not be rehearsed. ``plan`` says how the images
    start (None: as the record says), ``where`` they do (None: where this machine can).
    Raises NotAsRecorded, before anything of it is used, when its bytes are not the record's; EnvironmentProblem where
    this machine cannot trace, MachineError for one that does not boot, AwsError where it cannot be fetched.
    """
    plan, where = plan or record.plan, where or RehearsalPlace()
    if plan.artefact.mounted:
        run.need_root("rehearsing")
    place_of(plan, where.asked)  # what cannot be is refused before anything is fetched
    records.need_signer(artefact, signer)
    records.sweep(artefact.parent)
    with work_folder(artefact.parent, "rehearse") as work, _disk_of(artefact, record, work, events) as there:
        assert there
        trace = rehearse_disk(there, plan, events, work, where)
    return write_trace(artefact, record, trace, signer)


@contextmanager
def _disk_of(
    artefact: Path, record: Record, work: Path, events: Events, *, fetch: bool = True
) -> Iterator[Path | None]:
    """Yield the disk of an artefact, compared with its record; what is in EC2 alone is fetched, or None."""
    if artefact.exists():
        with held(artefact, record, work, events) as bytes_:
            yield bytes_.path
    else:
        yield _fetched(record, work, events) if fetch else None


def _fetched(record: Record, work: Path, events: Events) -> Path:
    """Read the disk of an artefact that lies in EC2.

    Raises InputError where it is nowhere, NotAsRecorded where it is another's, or has other bytes.
    """
    if not record.published:
        raise InputError(f"{record.artefact} is missing here, and its record names no copy of it in a cloud")
    from parbake.aws import ebs  # loads only where AWS is asked

    region, there = next(iter(record.published.items()))
    what = there.snapshots[0].id
    if problem := genuine.doubt_of_published(record, region):
        raise NotAsRecorded(Path(record.artefact), f"{what} in {region} {problem}")
    with events.stage("fetch", f"Fetch {what}"):
        fetched = ebs.fetch(what, work / "disk.raw", events, region=region)
    if record.blocks and record.blocks.digest != fetched.blocks.digest():
        raise NotAsRecorded(Path(record.artefact), f"{what} in {region} has other bytes")
    return fetched.path


def add_trace(artefact: Path, record: Record, file: Path, events: Events, signer: Signer | None = None) -> Record:
    """Take a trace that was recorded elsewhere; raises InputError when it is not of this artefact's file system."""
    records.need_signer(artefact, signer)
    records.sweep(artefact.parent)
    with (
        work_folder(artefact.parent, "trace") as work,
        _disk_of(artefact, record, work, events, fetch=False) as there,
    ):
        trace = recorded_elsewhere(file, there, record.plan)
    return write_trace(artefact, record, trace, signer)


def add_misses(artefact: Path, record: Record, file: Path, events: Events, signer: Signer | None = None) -> Record:
    """Add to an artefact's trace what nodes read besides, as a file tells it: traces, or the logs of nodes' agents.

    Raises InputError where nothing in it is of this artefact's file system.
    """
    records.need_signer(artefact, signer)
    known = trace_of(artefact, record)
    try:
        lines = read_file(file, _LARGEST_LOG).splitlines()
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}", hint="name a file with what the agents' logs say") from None
    found = []
    for number, line in enumerate(lines, 1):
        if (begin := line.find(_TRACE_LINE)) >= 0:
            try:
                found.append(parse(line[begin:], called=f"line {number} of {file}"))
            except InputError as error:
                events.warn(error.message)
    of_it = [each for each in found if known.uuid and each.uuid == known.uuid]
    if not of_it:
        raise InputError(
            f"{file} has {len(found)} traces of nodes, and none is of the file system of {artefact.name}",
            hint="save the logs of nodes that use this artefact",
        )
    events.note(f"{len(of_it)} of {len(found)} traces are of {artefact.name}")
    return write_trace(artefact, record, with_misses(known, of_it), signer)


def recorded_elsewhere(file: Path, disk_path: Path | None, plan: Plan) -> Trace:
    """Read a trace that was recorded on a node; raises InputError when it is not of this disk's file system.

    What lies in a cloud alone is known by its plan where this machine made its file system; an instance's own is not.
    """
    from parbake.coldstart.rehearsal.volume import identify

    trace = load(file)
    if disk_path:
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


def write_trace(artefact: Path, record: Record, trace: Trace, signer: Signer | None = None) -> Record:
    """Write a trace beside its artefact and its summary into the record; hold ``records.in_use``."""
    save(trace, artefact.with_name(record.trace_name))
    record = record.model_copy(update={"trace": summary(trace, file=record.trace_name)})
    records.write(artefact.parent, record, signer)
    return record


def trace_of(artefact: Path, record: Record | None) -> Trace:
    """Return the trace beside an artefact; raises InputError when it has none, VerificationFailed for another's."""
    if record is None or record.trace is None or not artefact.with_name(record.trace_name).exists():
        raise InputError(
            f"{artefact.name} has no start-up trace beside it",
            hint=f"`parbake trace {artefact.name}` makes one, or brings one from a node",
        )
    return load(artefact.with_name(record.trace_name), record.trace.digest)


def files_read_whole(artefact: Path, record: Record) -> dict[str, int]:
    """Return the large files that starts read once and whole, with their bytes; none where no trace lies beside it."""
    try:
        return read_whole(trace_of(artefact, record))
    except InputError:
        return {}


def record_node(what: str, seconds: float, events: Events) -> Trace:
    """Record for some seconds what is read of a device, or of the one that is mounted at a folder. Needs root.

    Raises EnvironmentProblem where that cannot be traced, Overrun when more was read than the buffers hold.
    """
    from parbake.coldstart.rehearsal.volume import identify

    path = Path(what)
    place = path if path.is_dir() else None
    if place is not None:
        what = mounted_at(place)
    device = device_of(what)
    filesystem, uuid = identify(Path(what))
    with (
        Recorder(device, buffer=LARGEST_BUFFER // 2) as recorder,
        events.task(f"Record the reads of {what}", round(seconds), unit="items") as task,
    ):
        deadline = run.Deadline(seconds, "recording")
        done = 0
        while deadline.left:
            deadline.sleep(_TICK)
            passed = round(seconds - deadline.left)
            task.advance(passed - done)
            done = passed
    reads = recorder.reads
    of_files = described(data_below(place), reads) if place is not None and reads else Described()
    return Trace(
        uuid=uuid,
        filesystem=filesystem,
        size=device.count * 512,
        how="node",
        made_at=timestamp(),
        parts=(Part(name=os.uname().nodename, kind="node", seconds=seconds, reads=reads),),
        **of_files,
    )


def situation(record: Record, *, volume: int, hot: int | None, **more: float | str) -> Situation:
    """Return what there is to advise on: sizes from the record, its trace, and what the user says. Bytes.

    ``more`` are further fields of a ``Situation``. What a user says to be hot is read as the trace's is, or else in
    pieces as large as what a disk reads ahead.

    Raises InputError when neither the record nor the user says how much a start reads.
    """
    traced = record.trace is not None and record.trace.hot_blocks > 0  # all images may have been skipped
    if hot is None and not traced:
        raise InputError(
            f"{record.artefact} has no start-up trace, so how much a start reads is unknown",
            hint=f"`parbake trace {record.artefact}` finds out, or give it with --hot",
        )
    from parbake.aws.costs import Situation  # loads only where costs are asked for: every bake loads this file

    trace = record.trace if traced else None
    found = trace.hot_bytes if hot is None and trace else hot or 0
    read, reads = (trace.read_bytes, trace.reads) if trace else (found, -(-found // disk.READ_AHEAD))
    if trace and hot is not None:
        read, reads = (round(each * hot / trace.hot_bytes) for each in (read, reads))
    said = {
        "volume": max(volume, record.size),
        "snapshot": record.size,
        "data": max(record.allocated, 1),
        "hot": found,
        "read": read,
        "reads": reads,
        "transfer": sum(image.size for image in record.plan.images),
    }
    return Situation.model_validate(said | more)


def known(selector: str, folder: Path, events: Events) -> tuple[Record, Trace | None]:
    """Return the record that a user names, and its trace where there is one; raises InputError without a record."""
    artefact, record = records.locate_record(selector, folder, events)
    there = record.trace is not None and artefact.with_name(record.trace_name).exists()
    return record, trace_of(artefact, record) if there else None

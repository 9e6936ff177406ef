"""A trace as data: what was read of one file system's device, part by part, and the order that follows.

The file is one JSON document (``docs/reference/trace.md``). Positions are in sectors of 512 bytes from the start of
the file system, as the kernel's block layer counts, times in milliseconds since the start of the part. It travels
between machines, so reading it trusts nothing.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal, NamedTuple
from urllib.parse import quote, unquote

from pydantic import ConfigDict, Field, StringConstraints, ValidationError

from parbake.core import atomic
from parbake.core.errors import InputError, VerificationFailed
from parbake.core.files import read_file
from parbake.core.model import EBS_BLOCK, GIB, Frozen, TraceSummary
from parbake.core.workspace import room_for

SECTOR = 512

_LARGEST = 1 << 55  # sectors: beyond what a device can have
_LARGEST_FILE = 256 << 20  # bytes: some millions of reads
_READ_AHEAD = 1 << 20  # bytes that a reader from the front may find in memory: their pages came with another file's

Sector = Annotated[int, Field(ge=0, lt=_LARGEST)]
LONGEST = 4096
Line = Annotated[str, StringConstraints(max_length=LONGEST)]


class Read(NamedTuple):
    """One read: milliseconds since the part's start, first sector, length in sectors."""

    ms: Annotated[int, Field(ge=0, lt=1 << 40)]
    sector: Sector
    length: Annotated[int, Field(gt=0, lt=1 << 31)]


class Part(Frozen):
    """What one thing read that was started with cold caches: an image, or the machine itself (``boot``).

    ``seconds`` is how long the start took while it was traced, None when nobody timed it; ``stages`` are its stages in
    their order, each with its seconds.
    """

    name: Line
    kind: Literal["boot", "image", "node"] = "image"
    seconds: float | None = Field(default=None, ge=0)
    stages: dict[Line, float] = Field(default_factory=dict)
    reads: tuple[Read, ...] = ()


Bytes = Annotated[int, Field(ge=0, lt=_LARGEST * SECTOR)]


class HotEntry(NamedTuple):
    """A file that was read, below the root of the file system, and how many bytes of it.

    ``ranges`` are what was read of it: offset and length in bytes, ascending. ``path`` is percent-encoded
    (``urllib.parse.quote``): names are bytes.
    """

    path: Line
    size: Annotated[int, Field(ge=0)]
    ranges: tuple[tuple[Bytes, Annotated[int, Field(gt=0, lt=_LARGEST * SECTOR)]], ...] = ()


class Trace(Frozen):
    """A start-up trace of the file system ``uuid`` of ``size`` bytes.

    ``skipped`` says of images that were not traced why; ``failed`` are those of them that ended by themselves or were
    not up in their time, as they would on a node. ``files`` are what was read, first touch first. What belongs to
    no file is ``metadata``: offset and length in bytes on the device, first touch first. ``scattered`` is how many
    blocks of 512 KiB the same starts read before the file system was laid out by them, 0 where it was not.
    """

    version: Literal[1] = Field(alias="parbake-trace", default=1)
    uuid: Annotated[str, StringConstraints(pattern=r"^[0-9a-fA-F-]{0,36}$")] = ""
    filesystem: Annotated[str, StringConstraints(max_length=16)] = ""
    size: int = Field(default=0, ge=0, lt=_LARGEST * SECTOR)
    how: Literal["loop", "boot", "node"] = "loop"
    made_at: Annotated[str, StringConstraints(max_length=40)] = ""
    parts: tuple[Part, ...] = ()
    skipped: dict[str, Line] = Field(default_factory=dict)
    failed: tuple[Line, ...] = ()
    files: tuple[HotEntry, ...] = ()
    metadata: tuple[tuple[Bytes, Annotated[int, Field(gt=0, lt=_LARGEST * SECTOR)]], ...] = ()
    scattered: int = Field(default=0, ge=0)

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


def merged(trace: Trace, *, block: int = EBS_BLOCK) -> tuple[int, ...]:
    """Return the numbers of the blocks (of ``block`` bytes) that any part reads, in the order to fetch them. Pure.

    What a boot reads comes first. Images are merged by the time since their own start: whichever a node starts, its
    first blocks are early. Sectors beyond the file system's size are left out.
    """
    per_block = block // SECTOR
    end = -(-trace.size // block) if trace.size else _LARGEST
    order: dict[int, None] = {}
    for boot in (True, False):
        reads = sorted(
            (read.ms, number, place, read)
            for number, part in enumerate(trace.parts)
            if (part.kind == "boot") is boot
            for place, read in enumerate(part.reads)
        )
        for _, _, _, read in reads:
            last = min((read.sector + read.length - 1) // per_block, end - 1)
            for at in range(read.sector // per_block, last + 1):
                order[at] = None
    return tuple(order)


def requests(trace: Trace, *, block: int = 4096) -> tuple[tuple[int, int], ...]:
    """Return what the parts read one after the other, as ranges of blocks (of ``block`` bytes): for a layout. Pure.

    One start follows on the other, the boot first, so that each finds its own blocks together.
    """
    per_block = block // SECTOR
    parts = sorted(trace.parts, key=lambda part: part.kind != "boot")
    return tuple(
        (read.sector // per_block, -(-(read.sector + read.length) // per_block))
        for part in parts
        for read in part.reads
    )


def relocated(trace: Trace, places: Mapping[int, int], *, block: int = 4096) -> Trace:
    """Return what the same starts read after blocks (of ``block`` bytes) have moved: new numbers by old ones. Pure."""
    per_block = block // SECTOR

    def moved(read: Read) -> Iterator[Read]:
        old = range(read.sector // per_block, -(-(read.sector + read.length) // per_block))
        if not any(each in places for each in old):
            yield read
            return
        for first, count in spans((places.get(each, each) for each in old), most=len(old)):
            yield Read(read.ms, first * per_block, count * per_block)

    parts = (
        part.model_copy(update={"reads": tuple(new for read in part.reads for new in moved(read))})
        for part in trace.parts
    )
    return trace.model_copy(update={"parts": tuple(parts), "scattered": len(merged(trace))})


def with_misses(trace: Trace, others: Iterable[Trace]) -> Trace:
    """Return a trace with what nodes read besides, after all else; each of their reads and ranges once. Pure."""
    late = 1 + max((read.ms for part in trace.parts for read in part.reads), default=0)
    known = {(read.sector, read.length) for part in trace.parts for read in part.reads}
    parts, files = list(trace.parts), {file.path: file for file in trace.files}
    for other in others:
        for part in other.parts:
            new = [each for each in part.reads if (each.sector, each.length) not in known]
            known.update((each.sector, each.length) for each in new)
            reads = tuple(each._replace(ms=late) for each in new)
            parts += [Part(name=part.name, kind="node", reads=reads)] * bool(reads)
        for file in other.files:
            there = files.get(file.path, file._replace(size=0, ranges=()))
            fresh = tuple(each for each in file.ranges if each not in there.ranges)
            size = there.size + sum(length for _, length in fresh)
            files[file.path] = there._replace(size=size, ranges=tuple(sorted(there.ranges + fresh)))
    return trace.model_copy(update={"parts": tuple(parts), "files": tuple(files.values())})


def summary(trace: Trace, *, file: str = "") -> TraceSummary:
    """Return what a record keeps of a trace. Pure."""
    return TraceSummary(
        file=file,
        uuid=trace.uuid,
        how=trace.how,
        made_at=trace.made_at,
        volume_bytes=trace.size,
        hot_bytes=len(merged(trace)) * EBS_BLOCK,
        block_bytes=EBS_BLOCK,
        hot_blocks=len(merged(trace)),
        scattered_blocks=trace.scattered,
        reads=sum(len(part.reads) for part in trace.parts),
        read_bytes=sum(read.length for part in trace.parts for read in part.reads) * SECTOR,
        seconds={part.name: part.seconds for part in trace.parts if part.seconds is not None},
        stages={part.name: part.stages for part in trace.parts if part.stages},
        skipped=trace.skipped,
        failed=trace.failed,
        digest=hashlib.sha256(_text(trace)).hexdigest(),
    )


def read_whole(trace: Trace, least: int = GIB) -> dict[str, int]:
    """Return the large files that starts read in one stretch from their first byte on, and how many bytes. Pure.

    Weights of models are such files: read once, whole, and never again from the disk. ``least`` is in bytes.
    """
    found = dict[str, int]()
    for path, _, ranges in trace.files:
        end = 0
        for offset, length in ranges:
            if offset > end + _READ_AHEAD:
                break
            end = max(end, offset + length)
        else:
            if end >= least:
                found[unquote(path, errors="replace")] = end
    return found


def parse(data: bytes, *, called: str = "the trace") -> Trace:
    """Read a trace from the bytes of its file; raises InputError for whatever is none."""
    try:
        if b'"parbake-trace"' not in data[:4096]:
            raise ValueError("it does not begin with its version")
        return Trace.model_validate_json(data)
    except (ValueError, ValidationError, RecursionError) as error:
        reason = "; ".join(str(error).splitlines()[:3])
        raise InputError(
            f"cannot read {called} as a start-up trace: {reason}",
            hint="make one with `parbake trace`, by a parbake of this version",
        ) from None


def load(path: Path, digest: str | None = None) -> Trace:
    """Read a trace file; raises InputError when there is none, or it is something else.

    With the ``digest`` that a record names, raises VerificationFailed for any other file than the record's.
    """
    try:
        data = read_file(path, _LARGEST_FILE)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}", hint="name a file that `parbake trace` wrote") from None
    if digest is not None and digest != hashlib.sha256(data).hexdigest():
        raise VerificationFailed(
            f"{path} is not the start-up trace that its record names",
            hint=f"`parbake trace {path.stem}` makes it anew",
        )
    return parse(data, called=str(path))


def save(trace: Trace, path: Path) -> Path:
    """Write a trace file, whole or not at all; raises DiskFull."""
    with room_for(path):
        atomic.replace(path, _text(trace))
    return path


def _text(trace: Trace) -> bytes:
    return trace.model_dump_json(by_alias=True).encode() + b"\n"


def spans(blocks: Iterable[int], *, most: int = 8) -> Iterable[tuple[int, int]]:
    """Yield (first block, count) of neighbours that follow each other in an order, at most ``most`` at a time. Pure."""
    first = count = 0
    for block in blocks:
        if count and block == first + count and count < most:
            count += 1
            continue
        if count:
            yield first, count
        first, count = block, 1
    if count:
        yield first, count


HEADER, PREFETCH = "parbake-hydrate 1", "parbake-prefetch 1"
# The boot loader reads the kernel there before there is a page cache, and nobody reads it again.
_OF_BOOT_LOADERS = "boot/"


def hydrate_list(trace: Trace, *, block: int = EBS_BLOCK) -> str:
    """Return the hydrate list of a trace. Pure.

    ``parbake-hydrate 1``, then ``uuid``, ``size`` (bytes), ``ranges`` (how many follow, so that a truncated list is
    noticed), then ``offset length`` in bytes, in the order to read them.
    """
    ranges = []
    for first, count in spans(merged(trace, block=block), most=1):
        offset = first * block
        length = min(count * block, trace.size - offset) if trace.size else count * block
        ranges.append(f"{offset} {length}\n")
    head = f"{HEADER}\nuuid {trace.uuid}\nsize {trace.size}\nranges {len(ranges)}\n"
    return head + "".join(ranges)


def prefetch_list(trace: Trace) -> str:
    """Return the prefetch list of a trace: what its starts read of files, and of metadata; "" where it is not known.

    ``parbake-prefetch 1``, then ``uuid`` and ``entries`` (how many ranges of metadata and files follow); then ``meta
    OFFSET+LENGTH`` for ranges of the device, ext4 alone (the kernel keeps ext4's metadata in the device's page cache,
    and XFS' elsewhere), and ``file OFFSET+LENGTH,… PATH`` for files, in the order to read them: the path is below the
    root of the file system, and percent-encoded. Numbers are bytes. What boot loaders read is left out. Pure.
    """
    metadata = trace.metadata if trace.filesystem == "ext4" else ()
    lines = [f"meta {offset}+{length}\n" for offset, length in metadata]
    for file in trace.files:
        if file.ranges and not (trace.how == "boot" and file.path.startswith(_OF_BOOT_LOADERS)):
            ranges = ",".join(f"{offset}+{length}" for offset, length in file.ranges)
            # A trace from elsewhere may have anything in a path: it stays one word of one line.
            lines.append(f"file {ranges} {quote(file.path, safe='/%+@=,:')}\n")
    return f"{PREFETCH}\nuuid {trace.uuid}\nentries {len(lines)}\n" + "".join(lines) if lines else ""

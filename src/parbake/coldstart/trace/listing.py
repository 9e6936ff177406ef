"""The list that a node's hydrate service reads: lines of text, so that any tool can write and read one."""

from __future__ import annotations

from urllib.parse import quote

from parbake.coldstart.trace.data import Trace, merged, spans
from parbake.core.model import EBS_BLOCK

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

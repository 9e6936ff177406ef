"""The list that a node's hydrate service reads: lines of text, so that any tool can write and read one."""

from __future__ import annotations

from parbake.coldstart.trace.data import BLOCK, Trace, merged, spans

HEADER = "parbake-hydrate 1"


def hydrate_list(trace: Trace, *, block: int = BLOCK) -> str:
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

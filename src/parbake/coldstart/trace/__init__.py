"""Start-up traces: which blocks of a device a cold start reads, in which order; recorded by the kernel's tracefs."""

from parbake.coldstart.trace.data import (
    SECTOR,
    Part,
    Read,
    Trace,
    hydrate_list,
    load,
    merged,
    parse,
    prefetch_list,
    read_whole,
    relocated,
    requests,
    save,
    summary,
    with_misses,
)
from parbake.coldstart.trace.owners import HotFile, data_below, data_of, described, owned
from parbake.coldstart.trace.tracefs import Overrun, Recorder, device_of

__all__ = [
    "SECTOR", "HotFile", "Overrun", "Part", "Read", "Recorder", "Trace", "data_below", "data_of", "described",
    "device_of", "hydrate_list", "load", "merged", "owned", "parse", "prefetch_list", "read_whole", "relocated",
    "requests", "save", "summary", "with_misses",
]  # fmt: skip

"""Start-up traces: which blocks of a device a cold start reads, in which order; recorded by the kernel's tracefs."""

from parbake.trace.data import SECTOR, Part, Read, Trace, load, merged, requests, save, summary
from parbake.trace.listing import hydrate_list
from parbake.trace.owners import HotFile, hot_files
from parbake.trace.tracefs import Overrun, Recorder, device_of

__all__ = [
    "SECTOR",
    "HotFile",
    "Overrun",
    "Part",
    "Read",
    "Recorder",
    "Trace",
    "device_of",
    "hot_files",
    "hydrate_list",
    "load",
    "merged",
    "requests",
    "save",
    "summary",
]

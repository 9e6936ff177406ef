"""Rehearsal: start each image once from the finished artefact with cold caches, and record what it reads."""

from parbake.rehearse.gather import gather
from parbake.rehearse.machine import qemu_format, rehearse_machine
from parbake.rehearse.overlay import writable
from parbake.rehearse.start import NotStarted, cold_start
from parbake.rehearse.volume import identify, rehearse_volume

__all__ = [
    "NotStarted",
    "cold_start",
    "gather",
    "identify",
    "qemu_format",
    "rehearse_machine",
    "rehearse_volume",
    "writable",
]

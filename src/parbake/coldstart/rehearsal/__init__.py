"""Rehearsal: start each image once from the finished artefact with cold caches, and record what it reads."""

from parbake.coldstart.rehearsal.cold_start import NotStarted, cold_start
from parbake.coldstart.rehearsal.defragment import gather
from parbake.coldstart.rehearsal.machine import rehearse_machine
from parbake.coldstart.rehearsal.overlay import writable
from parbake.coldstart.rehearsal.volume import identify, rehearse_volume

__all__ = [
    "NotStarted", "cold_start", "gather", "identify", "rehearse_machine", "rehearse_volume", "writable",
]  # fmt: skip

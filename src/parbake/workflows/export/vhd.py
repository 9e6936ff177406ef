"""Azure's disks: a fixed VHD whose disk is of whole MiB.

Source: Azure documentation, "Prepare Linux for imaging in Azure" (fixed, 1 MiB, no rounding to cylinders); Virtual Hard
Disk Image Format Specification 1.0, "Hard Disk Footer Format".
"""

from __future__ import annotations

import struct
from pathlib import Path

from parbake.core.errors import BadContent
from parbake.core.events import Events
from parbake.core.model import MIB
from parbake.machine import disk

_FOOTER = struct.Struct(">8sIIQ4s4s4s4sQQ4sII16sB")
_FIXED = 2
_SIZE = 512  # bytes of the footer


def vhd_size(raw: Path) -> int:
    """Return the size of the VHD of a raw disk, in bytes, with its footer."""
    return -(-raw.stat().st_size // MIB) * MIB + _SIZE


def write_vhd(raw: Path, target: Path, work: Path, events: Events) -> None:
    """Write a raw disk, filled up with zeros to whole MiB, as a fixed VHD.

    ``work`` is a folder on the same file system, for a copy where the disk is not of whole MiB. What was written is
    checked. Raises DiskFull, CommandFailed, BadContent.
    """
    whole = vhd_size(raw) - _SIZE
    if whole != raw.stat().st_size:
        padded = work / "padded.raw"
        disk.copy_sparse(raw, padded, events)
        with padded.open("r+b") as file:
            file.truncate(whole)
        raw = padded
    with events.stage("convert", f"Write {target.name}"):
        disk.convert(raw, target, "vhd")
    check_vhd(target, whole)


def check_vhd(path: Path, size: int) -> None:
    """Raise BadContent unless a file is a fixed VHD with a disk of ``size`` bytes, whole MiB."""
    with path.open("rb") as file:
        file.seek(-_SIZE, 2)
        at, footer = file.tell(), file.read(_SIZE)
    cookie, _, _, data, _, _, _, _, original, current, _, kind, checksum, _, _ = _FOOTER.unpack_from(footer)
    summed = ~(sum(footer) - sum(footer[64:68])) & 0xFFFFFFFF
    wrong = {
        "it has no footer": cookie != b"conectix",
        "its footer is damaged": checksum != summed,
        "it is not fixed": kind != _FIXED or data != 0xFFFFFFFFFFFFFFFF,
        f"its disk has {current} bytes, not {size}": not at == original == current == size,
        "its disk is not of whole MiB": bool(current % MIB),
    }
    for problem, is_so in wrong.items():
        if is_so:
            raise BadContent(f"{path} is not a VHD for Azure: {problem}", hint="is qemu-img that of the distribution?")

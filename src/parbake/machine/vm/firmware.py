"""Which firmware a disk wants: decided from its first sectors, the way the firmware itself would look.

Source: UEFI specification, chapter 5 (GUID partition table); partition type GUIDs and MBR types as sfdisk lists them.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from parbake.core import run
from parbake.core.errors import BadBase
from parbake.core.workspace import cache_folder, work_folder
from parbake.machine.disk import formats

Firmware = Literal["bios", "uefi"]

_SECTOR = 512
_HEAD_SECTORS = 34  # protective MBR, GPT header and the usual 128 entries of 128 bytes
_ESP = uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
_BIOS_BOOT = uuid.UUID("21686148-6449-6e6f-744e-656564454649")
_MBR_ESP = 0xEF
_BOOT_CODE = slice(0, 440)


def qemu_format(name: str) -> str:
    """Return QEMU's name of an image format: what everybody calls vhd is vpc there."""
    return "vpc" if name == "vhd" else name


def firmware_of(head: bytes, *, bios: bool = True) -> Firmware | None:
    """Return the firmware for a disk that begins with ``head`` (34 sectors); None: no boot loader, not bootable.

    A disk made for both starts by BIOS, which needs less of the host; a disk with nothing but an EFI system partition
    starts by UEFI. So does one for machines without a ``bios``.
    """
    if len(head) < _SECTOR or head[510:512] != b"\x55\xaa":
        return None
    gpt = set(_gpt_types(head))
    mbr_types = {head[446 + 16 * slot + 4] for slot in range(4)}
    if not bios:
        return "uefi" if _ESP in gpt or _MBR_ESP in mbr_types else None
    if _BIOS_BOOT in gpt:
        return "bios"
    if _ESP in gpt or (not gpt and _MBR_ESP in mbr_types and not any(head[_BOOT_CODE])):
        return "uefi"
    return "bios" if any(head[_BOOT_CODE]) and any(mbr_types) else None


def _gpt_types(head: bytes) -> Iterator[uuid.UUID]:
    header = head[_SECTOR : 2 * _SECTOR]
    if not header.startswith(b"EFI PART"):
        return
    first, count, size = struct.unpack_from("<QII", header, 72)
    for index in range(min(count, 128)):
        entry = head[first * _SECTOR + index * size :][:16]
        if len(entry) == 16 and any(entry):
            yield uuid.UUID(bytes_le=entry)


def read_head(disk: Path, image_format: str) -> bytes:
    """Return the first sectors of a disk image in any of QEMU's formats or parbake's.

    Raises BadBase for one that refers to other files, CommandFailed.
    """
    image_format = qemu_format(image_format)
    formats.alone(disk, image_format)
    if image_format == "raw":
        with disk.open("rb") as file:
            return file.read(_HEAD_SECTORS * _SECTOR)
    with work_folder(cache_folder(), "look") as folder:
        head = folder / "head"
        source = [f"if={formats.name(image_format, disk)}", f"of={head}"]
        run.run(["qemu-img", "dd", "-O", "raw", *source, f"bs={_SECTOR}", f"count={_HEAD_SECTORS}"])
        return head.read_bytes()


def choose(disk: Path, image_format: str, *, bios: bool = True) -> Firmware:
    """Return the firmware that starts this disk; raises BadBase when no boot loader is on it.

    ``bios`` False: on a machine that has UEFI alone.
    """
    firmware = firmware_of(read_head(disk, image_format), bios=bios)
    if firmware is None:
        others = "no MBR boot code, no BIOS boot partition, " * bios
        raise BadBase(
            f"{disk} has no boot loader: {others}no EFI system partition",
            hint="a machine image needs a bootable base; a volume is verified with `artefact: {kind: volume}`",
        )
    return firmware


def is_bootable(disk: Path, image_format: str) -> bool:
    """Whether some firmware would find a boot loader on the disk."""
    return firmware_of(read_head(disk, image_format)) is not None

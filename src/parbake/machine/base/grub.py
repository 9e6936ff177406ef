"""GRUB for both firmwares, put into a disk image without mounting it and without touching the machine's own loader.

What ``grub-install`` does on a mounted system, done to a file. On-disk format: GRUB's ``boot.S`` (the boot sector loads
one sector, whose number is at offset 0x5c) and ``diskboot.S`` (that sector loads the rest: the last 12 bytes hold first
sector, count and segment).
"""

from __future__ import annotations

import struct
from pathlib import Path

from parbake.core.errors import EnvironmentProblem
from parbake.core.run import run

MODULES = Path("/usr/lib/grub")
"""Where the packages put GRUB's modules."""
PACKAGES = {"amd64": ("grub-pc-bin", "grub-efi-amd64-bin"), "arm64": ("grub-efi-arm64-bin",)}
"""Debian's packages with GRUB for each architecture: only its own machines can install them."""
_SECTOR = 512
_BOOT_CODE = 440  # the rest of the sector is the disk's signature and the protective partition table
_KERNEL_SECTOR = 0x5C
_DRIVE_CHECK = 0x66
_BLOCKLIST = _SECTOR - 12

# Enough to read a configuration from ext4 in a GPT partition and to start Linux.
_COMMANDS = ("configfile", "ext2", "linux", "normal", "part_gpt", "search_fs_uuid", "test")
_PACKAGES = {
    "i386-pc": "grub-pc-bin",
    "x86_64-efi": "grub-efi-amd64-bin",
    "arm64-efi": "grub-efi-arm64-bin",
}
_EFI = {"amd64": ("x86_64-efi", "BOOTX64.EFI"), "arm64": ("arm64-efi", "BOOTAA64.EFI")}


def make_bios_core(work: Path, modules: Path = MODULES) -> bytes:
    """Return GRUB for BIOS that begins with ``loader/start.cfg`` below ``work``.

    Disks are numbered in the firmware's order, so that file finds the root file system by its UUID. Raises
    EnvironmentProblem when its modules are not installed.
    """
    return _mkimage(work, modules, "i386-pc", (*_COMMANDS, "biosdisk", "linux16"))


def make_efi_program(work: Path, architecture: str = "amd64", modules: Path = MODULES) -> tuple[str, bytes]:
    """Return GRUB as an EFI program, and the name by which firmware finds it on any disk.

    It is unsigned: Secure Boot refuses it. Raises EnvironmentProblem as above.
    """
    target, name = _EFI[architecture]
    return name, _mkimage(work, modules, target, _COMMANDS)


def _mkimage(work: Path, folder: Path, target: str, modules: tuple[str, ...]) -> bytes:
    if not (folder / target / "moddep.lst").exists():
        raise EnvironmentProblem(
            f"GRUB for {target} is not installed: the default base needs it to boot",
            hint=f"apt-get install {_PACKAGES[target]}",
        )
    output = work / f"{target}.img"
    run([
        "grub-mkimage", "--directory", str(folder / target), "--format", target, "--output", str(output),
        "--config", "loader/start.cfg", "--prefix", "/boot/grub", *sorted(modules),
    ], cwd=work)  # fmt: skip
    return output.read_bytes()


def install_bios(image: Path, core: bytes, *, start: int, size: int, modules: Path = MODULES) -> None:
    """Write the boot sector and ``core`` into the BIOS boot partition at ``start`` (bytes) with ``size`` bytes."""
    if len(core) > size:
        raise EnvironmentProblem(f"GRUB's core image has {len(core)} bytes, its partition {size}")
    first = start // _SECTOR
    loader = bytearray(core)
    struct.pack_into("<Q", loader, _BLOCKLIST, first + 1)
    boot = bytearray((modules / "i386-pc" / "boot.img").read_bytes())
    struct.pack_into("<Q", boot, _KERNEL_SECTOR, first)
    # Trust the drive number of the firmware: for hard disks GRUB's installer removes this check in the same way.
    struct.pack_into("<H", boot, _DRIVE_CHECK, 0x9090)
    with image.open("r+b") as disk:
        disk.write(boot[:_BOOT_CODE])
        disk.seek(start)
        disk.write(loader)

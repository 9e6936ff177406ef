"""File systems: make, grow, trim, check. Deterministic where the tools can be."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Literal

from parbake.disk.mounts import Mounted, loop_device, mount
from parbake.errors import BadBase, CommandFailed, DiskFull, ParbakeError
from parbake.run import run

FileSystem = Literal["ext4", "xfs"]
LABEL = "parbake"

_NAMES = uuid.UUID("6f0c7f4e-3a55-5d0c-9a0e-70617262616b")
# Any fixed moment will do: it is what tools write where they would write "now".
_EPOCH = "1700000000"
# Images of programs have many small files: an inode for each 8 KiB instead of each 16 KiB.
_BYTES_PER_INODE = 8192
# Nodes with kernels before 5.15 (Amazon Linux 2, older Bottlerocket) refuse file systems with these.
_TOO_NEW = "^orphan_file,^metadata_csum_seed"
# 0: clean, 1: corrected, such as a journal replayed (e2fsck(8)).
_E2FSCK_GOOD = {0, 1}


def filesystem_uuid(name: str) -> str:
    """Return the UUID that follows from a name, such as a content key: nodes find the volume by it."""
    return str(uuid.uuid5(_NAMES, name))


def make_filesystem(image: Path, filesystem: FileSystem, size: int, *, name: str) -> None:
    """Make a sparse file of ``size`` bytes with an empty file system whose bytes follow from size and ``name``.

    Raises CommandFailed (the size is below what the file system needs), DiskFull, EnvironmentProblem.
    """
    identity = filesystem_uuid(name)
    with image.open("wb") as handle:
        handle.truncate(size)
    if filesystem == "ext4":
        # A new sparse file is all zeros: nothing needs to be zeroed again, which would make it less sparse.
        extended = f"hash_seed={filesystem_uuid(name + ' hash')},assume_storage_prezeroed=1,nodiscard"
        command = [
            "mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-i", str(_BYTES_PER_INODE), "-L", LABEL,
            "-U", identity, "-O", _TOO_NEW, "-E", extended, str(image),
        ]  # fmt: skip
    else:
        command = ["mkfs.xfs", "-q", "-K", "-L", LABEL, "-m", f"uuid={identity}", str(image)]
    _run(command, image)


def _run(command: list[str], image: Path) -> None:
    # SOURCE_DATE_EPOCH is understood by e2fsprogs; xfsprogs reads it for inode times since 6.13, older ones ignore it.
    try:
        run(command, env={"SOURCE_DATE_EPOCH": _EPOCH, "E2FSPROGS_FAKE_TIME": _EPOCH})
    except CommandFailed as error:
        if "No space left" in error.output:
            raise DiskFull(f"no space left for {image}", hint="free some space, or move `output`") from error
        raise


def grow_filesystem(image: Path, filesystem: str, at: Path, *, offset: int = 0, size: int = 0) -> None:
    """Let an unmounted file system fill its place (bytes; size 0: to the file's end); ``at``: a folder for XFS.

    Call within ``private_mounts``. Raises BadBase for a type that cannot grow, or a file system that is damaged.
    """
    match filesystem:
        case "ext4":
            # Unmounted: growing a mounted ext4 takes CAP_SYS_RESOURCE, which containers often lack.
            with loop_device(image, offset=offset, size=size) as device:
                checked = run(["e2fsck", "-fp", device], check=False)
                if checked.code not in _E2FSCK_GOOD:
                    raise BadBase(
                        f"the base's file system is damaged (e2fsck, code {checked.code})\n{checked.text}",
                        hint="shut the machine that it was taken from down properly, or repair it with e2fsck",
                    )
                run(["resize2fs", device])
        case "xfs":
            with mount(image, at, offset=offset, size=size, filesystem=filesystem):
                run(["xfs_growfs", str(at)])
        case other:
            raise BadBase(f"a root file system of type {other} cannot be grown", hint="use a base with ext4 or xfs")


def trim(mounted: Mounted) -> None:
    """Give back what the file system does not use: holes in the image file."""
    run(["fstrim", str(mounted.path)])


def usage(path: Path) -> tuple[int, int]:
    """Return the size of a mounted file system and what is used of it, in bytes."""
    status = os.statvfs(path)
    total = status.f_blocks * status.f_frsize
    return total, total - status.f_bfree * status.f_frsize


def check_filesystem(image: Path, filesystem: str, *, offset: int = 0, size: int = 0) -> None:
    """Check an unmounted file system without changing it; raises ParbakeError with the checker's words."""
    with loop_device(image, offset=offset, size=size, read_only=True) as device:
        command = ["e2fsck", "-fn", device] if filesystem == "ext4" else ["xfs_repair", "-n", device]
        checked = run(command, check=False)
    if checked.code:
        raise ParbakeError(
            f"{command[0]} found errors in {image} (code {checked.code})\n{checked.text}\n{checked.stderr}".rstrip(),
            hint="bake again; if it stays so, this is a bug in parbake or a failing disk",
        )

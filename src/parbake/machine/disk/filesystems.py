"""File systems: make, grow, trim, check. Deterministic where the tools can be."""

from __future__ import annotations

import os
import re
import uuid
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

from parbake.core.errors import BadBase, CommandFailed, DiskFull, ParbakeError
from parbake.core.model import GIB, MIB
from parbake.core.run import run
from parbake.machine.disk.mounts import Mounted, loop_device, mount

FileSystem = Literal["ext4", "xfs"]
LABEL = "parbake"

_NAMES = uuid.UUID("6f0c7f4e-3a55-5d0c-9a0e-70617262616b")
# Any fixed moment will do: it is what tools write where they would write "now".
_EPOCH = "1700000000"
# Images of programs have many small files: a small volume would run out of inodes before it runs out of blocks.
_SMALL_VOLUME = 8 * GIB
# What Linux 4.14 (Amazon Linux 2) mounts; not what the configuration of the machine that bakes says. With the seed of
# the checksums in the superblock, a volume that another one starts from may get a UUID of its own.
EXT4_FEATURES = (
    "none", "has_journal", "ext_attr", "resize_inode", "dir_index", "filetype", "extent", "64bit", "flex_bg",
    "sparse_super", "large_file", "huge_file", "dir_nlink", "extra_isize", "metadata_csum", "metadata_csum_seed",
)  # fmt: skip
# What Linux 5.10 mounts.
_XFS_FEATURES = ("crc=1", "finobt=1", "rmapbt=0", "reflink=1", "bigtime=1", "inobtcount=1")
_XFS_INODES_IN_USE = 3  # root folder, real-time bitmap, real-time summary
_XFS_1970 = 2**31  # seconds from the start of bigtime's clock, in 1901
# 0: clean, 1: corrected, such as a journal replayed (e2fsck(8)).
_E2FSCK_GOOD = {0, 1}


def filesystem_uuid(name: str) -> str:
    """Return the UUID that follows from a name, such as a content key: nodes find the volume by it."""
    return str(uuid.uuid5(_NAMES, name))


def bytes_per_inode(size: int) -> int:
    """Return for how many bytes an ext4 volume of a size gets an inode."""
    return 4096 if size < _SMALL_VOLUME else 8192


def make_filesystem(image: Path, filesystem: FileSystem, size: int, *, name: str) -> None:
    """Make a sparse file of ``size`` bytes with an empty file system whose bytes follow from size and ``name``.

    Raises CommandFailed (the size is below what the file system needs), DiskFull, EnvironmentProblem.
    """
    with image.open("wb") as handle:
        handle.truncate(size)
    if filesystem == "ext4":
        _run(_mke2fs(image, size, name), image)
        return
    command = [
        "mkfs.xfs", "-q", "-K", "-L", LABEL, "-m", ",".join((f"uuid={filesystem_uuid(name)}", *_XFS_FEATURES)),
        "-i", "sparse=1,nrext64=0,exchange=0", "-n", "parent=0", str(image),
    ]  # fmt: skip
    _run(command, image)
    _settle_xfs(image)


def _mke2fs(image: Path, size: int, name: str) -> list[str]:
    # A new sparse file is all zeros: nothing needs to be zeroed again, which would make it less sparse.
    extended = f"hash_seed={filesystem_uuid(name + ' hash')},assume_storage_prezeroed=1,nodiscard,root_owner=0:0"
    return [
        "mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256", "-m", "0", "-L", LABEL,
        "-i", str(bytes_per_inode(size)),
        "-J", f"size={max(4, min(256, size // (64 * MIB)))}",
        "-U", filesystem_uuid(name), "-O", ",".join(EXT4_FEATURES), "-E", extended, str(image),
    ]  # fmt: skip


def _settle_xfs(image: Path) -> None:
    """Take the clock and the random numbers of mkfs.xfs out of its first inodes: 6.13 has no option for them."""
    shown = run(["xfs_db", "-r", "-c", "sb 0", "-c", "print rootino icount", str(image)]).text
    numbers = dict(re.findall(r"(\w+) = (\d+)", shown))
    first, count = int(numbers["rootino"]), int(numbers["icount"])
    commands = []
    for inode in range(first, first + count):
        commands += [f"inode {inode}", f"write core.gen {inode}"]
        if inode < first + _XFS_INODES_IN_USE:
            for clock in ("core.atime", "core.mtime", "core.ctime", "v3.crtime"):
                commands += [f"write {clock}.sec {_XFS_1970}", f"write {clock}.nsec 0"]
    run(["xfs_db", "-x", *(word for command in commands for word in ("-c", command)), str(image)])


def _run(command: list[str], image: Path) -> None:
    # Read by e2fsprogs since 1.47.1, the fake time by older ones. Features are all named, so no configuration is read.
    try:
        run(command, env={"SOURCE_DATE_EPOCH": _EPOCH, "E2FSPROGS_FAKE_TIME": _EPOCH, "MKE2FS_CONFIG": os.devnull})
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
    # ext4 keeps the blocks of a deleted file until the journal is committed, and would not trim them.
    run(["sync", "--file-system", str(mounted.path)])
    run(["fstrim", str(mounted.path)])


def usage(path: Path) -> tuple[int, int]:
    """Return the size of a mounted file system and what is used of it, in bytes."""
    status = os.statvfs(path)
    total = status.f_blocks * status.f_frsize
    return total, total - status.f_bfree * status.f_frsize


def check_filesystem(image: Path, filesystem: str, *, offset: int = 0, size: int = 0) -> None:
    """Check an unmounted file system without changing it; raises ParbakeError with the checker's words."""
    with ExitStack() as stack:
        at = str(image)
        if offset or size or filesystem != "ext4":  # e2fsck reads a file as it is, in memory where it was just written
            at = stack.enter_context(loop_device(image, offset=offset, size=size, read_only=True))
        command = ["e2fsck", "-fn", at] if filesystem == "ext4" else ["xfs_repair", "-n", at]
        checked = run(command, check=False)
    if checked.code:
        raise ParbakeError(
            f"{command[0]} found errors in {image} (code {checked.code})\n{checked.text}\n{checked.stderr}".rstrip(),
            hint="bake again; if it keeps failing, this is a bug in parbake or a failing disk",
        )

"""Disks as mounts and loop devices that cannot outlive the process.

Mounts are made in a mount namespace of the calling thread, loop devices are set to *autoclear*: the kernel takes both
away when the last user is gone, also after ``kill -9``. Sources: loop(4), linux/loop.h.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from parbake.core import mounts
from parbake.core.errors import CommandFailed, EnvironmentProblem
from parbake.core.interrupts import guarded

READ_AHEAD = 128 << 10
"""Bytes that Linux reads ahead on the disks of nodes, which are not rotational (``VM_READAHEAD_PAGES``).

Loop devices are told to rotate, so that some kernels read 2.5 MiB ahead there (6.17: "block: Improve read ahead size
for rotational devices").
"""

_BLKRASET = 0x1262
_LOOP_CTL_GET_FREE = 0x4C82
_LOOP_CONFIGURE = 0x4C0A
_READ_ONLY, _AUTOCLEAR, _DIRECT_IO = 1, 4, 16
# struct loop_config: fd, block size, struct loop_info64 (device, inode, rdevice, offset, size limit, number, three
# encryption fields of which the last is the flags, three texts, init), and eight reserved words.
_LOOP_CONFIG = struct.Struct("=II QQQQQ IIII 64s64s32s 2Q 8Q")
_BUSY_TRIES = 64  # other programs take free devices between our two calls

FAST = {"ext4": ("noatime", "barrier=0"), "xfs": ("noatime",)}
"""Options by file system for one that is thrown away unless all of it succeeds: no flush for each commit."""


@contextmanager
@guarded
def loop_device(image: Path, *, offset: int = 0, size: int = 0, read_only: bool = False) -> Iterator[str]:
    """Attach a part of a file (bytes; size 0: to its end) as a block device and yield the device's path.

    The file is read and written without the host's page cache where its file system can: the file system inside has a
    cache of its own.
    """
    backing = os.open(image, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
    device = -1
    try:
        flags = _AUTOCLEAR | (_READ_ONLY if read_only else 0)
        device, path = _attach(image, backing, offset, size, flags)
        yield path
    finally:
        if device >= 0:
            os.close(device)
        os.close(backing)


def read_ahead(device: str, size: int = READ_AHEAD) -> None:
    """Let a block device read ahead by so many bytes at most, from the next mount on (``ioctl_list(2)``: BLKRASET)."""
    opened = _open_device(device)
    try:
        fcntl.ioctl(opened, _BLKRASET, size // 512)
    finally:
        os.close(opened)


def _attach(image: Path, backing: int, offset: int, size: int, flags: int) -> tuple[int, str]:
    control = _open_device("/dev/loop-control")
    try:
        name = os.fsencode(image)[:63]
        for _ in range(_BUSY_TRIES):
            path = f"/dev/loop{_free_number(control)}"
            device = _open_device(path)
            for more in (_DIRECT_IO, 0):
                config = _LOOP_CONFIG.pack(
                    backing, 0, 0, 0, 0, offset, size, 0, 0, 0, flags | more, name, b"", b"", 0, 0, *[0] * 8
                )
                try:
                    fcntl.ioctl(device, _LOOP_CONFIGURE, config)
                except OSError as error:
                    if error.errno not in {errno.EBUSY, errno.EINVAL}:
                        os.close(device)
                        raise
                    if error.errno == errno.EBUSY:
                        break
                else:
                    return device, path
            os.close(device)
    finally:
        os.close(control)
    raise EnvironmentProblem("all loop devices are in use", hint="`losetup -a` lists them")


def _open_device(path: str) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise _no_loop_device(error) from error


def _free_number(control: int) -> int:
    try:
        return fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
    except OSError as error:
        raise _no_loop_device(error) from error


def _no_loop_device(error: OSError) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"cannot get a loop device here ({error.strerror})",
        hint="in a container, run it privileged with the host's /dev; elsewhere: modprobe loop",
    )


@dataclass(frozen=True, slots=True)
class Mounted:
    """A mounted file system: where, on which device, of which type."""

    path: Path
    device: str
    filesystem: str


@contextmanager
@guarded
def mount(
    image: Path,
    at: Path,
    *,
    filesystem: str,
    offset: int = 0,
    size: int = 0,
    read_only: bool = False,
    options: Sequence[str] = (),
) -> Iterator[Mounted]:
    """Mount a part of a file (bytes; size 0: to its end) at a folder, which is made.

    Raises CommandFailed when it is not a file system that the kernel knows, or a damaged one.
    """
    if filesystem == "ext4" and not read_only:
        # Inode tables that growing added are zeroed now, by holes in the file, not on the node's first boot.
        options = (*options, "init_itable=0")
    with (
        loop_device(image, offset=offset, size=size, read_only=read_only) as device,
        mount_device(device, at, filesystem=filesystem, read_only=read_only, options=options, called=image) as mounted,
    ):
        yield mounted


@contextmanager
@guarded
def mount_device(
    device: str,
    at: Path,
    *,
    filesystem: str,
    read_only: bool = False,
    options: Sequence[str] = (),
    called: Path | None = None,
) -> Iterator[Mounted]:
    """Mount a block device at a folder, which is made; ``called`` is what errors call it.

    Nothing on it is run or followed (``mounts.HARMLESS``). Containers may run from it all the same: an overlay on top
    is a mount with options of its own. Raises CommandFailed as ``mount``.
    """
    at.mkdir(parents=True, exist_ok=True)
    chosen = [*mounts.HARMLESS, *options]
    if filesystem == "xfs":
        chosen.append("nouuid")  # two copies of one base are mounted at a time when two bakes run
    if read_only:
        # A journal that was not replayed must stay as it is: reading may not write.
        chosen += ["ro", *{"ext4": ["noload"], "xfs": ["norecovery"]}.get(filesystem, [])]
    if problem := mounts.attach(device, at, filesystem, options=chosen):
        said = "this kernel does not know it" if problem == errno.ENODEV else os.strerror(problem)
        raise CommandFailed(
            f"the {filesystem} file system in {called or device} cannot be mounted ({said})",
            code=problem, output=said, hint="`dmesg` says more",
        )  # fmt: skip
    try:
        mounts.check_harmless(at)
        yield Mounted(at, device, filesystem)
    finally:
        mounts.unmount(at)

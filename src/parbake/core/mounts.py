"""Mounts of this thread's own, and a root of its own for a program that works in somebody's file system.

Mounts are made in a mount namespace of the calling thread: the kernel takes them away when the last user is gone, also
after ``kill -9``. What strangers have written is mounted so that no symbolic link in it is followed, by nobody: neither
by us nor by any program. Sources: mount_namespaces(7), mount(2), pivot_root(2).
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from parbake.core.errors import EnvironmentProblem
from parbake.core.interrupts import guarded
from parbake.core.run import Deadline, need_root

HARMLESS = ("nodev", "nosuid", "noexec", "nosymfollow")
"""Options for what strangers have written: nothing is run, device files are data, and links lead nowhere."""
# mount(2), umount2(2): called here, since a program for the same takes ten milliseconds, and many times that on a busy
# machine. These options are flags, all others the file system's. The first four have the same numbers in statvfs(3).
_FLAGS = {"ro": 1, "nosuid": 2, "nodev": 4, "noexec": 8, "nosymfollow": 1 << 8, "noatime": 1 << 10}
_KEPT_FLAGS = 1 | 2 | 4 | 8
_MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 1 << 5, 1 << 12, 1 << 14, 1 << 18
_MNT_DETACH = 2
_ST_NOSYMFOLLOW = 1 << 13  # statfs(2)


@contextmanager
@guarded
def private_mounts() -> Iterator[None]:
    """Run the body in a mount namespace of this thread (and of threads and programs that it starts); needs root.

    The thread returns to where it was, its working folder as well; from then on it no longer shares that folder with
    the process's other threads (the kernel demands it).
    """
    need_root("mounting")
    outside = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    folder = os.open(".", os.O_PATH | os.O_CLOEXEC)
    try:
        try:
            os.unshare(os.CLONE_NEWNS)
        except OSError as error:
            raise _not_possible("cannot make a mount namespace here", error.errno) from error
        if problem := attach("none", Path("/"), flags=_MS_REC | _MS_PRIVATE):
            raise EnvironmentProblem(
                f"mounts cannot be made private ({os.strerror(problem)})", hint="run as root, with mounts allowed"
            )
        try:
            yield
        finally:
            os.unshare(os.CLONE_FS)  # setns refuses while a thread that was started inside shares our folder
            os.setns(outside, os.CLONE_NEWNS)
            os.fchdir(folder)  # entering a mount namespace moves to its root
    finally:
        os.close(folder)
        os.close(outside)


def unmount(at: Path) -> None:
    """Unmount a folder; waits a little for programs that are just ending. Raises EnvironmentProblem where it stays."""
    deadline = Deadline(15, f"unmounting {at}")
    while problem := _unmount(at):
        if problem != errno.EBUSY or not deadline.left:
            _unmount(at, _MNT_DETACH)
            raise EnvironmentProblem(
                f"{at} cannot be unmounted ({os.strerror(problem)})", hint="look for programs that use it"
            )
        deadline.sleep(0.05)


def attach(source: str, at: Path, filesystem: str = "", *, flags: int = 0, options: Sequence[str] = ()) -> int:
    """Make a mount; return 0, or the number of the error."""
    flags |= sum(_FLAGS.get(option, 0) for option in options)
    data = ",".join(option for option in options if option not in _FLAGS)
    texts = (os.fsencode(source), os.fsencode(at), filesystem.encode())
    return ctypes.get_errno() if _libc().mount(*texts, ctypes.c_ulong(flags), data.encode()) else 0


def tmpfs(at: Path, *, size: str) -> None:
    """Mount an empty file system in memory at a folder, which is made. Raises EnvironmentProblem."""
    at.mkdir(parents=True, exist_ok=True)
    if problem := attach("tmpfs", at, "tmpfs", options=(f"size={size}", "mode=0755")):
        raise _not_possible(f"a file system in memory cannot be mounted at {at}", problem)


def check_harmless(at: Path) -> None:
    """Raise EnvironmentProblem where links of a mount are followed: kernels that do not know the option ignore it."""
    if not os.statvfs(at).f_flag & _ST_NOSYMFOLLOW:
        raise EnvironmentProblem(
            f"this kernel would follow symbolic links in {at}, which others have written",
            hint="use Linux 5.10 or later, whose mounts have the option nosymfollow",
        )


def bind(source: Path, at: Path, *options: str, everything: bool = False) -> None:
    """Show a file or folder at a second place, which is made, with ``options``; ``everything``: mounts below it too.

    Call within ``private_mounts``. Raises EnvironmentProblem.
    """
    if source.is_dir():
        at.mkdir(parents=True, exist_ok=True)
    else:
        at.parent.mkdir(parents=True, exist_ok=True)
        at.touch()
    problem = attach(str(source), at, flags=_MS_BIND | (_MS_REC if everything else 0))
    if options and not problem:
        # What the mount it is made of forbids stays forbidden.
        kept = os.statvfs(at).f_flag & _KEPT_FLAGS
        problem = attach("none", at, flags=_MS_REMOUNT | _MS_BIND | kept, options=options)
    if problem:
        raise _not_possible(f"{source} cannot be mounted at a second place", problem)
    if "nosymfollow" in options:
        check_harmless(at)


def _not_possible(what: str, problem: int | None) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"{what} ({os.strerror(problem or 0)})",
        hint="in a container, run it privileged; `parbake doctor` checks what is possible",
    )


def _unmount(at: Path, flags: int = 0) -> int:
    """Unmount a folder; return 0, or the number of the error."""
    return ctypes.get_errno() if _libc().umount2(os.fsencode(at), flags) else 0


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)

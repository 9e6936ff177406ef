"""Files replaced at once, in folders that are opened once: no name that somebody has planted leads anywhere else.

A folder is named by its descriptor from the check to the last call, so that nobody swaps it in between. A draft has a
name that nobody can guess, is made by ``O_EXCL``, and is locked for as long as its writer lives: one that nobody holds
was left by a run that was killed, and goes with the next writing of the same file.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from parbake.core.errors import EnvironmentProblem, InputError
from parbake.core.interrupts import guarded

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# Of a symbolic link where O_NOFOLLOW (with O_DIRECTORY) wants none: open(2).
_IS_LINK = {errno.ELOOP, errno.ENOTDIR}
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def replace(
    path: Path,
    content: str | bytes,
    *,
    mode: int = 0o600,
    owner: tuple[int, int] | None = None,
    beneath: Path | None = None,
    folder_mode: int = 0o777,
    durable: bool = True,
    first: bool = False,
) -> None:
    """Write a file beside its name, then rename it there, for good: the old content is there or the new one.

    Where not ``durable`` it may be empty or missing after a power failure, and nobody waits for the disk. Where it must
    be the ``first`` of its name, it gets that by link(2): raises FileExistsError where something has it.

    A link of that name is replaced, never followed. ``mode`` holds whatever the umask is; ``owner`` is a user and a
    group, this process's where None. With ``beneath``, a folder above, no folder between it and the file may be a link,
    and missing ones are made (``folder_mode``). Raises InputError for such a link, OSError.
    """
    with opened(path.parent, beneath=beneath, make=folder_mode) as folder:
        _remove_drafts(folder, path.name)
        draft, handle = _draft(folder, path.name)
        try:
            with os.fdopen(handle, "wb", closefd=False) as file:
                file.write(content.encode() if isinstance(content, str) else content)
            if owner is not None:
                os.fchown(handle, *owner)
            os.fchmod(handle, mode)
            if durable:
                os.fsync(handle)
            if first:
                os.link(draft, path.name, src_dir_fd=folder, dst_dir_fd=folder)
                os.unlink(draft, dir_fd=folder)
            else:
                os.rename(draft, path.name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(draft, dir_fd=folder)
            raise
        finally:
            os.close(handle)
        if durable:
            os.fsync(folder)


@contextmanager
def opened(path: Path, *, beneath: Path | None = None, make: int | None = 0o777) -> Iterator[int]:
    """Yield a folder's descriptor.

    With ``beneath``, a folder above, no folder on the way from there may be a link, and missing ones are made, with the
    mode ``make`` (None: raises FileNotFoundError). Raises InputError for such a link, OSError.
    """
    handle = os.open(beneath or path, _FOLDER)
    try:
        for part in path.relative_to(beneath).parts if beneath else ():
            below = _below(handle, part, path, make)
            os.close(handle)
            handle = below
        yield handle
    finally:
        os.close(handle)


def _below(folder: int, name: str, path: Path, make: int | None) -> int:
    if make is not None:
        with suppress(FileExistsError):
            os.mkdir(name, make, dir_fd=folder)
    try:
        return os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=folder)
    except OSError as error:
        if error.errno not in _IS_LINK:
            raise
        raise InputError(
            f"{name!r} in {path} is a link, or not a folder: what is done there would be done elsewhere",
            hint="remove it, or name another folder",
        ) from None


def own_folder(path: Path) -> int:
    """Open a folder that only this user writes to, created if missing (the one above is there); return its descriptor.

    Raises EnvironmentProblem for a link and for what belongs to another user or is writable by others: whoever made it
    would choose what parbake removes there. Raises OSError.
    """
    while True:
        with suppress(FileExistsError):
            path.mkdir(mode=0o700)
        try:
            handle = os.open(path, _FOLDER | os.O_NOFOLLOW)
        except FileNotFoundError:
            continue  # another run has just removed it, since it was empty
        except OSError as error:
            if error.errno not in _IS_LINK:
                raise
            raise _not_ours(path, "is a link, or not a folder") from None
        status = os.fstat(handle)
        why = ""
        if status.st_uid != os.geteuid():
            why = f"belongs to the user {status.st_uid}"
        elif status.st_mode & _WRITABLE_BY_OTHERS:
            why = "can be written to by other users"
        if not why:
            return handle
        os.close(handle)
        raise _not_ours(path, why)


def _not_ours(path: Path, why: str) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"{path} {why}: parbake works only in a folder of its own",
        hint=f"look at what it is, then remove it (rm -r {path}); parbake creates it again",
    )


@guarded
def _draft(folder: int, name: str) -> tuple[str, int]:
    """Make a draft and lock it; return its name and its descriptor."""
    while True:
        # As long a name as a file may have (255 bytes) leaves room for nothing else.
        draft = f".{name[:200]}.{os.urandom(8).hex()}.draft"
        handle = os.open(draft, _NEW, 0o600, dir_fd=folder)
        fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:
            return draft, handle
        os.close(handle)  # another writer took it for a leftover before it was locked


def sweep(path: Path) -> tuple[Path, ...]:
    """Remove the drafts that killed runs left in a folder; return them. Raises OSError where it cannot be opened."""
    with opened(path) as folder:
        return tuple(path / name for name in _remove_drafts(folder))


def _remove_drafts(folder: int, name: str = "") -> list[str]:
    """Remove the drafts of a file (of any, without a name) whose writers are dead; return their names."""
    pattern = re.compile(rf"\.{re.escape(name[:200]) or '.+'}\.[0-9a-f]{{16}}\.draft")
    removed = []
    for found in filter(pattern.fullmatch, os.listdir(folder)):
        with suppress(OSError):  # it is another's, or gone, or no file
            handle = os.open(found, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(found, dir_fd=folder)
                removed.append(found)
            finally:
                os.close(handle)
    return removed

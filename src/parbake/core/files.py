"""Files: what takes more than one system call."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO


def open_file(path: str | Path, *, folder: int | None = None, links: bool = True) -> BinaryIO:
    """Open a regular file to read it: no pipe, which would wait for a writer, and no device. Raises OSError.

    A link is not followed where there are to be no ``links``, or with ``folder``, the descriptor of where it lies.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if links and folder is None else os.O_NOFOLLOW)
    try:
        handle = os.open(path, flags, dir_fd=folder)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise OSError(errno.ELOOP, "it is a link") from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "it is no file")
    return os.fdopen(handle, "rb")


def read_file(path: Path, most: int) -> bytes:
    """Return what a regular file holds, at most so many bytes. Raises OSError, also for one that holds more."""
    with open_file(path) as file:
        content = read_bounded(file, most)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"it is larger than {most >> 20} MiB")
    return content


def read_bounded(file: BinaryIO, most: int) -> bytes:
    """Return what an open file holds, and no more than one byte beyond ``most``: for whoever says what is too large."""
    return file.read(min(os.fstat(file.fileno()).st_size, most) + 1)


def write_all(handle: int, data: memoryview, place: int) -> None:
    """Write data at a place of a file, however many calls that takes; raises OSError."""
    while data:
        count = os.pwrite(handle, data, place)
        data, place = data[count:], place + count

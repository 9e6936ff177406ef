"""Files: what takes more than one system call."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO


def open_file(path: Path) -> BinaryIO:
    """Open a regular file to read it: no pipe, which would wait for a writer, and no device. Raises OSError."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "it is no file")
    return os.fdopen(handle, "rb")


def read_file(path: Path, most: int) -> bytes:
    """Return what a regular file holds, at most so many bytes. Raises OSError, also for one that holds more."""
    with open_file(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"it is larger than {most >> 20} MiB")
    return content


def write_all(handle: int, data: memoryview, place: int) -> None:
    """Write data at a place of a file, however many calls that takes; raises OSError."""
    while data:
        count = os.pwrite(handle, data, place)
        data, place = data[count:], place + count

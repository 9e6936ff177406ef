"""Holes in the file of a volume: what the file system does not use any more takes no room on the host."""

from __future__ import annotations

import ctypes
import errno
import os
from typing import Final

_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # fallocate(2)
_PIECE: Final = 1 << 20
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


def punch(handle: int, start: int, end: int) -> None:
    """Let a part of an open file (bytes) read as zeros; a hole, where its file system has holes. Raises OSError."""
    size = ctypes.c_int64(end - start)
    if not _LIBC.fallocate(handle, _KEEP_SIZE | _PUNCH_HOLE, ctypes.c_int64(start), size):
        return
    code = ctypes.get_errno()
    if code not in {errno.EOPNOTSUPP, errno.ENOSYS}:
        raise OSError(code, os.strerror(code))
    for place in range(start, end, _PIECE):
        os.pwrite(handle, bytes(min(_PIECE, end - place)), place)

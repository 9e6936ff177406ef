"""Open files: what takes more than one system call."""

from __future__ import annotations

import os


def write_all(handle: int, data: memoryview, place: int) -> None:
    """Write data at a place of a file, however many calls that takes; raises OSError."""
    while data:
        count = os.pwrite(handle, data, place)
        data, place = data[count:], place + count

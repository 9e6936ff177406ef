"""Keep in memory what was read into it, until the images that want it are up.

A kernel may take pages back that nobody uses yet (memory that gets short, a control group's limit, DAMON's proactive
reclaim). So what was read is mapped into this process: mapped pages are taken last, and ``mincore(2)`` tells which are
gone. Nothing is locked. When memory gets short the kernel takes them all the same, and this program lets go.

For ``hydrate.py``, beside which it lies: Python 3.9 or later, Linux, alone.
"""

import ctypes
import os
import re
import time
from contextlib import suppress
from pathlib import Path

ALIGN = 4096
LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mmap.restype = ctypes.c_void_p
LIBC.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
LIBC.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
LIBC.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
LIBC.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p)
PROT_READ, MAP_SHARED, MAP_FAILED = 1, 1, ctypes.c_void_p(-1).value
WILLNEED, POPULATE_READ = 3, 22  # of madvise(2); the latter, which maps pages, since Linux 5.14
LONGEST = 64  # pages of a range; hydrate.py asks for no more at once
POLL, SHARE = 1.0, 20  # seconds between two looks, or more: as many times what the last took
SETTLE = 60.0  # seconds from a container's start after which it has what it needs
STORED = re.compile(rb"(?:^|/)snapshots/(\d{1,18})/fs/")  # a file of a layer, in containerd's store
SHOWN = re.compile(rb"(?:[=:/])(\d{1,18})/fs(?=[:,]|$)")  # such a layer below a container's root


class Held:
    """Ranges of files that were read: mapped, so that they stay, and looked after (``look``).

    ``paths`` are all files of the list: once containers have all of their layers, the images of the list have started.
    """

    def __init__(self, paths=()):
        self.pieces, self.vector = [], ctypes.create_string_buffer(LONGEST)
        self.layers = {int(found[1]) for found in map(STORED.search, paths) if found}

    def add(self, handle, ranges):
        """Hold ranges of an open file, each of less than ``LONGEST`` pages, all within its size."""
        pages = [(at // ALIGN * ALIGN, -(-(at + length) // ALIGN) * ALIGN) for at, length in ranges]
        first, end = min(at for at, _ in pages), max(end for _, end in pages)
        at = LIBC.mmap(None, end - first, PROT_READ, MAP_SHARED, handle, first)
        if at in {
            None,
            MAP_FAILED,
        }:  # a process may have some 65,000: what is beyond is read, and not looked after
            return
        # The kernel tells owners alone what is in memory of a file. Of others' all is asked for again, which is cheap.
        own = os.fstat(handle).st_uid == os.geteuid()
        places = [(at + begin - first, end - begin) for begin, end in pages]
        for place, size in places:
            LIBC.madvise(place, size, POPULATE_READ)
        self.pieces.append((own, at, end - first, places))

    def look(self, figures):
        """Ask again for what is gone, and tell what was: bytes that are ``resident``, and ``reads_left``.

        The latter are the requests in which a start would have brought the others itself; ``again`` counts all of them.
        """
        there = reads = 0
        for own, _, _, places in self.pieces:
            for place, size in places:
                if LIBC.mincore(place, size, self.vector):
                    continue
                seen = self.vector.raw[: size // ALIGN]
                missing = seen.count(b"\0")
                there += size - missing * ALIGN
                reads += len(re.findall(rb"\0+", seen)) if missing else 0
                if missing or not own:
                    LIBC.madvise(place, size, WILLNEED)  # all of them at once
        for _, _, _, places in self.pieces:
            for place, size in places:
                LIBC.madvise(place, size, POPULATE_READ)  # waits for them, and the kernel sees that they are used
        figures.update(resident=there, reads_left=reads, again=figures.get("again", 0) + reads)

    def release(self):
        """Let go of all of it: it stays in memory for as long as the kernel likes."""
        for _, at, size, _ in self.pieces:
            LIBC.munmap(at, size)
        self.pieces = []


def hold(held, seconds, figures, tight):
    """Look after what is held until its images are up, memory gets tight, or the seconds are over; tell which.

    ``tight`` tells whether memory is. Images are up some time after containers were made of all of them.
    """
    end, up, figures["held"] = time.monotonic() + seconds, None, "yes"
    while figures["held"] == "yes":
        began = time.monotonic()
        held.look(figures)
        now = time.monotonic()
        if up is None and held.layers and held.layers <= layers_shown():
            up = now
        if tight():
            figures["held"] = "tight"
        elif up is not None and now >= up + SETTLE:
            figures["held"] = "up"
        elif now >= end:
            figures["held"] = "deadline"
        else:
            time.sleep(max(POLL, SHARE * (now - began)))
    held.release()


def layers_shown():
    """Return the numbers of the layers that containers have: those of mounted overlays."""
    with suppress(OSError):
        lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
        return {int(number) for line in lines if b" - overlay " in line for number in SHOWN.findall(line)}
    return set()

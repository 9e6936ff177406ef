"""Tell what starts on a node read that its list did not name, as a trace: `parbake trace RECORD --misses` takes it.

Run some minutes after the boot: what of the file system is in memory then, and is not in its prefetch list, something
has read. Files count that lie there since the bake (they are no younger than the list), and root's alone: of those of
others the kernel tells only their owners. It reads no data. For ``python3 -u``, 3.9 or later, beside ``hydrate.py``.
"""

import argparse
import ctypes
import fcntl
import json
import os
import socket
import stat
import struct
import time
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote_from_bytes

import hydrate

PAGE, SECTOR = 4096, 512
WINDOW = 1 << 30  # bytes that are looked at together
MOST = 20_000  # ranges: a line of some hundred KiB
FIEMAP, HEAD, EXTENT, ROOM = 0xC020660B, "=QQIIII", "=QQQ16xI12x", 128  # linux/fiemap.h
LAST, NOT_ON_DISK = 0x1, 0x2 | 0x4 | 0x200
LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mmap.restype = ctypes.c_void_p
LIBC.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
LIBC.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
LIBC.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p)
FAILED = ctypes.c_void_p(-1).value


def resident(file, size):
    """Yield the pages of an open file that are in memory, by their numbers."""
    for start in range(0, size, WINDOW):
        length = min(WINDOW, size - start)
        at = LIBC.mmap(None, length, 1, 1, file, start)  # PROT_READ, MAP_SHARED
        if at in (None, FAILED):
            return
        vector = ctypes.create_string_buffer(-(-length // PAGE))
        known = LIBC.mincore(at, length, vector) == 0
        LIBC.munmap(at, length)
        if known:
            pages = vector.raw[: -(-length // PAGE)]
            yield from (start // PAGE + number for number, seen in enumerate(pages) if seen & 1)


def spans(numbers):
    """Yield (first, count) of numbers, ascending, that follow each other."""
    first = count = 0
    for number in numbers:
        if count and number == first + count:
            count += 1
            continue
        if count:
            yield first, count
        first, count = number, 1
    if count:
        yield first, count


def extents(file):
    """Return where an open file's data lie: offset in it, offset on the device, length, in bytes."""
    found, start = [], 0
    while True:
        request = bytearray(struct.pack(HEAD, start, (1 << 64) - 1 - start, 0, 0, ROOM, 0) + bytes(56 * ROOM))
        fcntl.ioctl(file, FIEMAP, request)
        count, flags = struct.unpack_from(HEAD, request)[3], LAST
        for index in range(count):
            logical, physical, length, flags = struct.unpack_from(EXTENT, request, 32 + 56 * index)
            start = logical + length
            if not flags & NOT_ON_DISK:
                found.append((logical, physical, length))
        if flags & LAST:
            return found


def missed(root, listed, before):
    """Yield the path, the ranges in the file and the reads on the device of what was read besides ``listed``.

    ``listed`` has the pages of each path that a list names; files that changed after ``before`` (nanoseconds since
    1970) are not the bake's.
    """
    device = os.fstat(root).st_dev
    for folder, folders, names, at in os.fwalk(".", dir_fd=root, follow_symlinks=False):
        folders[:] = [name for name in folders if getattr(status(name, at), "st_dev", None) == device]
        for name in names:
            found, path = status(name, at), os.fsencode(os.path.normpath(f"{folder}/{name}"))
            if found is None or not stat.S_ISREG(found.st_mode) or not found.st_size or found.st_dev != device:
                continue
            if found.st_uid != os.geteuid() or found.st_ctime_ns > before or path in hydrate.PLACES:
                continue
            with suppress(OSError):
                file = hydrate.open_below(root, path)
                try:
                    pages = [page for page in resident(file, found.st_size) if page not in listed.get(path, ())]
                    if pages:
                        yield path, *placed(extents(file), pages)
                finally:
                    os.close(file)


def status(name, folder):
    """Return what is known of a file in an open folder, itself and not what it links to; None where it is gone."""
    with suppress(OSError):
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    return None


def placed(found, pages):
    """Return ranges of a file, and the reads (milliseconds, sector, sectors) of a device that they take."""
    ranges = [(first * PAGE, count * PAGE) for first, count in spans(pages)]
    reads = []
    for offset, length in ranges:
        for logical, physical, size in found:
            begin, end = max(offset, logical), min(offset + length, logical + size)
            if begin < end:
                reads.append((0, (physical + begin - logical) // SECTOR, -(-(end - begin) // SECTOR)))
    return ranges, reads


def pages_of(data):
    """Return the pages that a prefetch list names, by path."""
    listed = {}
    if data:
        for path, ranges in hydrate.read_files(data)[2]:
            pages = listed.setdefault(path, set())
            for offset, length in ranges:
                pages.update(range(offset // PAGE, -(-(offset + length) // PAGE)))
    return listed


def trace(options):
    """Return the trace of what was missed; None where there is nothing to look at."""
    head, _ = hydrate.read_list(options.list)
    device = hydrate.find_device(head["uuid"], 0)
    mounted = hydrate.find_mount(Path(device).stat().st_rdev, 0) if device else None
    if mounted is None:
        print("misses: the file system that the list is for is not mounted")
        return None
    root, below = mounted
    data = before = None
    for place in hydrate.PLACES:
        with suppress(OSError):
            data, before = hydrate.read_below(root, place), os.stat(place, dir_fd=root).st_ctime_ns
    if before is None or below != b"/":
        print("misses: the file system has no list of its own, or is not seen as a whole")
        return None
    files, reads = [], []
    for path, ranges, found in missed(root, pages_of(data), before):
        if len(reads) + len(found) > MOST:
            print("misses: there are more, which are left out")
            break
        files.append((quote_from_bytes(path, safe="/+@=,:"), sum(length for _, length in ranges), ranges))
        reads += found
    part = {"name": socket.gethostname(), "kind": "node", "reads": reads}
    return {
        "parbake-trace": 1,
        "uuid": head["uuid"],
        "size": int(head.get("size") or 0),
        "how": "node",
        "made_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "parts": [part],
        "files": files,
    }


def main():
    """Look once, and write what was found; never fail."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", default="/etc/parbake/hydrate.list", help="the list of blocks, which names the disk")
    parser.add_argument("--output", default="/run/parbake/misses.trace", help="where to write the trace")
    options = parser.parse_args()
    try:
        hydrate.confine(hydrate.CAP_DAC_READ_SEARCH)
        found = trace(options)
        if found:
            hydrate.replace(options.output, json.dumps(found, separators=(",", ":")) + "\n")
            print(f"misses: {len(found['files'])} files were read that no list named")
    except Exception as error:  # noqa: BLE001 - whatever it is, the node goes on
        print(f"misses: nothing was found out: {type(error).__name__}: {error}")


if __name__ == "__main__":
    main()

"""Read the blocks that a start needs, in the order of a list, many at a time, before anything else asks for them.

Whatever is wrong is logged, and the exit code is 0: a node boots without. For ``python3 -u``, 3.9 or later, alone.
"""

import argparse
import ctypes
import json
import mmap
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

BLOCK, ALIGN = 512 << 10, 4096
SUPERBLOCKS = ((1024 + 56, b"\x53\xef", 1024 + 104), (0, b"XFSB", 32))  # ext4, xfs: where, magic, where the UUID is
OPTIONS = (
    ("--list", "/etc/parbake/hydrate.list", "what to read"),
    ("--in-flight", 32, "requests at a time"),
    ("--touch", 0, "read so many bytes of each range; 0: one page where that loads all of it, else all"),
    ("--wait", 30.0, "seconds to wait for the device"),
    ("--state", "/run/parbake/hydrate.json", "write the figures here, as JSON"),
    ("--metrics", "", "write the figures here, for node_exporter's textfile collector"),
)


def confine():
    """Give up all capabilities, for good: disks are root's, who opens them as their owner."""
    libc = ctypes.CDLL(None)
    libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    libc.capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)())


def read_list(path):
    """Return a list's head (name to text) and its ranges (offset, length); a damaged end is left out, and told."""
    lines = Path(path).read_text(encoding="ascii", errors="replace").splitlines()
    if not lines or lines[0] != "parbake-hydrate 1":
        raise ValueError("it is no hydrate list of version 1")
    head, ranges = {}, []
    for line in lines[1:]:
        first, _, second = line.partition(" ")
        if first.isdigit() and second.isdigit():
            ranges.append((int(first), max(1, int(second))))
        elif first.isalpha() and not ranges:
            head[first] = second
        else:
            print(f"hydrate: {path}: bad line {line[:80]!r}, the rest is left out")
            break
    if head.get("ranges") != str(len(ranges)):
        print(f"hydrate: {path} is not whole: {len(ranges)} ranges of {head.get('ranges')}")
    return head, ranges


def find_device(name, patience):
    """Return the device with a file system, by superblocks (udev may not have run yet), once it appears, or None."""
    wanted, deadline = bytes.fromhex(name.replace("-", "")), time.monotonic() + patience
    while True:
        for line in Path("/proc/partitions").read_text().splitlines()[2:]:
            with suppress(OSError), Path(f"/dev/{line.split()[3]}").open("rb", buffering=0) as disk:
                head = disk.read(ALIGN)
                for at, magic, where in SUPERBLOCKS:
                    if head[at : at + len(magic)] == magic and head[where : where + 16] == wanted:
                        return disk.name
        if time.monotonic() >= deadline:
            return None
        time.sleep(0.1)


def read_all(device, ranges, threads, touch=0):
    """Read ranges in their order, some at a time; return bytes, ranges and errors. Nothing stays in a cache."""
    disk = os.open(device, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
    end = os.lseek(disk, 0, os.SEEK_END)
    lock, pending, done = threading.Lock(), iter(ranges), {"bytes": 0, "ranges": 0, "errors": 0}

    def work():
        buffer = mmap.mmap(-1, BLOCK)
        while True:
            with lock:
                offset, length = next(pending, (0, 0))
            if not length:
                return
            offset, stop, got, bad = offset // ALIGN * ALIGN, min(offset + (touch or length), end), 0, offset >= end
            while offset + got < stop and not bad:
                size, read = min(BLOCK, -(-(stop - offset - got) // ALIGN) * ALIGN), 0
                with suppress(OSError):
                    read = os.preadv(disk, [memoryview(buffer)[:size]], offset + got)
                got, bad = got + read, read == 0
            with lock:
                done.update(bytes=done["bytes"] + got, ranges=done["ranges"] + (not bad), errors=done["errors"] + bad)
                if bad and done["errors"] <= 5:
                    print(f"hydrate: {device}: cannot read {length} bytes at {offset}")

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda _: work(), range(threads)))
    os.close(disk)
    return done, end


def hydrate(options):
    """Do it, and return what was done."""
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    head, ranges = read_list(options.list)
    device = find_device(head["uuid"], options.wait)
    if device is None:
        print(f"hydrate: no device holds the file system {head['uuid']}, which the list is for")
        return {"state": "no-device", "started_after": uptime}
    marks = [time.monotonic()]
    for place in (0, BLOCK - ALIGN) if len(ranges) > 64 and not options.touch else ():  # does one touch load a block?
        read_all(device, [(at + place, ALIGN) for at, _ in ranges[:16]], 16)
        marks.append(time.monotonic())
    quick = marks[2:] and marks[2] - marks[1] < max(marks[1] - marks[0], 0.1) / 2  # then its end is there already
    done, end = read_all(device, ranges, options.in_flight, options.touch or (ALIGN if quick else 0))
    state, seconds = "short-disk" if end < int(head.get("size") or 0) else "done", round(time.monotonic() - marks[0], 3)
    result = {"state": state, "device": device, **done, "seconds": seconds, "started_after": uptime}
    print(f"hydrate: {done['bytes'] >> 20} MiB of {device} read in {seconds:.1f} s, {done['errors']} errors ({state})")
    if options.rest:
        os.nice(19)  # and the disks' class "idle" (ioprio_set(2)): threads to come inherit both
        ctypes.CDLL(None).syscall({"x86_64": 251, "aarch64": 30}.get(os.uname().machine, -1), 1, 0, 3 << 13)
        began, known = time.monotonic(), {offset for offset, _ in ranges}
        rest, _ = read_all(device, ((at, BLOCK) for at in range(0, end, BLOCK) if at not in known), 4)
        result.update(rest_bytes=rest["bytes"], rest_seconds=round(time.monotonic() - began, 3))
        print(f"hydrate: read the other {rest['bytes'] >> 20} MiB in {result['rest_seconds']:.0f} s")
    return result


def report(options, result):
    """Write the figures where they were asked for: JSON, and node_exporter's textfile format."""
    metrics = [f"parbake_hydrate_{key} {value}\n" for key, value in result.items() if not isinstance(value, str)]
    metrics += [f'parbake_hydrate_state{{state="{result["state"]}"}} 1\n']
    texts = {options.metrics: "".join(metrics), options.state: json.dumps(result) + "\n"}
    for path in filter(None, texts):
        with suppress(OSError):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(f"{path}.new").write_text(texts[path])
            Path(f"{path}.new").replace(path)


def main():
    """Read the options, hydrate, report; never fail."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default, what in OPTIONS:
        parser.add_argument(name, default=default, type=type(default), help=what)
    parser.add_argument("--rest", action="store_true", help="then read the rest of the device, at low priority")
    options = parser.parse_args()
    try:
        confine()
        result = hydrate(options)
    except Exception as error:  # noqa: BLE001 - whatever it is, the node starts without
        print(f"hydrate: nothing more is read: {type(error).__name__}: {error}")
        result = {"state": "failed"}
    report(options, result)


if __name__ == "__main__":
    main()

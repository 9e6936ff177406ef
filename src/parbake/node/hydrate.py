"""Bring what a start reads onto the node, in its order, many requests at a time, before anything else asks for it.

First the blocks of a list, past the page cache: a cold volume loads them. Once the file system is mounted, what starts
read of its files goes into the page cache, as far as there is memory for it, and stays there until the images are up.

Meanwhile a small file tells how far it is (``State``), for whoever wants to wait. Whatever is wrong is logged, and the
exit code is 0: a node boots without. For ``python3 -u``, 3.9 or later, alone but for what lies beside it.
"""

import argparse
import ctypes
import json
import mmap
import os
import re
import stat
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote_to_bytes

try:
    from pagecache import Held, hold
except ImportError:  # user data has no room for it: nothing is looked after there
    Held = hold = None
try:
    from boost import take_back
except ImportError:  # only nodes that are given raised volumes have it
    take_back = None

VERSION = 1  # of the state file
BLOCK, ALIGN = 512 << 10, 4096
SUPERBLOCKS = ((1024 + 56, b"\x53\xef", 1024 + 104), (0, b"XFSB", 32))  # ext4, xfs: where, magic, where the UUID is
STEP = 128 << 10  # bytes of a request for the page cache: the kernel cuts off what a device does not take at once
PLACES = (b".parbake-prefetch.list", b"etc/parbake/prefetch.list")  # of the list of files, in the file system itself
LARGEST_LIST = 16 << 20
CAP_DAC_READ_SEARCH = 1 << 2
OPTIONS = (
    ("--list", "/etc/parbake/hydrate.list"),  # the blocks to read
    ("--files", ""),  # the files to read into memory; without it, the list that lies in the file system itself
    ("--memory", 50),  # percent of the available memory that files may take; 0: none is read
    ("--mounted", 120.0),  # seconds to wait for the file system's being mounted
    ("--hold", 600.0),  # seconds to look after what is in memory, if its images are not up before; 0: not at all
    ("--in-flight", 32),  # requests at a time
    ("--touch", 0),  # read so many bytes of each range; 0: one page where that loads all of it, else all
    ("--wait", 30.0),  # seconds to wait for the device
    ("--state", "/run/parbake/hydrate.json"),  # write here how far it is, and the figures, as JSON
    ("--metrics", ""),  # write the figures here, for node_exporter's textfile collector
)


class State:
    """How far the program is: small files that others read, each replaced at once, every second until the end.

    ``phase`` is ``waiting`` (for the disk), ``loading`` (its blocks), ``prefetching`` (files into memory), and in the
    end ``done`` or ``failed``. ``since`` is when that began (RFC 3339, UTC), ``uptime`` the seconds since boot at which
    the file was written: one that grows old before the end is of a program that died. ``blocks`` and ``files`` are the
    figures of both stages, and ``boost`` what becomes of a raised volume; their owners change them meanwhile.
    """

    def __init__(self, state="", metrics=""):
        self.places, self.lock = (state, metrics), threading.Lock()
        self.head = {"version": VERSION, "phase": "", "since": "", "uptime": 0.0}
        self.blocks, self.files, self.boost = {}, {}, {}
        self.read = threading.Event()  # what is to be in memory, or nothing more comes

    def enter(self, phase):
        """Begin a phase."""
        self.head.update(phase=phase, since=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
        self.write()

    def write(self):
        """Replace the files; where that cannot be, nobody waits for them."""
        with self.lock, suppress(OSError):
            self.head["uptime"] = uptime()
            kinds = {"hydrate": dict(self.blocks), "prefetch": dict(self.files), "boost": dict(self.boost)}
            told = {**self.head, **kinds["hydrate"], **{name: kinds[name] for name in list(kinds)[1:] if kinds[name]}}
            replace(self.places[0], json.dumps(told) + "\n")
            replace(self.places[1], "".join(metrics(name, each) for name, each in kinds.items()))

    def keep(self):
        """Go on writing while the program runs."""
        while True:
            time.sleep(1.0)
            self.write()


def replace(path, text):
    """Replace a file at once, in a folder that is made for it; "" is no file."""
    if path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(f"{path}.new").write_text(text)
        Path(f"{path}.new").replace(path)


def uptime():
    """Return the seconds since this machine booted."""
    return float(Path("/proc/uptime").read_text().split()[0])


def metrics(name, figures):
    """Return figures in the format of node_exporter's textfile collector."""
    numbers = ((key, value) for key, value in figures.items() if isinstance(value, (int, float)))
    state = f'parbake_{name}_state{{state="{figures["state"]}"}} 1\n' if "state" in figures else ""
    return "".join(f"parbake_{name}_{key} {value}\n" for key, value in numbers) + state


def confine(effective=0):
    """Let this thread hold ``effective``, and be able to get no capability but to read what others own, for good.

    Disks are root's, who opens them as their owner. Files of images belong to anybody.
    """
    libc = ctypes.CDLL(None)
    libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    for keep in (CAP_DAC_READ_SEARCH, 0):  # a container may not have it
        if not libc.capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)(effective & keep, keep)):
            break


def read_list(path):
    """Return a list's head (name to text) and its ranges (offset, length); a damaged end is left out, and told."""
    lines = Path(path).read_text(encoding="ascii", errors="replace").splitlines()
    if not lines or lines[0] != "parbake-hydrate 1":
        raise ValueError("this is not a hydrate list of version 1")
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


def read_all(device, ranges, threads, touch=0, done=None):
    """Read ranges in their order, some at a time; return bytes, ranges and errors, which ``done`` has meanwhile.

    Nothing stays in a cache.
    """
    disk = os.open(device, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
    end = os.lseek(disk, 0, os.SEEK_END)
    lock, pending, done = threading.Lock(), iter(ranges), {} if done is None else done
    done.update(bytes=0, ranges=0, errors=0)

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


def read_files(data):
    """Return the head of a list of files, the metadata's ranges on the device, and files: their path and ranges."""
    lines = data.decode("ascii", errors="replace").splitlines()
    if not lines or lines[0] != "parbake-prefetch 1":
        raise ValueError("this is not a prefetch list of version 1")
    head, metadata, files = {}, [], []
    for line in lines[1:]:
        kind, _, text = line.partition(" ")
        if kind in {"meta", "file"}:
            where, _, path = text.partition(" ")
            if not re.fullmatch(r"\d{1,18}\+\d{1,18}(,\d{1,18}\+\d{1,18})*", where, re.ASCII):
                print(f"prefetch: bad line {line[:80]!r}, the rest is left out")
                break
            ranges = [tuple(map(int, each.split("+"))) for each in where.split(",")]
            if kind == "meta":
                metadata += ranges
            else:
                files.append((unquote_to_bytes(path), ranges))
        else:
            head[kind] = text
    if head.get("entries") != str(len(metadata) + len(files)):
        print(f"prefetch: the list is not whole: {len(metadata) + len(files)} entries of {head.get('entries')}")
    return head, metadata, files


def find_mount(number, patience):
    """Return the folder where a device's file system is mounted, open, and which of its folders that is; or None."""
    wanted, deadline = f"{os.major(number)}:{os.minor(number)}".encode(), time.monotonic() + patience
    while True:
        mounts = [line.split()[2:5] for line in Path("/proc/self/mountinfo").read_bytes().splitlines()]
        for _, *names in sorted((each for each in mounts if each[0] == wanted), key=lambda each: len(each[1])):
            below, place = (re.sub(rb"\\([0-7]{3})", lambda octal: bytes([int(octal[1], 8)]), name) for name in names)
            with suppress(OSError):
                folder = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                if os.fstat(folder).st_dev == number:  # and nothing is mounted over it
                    return folder, below
                os.close(folder)
        if time.monotonic() >= deadline:
            return None
        time.sleep(0.1)


def open_below(root, path):
    """Open a regular file below a folder, on the same file system, through no symbolic link; nothing else is opened."""
    parts = path.split(b"/")
    if not all(parts) or {b".", b".."} & set(parts) or b"\0" in path:
        raise OSError("a path that leads elsewhere")
    at = os.dup(root)
    try:
        for part in parts:
            found = os.open(part, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
            os.close(at)
            at = found
        status = os.fstat(at)
        if status.st_dev != os.fstat(root).st_dev:
            raise FileNotFoundError("it lies on another file system, mounted above it")
        if not stat.S_ISREG(status.st_mode):
            raise OSError("it is not a file of this file system")
        flags = os.O_RDONLY | os.O_CLOEXEC
        with suppress(PermissionError):  # that is for owners alone
            return os.open(f"/proc/self/fd/{at}", flags | os.O_NOATIME)
        return os.open(f"/proc/self/fd/{at}", flags)
    finally:
        os.close(at)


def read_below(root, path):
    """Return what is in a list below a folder."""
    with os.fdopen(open_below(root, path), "rb") as file:
        return file.read(LARGEST_LIST)


def read_small(path, otherwise=""):
    """Return the text of a small file of the kernel's, or something else where there is none."""
    with suppress(OSError):
        return Path(path).read_text()
    return otherwise


def memory():
    """Return the bytes of memory that are available, of all, and whether tasks wait for some."""
    lines = (line.split() for line in read_small("/proc/meminfo").splitlines())
    known = {line[0]: int(line[1]) << 10 for line in lines}
    waits = re.match(r"some avg10=(\d+)", read_small("/proc/pressure/memory"))
    available, total = known.get("MemAvailable:", 0), known.get("MemTotal:", 0)
    return available, available < total // 10 or (waits is not None and int(waits[1]) >= 10)


def room(share):
    """Return how many bytes files may take: a share (percent) of what is available, here and in this container."""
    available, _ = memory()
    group = read_small("/proc/self/cgroup").partition("::")[2].strip()
    for place in (f"/sys/fs/cgroup{group}", "/sys/fs/cgroup"):  # pages count where they are read first
        limit, used = (read_small(f"{place}/memory.{name}").strip() for name in ("max", "current"))
        if limit.isdigit() and used.isdigit():
            available = min(available, max(0, int(limit) - int(used)))
    return available * share // 100


def jobs(metadata, files, below, most):
    """Yield what to ask for at once, in order: a path (None: the device) and ranges, as far as ``most`` bytes go."""
    prefix = below.strip(b"/") + b"/" if below != b"/" else b""
    for path, ranges in [(None, metadata), *((path, ranges) for path, ranges in files if path.startswith(prefix))]:
        together, size = [], 0
        for offset, length in ranges:
            for at in range(offset, offset + length, STEP):
                count = min(STEP, offset + length - at)
                most -= -(-count // ALIGN) * ALIGN
                if most < 0:
                    break
                together.append((at, count))
                size += count
                if size >= BLOCK or len(together) >= 32:
                    yield path and path[len(prefix) :], together
                    together, size = [], 0
            if most < 0:
                break
        if together:
            yield path and path[len(prefix) :], together
        if most < 0:
            return


def ask(handle, ranges):
    """Have ranges of an open file read into the page cache, all at once; return when they are there."""
    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_RANDOM)  # nothing besides
    for offset, length in ranges:
        os.posix_fadvise(handle, offset, length, os.POSIX_FADV_WILLNEED)
    end = os.lseek(handle, 0, os.SEEK_END)
    for offset, length in ranges:
        if not os.pread(handle, 1, min(offset + length, max(end, offset + 1)) - 1):
            raise FileNotFoundError("it ends before that")


def fetch(device, root, pending, threads, done, held=None):
    """Do jobs, some at a time, until memory gets tight; keep the figures in ``done``, and return whether it did.

    What the boot has replaced, or has mounted something over, is gone, and no error.
    """
    lock = threading.Lock()
    paths, state, look = set(), {"tight": False}, [0.0]
    done.update(bytes=0, errors=0, gone=0)
    disk = os.open(device, os.O_RDONLY | os.O_CLOEXEC)

    def work():
        while True:
            with lock:
                if time.monotonic() >= look[0]:
                    look[0], state["tight"] = time.monotonic() + 0.2, state["tight"] or memory()[1]
                path, ranges = next(pending, (None, None)) if not state["tight"] else (None, None)
            if ranges is None:
                return
            bad = None
            try:
                handle = os.dup(disk) if path is None else open_below(root, path)
                try:
                    ask(handle, ranges)
                    if held:
                        held.add(handle, ranges)
                finally:
                    os.close(handle)
            except OSError as error:
                bad = error
            with lock:
                if bad is None:
                    paths.add(path)
                    done["bytes"] += sum(length for _, length in ranges)
                kind = "gone" if isinstance(bad, (FileNotFoundError, NotADirectoryError)) else "errors"
                done[kind] += bad is not None
                if bad and done[kind] <= 5:
                    print(f"prefetch: {(path or device)[:200]!r}: {bad}")

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda _: work(), range(threads)))
    os.close(disk)
    done["files"] = len(paths - {None})
    return state["tight"]


def prefetch(options, device, uuid, done):
    """Bring what starts read of the files on a device into the page cache; keep the figures in ``done``.

    Return what is to be looked after, None for nothing.
    """
    held = None
    try:
        confine(CAP_DAC_READ_SEARCH)
        mounted = find_mount(Path(device).stat().st_rdev, options.mounted)
        if mounted is None:
            done["state"] = "no-mount"
        else:
            held = prefetch_below(options, device, uuid, *mounted, done)
    except Exception as error:  # noqa: BLE001 - whatever it is, the node starts without
        print(f"prefetch: nothing more is read: {type(error).__name__}: {error}")
        done["state"] = "failed"
    print(f"prefetch: {done.get('bytes', 0) >> 20} MiB in memory ({json.dumps(done)})")
    return held


def prefetch_below(options, device, uuid, root, below, done):
    """Prefetch where the file system is mounted: ``root`` is its folder ``below``, open.

    Return what is to be looked after, None for nothing.
    """
    after, began = uptime(), time.monotonic()
    data = b""
    if options.files:
        with suppress(OSError), Path(options.files).open("rb") as file:
            data = file.read(LARGEST_LIST)
    for place in PLACES:
        with suppress(OSError):
            data = data or read_below(root, place)
    if not data:  # a volume that was not rehearsed has an empty one
        done["state"] = "no-list"
        return None
    head, metadata, files = read_files(data)
    if head.get("uuid") != uuid:
        done["state"] = "foreign-list"
        return None
    wanted = sum(length for _, length in metadata) + sum(length for _, ranges in files for _, length in ranges)
    most = room(options.memory)
    done.update(wanted=wanted, started_after=after)
    held = Held(path for path, _ in files) if Held and options.hold > 0 else None
    tight = fetch(device, root, jobs(metadata, files, below, most), options.in_flight, done, held)
    state, seconds = "tight" if tight else "bounded" if most < wanted else "done", round(time.monotonic() - began, 3)
    done.update(state=state, left=max(0, wanted - done["bytes"]), seconds=seconds)
    return None if tight else held


def hydrate(options, state):
    """Hydrate; tell ``state`` what was done. It has failed where there is no device, or by what is raised."""
    after, (head, ranges) = uptime(), read_list(options.list)
    state.enter("waiting")
    device = find_device(head["uuid"], options.wait)
    if device is None:
        print(f"hydrate: no device holds the file system {head['uuid']}, which the list is for")
        state.blocks.update(state="no-device", started_after=after)
        state.enter("failed")
        return
    state.blocks.update(device=device, wanted=sum(length for _, length in ranges), started_after=after)
    if options.boost and take_back:
        threading.Thread(target=take_back, args=(device, state.read, state.boost, uptime, state.write)).start()
    state.enter("loading")
    marks = [time.monotonic()]
    for place in (0, BLOCK - ALIGN) if len(ranges) > 64 and not options.touch else ():  # does one touch load a block?
        read_all(device, [(at + place, ALIGN) for at, _ in ranges[:16]], 16)
        marks.append(time.monotonic())
    quick = marks[2:] and marks[2] - marks[1] < max(marks[1] - marks[0], 0.1) / 2  # then its end is there already
    beside = ThreadPoolExecutor(1)  # where blocks are cold, both wait for the same ones: side by side costs nothing
    fetched = beside.submit(prefetch, options, device, head["uuid"], state.files) if options.memory > 0 else None
    done, end = read_all(device, ranges, options.in_flight, options.touch or (ALIGN if quick else 0), state.blocks)
    ended, seconds = "short-disk" if end < int(head.get("size") or 0) else "done", round(time.monotonic() - marks[0], 3)
    done.update(state=ended, seconds=seconds)
    print(f"hydrate: {done['bytes'] >> 20} MiB of {device} read in {seconds:.1f} s, {done['errors']} errors ({ended})")
    held = None
    if fetched:
        state.enter("prefetching")
        held = fetched.result()
    state.read.set()
    if held:
        held.look(state.files)
    state.enter("done")
    rest = beside.submit(read_rest, device, ranges, end, done) if options.rest else None
    if held:
        os.nice(10)  # pods start meanwhile
        hold(held, options.hold, state.files, lambda: memory()[1])
        state.write()
    if rest:
        rest.result()
        state.write()


def idle():
    """Have this thread and those that it starts go after all others, at the processor and (ioprio_set(2)) the disk."""
    os.nice(19)
    ctypes.CDLL(None).syscall({"x86_64": 251, "aarch64": 30}.get(os.uname().machine, -1), 1, 0, 3 << 13)


def read_rest(device, ranges, end, done):
    """Read what is not in ``ranges`` of a device, after all others."""
    idle()
    began, known = time.monotonic(), {offset for offset, _ in ranges}
    rest, _ = read_all(device, ((at, BLOCK) for at in range(0, end, BLOCK) if at not in known), 4)
    done.update(rest_bytes=rest["bytes"], rest_seconds=round(time.monotonic() - began, 3))
    print(f"hydrate: read the other {rest['bytes'] >> 20} MiB in {done['rest_seconds']:.0f} s")


def main():
    """Read the options, do both, tell; never fail."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in OPTIONS:
        parser.add_argument(name, default=default, type=type(default))
    parser.add_argument("--boost", action="store_true")  # then take the volume, launched raised, back to gp3's own
    parser.add_argument("--rest", action="store_true")  # then read the rest of the device, at low priority
    options = parser.parse_args()
    state = State(options.state, options.metrics)
    try:
        confine()
        threading.Thread(target=state.keep, daemon=True).start()
        hydrate(options, state)
    except Exception as error:  # noqa: BLE001 - whatever it is, the node starts without
        print(f"hydrate: nothing more is read: {type(error).__name__}: {error}")
        state.blocks["state"] = "failed"
        state.enter("failed")
    state.read.set()


if __name__ == "__main__":
    main()

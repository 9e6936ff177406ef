"""Disk images as files: what they are, copies that stay sparse, formats, digests."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event

from parbake.core import atomic, sealed
from parbake.core.errors import BadBase, CommandFailed, DiskFull, InputError, Interrupted
from parbake.core.events import Events, Task
from parbake.core.files import read_file
from parbake.core.model import MIB
from parbake.core.run import run
from parbake.core.workspace import part_of, room_for
from parbake.machine.disk.formats import inspect, name

_FICLONE = 0x40049409  # ioctl_ficlone(2)
# Where copy_file_range(2) does not go between two file systems.
_NO_COPY_RANGE = {errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS}
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
BECAME_SHORTER = "make sure that nothing writes to the file meanwhile"
_CHUNK = 4 * MIB
_COPY_CHUNK = 64 * MIB
_CHECK_GOOD = {0, 3, 63}  # whole; clusters that nothing uses; no check for this format (qemu-img(1))
_MOST_SAID = 1000
# qemu-img's words for our formats. Clouds take streamOptimized VMDK and fixed VHD.
_TARGETS: dict[str, list[str]] = {
    "qcow2": ["-O", "qcow2"],
    "vmdk": ["-O", "vmdk", "-o", "subformat=streamOptimized"],
    "vhd": ["-O", "vpc", "-o", "subformat=fixed,force_size=on"],
}


@dataclass(frozen=True, slots=True)
class DiskFile:
    """A disk image: the digest of the file's bytes, its format in qemu-img's words, and the size of the disk in it."""

    digest: str
    format: str
    virtual_size: int


def describe(image: Path, cache: Path, events: Events) -> DiskFile:
    """Say what a disk image is. The digest of a file that did not change is remembered in ``cache``.

    Raises InputError (missing), BadBase (refers to other files).
    """
    try:
        status = image.stat()
    except OSError as error:
        raise InputError(f"{image}: {error.strerror}", hint="check `base` in the Bakefile") from None
    name = hashlib.sha256(json.dumps(state(image, status)).encode()).hexdigest()
    remembered = part_of(cache, "digests") / f"{name}.json"
    with suppress(OSError, ValueError, TypeError):
        text = read_file(remembered, _MOST_SAID)
        if sealed.is_sealed(remembered, text.decode()):
            return DiskFile(**json.loads(text))
    info = inspect(image)
    found = DiskFile(f"sha256:{sha256_file(image, events)}", info["format"], int(info["virtual-size"]))
    with room_for(remembered):
        text = json.dumps(asdict(found)).encode()
        sealed.seal(remembered, text.decode())
        atomic.replace(remembered, text)
    return found


def state(path: Path, status: os.stat_result) -> list[str | int]:
    """Return what tells a file that did not change from one that did; nobody can set its last part back."""
    return [
        str(path.resolve()), status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns,
    ]  # fmt: skip


def to_raw(source: Path, target: Path, events: Events) -> None:
    """Copy a disk image to a raw, sparse file. Raises BadBase, DiskFull."""
    format_ = inspect(source)["format"]
    if format_ == "raw":
        copy_sparse(source, target, events)
        return
    # Reading proves nothing: what lies behind the end of a file that was cut off reads as zeros.
    checked = run(["qemu-img", "check", name(format_, source)], check=False, timeout=600)
    if checked.code not in _CHECK_GOOD:
        report = f"{checked.stderr}\n{checked.text}".strip()
        raise BadBase(
            f"{source} is damaged or cut off (qemu-img check)\n{report[:_MOST_SAID]}", hint="copy or download it again"
        )
    _qemu_convert(name(format_, source), ["-O", "raw"], target)


def convert(source: Path, target: Path, format_: str) -> None:
    """Convert a raw disk to qcow2, vmdk (streamOptimized) or vhd (fixed). Raises DiskFull, CommandFailed."""
    _qemu_convert(name("raw", source), _TARGETS[format_], target)


def _qemu_convert(source: str, options: list[str], target: Path) -> None:
    with complete_or_absent(target):
        run(["qemu-img", "convert", "-t", "none", "-T", "none", *options, source, str(target.absolute())], timeout=7200)


@contextmanager
def complete_or_absent(target: Path) -> Iterator[None]:
    """Remove ``target`` when the body fails; raises DiskFull when that was the reason."""
    try:
        yield
    except BaseException as error:
        target.unlink(missing_ok=True)
        full = isinstance(error, OSError) and error.errno in _DISK_FULL
        if full or (isinstance(error, CommandFailed) and "No space left" in error.output):
            raise DiskFull(f"no space left for {target}", hint="free some space, or move `output`") from error
        raise


def copy_sparse(source: Path, target: Path, events: Events) -> None:
    """Copy a file: share its blocks where the file system can (reflink), else copy data and keep holes.

    Raises DiskFull. A copy that failed is removed.
    """
    with complete_or_absent(target), source.open("rb") as reader, target.open("wb") as writer:
        if reflink(reader.fileno(), writer.fileno()):
            return
        size = os.fstat(reader.fileno()).st_size
        writer.truncate(size)
        with events.task(f"copy {source.name}", os.fstat(reader.fileno()).st_blocks * 512) as task:
            for start, end in extents(reader.fileno(), size):
                place = start
                while place < end:
                    count = _copy_piece(reader.fileno(), writer.fileno(), place, end - place)
                    if not count:
                        raise InputError(f"{source} shrank while it was copied", hint=BECAME_SHORTER)
                    place += count
                    task.advance(count)


def reflink(source: int, target: int) -> bool:
    """Let an open file share all blocks of another; False where the file system cannot. Raises OSError."""
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError as error:
        if error.errno not in {errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY}:
            raise
        return False
    return True


def _copy_piece(source: int, target: int, place: int, count: int) -> int:
    try:
        return os.copy_file_range(source, target, min(_COPY_CHUNK, count), place, place)
    except OSError as error:
        if error.errno not in _NO_COPY_RANGE:
            raise
    return os.pwrite(target, os.pread(source, min(_CHUNK, count), place), place)


def extents(handle: int, size: int) -> list[tuple[int, int]]:
    """Return where a file has data, as (start, end) pairs."""
    found = []
    place = 0
    while place < size:
        try:
            start = os.lseek(handle, place, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                break
            raise
        place = os.lseek(handle, start, os.SEEK_HOLE)
        found.append((start, place))
    return found


@contextmanager
def sha256_beside(path: Path, events: Events, *, known: str = "") -> Iterator[Callable[[], str]]:
    """Compute the SHA-256 of a file while the body runs: yield what waits for it and returns it as hex digits.

    Nothing goes on behind the body, however that ends, and nothing is read where the digest is ``known``.
    """
    if known:
        yield lambda: known
        return
    stop = Event()
    with ThreadPoolExecutor(1) as pool:
        try:
            yield pool.submit(sha256_file, path, events, stop=stop).result
        finally:
            stop.set()


def sha256_file(path: Path, events: Events, *, stop: Event | None = None) -> str:
    """Return the SHA-256 of a file as hex digits; holes are hashed without being read.

    Raises Interrupted once another thread has set ``stop``, InputError when the file becomes shorter meanwhile.
    """
    digest = hashlib.sha256()
    buffer, zeros = memoryview(bytearray(_CHUNK)), memoryview(bytes(_CHUNK))
    with path.open("rb", buffering=0) as handle:
        size = os.fstat(handle.fileno()).st_size
        with events.task(f"sha256 {path.name}", size) as task:
            place = 0
            for start, end in [*extents(handle.fileno(), size), (size, size)]:
                while place < start:
                    count = min(start - place, _CHUNK)
                    digest.update(zeros[:count])
                    place += count
                    _advance(task, count, stop)
                handle.seek(place)
                while place < end:
                    count = handle.readinto(buffer[: min(_CHUNK, end - place)])
                    if not count:
                        raise InputError(f"{path} shrank while it was read", hint=BECAME_SHORTER)
                    digest.update(buffer[:count])
                    place += count
                    _advance(task, count, stop)
    return digest.hexdigest()


def _advance(task: Task, count: int, stop: Event | None) -> None:
    task.advance(count)
    if stop is not None and stop.is_set():
        raise Interrupted(f"{task.text} was stopped")

"""A cold volume: a disk image behind the model of lazy loading (bench/lazy.py), as a file and as a block device.

    image file -> ColdSource: a FUSE file system that is one file -> loop device with direct I/O

What is written goes into an overlay and is thrown away; writes of whole pages load nothing. Holes are free.

The server speaks the kernel's protocol (linux/fuse.h) itself: one thread waits for requests and for the model's next
answer, so that any number of requests wait at a time, and each is answered when the model says. QEMU's FUSE export and
nbdkit's `cache` filter take one request at a time, and the former answers what it got last first: a cold volume would
look as if nothing helped it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import stat
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from enum import IntEnum
from pathlib import Path
from typing import Self

from bench.lazy import Lazy, Profile
from parbake.core import run
from parbake.core.model import EBS_BLOCK
from parbake.machine import disk

_PAGE = 4096
_PAGES = EBS_BLOCK // _PAGE
_LARGEST = 1 << 20  # bytes of a request: 256 pages, the most that the kernel asks for by default

# linux/fuse.h, version 7.31 of the protocol
_VERSION = 7, 31
_IN, _OUT = struct.Struct("=IIQQIIIHH"), struct.Struct("=IiQ")
_INIT_OUT = struct.Struct("=IIIIHHIIHHII24x")
_INIT_IN = struct.Struct("=IIII")
_ATTR_OUT = struct.Struct("=QII6Q10I")
_OPEN_OUT = struct.Struct("=QIi")
_IO_IN = struct.Struct("=QQII16x")  # fuse_read_in and fuse_write_in begin alike: handle, offset, size, flags
_WRITE_OUT = struct.Struct("=II")


class _Call(IntEnum):
    """What the kernel asks for, as far as it needs an answer of its own."""

    FORGET, GETATTR, SETATTR, OPEN, READ, WRITE, RELEASE = 2, 3, 4, 14, 15, 16, 18
    INIT, INTERRUPT, DESTROY, BATCH_FORGET = 26, 36, 38, 42


_ASYNC_READ, _BIG_WRITES, _ASYNC_DIO, _MAX_PAGES = 1 << 0, 1 << 5, 1 << 15, 1 << 22
# No flush: a child of this process closes what it inherited while Python lets no thread run, so it must not ask us.
_DIRECT_IO, _NO_FLUSH, _PARALLEL_WRITES = 1 << 0, 1 << 5, 1 << 6
_BACKGROUND = 1024  # requests under way: more than anything here sends
_LIBC = ctypes.CDLL(None, use_errno=True)


def data_blocks(image: Path) -> list[int]:
    """Return the numbers of the blocks of a file that are not holes, ascending."""
    found: dict[int, None] = {}
    with image.open("rb") as file:
        end = os.fstat(file.fileno()).st_size
        at = 0
        with suppress(OSError):  # ENXIO: no data any more
            while at < end:
                begin = os.lseek(file.fileno(), at, os.SEEK_DATA)
                at = os.lseek(file.fileno(), begin, os.SEEK_HOLE)
                found.update(dict.fromkeys(range(begin // EBS_BLOCK, -(-at // EBS_BLOCK))))
    return list(found)


class ColdSource:
    """Shows an image as the file ``file``, cold at first; use with ``with``, in a mount namespace of one's own.

    ``hot``: all of it is loaded; ``provisioned`` is in MiB/s (0: none). Raises OSError where FUSE is not to be had.
    """

    def __init__(
        self, image: Path, folder: Path, profile: Profile, *, hot: bool = False, provisioned: float = 0.0
    ) -> None:
        self.file = folder / "disk"
        self.size = image.stat().st_size
        self.model = Lazy(profile, [] if hot else data_blocks(image), provisioned=provisioned)
        self._image, self._folder = image, folder
        self._written = bytearray(-(-self.size // _PAGE))  # a 1 for each page of which the overlay has the content
        self._buffer = memoryview(bytearray(_LARGEST + _PAGE))
        self._stack = ExitStack()

    @property
    def loaded(self) -> int:
        """How many blocks were fetched because they were touched."""
        return self.model.loaded

    def attach(self) -> None:
        """Begin the time of a provisioned rate."""
        self.model.began = time.monotonic()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._base = self._open(stack, self._image, os.O_RDONLY)
            overlay = self._folder / "overlay"
            self._overlay = self._open(stack, overlay, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            overlay.unlink()
            self._fuse = self._open(stack, Path("/dev/fuse"), os.O_RDWR | os.O_NONBLOCK)
            self._told, tell = os.pipe2(os.O_CLOEXEC)
            stack.callback(os.close, self._told)
            self.file.touch()
            options = f"fd={self._fuse},rootmode={stat.S_IFREG | 0o600:o},user_id=0,group_id=0,allow_other"
            if _LIBC.mount(b"parbake-cold", bytes(self.file), b"fuse", 0, f"{options},max_read={_LARGEST}".encode()):
                raise OSError(ctypes.get_errno(), "cannot mount a FUSE file system", str(self.file))
            stack.callback(run.run, ["umount", "--lazy", "--quiet", str(self.file)], check=False)
            server = threading.Thread(target=self._serve, name="cold-volume", daemon=True)
            server.start()
            stack.callback(server.join)
            stack.callback(os.close, tell)  # the server ends
            self.attach()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @staticmethod
    def _open(stack: ExitStack, path: Path, flags: int) -> int:
        handle = os.open(path, flags | os.O_CLOEXEC, 0o600)
        stack.callback(os.close, handle)
        return handle

    # -- the server's thread

    def _serve(self) -> None:
        while True:
            due = self.model.run(time.monotonic())
            patience = None if due is None else max(0.0, due - time.monotonic())
            ready, _, _ = select.select([self._fuse, self._told], [], [], patience)
            if self._told in ready:
                return
            if self._fuse in ready:
                with suppress(BlockingIOError, FileNotFoundError):  # ENOENT: it was interrupted meanwhile
                    try:
                        size = os.readv(self._fuse, [self._buffer])
                    except OSError as error:
                        if error.errno == errno.ENODEV:  # unmounted
                            return
                        raise
                    self._handle(self._buffer[:size])

    def _handle(self, request: memoryview) -> None:
        _, kind, unique, *_ = _IN.unpack_from(request)
        body = request[_IN.size :]
        match kind:
            case _Call.READ:
                _, offset, size, _ = _IO_IN.unpack_from(body)
                self._read(unique, offset, max(0, min(size, self.size - offset)))
            case _Call.WRITE:
                _, offset, size, _ = _IO_IN.unpack_from(body)
                self._write(unique, offset, bytes(body[_IO_IN.size : _IO_IN.size + size]))
            case _Call.OPEN:
                self._answer(unique, _OPEN_OUT.pack(0, _DIRECT_IO | _NO_FLUSH | _PARALLEL_WRITES, 0))
            case _Call.GETATTR | _Call.SETATTR:
                numbers = (0, 0, 0, stat.S_IFREG | 0o600, 1, 0, 0, 0, _PAGE, 0)
                self._answer(unique, _ATTR_OUT.pack(1 << 30, 0, 0, 1, self.size, self.size >> 9, 0, 0, 0, *numbers))
            case _Call.INIT:
                _, _, ahead, flags = _INIT_IN.unpack_from(body)
                flags &= _ASYNC_READ | _BIG_WRITES | _ASYNC_DIO | _MAX_PAGES
                pages = _LARGEST // _PAGE
                sizes = (_BACKGROUND, _BACKGROUND, _LARGEST, 1, pages, 0, 0, 0)
                self._answer(unique, _INIT_OUT.pack(*_VERSION, ahead, flags, *sizes))
            case _Call.RELEASE | _Call.DESTROY:
                self._answer(unique)
            case _Call.FORGET | _Call.BATCH_FORGET | _Call.INTERRUPT:  # they take no answer
                pass
            case _:
                self._answer(unique, error=errno.ENOSYS)

    def _answer(self, unique: int, body: bytes = b"", error: int = 0) -> None:
        with suppress(FileNotFoundError):  # it was interrupted: nobody waits any more
            os.writev(self._fuse, [_OUT.pack(_OUT.size + len(body), -error, unique), body])

    def _read(self, unique: int, offset: int, size: int) -> None:
        pages = range(offset // _PAGE, -(-(offset + size) // _PAGE))
        self._ask(self._needed(pages), size, lambda: self._answer(unique, self._content(offset, size)))

    def _write(self, unique: int, offset: int, data: bytes) -> None:
        first, last = offset // _PAGE, -(-(offset + len(data)) // _PAGE)
        # Of pages that are written in part the rest must be there.
        torn = {page for page, torn in ((first, offset % _PAGE), (last - 1, (offset + len(data)) % _PAGE)) if torn}

        def put() -> None:
            for page in torn:
                if not self._written[page]:
                    os.pwrite(self._overlay, os.pread(self._base, _PAGE, page * _PAGE), page * _PAGE)
            os.pwrite(self._overlay, data, offset)
            self._written[first:last] = b"\1" * (last - first)
            self._answer(unique, _WRITE_OUT.pack(len(data), 0))

        self._ask(self._needed(torn), len(data), put)

    def _needed(self, pages: Iterable[int]) -> list[int]:
        """Return the blocks, ascending, that hold pages which were not written."""
        if isinstance(pages, range) and self._written.find(1, pages.start, pages.stop) < 0:
            return list(range(pages.start // _PAGES, -(-pages.stop // _PAGES)))
        return sorted({page // _PAGES for page in pages if not self._written[page]})

    def _ask(self, blocks: list[int], size: int, do: Callable[[], None]) -> None:
        for block in blocks:  # that the host's own disk is slow is no part of the model
            os.posix_fadvise(self._base, block * EBS_BLOCK, EBS_BLOCK, os.POSIX_FADV_WILLNEED)
        self.model.ask(time.monotonic(), blocks, size, do)

    def _content(self, offset: int, size: int) -> bytes:
        first, last = offset // _PAGE, -(-(offset + size) // _PAGE)
        if self._written.find(1, first, last) < 0:
            return os.pread(self._base, size, offset)
        pages = (
            os.pread(self._overlay if self._written[page] else self._base, _PAGE, page * _PAGE)
            for page in range(first, last)
        )
        return b"".join(pages)[offset - first * _PAGE :][:size]


@contextmanager
def attached(source: ColdSource) -> Iterator[str]:
    """Yield a block device that reads from a source, and ahead as a node's disk does. Its time begins now."""
    with disk.loop_device(source.file) as device:
        disk.read_ahead(device)
        source.attach()
        yield device

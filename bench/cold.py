"""A cold volume: a disk image behind a model of lazy loading, as a block device.

    image file -> ColdSource (an NBD server of ours: the model) -> qemu-storage-daemon (the volume's throughput, and an
    overlay for writes) -> FUSE -> loop device with direct I/O

The model, whose figures are those of public reports and not of AWS:

- The unit of loading is a block of 512 KiB. The first touch of any byte of it loads all of it; holes are free.
- A first touch takes ``latency`` (a median; single ones scatter), at most ``in_flight`` are under way at a time, and
  together they get ``rate`` MiB/s. What is loaded costs nothing more here.
- Writes of whole pages load nothing.
- All reads and writes together get 125 MiB/s, as a gp3 volume gives without extra charge.
- A provisioned rate loads the blocks with data in ascending order from the attachment on, beside what is touched.

This is a server of our own and not nbdkit with its filters because a provisioned rate, free holes and a limit of cold
requests alone cannot be put together from those.
"""

from __future__ import annotations

import os
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from parbake import disk, run
from parbake.model import MIB
from parbake.trace.data import BLOCK

HOT_RATE = 125  # MiB/s
_THREADS = 128
_HANDSHAKE = struct.Struct(">8s8sH")
_OPTION = struct.Struct(">8sII")
_OPTION_REPLY = struct.Struct(">QIII")
_REQUEST = struct.Struct(">IHHQQI")
_REPLY = struct.Struct(">IIQ")
_MAGIC, _OPTION_MAGIC, _REPLY_MAGIC = b"NBDMAGIC", b"IHAVEOPT", 0x3E889045565A9
_EXPORT_NAME, _ABORT, _INFO, _GO = 1, 2, 6, 7
_ACK, _REP_INFO, _UNSUPPORTED = 1, 3, (1 << 31) + 1
_READ, _DISCONNECT, _FLUSH = 0, 2, 3
_FLAGS = 1 | 2 | 4 | 256  # has flags, read-only, flush, several connections


@dataclass(frozen=True)
class Profile:
    """How a cold volume behaves: seconds of a first touch, how many at a time, MiB/s of all together."""

    name: str
    latency: float
    in_flight: int
    rate: float


PROFILES = {
    "mild": Profile("mild", 0.020, 32, 80.0),
    "harsh": Profile("harsh", 0.035, 16, 40.0),
}


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
                found.update(dict.fromkeys(range(begin // BLOCK, -(-at // BLOCK))))
    return list(found)


class ColdSource:
    """Serves a file by NBD on a Unix socket, cold at first; use with ``with``.

    ``profile`` None serves it hot. ``provisioned`` is in MiB/s (0: none). ``loaded`` counts blocks that were fetched.
    """

    def __init__(self, image: Path, folder: Path, profile: Profile | None, *, provisioned: float = 0.0) -> None:
        self.socket = folder / "cold.sock"
        self.loaded = 0
        self._profile, self._provisioned = profile, provisioned
        self._image = image
        order = data_blocks(image) if profile else []
        self._place = {block: place for place, block in enumerate(order)}  # of what is not loaded yet
        self._loading: dict[int, threading.Event] = {}
        self._lock = threading.Lock()
        self._slots = threading.Semaphore(profile.in_flight if profile else 1)
        self._free_at = 0.0
        self._began = 0.0
        self._stack = ExitStack()
        self._file = -1
        self.size = image.stat().st_size
        self._pool = ThreadPoolExecutor(_THREADS)

    def __enter__(self) -> Self:
        self._file = os.open(self._image, os.O_RDONLY | os.O_CLOEXEC)
        self._stack.callback(os.close, self._file)
        self._stack.callback(self._pool.shutdown, cancel_futures=True)
        listener = socket.socket(socket.AF_UNIX)
        self._stack.callback(listener.close)
        self.socket.unlink(missing_ok=True)
        listener.bind(str(self.socket))
        listener.listen()
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
        self.attach()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def attach(self) -> None:
        """Begin the time of a provisioned rate."""
        self._began = time.monotonic()

    # -- the model

    def _load(self, block: int) -> None:
        """Return when a block is loaded; of several who ask for it, one fetches."""
        profile = self._profile
        if profile is None:
            return
        with self._lock:
            place = self._place.get(block)
            if place is None or place * BLOCK < self._provisioned * MIB * (time.monotonic() - self._began):
                return
            others, mine = self._loading.get(block), threading.Event()
            if others is None:
                self._loading[block] = mine
        if others is not None:
            others.wait()
            return
        with self._slots:
            scatter = random.Random(block).lognormvariate(0.0, 0.3)  # noqa: S311 - the same in every run
            time.sleep(profile.latency * scatter)
            with self._lock:
                now = time.monotonic()
                self._free_at = max(self._free_at, now) + BLOCK / MIB / profile.rate
                wait = self._free_at - now
            time.sleep(wait)
        with self._lock:
            del self._place[block]
            del self._loading[block]
            self.loaded += 1
        mine.set()

    # -- the protocol (NetworkBlockDevice/nbd, doc/proto.md), as far as QEMU needs it

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError, EOFError, RuntimeError):
            if not self._agree(connection):
                return
            sending = threading.Lock()
            while True:
                _, _, kind, cookie, offset, length = _REQUEST.unpack(_exactly(connection, _REQUEST.size))
                if kind == _DISCONNECT:
                    return
                self._pool.submit(self._answer, connection, sending, kind, cookie, offset, length)

    def _agree(self, connection: socket.socket) -> bool:
        connection.sendall(_HANDSHAKE.pack(_MAGIC, _OPTION_MAGIC, 3))
        _exactly(connection, 4)
        export = struct.pack(">QH", self.size, _FLAGS)
        while True:
            _, option, length = _OPTION.unpack(_exactly(connection, _OPTION.size))
            _exactly(connection, length)
            if option == _EXPORT_NAME:
                connection.sendall(export)
                return True
            if option in {_INFO, _GO}:
                told = struct.pack(">H", 0) + export
                connection.sendall(_OPTION_REPLY.pack(_REPLY_MAGIC, option, _REP_INFO, len(told)) + told)
            known = option in {_ABORT, _INFO, _GO}
            connection.sendall(_OPTION_REPLY.pack(_REPLY_MAGIC, option, _ACK if known else _UNSUPPORTED, 0))
            if option in {_ABORT, _GO}:
                return bool(option == _GO)

    def _answer(
        self, connection: socket.socket, sending: threading.Lock, kind: int, cookie: int, offset: int, length: int
    ) -> None:
        data, error = b"", 0
        if kind == _READ:
            for block in range(offset // BLOCK, -(-(offset + length) // BLOCK)):
                self._load(block)
            data = os.pread(self._file, length, offset)
        elif kind != _FLUSH:
            error = 1  # EPERM
        with sending, suppress(OSError):
            connection.sendall(_REPLY.pack(0x67446698, error, cookie))
            connection.sendall(data)


def _exactly(connection: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        part = connection.recv(count - len(data))
        if not part:
            raise EOFError
        data += part
    return bytes(data)


@contextmanager
def shown(source: ColdSource, folder: Path) -> Iterator[Path]:
    """Yield a raw file that reads from a source; what is written is thrown away. Its time begins now."""
    overlay, file = folder / "overlay.qcow2", folder / "disk"
    # Parts of 4 KiB: a write of whole pages reads nothing of the cold volume for what stands around it.
    options = ["-o", "cluster_size=128k,extended_l2=on"]
    run.run(["qemu-img", "create", "-q", "-f", "qcow2", *options, str(overlay), str(source.size)])
    file.touch()
    command = [
        "qemu-storage-daemon",
        "--object", f"throttle-group,id=volume,x-bps-total={HOT_RATE * MIB}",
        "--blockdev", f"driver=nbd,node-name=cold,server.type=unix,server.path={source.socket},read-only=on",
        "--blockdev", f"driver=file,node-name=file,filename={overlay},cache.no-flush=on",
        "--blockdev", "driver=qcow2,node-name=overlay,file=file,backing=cold",
        "--blockdev", "driver=throttle,node-name=volume,throttle-group=volume,file=overlay",
        "--export", f"type=fuse,id=disk,node-name=volume,mountpoint={file},writable=on",
    ]  # fmt: skip
    try:
        with run.Process(command, log=folder / "storage.log") as daemon:
            deadline = run.Deadline(20, "the cold volume")
            while not file.stat().st_size:
                daemon.check_alive()
                deadline.sleep(0.01)
            source.attach()
            yield file
    finally:
        run.run(["umount", "--lazy", "--quiet", str(file)], check=False)
        overlay.unlink(missing_ok=True)


@contextmanager
def attached(source: ColdSource, folder: Path) -> Iterator[str]:
    """Yield a block device that reads from a source (see ``shown``)."""
    with shown(source, folder) as file, disk.loop_device(file) as device:
        source.attach()
        yield device

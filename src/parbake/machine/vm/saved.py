"""A machine's state, kept in a folder: what QEMU's migration says of memory and devices, and the overlay of its root.

QEMU writes the state into a pipe and reads it from one: it is packed and checked (zstd, with a checksum) on our side,
and QEMU opens no file of it. Pages of zeros are not in it. Sources: QEMU's ``docs/devel/migration/main.rst``; its QMP
reference, ``migrate``, ``migrate-set-parameters`` and ``getfd``; its manual, ``-incoming``.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, Self

from parbake.core import run
from parbake.core.errors import MachineError
from parbake.core.model import MIB

if TYPE_CHECKING:
    from parbake.machine.vm.qmp import Qmp

LARGEST: Final = 512 * MIB
"""The most bytes of a packed state: a tenth of that is usual."""

_LEVEL: Final = 1
_CHUNK: Final = 64 << 10
_AT_ONCE: Final = 1 << 40  # bytes in a second: QEMU's own limit is for networks
_POLL: Final = 0.05
_LIMIT: Final = 300.0  # seconds to write it


@dataclass(frozen=True, slots=True)
class Saved:
    """A folder with the state of a machine."""

    folder: Path

    @property
    def memory(self) -> Path:
        """What QEMU wrote of memory and devices, packed."""
        return self.folder / "memory.zst"

    @property
    def root(self) -> Path:
        """What the guest wrote to its root until then, packed: a qcow2 overlay of the disk that it booted from."""
        return self.folder / "root.qcow2.zst"

    @property
    def age(self) -> float:
        """Seconds that the machine had run; raises OSError, and MachineError where it is no number."""
        try:
            return float(self._age.read_text())
        except ValueError as error:
            raise MachineError(f"the state of the machine is damaged: {error}") from error

    def write_age(self, seconds: float) -> None:
        """Note how long the machine has run."""
        self._age.write_text(f"{seconds:.3f}\n")

    @property
    def _age(self) -> Path:
        return self.folder / "age"


def write_memory(qmp: Qmp, target: Path) -> None:
    """Have QEMU, whose machine stands still, write memory and devices, packed, into a new file.

    Raises MachineError, DeadlineExceeded, OSError.
    """
    ours, theirs = os.pipe()
    with os.fdopen(ours, "rb", buffering=0) as source:
        try:
            qmp.lend("state", theirs)
        finally:
            os.close(theirs)
        packing = _Packing(source, target)
        packing.start()
        try:
            qmp.execute("migrate-set-parameters", **{"max-bandwidth": _AT_ONCE})
            qmp.execute("migrate", uri="fd:state")
            deadline = run.Deadline(_LIMIT, "writing the state of a machine")
            while (status := qmp.execute("query-migrate").get("status")) not in {"completed", "failed", "cancelled"}:
                deadline.sleep(_POLL)
        except BaseException:
            with suppress(MachineError):
                qmp.execute("migrate_cancel")
                qmp.execute("closefd", fdname="state")  # where it was never used
            raise
        finally:
            packing.join()
    if packing.failure is not None:
        raise packing.failure
    if status != "completed":
        raise MachineError(f"QEMU did not write the state of the machine ({status})")


class _Packing(threading.Thread):
    """Packs what comes from a pipe into a file. Who writes into the pipe never waits for long, whatever goes wrong."""

    def __init__(self, source: IO[bytes], target: Path) -> None:
        super().__init__(name="state", daemon=True)
        self.failure: MachineError | OSError | None = None
        self._source, self._target = source, target

    def run(self) -> None:
        """Pack until the pipe ends."""
        try:
            pack(self._source, self._target)
        except (MachineError, OSError) as error:
            self.failure = error
            while self._source.read(_CHUNK):
                pass


def pack(source: IO[bytes], target: Path) -> None:
    """Pack a stream into a new file; raises MachineError when that gets larger than ``LARGEST``, OSError."""
    import zstandard  # only for who keeps a state

    packer = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True)
    with target.open("xb") as file, packer.stream_writer(file, closefd=False) as packed:
        while data := source.read(_CHUNK):
            packed.write(data)
            if file.tell() > LARGEST:
                raise MachineError(f"the state of the machine is larger than {LARGEST // MIB} MiB")


def unpack(packed: IO[bytes], target: IO[bytes]) -> None:
    """Unpack a file into a stream; raises MachineError when it is damaged (some of it is out by then), OSError."""
    import zstandard  # only for who resumes

    unpacking = zstandard.ZstdDecompressor().decompressobj()
    try:
        for data in iter(partial(packed.read, _CHUNK), b""):
            target.write(unpacking.decompress(data))
        target.flush()
    except zstandard.ZstdError as error:
        raise MachineError(f"the state of the machine is damaged: {error}") from error
    if not unpacking.eof:
        raise MachineError("the state of the machine ends early")


class MemoryReader:
    """Unpacks a memory into a pipe that QEMU reads (``handle``). Use with ``with``; raises OSError where it is gone."""

    def __init__(self, memory: Path) -> None:
        self.handle = -1
        self._memory = memory
        self._failure: MachineError | OSError | None = None
        self._thread: threading.Thread

    def __enter__(self) -> Self:
        file = self._memory.open("rb")
        self.handle, theirs = os.pipe()
        self._thread = threading.Thread(target=self._unpack, args=(file, theirs), name="state", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self._thread.join()

    def close(self) -> None:
        """Close our copy of QEMU's end: from then on the thread ends when QEMU does."""
        handle, self.handle = self.handle, -1
        if handle >= 0:
            os.close(handle)

    def check(self) -> None:
        """Raise MachineError unless QEMU, which says that it has read all, has read what was written once."""
        self._thread.join(_LIMIT)
        if self._failure is not None:
            raise MachineError(f"the machine's memory was not read: {self._failure}") from self._failure

    def _unpack(self, file: IO[bytes], target: int) -> None:
        try:
            with file, os.fdopen(target, "wb") as pipe:
                unpack(file, pipe)
        except (MachineError, OSError) as error:
            self._failure = error

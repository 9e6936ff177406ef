"""The engine: a layer's compressed bytes become files, verified on both sides, in one pass.

Four threads, each with one kind of work that runs without the interpreter's lock: receive and hash the compressed
bytes, inflate, hash the tar, write files. Rings of buffers between them bound the memory. ``docs/engine.md`` says why
it is built so, with measurements.
"""

from __future__ import annotations

import errno
import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from parbake.errors import BadContent, DiskFull, LayerBomb, LayerError, ParbakeError
from parbake.layers import inflate
from parbake.layers.archive import Archive, Chunks
from parbake.layers.paths import Implied, shown
from parbake.layers.ring import Failure, Ring, Stopped
from parbake.layers.tree import PendingLink

if TYPE_CHECKING:
    from parbake.layers.sinks import Sink
    from parbake.model import Layer, Progress, Readable

MOST_ENTRIES: Final = 10_000_000
"""Headers that a layer may have: ten times what the largest known images have."""

# Sizes in bytes, chosen by measurement (docs/engine.md).
_RECEIVE_SLOTS, _RECEIVE_SIZE = 6, 256 << 10
_RAW_SLOTS, _RAW_SIZE = 6, 1 << 20


class Keeper(Protocol):
    """Takes a copy of the compressed bytes: an open file, or anything else that can be written to."""

    def write(self, data: memoryview, /) -> object:
        """Take all of ``data``, which is valid only during the call."""
        ...


@dataclass(frozen=True, slots=True)
class Unpacked:
    """What came out of a layer, and what waits for the layers below (``settle``).

    ``entries`` counts what was applied, ``raw_size`` the bytes of the tar. ``implied`` are folders that no entry
    described when they were made, and what entries said later; ``pending`` are hard links to files that this layer
    does not hold.
    """

    entries: int
    raw_size: int
    implied: tuple[tuple[bytes, Implied], ...] = ()
    pending: tuple[PendingLink, ...] = ()


def unpack(
    stream: Readable, layer: Layer, sink: Sink, *, bound: int, progress: Progress, keep: Keeper | None = None
) -> Unpacked:
    """Unpack one layer into a sink, in the form of an overlayfs upper directory.

    ``bound`` is how many bytes the tar may have; ``progress`` counts compressed bytes; ``keep`` gets a copy of them.
    The root folder itself stays as it is, as in containerd. Call ``settle`` (or ``settle_nodes``) afterwards. On any
    error the sink may be half-written: the caller throws it away.

    Raises BadContent (digest, size or diffID do not match), LayerEscape, LayerBomb, LayerError, DiskFull.
    """
    return _Unpacking(layer, sink, bound, progress, keep).run(stream)


class _Unpacking:
    def __init__(self, layer: Layer, sink: Sink, bound: int, progress: Progress, keep: Keeper | None) -> None:
        self._layer, self._sink, self._bound, self._progress, self._keep = layer, sink, bound, progress, keep
        self._received = Ring(_RECEIVE_SLOTS, _RECEIVE_SIZE)
        self._raw = Ring(_RAW_SLOTS, _RAW_SIZE, consumers=2)
        self._failure = Failure(self._received, self._raw)
        self._raw_size = 0
        self._diff_id = ""
        self._unpacked: Unpacked | None = None

    def run(self, stream: Readable) -> Unpacked:
        works = (self._inflate, self._hash, self._write)
        threads = [threading.Thread(target=self._failure.guard(work), name=f"layer{work.__name__}") for work in works]
        for thread in threads:
            thread.start()
        try:
            self._receive(stream)
        except BaseException as error:
            self._failure.report(error)
            raise
        finally:
            for thread in threads:
                thread.join()
        if self._failure.error is not None:
            raise self._failure.error
        if self._diff_id != self._layer.diff_id:
            raise BadContent(
                f"layer {self._layer.digest}: unpacks to {self._diff_id}, its image promises {self._layer.diff_id}",
                hint="the image was put together wrongly: build and push it again",
            )
        if self._unpacked is None:
            raise LayerError(f"layer {self._layer.digest}: nothing was unpacked")
        return self._unpacked

    # -- the calling thread

    def _receive(self, stream: Readable) -> None:
        ring, layer = self._received, self._layer
        digest = hashlib.sha256()
        size = 0
        buffer = spare = memoryview(b"")  # spare: where bytes go that nobody inflates any more
        ended = False
        while not ended:
            if not spare:
                try:
                    buffer = ring.vacant()
                except Stopped:
                    # What cannot be inflated is most likely damaged: read on, so that the error can say so.
                    if type(self._failure.error) is not LayerError:
                        return
                    buffer = spare = memoryview(bytearray(_RECEIVE_SIZE))
            count = inflate.fill(stream, buffer)
            ended = count < len(buffer)
            digest.update(buffer[:count])
            size += count
            if size > layer.size:
                raise self._wrong(f"more than the {layer.size} bytes that its manifest promises")
            if self._keep is not None:
                self._keep.write(buffer[:count])
            self._progress(count)
            if count and not spare:
                ring.publish(count)
        if size != layer.size:
            raise self._wrong(f"{size} bytes arrived, its manifest promises {layer.size}")
        if (found := f"sha256:{digest.hexdigest()}") != layer.digest:
            raise self._wrong(f"the bytes that arrived have the digest {found}")
        ring.publish(0)

    # -- the other threads

    def _inflate(self) -> None:
        try:
            self._inflate_all(inflate.inflater(_Feed(self._received.reader())))
        except inflate.ERRORS as error:
            raise LayerError(
                f"layer {self._layer.digest}: cannot be inflated ({error})",
                hint="the layer is damaged, or in a format that is not gzip, zstd or plain tar: push the image again",
            ) from error

    def _inflate_all(self, reader: inflate.Inflater) -> None:
        size = 0
        while True:
            buffer = self._raw.vacant()
            count = inflate.fill(reader, buffer)
            size += count
            if size > self._bound:
                raise LayerBomb(
                    f"layer {self._layer.digest}: inflates to more than {self._bound} bytes",
                    hint="it claims to be far smaller: do not use this image, or raise the bound on purpose",
                )
            if count:
                self._raw.publish(count)
            if count < len(buffer):
                self._raw_size = size
                self._raw.publish(0)
                return

    def _hash(self) -> None:
        digest = hashlib.sha256()
        more = self._raw.reader(0)
        while (view := more()) is not None:
            digest.update(view)
        self._diff_id = f"sha256:{digest.hexdigest()}"

    def _write(self) -> None:
        chunks = Chunks(self._raw.reader(1))
        archive = Archive(chunks, most_entries=MOST_ENTRIES)
        overlay = self._layer.chain_id != self._layer.diff_id
        with self._sink.opened(archive, overlay=overlay, bound=self._bound) as tree:
            try:
                while (entry := archive.next()) is not None:
                    tree.apply(entry)
                while chunks.pass_on():  # what follows the archive's end is hashed and no more
                    pass
                tree.finish()
            except OSError as error:
                raise self._failed(error, tree.now) from error
            except ValueError as error:  # a NUL in a name
                raise LayerError(f"layer {self._layer.digest}: {shown(tree.now)}: {error}") from error
            except LayerError as error:
                error.message = f"layer {self._layer.digest}: {error.message}"
                error.args = (error.message,)
                raise
            implied, pending = tuple(tree.implied.items()), tuple(tree.pending.values())
            self._unpacked = Unpacked(tree.entries, self._raw_size, implied, pending)

    def _failed(self, error: OSError, name: bytes) -> ParbakeError:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            return DiskFull(
                f"no space left below {self._sink.name} while unpacking layer {self._layer.digest} ({shown(name)})",
                hint="free some space, or give the artefact a larger size",
            )
        if error.errno == errno.E2BIG:
            return LayerError(
                f"layer {self._layer.digest}: {shown(name)}: its extended attributes are larger than a file may have",
                hint="ext4 holds about 4 KB for each file, xfs 64 KB for each attribute",
            )
        return LayerError(f"layer {self._layer.digest}: {shown(name)}: {error.strerror}")

    def _wrong(self, what: str) -> BadContent:
        return BadContent(f"layer {self._layer.digest}: {what}", hint="try again; if it stays so, push the image again")


class _Feed:
    """The compressed bytes of a ring as a file that an inflater reads (``inflate.Feed``)."""

    def __init__(self, more: Callable[[], memoryview | None]) -> None:
        self._more = more
        self._view = memoryview(b"")

    def _current(self) -> memoryview:
        while not self._view:
            if (view := self._more()) is None:
                return memoryview(b"")
            self._view = view
        return self._view

    def peek(self) -> bytes:
        return bytes(self._current()[:4])

    def readinto(self, buffer: memoryview, /) -> int:
        view = self._current()
        count = min(len(view), len(buffer))
        buffer[:count] = view[:count]
        self._view = view[count:]
        return count

    def read(self, size: int = -1, /) -> memoryview:
        view = self._current()
        if 0 <= size < len(view):
            self._view = view[size:]
            return view[:size]
        self._view = memoryview(b"")
        return view

"""The engine: a layer's compressed bytes become files, verified on both sides, in one pass.

A large layer has four threads, each with one kind of work that runs without the interpreter's lock: receive and hash
the compressed bytes, inflate, hash the tar, write files. Rings of buffers between them bound the memory. A small layer
goes through the same stages in the calling thread, since handing it on would cost more than it wins.
``docs/explanation/engine.md`` says why it is built so, with measurements.
"""

from __future__ import annotations

import errno
import hashlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

from parbake.core.errors import BadContent, DiskFull, LayerBomb, LayerError, LayerTooLarge, ParbakeError
from parbake.images.bounds import most_inflated
from parbake.images.layers import inflate
from parbake.images.layers.archive import Archive, Chunks
from parbake.images.layers.paths import Implied, shown
from parbake.images.layers.ring import FirstFailure, Ring, Stopped, memory

if TYPE_CHECKING:
    from parbake.core.sources import Progress, Readable
    from parbake.images.layers.sinks import Sink

MOST_ENTRIES: Final = 2_000_000
"""Headers that a layer may have: twice what the largest known images have in all. A tree of files takes about 450 bytes
of memory for each until it is written."""

_SIZE: Final = (
    "do not use the image if it claims to be far smaller than it is; otherwise give the artefact a larger `size`"
)

# Sizes in bytes, chosen by measurement (docs/explanation/engine.md).
SMALL: Final = 8 << 20
"""Compressed bytes of the largest layer that one thread unpacks, which holds all of them in memory."""
_RECEIVE_SLOTS, _RECEIVE_SIZE = 6, 256 << 10
_RAW_SLOTS, _RAW_SIZE = 6, 1 << 20


class ExpectedLayer(Protocol):
    """What is known of a layer before its first byte (``core.model.Layer``): what travels, and what comes out of it."""

    @property
    def digest(self) -> str: ...  # noqa: D102
    @property
    def size(self) -> int: ...  # noqa: D102
    @property
    def diff_id(self) -> str: ...  # noqa: D102
    @property
    def chain_id(self) -> str: ...  # noqa: D102


class BlobCopy(Protocol):
    """Takes a copy of the compressed bytes: an open file, or anything else that can be written to."""

    def write(self, data: memoryview, /) -> object:
        """Take all of ``data``, which is valid only during the call."""
        ...


@dataclass(frozen=True, slots=True)
class Unpacked:
    """What came out of a layer, and what waits for the layers below (``complete_folder``).

    ``entries`` counts what was applied, ``raw_size`` the bytes of the tar. ``implied`` are folders that no entry
    described when they were made, and what entries said later.
    """

    entries: int
    raw_size: int
    implied: tuple[tuple[bytes, Implied], ...] = ()


class Bytes(Protocol):
    """What a layer's tar takes its bytes from (``Allowance``)."""

    def take(self, count: int) -> None:
        """Take ``count`` bytes; raises LayerTooLarge when there are none left."""
        ...


class Allowance:
    """How many bytes the tars of several layers may have together. Thread-safe."""

    def __init__(self, most: int) -> None:
        self._most = self._left = most
        self._lock = threading.Lock()

    def take(self, count: int) -> None:
        """Take ``count`` bytes; raises LayerTooLarge when there are none left."""
        with self._lock:
            if count > self._left:  # what is left stays for smaller layers, which are not to blame
                raise LayerTooLarge(
                    f"this layer and those before it inflate to more than {self._most} bytes", hint=_SIZE
                )
            self._left -= count


def unpack(
    stream: Readable,
    layer: ExpectedLayer,
    sink: Sink,
    *,
    bound: int,
    progress: Progress,
    allowance: Bytes | None = None,
    keep: BlobCopy | None = None,
) -> Unpacked:
    """Unpack one layer into a sink, in the form of an overlayfs upper directory.

    ``bound`` is how many bytes the disk can hold, and with it the tar and its sparse files; the tar may not have more
    than ``most_inflated`` of the layer's compressed size either, and takes its bytes from the ``allowance``.
    ``progress`` counts compressed bytes; ``keep`` gets a copy of them.
    The root folder itself stays as it is, as in containerd. Call ``complete_folder`` (or ``complete_tree``) afterwards.
    On any error the sink may be half-written: the caller throws it away.

    Raises BadContent (digest, size or diffID do not match), LayerEscape, LayerBomb (LayerTooLarge), LayerError,
    DiskFull.
    """
    return _Unpacking(layer, sink, bound, allowance).run(_Compressed(stream, layer, progress, keep))


class _Unpacking:
    def __init__(self, layer: ExpectedLayer, sink: Sink, bound: int, allowance: Bytes | None) -> None:
        self._layer, self._sink, self._bound, self._allowance = layer, sink, bound, allowance
        self._digest = hashlib.sha256()
        self._unpacked: Unpacked | None = None

    def run(self, compressed: _Compressed) -> Unpacked:
        try:
            if self._layer.size <= SMALL:
                self._in_turn(compressed)
            else:
                self._in_threads(compressed)
        except LayerError as error:
            error.message = f"layer {self._layer.digest}: {error.message}"
            error.args = (error.message,)
            raise
        if (diff_id := f"sha256:{self._digest.hexdigest()}") != self._layer.diff_id:
            raise BadContent(
                f"layer {self._layer.digest}: unpacks to {diff_id}, but its image promises {self._layer.diff_id}",
                hint="the image is inconsistent: build and push it again",
            )
        if self._unpacked is None:
            raise LayerError(f"layer {self._layer.digest}: nothing was unpacked")
        return self._unpacked

    def _in_turn(self, compressed: _Compressed) -> None:
        whole = iter((compressed.whole(),))
        tar = self._tar(_Feed(lambda: next(whole, None)))
        buffer = memoryview(bytearray(_RAW_SIZE))

        def more() -> memoryview | None:
            view = buffer[: tar.readinto(buffer)]
            self._digest.update(view)
            return view or None

        self._apply(Chunks(more), tar)

    def _in_threads(self, compressed: _Compressed) -> None:
        received, raw = Ring(compressed.buffers()), Ring(memory(_RAW_SLOTS, _RAW_SIZE), consumers=2)
        failure = FirstFailure(received, raw)
        tar = self._tar(_Feed(received.reader()))
        works = {
            "inflate": partial(raw.pump, tar.readinto),
            "hash": partial(self._hash, raw.reader(0)),
            "write": partial(self._apply, Chunks(raw.reader(1)), tar),
        }
        threads = [threading.Thread(target=failure.guard(work), name=f"layer_{name}") for name, work in works.items()]
        for thread in threads:
            thread.start()
        try:
            received.pump(compressed.readinto)
        except Stopped:
            # What cannot be inflated is most likely damaged: then the digest says so, and that is the error.
            if type(failure.error) is LayerError:
                compressed.drain()
        except BaseException as error:
            failure.report(error)
            raise
        finally:
            for thread in threads:
                thread.join()
        if failure.error is not None:
            raise failure.error

    def _tar(self, feed: inflate.Feed) -> _Tar:
        return _Tar(feed, most_inflated(self._layer.size), self._bound, self._allowance)

    def _hash(self, more: Callable[[], memoryview | None]) -> None:
        while (view := more()) is not None:
            self._digest.update(view)

    def _apply(self, chunks: Chunks, tar: _Tar) -> None:
        archive = Archive(chunks, most_entries=MOST_ENTRIES)
        overlay = self._layer.chain_id != self._layer.diff_id
        with self._sink.opened(archive, overlay=overlay, bound=self._bound) as tree:
            try:
                while (entry := archive.next(tree.plain_file)) is not None:
                    tree.apply(entry)
                while chunks.pass_on():  # what follows the archive's end is hashed and no more
                    pass
                tree.finish()
            except OSError as error:
                raise self._failed(error, tree.now) from error
            except ValueError as error:  # a NUL in a name
                raise LayerError(f"{shown(tree.now)}: {error}") from error
            self._unpacked = Unpacked(tree.entries, tar.size, tuple(tree.implied.items()))

    def _failed(self, error: OSError, name: bytes) -> ParbakeError:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            return DiskFull(
                f"no space left below {self._sink.name} while unpacking layer {self._layer.digest} ({shown(name)})",
                hint="free some space, or give the artefact a larger size",
            )
        if error.errno == errno.E2BIG:
            return LayerError(
                f"{shown(name)}: its extended attributes are larger than a file may have",
                hint="ext4 holds about 4 KB for each file, xfs 64 KB for each attribute",
            )
        return LayerError(f"{shown(name)}: {error.strerror}")


class _Compressed:
    """The bytes that the registry sends, on their way in: hashed, counted, kept. At their end they are right."""

    def __init__(self, stream: Readable, layer: ExpectedLayer, progress: Progress, keep: BlobCopy | None) -> None:
        self._stream, self._layer, self._progress, self._keep = stream, layer, progress, keep
        self._digest = hashlib.sha256()
        self._size = 0

    def buffers(self) -> Sequence[memoryview]:
        """Return the buffers to fill in turns: the stream's own where it has some, which it fills without a copy."""
        return getattr(self._stream, "buffers", None) or memory(_RECEIVE_SLOTS, _RECEIVE_SIZE)

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill a buffer and return the count, which is smaller only at the end; raises BadContent there."""
        count = inflate.fill(self._stream, buffer)
        data = buffer[:count]
        self._digest.update(data)
        self._size += count
        if self._size > self._layer.size:
            raise self._wrong(f"more than the {self._layer.size} bytes that its manifest promises")
        if self._keep is not None:
            self._keep.write(data)
        self._progress(count)
        if count < len(buffer):
            self._check()
        return count

    def whole(self) -> memoryview:
        """Return all of the bytes."""
        buffer = memoryview(bytearray(self._layer.size + 1))
        at, ended = 0, False
        while not ended:
            piece = buffer[at : at + _RECEIVE_SIZE]
            count = self.readinto(piece)
            at, ended = at + count, count < len(piece)
        return buffer[:at]

    def drain(self) -> None:
        """Read on to the end for the check alone."""
        buffer = memoryview(bytearray(_RECEIVE_SIZE))
        while self.readinto(buffer) == len(buffer):
            pass

    def _check(self) -> None:
        if self._size != self._layer.size:
            raise self._wrong(f"{self._size} bytes arrived, but its manifest promises {self._layer.size}")
        if (found := f"sha256:{self._digest.hexdigest()}") != self._layer.digest:
            raise self._wrong(f"the bytes that arrived have the digest {found}")

    def _wrong(self, what: str) -> BadContent:
        return BadContent(
            f"layer {self._layer.digest}: {what}", hint="try again; if it keeps failing, push the image again"
        )


class _Tar:
    """What the compressed bytes inflate to, ``size`` bytes so far.

    Never more than is believed (``most``), than the disk holds (``bound``), and than is left of the allowance.
    """

    def __init__(self, feed: inflate.Feed, most: int, bound: int, allowance: Bytes | None) -> None:
        self.size = 0
        self._feed, self._most, self._bound, self._allowance = feed, most, bound, allowance
        self._inflater: inflate.Inflater | None = None

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill a buffer and return the count, which is smaller only at the end; raises LayerError, LayerBomb."""
        try:
            if self._inflater is None:
                self._inflater = inflate.inflater(self._feed)
            count = inflate.fill(self._inflater, buffer)
        except OverflowError as error:  # isal has a buffer of this size for it
            raise LayerError(
                f"its gzip header is larger than {inflate.LARGEST_HEADER >> 10} KiB",
                hint="no build tool writes such a header: do not use this image",
            ) from error
        except inflate.ERRORS as error:
            raise LayerError(
                f"cannot be inflated ({error})",
                hint="the layer is damaged, or in a format that is not gzip, zstd or plain tar: push the image again",
            ) from error
        self.size += count
        if self.size > self._bound:
            raise LayerTooLarge(f"inflates to more than {self._bound} bytes", hint=_SIZE)
        if self.size > self._most:
            raise LayerBomb(
                f"inflates to more than {self._most} bytes, which gzip could not pack so tightly",
                hint="do not use this image: it is made to fill disks",
            )
        if self._allowance is not None:
            self._allowance.take(count)
        return count


class _Feed:
    """Buffers with compressed bytes as a file that an inflater reads (``inflate.Feed``)."""

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

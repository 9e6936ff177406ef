"""A cache of layers on this machine, as registries send them: shared by bakes, bounded, and off unless asked for.

``PARBAKE_LAYER_CACHE=20GiB`` turns it on: what a machine's disk has room for is not for a Bakefile to say. Off, nothing
of it is on a bake's way. On, a layer that arrives is copied to the disk beside the bake, by a thread of its own; where
the disk does not keep up, that layer is not cached rather than waited for. Nothing that goes wrong here fails a bake.

A layer is written in a work folder and renamed when its digest was found right. It is trusted no further: the engine
checks the digest again whenever it is used, and what is damaged by then is removed (``CacheDamaged``), so that the next
try fetches it. What was used longest ago goes first. A file that a bake reads stays readable when another removes it.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from queue import Empty, Queue, SimpleQueue
from typing import Final, Self, override

from parbake.core.errors import BadContent, CacheDamaged, DeadlineExceeded, EnvironmentProblem, LayerError
from parbake.core.events import Events
from parbake.core.model import GIB, Descriptor, Image
from parbake.core.sources import LayerSource, Readable
from parbake.core.units import size_of
from parbake.core.workspace import WORK, lock, part_of, remove_leftovers, work_folder

VARIABLE: Final = "PARBAKE_LAYER_CACHE"
FOLDER: Final = "layers"

_NAME = re.compile(r"sha256-[0-9a-f]{64}")
# Two layers come at a time: this is what bounds their memory (bytes, and how many of them).
_CHUNK, _CHUNKS = 1 << 20, 8
# A copy may hold up its layer by this share of the time, and by this many seconds.
_SHARE, _GRACE = 0.02, 0.1
# Layers grow when they are unpacked, and the artefact often lies on the same disk: this many times what travels.
_GROWTH = 4

type Sources = Callable[[Image], LayerSource]


@dataclass(frozen=True, slots=True)
class CachedLayer:
    """A cached layer: its digest, size in bytes, and when it was last used (seconds since 1970)."""

    digest: str
    size: int
    used_at: float
    path: Path


def cached(sources: Sources, cache: Path, events: Events) -> Sources:
    """Return sources that go through the cache where it is on and can be used, else ``sources`` itself."""
    limit = size_of(os.environ.get(VARIABLE, ""), VARIABLE)
    try:
        return CachingSources(sources, part_of(cache, FOLDER), limit, events) if limit else sources
    except (OSError, EnvironmentProblem) as error:
        events.warn(f"layers are not cached: {error}")
        return sources


def entries(folder: Path) -> list[CachedLayer]:
    """Return what a folder of layers holds, what was used longest ago first."""
    found = []
    for path in folder.iterdir() if folder.is_dir() and not folder.is_symlink() else ():
        if _NAME.fullmatch(path.name):
            with suppress(FileNotFoundError):  # another has just removed it
                status = path.stat()
                found.append(CachedLayer(path.name.replace("-", ":"), status.st_size, status.st_mtime, path))
    return sorted(found, key=lambda entry: (entry.used_at, entry.digest))


def prune(cache: Path, limit: int, *, dry_run: bool = False) -> tuple[tuple[CachedLayer, ...], tuple[CachedLayer, ...]]:
    """Remove what was used longest ago until at most ``limit`` bytes are left; return what went and what stayed."""
    folder = cache / FOLDER
    if not folder.is_dir() or folder.is_symlink():
        return (), ()
    if dry_run:
        return _divide(entries(folder), limit)
    remove_leftovers(folder)
    with _alone(folder):
        gone, kept = _divide(entries(folder), limit)
        for entry in gone:
            entry.path.unlink(missing_ok=True)
    return gone, kept


def _divide(found: list[CachedLayer], limit: int) -> tuple[tuple[CachedLayer, ...], tuple[CachedLayer, ...]]:
    total = sum(entry.size for entry in found)
    at = 0
    while total > limit:
        total -= found[at].size
        at += 1
    return tuple(found[:at]), tuple(found[at:])


def _alone(folder: Path) -> AbstractContextManager[None]:
    return lock(folder / WORK / f"{FOLDER}.lock", what="the cache of layers", timeout=60)


class CachingSources:
    """Sources whose layers are taken from a folder, and put there when they were missing."""

    def __init__(self, sources: Sources, folder: Path, limit: int, events: Events) -> None:
        self._sources, self._folder, self._limit, self._events = sources, folder, limit, events
        with suppress(OSError, DeadlineExceeded):
            remove_leftovers(folder)

    def __call__(self, image: Image) -> LayerSource:
        """Return where the content of an image comes from; what lies on this machine anyway is not cached."""
        source = self._sources(image)
        travels = sum(layer.size for layer in image.layers)
        return source if image.layout else _CachedSource(source, self, travels)

    def _path(self, digest: str) -> Path:
        return self._folder / digest.replace(":", "-")

    def find(self, descriptor: Descriptor) -> FileIO | None:
        """Open the file of a layer, and note that it is used; None when it is not there.

        What is open stays, whoever makes room in the meantime.
        """
        path = self._path(descriptor.digest)
        with suppress(OSError):
            file = path.open("rb", buffering=0)
            if os.fstat(file.fileno()).st_size == descriptor.size:
                os.utime(file.fileno())
                return file
            file.close()
            path.unlink()  # what a machine that lost power left
        return None

    def drop(self, descriptor: Descriptor) -> None:
        """Remove the file of a layer."""
        self._path(descriptor.digest).unlink(missing_ok=True)

    def has_room(self, descriptor: Descriptor, travels: int) -> bool:
        """Whether a layer fits into the cache, and the disk is large enough for it and the bake."""
        with suppress(OSError, EnvironmentProblem):
            part_of(self._folder.parent, FOLDER)
            status = os.statvfs(self._folder)
            free = status.f_bavail * status.f_frsize
            return descriptor.size <= self._limit and free > travels * _GROWTH + GIB
        return False

    @contextmanager
    def copied(self, descriptor: Descriptor, stream: Readable) -> Iterator[Readable]:
        """Yield the stream of a layer, which is put into the cache when the body read it whole without an error."""
        blob: Path | None = None
        with ExitStack() as stack:
            copy: _Copy | None = None
            try:
                blob = stack.enter_context(work_folder(self._folder, "layer")) / "blob"
                copy = stack.enter_context(_Copy(stream, blob))
            except (OSError, DeadlineExceeded) as error:
                self._tell(descriptor, error)
            yield copy or stream
            if blob and copy:
                self._keep(descriptor, blob, copy)

    def _keep(self, descriptor: Descriptor, blob: Path, copy: _Copy) -> None:
        try:
            if copy.finish() == descriptor.size:
                self._add(blob, descriptor)
            else:
                self._tell(descriptor, copy.failure or "the disk is slower than the registry")
        except (OSError, DeadlineExceeded) as error:
            self._tell(descriptor, error)

    def _add(self, made: Path, descriptor: Descriptor) -> None:
        # Nothing is synced: what a power cut damages is found out when it is used.
        with _alone(self._folder):
            for entry in _divide(entries(self._folder), self._limit - descriptor.size)[0]:
                entry.path.unlink(missing_ok=True)
            made.chmod(0o600)
            made.replace(self._path(descriptor.digest))

    def _tell(self, descriptor: Descriptor, why: object) -> None:
        self._events.note(f"layer {descriptor.digest[:19]} is not cached: {why}")


class _CachedSource(LayerSource):
    """A source (``sources.LayerSource``) in front of which the cache lies."""

    def __init__(self, source: LayerSource, cache: CachingSources, travels: int) -> None:
        self._source, self._cache, self._travels = source, cache, travels

    @override
    def read(self, descriptor: Descriptor) -> bytes:
        return self._source.read(descriptor)

    @override
    @contextmanager
    def open(self, descriptor: Descriptor, *, offset: int = 0) -> Iterator[Readable]:
        """Open a layer where it is; raises CacheDamaged when the body found a cached one to be wrong."""
        if found := self._cache.find(descriptor):
            with found as file:
                file.seek(offset)
                try:
                    yield file
                except (BadContent, LayerError) as error:  # what is damaged may look like anything
                    file.seek(0)
                    if f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}" != descriptor.digest:
                        self._cache.drop(descriptor)
                        raise CacheDamaged(
                            f"the cached layer {descriptor.digest} was damaged and has been removed"
                        ) from error
                    raise
            return
        with self._source.open(descriptor, offset=offset) as stream:
            if offset or not self._cache.has_room(descriptor, self._travels):
                yield stream
                return
            with self._cache.copied(descriptor, stream) as copied:
                yield copied


class _Copy(Readable):
    """A stream whose bytes a thread also writes to a file; a context manager. It gives up rather than hold up."""

    def __init__(self, stream: Readable, path: Path) -> None:
        self.failure: OSError | None = None
        self._stream, self._path = stream, path
        self._full: SimpleQueue[memoryview | None] = SimpleQueue()
        self._free: Queue[memoryview] = Queue()
        self._chunk = memoryview(bytearray(_CHUNK))
        self._made = 1
        self._at = self._written = 0
        self._over = False
        self._started = time.monotonic()
        self._waited = 0.0
        self._thread = threading.Thread(target=self._write, name="cache-layer")

    @override
    def readinto(self, buffer: memoryview, /) -> int:
        count = self._stream.readinto(buffer)
        taken = 0
        while taken < count and not self._over:
            size = min(count - taken, _CHUNK - self._at)
            self._chunk[self._at : self._at + size] = buffer[taken : taken + size]
            taken += size
            self._at += size
            if self._at == _CHUNK:
                self._hand_on()
        return count

    def _hand_on(self) -> None:
        self._full.put(self._chunk[: self._at])
        self._at = 0
        if self._made < _CHUNKS:
            self._made += 1
            self._chunk = memoryview(bytearray(_CHUNK))
            return
        began = time.monotonic()
        patience = (began - self._started) * _SHARE + _GRACE - self._waited
        try:
            self._chunk = self._free.get(timeout=max(0.0, patience))
        except Empty:
            self._over = True
        self._waited += time.monotonic() - began

    def finish(self) -> int:
        """Write what is left; return how many bytes the file has."""
        if not self._over and self._at:
            self._full.put(self._chunk[: self._at])
        self._full.put(None)
        self._thread.join()
        return -1 if self._over else self._written

    def _write(self) -> None:
        try:
            with self._path.open("xb", buffering=0) as file:
                while (chunk := self._full.get()) is not None and not self._over:
                    rest = chunk
                    while rest:
                        rest = rest[file.write(rest) :]
                    self._written += len(chunk)
                    self._free.put(chunk)
        except OSError as error:
            self.failure = error
            self._over = True

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        self._full.put(None)
        self._thread.join()

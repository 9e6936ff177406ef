"""Fill a runtime's store: images become content, snapshots and names, exactly as a pull would have left them.

Layers stream from their source through the engine into a staging folder on the store's file system, two at a time.
Each is then finished on top of its parents, moved into the snapshot that containerd prepared for it (a rename), and
committed by containerd itself: its databases are its own. What the store has already is skipped, so a fill that was
cut off is finished by filling again.
"""

from __future__ import annotations

import json
import os
import stat
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from queue import Full, Queue
from typing import TYPE_CHECKING, Final

from parbake.containerd import conventions
from parbake.errors import BadContent, CacheDamaged, DiskFull, Interrupted, LayerBomb
from parbake.layers import Unpacked, settle, unpack
from parbake.model import Descriptor, Image, Layer, Plan, Readable, Source
from parbake.reference import Reference
from parbake.workspace import remove_tree

if TYPE_CHECKING:
    from parbake.containerd import Client
    from parbake.events import Events, Task

_AT_ONCE: Final = 2
"""Layers that are unpacked side by side; the engine keeps two cores busy with one large layer."""
_LAYER_LABEL: Final = "containerd.io/gc.ref.content.l."


def fill(
    plan: Plan,
    store: Client,
    sources: Callable[[Image], Source],
    *,
    events: Events,
    work: Path,
    hang_up: Callable[[], None] = lambda: None,
) -> None:
    """Make sure that the store holds every image of the plan: content, unpacked snapshots, names.

    ``sources`` says where an image's content comes from; ``work`` is a folder on the file system of the store's
    snapshots, for layers on their way. Index, manifest and config are kept, layers' blobs only when the plan keeps
    them. Every name of an image is pinned against kubelet's image collection.

    ``hang_up`` is called when the fill is given up, and ends the streams that wait for their next bytes.

    Raises what sources raise (RegistryError), BadContent, LayerError, DiskFull, RuntimeFault.
    """
    store.make_namespace()
    # What nothing holds may be collected at any moment: what is there after a collection stays.
    store.gc()
    with store.lease(f"parbake-{plan.key[:12]}"), _Filling(plan, store, sources, events, work, hang_up) as filling:
        filling.run()


@dataclass(frozen=True, slots=True)
class _Job:
    """A layer that is missing, the image that brings it, and the chain ID of its parent ("" for the bottom)."""

    layer: Layer
    image: Image
    parent: str


class _Filling:
    def __init__(
        self,
        plan: Plan,
        store: Client,
        sources: Callable[[Image], Source],
        events: Events,
        work: Path,
        hang_up: Callable[[], None],
    ) -> None:
        self._plan, self._store, self._sources, self._events, self._work = plan, store, sources, events, work
        self._hang_up = hang_up
        self._over = threading.Event()
        self._pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="unpack")
        self._keepers: dict[str, str] = {}

    def __enter__(self) -> _Filling:
        return self

    def __exit__(self, _kind: object, error: object, _traceback: object) -> None:
        self._over.set()  # on an error: streams that are still read end at their next buffer
        if error is not None and not isinstance(
            error, (CacheDamaged, DiskFull, LayerBomb)
        ):  # after these, one may try again
            self._hang_up()
        self._pool.shutdown(cancel_futures=True)

    def run(self) -> None:
        jobs = self._missing_snapshots()
        unpacked = [self._pool.submit(self._unpack, job) for job in jobs]
        for image in self._plan.all_images:
            self._write_documents(image)
        for job, future in zip(jobs, unpacked, strict=True):
            self._commit(job, future)
        for image in self._plan.all_images:
            if self._plan.keep_layers:
                self._keep_the_rest(image)
            self._name(image)

    # -- layers

    def _missing_snapshots(self) -> list[_Job]:
        """Return what is to be unpacked, parents before children, each once."""
        jobs: dict[str, _Job] = {}
        for image in self._plan.all_images:
            parent = ""
            for layer in image.layers:
                chain = layer.chain_id
                if chain not in jobs and not self._store.snapshots.exists(chain):
                    jobs[chain] = _Job(layer, image, parent)
                parent = chain
        return list(jobs.values())

    def _staged(self, layer: Layer) -> Path:
        return self._work / layer.chain_id.removeprefix("sha256:")

    def _unpack(self, job: _Job) -> Unpacked:
        layer, staged = job.layer, self._staged(job.layer)
        if staged.exists():
            remove_tree(staged)
        staged.mkdir(mode=0o755)
        descriptor = _descriptor(layer)
        with ExitStack() as stack:
            task = stack.enter_context(self._events.task(f"layer {_short(layer.digest)}", layer.size))
            keep = stack.enter_context(self._keeper(job)) if self._keeps(layer) else None
            stream = stack.enter_context(self._sources(job.image).open(descriptor))
            # No tar can be larger than the disk that its files have to fit on.
            return unpack(
                _Endable(stream, self._over), layer, staged, bound=self._plan.size, progress=task.advance, keep=keep
            )

    def _commit(self, job: _Job, future: Future[Unpacked]) -> None:
        from parbake.containerd.snapshots import folders  # gRPC's: loaded by then, and not where nothing is filled

        chain = job.layer.chain_id
        unpacked = future.result()
        key = conventions.unpack_key(os.urandom(6).hex(), chain)
        labels = conventions.snapshot_labels(chain)
        found = folders(self._store.snapshots.prepare(key, job.parent, labels))
        staged = self._staged(job.layer)
        settle(staged, unpacked, found.lowers)
        _move(staged, found.upper)
        self._store.snapshots.commit(chain, key, labels)

    # -- content

    def _write_documents(self, image: Image) -> None:
        source = self._sources(image)
        for descriptor, document in _path_to_manifest(image, lambda descriptor: self._read(descriptor, source)):
            labels = conventions.reference_labels(json.loads(document))
            if not self._plan.keep_layers:  # as containerd does with discard_unpacked_layers
                labels = {key: value for key, value in labels.items() if not key.startswith(_LAYER_LABEL)}
            self._write(descriptor, document, {**labels, **_source_label(image)})
        labels = _source_label(image)
        if image.layers:
            labels |= conventions.snapshot_reference(image.layers[-1].chain_id)
        self._write(image.config, self._read(image.config, source), labels)

    def _read(self, descriptor: Descriptor, source: Source) -> bytes:
        """Return a document from the store when it is there: filling again asks no registry."""
        if self._store.content.exists(descriptor.digest):
            return self._store.content.read(descriptor.digest)
        return source.read(descriptor)

    def _write(self, descriptor: Descriptor, document: bytes, labels: dict[str, str]) -> None:
        if not self._label(descriptor.digest, labels):
            self._store.content.write(descriptor, document, labels)

    def _label(self, digest: str, labels: dict[str, str]) -> bool:
        """Add labels to a blob and keep those that it has; False when it is not there."""
        info = self._store.content.info(digest)
        if info is None:
            return False
        merged = conventions.merge_labels(info.labels, labels)
        if merged != info.labels:
            self._store.content.label(digest, merged)
        return True

    def _keeps(self, layer: Layer) -> bool:
        """Whether this layer's blob is to be kept, and no other thread is at the same one on another parent."""
        if not self._plan.keep_layers or self._keepers.setdefault(layer.digest, layer.chain_id) != layer.chain_id:
            return False
        return not self._store.content.exists(layer.digest)

    def _keeper(self, job: _Job) -> _Tee:
        labels = {**_source_label(job.image), **conventions.uncompressed_label(job.layer.diff_id)}
        descriptor = _descriptor(job.layer)
        return _Tee(lambda pieces: self._store.content.write(descriptor, pieces, labels))

    def _keep_the_rest(self, image: Image) -> None:
        """Fetch blobs of layers whose snapshot was there already."""
        for layer in image.layers:
            labels = {**_source_label(image), **conventions.uncompressed_label(layer.diff_id)}
            if self._label(layer.digest, labels):
                continue
            descriptor = _descriptor(layer)
            with (
                self._events.task(f"layer {_short(layer.digest)} (compressed)", layer.size) as task,
                self._sources(image).open(descriptor) as stream,
            ):
                self._store.content.write(descriptor, _pieces(stream, task), labels)

    def _name(self, image: Image) -> None:
        for name in image.names:
            self._store.images.put(name, image.target, conventions.PINNED)


def _descriptor(layer: Layer) -> Descriptor:
    return Descriptor(media_type=layer.media_type, digest=layer.digest, size=layer.size)


def _short(digest: str) -> str:
    return digest[: len("sha256:") + 12]


def _source_label(image: Image) -> dict[str, str]:
    reference = Reference.parse(image.reference)
    if image.layout or reference.is_local:
        return {}  # it did not come from a registry
    return conventions.source_label(reference.registry, reference.repository)


type _Document = tuple[Descriptor, bytes]


def _path_to_manifest(image: Image, read: Callable[[Descriptor], bytes]) -> list[_Document]:
    """Return the documents that lead from what the name points to to the manifest, both included."""
    path = _search(image.target, image.manifest, read, set())
    if path is None:
        raise BadContent(
            f"{image.reference}: {image.target.digest} does not lead to the manifest {image.manifest.digest}",
            hint="the tag has moved since the plan was made: plan again",
        )
    return path


def _search(
    start: Descriptor, wanted: Descriptor, read: Callable[[Descriptor], bytes], seen: set[str]
) -> list[_Document] | None:
    if start.digest in seen:
        return None
    seen.add(start.digest)
    document = read(start)
    if start.digest == wanted.digest:
        return [(start, document)]
    for child in json.loads(document).get("manifests") or []:
        leads_on = child["mediaType"].endswith(("image.index.v1+json", "manifest.list.v2+json"))
        if leads_on or child["digest"] == wanted.digest:
            descriptor = Descriptor(media_type=child["mediaType"], digest=child["digest"], size=child["size"])
            if (rest := _search(descriptor, wanted, read, seen)) is not None:
                return [(start, document), *rest]
    return None


def _move(staged: Path, upper: Path) -> None:
    """Put a staged tree in the place of the empty folder that the snapshotter made, whose looks it takes over."""
    looks = upper.stat()
    os.chown(staged, looks.st_uid, looks.st_gid)
    staged.chmod(stat.S_IMODE(looks.st_mode))
    os.utime(staged, ns=(0, 0))  # the moment of the bake is no part of it
    staged.rename(upper)


_PIECE: Final = 1 << 20


def _pieces(stream: Readable, task: Task) -> Iterator[bytes]:
    buffer = memoryview(bytearray(_PIECE))
    while count := stream.readinto(buffer):
        task.advance(count)
        yield bytes(buffer[:count])


class _Endable:
    """A stream that ends with Interrupted once the fill is over: nobody waits for gigabytes after an error."""

    def __init__(self, stream: Readable, over: threading.Event) -> None:
        self._stream, self._over = stream, over

    def readinto(self, buffer: memoryview, /) -> int:
        if self._over.is_set():
            raise Interrupted("the fill ended early")
        return self._stream.readinto(buffer)


class _Tee:
    """Hands what the engine receives to a writer in another thread, as an iterable; a context manager.

    The engine's ``keep`` takes any object with ``write``. A writer that ends early (the blob is there) is no error.
    """

    def __init__(self, writer: Callable[[Iterator[bytes]], None]) -> None:
        self._writer = writer
        self._queue: Queue[bytes | None] = Queue(8)
        self._ended = threading.Event()
        self._failure: BaseException | None = None
        self._whole = False
        self._thread = threading.Thread(target=self._run, name="keep-layer")

    def write(self, data: memoryview) -> int:
        """Pass on a copy of ``data``."""
        self._put(bytes(data))
        return len(data)

    def _put(self, piece: bytes | None) -> None:
        while not self._ended.is_set():
            try:
                self._queue.put(piece, timeout=0.1)
            except Full:
                continue
            return

    def _iterate(self) -> Iterator[bytes]:
        while (piece := self._queue.get()) is not None:
            yield piece
        if not self._whole:
            raise Interrupted("the layer ended early")

    def _run(self) -> None:
        try:
            self._writer(self._iterate())
        except BaseException as error:  # noqa: BLE001 (a thread has no caller: __exit__ raises it)
            self._failure = error
        finally:
            self._ended.set()

    def __enter__(self) -> _Tee:
        self._thread.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._whole = kind is None
        self._put(None)
        self._thread.join()
        if self._failure is not None and kind is None:
            raise self._failure

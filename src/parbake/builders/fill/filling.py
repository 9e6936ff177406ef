"""Fill a runtime's store: images become content, snapshots and names, exactly as a pull would have left them.

Layers stream from their source through the engine to where they belong (``destinations``), side by side, and each is
then finished on top of its parents. What is there already is skipped, so a fill that was cut off is finished by filling
again.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from queue import Full, Queue
from typing import TYPE_CHECKING, Final

from parbake.builders.fill.destinations import ImageStore, Job, LayerDestination, UnpackOptions
from parbake.containerd.labels import (
    PINNED,
    reference_labels,
    snapshot_reference,
    source_label,
    uncompressed_label,
)
from parbake.core.errors import BadContent, CacheDamaged, DiskFull, Interrupted, LayerTooLarge
from parbake.core.model import Descriptor, Image, Layer, Plan
from parbake.core.sources import LayerSource
from parbake.images.layers import Allowance, Unpacked
from parbake.images.registry.documents import DEEPEST, INDEXES, MOST_DOCUMENTS, Index, load, read_document
from parbake.images.registry.strictjson import DOCUMENT

if TYPE_CHECKING:
    from types import TracebackType

    from parbake.core.events import Events, Task
    from parbake.core.sources import Readable


_PIECE: Final = 1 << 20
_LAYER_LABEL: Final = "containerd.io/gc.ref.content.l."


def fill(
    plan: Plan,
    store: ImageStore,
    sources: Callable[[Image], LayerSource],
    *,
    destination: LayerDestination,
    events: Events,
    close_connections: Callable[[], None] = lambda: None,
) -> None:
    """Make sure that the store holds every image of the plan: content, unpacked snapshots, names.

    ``sources`` says where an image's content comes from, ``destination`` where layers go. Index, manifest and config
    are kept, layers' blobs only when the plan keeps them. Every name of an image is pinned against kubelet's image
    collection.

    ``close_connections`` is called when the fill is given up, and ends the streams that wait for their next bytes.

    Raises what sources raise (RegistryError), BadContent, LayerError, DiskFull, ContainerdError.
    """
    with _Filling(plan, store, sources, destination, events, close_connections) as filling:
        filling.run()


class _Filling:
    def __init__(
        self,
        plan: Plan,
        store: ImageStore,
        sources: Callable[[Image], LayerSource],
        destination: LayerDestination,
        events: Events,
        close_connections: Callable[[], None],
    ) -> None:
        self._plan, self._store, self._sources = plan, store, sources
        self._destination, self._events = destination, events
        self._close_connections = close_connections
        self._over = threading.Event()
        # No tar can be larger than the disk that its files have to fit on, nor can all of them together.
        self._allowance = Allowance(plan.size)
        self._pool = ThreadPoolExecutor(destination.at_once, thread_name_prefix="unpack")
        self._keepers: dict[str, str] = {}

    def __enter__(self) -> _Filling:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()  # on an error: streams that are still read end at their next buffer
        if error is not None and not isinstance(
            error, (CacheDamaged, DiskFull, LayerTooLarge)
        ):  # after these, one may try again
            self._close_connections()
        if error is not None:
            self._destination.stop()
        self._pool.shutdown(cancel_futures=True)

    def run(self) -> None:
        jobs = self._missing_layers()
        self._destination.begin(jobs)
        unpacked = deque(self._pool.submit(self._unpack, number, job) for number, job in enumerate(jobs))
        for image in self._plan.all_images:
            self._write_documents(image)
        for number in range(len(unpacked)):
            self._destination.arrived(number, unpacked.popleft().result())
        for image in self._plan.all_images:
            if self._plan.keep_layers:
                self._keep_the_rest(image)
            self._name(image)

    # -- layers

    def _missing_layers(self) -> list[Job]:
        """Return what is to be unpacked, parents before children, each once."""
        jobs: dict[str, Job] = {}
        for image in self._plan.all_images:
            parents: list[str] = []
            for layer in image.layers:
                chain = layer.chain_id
                if chain not in jobs and not self._destination.has(chain):
                    jobs[chain] = Job(layer, image, tuple(parents))
                parents.append(chain)
        return list(jobs.values())

    def _unpack(self, number: int, job: Job) -> Unpacked:
        layer = job.layer
        with ExitStack() as stack:
            task = stack.enter_context(self._events.task(f"layer {_short(layer.digest)}", layer.size))
            keep = stack.enter_context(self._keeper(job)) if self._keeps(layer) else None
            stream = stack.enter_context(self._sources(job.image).open(_descriptor(layer)))
            options = UnpackOptions(self._plan.size, self._allowance, task.advance, keep)
            return self._destination.unpack(number, Endable(stream, self._over), options)

    # -- content

    def _write_documents(self, image: Image) -> None:
        source = self._sources(image)
        for descriptor, document in _path_to_manifest(image, lambda descriptor: self._read(descriptor, source)):
            labels = reference_labels(load(str(image.reference), document, DOCUMENT))
            if not self._plan.keep_layers:  # as containerd does with discard_unpacked_layers
                labels = {key: value for key, value in labels.items() if not key.startswith(_LAYER_LABEL)}
            self._write(descriptor, document, {**labels, **_source_label(image)})
        labels = _source_label(image)
        if image.layers:
            labels |= snapshot_reference(image.layers[-1].chain_id)
        self._write(image.config, self._read(image.config, source), labels)

    def _read(self, descriptor: Descriptor, source: LayerSource) -> bytes:
        """Return a document from the store when it is there: filling again asks no registry."""
        if self._store.content.exists(descriptor.digest):
            return self._store.content.read(descriptor.digest)
        return source.read(descriptor)

    def _write(self, descriptor: Descriptor, document: bytes, labels: dict[str, str]) -> None:
        if not self._store.content.add_labels(descriptor.digest, labels):
            self._store.content.write(descriptor, document, labels)

    def _keeps(self, layer: Layer) -> bool:
        """Whether this layer's blob is to be kept, and no other thread is at the same one on another parent."""
        if not self._plan.keep_layers or self._keepers.setdefault(layer.digest, layer.chain_id) != layer.chain_id:
            return False
        return not self._store.content.exists(layer.digest)

    def _keeper(self, job: Job) -> Tee:
        labels = {**_source_label(job.image), **uncompressed_label(job.layer.diff_id)}
        descriptor = _descriptor(job.layer)
        return Tee(lambda pieces: self._store.content.write(descriptor, pieces, labels))

    def _keep_the_rest(self, image: Image) -> None:
        """Fetch blobs of layers whose snapshot was there already."""
        for layer in image.layers:
            labels = {**_source_label(image), **uncompressed_label(layer.diff_id)}
            if self._store.content.add_labels(layer.digest, labels):
                continue
            descriptor = _descriptor(layer)
            with (
                self._events.task(f"layer {_short(layer.digest)} (compressed)", layer.size) as task,
                self._sources(image).open(descriptor) as stream,
            ):
                self._store.content.write(descriptor, pieces(stream, task), labels)

    def _name(self, image: Image) -> None:
        for name in image.names:
            self._store.images.put(name, image.target, PINNED)


def _descriptor(layer: Layer) -> Descriptor:
    return Descriptor(media_type=layer.media_type, digest=layer.digest, size=layer.size)


def _short(digest: str) -> str:
    return digest[: len("sha256:") + 12]


def _source_label(image: Image) -> dict[str, str]:
    reference = image.reference
    if image.layout or reference.is_local:
        return {}  # it did not come from a registry
    return source_label(reference.registry, reference.repository)


type _Document = tuple[Descriptor, bytes]


def _path_to_manifest(image: Image, read: Callable[[Descriptor], bytes]) -> list[_Document]:
    """Return the documents that lead from what the name points to to the manifest, both included."""
    path = _search(image, image.target, read, set(), DEEPEST)
    if path is None:
        raise BadContent(
            f"{image.reference}: {image.target.digest} does not lead to the manifest {image.manifest.digest}",
            hint="the tag has moved since the plan was made: plan again",
        )
    return path


def _search(
    image: Image, start: Descriptor, read: Callable[[Descriptor], bytes], seen: set[str], depth: int
) -> list[_Document] | None:
    if start.digest in seen or not depth or len(seen) == MOST_DOCUMENTS:
        return None
    seen.add(start.digest)
    body = read(start)
    if start.digest == image.manifest.digest:
        return [(start, body)]
    document = read_document(str(image.reference), body, start.media_type)
    for entry in document.content.manifests if isinstance(document.content, Index) else ():
        if entry.media_type in INDEXES or entry.digest == image.manifest.digest:
            rest = _search(image, entry.descriptor, read, seen, depth - 1)
            if rest is not None:
                return [(start, body), *rest]
    return None


def pieces(stream: Readable, task: Task) -> Iterator[bytes]:
    """Yield a stream in pieces of one MiB and count them."""
    buffer = memoryview(bytearray(_PIECE))
    while count := stream.readinto(buffer):
        task.advance(count)
        yield bytes(buffer[:count])


class Endable:
    """A stream that ends with Interrupted once the fill is over: nobody waits for gigabytes after an error."""

    def __init__(self, stream: Readable, over: threading.Event) -> None:
        self._stream, self._over = stream, over

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill the start of ``buffer`` (``sources.Readable``)."""
        if self._over.is_set():
            raise Interrupted("the fill ended early")
        return self._stream.readinto(buffer)


class Tee:
    """Hands what the engine receives to a writer in another thread, as an iterable; a context manager.

    The engine's ``keep`` takes any object with ``write``. A writer that ends early (the blob is there) is not an error.
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

    def __enter__(self) -> Tee:
        self._thread.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._whole = kind is None
        self._put(None)
        self._thread.join()
        if self._failure is not None and kind is None:
            raise self._failure

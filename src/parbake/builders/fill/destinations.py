"""Where a fill's layers go, behind one protocol: a mounted file system, or (``volume``) the file of one."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, override

from parbake.containerd.labels import snapshot_labels, unpack_key
from parbake.core import cores
from parbake.core.workspace import remove_tree
from parbake.images.layers import FolderSink, Unpacked, complete_folder, unpack

if TYPE_CHECKING:
    from parbake.containerd import Client
    from parbake.core.model import Descriptor, Image, Layer
    from parbake.core.sources import Progress, Readable
    from parbake.images.layers import Allowance
    from parbake.images.layers.engine import BlobCopy


@dataclass(frozen=True, slots=True)
class Job:
    """A layer on its parents: the image that brings it, and the chain IDs below it, the bottom one first."""

    layer: Layer
    image: Image
    parents: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class UnpackOptions:
    """What ``layers.unpack`` takes besides the layer."""

    bound: int
    allowance: Allowance
    progress: Progress
    keep: BlobCopy | None = None


class BlobStore(Protocol):
    """The blobs of a store, by digest; thread-safe. ``containerd.content.Content``, ``offline.OfflineContent``."""

    def exists(self, digest: str) -> bool:
        """Whether the blob is there."""
        ...

    def read(self, digest: str) -> bytes:
        """Return a blob that is there."""
        ...

    def add_labels(self, digest: str, labels: Mapping[str, str]) -> bool:
        """Add labels to a blob and keep those that it has; False when it is not there."""
        ...

    def write(self, descriptor: Descriptor, data: bytes | Iterable[bytes], labels: Mapping[str, str]) -> None:
        """Make sure that a blob is there, with at least these labels; raises BadContent, and what ``data`` raises."""
        ...


class NameStore(Protocol):
    """The image records of a store."""

    def put(self, name: str, descriptor: Descriptor, labels: Mapping[str, str]) -> None:
        """Let a name point to content, with these labels."""
        ...


class ImageStore(Protocol):
    """What a fill puts images into: a containerd's client, or the files of a store that are to be."""

    @property
    def content(self) -> BlobStore:
        """The blobs."""
        ...

    @property
    def images(self) -> NameStore:
        """The names."""
        ...


class LayerDestination(Protocol):
    """Takes the layers of one fill. ``begin`` once, ``unpack`` from any thread, the others in the order of the jobs.

    ``at_once``: how many layers to unpack side by side, begun in their order.
    """

    at_once: int

    def has(self, chain: str) -> bool:
        """Whether a layer is there already, on its parents."""
        ...

    def begin(self, jobs: Sequence[Job]) -> None:
        """Say which layers are to come, parents before children."""
        ...

    def unpack(self, number: int, stream: Readable, options: UnpackOptions) -> Unpacked:
        """Unpack a job's layer to where it belongs; raises what ``layers.unpack`` raises."""
        ...

    def arrived(self, number: int, unpacked: Unpacked) -> None:
        """Take over a layer that is unpacked; raises LayerError, DiskFull."""
        ...

    def stop(self) -> None:
        """Wake threads that wait for their turn: the fill has failed."""
        ...


@contextmanager
def held(store: Client, key: str) -> Iterator[Client]:
    """Hold what is in a containerd's store during a fill: what nothing holds may be collected at any moment.

    What is there already stays if a collection leaves it. ``key`` names the lease.
    """
    store.make_namespace()
    store.gc()
    with store.lease(f"parbake-{key[:12]}"):
        yield store


class MountedStore(LayerDestination):
    """A mounted file system that holds the store itself: a layer is moved into its snapshot by a rename."""

    def __init__(self, store: Client, work: Path) -> None:
        """``work`` is a folder on the file system of the store's snapshots, for layers on their way."""
        self._store, self._work = store, work
        # Threads, not processes: two thirds of the work is the kernel's, which needs no interpreter's lock.
        self.at_once = max(2, min(4, cores.available() // 2))
        self._jobs: Sequence[Job] = ()

    @override
    def has(self, chain: str) -> bool:
        return self._store.snapshots.exists(chain)

    @override
    def begin(self, jobs: Sequence[Job]) -> None:
        self._jobs = jobs

    def _staged(self, number: int) -> Path:
        return self._work / self._jobs[number].layer.chain_id.removeprefix("sha256:")

    @override
    def unpack(self, number: int, stream: Readable, options: UnpackOptions) -> Unpacked:
        """Unpack into an empty folder beside the snapshots."""
        staged = self._staged(number)
        if staged.exists():
            remove_tree(staged)
        staged.mkdir(mode=0o755)
        return unpack(
            stream, self._jobs[number].layer, FolderSink(staged), bound=options.bound, progress=options.progress,
            allowance=options.allowance, keep=options.keep,
        )  # fmt: skip

    @override
    def arrived(self, number: int, unpacked: Unpacked) -> None:
        """Finish the layer on top of its parents, and let containerd commit it."""
        staged, job = self._staged(number), self._jobs[number]
        from parbake.containerd.snapshots import folders  # gRPC's: not where nothing is mounted

        chain = job.layer.chain_id
        key, labels = unpack_key(os.urandom(6).hex(), chain), snapshot_labels(chain)
        found = folders(self._store.snapshots.prepare(key, job.parents[-1] if job.parents else "", labels))
        complete_folder(staged, unpacked, found.lowers)
        _move(staged, found.upper)
        self._store.snapshots.commit(chain, key, labels)

    @override
    def stop(self) -> None:
        """Nothing waits here."""


def _move(staged: Path, upper: Path) -> None:
    """Put a staged tree in the place of the empty folder that the snapshotter made, whose metadata it takes over."""
    status = upper.stat()
    os.chown(staged, status.st_uid, status.st_gid)
    staged.chmod(stat.S_IMODE(status.st_mode))
    os.utime(staged, ns=(0, 0))  # the moment of the bake is not part of it
    staged.rename(upper)

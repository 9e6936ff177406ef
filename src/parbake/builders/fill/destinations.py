"""Where a fill's layers go, behind one protocol: a mounted file system, or (``volumes``) the file of one."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, override

from parbake.containerd.labels import snapshot_labels, unpack_key
from parbake.core import cores
from parbake.core.workspace import remove_tree
from parbake.images.layers import FolderSink, Unpacked, complete_folder, unpack

if TYPE_CHECKING:
    from parbake.containerd import Client
    from parbake.containerd.snapshots import SnapshotFolders
    from parbake.core.model import Image, Layer
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


class LayerDestination(Protocol):
    """Takes the layers of one fill. ``begin`` once, ``unpack`` from any thread, the others in the order of the jobs.

    ``at_once``: how many layers to unpack side by side, begun in their order. ``apart``: layers lie apart from the
    store until ``arrived``, which alone needs it.
    """

    at_once: int
    apart: bool

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

    def finish(self) -> None:
        """Have every layer of the plan committed by containerd."""
        ...

    def stop(self) -> None:
        """Wake threads that wait for their turn: the fill has failed."""
        ...


class MountedStore(LayerDestination):
    """A mounted file system that holds the store itself: a layer is moved into its snapshot by a rename."""

    apart = False

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

        def put(found: SnapshotFolders) -> None:
            complete_folder(staged, unpacked, found.lowers)
            _move(staged, found.upper)

        commit(self._store, job.layer.chain_id, job.parents[-1] if job.parents else "", put)

    @override
    def finish(self) -> None:
        """Nothing is left to do."""

    @override
    def stop(self) -> None:
        """Nothing waits here."""


def commit(store: Client, chain: str, parent: str, put: Callable[[SnapshotFolders], None]) -> None:
    """Let containerd make the snapshot of a layer; ``put`` brings the files to where it wants them."""
    from parbake.containerd.snapshots import folders  # gRPC's: loaded by then, and not where nothing is filled

    key = unpack_key(os.urandom(6).hex(), chain)
    labels = snapshot_labels(chain)
    put(folders(store.snapshots.prepare(key, parent, labels)))
    store.snapshots.commit(chain, key, labels)


def _move(staged: Path, upper: Path) -> None:
    """Put a staged tree in the place of the empty folder that the snapshotter made, whose metadata it takes over."""
    status = upper.stat()
    os.chown(staged, status.st_uid, status.st_gid)
    staged.chmod(stat.S_IMODE(status.st_mode))
    os.utime(staged, ns=(0, 0))  # the moment of the bake is not part of it
    staged.rename(upper)

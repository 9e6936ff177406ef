"""Fill the file of an ext4 volume that is never mounted for writing.

containerd works on an empty store beside it and keeps its own books there: content, names, snapshots. The layers' files
go straight into the volume. For each snapshot that containerd commits, its folder shows the layer's tree (a read-only
mount of the volume), so that what containerd measures is what nodes will find. It measures every file, which takes as
long as writing small ones: so it commits while later layers still come. In the end the store's own files, which are
small, follow the layers into the volume.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from parbake.builders.fill.destinations import Job, UnpackOptions, commit
from parbake.builders.workers.pool import LayerJob, Workers
from parbake.core.errors import ContainerdError, Interrupted
from parbake.core.filetree import FileNode, Store
from parbake.images.layers import Unpacked
from parbake.machine.disk import bind, prefetch, unbind
from parbake.machine.ext4.superblock import merged

if TYPE_CHECKING:
    from parbake.containerd import Client
    from parbake.containerd.snapshots import SnapshotFolders
    from parbake.core.model import Plan
    from parbake.core.sources import Readable
    from parbake.machine.disk import Mounted
    from parbake.machine.ext4 import LayerArea, Volume, WrittenLayer

_SNAPSHOTS: Final = Path("io.containerd.snapshotter.v1.overlayfs/snapshots")
# Where tools write "now", a volume has one fixed moment.
_MOMENT: Final = 1_700_000_000 * 10**9
_PIECE: Final = 1 << 20
_QUICK: Final = 256 << 20
"""Compressed bytes of the largest layer whose turn comes while a connection that was opened before is still good."""
_MANY: Final = 8192
"""Files that have arrived when containerd's commits are worth another look at the volume."""


class VolumeImage:
    """The file of a volume. After the fill, ``finish_volume`` brings the store's own files."""

    apart = True

    def __init__(
        self,
        plan: Plan,
        store: Callable[[], Client],
        volume: Volume,
        workers: Workers,
        mounted: Callable[[], AbstractContextManager[Mounted]],
        *,
        dense: bool = False,
    ) -> None:
        """``store`` is the one to commit to, ``mounted`` mounts the volume to read; ``dense``: see ``Volume.areas``."""
        self._plan, self._store, self._volume, self._mounted = plan, store, volume, mounted
        self._workers, self._dense = workers, dense
        # One more than there are workers stands ready: none waits for a registry's first bytes between two layers.
        quick = all(layer.size <= _QUICK for image in plan.all_images for layer in image.layers)
        self.at_once = workers.count + quick
        self._turn = 0
        self._jobs: Sequence[Job] = ()
        self._areas: list[LayerArea] = []
        self._written: dict[int, WrittenLayer] = {}
        self._moved = threading.Condition()
        self._folders: dict[str, str] = {}
        self._committer = ThreadPoolExecutor(1, thread_name_prefix="commit")
        self._commits: Future[None] | None = None
        self._unmounted: Future[None] | None = None
        self._waiting = 0
        self._over = threading.Event()
        volume.retain(layer.chain_id for image in plan.all_images for layer in image.layers)

    def has(self, chain: str) -> bool:
        """Whether the volume has its tree."""
        return chain in self._volume.placed

    def begin(self, jobs: Sequence[Job]) -> None:
        """Divide the volume's free space among the layers that are to come."""
        self._jobs = jobs
        kept = sum({layer.digest: layer.size for image in self._plan.all_images for layer in image.layers}.values())
        layers = [job.layer for job in jobs]
        self._areas = self._volume.areas(layers, kept=kept if self._plan.keep_layers else 0, dense=self._dense)

    def unpack(self, number: int, stream: Readable, options: UnpackOptions) -> Unpacked:
        """Have a worker write the layer into its place."""
        job = LayerJob(
            self._jobs[number].layer, self._areas[number], partial(self._lowers, number), options.bound,
            options.allowance, self._next_turn,
        )  # fmt: skip
        self._wait_for(lambda: self._turn == number)  # else those above could take all workers, and wait for it
        done = self._workers.write(job, stream, progress=options.progress, keep=options.keep)
        self._written[number] = done.written
        return Unpacked(done.entries, done.raw_size)

    def _lowers(self, number: int) -> list[int]:
        """Wait until the layers below a job's are placed; return their roots, the top one first."""
        parents, placed = self._jobs[number].parents, self._volume.placed
        self._wait_for(lambda: all(chain in placed for chain in parents))
        return [placed[chain].root for chain in reversed(parents)]

    def _next_turn(self) -> None:
        with self._moved:
            self._turn += 1
            self._moved.notify_all()

    def _wait_for(self, condition: Callable[[], bool]) -> None:
        with self._moved:
            self._moved.wait_for(lambda: self._over.is_set() or condition())
        if self._over.is_set():
            raise Interrupted("the fill ended early")

    def arrived(self, number: int, unpacked: Unpacked) -> None:
        """Take the layer over, and now and then let containerd commit what is there."""
        with self._moved:
            placed = self._areas[number].settle(self._written.pop(number))
            self._volume.placed[self._jobs[number].layer.chain_id] = placed
            self._moved.notify_all()
        self._waiting += unpacked.entries
        if self._waiting >= _MANY and (self._commits is None or self._commits.done()):
            self._begin_commits()

    def finish(self) -> None:
        """Let containerd commit every layer of the plan, with the layers' trees in its snapshots' folders."""
        self._end_commits()
        if any(layer.chain_id not in self._folders for image in self._plan.all_images for layer in image.layers):
            self._begin_commits()
            self._end_commits()

    def _begin_commits(self) -> None:
        self._end_commits()
        self._waiting = 0
        self._volume.preview()
        self._commits = self._committer.submit(self._commit, frozenset(self._volume.placed))

    def _end_commits(self) -> None:
        if self._commits is not None:
            self._commits.result()

    def _commit(self, arrived: Collection[str]) -> None:
        """Commit the layers that have arrived and all those below them; what was committed before is passed over.

        The kernel takes its time to forget the files of a mount: what comes next does not wait for it.
        """
        with ExitStack() as stack:
            mounted = stack.enter_context(self._mounted())
            new = [chain for chain in arrived if chain not in self._folders]
            prefetch(mounted.device, merged(place for chain in new for place in self._volume.tables(chain)))
            for image in self._plan.all_images:
                parent = ""
                for layer in image.layers:
                    chain = layer.chain_id
                    if chain not in arrived or self._over.is_set():
                        break
                    if chain not in self._folders:
                        commit(self._store(), chain, parent, partial(self._show, mounted.path / chain, chain))
                        unbind(Path(self._folders[chain]))
                    parent = chain
            self._unmounted = self._committer.submit(stack.pop_all().close)

    def _show(self, tree: Path, chain: str, found: SnapshotFolders) -> None:
        status = found.upper.stat()
        if (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) != (0o755, 0, 0):
            raise ContainerdError(
                f"containerd's snapshotter lays out its folders differently: {status!r}",
                hint="this is a bug in parbake: report it, with containerd's version",
            )
        bind(tree, found.upper)
        self._folders[chain] = str(found.upper)

    def stop(self) -> None:
        """Wake layers that wait for others, and have nothing mounted any more."""
        self._over.set()
        with self._moved:
            self._moved.notify_all()
        self._workers.stop()
        self._volume.turnstile.give_up()
        if self._commits is not None:
            wait([self._commits])  # it leaves an unmount to the committer
        self._committer.shutdown()

    def finish_volume(self, root: Path) -> None:
        """Bring the files of the store (``root``, which no containerd uses any more) into the volume."""
        holders = {Path(folder).parent: chain for chain, folder in self._folders.items()}
        try:
            self._volume.finish(lambda store: _tree(root, store, lambda path: self._holder(path, holders.get(path))))
        finally:
            self._committer.shutdown()
        if self._unmounted is not None:
            self._unmounted.result()

    def _holder(self, path: Path, chain: str | None) -> FileNode | None:
        if chain is None:
            return None
        work = _node_of((path / "work").stat()) if (path / "work").exists() else None
        return self._volume.holder(chain, _node_of(path.stat()), work)


def _tree(folder: Path, store: Store, known: Callable[[Path], FileNode | None]) -> FileNode:
    """Return the tree of a folder of this machine; ``known`` returns those that are on the volume already."""
    node = _node_of(folder.stat())
    assert node.children is not None
    for item in sorted(os.scandir(folder), key=lambda item: item.name):
        path = Path(item.path)
        status = item.stat(follow_symlinks=False)
        child = known(path)
        if child is None and item.is_dir(follow_symlinks=False):
            child = _tree(path, store, known)
        elif child is None and item.is_file(follow_symlinks=False):
            child = _node_of(status)
            child.size = status.st_size
            child.extents = store.put(_pieces(path))
        if child is not None:  # sockets and the like live only while containerd runs
            node.children[os.fsencode(item.name)] = child
    return node


def _node_of(status: os.stat_result) -> FileNode:
    return FileNode(status.st_mode, status.st_uid, status.st_gid, _MOMENT)


def _pieces(path: Path) -> Iterator[memoryview]:
    with path.open("rb", buffering=0) as file:
        while data := file.read(_PIECE):
            yield memoryview(data)

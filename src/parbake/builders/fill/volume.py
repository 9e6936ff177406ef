"""Fill the file of an ext4 volume that is never mounted: the layers' files, and a store's own, go straight into it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from parbake.builders.fill.destinations import Job, UnpackOptions
from parbake.builders.workers.pool import LayerJob, Workers
from parbake.containerd.offline import CommittedSnapshot, OfflineStore
from parbake.core.errors import Interrupted
from parbake.images.layers import Unpacked

if TYPE_CHECKING:
    from parbake.core.model import Plan
    from parbake.core.sources import Readable
    from parbake.machine.ext4 import LayerArea, Volume, WrittenLayer

_QUICK: Final = 256 << 20
"""Compressed bytes of the largest layer whose turn comes while a connection that was opened before is still good."""


class VolumeImage:
    """The file of a volume: takes the layers, then the files of the store in which they are snapshots."""

    def __init__(self, plan: Plan, volume: Volume, workers: Workers, blobs: Path, *, dense: bool = False) -> None:
        """``blobs`` is a folder for what the store keeps of compressed layers; ``dense``: see ``Volume.areas``."""
        self._plan, self._volume, self._workers, self._dense = plan, volume, workers, dense
        self.store = OfflineStore(blobs)
        # One more than there are workers stands ready: none waits for a registry's first bytes between two layers.
        quick = all(layer.size <= _QUICK for image in plan.all_images for layer in image.layers)
        self.at_once = workers.count + quick
        self._turn = 0
        self._jobs: Sequence[Job] = ()
        self._areas: list[LayerArea] = []
        self._written: dict[int, WrittenLayer] = {}
        self._moved = threading.Condition()
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

    def arrived(self, number: int, unpacked: Unpacked) -> None:  # noqa: ARG002
        """Take the layer over."""
        with self._moved:
            placed = self._areas[number].settle(self._written.pop(number))
            self._volume.placed[self._jobs[number].layer.chain_id] = placed
            self._moved.notify_all()

    def stop(self) -> None:
        """Wake layers that wait for others."""
        self._over.set()
        with self._moved:
            self._moved.notify_all()
        self._workers.stop()
        self._volume.turnstile.give_up()

    def finish_volume(self) -> None:
        """Bring the files of the store into the volume. Raises DiskFull, OSError."""
        snapshots: dict[str, CommittedSnapshot] = {}
        for image in self._plan.all_images:
            parent = ""
            for layer in image.layers:
                chain = layer.chain_id
                if chain not in snapshots:
                    snapshots[chain] = CommittedSnapshot(chain, parent, *self._volume.usage(chain))
                parent = chain
        self._volume.finish(partial(self.store.tree, list(snapshots.values()), self._volume.holder))

"""Layers in a volume that parbake's own writer has made, looked at through the kernel."""

from __future__ import annotations

import io
import stat
from collections.abc import Sequence
from pathlib import Path

from parbake.builders.workers.pool import LayerJob, Workers
from parbake.core import filetree
from parbake.core.model import MIB, Layer
from parbake.core.run import run
from parbake.images.layers import Allowance
from parbake.machine import disk
from parbake.machine.disk import private_mounts
from parbake.machine.ext4 import LayerArea, Volume
from standins.trees import Node, scan
from standins.workers import ThreadWorkers


def volume_trees(
    layers: Sequence[Layer], blobs: Sequence[bytes], folder: Path, *, check: bool = True
) -> list[dict[bytes, Node]]:
    """Write layers, the bottom one first, into a fresh volume; return their trees as the kernel shows them.

    Raises what the engine raises. ``check``: e2fsck must find nothing wrong.
    """
    file = folder / "volume.raw"
    disk.make_filesystem(file, "ext4", 64 * MIB, name="test")
    try:
        write(file, layers, blobs)
        if check:
            run(["e2fsck", "-fn", str(file)])
        with private_mounts(), disk.mount(file, folder / "volume", filesystem="ext4", read_only=True) as mounted:
            return [scan(mounted.path / layer.chain_id / "fs") for layer in layers]
    finally:
        file.unlink()


def write(file: Path, layers: Sequence[Layer], blobs: Sequence[bytes]) -> Volume:
    """Write layers into an empty volume whose root shows them by chain ID; return the volume, closed."""
    with Volume(file) as volume, ThreadWorkers() as workers:
        for number, area in enumerate(volume.areas(layers)):
            add(volume, workers, area, layers[: number + 1], blobs[number])
        show(volume)
    return volume


def add(volume: Volume, workers: Workers, area: LayerArea, layers: Sequence[Layer], blob: bytes) -> None:
    """Have the last of some layers written into its place; those below are there. Raises what the engine raises."""
    *below, layer = layers
    roots = [volume.placed[each.chain_id].root for each in reversed(below)]
    job = LayerJob(layer, area, lambda: roots, bound=1 << 30, allowance=Allowance(1 << 40))
    done = workers.write(job, io.BytesIO(blob), progress=lambda _: None)
    volume.placed[layer.chain_id] = area.settle(done.written)


def show(volume: Volume) -> None:
    """Finish a volume: its root shows the layers by chain ID."""
    volume.finish(lambda _: _root(volume))


def _root(volume: Volume) -> filetree.FileNode:
    root = filetree.FileNode(stat.S_IFDIR | 0o755)
    assert root.children is not None
    for chain in volume.placed:
        holder, work = (filetree.FileNode(stat.S_IFDIR | 0o700) for _ in range(2))
        root.children[chain.encode()] = volume.holder(chain, holder, work)
    return root

"""Images made of tar bytes, put into a private containerd by its own means or by parbake's fill.

with Daemon(tmp_path / "root", tmp_path / "run") as daemon, daemon.client() as client:
    pull_by_ctr(daemon, built, tmp_path, "localhost/peer:1")    # ctr images import: containerd's own unpack
    trees = snapshot_folders(client, chain_ids)                 # the "fs" folder of each snapshot
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from parbake.containerd import Client, Daemon
from parbake.containerd.labels import chain_ids
from parbake.core.model import Artefact, Base, Descriptor, Image, Layer, Plan, Platform
from parbake.core.run import Result, run
from parbake.core.sources import Readable
from standins.images import Blob, Built, write_layout

AMD64 = Platform(architecture="amd64")


def descriptor(blob: Blob) -> Descriptor:
    return Descriptor(media_type=blob.media_type, digest=blob.digest, size=blob.size)


def layers_of(built: Built) -> tuple[Layer, ...]:
    return tuple(
        Layer(media_type=blob.media_type, digest=blob.digest, size=blob.size, diff_id=diff_id, chain_id=chain)
        for blob, diff_id, chain in zip(built.layers, built.diff_ids, chain_ids(built.diff_ids), strict=True)
    )


def image_of(built: Built, reference: str, *, target: Built | None = None) -> Image:
    """Return the model of an image, whose name points to ``target`` (an index that has it) when given."""
    return Image(
        reference=reference,
        platform=AMD64,
        target=descriptor((target or built).root),
        manifest=descriptor(built.root),
        config=descriptor(built.config),
        layers=layers_of(built),
    )


def plan_of(*images: Image, keep_layers: bool = False, size: int = 1 << 30) -> Plan:
    return Plan(
        name="test",
        platform=AMD64,
        base=Base(kind="none"),
        artefact=Artefact(kind="volume"),
        images=images,
        keep_layers=keep_layers,
        size=size,
    )


class Memory:
    """A source that holds images in memory; counts how often each blob was opened."""

    def __init__(self, *built: Built) -> None:
        self.blobs: dict[str, bytes] = {}
        self.opened: list[str] = []
        for one in built:
            self.add(one)

    def add(self, built: Built) -> None:
        for blob in (built.root, *built.blobs):
            self.blobs[blob.digest] = blob.data
        for child in built.children:
            self.add(child)

    def read(self, descriptor: Descriptor) -> bytes:
        return self.blobs[descriptor.digest]

    @contextmanager
    def open(self, descriptor: Descriptor, *, offset: int = 0) -> Iterator[Readable]:
        self.opened.append(descriptor.digest)
        yield io.BytesIO(self.blobs[descriptor.digest][offset:])


def ctr(daemon: Daemon, *arguments: str, check: bool = True) -> Result:
    return run(["ctr", "--address", str(daemon.socket), "--namespace", "k8s.io", *arguments], check=check)


def pull_by_ctr(daemon: Daemon, built: Built, folder: Path, name: str, *, check: bool = True) -> Result:
    """Let containerd import and unpack an image by itself."""
    layout = write_layout(folder / "layout", {name: built})
    archive = folder / "image.tar"
    run(["tar", "-cf", str(archive), "-C", str(layout), "."])
    return ctr(daemon, "images", "import", "--snapshotter", "overlayfs", "--no-unpack=false", str(archive), check=check)


def snapshot_folders(client: Client, chains: tuple[str, ...]) -> tuple[Path, ...]:
    """Return the folder with a committed snapshot's own files, for each of a chain of them, bottom first."""
    mounts = client.snapshots.view("look", chains[-1])
    client.snapshots.remove("look")
    (mount,) = mounts
    if mount.type == "bind":
        return (Path(mount.source),)
    (lower,) = (option.removeprefix("lowerdir=") for option in mount.options if option.startswith("lowerdir="))
    return tuple(Path(path) for path in reversed(lower.split(":")))

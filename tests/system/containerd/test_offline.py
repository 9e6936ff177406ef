"""A store that parbake writes without a containerd, beside one that a containerd wrote: value by value."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from parbake.containerd import Client
from parbake.containerd.bolt import Bucket
from parbake.machine import disk
from standins.bolt import read
from standins.every_layer_feature import push_all, variety
from standins.registry import DockerRegistry
from standins.runs import bake, bakefile, opened, private_places

__all__ = ["private_places"]
pytestmark = pytest.mark.root

METADATA = "io.containerd.metadata.v1.bolt/meta.db"
SNAPSHOTTER = "io.containerd.snapshotter.v1.overlayfs/metadata.db"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    with DockerRegistry(tmp_path_factory.mktemp("registry")) as served:
        push_all(served.url, variety())
        yield served


def volume_of(folder: Path, registry: DockerRegistry, filesystem: str, **more: Any) -> Path:
    """Bake images with all that layers may hold, of which one has no second name."""
    names: list[str | dict[str, Any]] = [f"{registry.host}/team/{name}" for name in variety()]
    names[0] = {"reference": names[0], "also_by_digest": False}
    artefact = {"kind": "volume", "filesystem": filesystem}
    return Path(bake(bakefile(folder / filesystem, names, base="none", artefact=artefact, **more))["artefact_path"])


def plain(bucket: Bucket) -> dict[str, Any]:
    """Return what a bucket says, without moments, and without buckets that hold nothing."""
    found: dict[str, Any] = {}
    for key, value in bucket.items.items():
        if isinstance(value, bytes):
            if key not in (b"createdat", b"updatedat"):
                found[key.decode()] = value
        elif inner := plain(value):
            found[key.decode()] = inner
    return found


def number(data: bytes) -> int:
    """Read a number as Go's ``binary.Uvarint`` does."""
    assert all(byte & 0x80 for byte in data[:-1])
    assert not data[-1] & 0x80
    return sum((byte & 0x7F) << 7 * place for place, byte in enumerate(data))


def unnumbered(name: bytes | str) -> str:
    """Return the name of a snapshot without the number in it, which is drawn in the order of the commits."""
    text = name.decode() if isinstance(name, bytes) else name
    namespace, drawn, chain = text.split("/")
    assert int(drawn) > 0
    return f"{namespace}/{chain}"


def databases(root: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, int]]:
    """Return both databases with names in the place of numbers, and what each snapshot takes in bytes."""
    metadata, snapshotter = plain(read(root / METADATA)), plain(read(root / SNAPSHOTTER))
    for snapshot in metadata["v1"]["k8s.io"]["snapshots"]["overlayfs"].values():
        snapshot["name"] = unnumbered(snapshot["name"])
    snapshots, names, sizes = snapshotter["v1"]["snapshots"], {}, {}
    for name, snapshot in snapshots.items():
        identity = number(snapshot.pop("id"))
        assert (root / "io.containerd.snapshotter.v1.overlayfs/snapshots" / str(identity) / "fs").is_dir()
        names[identity] = unnumbered(name)
        sizes[unnumbered(name)] = number(snapshot.pop("size")) >> 1
        if "parent" in snapshot:
            snapshot["parent"] = unnumbered(snapshot["parent"])
    snapshotter["v1"]["snapshots"] = {unnumbered(name): snapshot for name, snapshot in snapshots.items()}
    snapshotter["v1"]["parents"] = {
        tuple(names[number(part)] for part in key.encode().split(b"\0")): unnumbered(value)
        for key, value in snapshotter["v1"]["parents"].items()
    }
    return metadata, snapshotter, sizes


def taken(folder: Path) -> int:
    """Return what the files of a folder take on their file system, in bytes; a file of many names counts once."""
    statuses = [folder.lstat()]
    for where, folders, files in os.walk(folder):
        statuses += [(Path(where) / name).lstat() for name in (*folders, *files)]
    return sum({status.st_ino: status.st_blocks * 512 for status in statuses}.values())


@pytest.mark.parametrize("keep_layers", [False, True])
def test_the_databases_say_what_containerds_own_say(
    keep_layers: bool, private_places: Path, registry: DockerRegistry
) -> None:
    """The same plan on ext4, which parbake writes, and on XFS, where a containerd works on the mounted volume."""
    found = {}
    for filesystem in ("ext4", "xfs"):
        volume = volume_of(private_places, registry, filesystem, keep_layers=keep_layers)
        at = private_places / f"mnt-{filesystem}"
        with disk.private_mounts(), disk.mount(volume, at, filesystem=filesystem, read_only=True) as mounted:
            metadata, snapshotter, sizes = databases(mounted.path)
            content = mounted.path / "io.containerd.content.v1.content/blobs/sha256"
            blobs = {blob.name: (blob.read_bytes(), blob.stat().st_mode) for blob in content.iterdir()}
            found[filesystem] = (metadata, snapshotter, blobs)
            if filesystem == "ext4":
                folders = mounted.path / "io.containerd.snapshotter.v1.overlayfs/snapshots"
                assert sorted(sizes.values()) == sorted(taken(each / "fs") for each in folders.iterdir())
    ours, theirs = found["ext4"], found["xfs"]
    assert len(ours[1]["v1"]["snapshots"]) > 10
    assert ours == theirs


def shape(client: Client) -> list[Any]:
    """Return what a containerd tells of its store."""
    return [
        sorted((record.name, record.target.digest, record.labels) for record in client.images.list()),
        sorted((info.digest, info.size, info.labels) for info in client.content.list()),
        sorted((info.name, info.parent, client.snapshots.usage(info.name)) for info in client.snapshots.list()),
    ]


def test_a_containerd_goes_on_with_the_databases(private_places: Path, registry: DockerRegistry) -> None:
    """bbolt itself splits, joins and frees the pages that were written for it."""
    volume = volume_of(private_places, registry, "ext4")
    with opened(volume, private_places / "look", "ext4") as (_, daemon), daemon.client() as client:
        before = shape(client)
        target = client.images.list()[0].target
        names = [f"registry.example/team/{'x' * (number % 90)}:{number}" for number in range(150)]
        for name in names:
            client.images.put(name, target, {"some.label": name, "other.label": "y" * 200})
        assert len(client.images.list()) == len(before[0]) + len(names)
        client.gc()
        for name in names:
            client.images.delete(name, sync=False)
        client.gc()
        assert shape(client) == before
        for record in client.images.list():
            client.images.delete(record.name)
        client.gc()
        assert shape(client) == [[], [], []]

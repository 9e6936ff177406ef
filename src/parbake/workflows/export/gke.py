"""GKE's secondary boot disk for container images: the layout that its own disk image builder makes.

Source: GoogleCloudPlatform/ai-on-gke, gke-disk-image-builder: ``script/startup.sh`` writes it, ``script/verify.sh``
says how it is checked. An ext4 file system over the whole disk holds

- ``snapshots/N/fs``, what a committed snapshot of containerd's overlayfs snapshotter adds to its parent,
- ``snapshots.metadata``, a line ``CHAIN-ID snapshots/N/fs CHECKSUM`` for each of them,
- ``images.metadata``, the list of images as ``ctr images ls`` shows it.

The checksum is the MD5 of the sorted MD5s, one a line, of all regular files in that tree, as md5sum(1) writes them.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from parbake.containerd import Client, Daemon, top_folder
from parbake.core.errors import BadContent
from parbake.core.events import Events
from parbake.core.model import Descriptor
from parbake.core.workspace import remove_tree
from parbake.machine import disk

_SNAPSHOTS = "snapshots"
_FOLDER = re.compile(r"snapshots/\d+/fs")
_ESCAPED = re.compile(r"[\\\n]")
_COLUMNS = ("REF", "TYPE", "DIGEST", "SIZE", "PLATFORMS", "LABELS")


@dataclass(frozen=True, slots=True)
class GkeLayout:
    """What a disk holds: the snapshots' folders and checksums by chain ID, and the images' names."""

    snapshots: dict[str, tuple[str, str]]
    images: tuple[str, ...]

    def text(self) -> str:
        """Return ``snapshots.metadata``."""
        return "".join(f"{chain} {folder} {checksum}\n" for chain, (folder, checksum) in self.snapshots.items())


def secondary_boot_disk(volume: Path, target: Path, work: Path, events: Events) -> GkeLayout:
    """Make a disk with GKE's layout of an ext4 volume with a containerd store. Needs root.

    The volume is not changed: the disk is a copy of it (shared blocks, where the file system can), in which the trees
    are moved and the rest is removed. Raises BadContent (a store without images), DiskFull, ContainerdError.
    """
    disk.copy_sparse(volume, target, events)
    with disk.private_mounts(), disk.mount(target, work / "mnt", filesystem="ext4") as mounted:
        with Daemon(mounted.path, work / "containerd") as daemon, daemon.client() as store:
            images = {image.name: image.target for image in store.images.list()}
            trees = dict(_trees(store, mounted.path.resolve()))
        if not images or not trees:
            raise BadContent(f"{volume} has no images in its containerd store", hint="name a volume that parbake baked")
        with events.stage("layout", "Arrange the snapshots as GKE has them"):
            found = _arrange(mounted.path, trees, events)
            layout = GkeLayout(found, tuple(sorted(images)))
            (mounted.path / "snapshots.metadata").write_text(layout.text())
            (mounted.path / "images.metadata").write_text(_listed(images))
            disk.trim(mounted)
    disk.check_filesystem(target, "ext4")
    return layout


def _trees(store: Client, root: Path) -> Iterator[tuple[str, Path]]:
    """Yield the chain ID and the folder of each committed snapshot."""
    for snapshot in store.snapshots.list():
        if snapshot.kind != "committed":
            continue
        key = f"parbake-view {snapshot.name}"
        store.snapshots.remove(key)
        folder = top_folder(store.snapshots.view(key, snapshot.name))
        store.snapshots.remove(key)
        if not folder.is_relative_to(root) or not _FOLDER.fullmatch("/".join(folder.parts[-3:])):
            raise BadContent(
                f"the files of {snapshot.name} lie in {folder}, which is not a folder of a snapshot",
                hint="bake the volume again: `parbake bake --force`",
            )
        yield snapshot.name, folder


def _arrange(root: Path, trees: dict[str, Path], events: Events) -> dict[str, tuple[str, str]]:
    """Move the snapshots' folders to where GKE looks for them, and remove everything else."""
    kept = {"lost+found", _SNAPSHOTS}
    (root / _SNAPSHOTS).mkdir(mode=0o755)
    for folder in trees.values():
        folder.parent.rename(root / _SNAPSHOTS / folder.parent.name)
    for entry in root.iterdir():
        if entry.name not in kept:
            remove_tree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    found = {}
    with events.task("checksums", len(trees), unit="items") as task, ThreadPoolExecutor() as pool:
        for chain, folder in sorted(trees.items()):
            place = f"{_SNAPSHOTS}/{folder.parent.name}/fs"
            found[chain] = (place, tree_checksum(root, place, pool))
            task.advance(1)
    return found


def tree_checksum(root: Path, place: str, pool: ThreadPoolExecutor) -> str:
    """Return the checksum of a tree below ``root``, as GKE's builder computes it."""
    digests = sorted(pool.map(lambda path: _md5sum(path, root), _regular_files(root / place)))
    return hashlib.md5("".join(f"{digest}\n" for digest in digests).encode(), usedforsecurity=False).hexdigest()


def _regular_files(folder: Path) -> Iterator[Path]:
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            yield from _regular_files(Path(entry.path))
        elif stat.S_ISREG(entry.stat(follow_symlinks=False).st_mode):
            yield Path(entry.path)


def _md5sum(path: Path, root: Path) -> str:
    """Return the first word of what md5sum(1) writes of a file: a backslash says that the name is escaped."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    return ("\\" if _ESCAPED.search(str(path.relative_to(root))) else "") + digest


def _listed(images: Mapping[str, Descriptor]) -> str:
    rows = [_COLUMNS]
    rows += [(name, target.media_type, target.digest, "-", "-", "-") for name, target in sorted(images.items())]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    return "".join(" ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)) + "\n" for row in rows)

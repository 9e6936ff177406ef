"""A stranger's store: nothing in it leads a containerd of ours, or us, to another place of the machine."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from parbake.containerd import Daemon, skeleton
from parbake.core.errors import BadBase, ParbakeError
from standins.containerd_support import busybox, fill, victim
from standins.trees import scan

pytestmark = pytest.mark.root

CONTENT, SNAPSHOTS = "io.containerd.content.v1.content", "io.containerd.snapshotter.v1.overlayfs"
FOLDERS = (
    "io.containerd.metadata.v1.bolt", "tmpmounts", CONTENT, f"{CONTENT}/blobs", f"{CONTENT}/blobs/sha256",
    f"{CONTENT}/ingest", SNAPSHOTS, f"{SNAPSHOTS}/snapshots", f"{SNAPSHOTS}/snapshots/1", f"{SNAPSHOTS}/snapshots/1/fs",
    f"{SNAPSHOTS}/snapshots/1/work", "io.containerd.grpc.v1.cri", "io.containerd.grpc.v1.cri/sandboxes",
    "io.containerd.grpc.v1.cri/containers", "io.containerd.runtime.v2.task",
)  # fmt: skip
FILES = ("io.containerd.metadata.v1.bolt/meta.db", f"{SNAPSHOTS}/metadata.db", f"{CONTENT}/blobs/sha256/{'0' * 64}")
OTHERS: dict[str, Callable[[Path], None]] = {
    "a link": lambda path: path.symlink_to("/"),
    "a FIFO": os.mkfifo,
    "a device": lambda path: os.mknod(path, 0o600 | 0o20000, os.makedev(1, 3)),
}


@pytest.mark.parametrize("place", FOLDERS)
@pytest.mark.parametrize("cri", [False, True])
def test_where_a_store_leads_out_by_a_link_nothing_outside_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, *, cri: bool
) -> None:
    """The rule holds by the kernel, also where the look before (``skeleton.check``) had missed the link."""
    monkeypatch.setattr(skeleton, "check", lambda _root: None)
    machine = victim(tmp_path / "machine")
    before = scan(machine)
    link = tmp_path / "store" / place
    link.parent.mkdir(parents=True)
    link.symlink_to(machine)
    daemon = Daemon(tmp_path / "store", tmp_path / "run", cri=cri)
    with suppress(ParbakeError), daemon, daemon.client() as client:
        client.gc()
        made = busybox()
        with client.lease("attack"):
            client.content.write(made.layers[0], made.blobs[made.layers[0].digest])
        fill(client, "registry.test/app:1", made)
    assert scan(machine) == before


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("place", [*FOLDERS, *FILES])
def test_a_store_with_something_else_in_the_place_of_its_own_is_refused_before_anything_starts(
    tmp_path: Path, place: str, kind: str
) -> None:
    at = tmp_path / "store" / place
    at.parent.mkdir(parents=True)
    OTHERS[kind](at)
    with pytest.raises(BadBase, match=f"{place} in .*store is {kind}, not a f"), Daemon(tmp_path / "store", tmp_path):
        pass
    assert not (tmp_path / "containerd.log").exists()

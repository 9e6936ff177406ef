"""The folders and files of which a containerd's store is made, looked at before one of ours works on a stranger's.

What the layers hold is not looked at: overlayfs follows nothing there. Sources: containerd's ``plugins/content/local``,
``plugins/snapshots/overlay``, ``core/metadata``, ``internal/cri``.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

from parbake.core.errors import BadBase

_CONTENT: Final = "io.containerd.content.v1.content"
_OVERLAY: Final = "io.containerd.snapshotter.v1.overlayfs"
STAGING: Final = ".parbake-staging"
"""Layers on their way lie here, beside the snapshots that they will become: moving them there is a rename."""
# From the top down: what a pattern leads through has been looked at when its turn comes.
_FOLDERS: Final = (
    "io.containerd.*", "tmpmounts", STAGING, "io.containerd.grpc.v1.cri/*",
    f"{_CONTENT}/blobs", f"{_CONTENT}/blobs/*", f"{_CONTENT}/ingest", f"{_CONTENT}/ingest/*",
    f"{_OVERLAY}/snapshots", f"{_OVERLAY}/snapshots/*", f"{_OVERLAY}/snapshots/*/*",
)  # fmt: skip
_FILES: Final = (
    "io.containerd.metadata.v1.bolt/*", f"{_OVERLAY}/metadata.db", f"{_CONTENT}/blobs/*/*", f"{_CONTENT}/ingest/*/*",
)  # fmt: skip
_KINDS: Final = {
    stat.S_IFLNK: "a link", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFREG: "a file",
    stat.S_IFDIR: "a folder", stat.S_IFBLK: "a device", stat.S_IFCHR: "a device",
}  # fmt: skip


def check(root: Path) -> None:
    """Raise BadBase where something else stands in the place of a store's own folder or file, or is mounted there.

    containerd would work wherever a link leads, and remove there what it does not know.
    """
    device = root.stat().st_dev
    _look(root, _FOLDERS, "a folder", stat.S_ISDIR, device)
    _look(root, _FILES, "a file", stat.S_ISREG, device)


def _look(root: Path, patterns: tuple[str, ...], wanted: str, fits: Callable[[int], bool], device: int) -> None:
    for path in (path for pattern in patterns for path in root.glob(pattern)):
        status = path.lstat()
        if fits(status.st_mode) and status.st_dev == device:
            continue
        what = _KINDS[stat.S_IFMT(status.st_mode)] if status.st_dev == device else "on another file system"
        raise BadBase(
            f"{os.fspath(path.relative_to(root))} in the containerd store {root} is {what}, not {wanted} of its own",
            hint="no containerd makes such a store: do not use what holds it, or look at who changed it",
        )

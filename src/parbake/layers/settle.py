"""What a layer's tree needs from the layers below it: looks of implied folders, and hard links to files down there.

The engine unpacks layers in any order, also at the same time; this is the part that has to wait for the layers
below. It does what containerd does while it unpacks (``mkparent`` with ``WithParents``).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from parbake.errors import DiskFull, LayerError
from parbake.layers.merged import copy_xattrs, link_below
from parbake.layers.paths import FOLDER, Folders, Implied

if TYPE_CHECKING:
    from parbake.layers.engine import Unpacked


def settle(target: Path, unpacked: Unpacked, lowers: Sequence[Path]) -> None:
    """Finish a layer's tree once all layers below are in place (``lowers``: their folders, the top one first).

    - A folder that the layer implies but does not describe looks like the topmost one below: owner, mode, times and
      attributes. In containerd its modification time is the moment of the unpack; here it is that of the folder
      below, or 1970, so that the same layers give the same tree.
    - A hard link to a file below: containerd fails. Here the file is copied up first, as overlayfs would do, so that
      layers of tools that write such links (none of the large ones does) can be baked.

    Idempotent. Raises LayerError when a link leads nowhere, DiskFull.
    """
    if not unpacked.implied and not unpacked.pending:
        return
    try:
        with ExitStack() as stack:
            upper = stack.enter_context(_opened(target))
            below = [stack.enter_context(_opened(lower)) for lower in lowers]
            for link in unpacked.pending:
                upper.trim()
                link_below(upper, link, [layer.root for layer in below])
            for path, known in (dict(unpacked.implied) | upper.implied).items():
                upper.trim()
                _dress(upper, path, below, known)
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise DiskFull(f"no space left below {target}", hint="give the artefact a larger size") from error
        raise LayerError(f"{target}: {error}") from error


@contextmanager
def _opened(path: Path) -> Iterator[Folders]:
    root = os.open(path, FOLDER)
    folders = Folders(root)
    try:
        yield folders
    finally:
        folders.close()
        os.close(root)


def _dress(upper: Folders, path: bytes, below: Sequence[Folders], known: Implied) -> None:
    """Let an implied folder look like the topmost one below; what an entry said of it stays."""
    place = upper.find(path)
    if place is None:
        return
    handle = _topmost(path, below)
    if handle is None:
        if known is Implied.BARE:
            os.utime(place.handle, ns=(0, 0))
        return
    looks = os.fstat(handle)
    if known is not Implied.DESCRIBED:
        os.fchown(place.handle, looks.st_uid, looks.st_gid)
        os.fchmod(place.handle, stat.S_IMODE(looks.st_mode))
    copy_xattrs(handle, place.handle)
    if known is Implied.BARE:
        os.utime(place.handle, ns=(looks.st_atime_ns, looks.st_mtime_ns))


def _topmost(path: bytes, below: Sequence[Folders]) -> int | None:
    """Return the topmost folder of a path, each layer looked at by itself, as containerd does."""
    for lower in below:
        lower.trim()
        try:
            place = lower.find(path)
        except LayerError:
            return None  # something that is no folder hides what is further down
        if place is not None:
            return place.handle
        if _has(lower, path):
            return None
    return None


def _has(lower: Folders, path: bytes) -> bool:
    """Whether a layer has something (a whiteout, a dangling link) under a path that is no folder."""
    head, _, base = path.rpartition(b"/")
    place = lower.find(head)
    if place is None:
        return False
    try:
        return not stat.S_ISLNK(os.lstat(base, dir_fd=place.handle).st_mode)
    except FileNotFoundError:
        return False

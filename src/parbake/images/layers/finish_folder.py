"""What a layer's tree needs from the layers below it: the metadata of folders that it implies.

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

from parbake.core.errors import DiskFull, LayerError
from parbake.images.layers.acls import ACCESS, DEFAULT
from parbake.images.layers.paths import FOLDER, Implied, MadeFolders, OpenFolders, check_group, hands_down, join

if TYPE_CHECKING:
    from parbake.images.layers.engine import Unpacked


def complete_folder(target: Path, unpacked: Unpacked, lowers: Sequence[Path]) -> None:
    """Finish a layer's tree once all layers below are in place (``lowers``: their folders, the top one first).

    A folder that the layer implies but does not describe looks like the topmost one below: owner, mode, times and
    attributes. In containerd its modification time is the moment of the unpack; here it is that of the folder below, or
    1970, so that the same layers give the same tree.

    Idempotent. Raises LayerError where containerd fails (something else lies in the way below), DiskFull.
    """
    if not unpacked.implied:
        return
    try:
        with ExitStack() as stack:
            upper = stack.enter_context(_opened(target))
            below = [stack.enter_context(_opened(lower)) for lower in lowers]
            made = MadeFolders()
            for path, known in unpacked.implied:
                upper.trim()
                source = _topmost(path, below)
                status = None if source is None else os.fstat(source)
                group = made.add(path, known, status and (status.st_mode, status.st_gid))
                if source is not None and DEFAULT.decode() in os.listxattr(source):
                    raise hands_down(path)
                check_group(path, known, 0 if status is None else status.st_mode, group)
                place = None if known & Implied.GONE else upper.find(path)
                if place is not None:
                    _apply_metadata(place.handle, source, known, group)
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise DiskFull(f"no space left below {target}", hint="give the artefact a larger size") from error
        raise LayerError(f"{target}: {error}") from error


@contextmanager
def _opened(path: Path) -> Iterator[OpenFolders]:
    root = os.open(path, FOLDER)
    folders = OpenFolders(root)
    try:
        yield folders
    finally:
        folders.close()
        os.close(root)


def _apply_metadata(folder: int, below: int | None, known: Implied, group: int) -> None:
    """Let an implied folder look like the topmost one below; what an entry said of it stays."""
    takes_uid = not known & Implied.DESCRIBED or known & Implied.UID_LEFT
    takes_gid = not known & Implied.DESCRIBED or known & Implied.GID_LEFT
    if below is None:
        if takes_gid and group:
            os.fchown(folder, -1, group)
        if not known & (Implied.DESCRIBED | Implied.DATED):
            os.utime(folder, ns=(0, 0))
        return
    status, mode = os.fstat(below), os.fstat(folder).st_mode
    os.fchown(folder, status.st_uid if takes_uid else -1, status.st_gid if takes_gid else -1)
    if not known & Implied.DESCRIBED:
        os.fchmod(folder, stat.S_IMODE(status.st_mode))
    if ACCESS.decode() in _copy_attributes(below, folder) and known & Implied.DESCRIBED:
        os.fchmod(folder, stat.S_IMODE(mode))  # which the entry gave to the ACL that was there by then
    if not known & (Implied.DESCRIBED | Implied.DATED):
        os.utime(folder, ns=(status.st_atime_ns, status.st_mtime_ns))


def _topmost(path: bytes, below: Sequence[OpenFolders]) -> int | None:
    """Return the topmost folder of a path, each layer looked at by itself, as containerd does; raises LayerError."""
    for lower in below:
        lower.trim()
        above, base = lower.split(b"/" + path)  # absolute, as containerd asks
        if above is None:
            continue
        if not base:
            return above.handle
        try:
            status = os.lstat(base, dir_fd=above.handle)
        except FileNotFoundError:
            continue
        # Whatever else has the name, such as a whiteout, hides what is further down.
        place = lower.find(join(above.path, base)) if stat.S_ISDIR(status.st_mode) else None
        return place and place.handle
    return None


def _copy_attributes(source: int, target: int) -> list[str]:
    """Copy attributes that the target lacks, and return them; ``trusted.*`` (overlayfs' own marks) stay behind."""
    copied = []
    for name in os.listxattr(source):
        if name.startswith("trusted."):
            continue
        try:
            os.setxattr(target, name, os.getxattr(source, name), os.XATTR_CREATE)
            copied.append(name)
        except OSError as error:
            if error.errno not in {errno.EEXIST, errno.ENOTSUP, errno.ENODATA}:
                raise
    return copied

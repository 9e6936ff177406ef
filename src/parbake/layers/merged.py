"""Files of lower layers as overlayfs would show them, and their copy-up: for hard links that cross layers."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Final, NamedTuple

from parbake.errors import LayerError
from parbake.layers.paths import FOLDER, MOST_LINKS, Folders, clamp, join, shown
from parbake.layers.tree import PendingLink, set_xattr

_COPY: Final = 64 << 20
_OPAQUE: Final = "trusted.overlay.opaque"


class Found(NamedTuple):
    """Something that is no folder: in which folder (a descriptor), its name there, and its path without links."""

    folder: int
    name: bytes
    status: os.stat_result
    path: bytes
    layer: int
    """Counts from the top, 0."""


def link_below(upper: Folders, link: PendingLink, below: Sequence[int]) -> None:
    """Make a hard link whose target is looked for in all layers; raises LayerError, OSError.

    ``below`` are descriptors of the lower layers' roots, the top one first.
    """
    with find([upper.root, *below], link.target) as found:
        if found is None:
            raise LayerError(
                f"{shown(link.path)}: a hard link to {shown(link.target)}, which is in no layer",
                hint="containerd refuses such a layer too: build the image with another tool",
            )
        if found.layer:
            head, _, base = found.path.rpartition(b"/")
            with _times_kept(upper.make(head).handle) as folder:
                _copy_up(found, folder, base)
    head, _, base = found.path.rpartition(b"/")
    new_head, _, new_base = link.path.rpartition(b"/")
    source, place = upper.make(head), upper.make(new_head)
    with _times_kept(place.handle) as folder:
        os.link(base, new_base, src_dir_fd=source.handle, dst_dir_fd=folder, follow_symlinks=False)
    os.chown(new_base, link.uid, link.gid, dir_fd=folder, follow_symlinks=False)
    for key, value in link.xattrs:
        set_xattr(_path(folder, new_base), key, value)
    if not stat.S_ISLNK(found.status.st_mode):
        os.chmod(new_base, link.mode, dir_fd=folder)
    os.utime(new_base, ns=(link.accessed, link.modified), dir_fd=folder, follow_symlinks=False)


@contextmanager
def _times_kept(folder: int) -> Iterator[int]:
    before = os.fstat(folder)
    yield folder
    os.utime(folder, ns=(before.st_atime_ns, before.st_mtime_ns))


@contextmanager
def find(roots: Sequence[int], name: bytes) -> Iterator[Found | None]:
    """Find what overlayfs would show under a name: whiteouts and opaque folders hide, links lead on.

    Yields None for what is missing, LayerError is raised for a folder.
    """
    for _ in range(MOST_LINKS):
        with ExitStack() as opened:
            here = dict(enumerate(roots))
            done = b""
            rest = name.split(b"/")
            link = b""
            while rest:
                part = rest.pop(0)
                here, found = _look(here, part, done, opened)
                if found is None:
                    if not here:
                        yield None
                        return
                    done = join(done, part)
                elif not rest:
                    yield found
                    return
                elif stat.S_ISLNK(found.status.st_mode):
                    link = os.readlink(part, dir_fd=found.folder)
                    break
                else:
                    yield None
                    return
            else:
                raise LayerError(f"a hard link to the folder {shown(name)}")
            above = b"" if link.startswith(b"/") else done
            name = clamp(b"/".join([above, link, *rest]))
    raise LayerError(f"too many symbolic links on the way to {shown(name)}")


def _look(here: dict[int, int], part: bytes, done: bytes, opened: ExitStack) -> tuple[dict[int, int], Found | None]:
    """Look one component up in folders that overlayfs merges: the folders that merge below it, or what it is."""
    folders: dict[int, int] = {}
    for layer, folder in here.items():
        try:
            status = os.lstat(part, dir_fd=folder)
        except FileNotFoundError:
            continue
        if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:  # a whiteout
            break
        if not stat.S_ISDIR(status.st_mode):
            if folders:
                break
            return {}, Found(folder, part, status, join(done, part), layer)
        handle = os.open(part, FOLDER, dir_fd=folder)
        opened.callback(os.close, handle)
        folders[layer] = handle
        with suppress(OSError):
            if os.getxattr(handle, _OPAQUE) == b"y":
                break
    return folders, None


def _copy_up(found: Found, folder: int, base: bytes) -> None:
    """Copy something that is no folder into ``folder``, with all that belongs to it."""
    status = found.status
    if stat.S_ISREG(status.st_mode):
        _copy_data(found, folder, base)
    elif stat.S_ISLNK(status.st_mode):
        os.symlink(os.readlink(found.name, dir_fd=found.folder), base, dir_fd=folder)
    else:
        os.mknod(base, stat.S_IFMT(status.st_mode) | 0o600, status.st_rdev, dir_fd=folder)
    os.chown(base, status.st_uid, status.st_gid, dir_fd=folder, follow_symlinks=False)
    if not stat.S_ISLNK(status.st_mode):
        os.chmod(base, stat.S_IMODE(status.st_mode), dir_fd=folder)
    copy_xattrs(_path(found.folder, found.name), _path(folder, base))
    os.utime(base, ns=(status.st_atime_ns, status.st_mtime_ns), dir_fd=folder, follow_symlinks=False)


def _copy_data(found: Found, folder: int, base: bytes) -> None:
    source = os.open(found.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=found.folder)
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        target = os.open(base, flags, 0o600, dir_fd=folder)
        try:
            while os.copy_file_range(source, target, _COPY):
                pass
        finally:
            os.close(target)
    finally:
        os.close(source)


def copy_xattrs(source: int | bytes, target: int | bytes) -> None:
    """Copy attributes that the target lacks; ``trusted.*`` (overlayfs' own marks) stay where they are."""
    follow = isinstance(source, int)
    for name in os.listxattr(source, follow_symlinks=follow):
        if name.startswith("trusted."):
            continue
        try:
            value = os.getxattr(source, name, follow_symlinks=follow)
            os.setxattr(target, name, value, os.XATTR_CREATE, follow_symlinks=follow)
        except OSError as error:
            if error.errno not in {errno.EEXIST, errno.ENOTSUP, errno.ENODATA}:
                raise


def _path(folder: int, name: bytes) -> bytes:
    """Return a path for calls that take no folder descriptor."""
    return b"/proc/self/fd/%d/%s" % (folder, name)

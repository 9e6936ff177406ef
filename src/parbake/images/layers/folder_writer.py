"""Writes entries below a root in the form that overlayfs wants of an upper directory.

Order and effect of every step are those of containerd's unpack (``pkg/archive/tar.go``: ``applyNaive`` and
``createTarFile``; ``tar_opts_linux.go``: ``OverlayConvertWhiteout``). Where the engine saves a system call (no
``fchown`` to the owner that a file has anyway, no ``fchmod`` to the mode it was made with), the result is the same.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from parbake.core.errors import LayerError, LayerTooLarge
from parbake.images.layers.archive import Archive
from parbake.images.layers.headers import TarEntry
from parbake.images.layers.numbers import XATTR
from parbake.images.layers.paths import FOLDER, SLASH, Implied, OpenFolder, OpenFolders, clean, join, shown

WHITEOUT: Final = b".wh."
OPAQUE: Final = b".wh..wh..opq"
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
MODE: Final = 0o7777
_SET_ID: Final = 0o6000
_MOST_MAJOR, _MOST_MINOR = 0xFFF, 0xFFFFF  # Linux, ``linux/kdev_t.h``
_SPARE: Final = 16 << 20  # bytes that are free on a file system that is not full


class Tree:
    """Applies entries one after the other. Use from one thread whose umask is 0, and call ``finish`` at the end."""

    plain_file = None

    def __init__(self, root: int, archive: Archive, *, overlay: bool, bound: int) -> None:
        """``root`` is a descriptor of an empty folder; ``bound`` is how many bytes sparse files may claim.

        ``overlay``: whiteouts become marks for overlayfs. The bottom layer of an image has nothing below it: there
        a whiteout removes what the layer itself has put in place, as in containerd.
        """
        self.folders = OpenFolders(root)
        self.entries = 0
        self.now = b""
        """The name of the entry that is being applied, for errors."""
        self._archive = archive
        self._bound = self._unclaimed = bound
        self._overlay = overlay
        # Folders whose new files do not belong to us with the mode we ask for: they have the set-group-ID bit, or (all
        # of them, once the layer has set a POSIX ACL) hand down an ACL.
        self._group_folders: set[bytes] = set()
        self._acls = False
        self._times: dict[bytes, tuple[int, int]] = {}
        # By their own paths, for folders whose names lead over links, which may lead elsewhere in the end.
        self._linked_times: dict[bytes, tuple[int, int]] = {}
        # Only the bottom layer needs to know what it wrote, and only for an opaque mark: 8 bytes a path, no names.
        self._written: set[int] = set()
        self._makers: dict[bytes, Callable[[TarEntry, OpenFolder, bytes], None]] = {
            b"1": self._link, b"2": self._symlink, b"3": self._node, b"4": self._node, b"5": self._folder,
            b"6": self._node, b"g": self._global,
        }  # fmt: skip

    @property
    def implied(self) -> dict[bytes, Implied]:
        """Folders that no entry described when they were made, and what entries said later."""
        return self.folders.implied

    def apply(self, entry: TarEntry) -> None:
        """Apply one entry; raises LayerError, LayerEscape, OSError."""
        self.now = entry.name
        name = clean(entry.name)
        if not name:
            return  # containerd leaves the root as it is
        if entry.name[0] == SLASH:
            name = b"/" + name  # it may lead elsewhere over symbolic links: see ``Resolver``
        self.now = name
        head, _, base = name.rpartition(b"/")
        folders = self.folders
        folders.trim()
        place = folders.known.get(head) or folders.make(head)
        self.entries += 1
        if owner(entry.gid) < 0:
            folders.group_left(place.path)
        if base[:4] == WHITEOUT:
            self._whiteout(entry, place, base)
            return
        if not self._overlay:
            self._written.add(hash(join(place.path, base)))
        kind = entry.kind
        if kind == b"0":
            self._file(entry, place, base)
        elif (make := self._makers.get(kind)) is not None:
            make(entry, place, base)
        else:
            raise LayerError(f"{shown(name)}: an entry of the unknown type {kind!r}")

    def finish(self) -> None:
        """Set the times of folders, which writing into them has changed; raises LayerError for one that is gone."""
        folders = self.folders
        for path, times in self._linked_times.items():
            folders.trim()
            with suppress(LayerError):
                if (place := folders.find(path)) is not None:
                    os.utime(place.handle, ns=times)
        for name, times in self._times.items():
            self.now = name
            folders.trim()
            try:
                place = folders.find(name)
            except LayerError:
                place = None
            if place is not None:
                os.utime(place.handle, ns=times)
                if folders.implied:
                    folders.dated(place.path)
                continue
            # What a later entry has put in its place gets the times in containerd, too.
            above, base = folders.split(name)
            try:
                if above is None:
                    raise FileNotFoundError
                os.utime(base, ns=times, dir_fd=above.handle, follow_symlinks=False)
            except FileNotFoundError:
                raise removed_again(name) from None

    def close(self) -> None:
        """Close what is open."""
        self.folders.close()

    # -- one method for each type

    def _file(self, entry: TarEntry, place: OpenFolder, base: bytes) -> None:
        mode = entry.mode & MODE
        try:
            handle = os.open(base, _NEW, mode, dir_fd=place.handle)
        except FileExistsError:
            self._remove(place, base)
            handle = os.open(base, _NEW, mode, dir_fd=self.folders.make(place.path).handle)
        try:
            if entry.segments is not None:
                self._sparse(handle, entry)
            elif entry.stored:
                data = self._archive.whole()
                if data is not None:
                    write(handle, data)
                else:
                    for piece in self._archive.pieces():
                        write(handle, piece)
            uid, gid = entry.uid, entry.gid
            inherits = self._acls or place.path in self._group_folders
            if uid or gid or inherits:
                os.fchown(handle, owner(uid), owner(gid))
            if entry.records:
                self._xattrs(handle, entry)
            if inherits or self._acls or mode & _SET_ID:  # an ACL that was just set has changed the mode
                os.fchmod(handle, mode)
            os.utime(handle, ns=entry.times())
        finally:
            os.close(handle)

    def _sparse(self, handle: int, entry: TarEntry) -> None:
        # Holes cost nothing here, but whoever copies the file later may fill them, as containerd does at once.
        self._unclaimed -= entry.size
        if self._unclaimed < 0:
            raise LayerTooLarge(f"{shown(self.now)}: its sparse files claim more than {self._bound} bytes")
        for offset, length in entry.segments or ():
            os.lseek(handle, offset, os.SEEK_SET)
            whole, self._archive.left = self._archive.left, length
            for piece in self._archive.pieces():
                write(handle, piece)
            self._archive.left = whole - length
        os.ftruncate(handle, entry.size)

    def _folder(self, entry: TarEntry, place: OpenFolder, base: bytes) -> None:
        mode = entry.mode & MODE
        path = join(place.path, base)
        plain = not (self._acls or place.path in self._group_folders)
        try:
            os.mkdir(base, mode, dir_fd=place.handle)
        except FileExistsError:
            plain = False
            if not stat.S_ISDIR(os.lstat(base, dir_fd=place.handle).st_mode):
                self._remove(place, base)
                place = self.folders.make(place.path)
                os.mkdir(base, mode, dir_fd=place.handle)
        handle = os.open(base, FOLDER, dir_fd=place.handle)
        try:
            if entry.uid or entry.gid or not plain:
                os.fchown(handle, owner(entry.uid), owner(entry.gid))
            if entry.records:
                self._xattrs(handle, entry)
            if mode & _SET_ID or self._acls or not plain:
                os.fchmod(handle, mode)
            if mode & stat.S_ISGID:
                self._group_folders.add(path)
            else:
                self._group_folders.discard(path)
            self._described(path, entry)
            if path not in self.folders.known:  # its name may lead elsewhere from now on, where a link had made way
                self.folders.known[path] = OpenFolder(handle, path)
                handle = -1
        finally:
            if handle >= 0:
                os.close(handle)

    def _described(self, path: bytes, entry: TarEntry) -> None:
        if self.folders.implied:
            self.folders.described(path, owner(entry.uid), owner(entry.gid))
        name, times = self.now, entry.times()
        self._times.pop(name, None)
        self._times[name] = times
        if name.removeprefix(b"/") != path:
            self._linked_times[path] = times

    def _symlink(self, entry: TarEntry, place: OpenFolder, base: bytes) -> None:
        try:
            os.symlink(entry.linkname, base, dir_fd=place.handle)
        except FileExistsError:
            self._remove(place, base)
            place = self.folders.make(place.path)
            os.symlink(entry.linkname, base, dir_fd=place.handle)
        if entry.uid or entry.gid or entry.records or place.path in self._group_folders:
            self._apply_metadata(entry, place, base, is_link=True)
        else:
            os.utime(base, ns=entry.times(), dir_fd=place.handle, follow_symlinks=False)

    def _link(self, entry: TarEntry, place: OpenFolder, base: bytes) -> None:
        if os.path.lexists(_below(place, base)):
            self._remove(place, base)
        source, target = self.folders.source(entry.linkname)
        place = self.folders.make(place.path)
        if not target:
            raise no_folders(self.now, entry.linkname)
        try:
            if source is None:
                raise FileNotFoundError
            os.link(target, base, src_dir_fd=source.handle, dst_dir_fd=place.handle, follow_symlinks=False)
        except FileNotFoundError:
            raise not_there(self.now, entry.linkname) from None
        except PermissionError:
            raise no_folders(self.now, entry.linkname) from None
        self._apply_metadata(entry, place, base, is_link=stat.S_ISLNK(os.lstat(base, dir_fd=place.handle).st_mode))

    def _global(self, _: TarEntry, place: OpenFolder, base: bytes) -> None:
        """Do what containerd does for a global header: it makes way for it, and then writes nothing."""
        if os.path.lexists(_below(place, base)):
            self._remove(place, base)

    def _node(self, entry: TarEntry, place: OpenFolder, base: bytes) -> None:
        kind = {b"3": stat.S_IFCHR, b"4": stat.S_IFBLK, b"6": stat.S_IFIFO}[entry.kind]
        device = 0 if kind == stat.S_IFIFO else os.makedev(*device_number(self.now, entry))
        if os.path.lexists(_below(place, base)):
            self._remove(place, base)
            place = self.folders.make(place.path)
        os.mknod(base, kind | entry.mode & MODE, device, dir_fd=place.handle)
        self._apply_metadata(entry, place, base, is_link=False)

    def _apply_metadata(self, entry: TarEntry, place: OpenFolder, base: bytes, *, is_link: bool) -> None:
        """Give owner, attributes, mode and times to what cannot be opened, or was there before (a hard link)."""
        # Always chown: it also drops a file capability, as in containerd.
        os.chown(base, owner(entry.uid), owner(entry.gid), dir_fd=place.handle, follow_symlinks=False)
        if entry.records:
            self._xattrs(_below(place, base), entry)
        if not is_link:
            os.chmod(base, entry.mode & MODE, dir_fd=place.handle)
        os.utime(base, ns=entry.times(), dir_fd=place.handle, follow_symlinks=False)

    def _xattrs(self, target: int | bytes, entry: TarEntry) -> None:
        for key, value in xattrs_of(entry):
            if set_xattr(target, key, value) and key.startswith(b"system."):
                self._acls = True

    # -- whiteouts

    def _whiteout(self, entry: TarEntry, place: OpenFolder, base: bytes) -> None:
        if base == OPAQUE:
            if self._overlay:
                os.setxattr(place.handle, b"trusted.overlay.opaque", b"y")
            else:
                self._clear(place)
            return
        hidden = base[len(WHITEOUT) :]
        if hidden in {b"", b".", b".."}:
            raise LayerError(f"{shown(self.now)}: a whiteout of nothing")
        if not self._overlay:
            self._remove(place, hidden, missing_ok=True)
            return
        try:
            os.mknod(hidden, stat.S_IFCHR, 0, dir_fd=place.handle)
        except FileExistsError:
            raise LayerError(
                f"{shown(self.now)}: a whiteout of a file in the same layer",
                hint="containerd refuses such a layer too: build the image with another tool",
            ) from None
        os.chown(hidden, owner(entry.uid), owner(entry.gid), dir_fd=place.handle, follow_symlinks=False)
        os.utime(hidden, ns=entry.times(), dir_fd=place.handle, follow_symlinks=False)

    def _clear(self, place: OpenFolder) -> None:
        """Remove from a folder of the bottom layer what its entries so far have not written."""
        with os.scandir(place.handle) as found:
            items = [(os.fsencode(item.name), item.is_dir(follow_symlinks=False)) for item in found]
        for name, is_folder in items:
            here = self.folders.make(place.path)
            if hash(join(here.path, name)) not in self._written:
                self._remove(here, name)
            elif is_folder:
                self._clear(self.folders.make(join(here.path, name)))

    def _remove(self, place: OpenFolder, base: bytes, *, missing_ok: bool = False) -> None:
        """Remove whatever has a name; every place that was handed out before is closed then."""
        try:
            os.unlink(base, dir_fd=place.handle)
        except FileNotFoundError:
            if not missing_ok:
                raise
            return
        except IsADirectoryError:
            remove_tree(base, place.handle)
            self.folders.gone(join(place.path, base))
        self.folders.forget()


def write(handle: int, data: memoryview) -> None:
    """Write all of ``data``."""
    count = os.write(handle, data)
    while count < len(data):
        count += os.write(handle, data[count:])


def remove_tree(name: bytes, folder: int) -> None:
    """Remove a folder and all in it without following links, however deep it is."""
    handle = os.open(name, FOLDER, dir_fd=folder)
    try:
        with os.scandir(handle) as found:
            items = [(os.fsencode(item.name), item.is_dir(follow_symlinks=False)) for item in found]
        for item, is_folder in items:
            if is_folder:
                remove_tree(item, handle)
            else:
                os.unlink(item, dir_fd=handle)
    finally:
        os.close(handle)
    os.rmdir(name, dir_fd=folder)


def set_xattr(target: int | bytes, key: bytes, value: bytes) -> bool:
    """Set an attribute as containerd does: ``trusted.*`` and what the file system cannot hold is passed over.

    A ``user.*`` attribute of what is neither a file nor a folder is passed over as well (the kernel forbids it).
    Returns whether it is set.
    """
    if key.startswith(b"trusted."):
        return False
    follow = isinstance(target, int)
    try:
        os.setxattr(target, key, value, follow_symlinks=follow)
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return False
        if error.errno == errno.EPERM and key.startswith(b"user."):
            mode = os.stat(target, follow_symlinks=follow).st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                return False
        if error.errno == errno.ENOSPC and _has_room(target, len(value)):  # so ext4 says it of more than a block
            raise OSError(errno.E2BIG, os.strerror(errno.E2BIG)) from error
        raise
    return True


def _has_room(target: int | bytes, size: int) -> bool:
    status = os.statvfs(target if isinstance(target, int) else os.path.dirname(target))
    return status.f_bavail * status.f_frsize > size + _SPARE and not status.f_files > 0 == status.f_favail


def xattrs_of(entry: TarEntry) -> list[tuple[bytes, bytes]]:
    """Return the extended attributes that an entry carries."""
    records = entry.records or {}
    return [(key[len(XATTR) :], value) for key, value in records.items() if key.startswith(XATTR)]


def device_number(name: bytes, entry: TarEntry) -> tuple[int, int]:
    """Return major and minor number of a device; raises LayerError for one that Linux does not have."""
    if not (0 <= entry.major <= _MOST_MAJOR and 0 <= entry.minor <= _MOST_MINOR):
        raise LayerError(f"{shown(name)}: the device number {entry.major}:{entry.minor} does not exist")
    return entry.major, entry.minor


def not_there(name: bytes, link: bytes) -> LayerError:
    """Return the error for a hard link to what the layer does not hold at that moment, also to itself."""
    return LayerError(
        f"{shown(name)}: a hard link to {shown(link)}, which the layer does not hold",
        hint="containerd refuses such a layer too, also where a layer below has the file: build the image with another "
        "tool",
    )


def no_folders(name: bytes, link: bytes) -> LayerError:
    """Return the error for a hard link to a folder."""
    return LayerError(f"{shown(name)}: a hard link to the folder {shown(link)}")


def removed_again(name: bytes) -> LayerError:
    """Return the error for a folder that a later entry of its layer has removed."""
    return LayerError(
        f"{shown(name)}: a later entry of the layer removes the folder",
        hint="containerd refuses such a layer too: build the image with another tool",
    )


def owner(number: int) -> int:
    """Return an owner as the kernel takes it: 32 bits, all of them set (-1) leave it as it is."""
    number &= 0xFFFFFFFF
    return -1 if number == 0xFFFFFFFF else number


def _below(place: OpenFolder, base: bytes) -> bytes:
    """Return a path for calls that take no folder descriptor: attributes of what cannot be opened."""
    return b"/proc/self/fd/%d/%s" % (place.handle, base)

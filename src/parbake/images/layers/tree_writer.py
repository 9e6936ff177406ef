"""Applies entries to a tree of nodes in memory, for writers of file systems: ``folder_writer`` without system calls.

Order and effect of every step are those of containerd's unpack onto an empty folder (sources: see there), the
kernel's part included: what a mode, an owner or an attribute becomes. Data go to a store as they arrive.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator, MutableMapping
from typing import Final

from parbake.core.errors import LayerError, LayerTooLarge
from parbake.core.filetree import DataStore, Extents, FileNode
from parbake.images.layers.acls import ACCESS, DEFAULT, inherited, with_acl, with_mode
from parbake.images.layers.archive import Archive
from parbake.images.layers.folder_writer import (
    MODE,
    OPAQUE,
    WHITEOUT,
    device_number,
    no_folders,
    not_there,
    owner,
    removed_again,
    xattrs_of,
)
from parbake.images.layers.headers import TarEntry
from parbake.images.layers.numbers import INT64_MAX
from parbake.images.layers.paths import LONGEST_NAME, SLASH, Resolver, clean, join, no_name, shown

OPAQUE_MARK: Final = b"trusted.overlay.opaque"
CAPABILITY: Final = b"security.capability"
_NOBODY: Final = 0xFFFFFFFF
"""An owner of -1: whoever it is stays."""
_ODD: Final = frozenset({b"", b"."})
"""How the last part of a name begins that is a folder's, a whiteout's, or has to be cleaned."""
_LONGEST_LINK: Final = 4095
_MOST_VALUE: Final = 65536

type TreeFolder = tuple[FileNode, bytes]
"""A folder and its path below the root, free of symbolic links."""


class TreeFolders(Resolver[TreeFolder]):
    """Finds and makes folders in a tree of nodes."""

    def __init__(self, root: FileNode) -> None:
        super().__init__((root, b""))
        self.root = root

    def enter(self, place: TreeFolder, name: bytes) -> TreeFolder | bytes | None:
        """See ``Resolver``."""
        child = _child(place, name)
        if child is None:
            return None
        if child.is_link:
            return child.data
        if not child.is_folder:
            raise LayerError(f"the layer puts something into {shown(join(place[1], name))}, which is not a folder")
        return child, join(place[1], name)

    def link(self, place: TreeFolder, name: bytes) -> bytes | None:
        """See ``Resolver``."""
        child = _child(place, name)
        return child.data if child is not None and child.is_link else None

    def imply(self, place: TreeFolder, name: bytes) -> TreeFolder:
        """See ``Resolver``."""
        # A group is handed down by a folder with the set-group-ID bit, the bit itself is not.
        child = FileNode(stat.S_IFDIR | 0o755, 0, _group(place[0]))
        inherited(place[0], child)
        with_mode(child, 0o755)
        _put(place, name, child)
        return child, join(place[1], name)

    def node(self, name: bytes) -> FileNode | None:
        """Return what a name leads to, links followed, or None; raises LayerError."""
        above, base = self.split(name)
        if above is None or not base:
            return above and above[0]
        return _child(above, base)


class TreeBuilder(TreeFolders):
    """The tree of one layer while its entries come. ``finish`` at the end; then ``root`` is what is to be written."""

    def __init__(self, store: DataStore, archive: Archive, *, overlay: bool, bound: int) -> None:
        """``overlay`` and ``bound`` as in ``folder_writer.Tree``."""
        super().__init__(FileNode(stat.S_IFDIR | 0o755))
        self.unused: list[Extents] = []
        """Data that no file refers to any more."""
        self.entries = 0
        self.now = b""
        """The name of the entry that is being applied, for errors."""
        self._store, self._archive, self._overlay = store, archive, overlay
        self._bound = self._unclaimed = bound
        self._times: dict[bytes, tuple[int, int]] = {}
        self._written: set[int] = set()
        self._makers: dict[bytes, Callable[[TarEntry, TreeFolder, bytes], None]] = {
            b"0": self._file, b"1": self._link, b"2": self._symlink, b"3": self._device, b"4": self._device,
            b"5": self._folder, b"6": self._device, b"g": self._global,
        }  # fmt: skip

    def plain_file(self, name: bytes, metadata: tuple[int, int, int], size: int, modified: int) -> bool:
        """Add a new file of which its header says all (``headers.PlainFile``); return False where ``apply`` has to.

        What ``_file`` does comes to this where the name is clean and new, and nothing is inherited.
        """
        head, _, base = name.rpartition(b"/")
        if (place := self.known.get(head)) is None or base[:1] in _ODD or head[:1] == b"/" or len(base) > LONGEST_NAME:
            return False
        folder, path = place
        children = folder.children
        mode, uid, gid = metadata
        if (
            children is None
            or base in children
            or folder.xattrs
            or not (0 <= modified <= INT64_MAX and 0 <= uid < _NOBODY and 0 <= gid < _NOBODY)
        ):
            return False
        self.now = name
        self.entries += 1
        if not self._overlay:
            self._written.add(hash(join(path, base)))
        node = FileNode(stat.S_IFREG | mode & MODE, uid, gid, modified)
        if size:
            node.size = size
            whole = self._archive.whole()
            node.extents = self._store.put(self._archive.pieces()) if whole is None else self._store.put_whole(whole)
        children[base] = node
        return True

    def apply(self, entry: TarEntry) -> None:
        """Apply one entry; raises LayerError, LayerEscape."""
        self.now = entry.name
        name = clean(entry.name)
        if not name:
            return  # containerd leaves the root as it is
        if entry.name[0] == SLASH:
            name = b"/" + name  # it may lead elsewhere over symbolic links: see ``Resolver``
        self.now = name
        head, _, base = name.rpartition(b"/")
        place = self.known.get(head) or self.make(head)
        self.entries += 1
        if owner(entry.gid) < 0:
            self.group_left(place[1])
        if base[:4] == WHITEOUT:
            self._whiteout(entry, place, base)
            return
        if not self._overlay:
            self._written.add(hash(join(place[1], base)))
        make = self._makers.get(entry.kind)
        if make is None:
            raise LayerError(f"{shown(name)}: an entry of the unknown type {entry.kind!r}")
        make(entry, place, base)

    def finish(self) -> None:
        """Set the times of folders; raises LayerError for one that is gone."""
        for name, (accessed, modified) in self._times.items():
            self.now = name
            try:
                place = self.find(name)
            except LayerError:
                place = None
            if place is not None:
                place[0].accessed, place[0].modified = accessed, modified
                if self.implied:
                    self.dated(place[1])
                continue
            # What a later entry has put in its place gets the times in containerd, too.
            node = self.node(name)
            if node is None:
                raise removed_again(name)
            node.accessed, node.modified = accessed, modified

    # -- one method for each type

    def _new(self, entry: TarEntry, kind: int, folder: FileNode) -> FileNode:
        accessed, modified = entry.times()
        uid, gid = owner(entry.uid), owner(entry.gid)
        node = FileNode(kind, max(uid, 0), _group(folder) if gid < 0 else gid, modified, accessed)
        if not stat.S_ISLNK(kind):
            node.mode = kind | entry.mode & MODE
            if folder.xattrs:
                inherited(folder, node)
                with_mode(node, entry.mode & MODE)
        return node

    def _file(self, entry: TarEntry, place: TreeFolder, base: bytes) -> None:
        self._remove(place, base)
        node = self._new(entry, stat.S_IFREG, place[0])
        node.size = entry.size
        if entry.segments is not None:
            # Holes cost nothing here, but whoever copies the file later may fill them, as containerd does at once.
            self._unclaimed -= entry.size
            if self._unclaimed < 0:
                raise LayerTooLarge(f"{shown(self.now)}: its sparse files claim more than {self._bound} bytes")
            node.extents = self._store.put_sparse(self._segments(entry))
        elif entry.stored:
            whole = self._archive.whole()
            node.extents = self._store.put(self._archive.pieces()) if whole is None else self._store.put_whole(whole)
        if entry.records:
            self._apply_metadata(node, entry)
            with_mode(node, entry.mode & MODE)
        _put(place, base, node)

    def _segments(self, entry: TarEntry) -> Iterator[tuple[int, Iterator[memoryview]]]:
        for offset, length in entry.segments or ():
            whole, self._archive.left = self._archive.left, length
            yield offset, self._archive.pieces()
            self._archive.left = whole - length

    def _folder(self, entry: TarEntry, place: TreeFolder, base: bytes) -> None:
        path = join(place[1], base)
        accessed, modified = entry.times()
        node = _children(place[0]).get(base)
        if node is not None and node.is_folder:
            uid, gid = owner(entry.uid), owner(entry.gid)
            node.uid, node.gid = node.uid if uid < 0 else uid, node.gid if gid < 0 else gid
        else:
            self._remove(place, base)
            node = self._new(entry, stat.S_IFDIR, place[0])
            _put(place, base, node)
        if entry.records:
            self._apply_metadata(node, entry)
        with_mode(node, entry.mode & MODE)
        node.accessed, node.modified = accessed, modified  # in the end its name may lead elsewhere
        if self.implied:
            self.described(path, owner(entry.uid), owner(entry.gid))
        self._times.pop(self.now, None)
        self._times[self.now] = accessed, modified
        self.known.setdefault(path, (node, path))  # its name may lead elsewhere from now on

    def _symlink(self, entry: TarEntry, place: TreeFolder, base: bytes) -> None:
        target = entry.linkname
        if not target or len(target) > _LONGEST_LINK or b"\0" in target:
            raise LayerError(f"{shown(self.now)}: a symbolic link to {len(target)} bytes that lead nowhere")
        self._remove(place, base)
        node = self._new(entry, stat.S_IFLNK | 0o777, place[0])
        node.data = target
        if entry.records:
            self._apply_metadata(node, entry)
        _put(place, base, node)

    def _link(self, entry: TarEntry, place: TreeFolder, base: bytes) -> None:
        self._remove(place, base)
        source, target = self.source(entry.linkname)
        if not target:
            raise no_folders(self.now, entry.linkname)
        node = source and _children(source[0]).get(target)
        if node is None:
            raise not_there(self.now, entry.linkname)
        if node.is_folder:
            raise no_folders(self.now, entry.linkname)
        _put(place, base, node)
        node.links += 1
        self._apply_link_metadata(node, entry)

    def _apply_link_metadata(self, node: FileNode, entry: TarEntry) -> None:
        """Give owner, attributes, mode and times to a file that was there before.

        A change of owner drops a file capability, also when the owner stays the same, as in containerd.
        """
        uid, gid = owner(entry.uid), owner(entry.gid)
        node.uid, node.gid = node.uid if uid < 0 else uid, node.gid if gid < 0 else gid
        if node.xattrs:
            node.xattrs.pop(CAPABILITY, None)
        self._apply_metadata(node, entry)
        if not node.is_link:
            with_mode(node, entry.mode & MODE)
        node.accessed, node.modified = entry.times()

    def _global(self, _: TarEntry, place: TreeFolder, base: bytes) -> None:
        """Do what containerd does for a global header: it makes way for it, and then writes nothing."""
        self._remove(place, base)

    def _device(self, entry: TarEntry, place: TreeFolder, base: bytes) -> None:
        kind = {b"3": stat.S_IFCHR, b"4": stat.S_IFBLK, b"6": stat.S_IFIFO}[entry.kind]
        self._remove(place, base)
        node = self._new(entry, kind, place[0])
        if kind != stat.S_IFIFO:
            major, minor = device_number(self.now, entry)
            node.rdev = major << 32 | minor
        if entry.records:
            self._apply_metadata(node, entry)
            with_mode(node, entry.mode & MODE)
        _put(place, base, node)

    def _apply_metadata(self, node: FileNode, entry: TarEntry) -> None:
        for key, value in xattrs_of(entry):
            set_attribute(node, key, value)

    # -- whiteouts and what goes away

    def _whiteout(self, entry: TarEntry, place: TreeFolder, base: bytes) -> None:
        folder = place[0]
        if base == OPAQUE:
            if self._overlay:
                folder.xattrs = {**(folder.xattrs or {}), OPAQUE_MARK: b"y"}
            else:
                self._clear(place)
            return
        hidden = base[len(WHITEOUT) :]
        if hidden in {b"", b".", b".."}:
            raise LayerError(f"{shown(self.now)}: a whiteout of nothing")
        if not self._overlay:
            if len(hidden) > LONGEST_NAME:
                raise no_name(place[1], hidden)
            self._remove(place, hidden)
            return
        if hidden in _children(folder):
            raise LayerError(
                f"{shown(self.now)}: a whiteout of a file in the same layer",
                hint="containerd refuses such a layer too: build the image with another tool",
            )
        accessed, modified = entry.times()
        uid, gid = owner(entry.uid), owner(entry.gid)
        node = FileNode(stat.S_IFCHR, max(uid, 0), _group(folder) if gid < 0 else gid, modified, accessed)
        inherited(folder, node)
        with_mode(node, 0)
        _put(place, hidden, node)

    def _clear(self, place: TreeFolder) -> None:
        """Remove from a folder of the bottom layer what its entries so far have not written."""
        for name, node in list(_children(place[0]).items()):
            if hash(join(place[1], name)) not in self._written:
                self._remove(place, name)
            elif node.is_folder:
                self._clear((node, join(place[1], name)))

    def _remove(self, place: TreeFolder, base: bytes) -> None:
        """Remove whatever has a name."""
        node = _children(place[0]).pop(base, None)
        if node is None:
            return
        self._forget_data(node)
        if node.is_folder or node.is_link:  # names that led over it mean another thing now
            self.known = {b"": self.top}
        if node.is_folder:
            self.gone(join(place[1], base))

    def _forget_data(self, node: FileNode) -> None:
        waiting = [node]
        while waiting:
            one = waiting.pop()
            if one.children is not None:
                waiting.extend(one.children.values())
                continue
            one.links -= 1
            if not one.links and one.extents:
                self.unused.append(one.extents)


def set_attribute(node: FileNode, key: bytes, value: bytes) -> None:
    """Set an attribute as containerd and the kernel do: ``trusted.*`` and what ext4 does not have is passed over.

    Raises LayerError for what the kernel refuses.
    """
    if key.startswith(b"trusted."):
        return
    if not 0 < len(key) <= LONGEST_NAME or b"\0" in key or len(value) > _MOST_VALUE:
        raise LayerError(f"an attribute that Linux does not accept: {shown(key)}, {len(value)} bytes")
    if key in {ACCESS, DEFAULT}:
        with_acl(node, key, value)
        return
    if not key.startswith((b"user.", b"security.")):
        return
    if key.startswith(b"user.") and not (node.is_file or node.is_folder):
        return
    if key in {b"user.", b"security."}:
        raise LayerError(f"an attribute without a name: {shown(key)}")
    if key == CAPABILITY and not _is_capability(value):
        raise LayerError("a file capability in an unknown form")
    node.xattrs = {**(node.xattrs or {}), key: value}


def _is_capability(value: bytes) -> bool:
    """Whether Linux takes it: revision 2 (20 bytes) or 3 (24), ``include/uapi/linux/capability.h``."""
    return (len(value), value[3:4]) in {(20, b"\x02"), (24, b"\x03")}


def _put(place: TreeFolder, name: bytes, node: FileNode) -> None:
    if len(name) > LONGEST_NAME or b"\0" in name:
        raise no_name(place[1], name)
    children = place[0].children
    assert children is not None
    children[name] = node


def _child(place: TreeFolder, name: bytes) -> FileNode | None:
    """Return what has a name in a folder; raises LayerError for a longer one than the kernel looks up."""
    if len(name) > LONGEST_NAME:
        raise no_name(place[1], name)
    return _children(place[0]).get(name)


def _children(node: FileNode) -> MutableMapping[bytes, FileNode]:
    children = node.children
    assert children is not None
    return children


def _group(folder: FileNode) -> int:
    return folder.gid if folder.mode & stat.S_ISGID else 0

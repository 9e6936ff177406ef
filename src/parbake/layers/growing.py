"""Applies entries to a tree of nodes in memory: what ``tree`` does with system calls, for writers of file systems.

Order and effect of every step are those of containerd's unpack onto an empty folder (sources: see ``tree``), the
kernel's part included: what a mode, an owner or an attribute becomes. Data go to a store as they arrive.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

from parbake.errors import LayerError, LayerTooLarge
from parbake.layers.acls import inherited, with_acl, with_mode
from parbake.layers.archive import Archive
from parbake.layers.headers import Entry
from parbake.layers.paths import MOST_DEPTH, Implied, clamp, clean, follow, join, shown
from parbake.layers.tree import MODE, OPAQUE, WHITEOUT, PendingLink, owner, xattrs_of
from parbake.nodes import Extents, Node, Store

OPAQUE_MARK: Final = b"trusted.overlay.opaque"
CAPABILITY: Final = b"security.capability"
_ACCESS, _DEFAULT = b"system.posix_acl_access", b"system.posix_acl_default"
_LONGEST_NAME: Final = 255
_LONGEST_LINK: Final = 4095
_MOST_MAJOR, _MOST_MINOR = 0xFFF, 0xFFFFF
_MOST_VALUE: Final = 65536

type Place = tuple[Node, bytes]
"""A folder and its path below the root, free of symbolic links."""


class Growing:
    """The tree of one layer while its entries come. ``finish`` at the end; then ``root`` is what is to be written."""

    def __init__(self, store: Store, archive: Archive, *, overlay: bool, bound: int) -> None:
        """``overlay`` and ``bound`` as in ``tree.Tree``."""
        self.root = Node(stat.S_IFDIR | 0o755)
        self.pending: dict[bytes, PendingLink] = {}
        self.implied: dict[bytes, Implied] = {}
        """Folders that were made because something lies in them, and what entries have said of them since."""
        self.unused: list[Extents] = []
        """Data that no file refers to any more."""
        self.entries = 0
        self.now = b""
        """The name of the entry that is being applied, for errors."""
        self._store, self._archive, self._overlay = store, archive, overlay
        self._bound = self._unclaimed = bound
        self._known: dict[bytes, Place] = {b"": (self.root, b"")}
        self._times: dict[bytes, tuple[int, int]] = {}
        self._written: set[int] = set()
        self._makers: dict[bytes, Callable[[Entry, Place, bytes], None]] = {
            b"0": self._file, b"1": self._link, b"2": self._symlink, b"3": self._device, b"4": self._device,
            b"5": self._folder, b"6": self._device, b"S": self._file,
        }  # fmt: skip

    def apply(self, entry: Entry) -> None:
        """Apply one entry; raises LayerError, LayerEscape."""
        self.now = entry.name
        name = clean(entry.name)
        if not name:
            return  # containerd leaves the root as it is
        self.now = name
        head, _, base = name.rpartition(b"/")
        place = self._known.get(head) or self.make(head)
        self.entries += 1
        if base[:4] == WHITEOUT:
            self._whiteout(entry, place, base)
            return
        if self.pending:
            self.pending.pop(join(place[1], base), None)
        if not self._overlay:
            self._written.add(hash(join(place[1], base)))
        make = self._makers.get(entry.kind)
        if make is not None:
            make(entry, place, base)
        elif entry.kind != b"g":  # a global header is no file
            raise LayerError(f"{shown(name)}: an entry of the unknown type {entry.kind!r}")

    def finish(self) -> None:
        """Set the times of folders."""
        for name, (accessed, modified) in self._times.items():
            self.now = name
            try:
                place = self.find(name)
            except LayerError:  # a later entry has put something else in its place, which gets the times in containerd
                node = self._something(name)
                if node is not None:
                    node.accessed, node.modified = accessed, modified
            else:
                if place is not None:
                    place[0].accessed, place[0].modified = accessed, modified
                    if self.implied.get(place[1]) is Implied.BARE:
                        self.implied[place[1]] = Implied.DATED

    def _something(self, name: bytes) -> Node | None:
        head, _, base = name.rpartition(b"/")
        try:
            place = self.find(head)
        except LayerError:
            return None
        return place and _children(place[0]).get(base)

    # -- folders

    def find(self, name: bytes) -> Place | None:
        """Return the folder of a cleaned name, None when it is missing; raises LayerError when it is no folder."""
        return self._known.get(name) or self._walk(name, create=False)

    def make(self, name: bytes) -> Place:
        """Return the folder of a cleaned name, made (mode 0755) when missing, with those above it."""
        place = self._known.get(name) or self._walk(name, create=True)
        assert place is not None
        return place

    def _walk(self, wanted: bytes, *, create: bool) -> Place | None:
        found = follow(wanted, partial(self._step, create=create))
        if found is not None:
            self._known[wanted] = found
        return found

    def _step(self, name: bytes, *, create: bool) -> Place | bytes | None:
        """Go down to ``name``, or to the first symbolic link: then return the name that it makes of ``name``."""
        rest: list[bytes] = []
        head = name
        while head not in self._known:
            head, _, part = head.rpartition(b"/")
            rest.append(part)
        folder, path = self._known[head]
        while rest:
            part = rest.pop()
            if path.count(b"/") >= MOST_DEPTH:
                raise LayerError(f"the layer nests folders more than {MOST_DEPTH} deep: {shown(path)}")
            child = _children(folder).get(part)
            if child is None:
                if not create:
                    return None
                child = self._imply(folder, join(path, part), part)
            elif child.is_link:
                above = b"" if child.data.startswith(b"/") else path
                return clamp(b"/".join([above, child.data, *reversed(rest)]))
            elif not child.is_folder:
                raise LayerError(f"the layer puts something into {shown(join(path, part))}, which is no folder")
            head = join(head, part)
            folder, path = child, join(path, part)
            self._known[head] = folder, path
        return folder, path

    def _imply(self, folder: Node, path: bytes, name: bytes) -> Node:
        # A group is handed down by a folder with the set-group-ID bit, the bit itself is not.
        child = Node(stat.S_IFDIR | 0o755, 0, _group(folder))
        inherited(folder, child)
        with_mode(child, 0o755)
        self._put(folder, name, child)
        self.implied[path] = Implied.BARE
        return child

    def _put(self, folder: Node, name: bytes, node: Node) -> None:
        if len(name) > _LONGEST_NAME:
            raise LayerError(f"{shown(self.now)}: a name of {len(name)} bytes; {_LONGEST_NAME} is the most")
        if b"\0" in name:
            raise LayerError(f"{shown(self.now)}: a NUL byte in a name")
        _children(folder)[name] = node

    # -- one method for each type

    def _new(self, entry: Entry, kind: int, folder: Node) -> Node:
        accessed, modified = entry.times()
        uid, gid = owner(entry.uid), owner(entry.gid)
        node = Node(kind, max(uid, 0), _group(folder) if gid < 0 else gid, modified, accessed)
        if not stat.S_ISLNK(kind):
            node.mode = kind | entry.mode & MODE
            if folder.xattrs:
                inherited(folder, node)
                with_mode(node, entry.mode & MODE)
        return node

    def _file(self, entry: Entry, place: Place, base: bytes) -> None:
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
            self._dress(node, entry)
            with_mode(node, entry.mode & MODE)
        self._put(place[0], base, node)

    def _segments(self, entry: Entry) -> Iterator[tuple[int, Iterator[memoryview]]]:
        for offset, length in entry.segments or ():
            whole, self._archive.left = self._archive.left, length
            yield offset, self._archive.pieces()
            self._archive.left = whole - length

    def _folder(self, entry: Entry, place: Place, base: bytes) -> None:
        path = join(place[1], base)
        accessed, modified = entry.times()
        node = _children(place[0]).get(base)
        if node is not None and node.is_folder:
            uid, gid = owner(entry.uid), owner(entry.gid)
            node.uid, node.gid = node.uid if uid < 0 else uid, node.gid if gid < 0 else gid
        else:
            self._remove(place, base)
            node = self._new(entry, stat.S_IFDIR, place[0])
            self._put(place[0], base, node)
        if entry.records:
            self._dress(node, entry)
        with_mode(node, entry.mode & MODE)
        if path in self.implied:
            self.implied[path] = Implied.DESCRIBED
        self._times.pop(self.now, None)
        self._times[self.now] = accessed, modified
        self._known.setdefault(self.now, (node, path))

    def _symlink(self, entry: Entry, place: Place, base: bytes) -> None:
        target = entry.linkname
        if not target or len(target) > _LONGEST_LINK or b"\0" in target:
            raise LayerError(f"{shown(self.now)}: a symbolic link to {len(target)} bytes that lead nowhere")
        self._remove(place, base)
        node = self._new(entry, stat.S_IFLNK | 0o777, place[0])
        node.data = target
        if entry.records:
            self._dress(node, entry)
        self._put(place[0], base, node)

    def _link(self, entry: Entry, place: Place, base: bytes) -> None:
        self._remove(place, base)
        head, _, target = entry.linkname.rpartition(b"/")
        if target in {b"", b".", b".."}:
            clean(entry.linkname)  # says so when it leads outside
            raise LayerError(f"{shown(self.now)}: a hard link to the folder {shown(entry.linkname)}")
        source = self.find(clean(head))
        node = source and _children(source[0]).get(target)
        if node is None:
            if not self._overlay:
                raise LayerError(f"{shown(self.now)}: a hard link to {shown(entry.linkname)}, which is not there")
            accessed, modified = entry.times()
            path = join(place[1], base)
            self.pending[path] = PendingLink(
                path, join(clean(head), target), entry.mode & MODE, owner(entry.uid), owner(entry.gid),
                accessed, modified, tuple(xattrs_of(entry)),
            )  # fmt: skip
            return
        if node.is_folder:
            raise LayerError(f"{shown(self.now)}: a hard link to the folder {shown(entry.linkname)}")
        self._put(place[0], base, node)
        node.links += 1
        looks_of_link(
            node, owner(entry.uid), owner(entry.gid), entry.mode & MODE, entry.times(), tuple(xattrs_of(entry))
        )

    def _device(self, entry: Entry, place: Place, base: bytes) -> None:
        kind = {b"3": stat.S_IFCHR, b"4": stat.S_IFBLK, b"6": stat.S_IFIFO}[entry.kind]
        self._remove(place, base)
        node = self._new(entry, kind, place[0])
        if kind != stat.S_IFIFO:
            if not (0 <= entry.major <= _MOST_MAJOR and 0 <= entry.minor <= _MOST_MINOR):
                raise LayerError(f"{shown(self.now)}: the device number {entry.major}:{entry.minor} does not exist")
            node.rdev = entry.major << 32 | entry.minor
        if entry.records:
            self._dress(node, entry)
            with_mode(node, entry.mode & MODE)
        self._put(place[0], base, node)

    def _dress(self, node: Node, entry: Entry) -> None:
        for key, value in xattrs_of(entry):
            set_attribute(node, key, value)

    # -- whiteouts and what goes away

    def _whiteout(self, entry: Entry, place: Place, base: bytes) -> None:
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
            self._remove(place, hidden)
            return
        if hidden in _children(folder):
            raise LayerError(
                f"{shown(self.now)}: a whiteout of what the same layer holds",
                hint="containerd refuses such a layer too: build the image with another tool",
            )
        accessed, modified = entry.times()
        uid, gid = owner(entry.uid), owner(entry.gid)
        node = Node(stat.S_IFCHR, max(uid, 0), _group(folder) if gid < 0 else gid, modified, accessed)
        self._put(folder, hidden, node)

    def _clear(self, place: Place) -> None:
        """Remove from a folder of the bottom layer what its entries so far have not written."""
        for name, node in list(_children(place[0]).items()):
            if hash(join(place[1], name)) not in self._written:
                self._remove(place, name)
            elif node.is_folder:
                self._clear((node, join(place[1], name)))

    def _remove(self, place: Place, base: bytes) -> None:
        """Remove whatever has a name."""
        node = _children(place[0]).pop(base, None)
        if node is None:
            return
        self._forget_data(node)
        if node.is_folder or node.is_link:  # names that led over it mean another thing now
            self._known = {b"": (self.root, b"")}
        if node.is_folder:
            gone = join(place[1], base)
            for path in [path for path in self.implied if path == gone or path.startswith(gone + b"/")]:
                del self.implied[path]

    def _forget_data(self, node: Node) -> None:
        waiting = [node]
        while waiting:
            one = waiting.pop()
            if one.children is not None:
                waiting.extend(one.children.values())
                continue
            one.links -= 1
            if not one.links and one.extents:
                self.unused.append(one.extents)


def looks_of_link(
    node: Node, uid: int, gid: int, mode: int, times: tuple[int, int], attributes: tuple[tuple[bytes, bytes], ...]
) -> None:
    """Give owner, attributes, mode and times to a file that was there before; -1 leaves an owner.

    A change of owner drops a file capability, also when the owner stays the same, as in containerd.
    """
    node.uid, node.gid = node.uid if uid < 0 else uid, node.gid if gid < 0 else gid
    if node.xattrs and node.is_file:
        node.xattrs.pop(CAPABILITY, None)
    for key, value in attributes:
        set_attribute(node, key, value)
    if not node.is_link:
        with_mode(node, mode)
    node.accessed, node.modified = times


def set_attribute(node: Node, key: bytes, value: bytes) -> None:
    """Set an attribute as containerd and the kernel do: ``trusted.*`` and what ext4 does not have is passed over.

    Raises LayerError for what the kernel refuses.
    """
    known = key.startswith((b"user.", b"security.")) or key in {_ACCESS, _DEFAULT}
    if not known or (key.startswith(b"user.") and not (node.is_file or node.is_folder)):
        return
    if node.is_link and key in {_ACCESS, _DEFAULT}:
        return
    name = key.partition(b".")[2]
    if not name or len(key) > _LONGEST_NAME or b"\0" in key or len(value) > _MOST_VALUE:
        raise LayerError(f"an attribute that Linux does not take: {shown(key)}, {len(value)} bytes")
    if key == CAPABILITY and not _is_capability(value):
        raise LayerError("a file capability in an unknown form")
    if key in {_ACCESS, _DEFAULT}:
        with_acl(node, key, value)
        return
    node.xattrs = {**(node.xattrs or {}), key: value}


def _is_capability(value: bytes) -> bool:
    """Whether Linux takes it: revision 2 (20 bytes) or 3 (24), ``include/uapi/linux/capability.h``."""
    return (len(value), value[3:4]) in {(20, b"\x02"), (24, b"\x03")}


def _children(node: Node) -> dict[bytes, Node]:
    children = node.children
    assert isinstance(children, dict)
    return children


def _group(folder: Node) -> int:
    return folder.gid if folder.mode & stat.S_ISGID else 0

"""What a tree of nodes needs from the layers below it: ``settle`` for writers of file systems.

The layers below are trees too, as their writer reads them back.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from parbake.errors import LayerError
from parbake.layers.growing import OPAQUE_MARK, looks_of_link
from parbake.layers.paths import MOST_LINKS, Implied, clamp, join, shown
from parbake.nodes import Node, Store

if TYPE_CHECKING:
    from parbake.layers.growing import Growing
    from parbake.layers.tree import PendingLink

type Segments = Iterable[tuple[int, Iterable[memoryview]]]
_NOTHING: Final[Mapping[bytes, Node]] = {}


class _Found(NamedTuple):
    """Something that is no folder: its node, its path without links, and its layer, counted from the top (0)."""

    node: Node
    path: bytes
    layer: int


def settle_nodes(tree: Growing, lowers: Sequence[Node], store: Store, read: Callable[[Node], Segments]) -> None:
    """Finish a layer's tree once all layers below are written (``lowers``: their roots, the top one first).

    Effect as that of ``settle.settle``; ``read`` returns the data of a file of a lower layer. Raises LayerError.
    """
    for link in tree.pending.values():
        _link_below(tree, link, lowers, store, read)
    for path, known in tree.implied.items():
        place = tree.find(path)
        if place is not None:
            _dress(place[0], _topmost(path, lowers), known)


def _dress(folder: Node, below: Node | None, known: Implied) -> None:
    """Let an implied folder look like the topmost one below; what an entry said of it stays."""
    if below is None:
        if known is Implied.BARE:
            folder.accessed = folder.modified = 0
        return
    if known is not Implied.DESCRIBED:
        folder.uid, folder.gid = below.uid, below.gid
        folder.mode = below.mode
    _copy_attributes(below, folder)
    if known is Implied.BARE:
        folder.accessed, folder.modified = below.accessed, below.modified


def _copy_attributes(source: Node, target: Node) -> None:
    """Copy attributes that the target lacks; ``trusted.*`` (overlayfs' own marks) stay where they are."""
    found = {name: value for name, value in (source.xattrs or {}).items() if not name.startswith(b"trusted.")}
    if found:
        target.xattrs = {**found, **(target.xattrs or {})}


def _topmost(path: bytes, lowers: Sequence[Node]) -> Node | None:
    """Return the topmost folder of a path, each layer looked at by itself, as containerd does."""
    for lower in lowers:
        try:
            node, is_there = _folder_in(lower, path)
        except LayerError:
            return None  # something that is no folder hides what is further down
        if node is not None:
            return node
        if is_there:
            return None
    return None


def _folder_in(root: Node, path: bytes) -> tuple[Node | None, bool]:
    """Return the folder of a path in one layer, and whether something else (a whiteout) has the name."""
    for _ in range(MOST_LINKS):
        node, done, rest = root, b"", path.split(b"/")
        while rest:
            part = rest.pop(0)
            child = (node.children or _NOTHING).get(part)
            if child is None:
                return None, False
            if child.is_link:
                above = b"" if child.data.startswith(b"/") else done
                path = clamp(b"/".join([above, child.data, *rest]))
                break
            if not child.is_folder:
                if rest:
                    raise LayerError(f"{shown(path)} leads over what is no folder")
                return None, True
            node, done = child, join(done, part)
        else:
            return node, True
        if not path:
            return root, True
    raise LayerError(f"too many symbolic links on the way to {shown(path)}")


def _link_below(
    tree: Growing, link: PendingLink, lowers: Sequence[Node], store: Store, read: Callable[[Node], Segments]
) -> None:
    """Make a hard link whose target is looked for in all layers; it is copied up first where it lies below."""
    found = _find([tree.root, *lowers], link.target)
    if found is None:
        raise LayerError(
            f"{shown(link.path)}: a hard link to {shown(link.target)}, which is in no layer",
            hint="containerd refuses such a layer too: build the image with another tool",
        )
    node = found.node
    if found.layer:
        head, _, base = found.path.rpartition(b"/")
        node = _copied_up(node, store, read)
        _add(tree, head, base, node)
        node.links = 1
    head, _, base = link.path.rpartition(b"/")
    _add(tree, head, base, node)
    node.links += 1
    looks_of_link(node, link.uid, link.gid, link.mode, (link.accessed, link.modified), link.xattrs)


def _add(tree: Growing, folder: bytes, name: bytes, node: Node) -> None:
    place, _ = tree.make(folder)
    assert isinstance(place.children, dict)
    place.children[name] = node


def _copied_up(node: Node, store: Store, read: Callable[[Node], Segments]) -> Node:
    copy = Node(node.mode, node.uid, node.gid, node.modified, node.accessed)
    copy.size, copy.data, copy.rdev = node.size, node.data, node.rdev
    if node.is_file and node.size:
        copy.extents = store.put_sparse(read(node))
    _copy_attributes(node, copy)
    return copy


def _find(roots: Sequence[Node], name: bytes) -> _Found | None:
    """Find what overlayfs would show under a name: whiteouts and opaque folders hide, links lead on.

    Returns None for what is missing; raises LayerError for a folder.
    """
    for _ in range(MOST_LINKS):
        here = dict(enumerate(roots))
        done = b""
        rest = name.split(b"/")
        while rest:
            part = rest.pop(0)
            here, found = _look(here, part, done)
            if found is None:
                if not here:
                    return None
                done = join(done, part)
            elif not rest and not (stat.S_ISDIR(found.node.mode)):
                return found
            elif found.node.is_link:
                above = b"" if found.node.data.startswith(b"/") else done
                name = clamp(b"/".join([above, found.node.data, *rest]))
                break
            else:
                return None
        else:
            raise LayerError(f"a hard link to the folder {shown(name)}")
    raise LayerError(f"too many symbolic links on the way to {shown(name)}")


def _look(here: dict[int, Node], part: bytes, done: bytes) -> tuple[dict[int, Node], _Found | None]:
    """Look one component up in folders that overlayfs merges: the folders that merge below it, or what it is."""
    folders: dict[int, Node] = {}
    for layer, folder in here.items():
        node = (folder.children or _NOTHING).get(part)
        if node is None:
            continue
        if node.is_whiteout:
            break
        if not node.is_folder:
            if folders:
                break
            return {}, _Found(node, join(done, part), layer)
        folders[layer] = node
        if (node.xattrs or {}).get(OPAQUE_MARK) == b"y":
            break
    return folders, None

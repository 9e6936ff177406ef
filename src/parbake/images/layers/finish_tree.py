"""What a tree of nodes needs from the layers below it: ``complete_folder`` for writers of file systems.

The layers below are trees too, as their writer reads them back.
"""

from __future__ import annotations

import stat
from collections.abc import Sequence
from typing import TYPE_CHECKING

from parbake.images.layers.acls import DEFAULT, with_mode
from parbake.images.layers.paths import Implied, MadeFolders, check_group, hands_down
from parbake.images.layers.tree_writer import TreeFolders

if TYPE_CHECKING:
    from parbake.core.filetree import FileNode
    from parbake.images.layers.tree_writer import TreeBuilder


def complete_tree(tree: TreeBuilder, lowers: Sequence[FileNode]) -> None:
    """Finish a layer's tree once all layers below are written (``lowers``: their roots, the top one first).

    Effect as that of ``finish_folder.complete_folder``. Raises LayerError.
    """
    below = [TreeFolders(lower) for lower in lowers]
    made = MadeFolders()
    for path, known in tree.implied.items():
        source = _topmost(path, below)
        group = made.add(path, known, None if source is None else (source.mode, source.gid))
        if source is not None and DEFAULT in (source.xattrs or {}):
            raise hands_down(path)
        check_group(path, known, 0 if source is None else source.mode, group)
        place = None if known & Implied.GONE else tree.find(path)
        if place is not None:
            _apply_metadata(place[0], source, known, group)


def _apply_metadata(folder: FileNode, below: FileNode | None, known: Implied, group: int) -> None:
    """Let an implied folder look like the topmost one below; what an entry said of it stays."""
    takes_gid = not known & Implied.DESCRIBED or known & Implied.GID_LEFT
    if below is None:
        if takes_gid:
            folder.gid = group or folder.gid
        if not known & (Implied.DESCRIBED | Implied.DATED):
            folder.accessed = folder.modified = 0
        return
    if not known & Implied.DESCRIBED or known & Implied.UID_LEFT:
        folder.uid = below.uid
    if takes_gid:
        folder.gid = below.gid
    if not known & Implied.DESCRIBED:
        folder.mode = below.mode
    found = {name: value for name, value in (below.xattrs or {}).items() if not name.startswith(b"trusted.")}
    if found:
        folder.xattrs = {**found, **(folder.xattrs or {})}
        if known & Implied.DESCRIBED:
            with_mode(folder, stat.S_IMODE(folder.mode))  # which the entry gave to the ACL that was there by then
    if not known & (Implied.DESCRIBED | Implied.DATED):
        folder.accessed, folder.modified = below.accessed, below.modified


def _topmost(path: bytes, below: Sequence[TreeFolders]) -> FileNode | None:
    """Return the topmost folder of a path, each layer looked at by itself, as containerd does; raises LayerError."""
    for lower in below:
        node = lower.node(b"/" + path)  # absolute, as containerd asks
        if node is not None:
            return node if node.is_folder else None
    return None

"""Where a layer's files go: into a folder by system calls, or into a tree of nodes and a store for their data."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from parbake.images.layers.folder_writer import Tree
from parbake.images.layers.paths import FOLDER, Implied
from parbake.images.layers.tree_writer import TreeBuilder

if TYPE_CHECKING:
    from parbake.core.filetree import DataStore
    from parbake.images.layers.archive import Archive, TakesFile
    from parbake.images.layers.headers import TarEntry


class Applying(Protocol):
    """Takes entries one after the other; ``finish`` at the end."""

    now: bytes
    entries: int

    @property
    def plain_file(self) -> TakesFile | None:
        """Applies an entry that is a file with nothing special about it; ``apply`` gets what it does not take."""
        ...

    @property
    def implied(self) -> Mapping[bytes, Implied]:
        """Folders that no entry described when they were made."""
        ...

    def apply(self, entry: TarEntry) -> None:
        """Apply one entry; raises LayerError, LayerEscape, OSError."""
        ...

    def finish(self) -> None:
        """Do what has to wait for the last entry."""
        ...


class Sink(Protocol):
    """Where one layer goes; ``name`` is for errors."""

    name: str

    def opened(self, archive: Archive, *, overlay: bool, bound: int) -> AbstractContextManager[Applying]:
        """Open it in the thread that applies the entries."""
        ...


class FolderSink:
    """An empty folder, which becomes an overlayfs upper directory."""

    def __init__(self, folder: Path) -> None:
        self.name = str(folder)

    @contextmanager
    def opened(self, archive: Archive, *, overlay: bool, bound: int) -> Iterator[Applying]:
        """Open it; the calling thread gets a umask of its own, so that modes come out as the layer has them."""
        os.unshare(os.CLONE_FS)
        before = os.umask(0)
        try:
            root = os.open(self.name, FOLDER)
            try:
                tree = Tree(root, archive, overlay=overlay, bound=bound)
                try:
                    yield tree
                finally:
                    tree.close()
            finally:
                os.close(root)
        finally:
            os.umask(before)


class TreeSink:
    """A tree of nodes, and a store for files' data; ``tree`` is there once the layer was unpacked."""

    def __init__(self, name: str, store: DataStore) -> None:
        self.name, self._store = name, store
        self.tree: TreeBuilder

    @contextmanager
    def opened(self, archive: Archive, *, overlay: bool, bound: int) -> Iterator[Applying]:
        """Open it."""
        self.tree = TreeBuilder(self._store, archive, overlay=overlay, bound=bound)
        yield self.tree

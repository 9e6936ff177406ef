"""One layer on its way into a volume: its data as they come, then its tree. In any process, since it needs no other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from parbake.core.filetree import Extents, FileNode
from parbake.machine.ext4.stream import Hashes, Stream
from parbake.machine.ext4.superblock import Range, Superblock, merged, without
from parbake.machine.ext4.writer import TreeWriter

if TYPE_CHECKING:
    from parbake.machine.ext4.allocator import Zone


@dataclass(frozen=True, slots=True)
class PlacedLayer:
    """A layer in the volume: inode numbers of its holder (the snapshot's folder) and its root, and what it takes.

    ``folders`` counts its folders by block group.
    """

    holder: int
    root: int
    blocks: tuple[Range, ...]
    inodes: tuple[Range, ...]
    folders: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class WrittenLayer:
    """A layer that was written: where, what of its shares it did not need, and what was seen of the blocks."""

    placed: PlacedLayer
    blocks_left: Sequence[Range]
    inodes_left: Sequence[Range]
    hashes: Hashes


class LayerWriter:
    """A store for the data of a layer's files, then for its tree. Use from one thread at a time."""

    def __init__(self, superblock: Superblock, stream: Stream, blocks: Zone, inodes: Zone, hashes: Hashes) -> None:
        """``stream`` writes into the zone ``blocks``, and tells ``hashes``."""
        self._superblock, self._stream, self._blocks, self._inodes = superblock, stream, blocks, inodes
        self._hashes = hashes
        self.put_whole = stream.put_whole  # for each small file: without a call between

    def put(self, pieces: Iterable[memoryview]) -> Extents:
        """Store the data of one file (``filetree.DataStore``)."""
        return self._stream.put(pieces)

    def put_sparse(self, segments: Iterable[tuple[int, Iterable[memoryview]]]) -> Extents:
        """Store pieces of one file (``filetree.DataStore``)."""
        return self._stream.put_sparse(segments)

    def write(self, tree: FileNode, unused: Iterable[Extents] = ()) -> WrittenLayer:
        """Write the tree; ``unused`` are data that no file refers to any more. Raises LayerError, DiskFull, OSError."""
        holder = self._inodes.one()
        writer = TreeWriter(self._superblock, self._stream, self._inodes)
        writer.write(tree, holder)
        self._stream.flush()
        gone = merged((place, place + count) for extents in unused for _, place, count in extents)
        blocks = without(self._blocks.taken, gone)
        placed = PlacedLayer(holder, tree.number, tuple(blocks), tuple(self._inodes.taken), writer.folders)
        return WrittenLayer(placed, self._blocks.left, self._inodes.left, self._hashes)

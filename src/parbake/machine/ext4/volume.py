"""A volume that is filled without being mounted: layers' trees go straight into the file of an ext4 file system.

mke2fs makes the empty file system; this room adds files to it and keeps its books. Nothing needs root, and the same
layers give the same bytes, whichever threads were faster. What lies where is written into a file in the volume's root
(``LAYOUT``), so that a later bake can start from the volume as it is: layers that stay are not touched. Beside it is
what nodes read into memory before a start (``PREFETCH``, see ``coldstart.trace``): empty without a rehearsal.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import stat
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from parbake.core.filetree import DataStore, FileNode
from parbake.machine.ext4 import checksums, inodes
from parbake.machine.ext4.allocator import Overflow, Turnstile, Zone, front, shares, size_of
from parbake.machine.ext4.layer import PlacedLayer, WrittenLayer
from parbake.machine.ext4.reader import Reader
from parbake.machine.ext4.stream import HASHED, Buffers, Hashes, Stream, open_direct
from parbake.machine.ext4.superblock import BLOCK, INODE, ForeignVolume, Range, Superblock, merged, shared, without
from parbake.machine.ext4.writer import TreeWriter

if TYPE_CHECKING:
    from parbake.core.model import Layer

LAYOUT: Final = b".parbake-layout.json"
PREFETCH: Final = b".parbake-prefetch.list"
ROOT: Final = 2
_LOST_AND_FOUND: Final = 11
_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # fallocate(2)
_PIECE: Final = 1 << 20
_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_VERSION: Final = 1
# Room for what is not a layer: databases, manifests, folders. More comes out of what is left over.
_TOP_BLOCKS, _TOP_INODES = 16 << 20 >> 12, 2048
_TOP_SHARE: Final = 8  # but no more than one part in so many
_WEIGHT: Final = 64 << 10
"""Bytes that a layer counts for besides its compressed size: the smallest has some files too."""


class LayerArea:
    """The place of one layer that is to come. Whoever writes it there may be another process (``LayerWriter``)."""

    def __init__(self, volume: Volume, blocks: Sequence[Range], inodes: Sequence[Range], number: int) -> None:
        self.path, self.blocks, self.inodes = volume.path, blocks, inodes
        """What the layer may take; ``more_blocks`` and ``more_inodes`` where it is too little."""
        self._volume, self._number = volume, number

    def more_blocks(self) -> Range:
        """Wait until the layers before are placed, and return more blocks; raises DiskFull, Interrupted."""
        return self._volume.overflow_blocks.take(self._number)

    def more_inodes(self) -> Range:
        """Wait until the layers before are placed, and return more inodes; raises DiskFull, Interrupted."""
        return self._volume.overflow_inodes.take(self._number)

    def settle(self, written: WrittenLayer) -> PlacedLayer:
        """Take over a layer that was written; layers are settled in their order."""
        self._volume.overflow_blocks.give(written.blocks_left)
        self._volume.overflow_inodes.give(written.inodes_left)
        self._volume.turnstile.finish(self._number)
        if written.hashes is not self._volume.hashes:
            self._volume.hashes.take_over(written.hashes)
        return written.placed


class Volume:
    """An ext4 file system in a file, made by ``disk.make_filesystem`` or by an earlier bake. A context manager.

    Use: ``areas`` for the layers that are to come, ``LayerArea.settle`` each, ``finish`` with everything else.
    """

    def __init__(self, path: Path) -> None:
        """Open it. Raises OSError, ForeignVolume."""
        self.path = path
        self._handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._direct = -1
        try:
            self._direct = open_direct(path)
            self.superblock = Superblock(self._handle)
            self.hashes = Hashes()
            self.superblock.written = self.hashes.touch
            self.reader = Reader(self.superblock)
            self._read_layout()
        except BaseException:
            self._close()
            raise
        self._workers = ThreadPoolExecutor(2, thread_name_prefix="volume")
        self._memory = Buffers()
        self.turnstile = Turnstile()

    def _read_layout(self) -> None:
        """Find what lies in the volume already."""
        self.placed: dict[str, PlacedLayer] = {}
        """Layers by their chain ID."""
        self.hot: list[Range] = []
        """The zone in which a layout has brought together what starts read (see ``relocate``); merged."""
        self._were_blocks, self._were_inodes = self.superblock.taken(), self.superblock.taken_inodes()
        root = self.reader.node(ROOT)
        assert root.children is not None
        if (file := root.children.get(LAYOUT)) is None:
            # The root's own block is not kept: the root is written anew.
            gone = merged((place, place + count) for _, place, count in root.extents)
            self._base_blocks, self._base_inodes = without(self._were_blocks, gone), self._were_inodes
            return
        layout = json.loads(b"".join(self.reader.pieces(file)))
        if layout["version"] != _VERSION:
            raise ForeignVolume("it was made by another version of parbake", hint="bake it again, with --from-scratch")
        self._base_blocks, self._base_inodes = _ranges(layout["blocks"]), _ranges(layout["inodes"])
        self.hot = _ranges(layout.get("hot", []))
        for chain, found in layout["layers"].items():
            self.placed[chain] = PlacedLayer(
                found["holder"], found["root"], tuple(_ranges(found["blocks"])), tuple(_ranges(found["inodes"])),
                {int(group): count for group, count in found["folders"].items()},
            )  # fmt: skip

    def _layout(self) -> bytes:
        layers = {
            chain: {
                "holder": placed.holder, "root": placed.root, "blocks": placed.blocks, "inodes": placed.inodes,
                "folders": placed.folders,
            }
            for chain, placed in sorted(self.placed.items())
        }  # fmt: skip
        layout = {
            "version": _VERSION, "blocks": self._base_blocks, "inodes": self._base_inodes, "hot": self.hot,
            "layers": layers,
        }  # fmt: skip
        return json.dumps(layout, separators=(",", ":")).encode() + b"\n"

    # -- layers

    def rename(self, name: str) -> None:
        """Give the file system another UUID; raises ForeignVolume where its checksums hang on the old one."""
        self.superblock.rename(uuid.UUID(name).bytes)

    def retain(self, chains: Iterable[str]) -> None:
        """Let only these of the layers that are there stay."""
        wanted = set(chains)
        self.placed = {chain: placed for chain, placed in self.placed.items() if chain in wanted}

    def areas(self, layers: Sequence[Layer], *, kept: int = 0, dense: bool = False) -> list[LayerArea]:
        """Return a place for each layer that is to come; ``kept`` bytes of other files come with them.

        Layers have shares of the volume, by which they can be written side by side. ``dense``: they follow on each
        other, one at a time, which wastes nothing.
        """
        weights = [layer.size + _WEIGHT for layer in layers]
        used_blocks, used_inodes = self._in_use()
        # What was in use before comes first: a volume that is baked again and again does not spread.
        free_blocks = _free_blocks(used_blocks, self._were_blocks, self.superblock.blocks, self.hot)
        free_inodes = _free(used_inodes, self._were_inodes, (1, self.superblock.inodes + 1))
        self._top_blocks, free_blocks = front(
            free_blocks, min(_TOP_BLOCKS, size_of(free_blocks) // _TOP_SHARE) + 2 * kept // BLOCK
        )
        self._clear(used_inodes)  # at once: layers may be written there from now on
        self._top_inodes, free_inodes = front(free_inodes, min(_TOP_INODES, size_of(free_inodes) // _TOP_SHARE))
        self._last = len(layers)
        blocks, self.overflow_blocks = shares(
            free_blocks, weights, unit=HASHED // BLOCK, what="blocks", turnstile=self.turnstile, dense=dense
        )
        inodes, self.overflow_inodes = shares(
            free_inodes, weights, unit=BLOCK // INODE, what="inodes", turnstile=self.turnstile, dense=dense
        )
        return [LayerArea(self, *both, number) for number, both in enumerate(zip(blocks, inodes, strict=True))]

    def stream(self, blocks: Zone) -> Stream:
        """Return what writes into a zone of blocks."""
        return Stream(self._direct, blocks, self._workers, self.hashes, self._memory)

    def _in_use(self) -> tuple[list[Range], list[Range]]:
        layers = self.placed.values()
        blocks = merged([*self._base_blocks, *(part for layer in layers for part in layer.blocks)])
        return blocks, merged([*self._base_inodes, *(part for layer in layers for part in layer.inodes)])

    def shared_units(self) -> set[int]:
        """Return which 512 KiB blocks hold something that stays, and may be written to: metadata, and ends of layers.

        Ask after ``retain``: what is free then may be written to.
        """
        (used, _), frame = self._in_use(), self.superblock.frame()
        free = without([(0, self.superblock.blocks)], without(used, frame))
        return _units(used) & _units(free)

    def usage(self, chain: str) -> tuple[int, int]:
        """Return what a layer's tree takes in bytes, as ``du`` counts it, and in inodes."""
        placed, sectors, count = self.placed[chain], 0, 0
        for start, end in without(placed.inodes, [(placed.holder, placed.holder + 1)]):
            for _, table in self.superblock.inode_tables(start, end):
                for links, low, high in inodes.USAGE.iter_unpack(table):
                    if links:
                        count += 1
                        sectors += low | high << 32
        return sectors * inodes.SECTOR, count

    # -- everything else

    def finish(self, fill: Callable[[DataStore], FileNode]) -> None:
        """Write what is not a layer, and the books, and have all of it on the disk.

        ``fill`` returns the root folder, in which layers hang as ``holder`` gives them; it stores its files' data in
        what it gets. Raises LayerError, DiskFull, OSError.
        """

        def whole(store: DataStore) -> FileNode:
            root = fill(store)
            assert root.children is not None
            root.children[LAYOUT] = _file(self._layout(), store)
            root.children[PREFETCH] = _file(b"", store)
            return root

        self._write_top(whole)
        os.fsync(self._handle)

    def _write_top(self, fill: Callable[[DataStore], FileNode]) -> None:
        blocks = Zone(self._top_blocks, partial(self.overflow_blocks.take, self._last))
        inodes = Zone(self._top_inodes, partial(self.overflow_inodes.take, self._last))
        stream = self.stream(blocks)
        root = fill(stream)
        assert root.children is not None
        root.number = ROOT
        root.children[b"lost+found"] = _there(_LOST_AND_FOUND)
        writer = TreeWriter(self.superblock, stream, inodes)
        writer.write(root, ROOT, {_LOST_AND_FOUND, *(placed.root for placed in self.placed.values())})
        stream.flush()
        self._write_books(blocks.taken, inodes.taken, writer.folders)

    def _write_books(self, blocks: Sequence[Range], inodes: Sequence[Range], folders: Mapping[int, int]) -> None:
        used_blocks, used_inodes = self._in_use()
        used_blocks, used_inodes = merged([*used_blocks, *blocks]), merged([*used_inodes, *inodes])
        counts = Counter({0: 1})  # lost+found
        counts.update(folders)
        for placed in self.placed.values():
            counts.update(placed.folders)
        self._clear(used_inodes)
        self._were_blocks = used_blocks
        self.superblock.write(used_blocks, used_inodes, counts)

    def _clear(self, used: Sequence[Range]) -> None:
        """Overwrite the inodes that are in use no longer: what a checker finds in the table must not look alive."""
        for start, end in without(self._were_inodes, used):
            for number in range(start, end):
                self.superblock.put(bytes(INODE), self.superblock.inode_place(number))
        self._were_inodes = list(used)

    def holder(self, chain: str, folder: FileNode, work: FileNode) -> FileNode:
        """Return the folder of a layer's snapshot: ``fs`` in it is the layer's tree, ``work`` what overlayfs needs."""
        placed = self.placed[chain]
        folder.number = placed.holder
        folder.children = {b"fs": _there(placed.root), b"work": work}
        return folder

    # -- moving what is there (see ``relocate``)

    @property
    def used(self) -> Sequence[Range]:
        """The blocks in use."""
        return self._were_blocks

    @property
    def used_inodes(self) -> Sequence[Range]:
        """The inodes in use."""
        return self._were_inodes

    def copy(self, old: int, new: int, count: int) -> None:
        """Copy blocks within the volume. Raises OSError."""
        self.hashes.touch(new * BLOCK, (new + count) * BLOCK)
        size, done = count * BLOCK, 0
        while done < size:
            done += os.copy_file_range(self._handle, self._handle, size - done, old * BLOCK + done, new * BLOCK + done)

    def settle(self, changes: Mapping[str, tuple[Sequence[Range], Sequence[Range]]]) -> None:
        """Write the books after blocks (merged) were lost and others got, by the layer's chain ID ("" for no layer's).

        Then have all of it on the disk; what is free now is a hole. Raises OSError, DiskFull.
        """
        used: Sequence[Range] = self._were_blocks
        for chain, (lost, got) in changes.items():
            used = merged([*without(used, lost), *got])
            if placed := self.placed.get(chain):
                blocks = merged([*without(placed.blocks, lost), *got])
                self.placed[chain] = replace(placed, blocks=tuple(blocks))
        self._settle(self._rewrite(LAYOUT, self._layout(), used))

    def put_prefetch_list(self, data: bytes) -> None:
        """Write what nodes are to read into memory; the hot zone's gaps are taken first. Raises OSError, DiskFull."""
        self._settle(self._rewrite(PREFETCH, data, self._were_blocks, hot=True))

    def _settle(self, used: Sequence[Range]) -> None:
        self.superblock.write(used, self._were_inodes, self.superblock.folders())
        for start, end in without(self._were_blocks, used):
            self.hashes.touch(start * BLOCK, end * BLOCK)
            _punch(self._handle, start * BLOCK, end * BLOCK)
        self._were_blocks = list(used)
        os.fsync(self._handle)

    def _rewrite(self, name: bytes, data: bytes, used: Sequence[Range], *, hot: bool = False) -> Sequence[Range]:
        """Write one of our own files anew, elsewhere; return the blocks that are in use then."""
        children = self.reader.node(ROOT).children
        assert children is not None
        number, tree = children[name].number, list[int]()
        raw = os.pread(self._handle, INODE, self.superblock.inode_place(number))
        before = self.reader.extents(raw[inodes.BODY], tree)
        gone = [*before, *((0, block, 1) for block in tree)]
        used = without(used, merged((place, place + count) for _, place, count in gone))
        free = _free_blocks(used, used, self.superblock.blocks, self.hot)
        if hot:
            free = [*shared(without([(0, self.superblock.blocks)], used), self.hot), *free]
        zone = Zone(free, partial(Overflow([], 1, "blocks", self.turnstile).take, 0))
        stream = self.stream(zone)
        extents = stream.put([memoryview(data)])
        seed = checksums.of_inode(self.superblock.seed, number)
        body, _ = inodes.body_of_extents(extents, lambda make: stream.block(make(stream.next_block())), seed)
        stream.flush()
        blocks = size_of(zone.taken)
        raw = inodes.moved(raw, number, self.superblock.seed, body=body, blocks=blocks, acl=0, size=len(data))
        self.superblock.put(raw, self.superblock.inode_place(number))
        return merged([*used, *zone.taken])

    # -- the end

    def _close(self) -> None:
        for handle in (self._handle, self._direct):
            if handle >= 0:
                os.close(handle)
        self._handle = self._direct = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.turnstile.give_up()
        self._workers.shutdown()
        self._close()


def _units(ranges: Iterable[Range]) -> set[int]:
    return {unit for start, end in ranges for unit in range(start * BLOCK // HASHED, -(-end * BLOCK // HASHED))}


def _there(number: int) -> FileNode:
    """Return a folder that is on the volume already."""
    node = FileNode(stat.S_IFDIR | 0o755)
    node.number = number
    return node


def _file(data: bytes, store: DataStore) -> FileNode:
    node = FileNode(stat.S_IFREG | 0o644)
    node.size = len(data)
    node.extents = store.put([memoryview(data)])
    return node


def _free(used: Sequence[Range], before: Sequence[Range], whole: Range) -> list[Range]:
    """Return what is free: first what was used before, then the rest."""
    freed = without(before, used)
    return [*freed, *without([whole], merged([*used, *freed]))]


def _free_blocks(used: Sequence[Range], before: Sequence[Range], end: int, hot: Sequence[Range]) -> list[Range]:
    """Return what is free: ranges that were used before first; small ones and the hot zone only when all else is full.

    What a layout has moved away leaves many small gaps: a layer that went there would touch many units of 512 KiB.
    """
    free, freed = without([(0, end)], used), without(before, used)
    pieces = without(free, hot)
    return [
        *sorted(pieces, key=lambda each: (each[1] - each[0] < HASHED // BLOCK, not shared([each], freed), each)),
        *shared(free, hot),
    ]


def _ranges(found: Iterable[Sequence[int]]) -> list[Range]:
    return [(start, end) for start, end in found]


def _punch(handle: int, start: int, end: int) -> None:
    """Let a part of an open file (bytes) read as zeros; a hole, where its file system has holes. Raises OSError."""
    size = ctypes.c_int64(end - start)
    if not _LIBC.fallocate(handle, _KEEP_SIZE | _PUNCH_HOLE, ctypes.c_int64(start), size):
        return
    code = ctypes.get_errno()
    if code not in {errno.EOPNOTSUPP, errno.ENOSYS}:
        raise OSError(code, os.strerror(code))
    for place in range(start, end, _PIECE):
        os.pwrite(handle, bytes(min(_PIECE, end - place)), place)

"""Hot first: what starts read comes to lie in one zone of a finished volume, in the order in which it is read.

A volume from a cloud's snapshot is loaded block by block (512 KiB), each when it is touched first. Hot data that lie
scattered among cold ones touch many such blocks, and each brings little. So hot blocks of 4 KiB move together: of
files, folders, extent trees, attributes. Files of which only a part is hot are split there. Everything else stays.

A start reads the zone block after block, and would wait for each of them. So the first large request in each carries
a page that lies further on (``AHEAD``): who sends it sets off the loading of that block as well, and finds it loaded
later. No program on the node is needed for that.
"""

from __future__ import annotations

import bisect
import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from parbake.core.filetree import NO_DATA, Extents
from parbake.machine.ext4 import checksums, inodes, xattrs
from parbake.machine.ext4.allocator import front, size_of
from parbake.machine.ext4.stream import HASHED, joined
from parbake.machine.ext4.superblock import BLOCK, Range, merged, shared, without

if TYPE_CHECKING:
    from parbake.machine.ext4.volume import Volume

AHEAD: Final = 8
"""Blocks of 512 KiB that are on their way beside the one that is waited for: a volume that answers within 100 ms
then gives 40 MiB/s."""
_UNIT: Final = HASHED // BLOCK
_CARRIES: Final = 4
"""Pages that a request keeps when it carries others: who sends it waits for one of the first."""
_ROOT: Final = 2
_TREE_SHARE: Final = 64
"""One block in so many is kept for extent trees: a leaf has room for 340 extents, and a block that moves makes two."""


@dataclass(frozen=True, slots=True)
class Relocated:
    """What a layout did: how many blocks of 4 KiB moved, how many were in the zone already, how many had no room."""

    blocks: int
    stayed: int
    left: int


@dataclass(slots=True)
class _Owner:
    """An inode: its bytes, where its data lie, the blocks of its extent tree, the one of its attributes or 0."""

    number: int
    raw: bytes
    extents: Extents = NO_DATA
    tree: list[int] = field(default_factory=list)
    attributes: int = 0

    def blocks(self) -> list[Range]:
        """Return what can move as it is: all but the tree, which is made anew."""
        found = [(place, place + count) for _, place, count in self.extents]
        return [*found, (self.attributes, self.attributes + 1)] if self.attributes else found


def lay_out(volume: Volume, requests: Iterable[Range]) -> Relocated:
    """Bring what a start reads together; ``requests`` are ranges of blocks of 4 KiB, in the order of the start.

    Blocks that an earlier layout has brought to the zone stay there, so that a volume that is baked again changes
    little. What the volume has no room for stays as well, the last requests first. The same requests give the same
    bytes. Raises OSError.
    """
    wanted = [(start, end) for start, end in requests if 0 <= start < end]
    hot = merged(wanted)
    owners = [owner for owner in _owners(volume) if any(_touch(hot, *part) for part in owner.blocks())]
    mine = shared(hot, merged(part for owner in owners for part in owner.blocks()))
    movable = without(mine, volume.hot)
    total = size_of(movable)
    reserve = len(owners) + sum(len(owner.tree) for owner in owners) + total // _TREE_SHARE
    slots = _room(volume, total + reserve) if movable else []
    room = min(total, max(len(slots) - reserve, 0))
    places = _placed(_order(wanted, movable), slots[:room])
    _copy(volume, places)
    trees, layers = iter(slots[room:]), _layers(volume)
    changes: dict[str, tuple[list[int], list[int]]] = {}
    for owner in owners:
        lost, got = changes.setdefault(layers(owner.number), ([], []))
        _move(volume, owner, places, trees, lost, got)
    volume.settle({chain: (_runs(lost), _runs(got)) for chain, (lost, got) in changes.items()})
    return Relocated(len(places), size_of(mine) - total, total - len(places))


# -- what is to move


def _owners(volume: Volume) -> Iterator[_Owner]:
    """Yield every inode of parbake's that has blocks: not the journal, nor what else mke2fs has made."""
    for start, end in volume.used_inodes:
        for number, raw in volume.superblock.inodes_in(start, end):
            if number != _ROOT and number <= volume.superblock.first_inode:
                continue
            owner = _Owner(number, raw, attributes=inodes.attributes_block(raw))
            if inodes.has_tree(raw):
                owner.extents = volume.reader.extents(raw[inodes.BODY], owner.tree)
            if owner.extents or owner.attributes:
                yield owner


def _touch(ranges: Sequence[Range], start: int, end: int) -> bool:
    """Whether a range has anything in common with merged ones."""
    at = bisect.bisect_left(ranges, (start, start))
    return any(start < last and first < end for first, last in ranges[max(at - 1, 0) : at + 1])


def _order(wanted: Iterable[Range], movable: Sequence[Range]) -> Iterator[list[int]]:
    """Yield the blocks of each request that are to move and were in none before."""
    left = {block for start, end in movable for block in range(start, end)}
    for start, end in wanted:
        fresh = [block for block in range(start, end) if block in left]
        left.difference_update(fresh)
        if fresh:
            yield fresh


# -- where to


def _room(volume: Volume, count: int) -> list[int]:
    """Return up to ``count`` free blocks: the zone's own, and new ones, in units of 512 KiB, which become a part of it.

    The new ones are one range where the volume has one that is large enough.
    """
    free = without([(0, volume.superblock.blocks)], volume.used)
    missing = -(-max(count - size_of(shared(free, volume.hot)), 0) // _UNIT) * _UNIT
    pieces = [(-(-start // _UNIT) * _UNIT, end // _UNIT * _UNIT) for start, end in without(free, volume.hot)]
    pieces = [(start, end) for start, end in pieces if start < end]
    whole = [piece for piece in pieces if piece[1] - piece[0] >= missing][:1]
    new, _ = front(whole or sorted(pieces, key=lambda piece: piece[0] - piece[1]), missing)
    volume.hot = merged([*volume.hot, *new])
    return [block for start, end in shared(free, volume.hot) for block in range(start, end)][:count]


def _placed(order: Iterable[list[int]], slots: Sequence[int]) -> dict[int, int]:
    """Return the new places of blocks, by the old ones: in order, but for the pages that requests carry.

    These lie behind the first request of their block: one that goes on in the next block is not interrupted by them.
    """
    groups = [list(group) for _, group in itertools.groupby(slots, key=lambda slot: slot // _UNIT)]
    waiting = deque(order)
    carried: dict[int, list[int]] = {}
    places: dict[int, int] = {}
    for number, group in enumerate(groups):
        own: list[int] = []
        guests = carried.pop(number, [])
        behind = 0
        targets = [
            target
            for target in (range(1, AHEAD + 1) if not number else (number + AHEAD,))
            if target < len(groups) and len(groups[target]) > 2 * AHEAD
        ]
        while waiting and len(own) < len(group) - len(guests):
            request = waiting.popleft()
            room = len(group) - len(guests) - len(own)
            here, rest = request[:room], request[room:]
            if targets and len(here) >= _CARRIES + len(targets):
                for target in targets:
                    carried.setdefault(target, []).append(here.pop())
                targets = []
            behind = behind or len(own)
            own += here
            if rest:
                waiting.appendleft(rest)
        places.update(zip([*own[:behind], *guests, *own[behind:]], group, strict=False))
    return places


# -- moving


def _copy(volume: Volume, places: Mapping[int, int]) -> None:
    """Copy blocks, those that stay neighbours with one call."""
    runs: list[list[int]] = []
    for new, old in sorted((new, old) for old, new in places.items()):
        if runs and runs[-1][0] + runs[-1][2] == old and runs[-1][1] + runs[-1][2] == new:
            runs[-1][2] += 1
        else:
            runs.append([old, new, 1])
    for old, new, count in runs:
        volume.copy(old, new, count)


def _move(
    volume: Volume, owner: _Owner, places: Mapping[int, int], free: Iterator[int], lost: list[int], got: list[int]
) -> None:
    """Let an inode find its blocks where they are now; add to what it has lost and what it has got, trees included.

    New blocks of its tree come from ``free``.
    """
    superblock = volume.superblock
    left = [block for start, end in owner.blocks() for block in range(start, end) if block in places]
    if not left:
        return
    lost += left
    got += [places[block] for block in left]
    body, tree = owner.raw[inodes.BODY], len(owner.tree)
    if owner.extents:

        def new_block(make: Callable[[int], bytes]) -> int:
            number = next(free)
            superblock.put(make(number), number * BLOCK)
            got.append(number)
            return number

        extents = tuple(joined(_split(owner.extents, places)))
        body, tree = inodes.body_of_extents(extents, new_block, checksums.of_inode(superblock.seed, owner.number))
        lost += owner.tree
    attributes = places.get(owner.attributes, owner.attributes)
    if attributes != owner.attributes:
        block = os.pread(superblock.handle, BLOCK, attributes * BLOCK)
        superblock.put(xattrs.at_block(block, superblock.seed, attributes), attributes * BLOCK)
    blocks = sum(count for _, _, count in owner.extents) + tree + bool(attributes)
    raw = inodes.moved(owner.raw, owner.number, superblock.seed, body=body, blocks=blocks, acl=attributes)
    superblock.put(raw, superblock.inode_place(owner.number))


def _layers(volume: Volume) -> Callable[[int], str]:
    """Return what tells the chain ID of the layer whose part an inode's blocks are, "" for what is not a layer's."""
    parts = sorted((*part, chain) for chain, placed in volume.placed.items() for part in placed.inodes)
    starts = [start for start, _, _ in parts]
    holders = {placed.holder for placed in volume.placed.values()}  # only their numbers are the layers'

    def of(number: int) -> str:
        at = bisect.bisect_right(starts, number) - 1
        return parts[at][2] if at >= 0 and number < parts[at][1] and number not in holders else ""

    return of


def _split(extents: Extents, places: Mapping[int, int]) -> Iterator[tuple[int, int, int]]:
    for logical, place, count in extents:
        for done in range(count):
            yield logical + done, places.get(place + done, place + done), 1


def _runs(blocks: Iterable[int]) -> list[Range]:
    return merged((block, block + 1) for block in blocks)

"""The layout of a finished volume by what starts read: held against e2fsck, its own reader, and what it promises."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from parbake.core.filetree import FileNode, walk
from parbake.core.model import MIB
from parbake.machine.ext4 import Relocated, Volume, lay_out
from parbake.machine.ext4.allocator import size_of
from parbake.machine.ext4.layer import LayerWriter
from parbake.machine.ext4.relocate import AHEAD
from parbake.machine.ext4.stream import HASHED
from parbake.machine.ext4.superblock import BLOCK, Range, merged, shared
from tests.unit.machine.ext4.test_ext4 import (
    check,
    differing,
    empty,
    file,
    finish,
    folder,
    layer,
    placed,
    read,
    same,
    some,
    trees,
    write,
)

UNIT = HASHED // BLOCK


def laid_out(path: Path, requests: Sequence[Range]) -> tuple[Relocated, Volume]:
    with Volume(path) as volume:
        return lay_out(volume, requests), volume


def without_places(node: FileNode) -> FileNode:
    """Return a tree that was read whole, without where its data lie."""
    for each in walk(node):
        each.extents = ()
    return node


def contents(path: Path, name: str) -> dict[int, bytes]:
    """Return the data of a layer's files by their inode numbers."""
    tree = read(path, name)
    with Volume(path) as volume:
        return {node.number: b"".join(volume.reader.pieces(node)) for node in walk(tree) if node.is_file}


def blocks_of(path: Path, name: str) -> list[Range]:
    """Return all blocks that a layer's nodes have data in."""
    return merged((place, place + count) for node in walk(read(path, name)) for _, place, count in node.extents)


REQUESTS = st.lists(
    st.tuples(st.integers(0, 4095), st.integers(1, 40)).map(lambda one: (one[0], sum(one))), max_size=40
)


@given(trees(), trees(), REQUESTS, REQUESTS)
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
def test_any_requests_leave_any_volume_clean_and_as_it_was(
    tmp_path_factory: pytest.TempPathFactory,
    first: Callable[[LayerWriter], FileNode],
    second: Callable[[LayerWriter], FileNode],
    requests: list[Range],
    later: list[Range],
) -> None:
    path = empty(tmp_path_factory.mktemp("tree"), 16 * MIB)
    write(path, {"a": first, "b": second})
    before = {name: (without_places(read(path, name)), contents(path, name)) for name in "ab"}
    for each in (requests, later):
        laid_out(path, each)
        check(path)
    for name, (tree, data) in before.items():
        same(tree, without_places(read(path, name)))
        assert contents(path, name) == data
    path.unlink()


@pytest.fixture(scope="module")
def baked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A volume of three layers, whose hot part is scattered."""
    path = empty(tmp_path_factory.mktemp("baked"))
    write(path, {name: some(name, 60) for name in "abc"})
    return path


@pytest.fixture
def path(baked: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(baked, tmp_path / "volume.raw"))


def scattered(path: Path, seed: int = 1) -> list[Range]:
    source = random.Random(seed)
    used = [part for name in "abc" for part in blocks_of(path, name)]
    starts = [source.randrange(start, end) for start, end in used for _ in range(12)]
    return [(start, start + source.randrange(1, 12)) for start in starts]


def test_what_is_hot_lies_together_and_the_rest_stays(path: Path) -> None:
    requests = scattered(path)
    before = {name: {node.number: node.extents for node in walk(read(path, name))} for name in "abc"}
    hot = shared(merged(requests), merged(part for name in "abc" for part in blocks_of(path, name)))
    old = path.read_bytes()
    moved, volume = laid_out(path, requests)
    check(path)
    assert moved == Relocated(size_of(hot), 0, 0)
    assert len(volume.hot) == 1
    ((zone, end),) = volume.hot
    assert zone % UNIT == end % UNIT == 0
    after = {name: {node.number: node.extents for node in walk(read(path, name))} for name in "abc"}
    for name in "abc":
        for number, extents in before[name].items():
            places = {logical + n: place + n for logical, place, count in extents for n in range(count)}
            now = {logical + n: place + n for logical, place, count in after[name][number] for n in range(count)}
            assert set(places) == set(now)
            for logical, place in places.items():
                is_hot = bool(shared(hot, [(place, place + 1)]))
                assert (zone <= now[logical] < end) if is_hot else now[logical] == place
    # What became free is zeros, and every change is told.
    new = path.read_bytes()
    assert all(not any(new[start * BLOCK : stop * BLOCK]) for start, stop in hot)
    changed = differing(old, new)
    assert changed <= volume.hashes.touched


def test_the_same_requests_give_the_same_bytes_and_a_second_time_changes_none(path: Path, tmp_path: Path) -> None:
    again = Path(shutil.copy(path, tmp_path / "again.raw"))
    requests = scattered(path)
    moved, volume = laid_out(path, requests)
    laid_out(again, requests)
    assert path.read_bytes() == again.read_bytes()
    zone = {(place, count) for name in "abc" for node in walk(read(path, name)) for _, place, count in node.extents}
    once_more, same_volume = laid_out(path, volume.hot)
    check(path)
    assert (once_more.blocks, once_more.left) == (0, 0)
    assert once_more.stayed >= moved.blocks
    assert same_volume.hot == volume.hot
    assert zone == {
        (place, count) for name in "abc" for node in walk(read(path, name)) for _, place, count in node.extents
    }


def test_a_volume_that_starts_from_one_that_was_laid_out(path: Path) -> None:
    with Volume(path) as volume:  # what is no layer's is hot as well: the root, the layers' folders
        others = [volume.reader.node(number) for number in (2, *(one.holder for one in volume.placed.values()))]
    moved, _ = laid_out(path, [*scattered(path), *((at, at + n) for node in others for _, at, n in node.extents)])
    assert moved.left == 0
    before, kept = path.read_bytes(), {name: contents(path, name) for name in "ab"}
    with Volume(path) as volume:
        zone = volume.hot
        volume.retain([layer("a").chain_id, layer("b").chain_id])
        (area,) = volume.areas([layer("new")])
        volume.placed[layer("new").chain_id] = placed(area, some("new", 60))
        finish(volume)
    check(path)
    assert volume.hot == zone
    # The new layer went into whole gaps, not into all the small ones that the hot blocks have left.
    after = path.read_bytes()
    changed = differing(before, after)
    assert changed <= volume.hashes.touched
    assert not shared(blocks_of(path, "new"), zone)
    size = size_of(blocks_of(path, "new")) * BLOCK
    assert len(changed) * HASHED < 1.5 * size + 4 * MIB
    # What is hot of it joins the zone, where the old layer has left room; all else stays.
    moved, volume = laid_out(path, [*zone, *blocks_of(path, "new")[:1]])
    check(path)
    assert moved.blocks > 0
    assert size_of(volume.hot) <= size_of(zone) + moved.blocks + UNIT
    assert {name: contents(path, name) for name in "ab"} == kept


def test_what_has_no_room_stays(tmp_path: Path) -> None:
    path = empty(tmp_path, 16 * MIB)
    source = random.Random(1)
    write(path, {"a": lambda area: folder(**{f"{n}": file(area, source.randbytes(MIB)) for n in range(9)})})
    before = contents(path, "a")
    for _ in range(2):
        moved, _ = laid_out(path, blocks_of(path, "a"))
        check(path)
        assert moved.left > 0
    assert contents(path, "a") == before


def test_requests_carry_pages_of_the_blocks_to_come(tmp_path: Path) -> None:
    path = empty(tmp_path)
    data = random.Random(1).randbytes(20 * MIB)
    write(path, {"a": lambda area: folder(large=file(area, data))})
    ((start, end),) = [part for part in blocks_of(path, "a") if part[1] - part[0] > 1024]
    requests = [(at, min(at + 32, end)) for at in range(start, end, 32)]
    laid_out(path, requests)
    check(path)
    assert data in contents(path, "a").values()
    (large,) = [node for node in walk(read(path, "a")) if node.is_file]
    places = {logical + n: place + n for logical, place, count in large.extents for n in range(count)}
    ((zone, _),) = _zone(path)
    asked: set[int] = set()
    pieces = sum(at % 32 == 0 or places[at] != places[at - 1] + 1 for at in range(len(places)))
    assert pieces <= len(requests) + 20 * MIB // HASHED, "each page that is carried makes one read more, and no other"
    for logical in range(0, len(places), 32):
        units = [(places[at] - zone) // UNIT for at in range(logical, min(logical + 32, len(places)))]
        asked.update(units)
        if units[0] + AHEAD < 20 * MIB // HASHED:  # what is asked for later is on its way already
            assert set(range(units[0] + AHEAD + 1)) <= asked


def _zone(path: Path) -> list[Range]:
    with Volume(path) as volume:
        return volume.hot

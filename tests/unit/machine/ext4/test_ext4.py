"""The writer of ext4 volumes, held against e2fsck, against its own reader, and against itself."""

from __future__ import annotations

import hashlib
import os
import random
import stat
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from parbake.core.errors import DiskFull, Interrupted, LayerError
from parbake.core.filetree import DataStore, FileNode, walk
from parbake.core.model import MIB, Layer
from parbake.core.run import run
from parbake.machine import disk
from parbake.machine.ext4 import ForeignVolume, LayerArea, PlacedLayer, Volume, WrittenLayer
from parbake.machine.ext4.allocator import Overflow, Turnstile, Zone, shares
from parbake.machine.ext4.layer import LayerWriter
from parbake.machine.ext4.stream import HASHED
from parbake.machine.ext4.superblock import BLOCK, bitmap_of, bits, merged, without

RANGES = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 12)).map(lambda one: (one[0], one[0] + one[1])))


def layer(name: str, size: int = MIB) -> Layer:
    digest = "sha256:" + hashlib.sha256(name.encode()).hexdigest()
    return Layer(media_type="x", digest=digest, size=size, diff_id=digest, chain_id=digest)


def empty(folder: Path, size: int = 64 * MIB) -> Path:
    path = folder / "volume.raw"
    disk.make_filesystem(path, "ext4", size, name="test")
    return path


def folder(**children: FileNode) -> FileNode:
    node = FileNode(stat.S_IFDIR | 0o755)
    node.children = {name.encode(): child for name, child in children.items()}
    return node


def file(store: DataStore, data: bytes, mode: int = 0o644) -> FileNode:
    node = FileNode(stat.S_IFREG | mode, 1000, 70000, 1_234_567_890_123_456_789)
    node.size = len(data)
    if len(data) % 2:
        node.extents = store.put_whole(memoryview(data))
    elif data:
        node.extents = store.put(memoryview(data)[at : at + 70_000] for at in range(0, len(data), 70_000))
    return node


def finish(volume: Volume) -> None:
    """Let the root show layers by chain ID."""

    def fill(_: DataStore) -> FileNode:
        root = folder()
        assert root.children is not None
        for chain in volume.placed:
            root.children[chain.encode()] = volume.holder(chain, folder(), folder())
        return root

    volume.finish(fill)


def differing(before: bytes, after: bytes) -> set[int]:
    """Return the numbers of the blocks, of those that are hashed, in which two volumes differ."""
    starts = range(0, len(after), HASHED)
    return {at // HASHED for at in starts if after[at : at + HASHED] != before[at : at + HASHED]}


def check(path: Path) -> None:
    """Nothing is wrong in the eyes of e2fsck."""
    done = run(["e2fsck", "-fn", str(path)], check=False)
    assert done.code == 0, done.text[-3000:]


def write(
    path: Path, trees: dict[str, Callable[[LayerWriter], FileNode]], *, at_once: bool = False, **options: bool
) -> Volume:
    """Write trees as layers, their data side by side where asked for."""
    with Volume(path) as volume, ThreadPoolExecutor(len(trees) if at_once else 1) as pool:
        layers = [layer(name) for name in trees]
        slots = volume.areas(layers, **options)

        def make(tree: Callable[[LayerWriter], FileNode], area: LayerArea) -> WrittenLayer:
            if at_once:
                time.sleep(random.random() / 50)
            writer = writer_of(area)
            return writer.write(tree(writer))

        made = [pool.submit(make, tree, area) for tree, area in zip(trees.values(), slots, strict=True)]
        try:
            for one, area, tree in zip(layers, slots, made, strict=True):
                volume.placed[one.chain_id] = area.settle(tree.result())
        except BaseException:
            volume.turnstile.give_up()
            raise
        finish(volume)
    return volume


def writer_of(area: LayerArea) -> LayerWriter:
    volume = area._volume
    blocks, inodes = Zone(area.blocks, area.more_blocks), Zone(area.inodes, area.more_inodes)
    return LayerWriter(volume.superblock, volume.stream(blocks), blocks, inodes, volume.hashes)


def placed(area: LayerArea, tree: Callable[[LayerWriter], FileNode]) -> PlacedLayer:
    """Write a tree into its place, and settle it."""
    writer = writer_of(area)
    return area.settle(writer.write(tree(writer)))


def read(path: Path, name: str) -> FileNode:
    """Return a layer's tree as the reader sees it."""

    def whole(node: FileNode) -> FileNode:
        if node.children is not None:
            node.children = {name: whole(child) for name, child in node.children.items()}
        return node

    with Volume(path) as volume:
        return whole(volume.reader.node(volume.placed[layer(name).chain_id].root))


# -- numbers


@given(RANGES)
def test_bitmaps_and_ranges_are_the_same(ranges: list[tuple[int, int]]) -> None:
    whole = merged(ranges)
    assert list(bits(bitmap_of(whole, 32768), 100)) == whole
    assert {number for start, end in ranges for number in range(start, end)} == {
        number for start, end in whole for number in range(start, end)
    }


@given(RANGES, RANGES)
def test_what_is_left_of_ranges(ranges: list[tuple[int, int]], gone: list[tuple[int, int]]) -> None:
    def numbers(these: list[tuple[int, int]]) -> set[int]:
        return {number for start, end in these for number in range(start, end)}

    assert numbers(without(merged(ranges), merged(gone))) == numbers(ranges) - numbers(gone)


def zones_of(
    free: list[tuple[int, int]], weights: list[int], turnstile: Turnstile, *, dense: bool
) -> tuple[list[Zone], Overflow]:
    found, overflow = shares(free, weights, unit=1, what="blocks", turnstile=turnstile, dense=dense)
    return [Zone(share, partial(overflow.take, number)) for number, share in enumerate(found)], overflow


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=8).filter(any), st.integers(1, 500), st.booleans())
def test_zones_never_share_a_unit_and_dense_ones_waste_none(weights: list[int], total: int, dense: bool) -> None:
    turnstile = Turnstile()
    zones, overflow = zones_of([(10, 10 + total)], weights, turnstile, dense=dense)
    taken: list[int] = []
    for number, zone in enumerate(zones):
        last = number == len(zones) - 1
        with suppress(DiskFull):  # the shares of those to come are not touched
            taken += [zone.one() for _ in range(total - len(taken) if last else total // len(weights))]
        overflow.give(zone.left)
        turnstile.finish(number)
    assert len(set(taken)) == len(taken)
    assert set(taken) <= set(range(10, 10 + total))
    assert not dense or len(taken) == total


def test_a_zone_that_is_full_waits_for_its_turn_and_for_no_longer() -> None:
    turnstile = Turnstile()
    zones, overflow = zones_of([(0, 16)], [1, 1], turnstile, dense=True)
    got: list[int] = []
    errors: list[Exception] = []

    def second() -> None:
        try:
            got.extend(zones[1].one() for _ in range(2))
        except Interrupted as error:
            errors.append(error)

    thread = threading.Thread(target=second)
    thread.start()
    assert [zones[0].one() for _ in range(3)] == [0, 1, 2]
    assert got == []
    overflow.give(zones[0].left)
    turnstile.finish(0)
    thread.join()
    assert len(got) == 2
    turnstile.give_up()
    with pytest.raises(Interrupted):
        zones_of([(0, 16)], [1, 1], turnstile, dense=True)[0][1].one()


# -- trees


NAMES = st.binary(min_size=1, max_size=40).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in {b".", b".."}
)
DATA = st.one_of(st.binary(max_size=100), st.integers(0, 40_000).map(lambda size: random.Random(size).randbytes(size)))


@st.composite
def trees(draw: st.DrawFn) -> Callable[[LayerWriter], FileNode]:
    def entry(depth: int) -> Callable[[LayerWriter], FileNode]:
        kind = draw(st.sampled_from(["file", "file", "folder", "link", "device", "attributes", "sparse"]))
        modified = draw(st.integers(-(2**31), 2**33)) * 10**9 + draw(st.integers(0, 999_999_999))
        if kind == "folder" and depth:
            inner = {name: entry(depth - 1) for name in draw(st.lists(NAMES, max_size=6, unique=True))}
            return lambda area: _folder_of(area, inner, modified)
        if kind == "link":
            target = draw(st.binary(min_size=1, max_size=200).filter(lambda text: b"\0" not in text))
            return lambda _: _link(target)
        if kind == "device":
            numbers = draw(st.tuples(st.integers(0, 0xFFF), st.integers(0, 0xFFFFF)))
            return lambda _: _device(*numbers)
        data = draw(DATA)
        if kind == "sparse":
            starts = draw(st.lists(st.integers(0, 60), max_size=5, unique=True).map(sorted))
            return lambda area: _sparse(area, [start * 1536 for start in starts])
        values = draw(
            st.dictionaries(st.sampled_from([b"user.a", b"user.long" * 9, b"security.c"]), st.binary(max_size=900))
        )
        return lambda area: _with_attributes(file(area, data), values if kind == "attributes" else {})

    names = draw(st.lists(NAMES, min_size=1, max_size=8, unique=True))
    below = {name: entry(2) for name in names}
    return lambda area: _folder_of(area, below, 0)


def _folder_of(area: LayerWriter, below: dict[bytes, Callable[[LayerWriter], FileNode]], modified: int) -> FileNode:
    node = FileNode(stat.S_IFDIR | 0o751, 3, 4, modified)
    node.children = {name: make(area) for name, make in below.items()}
    return node


def _link(target: bytes) -> FileNode:
    node = FileNode(stat.S_IFLNK | 0o777)
    node.data = target
    return node


def _device(major: int, minor: int) -> FileNode:
    node = FileNode(stat.S_IFCHR | 0o600)
    node.rdev = major << 32 | minor
    return node


def _sparse(area: LayerWriter, starts: list[int]) -> FileNode:
    node = FileNode(stat.S_IFREG | 0o600)
    node.extents = area.put_sparse((start, [memoryview(b"x" * 512)]) for start in starts)
    node.size = (starts[-1] if starts else 0) + 5000
    return node


def _with_attributes(node: FileNode, values: dict[bytes, bytes]) -> FileNode:
    node.xattrs = values or None
    return node


def same(ours: FileNode, theirs: FileNode) -> None:
    """A node that was written and the one that was read are alike."""
    for field in ("mode", "uid", "gid", "modified", "accessed", "size", "rdev", "data", "extents"):
        if not (field in {"size", "extents"} and ours.is_folder):
            assert getattr(ours, field) == getattr(theirs, field), field
    assert (ours.xattrs or {}) == (theirs.xattrs or {})
    if ours.children is not None:
        assert theirs.children is not None
        assert set(ours.children) == set(theirs.children)
        for name, child in ours.children.items():
            same(child, theirs.children[name])


@given(trees(), trees())
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
def test_any_tree_is_clean_and_is_read_back(
    tmp_path_factory: pytest.TempPathFactory,
    first: Callable[[LayerWriter], FileNode],
    second: Callable[[LayerWriter], FileNode],
) -> None:
    path = empty(tmp_path_factory.mktemp("tree"), 16 * MIB)
    written: dict[str, FileNode] = {}

    def remember(name: str, make: Callable[[LayerWriter], FileNode]) -> Callable[[LayerWriter], FileNode]:
        return lambda area: written.setdefault(name, make(area))

    write(path, {"a": remember("a", first), "b": remember("b", second)})
    check(path)
    with Volume(path) as volume:
        for name, tree in written.items():
            same(tree, volume.reader.node(volume.placed[layer(name).chain_id].root))
    path.unlink()


def test_large_files_many_extents_and_data_as_it_was(tmp_path: Path) -> None:
    path = empty(tmp_path, 512 * MIB)
    data = random.Random(1).randbytes(3 * MIB + 17)
    whole = hashlib.sha256()
    for _ in range(50):
        whole.update(data)

    def make(area: LayerWriter) -> FileNode:
        large = FileNode(stat.S_IFREG | 0o644)
        large.size = len(data) * 50
        large.extents = area.put(memoryview(data) for _ in range(50))
        holes = FileNode(stat.S_IFREG | 0o644)
        holes.extents = area.put_sparse((at * 3 * BLOCK, [memoryview(b"%06d" % at)]) for at in range(1500))
        holes.size = 1500 * 3 * BLOCK
        return folder(large=large, holes=holes)

    write(path, {"a": make})
    check(path)
    with Volume(path) as volume:
        tree = volume.reader.node(volume.placed[layer("a").chain_id].root)
        assert tree.children is not None
        found = hashlib.sha256()
        for piece in volume.reader.pieces(tree.children[b"large"]):
            found.update(piece)
        assert found.digest() == whole.digest()
        holes = list(volume.reader.segments(tree.children[b"holes"]))
        assert [start for start, _ in holes] == [at * 3 * BLOCK for at in range(1500)]
        assert all(bytes(next(pieces))[:6] == b"%06d" % at for at, (_, pieces) in enumerate(holes))


def some(name: str, count: int = 40) -> Callable[[LayerWriter], FileNode]:
    def make(area: LayerWriter) -> FileNode:
        source = random.Random(name)
        return folder(**{f"{name}{n}": file(area, source.randbytes(source.randrange(60_000))) for n in range(count)})

    return make


@pytest.mark.parametrize("dense", [False, True])
def test_the_same_layers_give_the_same_bytes_whoever_is_faster(tmp_path: Path, dense: bool) -> None:
    digests = set()
    for number in range(4):
        place = tmp_path / str(number)
        place.mkdir()
        path = empty(place)
        write(path, {name: some(name) for name in "abcd"}, at_once=number > 0, dense=dense)
        check(path)
        digests.add(hashlib.sha256(path.read_bytes()).hexdigest())
    assert len(digests) == 1


def test_hashes_on_the_way_are_those_of_the_file(tmp_path: Path) -> None:
    path = empty(tmp_path)
    volume = write(path, {name: some(name, 200) for name in "ab"})
    data = path.read_bytes()
    assert len(volume.hashes.known) > 8
    for number, digest in volume.hashes.known.items():
        assert blake3(data[number * HASHED : (number + 1) * HASHED]).digest() == digest
    untouched = [n for n in range(len(data) // HASHED) if n not in volume.hashes.touched]
    fresh = empty(tmp_path).read_bytes()
    assert all(data[n * HASHED : (n + 1) * HASHED] == fresh[n * HASHED : (n + 1) * HASHED] for n in untouched)


# -- starting from an earlier volume


def test_layers_that_stay_are_not_touched_and_what_left_is_gone(tmp_path: Path) -> None:
    path = empty(tmp_path)
    write(path, {name: some(name) for name in "abc"})
    before = path.read_bytes()
    old = read(path, "b")
    for number in range(3):  # again and again: the volume does not fill up
        fresh = f"new{number}"
        with Volume(path) as volume:
            volume.rename(disk.filesystem_uuid(fresh))
            volume.retain([layer("a").chain_id, layer("b").chain_id])
            told = volume.shared_units()
            stays = {block * BLOCK // HASHED for start, end in volume._in_use()[0] for block in range(start, end)}
            (area,) = volume.areas([layer(fresh)])
            volume.placed[layer(fresh).chain_id] = placed(area, some(fresh))
            finish(volume)
        check(path)
        after = path.read_bytes()
        assert differing(before, after) <= volume.hashes.touched
        assert volume.hashes.touched & stays <= told < stays, (
            "of what stays, a fill writes only to what it tells before"
        )
        before = after
        assert len(volume.hashes.touched) * HASHED < 8 * MIB
        same(old, read(path, "b"))
        with Volume(path) as volume:
            assert set(volume.placed) == {layer(name).chain_id for name in ("a", "b", fresh)}
    assert run(["blkid", "-p", "-o", "value", "-s", "UUID", str(path)]).text.strip() == disk.filesystem_uuid("new2")


# -- what cannot be


def test_a_full_volume(tmp_path: Path) -> None:
    path = empty(tmp_path, 16 * MIB)
    with pytest.raises(DiskFull, match="has no blocks left"):
        write(path, {"a": lambda area: file(area, os.urandom(17 * MIB))})
    fifos = folder(**{str(number): FileNode(stat.S_IFIFO) for number in range(5000)})
    with pytest.raises(DiskFull, match="has no inodes left"):
        write(path, {"a": lambda _: fifos})


def test_too_many_attributes(tmp_path: Path) -> None:
    path = empty(tmp_path)
    with pytest.raises(LayerError, match="more than 4 KiB"):
        write(path, {"a": lambda area: folder(x=_with_attributes(file(area, b""), {b"user.a": b"x" * 5000}))})


def test_what_is_no_volume(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(bytes(1 << 16))
    with pytest.raises(ForeignVolume):
        Volume(path)
    with path.open("wb") as handle:
        handle.truncate(64 * MIB)
    run(["mke2fs", "-q", "-F", "-t", "ext4", "-b", "1024", str(path)])
    with pytest.raises(ForeignVolume):
        Volume(path)


def test_walk_meets_each_file_once() -> None:
    node = FileNode(stat.S_IFREG)
    node.links = 2
    tree = folder(a=node, b=folder(c=node, d=FileNode(stat.S_IFREG)))
    assert len(list(walk(tree))) == 4

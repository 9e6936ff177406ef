"""Stacks of hostile layers held against containerd's own unpack: the same verdict, the same trees, nothing outside.

with comparison("mounted") as compare:         # or "volume": parbake's own writer of ext4
    compare.check(stack(7, outside=compare.outside))
"""

from __future__ import annotations

import io
import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal, NamedTuple
from unittest import mock

from parbake.containerd.labels import chain_ids
from parbake.core.errors import CommandFailed, LayerError
from parbake.core.model import MIB, Layer
from parbake.core.run import run
from parbake.images.layers import FolderSink, complete_folder, engine, unpack
from parbake.machine import disk
from parbake.machine.disk import private_mounts
from parbake.machine.ext4 import Volume
from parbake.machine.ext4.superblock import BLOCK
from standins.layers import PLAIN, digest
from standins.models import cleaned
from standins.stacks import LATEST, Spec, Stack, build, shrunk, stack
from standins.tars import END, pad
from standins.trees import Node, differences, scan
from standins.unpacks import Containerd
from standins.volumes import add, show
from standins.workers import ThreadWorkers

Way = Literal["mounted", "volume"]
WAYS: Final[tuple[Way, ...]] = ("mounted", "volume")
_SECOND: Final = 1_000_000_000


def _climbs(spec: Spec) -> bool:
    def above_the_root(name: bytes) -> bool:
        depth = 0
        for part in name.split(b"/"):
            depth += {b"": 0, b".": 0, b"..": -1}.get(part, 1)
            if depth < 0:
                return True
        return False

    if spec.kind == b"g" and spec.form == "pax":  # to containerd the header before a global one says nothing
        return False
    return above_the_root(spec.name) or (spec.kind == b"1" and not _is_whiteout(spec) and above_the_root(spec.link))


def _is_whiteout(spec: Spec) -> bool:
    """Return whether an entry's name alone counts, of whatever kind it is."""
    return cleaned(spec.name).rpartition(b"/")[2].startswith(b".wh.")


def _has_unknown_device(spec: Spec) -> bool:
    major, minor = spec.device
    return spec.kind in {b"3", b"4"} and not _is_whiteout(spec) and (major > 0xFFF or minor > 0xFFFFF)


def _nests_deeply(spec: Spec) -> bool:
    return cleaned(spec.name).count(b"/") > 257


def _is_far_down(spec: Spec) -> bool:
    return len(cleaned(spec.name).rpartition(b"/")[0]) > 3712


def _leads_far_down(spec: Spec) -> bool:
    return spec.kind == b"2" and len(spec.link) > 1000  # of a chain of links, each may be shorter than where it leads


def _has_no_group(spec: Spec) -> bool:
    return spec.records.get(b"gid") in {b"-1", b"4294967295"}


def _hands_down(spec: Spec) -> bool:
    return bool(spec.records.get(b"SCHILY.xattr.system.posix_acl_default"))


class Rule(NamedTuple):
    """What parbake refuses on purpose and containerd takes: by which entries, with which words.

    ``whose`` entries: those of the layer itself, each of which is enough, or of the layers below, or of any up to it.
    """

    applies: Callable[[Spec], bool]
    words: str
    whose: Literal["its own", "below", "any"] = "its own"


STRICTER: Final = {
    "a name that climbs above the root": Rule(_climbs, "leads outside its root"),
    "a device number that Linux does not have": Rule(_has_unknown_device, "the device number"),
    "a name in folders more than 257 deep": Rule(_nests_deeply, "nests folders more than"),
    "a name in a folder whose path is longer than 3,712 bytes": Rule(_is_far_down, "a folder's path is longer than"),
    "a name that links lead into such a folder": Rule(_leads_far_down, "a folder's path is longer than", whose="any"),
    "a file without a group where a layer below hands one down": Rule(
        _has_no_group, "hands down its group", whose="any"
    ),
    "a folder without an entry where a layer below hands down an ACL": Rule(
        _hands_down, "hands down an ACL", whose="below"
    ),
}
"""By the name that docs/explanation/engine.md ("Where it is stricter") has for it."""


LAXER: Final = "a file with more attributes than ext4 holds, which the same layer replaces"
"""Also there, "Where it is laxer"."""
HOSTS: Final = "a name that links lead over a file of the host, at which containerd looks"
"""Also there, "Where the tree differs on purpose"."""


def _read(layer: list[Spec]) -> list[Spec]:
    """Return the entries of a layer up to the archive's end: two blocks of zeros where a reader expects a header.

    An entry that is no file has no data, whatever its size says: they are read as headers.
    """
    before = b""
    for number, spec in enumerate(layer, 1):
        if (before + spec.raw).startswith(END):
            return layer[:number]
        before = spec.raw if END.startswith(spec.raw) else b""
        is_file = spec.kind not in {b"1", b"2", b"3", b"4", b"5", b"6"}
        if spec.form == "v7" and spec.kind == b"0" and spec.name.endswith(b"/"):
            is_file = False
        if not is_file and not spec.raw and pad(spec.data).startswith(END):
            return layer[:number]
    return layer


class Difference(AssertionError):
    """parbake and containerd do not agree, or something was written outside."""


class Comparison:
    """One way of parbake's to unpack beside containerd. Use ``comparison``."""

    def __init__(self, folder: Path, way: Way, containerd: Containerd) -> None:
        self.way = way
        self._folder, self._containerd = folder, containerd
        self._outside = folder / "outside"
        self._outside.mkdir()
        (self._outside / "victim").write_bytes(b"untouched")
        self._before = self._beside()

    @property
    def outside(self) -> bytes:
        """The folder that entries try to reach; it lies beside the folders that layers are unpacked into."""
        return os.fsencode(self._outside)

    def run(self, seed: int) -> str:
        """Return what came of the stack of a number; raises Difference, with the smallest stack that it is found in."""
        made = stack(seed, outside=self.outside)
        try:
            return self.check(made)
        except Difference:
            small = shrunk(made, self._differs)
            lines = [f"  {spec}" if spec else "layer" for layer in small for spec in (None, *layer)]
            try:
                self.check(small)
            except Difference as difference:
                raise Difference("\n".join([f"stack {seed}, made smaller:", *lines, str(difference)])) from None
            raise

    def _differs(self, smaller: Stack) -> bool:
        try:
            self.check(smaller)
        except Difference:
            return True
        return False

    def check(self, made: Stack) -> str:
        """Return "equal", "refused", or by which rule only one of the two takes it; raises Difference."""
        layers = [build(layer) for layer in made]
        theirs, their_reason = self._containerd.unpack(layers)
        with _small_buffers(len(layers[0])):
            ours, error = (self._mounted if self.way == "mounted" else self._in_a_volume)(layers)
        after = self._beside()
        if found := differences(self._before, after, ignore_times_of=frozenset()):
            raise Difference("written outside:\n" + "\n".join(found))
        for number, (their_tree, our_tree) in enumerate(zip(theirs, ours, strict=False)):
            _same(number, their_tree, our_tree)
        if len(ours) > len(theirs):
            return self._laxer(len(theirs), made[: len(ours)], ours[len(theirs)], their_reason)
        read = [_read(layer) for layer in made]
        for number, layer in enumerate(read[: len(theirs)]):
            rules = [
                name for name, rule in STRICTER.items() if rule.whose == "its own" and any(map(rule.applies, layer))
            ]
            if rules and number < len(ours):
                raise Difference(f"layer {number}: {rules[0]} is not refused")
        if len(ours) < len(theirs) and error is not None:
            number = len(ours)
            for name, rule in STRICTER.items():
                layers_of = {"its own": slice(number, number + 1), "below": slice(number), "any": slice(number + 1)}
                specs = itertools.chain(*read[layers_of[rule.whose]])
                if rule.words in error.message and any(map(rule.applies, specs)):
                    return name
        if len(ours) < len(theirs):
            raise Difference(f"layer {len(ours)}: parbake alone refuses it: {error}")
        return "refused" if their_reason else "equal"

    def _laxer(self, number: int, made: Stack, tree: dict[bytes, Node], reason: str) -> str:
        """Return why parbake alone may take a layer; raises Difference."""
        leads_there = any(spec.kind == b"2" and b"/victim" in spec.link for layer in made for spec in layer)
        if leads_there and "failed to get root path: lstat" in reason and "not a directory" in reason:
            return HOSTS
        most = max(sum(len(name) + len(value) for name, value in node.xattrs) for node in tree.values())
        had_no_room = "setxattr" in reason and "no space left on device" in reason
        if self.way == "volume" and had_no_room and most < BLOCK:
            return LAXER
        raise Difference(f"layer {number}: containerd refuses it ({reason}), parbake does not")

    def _beside(self) -> dict[bytes, Node]:
        """Return what lies beside the folders for layers, and in the folder that entries name by its place."""
        found = scan(self._outside)
        for path in self._folder.iterdir():
            found[b"beside/" + os.fsencode(path.name)] = found[b"."]
        found[b"far away"] = found[b"."] if Path("/tmp/parbake-escape").exists() else found[b"victim"]
        return found

    def _mounted(self, layers: Sequence[bytes]) -> tuple[list[dict[bytes, Node]], LayerError | None]:
        roots = self._folder / "roots"
        roots.mkdir()
        trees: list[dict[bytes, Node]] = []
        done: list[Path] = []
        try:
            for number, (layer, raw) in enumerate(zip(_described(layers), layers, strict=True)):
                target = roots / str(number)
                target.mkdir()
                unpacked = unpack(io.BytesIO(raw), layer, FolderSink(target), bound=1 << 30, progress=lambda _: None)
                complete_folder(target, unpacked, done[::-1])
                os.utime(target, ns=(0, 0))  # as the bake does when it moves the layer to its place
                done.append(target)
                trees.append(scan(target))
        except LayerError as error:
            return trees, error
        else:
            return trees, None
        finally:
            shutil.rmtree(os.fsencode(roots))

    def _in_a_volume(self, layers: Sequence[bytes]) -> tuple[list[dict[bytes, Node]], LayerError | None]:
        described = _described(layers)
        try:
            return self._volume_trees(described, layers), None
        except _Refused as refused:
            count = refused.number
            return self._volume_trees(described[:count], layers[:count]), refused.error

    def _volume_trees(self, described: Sequence[Layer], layers: Sequence[bytes]) -> list[dict[bytes, Node]]:
        """Write layers into a fresh volume, which must be clean then; return their trees as the kernel shows them."""
        if not layers:
            return []
        file, at = self._folder / "volume.raw", self._folder / "at"
        disk.make_filesystem(file, "ext4", 64 * MIB, name="comparison")
        try:
            with Volume(file) as volume, ThreadWorkers() as workers:
                for number, area in enumerate(volume.areas(described)):
                    try:
                        add(volume, workers, area, described[: number + 1], layers[number])
                    except LayerError as error:
                        raise _Refused(number, error) from error
                show(volume)
            try:
                run(["e2fsck", "-fn", str(file)])
            except CommandFailed as error:
                raise Difference(f"e2fsck finds the volume damaged: {error.output}") from error
            with disk.mount(file, at, filesystem="ext4", read_only=True) as mounted:
                return [scan(mounted.path / layer.chain_id / "fs") for layer in described]
        finally:
            file.unlink()
            if at.exists():
                at.rmdir()


class _Refused(Exception):
    def __init__(self, number: int, error: LayerError) -> None:
        super().__init__(error.message)
        self.number, self.error = number, error


@contextmanager
def comparison(way: Way) -> Iterator[Comparison]:
    """Yield a comparison on an ext4 file system of its own, whose file lies in memory; needs root."""
    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    try:
        with private_mounts():
            disk.make_filesystem(folder / "disk", "ext4", 4096 * MIB, name="comparison")
            options = disk.FAST["ext4"]
            with disk.mount(folder / "disk", folder / "at", filesystem="ext4", options=options) as mounted:
                work = mounted.path / "work"
                work.mkdir()
                with Containerd(mounted.path / "containerd") as containerd:
                    yield Comparison(work, way, containerd)
    finally:
        shutil.rmtree(folder)


@contextmanager
def _small_buffers(number: int) -> Iterator[None]:
    """Let entries straddle buffers, and let every other layer go the way of large ones; ``number`` chooses."""
    size = (512, 1024, 8192, engine._RAW_SIZE)[number // 512 % 4]
    small = engine.SMALL if number // 2048 % 2 else -1
    with mock.patch.object(engine, "_RAW_SIZE", size), mock.patch.object(engine, "SMALL", small):
        yield


def _described(layers: Sequence[bytes]) -> list[Layer]:
    ids = tuple(digest(raw) for raw in layers)
    return [
        Layer(media_type=PLAIN, digest=diff_id, size=len(raw), diff_id=diff_id, chain_id=chain)
        for raw, diff_id, chain in zip(layers, ids, chain_ids(ids), strict=True)
    ]


def _same(number: int, theirs: dict[bytes, Node], ours: dict[bytes, Node]) -> None:
    """Raise Difference unless a layer's trees are equal; what containerd dates by its clock has another time here."""
    undated = frozenset(path for path, node in theirs.items() if node.modified > (LATEST + 1) * _SECOND)
    found = differences(theirs, ours, ignore_times_of=undated | {b"."})
    found += [
        f"{path!r}: dated by the clock"
        for path in undated - {b"."}
        if path in ours and ours[path].modified > (LATEST + 1) * _SECOND
    ]
    if found:
        raise Difference(f"layer {number} (left: containerd):\n" + "\n".join(found))

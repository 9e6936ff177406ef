"""The same layers through the engine, into folders and into a volume's file, and through containerd.

The trees must be equal, or all must refuse.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from parbake.containerd import Client, Daemon
from parbake.errors import LayerError
from parbake.events import Events
from parbake.fill import MountedGround, fill
from tests.support import tars
from tests.support.images import image
from tests.support.store import Memory, image_of, plan_of, pull_by_ctr, snapshot_folders
from tests.support.tars import archive, entry, pax
from tests.support.trees import differences, scan
from tests.support.volumes import volume_trees

pytestmark = pytest.mark.root

NAMES = [b"a", b"a", b"b", b"b", b"c", b"\xff\xfe", b"n" * 255]
PATHS = st.lists(st.sampled_from(NAMES), min_size=1, max_size=4).map(b"/".join)
DECORATED = st.builds(
    lambda path, how: how % path, PATHS, st.sampled_from([b"%s", b"./%s", b"/%s", b"%s/", b"./a/..//%s"])
)
TIMES = st.one_of(
    st.just(b""), st.sampled_from([b"1", b"1700000000.123456789", b"-5.5", b"99999999999", b"12.0000000009"])
)
MODES = st.sampled_from([0o644, 0o755, 0o4755, 0o2755, 0o1777, 0o000, 0o777, 0o100644])
OWNERS = st.sampled_from([0, 0, 0, 1000, 65534, 4000000000])

# POSIX ACLs as attributes have them (Linux, posix_acl_xattr.h): version 2, then tag, permissions and id of each entry.
NAMED_ACL = bytes.fromhex("0200000001000600ffffffff02000500e803000004000400ffffffff10000700ffffffff20000400ffffffff")
PLAIN_ACL = bytes.fromhex("0200000001000600ffffffff04000400ffffffff20000400ffffffff")
XATTRS = st.sampled_from([
    {},
    {},
    {b"SCHILY.xattr.user.note": b"hello\0there"},
    {b"SCHILY.xattr.trusted.overlay.opaque": b"y"},
    {b"SCHILY.xattr.security.capability": bytes.fromhex("0100000200200000000000000000000000000000")},
    {b"SCHILY.xattr.user.note": b"n" * 300, b"SCHILY.xattr.security.note": b"in a block of its own" * 60},
    {b"SCHILY.xattr.system.posix_acl_access": NAMED_ACL},
    {b"SCHILY.xattr.system.posix_acl_access": PLAIN_ACL},
    {b"SCHILY.xattr.system.posix_acl_default": NAMED_ACL},
    {b"LIBARCHIVE.xattr.user.note": b"aGVsbG8="},
])  # fmt: skip


class Spec(NamedTuple):
    """An entry, so that an example can be read."""

    name: bytes
    kind: bytes
    data: bytes
    fields: dict[str, Any]
    records: dict[bytes, bytes]

    def build(self) -> bytes:
        before = pax(self.records) if self.records else b""
        return before + entry(self.name, self.kind, self.data, **self.fields)


KINDS = [b"0", b"0", b"0", b"5", b"5", b"5", b"1", b"2", b"2", b"3", b"6", b"whiteout", b"opaque", b"sparse"]
TARGETS = st.one_of(
    PATHS, PATHS, st.sampled_from([b"..", b"../../../../../a", b"/", b".", b"/a/b", b"/proc/self/root/tmp"])
)


@st.composite
def specs(draw: st.DrawFn) -> Spec:
    kind = draw(st.sampled_from(KINDS))
    name = draw(DECORATED)
    fields: dict[str, Any] = {"mode": draw(MODES), "uid": draw(OWNERS), "gid": draw(OWNERS)}
    fields["mtime"] = draw(st.integers(-5, 1 << 30))
    records = dict(draw(XATTRS))
    for key in (b"mtime", b"atime"):
        if value := draw(TIMES):
            records[key] = value
    if kind in {b"whiteout", b"opaque"}:
        head, slash, base = name.rstrip(b"/").rpartition(b"/")
        name = head + slash + (b".wh..wh..opq" if kind == b"opaque" else b".wh." + base[:200])
        return Spec(name, b"0", b"", fields, records)
    if kind == b"sparse":
        records |= {b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0", b"GNU.sparse.name": name}
        records[b"GNU.sparse.realsize"] = b"9000"
        return Spec(b"x", b"0", tars.pad(b"2\n10\n3\n4096\n5\n") + b"abcdefgh", fields, records)
    if kind == b"3":
        fields["device"] = (draw(st.integers(0, 300)), 3)
    if kind in {b"1", b"2"}:
        fields["link"] = draw(PATHS if kind == b"1" else TARGETS)
    return Spec(name, kind, draw(st.binary(max_size=2000)) if kind == b"0" else b"", fields, records)


def build(layer: list[Spec]) -> bytes:
    return archive(*(spec.build() for spec in layer))


@st.composite
def layers_of_specs(draw: st.DrawFn) -> list[Spec]:
    """A layer most of whose hard links lead to something that it has."""
    layer: list[Spec] = []
    for spec in draw(st.lists(specs(), min_size=1, max_size=8)):
        files = [
            earlier.name for earlier in layer if earlier.kind in {b"0", b"2", b"3"} and b".wh." not in earlier.name
        ]
        if spec.kind == b"1":
            if not files:
                continue
            spec.fields["link"] = draw(st.one_of(st.sampled_from(files), st.sampled_from(files), PATHS)).rstrip(b"/")
        layer.append(spec)
    return layer


LAYERS = st.lists(layers_of_specs(), min_size=1, max_size=4)


class Pair:
    """Two stores: one that containerd fills by itself, one that parbake fills."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.numbers = itertools.count()
        self.theirs = stack.enter_context(Daemon(folder / "theirs", folder / "run-theirs"))
        self.their_client: Client = stack.enter_context(self.theirs.client())
        self.ours = stack.enter_context(Daemon(folder / "ours", folder / "run-ours"))
        self.our_client: Client = stack.enter_context(self.ours.client())

    def compare(self, layers: list[bytes], *, unique: bool = True) -> str:
        """Return "refused", "equal" or "ours alone" (we took what containerd refused); fail when the trees differ."""
        number = next(self.numbers)
        # A layer of its own at the bottom keeps examples from finding each other's snapshots.
        mark = archive(entry(b"unique", data=b"%d" % number))
        bottom = layers[0][: -len(tars.END)] + mark if unique else layers[0]
        blobs = [bottom, *layers[1:]]
        built = image(*blobs, compression="none")
        name = f"localhost/example:{number}"
        work = self.folder / f"work{number}"
        work.mkdir()
        their_error = pull_by_ctr(self.theirs, built, work, name, check=False).stderr
        (work / "staged").mkdir()
        ours = image_of(built, name)
        try:
            fill(
                plan_of(ours),
                self.our_client,
                lambda _: Memory(built),
                events=Events(),
                ground=MountedGround(self.our_client, work / "staged"),
            )
        except LayerError as error:
            if not their_error:
                raise AssertionError("we refuse what containerd takes") from error
            with pytest.raises(LayerError):
                volume_trees(ours.layers, blobs, work)
            return "refused"
        written = volume_trees(ours.layers, blobs, work)
        chains = tuple(layer.chain_id for layer in ours.layers)
        trees = [scan(folder) for folder in snapshot_folders(self.our_client, chains)]
        for position, (mine, other) in enumerate(zip(trees, written, strict=True)):
            found = differences(mine, other)
            assert not found, f"layer {position} in a volume:\n" + "\n".join(found)
        if their_error:
            return "ours alone"
        for position, folder in enumerate(snapshot_folders(self.their_client, chains)):
            theirs, mine = scan(folder), trees[position]
            # What containerd dates by the moment of the unpack: see the docstring of settle.
            undated = frozenset(path for path, node in theirs.items() if node.modified > 1_750_000_000_000_000_000)
            found = differences(theirs, mine, ignore_times_of=undated)
            assert not found, f"layer {position}:\n" + "\n".join(found)
        return "equal"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with ExitStack() as stack:
        yield Pair(tmp_path_factory.mktemp("pair"), stack)


@given(layers=LAYERS)
@settings(
    max_examples=80,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],
)
def test_trees_are_equal(pair: Pair, layers: list[list[Spec]]) -> None:
    pair.compare([build(layer) for layer in layers])


WHOLE = [
    Spec(b"d/", b"5", b"", {"mode": 0o2755, "uid": 5, "gid": 6}, {}),
    Spec(b"d/f", b"0", b"x" * 700, {"mode": 0o4755}, {}),
    Spec(b"d/h", b"1", b"", {"link": b"d/f", "mode": 0o600, "mtime": 77}, {}),
    Spec(b"d/s", b"2", b"", {"link": b"f"}, {}),
]


def test_cut_off_at_every_block(pair: Pair) -> None:
    """Where containerd takes a truncated archive, so do we, with the same tree; where it refuses, so do we."""
    data = build(WHOLE)
    seen = {size: pair.compare([data[:size]], unique=False) for size in range(0, len(data) + 1, 256)}
    assert set(seen.values()) == {"equal", "refused"}
    assert seen[len(data)] == "equal"


def test_lower_layers_shape_what_a_layer_implies(pair: Pair) -> None:
    lower = [
        Spec(b"opt/", b"5", b"", {"mode": 0o1770, "uid": 3, "gid": 4, "mtime": 1000}, {b"SCHILY.xattr.user.a": b"b"}),
        Spec(b"opt/deep/", b"5", b"", {"mode": 0o700, "uid": 9, "mtime": 2000}, {}),
        Spec(b"lib", b"2", b"", {"link": b"opt/deep"}, {}),
        Spec(b"file", b"0", b"", {}, {}),
    ]
    middle = [Spec(b"opt/", b"5", b"", {"mode": 0o711}, {}), Spec(b"opt/.wh.deep", b"0", b"", {}, {})]
    upper = [Spec(name, b"0", b"x", {}, {}) for name in (b"opt/deep/x", b"lib/y", b"new/z", b"file/w")]
    later = [Spec(b"opt/deep/v", b"0", b"x", {}, {}), Spec(b"opt/", b"5", b"", {"mode": 0o750}, {})]
    assert pair.compare([build(lower), build(upper), build(later)]) == "equal"
    assert pair.compare([build(lower), build(middle), build(upper)]) == "equal"


def test_whiteouts_in_the_bottom_layer_remove_what_it_holds(pair: Pair) -> None:
    bottom = [
        Spec(b"a/", b"5", b"", {}, {}),
        Spec(b"a/old", b"0", b"1", {}, {}),
        Spec(b"b/implied/x", b"0", b"1", {}, {}),
        Spec(b"a/.wh.old", b"0", b"", {}, {}),
        Spec(b"b/.wh..wh..opq", b"0", b"", {}, {}),
        Spec(b"b/kept", b"0", b"1", {}, {}),
        Spec(b".wh.nothing", b"0", b"", {}, {}),
    ]
    assert pair.compare([build(bottom)]) == "equal"

"""What needs the layers below, and what needs root."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from parbake.disk import make_filesystem, mount, private_mounts
from parbake.errors import DiskFull, LayerError
from parbake.layers import settle
from parbake.run import run
from tests.support.layers import put, stack
from tests.support.tars import archive, entry, pax
from tests.support.trees import differences, scan

pytestmark = pytest.mark.root

LOWER = archive(
    entry(b"d/", b"5", mode=0o750, uid=7, gid=8, mtime=1000),
    pax({b"SCHILY.xattr.user.note": b"hi"}),
    entry(b"d/f", data=b"from below", mode=0o640, uid=5, gid=6, mtime=2000),
    entry(b"d/gone", data=b"x"),
    entry(b"link", b"2", link=b"d"),
    entry(b"s", b"2", link=b"d/f", mtime=3000),
    entry(b"hidden/", b"5"),
    entry(b"hidden/f", data=b"x"),
)


def test_a_hard_link_to_a_file_below_copies_it_up(tmp_path: Path) -> None:
    upper = archive(entry(b"new/h", b"1", link=b"d/f", mode=0o600, uid=1, gid=2, mtime=9000))
    _, top = stack(tmp_path, LOWER, upper)
    tree = scan(top)
    copied, linked = tree[b"d/f"], tree[b"new/h"]
    assert copied.links == linked.links == b"d/f"
    assert (top / "new/h").read_bytes() == b"from below"
    assert (linked.mode, linked.uid, linked.gid, linked.modified) == (0o600, 1, 2, 9000 * 10**9)
    assert linked.xattrs == (("user.note", b"hi"),)
    # The folder that the copy implies looks like the one below.
    assert (tree[b"d"].mode, tree[b"d"].uid, tree[b"d"].gid, tree[b"d"].modified) == (0o750, 7, 8, 1000 * 10**9)


def test_hard_links_below_through_links_and_to_links_and_to_each_other(tmp_path: Path) -> None:
    upper = archive(
        entry(b"a", b"1", link=b"link/f"), entry(b"b", b"1", link=b"s"), entry(b"c", b"1", link=b"a", mode=0o600)
    )
    _, top = stack(tmp_path, LOWER, upper)
    tree = scan(top)
    assert tree[b"a"].links == tree[b"c"].links == tree[b"d/f"].links == b"a"
    assert tree[b"b"].kind == "symlink"
    assert tree[b"b"].links == b"b"


@pytest.mark.parametrize(
    ("middle", "target"),
    [
        (archive(entry(b"d/.wh.gone")), b"d/gone"),
        (archive(entry(b"hidden/.wh..wh..opq")), b"hidden/f"),
        (archive(entry(b".wh.hidden")), b"hidden/f"),
        (archive(entry(b"hidden", data=b"a file now")), b"hidden/f"),
        (archive(), b"nowhere"),
        (archive(), b"hidden"),
    ],
)
def test_a_hard_link_to_what_is_hidden_or_a_folder(middle: bytes, target: bytes, tmp_path: Path) -> None:
    with pytest.raises(LayerError, match="a hard link to"):
        stack(tmp_path, LOWER, middle, archive(entry(b"h", b"1", link=target)))


def test_a_later_entry_replaces_a_link_that_waits(tmp_path: Path) -> None:
    _, top = stack(tmp_path, LOWER, archive(entry(b"h", b"1", link=b"d/f"), entry(b"h", data=b"mine")))
    assert (top / "h").read_bytes() == b"mine"
    assert not (top / "d").exists()


def test_settling_twice_changes_nothing(tmp_path: Path) -> None:
    below = stack(tmp_path, LOWER)
    target = tmp_path / "top"
    unpacked = put(target, archive(entry(b"d/x/y", data=b"1")), bottom=False)
    settle(target, unpacked, below)
    before = scan(target)
    settle(target, unpacked, below)
    assert differences(before, scan(target)) == []


def test_the_same_layers_give_the_same_tree(tmp_path: Path) -> None:
    upper = archive(entry(b"d/new/x", data=b"1"), entry(b"other/.wh.y"), entry(b"h", b"1", link=b"d/f"))
    trees = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        trees.append([scan(folder) for folder in stack(tmp_path / name, LOWER, upper)])
    for one, two in zip(*trees, strict=True):
        assert differences(one, two) == []


def test_paths_longer_than_the_kernel_takes(tmp_path: Path) -> None:
    name = b"/".join([b"n" * 250] * 20) + b"/f"
    top = put(tmp_path / "long", archive(entry(name, data=b"deep"), entry(name + b"2", b"1", link=name)))
    assert top.entries == 2
    run(["rm", "-r", str(tmp_path / "long")])


def test_modes_do_not_depend_on_the_umask_or_the_folder_above(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        put(
            tmp_path / "t",
            archive(
                entry(b"g/", b"5", mode=0o2777, gid=50),
                entry(b"g/f", data=b"x", mode=0o666),
                entry(b"g/d/", b"5", mode=0o777),
                entry(b"g/d/x", mode=0o6711),
                entry(b"g/i/y"),
                entry(b"g/l", b"2", link=b"f"),
            ),
        )
        assert os.umask(0o077) == 0o077
    finally:
        os.umask(before)
    tree = scan(tmp_path / "t")
    assert {path: (node.mode, node.gid) for path, node in tree.items() if node.kind != "symlink" and path != b"."} == {
        b"g": (0o2777, 50), b"g/f": (0o666, 0), b"g/d": (0o777, 0), b"g/d/x": (0o6711, 0), b"g/i": (0o755, 50),
        b"g/i/y": (0o644, 0),
    }  # fmt: skip
    assert tree[b"g/l"].gid == 0


def test_holes_stay_holes(tmp_path: Path) -> None:
    sparse = {b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0", b"GNU.sparse.realsize": b"100000000"}
    data = b"2\n4096\n3\n99999990\n5\n".ljust(512, b"\0") + b"abcdefgh"
    put(tmp_path / "t", archive(pax(sparse), entry(b"sparse", data=data)))
    file = tmp_path / "t/sparse"
    assert file.stat().st_size == 100_000_000
    assert file.stat().st_blocks * 512 < 1_000_000
    content = file.read_bytes()
    assert content[4096:4099] == b"abc"
    assert content[99_999_990:] == b"defgh" + bytes(5)


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    run(["mount", "-t", "tmpfs", "-o", "size=1m", "parbake-test", str(small)])
    try:
        with pytest.raises(DiskFull, match="no space left below") as raised:
            put(small / "t", archive(entry(b"big", data=bytes(3_000_000))))
        assert str(small) in raised.value.message
        assert "big" in raised.value.message
    finally:
        run(["umount", str(small)])


@pytest.mark.parametrize("bottom", [True, False])
def test_device_nodes_on_a_target_that_has_none(bottom: bool, tmp_path: Path) -> None:
    """A bake's target is mounted without devices: the nodes are there for the node, and open nothing on the host."""
    raw = archive(
        entry(b"null", b"3", device=(1, 3), mode=0o666), entry(b"disk", b"4", device=(8, 0)), entry(b"pipe", b"6")
    )
    make_filesystem(tmp_path / "disk", "ext4", 32 << 20, name="devices")
    with private_mounts(), mount(tmp_path / "disk", tmp_path / "at") as mounted:
        target = mounted.path / "layer"
        settle(target, put(target, raw, bottom=bottom), ())
        found = {name: (target / name).lstat() for name in ("null", "disk", "pipe")}
        assert [stat.S_IFMT(each.st_mode) for each in found.values()] == [stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO]
        assert (found["null"].st_rdev, found["disk"].st_rdev) == (os.makedev(1, 3), os.makedev(8, 0))
        for name in ("null", "disk"):
            with pytest.raises(PermissionError):
                (target / name).open("rb")

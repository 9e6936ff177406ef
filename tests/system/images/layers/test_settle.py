"""What needs the layers below, and what needs root."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from parbake.core.errors import DiskFull, LayerError
from parbake.core.run import run
from parbake.images.layers import complete_folder
from parbake.machine.disk import make_filesystem, mount, private_mounts
from standins.layers import put, stack
from standins.tars import archive, entry, pax
from standins.trees import differences, scan

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


@pytest.mark.parametrize("name", [b"d/f", b"new/h", b"link/f"])
@pytest.mark.parametrize("target", [b"d/f", b"/d/f", b"link/f", b"d/f/", b"s"])
def test_a_hard_link_to_a_file_below_is_refused(name: bytes, target: bytes, tmp_path: Path) -> None:
    """Also to itself, under whatever name: containerd links within the layer's own folder."""
    with pytest.raises(LayerError, match="which the layer does not hold") as raised:
        stack(tmp_path, LOWER, archive(entry(name, b"1", link=target)))
    assert "containerd refuses such a layer too" in raised.value.hint
    assert [path for path in (tmp_path / "layer1").rglob("*") if not path.is_dir()] == []


def test_an_implied_folder_has_the_group_of_the_one_that_it_is_made_in(tmp_path: Path) -> None:
    lower = archive(entry(b"g/", b"5", mode=0o2755, gid=50))
    upper = archive(entry(b"g/new/deep/x"), entry(b"g/new/", b"5", mode=0o700, gid=0), entry(b"g/other/y"))
    _, top = stack(tmp_path, lower, upper)
    tree = scan(top)
    # `new` was made with the group of `g`, but without its bit, and was described later.
    found = {path: (node.mode, node.gid) for path, node in tree.items() if node.kind == "folder" and path != b"."}
    assert found == {b"g": (0o2755, 50), b"g/new": (0o700, 0), b"g/new/deep": (0o755, 0), b"g/other": (0o755, 50)}


def test_a_folder_that_its_layer_removes_again_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LayerError, match="'d/e': a later entry of the layer removes the folder"):
        put(tmp_path / "t", archive(entry(b"d/e/", b"5"), entry(b"d", b"2", link=b"elsewhere")))


def test_what_lies_in_the_way_below_is_refused(tmp_path: Path) -> None:
    """A file below, hidden by a folder: containerd stumbles over it when a folder is implied there."""
    with pytest.raises(LayerError, match="which is not a folder"):
        stack(tmp_path, archive(entry(b"a")), archive(entry(b"a/", b"5")), archive(entry(b"a/b/c")))


def test_an_acl_that_a_layer_below_hands_down_to_an_implied_folder_is_refused(tmp_path: Path) -> None:
    acl = bytes.fromhex("0200000001000600ffffffff04000400ffffffff20000400ffffffff")
    lower = archive(pax({b"SCHILY.xattr.system.posix_acl_default": acl}), entry(b"d/", b"5"))
    stack(tmp_path, lower, archive(entry(b"d/", b"5"), entry(b"d/f")))
    (tmp_path / "again").mkdir()
    with pytest.raises(LayerError, match="'d': a layer below hands down an ACL"):
        stack(tmp_path / "again", lower, archive(entry(b"d/f")))


def test_settling_twice_changes_nothing(tmp_path: Path) -> None:
    below = stack(tmp_path, LOWER)
    target = tmp_path / "top"
    unpacked = put(target, archive(entry(b"d/x/y", data=b"1")), bottom=False)
    complete_folder(target, unpacked, below)
    before = scan(target)
    complete_folder(target, unpacked, below)
    assert differences(before, scan(target)) == []


def test_the_same_layers_give_the_same_tree(tmp_path: Path) -> None:
    upper = archive(entry(b"d/new/x", data=b"1"), entry(b"other/.wh.y"), entry(b"h", b"1", link=b"d/new/x"))
    trees = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        trees.append([scan(folder) for folder in stack(tmp_path / name, LOWER, upper)])
    for one, two in zip(*trees, strict=True):
        assert differences(one, two) == []


def test_paths_longer_than_the_kernel_takes_are_refused(tmp_path: Path) -> None:
    """As by containerd, whose own folders come before them; here they are refused a little earlier."""
    name = b"/".join([b"n" * 250] * 14) + b"/f"
    assert put(tmp_path / "long", archive(entry(name, data=b"deep"), entry(name + b"2", b"1", link=name))).entries == 2
    with pytest.raises(LayerError, match="a folder's path is longer than 3712 bytes"):
        put(tmp_path / "longer", archive(entry(b"/".join([b"n" * 250] * 15) + b"/f", data=b"deep")))


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
    with file.open("rb") as content:
        assert content.read(4099)[4096:] == b"abc"
        content.seek(99_999_990)
        assert content.read() == b"defgh" + bytes(5)


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
    with private_mounts(), mount(tmp_path / "disk", tmp_path / "at", filesystem="ext4") as mounted:
        target = mounted.path / "layer"
        complete_folder(target, put(target, raw, bottom=bottom), ())
        found = {name: (target / name).lstat() for name in ("null", "disk", "pipe")}
        assert [stat.S_IFMT(each.st_mode) for each in found.values()] == [stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO]
        assert (found["null"].st_rdev, found["disk"].st_rdev) == (os.makedev(1, 3), os.makedev(8, 0))
        for name in ("null", "disk"):
            with pytest.raises(PermissionError):
                (target / name).open("rb")

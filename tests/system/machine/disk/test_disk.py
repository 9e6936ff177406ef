"""Disks for real: loop devices, mounts, partition tables and file systems, and what is left after kill -9."""

from __future__ import annotations

import filecmp
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from parbake.core.errors import BadBase, DiskFull, ParbakeError
from parbake.core.events import Events
from parbake.machine import disk
from standins.disks import MIB, Label, filesystem, loops_of, machine, root_tree, sh

pytestmark = pytest.mark.root

KINDS = [("gpt", "ext4"), ("gpt", "xfs"), ("dos", "ext4"), ("dos", "xfs"), ("", "ext4"), ("", "xfs")]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return root_tree(tmp_path / "tree")


def find(image: Path) -> disk.Partition:
    with disk.private_mounts():
        return disk.find_root(image)


@pytest.mark.parametrize(("label", "kind"), KINDS)
def test_a_root_is_found_and_grows(tmp_path: Path, tree: Path, label: Label, kind: str) -> None:
    image = machine(tmp_path / "disk1.raw", label, kind, tree)
    root = find(image)
    assert (root.number, root.filesystem) == (2 if label else 0, kind)
    before = json.loads(sh("sfdisk", "--json", image))["partitiontable"] if label else {}

    size = image.stat().st_size + 100 * MIB + 12345
    with disk.private_mounts():
        with disk.mount(
            image, tmp_path / "at", offset=root.start, size=root.size, filesystem=kind, read_only=True
        ) as mounted:
            smaller, _ = disk.usage(mounted.path)
        grown = disk.grow(image, root, size)
        disk.grow_filesystem(image, kind, tmp_path / "at", offset=grown.start, size=grown.size)
        with disk.mount(image, tmp_path / "at", offset=grown.start, size=grown.size, filesystem=kind) as mounted:
            total, used = disk.usage(mounted.path)
            assert (mounted.path / "etc/canary").read_text() == "still here"
    assert total > smaller + 90 * MIB
    assert 0 < used < total
    assert grown.end > image.stat().st_size - 2 * MIB
    disk.check_filesystem(image, kind, offset=grown.start, size=grown.size)
    assert not loops_of(image)
    if label:
        after = json.loads(sh("sfdisk", "--json", image))["partitiontable"]
        assert after["partitions"][0] == before["partitions"][0]
        old, new = before["partitions"][1], after["partitions"][1]
        assert {**old, "size": 0} == {**new, "size": 0}
        assert after.get("id") == before.get("id")
        assert "No errors detected" in sh("sfdisk", "--verify", image)


@pytest.mark.parametrize(
    ("label", "kind", "behind", "size", "reason"),
    [
        ("gpt", "ext4", True, 1 << 30, "partition 3 follows"),
        ("dos", "ext4", True, 1 << 30, "partition 3 follows"),
        ("dos", "ext4", False, 3 << 40, "2 TiB"),
    ],
)
def test_a_root_that_cannot_grow(
    tmp_path: Path, tree: Path, label: Label, kind: str, behind: bool, size: int, reason: str
) -> None:
    image = machine(tmp_path / "disk.raw", label, kind, tree, behind=behind)
    before = image.stat().st_size
    with pytest.raises(BadBase, match=reason):
        disk.grow(image, find(image), size)
    assert image.stat().st_size == before


def test_a_logical_partition_cannot_grow(tmp_path: Path, tree: Path) -> None:
    inner = filesystem(tmp_path / "fs", "ext4", tree)
    image = tmp_path / "disk.raw"
    with image.open("wb") as file:
        file.truncate(64 * MIB)
    sh("sfdisk", "-q", image, text="label: dos\nstart=2048, type=5\nstart=4096, type=83\n")
    with image.open("r+b") as file:
        file.seek(4096 * 512)
        file.write(inner.read_bytes())
    root = find(image)
    assert root.number == 5
    with pytest.raises(BadBase, match="logical"):
        disk.grow(image, root, 128 * MIB)


def test_the_root_is_what_holds_an_os_release_not_what_is_largest(tmp_path: Path, tree: Path) -> None:
    image = machine(tmp_path / "disk.raw", "gpt", "ext4", tree)
    empty = tmp_path / "empty"
    empty.mkdir()
    data = filesystem(tmp_path / "data.fs", "ext4", empty, 40 * MIB)
    start = image.stat().st_size
    with image.open("r+b") as file:
        file.truncate(start + 64 * MIB)
    sh("sfdisk", "-q", "--append", image, text=f"start={start // 512}, size={40 * MIB // 512}\n")
    with image.open("r+b") as file:
        file.seek(start)
        file.write(data.read_bytes())
    assert find(image).number == 2


def _bytes_at(path: Path, size: int, pieces: dict[int, bytes]) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
        for place, content in pieces.items():
            file.seek(place)
            file.write(content)
    return path


def test_bases_without_a_root_are_named(tmp_path: Path) -> None:
    luks = _bytes_at(tmp_path / "luks", 4 * MIB, {0: b"LUKS\xba\xbe\x00\x01" + b"aes".ljust(32, b"\0")})
    with pytest.raises(BadBase, match="LUKS"):
        find(luks)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(BadBase, match="ext4"):
        find(filesystem(tmp_path / "data", "ext4", empty))
    with pytest.raises(BadBase, match="not a disk image"):
        find(_bytes_at(tmp_path / "text", 100_000, {0: b"hello\n" * 1000}))
    with pytest.raises(BadBase, match="not a disk image"):
        find(_bytes_at(tmp_path / "nothing", 0, {}))


def test_a_damaged_root_is_called_damaged(tmp_path: Path, tree: Path) -> None:
    image = filesystem(tmp_path / "root", "ext4", tree)
    with image.open("r+b") as file:
        file.seek(2048)  # the group descriptors
        file.write(b"\xa5" * 8192)
    with pytest.raises(BadBase, match="ext4"):
        find(image)
    with pytest.raises(ParbakeError):
        disk.check_filesystem(image, "ext4")
    with pytest.raises(BadBase, match="damaged"):
        disk.grow_filesystem(image, "ext4", tmp_path / "at")
    assert not loops_of(image)


def test_reading_changes_nothing(tmp_path: Path, tree: Path) -> None:
    """Also when the base was captured from a running machine: its journal is not replayed."""
    for kind in ("ext4", "xfs"):
        clean = filesystem(tmp_path / f"{kind}.clean", kind, tree)
        dirty = tmp_path / f"{kind}.dirty"
        with disk.private_mounts(), disk.mount(clean, tmp_path / "at", filesystem=kind) as mounted:
            (mounted.path / "written").write_text("x")
            sh("sync", "-f", mounted.path)
            disk.copy_sparse(clean, dirty, Events())
        before = disk.sha256_file(dirty, Events())
        assert find(dirty).filesystem == kind
        assert disk.sha256_file(dirty, Events()) == before


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_fresh_file_systems_are_the_same_each_time(tmp_path: Path, kind: disk.FileSystem) -> None:
    digests = set()
    for number in range(2):
        image = tmp_path / f"{number}.raw"
        disk.make_filesystem(image, kind, 512 * MIB, name="key")
        digests.add(disk.sha256_file(image, Events()))
        time.sleep(1.1)  # the clocks of both file systems count seconds
        disk.check_filesystem(image, kind)
        assert image.stat().st_size == 512 * MIB
    assert len(digests) == 1
    image = tmp_path / "other.raw"
    disk.make_filesystem(image, kind, 512 * MIB, name="other")
    assert disk.sha256_file(image, Events()) not in digests


def test_fresh_file_systems_do_not_follow_the_machine_s_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk.make_filesystem(tmp_path / "a", "ext4", 64 * MIB, name="key")
    config = tmp_path / "mke2fs.conf"
    config.write_text("[defaults]\n base_features = sparse_super,filetype\n inode_size = 128\n")
    monkeypatch.setenv("MKE2FS_CONFIG", str(config))
    disk.make_filesystem(tmp_path / "b", "ext4", 64 * MIB, name="key")
    assert filecmp.cmp(tmp_path / "a", tmp_path / "b", shallow=False)
    features = sh("dumpe2fs", "-h", tmp_path / "a").split("Filesystem features:")[1].splitlines()[0].split()
    assert "metadata_csum" in features
    assert "orphan_file" not in features  # nodes with Linux 4.14 mount it


def test_a_file_system_needs_room(tmp_path: Path) -> None:
    with pytest.raises(ParbakeError):
        disk.make_filesystem(tmp_path / "a", "xfs", 16 * MIB, name="key")


def test_two_copies_of_one_xfs_are_mounted_side_by_side(tmp_path: Path, tree: Path) -> None:
    first = filesystem(tmp_path / "first", "xfs", tree)
    second = tmp_path / "second"
    disk.copy_sparse(first, second, Events())
    with (
        disk.private_mounts(),
        disk.mount(first, tmp_path / "a", filesystem="xfs") as one,
        disk.mount(second, tmp_path / "b", filesystem="xfs") as other,
    ):
        (one.path / "here").touch()
        assert not (other.path / "here").exists()


def test_deleted_files_become_holes_again(tmp_path: Path) -> None:
    image = tmp_path / "volume"
    disk.make_filesystem(image, "ext4", 256 * MIB, name="key")
    with disk.private_mounts(), disk.mount(image, tmp_path / "at", filesystem="ext4") as mounted:
        (mounted.path / "file").write_bytes(os.urandom(32 * MIB))
        sh("sync", "-f", mounted.path)
        sh("sync", image)
        full = image.stat().st_blocks * 512
        (mounted.path / "file").unlink()
        disk.trim(mounted)
    sh("sync", image)
    assert full > 32 * MIB
    assert image.stat().st_blocks * 512 < full - 24 * MIB


def test_growing_leaves_nothing_for_the_first_boot_and_stays_sparse(tmp_path: Path, tree: Path) -> None:
    image = filesystem(tmp_path / "root", "ext4", tree, 256 * MIB)
    with disk.private_mounts():
        grown = disk.grow(image, find(image), 4 << 30)
        disk.grow_filesystem(image, "ext4", tmp_path / "at")
        deadline = time.monotonic() + 120
        while "ITABLE_ZEROED" not in sh("dumpe2fs", image).split("Group 31:")[1].splitlines()[0]:
            assert time.monotonic() < deadline
            with disk.mount(image, tmp_path / "at", size=grown.size, filesystem="ext4"):
                time.sleep(0.2)  # the kernel's own thread does it
    assert image.stat().st_blocks * 512 < 128 * MIB


# Copies, digests, formats


def test_copies_keep_content_and_holes(tmp_path: Path) -> None:
    source = _bytes_at(
        tmp_path / "source", 40 * MIB + 5, {0: b"a" * 100, 10 * MIB: os.urandom(3 * MIB), 40 * MIB: b"tail!"}
    )
    target = tmp_path / "target"
    target.write_bytes(b"older and longer" * 10)
    disk.copy_sparse(source, target, Events())
    assert target.read_bytes() == source.read_bytes()
    assert target.stat().st_blocks <= source.stat().st_blocks + 64
    assert disk.sha256_file(target, Events()) == hashlib.sha256(source.read_bytes()).hexdigest()


def test_a_copy_to_another_file_system(tmp_path: Path) -> None:
    source = _bytes_at(tmp_path / "source", 8 * MIB, {MIB: os.urandom(MIB)})
    volume = tmp_path / "volume"
    disk.make_filesystem(volume, "ext4", 64 * MIB, name="key")
    with disk.private_mounts(), disk.mount(volume, tmp_path / "at", filesystem="ext4") as mounted:
        disk.copy_sparse(source, mounted.path / "copy", Events())
        assert (mounted.path / "copy").read_bytes() == source.read_bytes()


@pytest.mark.parametrize("format_", ["qcow2", "vmdk", "vhd"])
def test_formats_there_and_back(tmp_path: Path, tree: Path, format_: str) -> None:
    image = machine(tmp_path / "disk.raw", "gpt", "ext4", tree)
    disk.grow(image, find(image), 48 * MIB)
    target, back = tmp_path / f"disk.{format_}", tmp_path / "back.raw"
    disk.convert(image, target, format_)
    if format_ != "vhd":  # qemu-img cannot check that one
        sh("qemu-img", "check", target)
    described = disk.describe(target, tmp_path / "cache", Events())
    assert (described.format, described.virtual_size) == ("vpc" if format_ == "vhd" else format_, 48 * MIB)
    disk.to_raw(target, back, Events())
    assert disk.sha256_file(back, Events()) == disk.sha256_file(image, Events())


def test_a_compressed_qcow2_is_read(tmp_path: Path) -> None:
    image = _bytes_at(tmp_path / "disk.raw", 8 * MIB, {MIB: b"some text " * 100_000})
    sh("qemu-img", "convert", "-c", "-O", "qcow2", image, tmp_path / "disk.qcow2")
    disk.to_raw(tmp_path / "disk.qcow2", tmp_path / "back.raw", Events())
    assert (tmp_path / "back.raw").read_bytes() == image.read_bytes()


VMDK = """# Disk DescriptorFile
version=1
CID=fffffffe
parentCID=ffffffff
createType="monolithicFlat"
RW 16 FLAT "{extent}" 0
"""


def test_images_that_refer_to_other_files_are_refused(tmp_path: Path) -> None:
    secret = _bytes_at(tmp_path / "secret", 64 * 512, {0: b"not for the artefact"})
    backed, external, flat = (tmp_path / name for name in ("backed.qcow2", "external.qcow2", "flat.vmdk"))
    sh("qemu-img", "create", "-f", "qcow2", "-b", secret, "-F", "raw", backed)
    sh("qemu-img", "create", "-f", "qcow2", "-o", f"data_file={tmp_path / 'data'},data_file_raw=on", external, "1M")
    flat.write_text(VMDK.format(extent=secret.name))
    for image in (backed, external, flat):
        with pytest.raises(BadBase, match="refers to another file"):
            disk.to_raw(image, tmp_path / "raw", Events())
        with pytest.raises(BadBase, match="refers to another file"):
            disk.describe(image, tmp_path / "cache", Events())
    assert not (tmp_path / "raw").exists()


def test_a_compressed_file_is_called_so(tmp_path: Path) -> None:
    image = _bytes_at(tmp_path / "disk.raw.xz", MIB, {0: b"\xfd7zXZ\x00"})
    with pytest.raises(BadBase, match="compressed with xz"):
        disk.describe(image, tmp_path / "cache", Events())


def test_disk_full_is_said_and_leaves_no_file(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(40 * MIB))
    volume = tmp_path / "volume"
    disk.make_filesystem(volume, "ext4", 32 * MIB, name="key")
    with disk.private_mounts(), disk.mount(volume, tmp_path / "at", filesystem="ext4") as mounted:
        target = mounted.path / "target"
        with pytest.raises(DiskFull, match="no space left"):
            disk.copy_sparse(source, target, Events())
        assert not target.exists()
        with pytest.raises(DiskFull, match="no space left"):
            disk.convert(source, target, "qcow2")
        assert not target.exists()


# Nothing is left


def test_mounts_are_seen_inside_only(tmp_path: Path) -> None:
    image, at = tmp_path / "volume", tmp_path / "at"
    disk.make_filesystem(image, "ext4", 32 * MIB, name="key")
    seen: list[bool] = []
    inside, done = threading.Event(), threading.Event()

    def work() -> None:
        with disk.private_mounts(), disk.mount(image, at, filesystem="ext4"):
            seen.append(at.is_mount())
            inside.set()
            done.wait(120)

    thread = threading.Thread(target=work)
    thread.start()
    assert inside.wait(120)
    assert not at.is_mount()
    done.set()
    thread.join()
    assert seen == [True]
    assert not loops_of(image)


def test_the_way_back_when_a_thread_from_inside_still_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = threading.Event()
    before = Path("/proc/thread-self/ns/mnt").readlink()
    with disk.private_mounts():
        assert Path("/proc/thread-self/ns/mnt").readlink() != before
        thread = threading.Thread(target=done.wait, args=(30,))
        thread.start()
    try:
        assert Path("/proc/thread-self/ns/mnt").readlink() == before
        assert Path.cwd() == tmp_path
    finally:
        done.set()
        thread.join()


HOLDER = """
import sys, time
from pathlib import Path
from parbake.machine import disk
with disk.private_mounts(), disk.mount(Path(sys.argv[1]), Path(sys.argv[2]), filesystem="ext4") as mounted:
    (mounted.path / "file").write_text("x")
    print("mounted", flush=True)
    time.sleep(60)
"""


def test_kill_leaves_neither_mount_nor_loop_device(tmp_path: Path) -> None:
    image, at = tmp_path / "volume", tmp_path / "at"
    disk.make_filesystem(image, "ext4", 32 * MIB, name="key")
    with subprocess.Popen([sys.executable, "-c", HOLDER, image, at], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "mounted\n"
        assert loops_of(image)
        process.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 120
    while loops_of(image):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert str(at) not in Path("/proc/self/mountinfo").read_text()
    assert list(at.iterdir()) == []


def test_devices_inside_a_mount_are_data(tmp_path: Path) -> None:
    image = tmp_path / "volume"
    disk.make_filesystem(image, "ext4", 32 * MIB, name="key")
    with disk.private_mounts(), disk.mount(image, tmp_path / "at", filesystem="ext4") as mounted:
        os.mknod(mounted.path / "null", 0o20666, os.makedev(1, 3))
        with pytest.raises(PermissionError):
            (mounted.path / "null").open("rb")


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_nobody_follows_links_in_a_mounted_disk(tmp_path: Path, kind: str) -> None:
    (tmp_path / "outside").mkdir()
    tree = root_tree(tmp_path / "tree")
    (tree / "out").symlink_to(tmp_path / "outside")
    image = filesystem(tmp_path / "disk.raw", kind, tree)
    with disk.private_mounts(), disk.mount(image, tmp_path / "at", filesystem=kind) as mounted:
        assert (mounted.path / "out").readlink() == tmp_path / "outside"
        with pytest.raises(OSError, match="symbolic links"):
            (mounted.path / "out/file").touch()
        with pytest.raises(AssertionError, match="symbolic links"):
            sh("touch", mounted.path / "out/file")
    assert list((tmp_path / "outside").iterdir()) == []

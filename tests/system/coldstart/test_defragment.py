"""What starts read comes together on a file system that is a distribution's own, by the kernel."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from parbake.coldstart.rehearsal import gather
from parbake.coldstart.trace import data_of
from parbake.core import run
from parbake.machine import disk

pytestmark = pytest.mark.root

SIZE = 160 << 20
UNIT = 128


@contextmanager
def mounted(image: Path, at: Path) -> Iterator[Path]:
    with disk.private_mounts(), disk.mount(image, at, filesystem="ext4") as found:
        yield found.path


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A file system as a distribution's installer makes one: all usual features of mke2fs, and files of any size."""
    path = tmp_path / "root.raw"
    with path.open("wb") as file:
        file.truncate(SIZE)
    run.run(["mke2fs", "-q", "-t", "ext4", "-b", "4096", str(path)])
    with mounted(path, tmp_path / "make") as root:
        for number in range(100):
            noise = random.Random(number).randbytes(1 + number * 3001)
            (root / f"file{number}").write_bytes(noise)
        (root / "file50").chmod(0o4755)
        os.setxattr(root / "file50", "user.mark", b"kept")
        (root / "ldlinux.sys").write_bytes(b"found by its place" * 1000)
        (root / "file75").touch()
        run.run(["chattr", "+i", str(root / "file75")])
    return path


def look(root: Path) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(root.iterdir()):
        if path.is_file():
            status = path.stat()
            times = status.st_mtime_ns, status.st_ctime_ns, status.st_mode, status.st_blocks
            found[path.name] = path.read_bytes(), os.listxattr(path), *times
    return found


def blocks(path: Path) -> list[int]:
    with path.open("rb") as file:
        return [
            block
            for _, sector, count in data_of(file.fileno())
            for block in range(sector // 8, -(-(sector + count) // 8))
        ]


def test_hot_files_lie_together_in_the_order_of_the_start(image: Path, tmp_path: Path) -> None:
    hot = [f"file{number}" for number in range(99, 10, -11)]
    with mounted(image, tmp_path / "at") as root:
        before = look(root)
        wanted = [block for name in hot for block in blocks(root / name)[1:]]  # of each file all but its beginning
        requests = [(block, block + 1) for block in wanted]
        stays = [blocks(root / name)[0] for name in hot]
        done = gather(root, [*requests, *requests, (0, 3), (1 << 40, 1 << 41 - 38)])
        assert done.left == 0
        assert list(done.places) == wanted
        new = [block for name in hot for block in blocks(root / name)[1:]]
        assert new == list(done.places.values()) == list(range(new[0], new[0] + len(new)))
        assert new[0] % UNIT == 0
        assert [blocks(root / name)[0] for name in hot] == stays
        assert look(root) == before
    disk.check_filesystem(image, "ext4")


def test_what_the_kernel_or_a_boot_loader_wants_to_stay_stays(image: Path, tmp_path: Path) -> None:
    with mounted(image, tmp_path / "at") as root:
        before = look(root)
        places = {name: blocks(root / name) for name in ("file75", "ldlinux.sys", "file74")}
        done = gather(root, [(block, block + 1) for found in places.values() for block in found])
        assert done.left == len(places["file75"])
        assert blocks(root / "file75") == places["file75"]
        assert blocks(root / "ldlinux.sys") == places["ldlinux.sys"]
        assert blocks(root / "file74") == [done.places[block] for block in places["file74"]]
        assert look(root) == before
        run.run(["chattr", "-i", str(root / "file75")])
    disk.check_filesystem(image, "ext4")


def test_no_room(image: Path, tmp_path: Path) -> None:
    with mounted(image, tmp_path / "at") as root:
        status = os.statvfs(root)
        with (root / "filler").open("wb") as filler:
            os.posix_fallocate(filler.fileno(), 0, status.f_bfree * 4096 - (64 << 20) - (1 << 20))
        wanted = blocks(root / "file99") + blocks(root / "file98")
        some = gather(root, [(block, block + 1) for block in wanted])
        assert list(some.places) == wanted[: len(some.places)]
        assert some.left == len(wanted) - len(some.places) > 0
        with (root / "more").open("wb") as filler:
            os.posix_fallocate(filler.fileno(), 0, 4 << 20)
        assert gather(root, [(block, block + 1) for block in wanted]).places == {}
    disk.check_filesystem(image, "ext4")

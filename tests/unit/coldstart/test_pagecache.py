"""What was read into memory is looked after until its images are up: seen by taking it away, as kernels do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.unit.coldstart.test_hydrate import program

__all__ = ["program"]

PAGEOUT = 21  # of madvise(2): the kernel takes pages back at once
STEP = 128 << 10


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    """A file of 1 MiB, on disk, and not in memory."""
    (tmp_path / "file").write_bytes(os.urandom(1 << 20))
    handle = os.open(tmp_path / "file", os.O_RDONLY)
    os.fsync(handle)
    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    yield handle
    os.close(handle)


@pytest.fixture
def held(program: ModuleType, file: int) -> Iterator[Any]:
    """The first half of it, held."""
    held = program.Held(
        [b"x/io.containerd.snapshotter.v1.overlayfs/snapshots/12/fs/usr/bin/python", b"snapshots/7/fs/a"]
    )
    held.add(file, [(at, STEP) for at in range(0, 4 * STEP, STEP)])
    yield held
    held.release()


def take_back(program: ModuleType, held: Any, count: int) -> None:
    """Have the kernel take the first ranges back, as it does when memory is short."""
    first, size = held.pieces[0][3][0]
    assert not program.hold.__globals__["LIBC"].madvise(first, count * size, PAGEOUT)


def test_what_the_kernel_takes_back_is_told_and_brought_again(program: ModuleType, held: Any) -> None:
    figures: dict[str, Any] = {}
    held.look(figures)
    assert figures == {"resident": 4 * STEP, "reads_left": 0, "again": 0}
    take_back(program, held, 3)
    held.look(figures)
    assert figures == {"resident": STEP, "reads_left": 3, "again": 3}
    held.look(figures)
    assert figures == {"resident": 4 * STEP, "reads_left": 0, "again": 3}


def test_what_is_held_is_not_thrown_away_with_what_nobody_uses(held: Any, file: int) -> None:
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    figures: dict[str, Any] = {}
    held.look(figures)
    assert figures["reads_left"] == 0
    held.release()
    held.look(figures)
    assert figures["resident"] == 0


@pytest.mark.parametrize(
    ("shown", "tight_after", "why"),
    [
        ([set(), {7}, {7, 12, 13}], 9999, "up"),
        ([{7}], 9999, "deadline"),  # of an image nobody has made a container
        ([{7}], 3, "tight"),
    ],
)
def test_it_is_held_until_its_images_are_up_memory_is_tight_or_time_is_over(
    program: ModuleType, held: Any, monkeypatch: pytest.MonkeyPatch, shown: list[set[int]], tight_after: int, why: str
) -> None:
    """The clock moves with each pause; containers appear in the case's order."""
    module, clock, looks = program.hold.__globals__, [0.0], []

    def sleep(seconds: float) -> None:
        clock[0] += seconds

    def layers_shown() -> set[int]:
        return shown.pop(0) if len(shown) > 1 else shown[0]

    def tight() -> bool:
        looks.append(clock[0])
        return len(looks) >= tight_after

    monkeypatch.setitem(module, "layers_shown", layers_shown)
    monkeypatch.setattr(module["time"], "monotonic", lambda: clock[0])
    monkeypatch.setattr(module["time"], "sleep", sleep)
    figures: dict[str, Any] = {}
    program.hold(held, 600.0, figures, tight)
    assert (figures["held"], figures["resident"], held.pieces) == (why, 4 * STEP, [])
    assert looks[-1] == {"up": 2.0 + module["SETTLE"], "deadline": 600.0, "tight": 2.0}[why]


@pytest.mark.parametrize(
    ("line", "layers"),
    [
        (" - overlay overlay rw,lowerdir=/a/snapshots/12/fs:/a/snapshots/3/fs,upperdir=/u", {12, 3}),
        (" - overlay overlay rw,lowerdir=12/fs:3/fs,upperdir=/a/snapshots/40/fs,x", {12, 3, 40}),
        (" - overlay overlay rw,lowerdir+=/a/snapshots/12/fs,lowerdir+=/a/snapshots/3/fs", {12, 3}),
        ("/snapshots/12/fs rw - ext4 /dev/vda rw", set()),
        (" - overlay overlay rw,lowerdir=/var/lib/docker/overlay2/l/ABC:/x/12/fsx", set()),
    ],
)  # fmt: skip
def test_containers_show_their_layers_in_each_form_that_containerd_mounts(
    program: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, line: str, layers: set[int]
) -> None:
    (tmp_path / "mountinfo").write_text(f"44 30 0:40 / /run/x/rootfs{line}\n")
    module = program.hold.__globals__
    monkeypatch.setitem(module, "Path", lambda _: tmp_path / "mountinfo")
    assert module["layers_shown"]() == layers

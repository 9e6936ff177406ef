"""Programs of another architecture run while they are to, in any root, and not after that."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from parbake.core import emulation
from parbake.core.errors import EnvironmentProblem
from parbake.core.model import Platform
from standins.runs import private_places

__all__ = ["private_places"]
pytestmark = pytest.mark.root

OTHER = Platform(architecture="amd64" if Platform.host().architecture == "arm64" else "arm64")
# exit(7), by itself: ELF's machine number and the instructions
CODE = {
    "amd64": (62, "b83c000000 bf07000000 0f05"),
    "arm64": (183, "a80b80d2 e00080d2 010000d4"),
}


@pytest.fixture
def root(private_places: Path) -> Path:
    """A root with one program of the other architecture, and nothing else."""
    number, text = CODE[OTHER.architecture]
    code = bytes.fromhex(text)
    size = 120 + len(code)
    start = (b"\x7fELF\x02\x01\x01", 2, number, 1, 0x400078, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    load = struct.pack("<IIQQQQQQ", 1, 5, 0, 0x400000, 0x400000, size, size, 0x10000)
    place = private_places / "root"
    place.mkdir()
    (place / "program").write_bytes(struct.pack("<16sHHIQQQIHHHHHH", *start) + load + code)
    (place / "program").chmod(0o755)
    return place


def started(root: Path) -> int:
    command = ["/usr/sbin/chroot", str(root), "/program"]
    return subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode


def entries(handle: int, run: int) -> int:
    """Count what a run has registered; other runs are none of its business."""
    folder = os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=handle)
    try:
        return sum(name.startswith("parbake-") and name.split(".")[1] == str(run) for name in os.listdir(folder))  # noqa: PTH208
    finally:
        os.close(folder)


@pytest.fixture
def kept() -> Iterator[int]:
    """The file system of entries, open as on machines where it is mounted."""
    with emulation._entries() as handle:
        yield handle


def test_they_run_meanwhile(root: Path) -> None:
    with emulation.runnable(OTHER):
        assert started(root) == 7
        with emulation.runnable(OTHER):
            assert started(root) == 7
        assert started(root) == 7, "each has its own entry"


def test_nothing_stays_registered(kept: int) -> None:
    ours = os.getpid()
    with emulation.runnable(OTHER):
        assert entries(kept, ours) in {0, 1}  # 0: this machine runs them by itself
    assert entries(kept, ours) == 0
    with emulation.runnable(Platform.host()):
        assert entries(kept, ours) == 0


def test_what_a_killed_run_registered_is_taken_back(root: Path, kept: int) -> None:
    program = (
        "from parbake.core.emulation import runnable\nfrom parbake.core.model import Platform\n"
        f"with runnable(Platform(architecture={OTHER.architecture!r})):\n print(flush=True)\n input()\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as run:
        assert run.stdout
        run.stdout.readline()
        run.kill()
    assert started(root) == 7
    assert entries(kept, run.pid) in {0, 1}
    emulation.sweep()
    assert entries(kept, run.pid) == 0


def test_without_an_emulator_only_who_needs_one_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(root))
    monkeypatch.setattr("parbake.core.run._PATH", str(root))
    monkeypatch.setattr(emulation, "is_known", lambda *_: False)
    with emulation.runnable(OTHER, needed=False):
        pass
    with (
        pytest.raises(EnvironmentProblem, match=r"qemu-\w+ is not installed") as missing,
        emulation.runnable(OTHER),
    ):
        pass
    assert "apt-get install qemu-user" in missing.value.hint
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(EnvironmentProblem, match="needs root"), emulation.runnable(OTHER):
        pass

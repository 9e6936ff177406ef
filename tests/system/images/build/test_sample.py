"""The sample application of ``parbake init``, for real: the host's busybox, a full disk."""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import suppress
from datetime import date
from pathlib import Path

import pytest

from parbake.bakefile.scaffold import SAMPLE, write
from parbake.core import run
from parbake.core.errors import DiskFull

pytestmark = pytest.mark.root
TODAY = date(2026, 11, 24)


def _lay_out(context: Path, root: Path) -> list[str]:
    """Do by hand what the Containerfile asks for, and return the entrypoint."""
    text = (context / "Containerfile").read_text()
    assert text.count("FROM scratch") == 1
    for source, target in re.findall(r"^COPY (\S+) (\S+)$", text, re.MULTILINE):
        place = root / target.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(context / source, place)
    (root / "dev").mkdir()
    os.mknod(root / "dev" / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))  # every container has one
    return re.findall(r'"([^"]+)"', text.partition("ENTRYPOINT")[2])


def test_the_sample_starts_says_so_serves_and_ends(tmp_path: Path) -> None:
    write(tmp_path / "node", today=TODAY)
    root = tmp_path / "root"
    entrypoint = _lay_out(tmp_path / "node" / SAMPLE, root)
    # A network of its own, so that no port of this machine is taken.
    command = ["unshare", "--net", "chroot", str(root), *entrypoint]
    with run.Process(command, log=tmp_path / "log", own_pids=True) as process:
        deadline = run.Deadline(120, "the sample's start")
        while "hello: ready" not in process.tail:
            process.check_alive()
            deadline.sleep(0.05)
        assert process.tail == "hello: ready on port 8080"
        pid = next(pid for pid in _rooted_in(root) if b"serve.sh" in _command_line(pid))
        inside = ["nsenter", f"--target={pid}", "--net", "chroot", str(root), "/bin/busybox"]
        run.run([*inside, "ip", "link", "set", "lo", "up"])
        page = run.run([*inside, "wget", "-q", "-O", "-", "http://127.0.0.1:8080/"]).text
        assert page == (root / "www" / "index.html").read_text().rstrip("\n")
        run.run(["kill", "-TERM", str(pid)])
        while process.alive:
            deadline.sleep(0.05)


def _rooted_in(root: Path) -> list[int]:
    """Return the processes whose root folder this is: a command line alone could be another's."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended meanwhile
            if (folder / "root").readlink() == root:
                found.append(int(folder.name))
    return sorted(found)


def _command_line(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Path]:
    """A file system of half a MiB."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    run.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)])
    try:
        yield folder
    finally:
        run.run(["umount", str(folder)])


def test_a_full_disk_leaves_nothing(tiny: Path) -> None:
    with pytest.raises(DiskFull) as caught:
        write(tiny / "node", today=TODAY)
    assert "cannot write" in caught.value.message
    assert list(tiny.iterdir()) == []

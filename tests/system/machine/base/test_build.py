"""Making the default base, with a stand-in for mmdebstrap: the disk, its errors, and what a killed build leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from parbake.core.errors import CommandFailed, DiskFull
from parbake.core.events import Event, Events
from parbake.core.model import Platform
from parbake.core.run import run
from parbake.machine import base, disk
from standins.disks import sh
from standins.users import USER, ordinary

pytestmark = pytest.mark.root

RECIPE = base.describe(Platform(architecture="amd64"))

# Makes a root from the files that it is given, as mmdebstrap's hooks do, and notes how it was called.
MMDEBSTRAP = """#!/bin/sh
set -e
while [ "$1" != trixie ]; do printf '%s\\n' "$1" >>"$NOTES"; shift; done
printf 'root %s\\nsources %s\\n' "$2" "${3-none}" >>"$NOTES"
packed=$2 root=${2%.tar}
shift 2; set -- trixie "$root" "$@"
[ -z "$3" ] || cp "$3" "$NOTES.sources"
$BEHAVE
mkdir -p "$2/usr/lib" "$2/boot"
cp -a early/. tree/. "$2"
echo ID=debian >"$2/usr/lib/os-release"
ln -s ../usr/lib/os-release "$2/etc/os-release"
echo kernel >"$2/vmlinuz"
echo initrd >"$2/initrd.img"
ln "$2/vmlinuz" "$2/boot/linked"
chmod 4755 "$2/vmlinuz"
setfattr -n user.sample -v yes "$2/vmlinuz" 2>/dev/null || true
[ "$packed" = "$2" ] || { tar --numeric-owner --owner=0 --group=0 -C "$2" -cf "$packed" . && rm -r "$2"; }
"""
APT_GET = """#!/bin/sh
printf 'http://user:word@mirror.example/debian/\\ttrixie\\tmain\\t/usr/share/keyrings/some.pgp\\n'
printf 'http://mirror.example/debian/\\ttrixie-updates\\tmain\\t\\n'
printf 'file:/usr/share/else\\t./\\t\\t\\n'
printf 'http://mirror.example/ubuntu/\\tnoble\\tmain\\t\\n'
"""


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, behave: str = ":", apt_get: str = APT_GET) -> Path:
    """Put the stand-ins first on PATH; returns the file with the notes."""
    programs, notes = folder / "bin", folder / "notes"
    programs.mkdir(exist_ok=True)
    text = MMDEBSTRAP.replace("$NOTES", str(notes)).replace("$BEHAVE", behave)
    for name, content in (("mmdebstrap", text), ("apt-get", apt_get)):
        (programs / name).write_text(content)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return notes


def test_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes = stand_in(tmp_path, monkeypatch)
    said: list[Event] = []
    image = base.ensure(tmp_path / "cache", Events(said.append))
    assert {event.name for event in said if event.kind == "stage-end"} == {"base", "base-packages", "base-disk"}
    assert image.stat().st_size == base.SIZE
    assert image.stat().st_blocks * 512 < 64 << 20
    assert "No errors detected" in sh("sfdisk", "--verify", image)
    with disk.private_mounts():
        root = disk.find_root(image)
        with disk.mount(
            image, tmp_path / "at", offset=root.start, size=root.size, filesystem="ext4", read_only=True
        ) as mounted:
            uuid = sh("blkid", "-o", "value", "-s", "UUID", mounted.device).strip()
            assert (mounted.path / "etc/fstab").read_text().startswith(f"UUID={uuid} / ext4")
            assert f"root=UUID={uuid} " in (mounted.path / "boot/grub/grub.cfg").read_text()
            assert (mounted.path / "etc/initramfs-tools/hooks/parbake").stat().st_mode & 0o777 == 0o755
            assert (mounted.path / "etc/containerd/config.toml").stat().st_mode & 0o777 == 0o644
            assert (mounted.path / "vmlinuz").stat().st_nlink == 2
            for path in mounted.path.rglob("*"):
                assert path.lstat().st_mtime <= RECIPE.epoch
    disk.check_filesystem(image, "ext4", offset=root.start, size=root.size)
    esp = RECIPE.slice("esp")
    run(["mcopy", "-i", f"{image}@@{esp.start}", "::/EFI/BOOT/BOOTX64.EFI", str(tmp_path / "loader.efi")])
    assert (tmp_path / "loader.efi").read_bytes().startswith(b"MZ")
    assert uuid.encode() in (tmp_path / "loader.efi").read_bytes()
    asked = notes.read_text()
    assert f"--include={','.join(RECIPE.packages)}" in asked
    assert notes.with_suffix(".sources").read_text() == (
        "deb [signed-by=/usr/share/keyrings/some.pgp] http://user:word@mirror.example/debian/ trixie main\n"
        "deb http://mirror.example/debian/ trixie-updates main\n"
    )
    assert sorted(path.name for path in (tmp_path / "cache/base").iterdir() if path.suffix == ".raw") == [image.name]
    assert list((tmp_path / "cache/base/.parbake").glob("*")) == []


def test_it_is_made_once_and_the_same_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes = stand_in(tmp_path, monkeypatch)
    first = base.ensure(tmp_path / "one", Events())
    asked = notes.read_text()
    assert base.ensure(tmp_path / "one", Events()) == first
    assert notes.read_text() == asked
    time.sleep(1.1)
    second = base.ensure(tmp_path / "two", Events())
    assert first.name == second.name
    assert disk.sha256_file(first, Events()) == disk.sha256_file(second, Events())
    third = base.ensure(tmp_path / "two", Events(), packages=["socat"], serial="later")
    assert third.name != second.name


def test_whoever_makes_it_has_the_same_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files of who is not root are the user's: fakeroot has a list of their owners."""
    notes = stand_in(tmp_path, monkeypatch)
    monkeypatch.setenv("HOME", str(tmp_path))
    made = base.ensure(tmp_path / "cache", Events())
    assert "--mode=root\n--format=directory" in notes.read_text()
    notes.unlink()
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [*ordinary(tmp_path), sys.executable, "-c", BUILD, str(tmp_path / "user")]
    subprocess.run(command, env=env, check=True)
    assert "--mode=fakechroot\n--format=tar" in notes.read_text()
    found = tmp_path / "user/base" / made.name
    assert found.stat().st_uid == USER
    assert disk.sha256_file(found, Events()) == disk.sha256_file(made, Events())


def test_without_sources_of_its_own_mmdebstrap_chooses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes = stand_in(tmp_path, monkeypatch, apt_get="#!/bin/sh\nexit 100\n")
    base.ensure(tmp_path / "cache", Events())
    assert "sources none\n" in notes.read_text()


@pytest.mark.parametrize(
    ("behave", "error", "said"),
    [
        ("echo E: no such package >&2; exit 25", CommandFailed, "no such package"),
        ("echo cannot write: No space left on device >&2; exit 1", DiskFull, "no space left"),
    ],
)
def test_failures_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, behave: str, error: type[Exception], said: str
) -> None:
    stand_in(tmp_path, monkeypatch, behave)
    with pytest.raises(error, match=said) as caught:
        base.ensure(tmp_path / "cache", Events())
    assert getattr(caught.value, "hint", "")
    assert not list((tmp_path / "cache/base").glob("*.raw"))
    assert list((tmp_path / "cache/base/.parbake").glob("*")) == []


BUILD = """
import sys
from pathlib import Path
from parbake.machine import base
from parbake.core.events import Events
base.ensure(Path(sys.argv[1]), Events())
"""


def test_a_killed_build_leaves_a_folder_that_the_next_one_removes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = f"5{os.getpid() % 100000:05d}"
    # As mmdebstrap does, it mounts in the new root.
    stand_in(tmp_path, monkeypatch, f'mkdir -p "$2/proc"; mount -t proc proc "$2/proc"; sleep {marker}')
    cache, alive = tmp_path / "cache", ["pgrep", "-f", f"sleep {marker}"]
    with subprocess.Popen([sys.executable, "-c", BUILD, cache]) as process:
        deadline = time.monotonic() + 120
        while subprocess.run(alive, capture_output=True, check=False).returncode:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 120
    while not subprocess.run(alive, capture_output=True, check=False).returncode:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert str(cache) not in Path("/proc/self/mountinfo").read_text()
    assert not list((cache / "base").glob("*.raw"))
    assert len(list((cache / "base/.parbake").iterdir())) == 1
    stand_in(tmp_path, monkeypatch)
    assert base.ensure(cache, Events()).exists()
    assert list((cache / "base/.parbake").glob("*")) == []

"""Native programs in a foreign root: which they are, when they are asked, and that nothing of them remains.

Both are of this machine's architecture here. The root's own programs are scripts that say that they are emulated, and a
native one is ``echo`` under its name: it says how it was called.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from parbake.core.model import Platform
from parbake.core.run import run
from parbake.machine.base import native
from standins.disks import sh

pytestmark = pytest.mark.root

LIBRARIES, LOADER = native.LOADERS[Platform.host().architecture]
PROGRAMS = (
    "usr/bin/sed",
    "usr/bin/perl",
    "usr/bin/perl5.40.1",
    "usr/bin/python3.13",
    "usr/bin/uname",
    "usr/bin/openssl",
)
OTHERS = "/lib/some.so.1\n/lib/some.so.1.usr-is-merged\nsome\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What mmdebstrap unpacks: programs with their libraries, and what is no program."""
    made = tmp_path / "native"
    for folder in ("usr/bin", "usr/sbin", "usr/libexec", LIBRARIES, str(Path(LOADER).parent)):
        (made / folder).mkdir(parents=True, exist_ok=True)
    for program in PROGRAMS:
        shutil.copy2("/usr/bin/echo", made / program)
    shutil.copy2("/usr/bin/dash", made / "usr/bin/dash")
    shutil.copy2("/usr/sbin/start-stop-daemon", made / "usr/sbin/start-stop-daemon")
    (made / "usr/bin/which").write_text("#!/bin/sh\n")
    (made / "usr/bin/sh").symlink_to("dash")
    (made / LIBRARIES / "libc.so.6").write_bytes(Path("/", LIBRARIES, "libc.so.6").read_bytes())
    loader = made / LIBRARIES / Path(LOADER).name
    shutil.copy2(Path("/", LOADER), loader)
    return made


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with essential packages unpacked, of another architecture."""
    made = tmp_path / "root"
    (made / "usr/bin").mkdir(parents=True)
    (made / "usr/sbin").mkdir()
    (made / "usr/lib").mkdir()
    (made / "var/lib/dpkg").mkdir(parents=True)
    for name in ("bin", "sbin", "lib"):
        (made / name).symlink_to(f"usr/{name}")
    for name in ("sed", "perl", "uname", "dash"):
        put(made / f"usr/bin/{name}")
    (made / "usr/bin/sh").symlink_to("dash")
    (made / "var/lib/dpkg/diversions").write_text(OTHERS)
    return made


def put(path: Path) -> None:
    """Put a program of the root's own architecture there: a script of a shell that is always native here."""
    path.write_text("#!/.native/usr/bin/dash\necho emulated\n")
    path.chmod(0o755)


def snapshot(root: Path) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        content = path.readlink() if path.is_symlink() else path.read_bytes() if path.is_file() else None
        times = status.st_mtime_ns if path.is_file() and "diversions" not in path.name else 0
        found[str(path.relative_to(root))] = (status.st_mode, status.st_nlink, times, content)
    return found


def hook(text: str, root: Path) -> None:
    """Run a hook as mmdebstrap does."""
    sh("sh", "-c", text, "exec", root)


def ask(root: Path, *command: str) -> str:
    return sh("chroot", root, *command).strip()


def test_programs_are_native_meanwhile_and_nothing_of_them_remains(root: Path, folder: Path) -> None:
    divert, _, restore = native.prepare(folder, Platform.host().architecture)
    put(root / "usr/bin/openssl")
    put(root / "usr/bin/python3.13")
    expected = snapshot(root)
    for name in ("openssl", "python3.13"):
        (root / "usr/bin" / name).rename(root.parent / name)
    hook(divert, root)
    assert not folder.exists()
    assert ask(root, "/usr/bin/sed", "asked") == "asked"
    assert ask(root, "/bin/sh", "-c", "sed asked by a script") == "asked by a script"
    assert ask(root, "/usr/bin/uname", "-m") == "emulated"
    records = (root / "var/lib/dpkg/diversions").read_text()
    assert records.startswith(OTHERS)
    assert "/usr/bin/sed\n/usr/bin/sed.foreign\n:\n" in records
    assert "uname" not in records
    assert len(records.splitlines()) % 3 == 0
    # As dpkg does with what is diverted.
    for name in ("openssl", "python3.13"):
        (root.parent / name).rename(root / f"usr/bin/{name}.foreign")
    assert ask(root, "/usr/sbin/update-initramfs", "--version") == ""
    hook(restore, root)
    assert snapshot(root) == expected


def test_interpreters_are_native_for_what_needs_no_extension(root: Path, folder: Path) -> None:
    hook(native.prepare(folder, Platform.host().architecture)[0], root)
    put(root / "usr/bin/python3.13.foreign")
    (root / "usr/bin/python3").symlink_to("python3.13")
    script = root / "usr/bin/py3compile"
    script.write_text("#! /usr/bin/python3\n")
    script.chmod(0o755)
    assert ask(root, "/usr/bin/py3compile", "-p", "python3-yaml") == "/usr/bin/py3compile -p python3-yaml"
    for compiling in (
        ["-E", "-S", "/usr/lib/python3.13/py_compile.py", "/usr/lib/python3.13/abc.py"],
        ["-m", "py_compile", "-"],
        ["-O", "-m", "py_compile", "-"],
        ["-c", "import importlib.util; print(importlib.util.MAGIC_NUMBER)"],
        ["-c", "import sys; print(sys.implementation.cache_tag)"],
    ):
        assert ask(root, "/usr/bin/python3.13", *compiling).endswith(compiling[-1])
    for other in (["-c", "import yaml, py_compile"], ["/usr/share/some/py_compile.py"], ["-m", "json.tool"]):
        assert ask(root, "/usr/bin/python3", *other) == "emulated"
    assert ask(root, "/usr/bin/perl", "-e", "1") == "1"  # echo knows -e
    (root / "usr/lib/foreign-linux-gnu/perl5").mkdir(parents=True)
    assert ask(root, "/usr/bin/perl", "-e", "1") == "emulated"


def test_what_a_package_has_put_in_the_place_of_a_program_stays(root: Path, folder: Path) -> None:
    divert, _, restore = native.prepare(folder, Platform.host().architecture)
    hook(divert, root)
    other = root / "usr/bin/openssl"
    other.unlink()
    put(other)
    hook(restore, root)
    assert other.read_text().endswith("emulated\n")
    assert not (root / "usr/bin/python3.13").exists()  # no package brought it


def test_a_root_that_is_not_as_expected_is_told(root: Path, folder: Path) -> None:
    _, _, restore = native.prepare(folder, Platform.host().architecture)
    done = run(["sh", "-c", restore, "exec", str(root)], check=False)
    assert done.code != 0
    assert ".native" in done.stderr


@pytest.fixture
def making(root: Path, folder: Path) -> tuple[str, str]:
    """A root whose initial RAM disk, with all that it may hold, lies in ``/made``; hooks to make it and to end."""
    for name in ("grep", "rm", "rmdir"):
        shutil.copy2(f"/usr/bin/{name}", folder / "usr/bin" / name)
    for library in Path("/", LIBRARIES).glob("libpcre2-8.so.*"):
        shutil.copy2(library, folder / LIBRARIES)
    divert, make, restore = native.prepare(folder, Platform.host().architecture)
    hook(divert, root)
    for path in ("dev", "boot", "etc/initramfs-tools/hooks", "made/usr/lib64", "made/usr/bin"):
        (root / path).mkdir(parents=True)
    (root / "dev/null").touch()
    (root / "boot/initrd.img-6").touch()
    (root / "made/lib64").symlink_to("usr/lib64")
    maker = root / "usr/sbin/update-initramfs.foreign"
    maker.write_text(
        '#!/bin/sh\nexport DESTDIR=/made\necho "$@" >/asked\nfor each in /etc/initramfs-tools/hooks/*; do $each; done\n'
    )
    maker.chmod(0o755)
    return make, restore


@pytest.mark.parametrize("own", [False, True])
def test_the_initial_ram_disk_has_no_folder_for_the_native_loader(
    root: Path, making: tuple[str, str], *, own: bool
) -> None:
    """But the root's own stays, and so do the root's hooks: it is made as a machine of its own would make it."""
    make, restore = making
    if own:
        (root / "made/usr/lib64/ld.so.2").touch()
    hook(make, root)
    assert (root / "asked").read_text() == "-c -k all\n"
    assert (root / "made/usr/lib64").exists() == own
    assert (root / "made/lib64").is_symlink() == own
    assert list((root / "etc/initramfs-tools/hooks").iterdir()) == []
    hook(restore, root)
    assert (root / "boot/initrd.img-6").exists()


def test_an_initial_ram_disk_that_would_hold_a_native_program_is_made_anew(
    root: Path, making: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, restore = making
    shutil.copy2("/usr/bin/dash", root / "made/usr/bin/dash")
    hook(make, root)
    instead = tmp_path / "instead/chroot"  # there is no emulated program to run
    instead.parent.mkdir()
    instead.write_text(f'#!/bin/sh\necho "$@" >{tmp_path}/anew\n')
    instead.chmod(0o755)
    monkeypatch.setenv("PATH", f"{instead.parent}:{os.environ['PATH']}")
    hook(restore, root)
    assert (tmp_path / "anew").read_text() == ". /usr/sbin/update-initramfs -c -k all\n"
    assert list((root / "boot").iterdir()) == []
    assert not (root / ".native").exists()

"""The default base in a cache that others can write to: it is compared before it is used, and made anew."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest

from parbake.core import sealed
from parbake.core.errors import EnvironmentProblem
from parbake.core.events import Event, Events
from parbake.core.model import Platform
from parbake.core.run import run
from parbake.machine import base
from parbake.machine.base import build
from parbake.machine.base.recipe import describe
from parbake.machine.disk.blocks import ZEROS, block_list

BYTES = b"a base" + ZEROS + b"units"


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Bases that were made; none takes what a real one does."""
    found: list[Path] = []

    def make(_recipe: object, work: Path, _events: Events) -> Path:
        (work / "disk.raw").write_bytes(BYTES)
        found.append(work)
        return work / "disk.raw"

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv(sealed.VARIABLE, raising=False)
    monkeypatch.setattr(build, "_build", make)
    monkeypatch.setattr(build, "_COMPARED", set())
    return found


def one_byte(disk: Path) -> None:
    status = disk.stat()
    with disk.open("r+b") as file:
        file.write(b"A")
    os.utime(disk, ns=(status.st_atime_ns, status.st_mtime_ns))


def a_file_more(disk: Path) -> None:
    with disk.open("r+b") as file:
        file.seek(len(ZEROS) // 2)  # where a file system has a hole
        file.write(b"[Service]\nExecStart=/bin/evil\n")


def a_link(disk: Path) -> None:
    disk.rename(disk.with_suffix(".moved"))
    disk.symlink_to(disk.with_suffix(".moved"))


def another_base_with_its_seal(disk: Path) -> None:
    other = disk.with_name("debian-other.raw")
    other.write_bytes(b"a base with other packages")
    sealed.seal(other, block_list(other, Events(), algorithm="blake3").digest())
    shutil.copy(other, disk)
    shutil.copy(f"{other}.seal", f"{disk}.seal")


@pytest.mark.parametrize("change", [one_byte, a_file_more, a_link, another_base_with_its_seal, sealed.loosen])
def test_a_base_that_others_have_changed_is_made_anew(
    tmp_path: Path, made: list[Path], change: Callable[[Path], None]
) -> None:
    said: list[Event] = []
    disk = base.ensure(tmp_path / "cache", Events(said.append))
    assert base.ensure(tmp_path / "cache", Events(said.append)) == disk
    assert (len(made), [event for event in said if event.kind == "warning"]) == (1, [])
    change(disk)
    build._COMPARED.clear()  # another process
    assert base.ensure(tmp_path / "cache", Events(said.append)).read_bytes() == BYTES
    [warning] = [event.text for event in said if event.kind == "warning"]
    assert warning == f"{disk} has no seal of this user's key: it is not used, and made anew"
    assert len(made) == 2
    build._COMPARED.clear()
    base.ensure(tmp_path / "cache", Events())
    assert len(made) == 2


def test_a_change_is_seen_by_a_process_that_has_compared_it(tmp_path: Path, made: list[Path]) -> None:
    one_byte(base.ensure(tmp_path / "cache", Events()))
    assert base.ensure(tmp_path / "cache", Events()).read_bytes() == BYTES
    assert len(made) == 2


def test_a_base_in_a_restored_cache_is_used_by_who_has_its_key(
    tmp_path: Path, made: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(sealed.VARIABLE, "a secret of the CI, 32 characters")
    base.ensure(tmp_path / "cache", Events())
    shutil.copytree(tmp_path / "cache", tmp_path / "restored")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "fresh"))
    base.ensure(tmp_path / "restored", Events())
    assert len(made) == 1
    monkeypatch.delenv(sealed.VARIABLE)
    build._COMPARED.clear()
    base.ensure(tmp_path / "restored", Events())
    assert len(made) == 2, "without the key it is a stranger's"


@pytest.mark.parametrize(("architecture", "refused"), [("amd64", False), ("arm64", True)])
def test_a_base_of_another_architecture_alone_takes_root(
    tmp_path: Path, made: list[Path], monkeypatch: pytest.MonkeyPatch, architecture: str, refused: bool
) -> None:
    def refuse(what: str, *, hint: str) -> None:
        raise EnvironmentProblem(f"{what} needs root", hint=hint)

    monkeypatch.setattr(build, "need_root", refuse)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    with pytest.raises(EnvironmentProblem, match="for linux/arm64 needs root") if refused else nullcontext():
        base.ensure(tmp_path / "cache", Events(), platform=Platform(architecture=architecture))
    assert len(made) == (not refused)


def test_a_base_that_came_with_parbake_is_unpacked_and_not_built(
    tmp_path: Path, made: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in the container image, whose user can build none for another architecture."""
    monkeypatch.setattr("sys.prefix", str(tmp_path / "installed"))
    (tmp_path / "disk.raw").write_bytes(BYTES.ljust(1 << 20, b"\0"))
    packed = (tmp_path / "installed/base" / describe(Platform.host()).file_name).with_suffix(".qcow2")
    packed.parent.mkdir(parents=True)
    run(["qemu-img", "convert", "-f", "raw", "-c", "-O", "qcow2", str(tmp_path / "disk.raw"), str(packed)])
    disk = base.ensure(tmp_path / "cache", Events())
    assert disk.read_bytes() == (tmp_path / "disk.raw").read_bytes()
    build._COMPARED.clear()
    assert base.ensure(tmp_path / "cache", Events()) == disk, "it is sealed as one that was built"
    assert made == []

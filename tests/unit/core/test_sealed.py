"""Seals of what the cache holds: of this user's key, which no copy of the cache has; and bonds to this machine."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import pytest

from parbake.core import sealed
from parbake.core.errors import EnvironmentProblem, InputError


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv(sealed.VARIABLE, raising=False)
    return tmp_path / "state"


@pytest.fixture
def thing(state: Path, tmp_path: Path) -> Path:  # noqa: ARG001 (the key is made there)
    path = tmp_path / "cache/base/debian.raw"
    path.parent.mkdir(parents=True)
    sealed.seal(path, "digest")
    return path


def test_a_seal_is_of_one_name_and_one_digest(thing: Path) -> None:
    assert sealed.is_sealed(thing, "digest")
    assert not sealed.is_sealed(thing, "Digest")
    for other in (thing.with_name("other.raw"), thing.parent.parent / "amis" / thing.name):
        other.parent.mkdir(exist_ok=True)
        shutil.copy(f"{thing}.seal", f"{other}.seal")
        assert not sealed.is_sealed(other, "digest"), "a seal of another thing's"
    sealed.loosen(thing)
    assert not sealed.is_sealed(thing, "digest")


def test_the_key_is_this_users_alone_and_outside_the_cache(thing: Path, state: Path) -> None:
    key = state / "parbake/cache.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE(key.parent.stat().st_mode) == 0o700
    key.unlink()  # a machine that restores the cache has another one
    assert not sealed.is_sealed(thing, "digest")


def test_a_key_that_is_given_goes_with_the_cache(thing: Path, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(sealed.VARIABLE, "a secret of the CI, 32 characters")
    assert not sealed.is_sealed(thing, "digest")
    sealed.seal(thing, "digest")
    shutil.rmtree(state)
    assert sealed.is_sealed(thing, "digest"), "on a machine that has nothing but the word"
    assert not state.exists()
    monkeypatch.setenv(sealed.VARIABLE, "short")
    with pytest.raises(InputError, match="less than 32 characters"):
        sealed.is_sealed(thing, "digest")


@pytest.mark.parametrize("planted", ["a link", "writable by others"])
def test_a_key_that_others_choose_is_none(state: Path, thing: Path, planted: str) -> None:
    folder = state / "parbake"
    if planted == "a link":
        folder.rename(state / "elsewhere")
        folder.symlink_to(state / "elsewhere")
    else:
        folder.chmod(0o777)
    with pytest.raises(EnvironmentProblem, match="parbake works only in a folder of its own"):
        sealed.is_sealed(thing, "digest")


def test_where_no_key_can_be_kept_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    with pytest.raises(EnvironmentProblem, match="no key for the cache can be kept") as told:
        sealed.seal(tmp_path / "x", "digest")
    assert sealed.VARIABLE in told.value.hint
    folder = tmp_path / "store"
    folder.mkdir()
    sealed.bind(folder)
    assert sealed.is_bound(folder), "for as long as this process lives"


def test_a_copy_of_what_is_bound_is_not(state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cache/buildah"
    folder.mkdir(parents=True)
    (folder / "file").write_text("layer")
    sealed.bind(folder, ["file"])
    assert sealed.is_bound(folder, ["file"])
    shutil.copytree(folder.parent, tmp_path / "copy/cache")
    assert not sealed.is_bound(tmp_path / "copy/cache/buildah", ["file"])
    status = (folder / "file").stat()
    (folder / "file").write_text("lAyer")
    os.utime(folder / "file", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert not sealed.is_bound(folder, ["file"]), "its ctime says that it was written to"
    sealed.bind(folder)
    monkeypatch.setenv(sealed.VARIABLE, "k" * 32)
    assert sealed.is_bound(folder), "a key that is shared is not asked"
    (state / "parbake/cache.key").unlink()
    assert not sealed.is_bound(folder)
    assert not sealed.is_bound(tmp_path / "nothing")

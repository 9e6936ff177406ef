"""What the cache holds is believed where its owner made it: seals are digests with a key that lies outside the cache.

A cache is restored by CI from where others can write, and a digest that lies in it would be theirs as well. The key
is in the user's state folder (``XDG_STATE_HOME``), made when it is missing; ``PARBAKE_CACHE_KEY`` gives one to machines
that share a cache. What has no seal of this key is made anew.

Two kinds: a ``seal`` is of bytes, and moves with them. What has too many of them to be read again is ``bound`` to its
place on this machine: to inodes and, of files, times of change (ctime), which nobody sets back. It takes a key that
never leaves the machine, so that a copy of the cache has none of it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Final

from parbake.core import atomic
from parbake.core.errors import EnvironmentProblem, InputError
from parbake.core.files import read_file

VARIABLE: Final = "PARBAKE_CACHE_KEY"
SUFFIX: Final = ".seal"
_SHORTEST = 32  # characters: 128 bits as hex digits
_NAME = "cache.key"
_BYTES = 32
_MOST = 4096


def seal(path: Path, digest: str, *, durable: bool = True) -> None:
    """Write beside a file or folder of the cache, which may come later, that these are its bytes. Raises OSError.

    ``durable`` as in ``atomic.replace``.
    """
    atomic.replace(_beside(path), _mac(_shared_key(), [*path.parts[-2:], digest]), durable=durable)


def is_sealed(path: Path, digest: str) -> bool:
    """Whether a holder of this user's key made what is in the cache, with this name and digest."""
    return _holds(path, _mac(_shared_key(), [*path.parts[-2:], digest]))


def bind(folder: Path, files: Iterable[str] = ()) -> None:
    """Write beside a folder of the cache that it was made here, with some files in it as they are. Raises OSError."""
    atomic.replace(_beside(folder), _bond(folder, files))


def is_bound(folder: Path, files: Iterable[str] = ()) -> bool:
    """Whether this machine made a folder of the cache, and nobody has written to those files in it since."""
    with suppress(OSError):
        return _holds(folder, _bond(folder, files))
    return False


def loosen(path: Path) -> None:
    """Remove a seal with what it was of."""
    _beside(path).unlink(missing_ok=True)


def _bond(folder: Path, files: Iterable[str]) -> str:
    status = folder.lstat()
    state: list[object] = [*folder.parts[-2:], status.st_dev, status.st_ino]
    for name in files:
        of_file = (folder / name).lstat()
        state += [name, of_file.st_ino, of_file.st_size, of_file.st_mtime_ns, of_file.st_ctime_ns]
    return _mac(_own_key(), state)


def _beside(path: Path) -> Path:
    return path.with_name(path.name + SUFFIX)


def _mac(key: bytes, what: list[object]) -> str:
    return hmac.new(key, json.dumps(what).encode(), hashlib.sha256).hexdigest()


def _holds(path: Path, mac: str) -> bool:
    with suppress(OSError):
        return hmac.compare_digest(read_file(_beside(path), _MOST), mac.encode())
    return False


def _shared_key() -> bytes:
    """Return the key of seals. Raises InputError (too short a word), EnvironmentProblem where none can be kept."""
    if word := os.environ.get(VARIABLE):
        if len(word) < _SHORTEST:
            raise InputError(f"{VARIABLE} has less than {_SHORTEST} characters", hint="make one: openssl rand -hex 32")
        return hashlib.sha256(word.encode()).digest()
    try:
        return _kept_key(_state_folder())
    except (OSError, RuntimeError) as error:
        raise EnvironmentProblem(
            f"no key for the cache can be kept in {_state_folder()}: {error}",
            hint=f"set XDG_STATE_HOME to a folder of this user, or {VARIABLE} to a secret word",
        ) from error


def _own_key() -> bytes:
    try:
        return _kept_key(_state_folder())
    except (OSError, RuntimeError, EnvironmentProblem):
        return _key_of_this_process()


@cache
def _key_of_this_process() -> bytes:
    return os.urandom(_BYTES)


def _state_folder() -> Path:
    base = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")  # noqa: PTH111 - it never fails
    return Path(base) / "parbake"


def _kept_key(folder: Path) -> bytes:
    """Return the key that a folder of the user's keeps. Raises EnvironmentProblem where others can write to it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    os.close(atomic.own_folder(folder))
    path = folder / _NAME
    with suppress(FileNotFoundError):
        return hashlib.sha256(read_file(path, _MOST)).digest()
    with suppress(FileExistsError):
        atomic.replace(path, f"{os.urandom(_BYTES).hex()}\n", first=True)
    return _kept_key(folder)

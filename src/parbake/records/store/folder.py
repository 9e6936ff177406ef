"""A folder as a store: for the machines that mount it, and for the workers of one machine.

An object appears whole: it is written under a name of its own and gets its real one by link(2), which fails where that
exists, or by rename(2) while a lock is held. Both hold on local file systems and on NFS 4.

Whoever may write to it is a stranger: below the folder itself no link is followed, and only regular files are read.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from parbake.core import atomic
from parbake.core.access import PRIVATE
from parbake.core.errors import EnvironmentProblem, InputError
from parbake.core.files import open_file, read_bounded
from parbake.core.workspace import room_for
from parbake.records.store.port import MOST, ListedObject, StoredObject, TooLarge

_LOCK = ".lock"
_LOCK_FILE = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OWN_FOLDER = 0o700
_DEEPEST = 2  # folders below the store's own, of any object's name
_LATEST = 253402300799.0  # the last second that Python's calendar has; file systems know later ones
_LARGE = "large-"  # the version of an object that nobody reads
_HASHED = 256 << 20  # as large as any object of parbake's
_LOOK = "look at what it is: others who can write to the folder may have put it there; remove it"


class FolderStore:
    """Objects are files below a folder, which is made when the first one is written."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def url(self) -> str:
        """The folder."""
        return str(self._root)

    def get(self, name: str, most: int = MOST) -> StoredObject | None:
        """Return an object, None where there is none. Raises TooLarge where it has more than ``most`` bytes."""
        try:
            with self._opened(name) as file:
                content, large = read_bounded(file, most), _version_of_large(file)
        except FileNotFoundError:
            return None
        if len(content) > most:
            raise TooLarge(name, self.url, most, large)
        return StoredObject(content, _version(content))

    def add(self, name: str, content: bytes) -> bool:
        """Write an object that does not exist yet; False where it does. Raises DiskFull."""
        with suppress(FileNotFoundError), self._folder(name) as (folder, base):
            os.stat(base, dir_fd=folder, follow_symlinks=False)
            return False
        with suppress(FileExistsError):
            self._write(name, content, first=True)
            return True
        return False

    def replace(self, name: str, content: bytes, version: str) -> bool:
        """Write an object whose state is still ``version``; False where it is another one. Raises DiskFull."""
        with suppress(FileNotFoundError), self._locked():
            with self._opened(name) as file:
                large = version.startswith(_LARGE)
                now = _version_of_large(file) if large else _version(read_bounded(file, _HASHED))
            if now == version:
                self._write(name, content, first=False)
                return True
        return False

    def list(self, prefix: str) -> Iterator[ListedObject]:
        """Yield the objects whose names begin so; what is no regular file is none."""
        above, _, beginning = prefix.rpartition("/")
        with suppress(FileNotFoundError), self._folder(f"{above}/x".lstrip("/")) as (folder, _):
            yield from _below(folder, f"{above}/".lstrip("/"), beginning, _DEEPEST)

    def remove(self, name: str) -> None:
        """Remove an object; one that is not there is fine."""
        with suppress(FileNotFoundError), self._folder(name) as (folder, base), self._locked():
            os.unlink(base, dir_fd=folder)

    def _write(self, name: str, content: bytes, *, first: bool) -> None:
        with self._told(name):
            self._root.mkdir(parents=True, exist_ok=True)
            path = self._root / name
            atomic.replace(path, content, mode=PRIVATE, beneath=self._root, folder_mode=_OWN_FOLDER, first=first)

    @contextmanager
    def _folder(self, name: str) -> Iterator[tuple[int, str]]:
        """Yield the folder of an object, open, and its name there. Raises FileNotFoundError where there is none."""
        path = self._root / name
        with self._told(name), atomic.opened(path.parent, beneath=self._root, make=None) as folder:
            yield folder, path.name

    @contextmanager
    def _opened(self, name: str) -> Iterator[BinaryIO]:
        """Yield an object, open. Raises FileNotFoundError where there is none."""
        with self._folder(name) as (folder, base), open_file(base, folder=folder) as file:
            yield file

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self._told("its lock"):
            handle = os.open(self._root / _LOCK, _LOCK_FILE, PRIVATE)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX)
                yield
            finally:
                os.close(handle)

    @contextmanager
    def _told(self, name: str) -> Iterator[None]:
        """Say what is wrong with the folder where it is not as a store is: raises EnvironmentProblem, DiskFull.

        That there is nothing, or something already, is for the caller.
        """
        try:
            with room_for(self._root / name):
                yield
        except (FileNotFoundError, FileExistsError):
            raise
        except PermissionError as error:
            raise EnvironmentProblem(
                f"the store {self._root} belongs to another user, who does not share it",
                hint="run parbake with sudo, or name a folder that this user may write to",
            ) from error
        except InputError as error:
            raise EnvironmentProblem(f"the store {self._root}: {error.message}", hint=error.hint) from error
        except OSError as error:
            raise EnvironmentProblem(f"the store {self._root}: {name}: {error.strerror}", hint=_LOOK) from error


def _below(folder: int, path: str, beginning: str, deeper: int) -> Iterator[ListedObject]:
    """Yield the objects in an open folder, whose path in the store is given, and in those below it."""
    for name in os.listdir(folder):
        if name.startswith(".") or not name.startswith(beginning):
            continue
        with suppress(FileNotFoundError):
            status = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if stat.S_ISREG(status.st_mode):
                at = min(max(status.st_mtime, 0), _LATEST)
                yield ListedObject(f"{path}{name}", status.st_size, datetime.fromtimestamp(at, UTC))
            elif stat.S_ISDIR(status.st_mode) and deeper:
                handle = os.open(name, _FOLDER, dir_fd=folder)
                try:
                    yield from _below(handle, f"{path}{name}/", "", deeper - 1)
                finally:
                    os.close(handle)


def _version(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _version_of_large(file: BinaryIO) -> str:
    status = os.fstat(file.fileno())
    return f"{_LARGE}{status.st_ino}-{status.st_size}-{status.st_mtime_ns}"

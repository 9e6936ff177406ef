"""A folder as a store: for the machines that mount it, and for the workers of one machine.

An object appears whole: it is written under a name of its own and gets its real one by link(2), which fails where that
exists, or by rename(2) while a lock is held. Both hold on local file systems and on NFS 4.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path

from parbake.core import atomic
from parbake.core.access import PRIVATE
from parbake.core.errors import EnvironmentProblem
from parbake.core.workspace import room_for
from parbake.records.store.port import Listed, StoredObject

_LOCK = ".lock"
_OWN_FOLDER = 0o700


class FolderStore:
    """Objects are files below a folder, which is made when the first one is written."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def url(self) -> str:
        """The folder."""
        return str(self._root)

    def get(self, name: str) -> StoredObject | None:
        """Return an object, None where there is none."""
        try:
            content = (self._root / name).read_bytes()
        except FileNotFoundError:
            return None
        except PermissionError as error:
            raise self._no_access() from error
        return StoredObject(content, _version(content))

    def add(self, name: str, content: bytes) -> bool:
        """Write an object that does not exist yet; False where it does. Raises DiskFull."""
        path = self._root / name
        if path.exists():
            return False
        with self._writing(path):
            draft = path.with_name(f".{path.name}.{os.urandom(8).hex()}.new")
            try:
                atomic.replace(draft, content, mode=PRIVATE)
                os.link(draft, path)
            except FileExistsError:
                return False
            finally:
                draft.unlink(missing_ok=True)
        return True

    def replace(self, name: str, content: bytes, version: str) -> bool:
        """Write an object whose state is still ``version``; False where it is another one. Raises DiskFull."""
        path = self._root / name
        with self._writing(path), self._locked():
            held = self.get(name)
            if held is None or held.version != version:
                return False
            atomic.replace(path, content, mode=PRIVATE)
        return True

    def list(self, prefix: str) -> Iterator[Listed]:
        """Yield the objects whose names begin so."""
        folder, _, beginning = prefix.rpartition("/")
        found = (self._root / folder).glob(f"{beginning}*")
        for path in chain.from_iterable(each.rglob("*") if each.is_dir() else (each,) for each in found):
            with suppress(FileNotFoundError):
                status = path.stat()
                if path.is_file() and not path.name.startswith("."):
                    modified = datetime.fromtimestamp(status.st_mtime, UTC)
                    yield Listed(str(path.relative_to(self._root)), status.st_size, modified)

    def remove(self, name: str) -> None:
        """Remove an object; one that is not there is fine."""
        with self._locked():
            (self._root / name).unlink(missing_ok=True)

    @contextmanager
    def _writing(self, path: Path) -> Iterator[None]:
        try:
            with room_for(path):
                path.parent.mkdir(mode=_OWN_FOLDER, parents=True, exist_ok=True)
                yield
        except PermissionError as error:
            raise self._no_access() from error

    @contextmanager
    def _locked(self) -> Iterator[None]:
        handle = os.open(self._root / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, PRIVATE)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def _no_access(self) -> EnvironmentProblem:
        return EnvironmentProblem(
            f"the store {self._root} belongs to another user, who does not share it",
            hint="run parbake with sudo, or name a folder that this user may write to",
        )


def _version(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()

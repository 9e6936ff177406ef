"""Places on disk: the cache, and work folders that belong to one run and vanish with it.

A work folder holds a lock (``flock``) for as long as its run lives. The kernel drops the lock when the process dies,
however it dies, so "no lock" means "left over": the next run and ``parbake clean`` remove it. There is no state file.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from parbake.errors import DeadlineExceeded, EnvironmentProblem
from parbake.run import Deadline

_LOCK = "lock"
WORK = ".parbake"
"""Name of the folder, beside the artefacts, that holds work folders and locks: on the same file system, so that a
finished artefact is renamed into place."""


def cache_folder() -> Path:
    """Return the folder for what can be made again: ``PARBAKE_CACHE``, else the user's cache folder."""
    explicit = os.environ.get("PARBAKE_CACHE")
    if explicit:
        return Path(explicit)
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "parbake"


@contextmanager
def lock(path: Path, *, what: str, timeout: float = 3600.0) -> Iterator[None]:
    """Hold an exclusive lock on a file (made when missing); raises DeadlineExceeded when another holds it too long."""
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = Deadline(timeout, f"waiting for another parbake that works on {what}")
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            while not _try_lock(handle):
                deadline.sleep(0.1)
            if _is_named(handle, path):
                yield
                return
            # The holder before us removed the file: we locked a nameless one and begin again.
        finally:
            os.close(handle)


def _is_named(handle: int, path: Path) -> bool:
    with suppress(FileNotFoundError):
        return path.stat().st_ino == os.fstat(handle).st_ino
    return False


def _try_lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def work_folder(parent: Path, name: str, *, keep: bool = False) -> Iterator[Path]:
    """Make a work folder of this run below ``parent/.parbake`` and remove it at the end (``keep``: for debugging)."""
    folder = parent / WORK / f"{name}.{os.getpid()}.{os.urandom(4).hex()}"
    folder.mkdir(parents=True, mode=0o700)
    with lock(folder / _LOCK, what=str(folder)):
        try:
            yield folder
        finally:
            if not keep:
                remove_tree(folder)


def leftovers(parent: Path) -> tuple[Path, ...]:
    """Return the work folders below ``parent/.parbake`` whose run is dead."""
    found = []
    for folder in sorted((parent / WORK).glob("*.*.*")):
        if folder.is_dir():
            with suppress(DeadlineExceeded), lock(folder / _LOCK, what=str(folder), timeout=0):
                found.append(folder)
    return tuple(found)


def remove_leftovers(parent: Path) -> tuple[Path, ...]:
    """Remove what dead runs left below ``parent`` and return it."""
    removed = leftovers(parent)
    for folder in removed:
        remove_tree(folder)
    return removed


def remove_tree(path: Path) -> None:
    """Remove a folder and all in it; missing is fine. Refuses when something is mounted below it."""
    mounted = [line.split()[4] for line in Path("/proc/thread-self/mountinfo").read_text().splitlines()]
    inside = [point for point in mounted if Path(point).is_relative_to(path.resolve())]
    if inside:
        raise EnvironmentProblem(f"{inside[0]} is still mounted", hint=f"umount {inside[0]}, then run `parbake clean`")

    def writable(function: object, name: str, _error: BaseException) -> None:
        with suppress(OSError):
            Path(name).parent.chmod(stat.S_IRWXU)
            if callable(function):
                function(name)

    shutil.rmtree(path, onexc=writable)


def publish(source: Path, target: Path) -> None:
    """Make a finished file or folder appear under its name at once and for good: sync, rename, sync the folder.

    A file of that name is replaced; a folder of that name must not exist or be empty.
    """
    for path in [*source.rglob("*"), source] if source.is_dir() else [source]:
        if not path.is_symlink():
            _sync(path)
    source.replace(target)
    _sync(target.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

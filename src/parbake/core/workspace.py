"""Places on disk: the cache, and work folders that belong to one run and vanish with it.

A work folder holds a lock (``flock``) for as long as its run lives. The kernel drops the lock when the process dies,
however it dies, so "no lock" means "left over": the next run and ``parbake clean`` remove it. There is no state file.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from parbake.core.access import PRIVATE, folder_mode, private_folder
from parbake.core.atomic import opened, own_folder
from parbake.core.errors import DeadlineExceeded, DiskFull, EnvironmentProblem
from parbake.core.interrupts import guarded
from parbake.core.run import Deadline

_LOCK, _KEPT = "lock", "kept"
_LOCK_FILE = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
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


def part_of(cache: Path, *names: str) -> Path:
    """Make a folder in the cache, for this user alone, when it is missing, and return it.

    It is the one door to the cache, which may come from where others write to it: raises EnvironmentProblem where a
    link stands in the place of the folder, or of one above it in the cache.
    """
    folder = cache
    for name in names:
        folder = private_folder(folder / name, links=False)
    return folder


def parts_of(cache: Path) -> Iterator[Path]:
    """Yield the folder of the cache and those in it in which runs work, none of them behind a link."""
    yield cache
    for depth in ("*", "*/*"):
        for folder in sorted(cache.glob(depth)):
            if not any(each.is_symlink() for each in (folder, folder.parent)) and folder.is_dir():
                yield folder


@contextmanager
def lock(
    path: Path, *, what: str, timeout: float = 3600.0, waiting: Callable[[], object] = lambda: None
) -> Iterator[None]:
    """Hold an exclusive lock on a file, which is created if missing and removed at the end.

    ``waiting`` is called once when another holds it. Raises DeadlineExceeded when that takes longer than ``timeout``
    seconds, EnvironmentProblem for a planted link or a folder ``.parbake`` that others can write to.
    """
    deadline = Deadline(timeout, f"waiting for another parbake that works on {what}")
    told = False
    while True:
        folder, handle = _open_lock(path)
        try:
            while not _try_lock(handle):
                if not told:
                    waiting()
                    told = True
                deadline.sleep(0.1)
            if _is_named(handle, path.name, folder):
                try:
                    yield
                finally:
                    with suppress(FileNotFoundError):
                        os.unlink(path.name, dir_fd=folder)
                    _remove_if_empty(path.parent)
                return
            # The holder before us removed the file: we locked a nameless one and begin again.
        finally:
            os.close(handle)
            os.close(folder)


@guarded
def _open_lock(path: Path) -> tuple[int, int]:
    """Open a lock's folder and the lock, both created if missing; no link is followed to either where it is ours."""
    while True:
        folder = _open_folder(path.parent)
        try:
            return folder, os.open(path.name, _LOCK_FILE | os.O_CREAT, 0o600, dir_fd=folder)
        except FileNotFoundError:
            os.close(folder)  # another run has just removed the folder that it left empty
        except OSError as error:
            os.close(folder)
            if error.errno != errno.ELOOP:
                raise
            raise EnvironmentProblem(f"the lock {path} is a link", hint=f"remove it: rm {path}") from None


def _open_folder(folder: Path) -> int:
    if folder.name == WORK:
        folder.parent.mkdir(parents=True, exist_ok=True)
        return own_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def _remove_if_empty(folder: Path) -> None:
    if folder.name == WORK:
        with suppress(OSError):
            folder.rmdir()


@guarded
def _is_named(handle: int, name: str, folder: int) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.stat(name, dir_fd=folder, follow_symlinks=False), os.fstat(handle))
    return False


@guarded
def _try_lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
@guarded
def work_folder(parent: Path, name: str, *, keep: bool = False) -> Iterator[Path]:
    """Make a work folder of this run below ``parent/.parbake`` and remove it at the end.

    With ``keep``, for debugging, it stays until ``remove_leftovers`` is told to take kept ones as well.
    """
    folder = parent / WORK / f"{name}.{os.getpid()}.{os.urandom(4).hex()}"
    with _looking(parent):  # nobody sees it before it is locked
        folder.mkdir(mode=0o700)
        handle = os.open(folder / _LOCK, _LOCK_FILE | os.O_CREAT, 0o600)
        _try_lock(handle)
    try:
        if keep:
            (folder / _KEPT).touch()
        yield folder
    finally:
        try:
            if not keep:
                _remove_own(folder, parent)
        finally:
            os.close(handle)


def _remove_own(folder: Path, parent: Path) -> None:
    """Remove a work folder, its lock last: killed on the way, it is a leftover as any other."""
    for entry in folder.iterdir():
        if entry.name != _LOCK:
            remove(entry)
    with _looking(parent):
        remove_tree(folder)


def remove(entry: Path) -> None:
    """Remove a file, a link, or a folder with all that is in it (``remove_tree``)."""
    if entry.is_dir() and not entry.is_symlink():
        remove_tree(entry)
    else:
        entry.unlink()


def _looking(parent: Path) -> AbstractContextManager[None]:
    return lock(parent / WORK / _LOCK, what=f"the work folders in {parent}", timeout=60)


def leftovers(parent: Path, *, kept: bool = False) -> tuple[Path, ...]:
    """Return the work folders below ``parent/.parbake`` whose run is dead, with ``kept`` also those kept on purpose."""
    if not os.path.lexists(parent / WORK):
        return ()
    found = []
    with _looking(parent):
        for folder in sorted((parent / WORK).glob("*.*.*")):
            wanted = _is_own(folder) and (kept or not (folder / _KEPT).exists())
            if wanted and _is_free(folder / _LOCK):
                found.append(folder)
        for path in (parent / WORK).glob("*.lock"):
            with suppress(DeadlineExceeded), lock(path, what=str(path), timeout=0):
                pass  # nobody's: leaving it removes it
    return tuple(found)


def _is_own(folder: Path) -> bool:
    status = folder.lstat()
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()


def _is_free(path: Path) -> bool:
    """Whether nobody holds a lock. One that is missing was removed with all else, by a run that was killed then."""
    try:
        handle = os.open(path, _LOCK_FILE)
    except FileNotFoundError:
        return True
    try:
        return _try_lock(handle)
    finally:
        os.close(handle)


def remove_leftovers(parent: Path, *, kept: bool = False) -> tuple[Path, ...]:
    """Remove what dead runs left below ``parent`` (see ``leftovers``) and return it."""
    removed = leftovers(parent, kept=kept)
    for folder in removed:
        discard(folder)
    return removed


def discard(leftover: Path) -> None:
    """Remove what a dead run left."""
    remove_tree(leftover)
    _remove_if_empty(leftover.parent)


def remove_tree(path: Path) -> None:
    """Remove a folder and all in it; missing is fine, also when another removes it meanwhile.

    Raises EnvironmentProblem when something is mounted below it, OSError when something in it cannot be removed.
    """
    mounted = [line.split()[4] for line in Path("/proc/thread-self/mountinfo").read_text().splitlines()]
    inside = [point for point in mounted if Path(point).is_relative_to(path.resolve())]
    if inside:
        raise EnvironmentProblem(f"{inside[0]} is still mounted", hint=f"umount {inside[0]}, then run `parbake clean`")

    def open_up(_function: object, name: str, error: BaseException) -> None:
        """Try once more after making a folder of ours writable, which root never needs."""
        place = Path(name)
        if isinstance(error, FileNotFoundError):
            return
        for folder in (place.parent, place):
            if folder.is_dir() and not folder.is_symlink():
                folder.chmod(stat.S_IRWXU)
        with suppress(FileNotFoundError):
            if place.is_dir() and not place.is_symlink():
                shutil.rmtree(place)
            else:
                place.unlink()

    shutil.rmtree(path, onexc=open_up)


@contextmanager
def room_for(what: Path) -> Iterator[None]:
    """Say of what is written, when there is no space left for it: raises DiskFull that names ``what``."""
    try:
        yield
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        raise DiskFull(
            f"no space left for {what}", hint="free some space, or move `output` or PARBAKE_CACHE to a larger disk"
        ) from error


def publish(source: Path, target: Path, *, mode: int = PRIVATE) -> None:
    """Make a finished file or folder appear under its name at once and for good: sync, rename, sync the folder.

    A file of that name is replaced; a folder of that name must not exist or be empty. Who may use it ``mode`` says, a
    file's: nobody else unless the caller says so, since images and what is made of them may hold secrets.
    """
    with room_for(target):
        source.chmod(folder_mode(mode) if source.is_dir() else mode)
        for path in [*source.rglob("*"), source] if source.is_dir() else [source]:
            if not path.is_symlink():
                _sync(path)
        with opened(target.parent) as folder:
            os.rename(source, target.name, dst_dir_fd=folder)
            os.fsync(folder)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

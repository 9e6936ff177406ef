"""Who on this machine may read what parbake makes: nobody else, unless a Bakefile says so.

Images may hold secrets, and so may all that is made of them: artefacts, bases, cached layers, exports.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Literal

from parbake.core.errors import EnvironmentProblem

PRIVATE: Final = 0o600
ReadableBy = Literal["owner", "group", "everyone"]
_MODES: Final[dict[ReadableBy, int]] = {"owner": PRIVATE, "group": 0o640, "everyone": 0o644}


def mode_of(by: ReadableBy) -> int:
    """Return the mode of a file that is for whom a Bakefile says."""
    return _MODES[by]


def folder_mode(mode: int) -> int:
    """Return the mode of a folder with files of a mode: who may read them may look into it."""
    return mode | (mode & 0o444) >> 2


def private_folder(folder: Path, *, links: bool = True) -> Path:
    """Make a folder that nobody else may look into, when it is missing, and return it; close one of ours to others.

    Raises EnvironmentProblem for a link where there are to be no ``links``: a cache that others wrote may hold some.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        folder.mkdir(mode=folder_mode(PRIVATE))
    if not links and folder.is_symlink():
        raise EnvironmentProblem(f"{folder} is a link: what is kept there would be elsewhere", hint=f"rm {folder}")
    with suppress(OSError), _opened(folder) as handle:  # it is another user's
        if stat.S_IMODE(os.fstat(handle).st_mode) & 0o077:
            os.fchmod(handle, folder_mode(PRIVATE))
    return folder


@contextmanager
def readable(folder: Path, files: Iterable[Path], by: ReadableBy) -> Iterator[None]:
    """Let whom a Bakefile says read files in a folder when the body ends; until then only this user reads new ones.

    The folder is made when it is missing.
    """
    if not folder.exists():
        private_folder(folder)
    try:
        yield
    finally:
        give(folder, files, by)


def give(folder: Path, files: Iterable[Path], by: ReadableBy) -> None:
    """Let whom a Bakefile says, and nobody else, read files in a folder, as far as they are there and ours.

    The folder may hold other things: it is opened to them, and never closed to anybody. A link is not followed, and a
    file that has another name besides is left alone: it may have nothing to do with this.
    """
    mode = _MODES[by]
    for path in files:
        with suppress(OSError), _opened(path) as handle:
            status = os.fstat(handle)
            if stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and stat.S_IMODE(status.st_mode) != mode:
                os.fchmod(handle, mode)
    if mode != PRIVATE:
        with suppress(OSError), _opened(folder) as handle:
            now = stat.S_IMODE(os.fstat(handle).st_mode)
            if now | folder_mode(mode) != now:
                os.fchmod(handle, now | folder_mode(mode))


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """Open what is there, without following a link or waiting for anybody."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        yield handle
    finally:
        os.close(handle)

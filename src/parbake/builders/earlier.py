"""Disks of volumes that lie in a cloud, kept in the cache so that the next bake of their name goes on with them.

A copy of such a disk would take as long as a bake where the file system has no reflinks, and nobody needs it twice: a
bake takes it away and changes it in place, and what it makes of it is kept when all of it is in the cloud. A run that
is killed in between has no disk to give back, and the next one bakes from nothing. The digest of its blocks is
remembered as that of any volume is (``disk.Memory``), outside of it and with a key that lies outside of the cache.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from parbake.core.workspace import lock, part_of
from parbake.machine.disk import Memory, usage

if TYPE_CHECKING:
    from parbake.core.model import Plan

FOLDER: Final = "volumes"
_SUFFIX: Final = ".raw"
MOST: Final = 4
"""Disks that are kept at most: those that were made last."""


def keep(disk: Path, plan: Plan, digest: str, cache: Path) -> None:
    """Keep the disk of a plan, whose list of blocks has a digest, in the place of the one before of its name.

    It is removed instead where the cache's file system would not hold as much again. Raises OSError, DiskFull,
    EnvironmentProblem.
    """
    path = _place(plan, cache)
    with _locked(path):
        total, used = usage(path.parent)
        allocated = disk.stat().st_blocks * 512
        path.unlink(missing_ok=True)
        if total - used < allocated:
            disk.unlink()
            return
        disk.rename(path)
        Memory(path, digest, cache).remember()
        found = sorted(path.parent.glob(f"*{_SUFFIX}"), key=lambda each: each.stat().st_mtime_ns)
    for old in found[:-MOST]:
        with _locked(old):
            old.unlink(missing_ok=True)


def take(target: Path, plan: Plan, digest: str, cache: Path) -> bool:
    """Move the disk of a plan's name to where it may be changed; False where there is none with such a list of blocks.

    One that others have written to stays where it is, until the next one is kept. Raises OSError, EnvironmentProblem.
    """
    path = _place(plan, cache)
    with _locked(path):
        if not path.is_file() or path.is_symlink():
            return False
        memory = Memory(path, digest, cache)
        if not memory.holds(path.stat()):
            return False
        memory.forget()
        path.rename(target)
    return True


def _place(plan: Plan, cache: Path) -> Path:
    """Return where the disk of a name is kept: names of Bakefiles are no names of files."""
    alike = json.dumps([plan.name, str(plan.platform)]).encode()
    return part_of(cache, FOLDER) / f"{hashlib.sha256(alike).hexdigest()[:32]}{_SUFFIX}"


def _locked(path: Path) -> AbstractContextManager[None]:
    return lock(path.with_suffix(".lock"), what=f"the kept disk {path.stem}")

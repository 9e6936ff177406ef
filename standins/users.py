"""A user who is nobody: no root, no capability, nothing to gain (``no_new_privs``), in a folder of their own.

    done = as_program("bake", ..., prefix=ordinary(tmp_path))      # see runs.py; ``tmp_path`` is theirs from then on

Where this checkout, its Python or the folder lie below a folder that only root may pass (a test's own, ``/root``), they
are shown once more at the same place, in a mount namespace of the run's own.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

USER = 12345
_ROOT = Path(__file__).parent.parent
_DROP = [
    "setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all",
    "--no-new-privs", "--",
]  # fmt: skip


def ordinary(folder: Path) -> list[str]:
    """Return what to start a program through, so that it is this user's; ``folder`` becomes theirs, with all in it."""
    for path in (folder, *folder.rglob("*")):
        os.chown(path, USER, USER, follow_symlinks=False)
    wanted = sorted({folder.resolve(), _ROOT, Path(sys.prefix), Path(sys.base_prefix)})
    hidden = [(path, closed) for path in wanted if (closed := _closed(path))]
    steps = [" && ".join([*_steps(hidden), 'exec "$@"'])]
    return ["unshare", "--mount", "--", "/bin/sh", "-ec", *steps, "sh", *_DROP]


def _closed(path: Path) -> Path | None:
    """Return the first folder on the way to a path that others may not pass."""
    return next((each for each in reversed(path.parents) if not each.stat().st_mode & 0o001), None)


def _steps(hidden: list[tuple[Path, Path]]) -> Iterator[str]:
    """Hold what is hidden, cover what hides it, and show it again."""
    if not hidden:
        return
    yield "mount -t tmpfs none /mnt"
    for number, (path, _) in enumerate(hidden):
        yield f"mkdir /mnt/{number} && mount --bind {shlex.quote(str(path))} /mnt/{number}"
    for closed in dict.fromkeys(closed for _, closed in hidden):
        yield f"mount -t tmpfs -o mode=755 none {shlex.quote(str(closed))}"
    for number, (path, _) in enumerate(hidden):
        yield f"mkdir -p {shlex.quote(str(path))} && mount --bind /mnt/{number} {shlex.quote(str(path))}"
    yield "umount -R /mnt"

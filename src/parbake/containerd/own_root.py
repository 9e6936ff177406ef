"""The root of a private containerd: its programs, its own folder and the store, and nothing else of this machine.

A store may be a stranger's. Whatever a link or a database in it says, containerd and all that it starts find only what
is here, and links in the store are not followed at all. Sources: mount_namespaces(7), pivot_root(2).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from parbake.core import mounts

STORE: Final = Path("/store")
"""Where the store is there: short, since the options of an overlay of many layers fill a page."""
OWN: Final = Path("/run/containerd/parbake")
"""Where the daemon's folder is there: below the path that containerd compiles in for the sockets of shims."""
PLACES: Final = "places"
"""A folder of the daemon's for what is mounted into containers; a mount itself, where that is made before."""
# What programs and their libraries lie in; links to /usr on most systems.
_PROGRAMS: Final = ("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32")
_DEVICES: Final = {"null": 3, "zero": 5, "full": 7, "random": 8, "urandom": 9}  # minor numbers of major 1 (mem(4))
# What pulls and AppArmor's loader read.
_FOR_PODS: Final = (
    "etc/hosts", "etc/resolv.conf", "etc/nsswitch.conf", "etc/ssl", "etc/pki", "etc/ca-certificates", "etc/apparmor.d",
)  # fmt: skip
# The last command of the start, in the new namespaces: the folder $1 becomes the root, and what $2 names goes.
_ENTER: Final = 'cd "$1" && pivot_root . old && umount -l $2 && shift 2 && exec "$@"'


def build(at: Path, store: Path, folder: Path, programs: Iterable[Path], *, pods: bool) -> None:
    """Build the root at a folder, which is made; call within ``private_mounts``. Raises EnvironmentProblem."""
    mounts.tmpfs(at, size="64m")
    for name in ("old", "proc", "tmp", "var/tmp"):
        (at / name).mkdir(parents=True)
    for name in _PROGRAMS:
        _show(Path("/", name), at)
    for program in programs:
        for path in {program, program.resolve()}:
            if not (at / path.relative_to("/")).exists():
                mounts.bind(path, at / path.relative_to("/"), "ro", "nodev", "nosuid")
    _show(Path("/etc/ld.so.cache"), at)
    (at / "dev").mkdir()
    for name, minor in _DEVICES.items():
        os.mknod(at / "dev" / name, 0o666 | stat.S_IFCHR, os.makedev(1, minor))
        (at / "dev" / name).chmod(0o666)
    mounts.bind(store, at / STORE.relative_to("/"), "nodev", "nosuid", "nosymfollow")
    mounts.bind(folder, at / OWN.relative_to("/"), "nodev", "nosuid")
    if (folder / PLACES).is_dir():
        mounts.bind(folder / PLACES, at / OWN.relative_to("/") / PLACES, "nodev", "nosuid")
    if not pods:
        mounts.bind(Path("/proc"), at / "proc")  # umount(8) reads it
    else:
        mounts.bind(Path("/sys"), at / "sys", everything=True)
        for name in _FOR_PODS:
            _show(Path("/", name), at)


def entering(at: Path, command: list[str], *, pids: bool) -> list[str]:
    """Return what runs ``command`` in a mount namespace of its own with ``at`` as its root.

    ``pids``: it is started in a PID namespace of its own, which ``/proc`` shows; otherwise there is no ``/proc``.
    """
    own = ["unshare", "--mount", "--propagation", "private", *([f"--mount-proc={at}/proc"] if pids else []), "--"]
    return [*own, "/bin/sh", "-c", _ENTER, "sh", str(at), "/old" if pids else "/old /proc", *command]


def _show(path: Path, at: Path) -> None:
    """Show a file or folder of this machine for reading, as the same link where it is one below the root."""
    there = at / path.relative_to("/")
    if path.is_symlink() and path.parent == Path("/"):
        there.symlink_to(path.readlink())
    elif path.exists():
        mounts.bind(path, there, "ro", "nodev", "nosuid")

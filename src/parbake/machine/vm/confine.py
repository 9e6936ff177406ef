"""How little QEMU may do: a guest is strangers' software, and what breaks out of it is in QEMU's process.

QEMU runs as a user that nobody else is, where parbake is root; its files are opened here and lent to it, so that it
needs no right to anything; and it may not start programs or gain privileges (seccomp). Sources: QEMU's manual,
"Security" and ``-sandbox``, ``-add-fd``; systemd's "Users, Groups, UIDs and GIDs on systemd Systems".
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, Protocol, Self, override

from parbake.core.run import CAP_SETGID, CAP_SETUID, User, capable

SANDBOX: Final = ("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")

_KVM: Final = Path("/dev/kvm")
_FIRST_USER: Final = 0x70620000  # in a range that systemd's list says nobody uses; a parbake process has one of its own
_NOBODY: Final = 65534  # where a container has no such number


def user() -> User | None:
    """Return whom QEMU runs as; None: as ourselves, who are not root, or root that may not become another user."""
    if not capable(CAP_SETGID, CAP_SETUID) or Path("/proc/self/setgroups").read_text().strip() == "deny":
        return None
    users, groups = (Path(f"/proc/self/{kind}_map").read_text() for kind in ("uid", "gid"))
    wanted = (_FIRST_USER | (os.getpid() & 0xFFFF), _NOBODY)
    number = next((each for each in wanted if is_mapped(each, users) and is_mapped(each, groups)), None)
    if number is None:
        return None
    kvm = _KVM.stat() if _KVM.exists() else None
    # As a distribution would let a user at it: by the device's group, which is not root's.
    lent = kvm is not None and kvm.st_gid != 0 and kvm.st_mode & 0o066 == 0o060
    return User(number, (kvm.st_gid,) if kvm and lent else ())


def is_mapped(number: int, table: str) -> bool:
    """Whether a user namespace knows a number (user_namespaces(7), uid_map). Pure."""
    rows = [[int(word) for word in line.split()] for line in table.splitlines()]
    return any(first <= number < first + count for first, _, count in rows)


class Lender(Protocol):
    """Names files for QEMU."""

    def lend(self, path: Path, flags: int) -> str:
        """Return the name of a file."""

    def lend_log(self, path: Path) -> str:
        """Return the name of a file for QEMU's own log."""

    def kvm(self) -> str:
        """Return QEMU's option for hardware virtualisation."""


class PathNames(Lender):
    """Opens nothing: for who only asks what QEMU would be told, where a file's name says nothing."""

    @override
    def lend(self, path: Path, flags: int) -> str:
        return ""

    @override
    def lend_log(self, path: Path) -> str:
        return ""

    @override
    def kvm(self) -> str:
        return "kvm"


class Files(Lender):
    """Files that are opened here and lent to QEMU under names of its own. Use with ``with``, which closes them."""

    def __init__(self, borrower: User | None) -> None:
        self.borrower = borrower
        self.handles: list[int] = []
        self._sets: list[int] = []  # those of them that have a name of QEMU's

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close our ends."""
        handles, self.handles = self.handles, []
        for handle in handles:
            os.close(handle)

    @property
    def arguments(self) -> list[str]:
        """QEMU's arguments that make the names known."""
        return [word for each in self._sets for word in ("-add-fd", f"fd={each},set={each}")]

    @override
    def lend(self, path: Path, flags: int) -> str:
        """Open a file and return its name for QEMU. Raises OSError."""
        self._sets.append(self._open(path, flags))
        return f"/dev/fdset/{self._sets[-1]}"

    @override
    def lend_log(self, path: Path) -> str:
        """Make a file for QEMU's own log, which it opens by a name of the system's, and so must own."""
        handle = self._open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        if self.borrower is not None:
            os.fchown(handle, self.borrower.number, -1)
        return f"/dev/fd/{handle}"

    def _open(self, path: Path, flags: int) -> int:
        self.handles.append(os.open(path, flags | os.O_CLOEXEC, 0o600))
        return self.handles[-1]

    @override
    def kvm(self) -> str:
        """Return QEMU's option for hardware virtualisation; lends the device to who cannot open it."""
        mode = _KVM.stat().st_mode
        if self.borrower is None or self.borrower.groups or mode & 0o006 == 0o006:
            return "kvm"
        return f"kvm,device={self.lend(_KVM, os.O_RDWR)}"  # QEMU 9 and later

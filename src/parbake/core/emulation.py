"""Programs of another architecture on this machine: QEMU's user mode, known to the kernel for as long as it is needed.

The kernel starts an interpreter for programs of a foreign ELF machine when it has been told so (binfmt_misc). Each run
registers an entry of its own, so that runs side by side are in nobody's way, and takes it back. Sources: the kernel's
``Documentation/admin-guide/binfmt-misc.rst``; QEMU's ``scripts/qemu-binfmt-conf.sh`` (magic and mask); fsopen(2).
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from parbake.core.errors import EnvironmentProblem
from parbake.core.model import Platform
from parbake.core.run import find, need, need_root
from parbake.core.workspace import cache_folder, discard, leftovers, part_of, parts_of, work_folder

_KNOWN = Path("/proc/sys/fs/binfmt_misc")
_FOLDER = "emulation"
_PREFIX = "parbake-"
_CLASS, _TYPE = r"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00", r"\x02\x00"
# F: the interpreter is opened now and found in every root; P: the program learns the name that it was called by.
_FLAGS = "PF"
# Numbers of system calls, which all architectures share, and arguments of theirs (linux/mount.h).
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432
_CLOEXEC, _CREATE = 1, 6
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class _Kind:
    """How the kernel tells an architecture's programs, and what runs them."""

    interpreter: str
    machine: str
    mask: str

    @property
    def magic(self) -> str:
        """The first 20 bytes of an executable, as binfmt_misc reads them."""
        return f"{_CLASS}{_TYPE}{self.machine}"


_KINDS = {
    "amd64": _Kind(
        "qemu-x86_64",
        r"\x3e\x00",
        r"\xff\xff\xff\xff\xff\xfe\xfe\xfc\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff",
    ),
    "arm64": _Kind(
        "qemu-aarch64",
        r"\xb7\x00",
        r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff",
    ),
}


def is_known(architecture: str, entries: Iterable[str]) -> bool:
    """Whether the kernel runs an architecture's programs, in any root, by what its entries say of themselves. Pure."""
    machine = bytes.fromhex(_KINDS[architecture].machine.replace(r"\x", "")).hex()
    for entry in entries:
        fields = dict(re.findall(r"^(flags:|magic) *(\S*)$", entry, re.MULTILINE))
        if entry.startswith("enabled") and "F" in fields.get("flags:", "") and fields.get("magic", "")[36:] == machine:
            return True
    return False


def registration(name: str, architecture: str, interpreter: str) -> str:
    """Return what registers an interpreter with the kernel under a name. Pure."""
    kind = _KINDS[architecture]
    return f":{name}:M:0:{kind.magic}:{kind.mask}:{interpreter}:{_FLAGS}"


@contextmanager
def runnable(platform: Platform, *, needed: bool = True) -> Iterator[None]:
    """Let this machine run a platform's programs meanwhile, also in other roots, where it does not by itself.

    A run that is killed leaves the entry to the next one, or to ``sweep``. Raises EnvironmentProblem where the
    emulator or the kernel's support is missing, and unless we are root; not where it may not be ``needed``.
    """
    with ExitStack() as stack:
        try:
            _register(platform, stack)
        except EnvironmentProblem:
            if needed:
                raise
        yield


def _register(platform: Platform, stack: ExitStack) -> None:
    architecture = platform.architecture
    if architecture == Platform.host().architecture or architecture not in _KINDS or is_known(architecture, _others()):
        return
    need_root(f"running programs for {platform} on this machine")
    interpreter = _interpreter(architecture)
    sweep()
    work = stack.enter_context(work_folder(part_of(cache_folder(), _FOLDER), architecture))
    try:
        entries = stack.enter_context(_entries())  # open for as long as the entry is to be there
        stack.callback(_remove, work, entries)  # first: Ctrl-C may come when it is just registered
        _write(entries, "register", registration(_name(work), architecture, interpreter))
    except OSError as error:
        raise EnvironmentProblem(
            f"the kernel does not let {interpreter} run programs for {platform}: {error.strerror}",
            hint="modprobe binfmt_misc; in a container, run it privileged",
        ) from error


def sweep() -> None:
    """Take back what runs that were killed had registered."""
    for folder in (each for part in parts_of(cache_folder()) if part.name == _FOLDER for each in leftovers(part)):
        with suppress(OSError), _entries() as entries:
            _remove(folder, entries)
        discard(folder)


def _others() -> Iterator[str]:
    """Yield what the kernel says of each entry that stays: a run's of ours may end at any moment."""
    with suppress(OSError):
        for path in _KNOWN.iterdir():
            if path.name not in {"register", "status"} and not path.name.startswith(_PREFIX):
                with suppress(OSError):
                    yield path.read_text()


def _interpreter(architecture: str) -> str:
    """Return the emulator: it must be static, since it is started in roots that have no libraries of this machine."""
    name = _KINDS[architecture].interpreter
    return find(f"{name}-static") or need(name)  # Debian 13's is static under its plain name


def _name(work: Path) -> str:
    """Return the name of a run's entry: that of its work folder."""
    return _PREFIX + work.name


@contextmanager
def _entries() -> Iterator[int]:
    """Open the kernel's file system of entries (a handle), wherever it is mounted or not: nothing of that changes.

    Since Linux 6.7 it forgets all entries when nobody has it open or mounted; the kernel loads its module for us.
    """
    context = _call(_FSOPEN, b"binfmt_misc", _CLOEXEC)
    try:
        _call(_FSCONFIG, context, _CREATE, None, None, 0)
        mounted = _call(_FSMOUNT, context, _CLOEXEC, 0)
    finally:
        os.close(context)
    try:
        yield mounted
    finally:
        os.close(mounted)


def _call(number: int, *arguments: object) -> int:
    result = int(_libc.syscall(number, *arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _remove(work: Path, entries: int) -> None:
    with suppress(OSError):  # a restart of the machine has forgotten it
        _write(entries, _name(work), "-1")


def _write(entries: int, name: str, text: str) -> None:
    entry = os.open(name, os.O_WRONLY | os.O_CLOEXEC, dir_fd=entries)
    try:
        os.write(entry, text.encode())
    finally:
        os.close(entry)

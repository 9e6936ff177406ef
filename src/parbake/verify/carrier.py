"""The machine that carries a volume: the default base, which boots once in emulation, and resumes from then on.

To boot it takes most of a volume's verification in emulation, and is the same for each of them: the volume comes after
it. So the machine is kept as it is then (its agent answers, its container runtime has not started), beside the base in
the cache, and the machines of later verifications begin there. What is proven is the same: the runtime starts on the
volume, and its images do.

A state is for machines that are equal to the one that was kept: QEMU, its firmware, all that it is told, and the base.
Any other has one of its own. One that does not resume is removed, and the machine boots. With hardware virtualisation a
boot takes seconds, and a state would depend on the host's processor as well: none is kept.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import cached_property
from pathlib import Path
from typing import Final

from blake3 import blake3

from parbake.core import sealed
from parbake.core.access import PRIVATE
from parbake.core.errors import DeadlineExceeded, DiskFull, EnvironmentProblem, MachineError
from parbake.core.files import open_file
from parbake.core.model import GIB
from parbake.core.workspace import lock, publish, remove_leftovers, remove_tree, work_folder
from parbake.machine.vm import Machine, Saved

KEPT: Final = 4
"""States that stay beside a base: of its architectures, and of what it was told before parbake or QEMU changed."""

_REVISION: Final = 1  # raise it when what is done before a machine is kept changes
_SUFFIX: Final = ".state"
_ROOM: Final = GIB  # free bytes without which nothing is kept: it is worth less than what fills the disk
_IDLE: Final = 60.0  # seconds with hardware virtualisation until all that starts with the base has started
_FOUND: Final = 30.0


class Carrier:
    """Starts a machine of the default base whose one drive, the volume, is not plugged in yet.

    ``tell`` hears when a state was of no use.
    """

    def __init__(self, machine: Machine, tell: Callable[[str], object]) -> None:
        self._machine, self._tell = machine, tell

    @property
    def resumes(self) -> bool:
        """Whether there is a state to resume from."""
        return self._machine.accelerator == "tcg" and self._state.is_dir()

    @cached_property
    def _state(self) -> Path:
        disk = self._machine.disk
        # A base that was made again by the same recipe has other bytes, and another time.
        status = disk.stat()
        text = f"{_REVISION} {status.st_size} {status.st_mtime_ns} {self._machine.shape}"
        return disk.with_name(f"{disk.stem}.{hashlib.sha256(text.encode()).hexdigest()[:16]}{_SUFFIX}")

    def start(self, stack: ExitStack, device: str) -> None:
        """Enter the machine, with its agent ready and the volume plugged in as ``device``; raises what a boot does."""
        if self.resumes and self._resumed(stack, device):
            return
        stack.enter_context(self._machine)
        self._machine.wait_agent()
        if self._machine.accelerator == "tcg":
            self._keep()
        self._plug(device)

    def _plug(self, device: str) -> None:
        self._machine.plug()
        limit = int(_FOUND * self._machine.stretch)
        self._machine.guest.check(["udevadm", "wait", "--settle", f"--timeout={limit}", device], timeout=limit)

    def _resumed(self, stack: ExitStack, device: str) -> bool:
        """Resume the machine; return whether it did."""
        state = self._state
        if not _is_ours(state):
            self._tell(f"{state} has no seal of this user's key: the machine boots")
            with suppress(OSError, EnvironmentProblem):
                _remove(state)
            return False
        self._machine.saved = Saved(state)
        try:
            with ExitStack() as attempt:
                attempt.enter_context(self._machine)
                self._machine.wait_agent()
                self._plug(device)
                stack.push(attempt.pop_all())
        except (MachineError, EnvironmentProblem, OSError) as error:
            self._tell(f"the machine did not resume, and boots: {error}")
            with suppress(OSError, EnvironmentProblem):
                _remove(state)
            return False
        finally:
            self._machine.saved = None
        with suppress(OSError):  # another has just removed it
            os.utime(state)
        return True

    def _keep(self) -> None:
        """Keep the machine's state, unless another is about to, or there is little room. Nothing fails without one."""
        state = self._state
        folder = state.parent
        try:
            if shutil.disk_usage(folder).free < _ROOM:
                return
            with lock(state.with_suffix(".lock"), what="the state of a machine", timeout=0):
                if state.exists():
                    return
                remove_leftovers(folder)
                with work_folder(folder, "state") as work:
                    made = work / "state"
                    made.mkdir()
                    if self._is_idle():
                        self._machine.save(made)
                        for path in made.iterdir():
                            path.chmod(PRIVATE)
                        sealed.seal(state, digest_of(made))
                        publish(made, state)
                        self._prune(folder)
        except (MachineError, EnvironmentProblem, DeadlineExceeded, DiskFull, OSError) as error:
            self._tell(f"the machine's state is not kept: {error}")

    def _is_idle(self) -> bool:
        limit = _IDLE * self._machine.stretch
        said = self._machine.guest.run(["systemctl", "is-system-running", "--wait"], timeout=limit)
        return said.output.strip() == "running"

    @staticmethod
    def _prune(folder: Path) -> None:
        """Remove all but the states that were used last."""
        states = sorted(folder.glob(f"*{_SUFFIX}"), key=lambda state: state.stat().st_mtime, reverse=True)
        for state in states[KEPT:]:
            _remove(state)


def digest_of(state: Path) -> str:
    """Return a digest of a state's files, in order; raises OSError, also for what is no regular file."""
    digest = blake3()
    for path in sorted(state.iterdir()):
        with open_file(path, links=False) as file:
            digest.update(f"{path.name}\0{os.fstat(file.fileno()).st_size}\0".encode())
            while data := file.read(GIB >> 6):
                digest.update(data)
    return digest.hexdigest()


def _is_ours(state: Path) -> bool:
    with suppress(OSError):
        return sealed.is_sealed(state, digest_of(state))
    return False


def _remove(state: Path) -> None:
    remove_tree(state)
    sealed.loosen(state)

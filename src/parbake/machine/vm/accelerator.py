"""Whether this machine can virtualise in hardware: found out by doing it, since ``/dev/kvm`` may exist and not work."""

from __future__ import annotations

import functools
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Literal

from parbake.core import run
from parbake.core.errors import MachineError
from parbake.core.model import Platform
from parbake.machine.vm.boards import Board, board_of
from parbake.machine.vm.confine import SANDBOX, Files, user
from parbake.machine.vm.qmp import Qmp

Accelerator = Literal["kvm", "tcg"]

STRETCH = {"kvm": 1.0, "tcg": 10.0}
"""Factor for time limits: emulation runs code about that much slower."""

EMULATION = "tcg,thread=multi,tb-size=1024"
"""QEMU's accelerator without hardware virtualisation; ``tb-size`` is the most MiB of translated code that it keeps.

A boot to containerd alone makes 240 MiB of code; when there is no room left, all of it is translated anew.
"""

_PROBE_SECONDS = 0.5  # enough for the firmware to run many thousand instructions


def cpu(accelerator: Accelerator, board: Board) -> str:
    """Return QEMU's processor model: the host's own, or what emulation does well."""
    return "host" if accelerator == "kvm" else board.emulated


@functools.cache
def accelerator(architecture: str = "") -> Accelerator:
    """Return what machines of an architecture (empty: this one's) run on here.

    That is ``kvm`` when a machine really ran on it for an instant, else ``tcg``: always for another architecture than
    this machine's. Raises EnvironmentProblem where QEMU or a firmware that each machine needs is missing.
    """
    board = board_of(architecture)
    run.need(board.qemu)
    if not board.bios:
        board.uefi()
    if board.architecture != Platform.host().architecture:
        return "tcg"
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    if board.architecture == "amd64" and not virtualises(Path("/proc/cpuinfo").read_text()):
        return "tcg"
    return "kvm" if _runs_on_kvm(board) else "tcg"


def virtualises(cpuinfo: str) -> bool:
    """Whether an x86 processor says that it virtualises (Intel's vmx, AMD's svm).

    A ``/dev/kvm`` without either belongs to a hypervisor of another kind (such as PVM), which starts machines and then
    may leave them hanging in their firmware or boot loader: seen with GRUB, for minutes.
    """
    flags = {flag for line in cpuinfo.splitlines() if line.startswith("flags") for flag in line.split()}
    return not flags.isdisjoint({"vmx", "svm"})


def _runs_on_kvm(board: Board) -> bool:
    ours, theirs = socket.socketpair()
    files = Files(user())  # as machines will: what they may not open does not count
    command = [
        board.qemu, "-nodefaults", "-no-user-config", "-display", "none", "-m", "64",
        *SANDBOX, "-machine", board.machine, "-accel", files.kvm(), "-cpu", cpu("kvm", board),
        "-chardev", f"socket,id=qmp,fd={theirs.fileno()}", "-mon", "chardev=qmp,mode=control",
        *files.arguments,
    ]  # fmt: skip
    handles = (theirs.fileno(), *files.handles)
    with (
        ours,
        theirs,
        files,
        run.Process(command, log=Path(os.devnull), pass_fds=handles, user=files.borrower),
        suppress(MachineError),
    ):
        theirs.close()
        qmp = Qmp(ours).greet()
        run.sleep(_PROBE_SECONDS)
        return bool(qmp.execute("query-status")["running"])
    return False

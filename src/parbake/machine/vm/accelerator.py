"""Whether this machine can virtualise in hardware: found out by doing it, since ``/dev/kvm`` may exist and not work."""

from __future__ import annotations

import functools
import os
import platform
import socket
from contextlib import suppress
from pathlib import Path
from typing import Literal

from parbake.core import run
from parbake.core.errors import EnvironmentProblem, MachineError
from parbake.machine.vm.confine import SANDBOX, Files, user
from parbake.machine.vm.qmp import Qmp

Accelerator = Literal["kvm", "tcg"]

STRETCH = {"kvm": 1.0, "tcg": 10.0}
"""Factor for time limits: emulation runs code about that much slower."""

EMULATION = "tcg,thread=multi,tb-size=1024"
"""QEMU's accelerator without hardware virtualisation; ``tb-size`` is the most MiB of translated code that it keeps.

A boot to containerd alone makes 240 MiB of code; when there is no room left, all of it is translated anew.
"""

QEMU = "qemu-system-x86_64"
_PROBE_SECONDS = 0.5  # enough for the firmware to run many thousand instructions


def cpu(accelerator: Accelerator) -> str:
    """Return QEMU's CPU model: the host's own, or all that emulation can do (Amazon Linux needs x86-64-v2)."""
    return "host" if accelerator == "kvm" else "max"


@functools.cache
def accelerator() -> Accelerator:
    """Return what machines run on here: ``kvm`` when a machine really ran on it for an instant, else ``tcg``.

    Raises EnvironmentProblem where QEMU is missing or the machine is not x86-64.
    """
    if platform.machine() != "x86_64":
        raise EnvironmentProblem(
            f"machines are booted on x86-64 hosts only; this one is {platform.machine()}",
            hint="verify the artefact on an x86-64 machine",
        )
    run.need(QEMU)
    if not os.access("/dev/kvm", os.R_OK | os.W_OK) or not virtualises(Path("/proc/cpuinfo").read_text()):
        return "tcg"
    return "kvm" if _runs_on_kvm() else "tcg"


def virtualises(cpuinfo: str) -> bool:
    """Whether a processor says that it virtualises (Intel's vmx, AMD's svm).

    A ``/dev/kvm`` without either belongs to a hypervisor of another kind (such as PVM), which starts machines and then
    may leave them hanging in their firmware or boot loader: seen with GRUB, for minutes.
    """
    flags = {flag for line in cpuinfo.splitlines() if line.startswith("flags") for flag in line.split()}
    return not flags.isdisjoint({"vmx", "svm"})


def _runs_on_kvm() -> bool:
    ours, theirs = socket.socketpair()
    files = Files(user())  # as machines will: what they may not open does not count
    command = [
        QEMU, "-nodefaults", "-no-user-config", "-display", "none", "-m", "64",
        *SANDBOX, "-machine", "q35", "-accel", files.kvm(), "-cpu", cpu("kvm"),
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

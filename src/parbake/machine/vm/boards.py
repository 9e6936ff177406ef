"""QEMU's arguments for a machine of each architecture. Everything else about a machine is the same.

Sources: QEMU's manual, "virt" generic virtual platform and "x86 CPU models"; ``qemu-system-aarch64 -machine help``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from parbake.core.errors import EnvironmentProblem
from parbake.core.model import Platform


@dataclass(frozen=True, slots=True)
class Board:
    """QEMU's words for one architecture.

    ``machine`` is its board, ``emulated`` the processor in emulation, ``serial`` the second serial line.
    ``bios`` says whether a BIOS can start it; ``firmware`` are pairs of UEFI code and its template of variables, from
    the Debian package ``package`` first.
    """

    architecture: str
    qemu: str
    machine: str
    emulated: str
    serial: str
    bios: bool
    package: str
    firmware: tuple[tuple[str, str], ...]

    def uefi(self) -> tuple[Path, Path]:
        """Return the UEFI firmware's code and its template of variables; raises EnvironmentProblem."""
        for pair in self.firmware:
            code, variables = map(Path, pair)
            if code.is_file() and variables.is_file():
                return code, variables
        raise EnvironmentProblem(
            f"the UEFI firmware for machines of {self.architecture} is not installed",
            hint=f"apt-get install {self.package}",
        )


BOARDS = {
    board.architecture: board
    for board in (
        Board(
            architecture="amd64",
            qemu="qemu-system-x86_64",
            # graphics=off: the firmware speaks on the serial console. sata=off: no controller with six empty ports,
            # which kernels and udev would look at, port by port.
            machine="q35,graphics=off,sata=off",
            # All that emulation can do (Amazon Linux needs x86-64-v2), but for what says that copying single bytes is
            # quick: kernels then clear and copy memory byte by byte, which is slow here, a tenth of a boot. Without
            # virtualisation, nobody loads KVM.
            emulated="max,erms=off,fsrm=off,svm=off",
            serial="isa-serial",
            bios=True,
            package="ovmf",
            firmware=(
                ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
                ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
                ("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"),
            ),
        ),
        Board(
            architecture="arm64",
            qemu="qemu-system-aarch64",
            machine="virt,gic-version=max",
            # To sign pointers takes a quarter of a boot, and programs for processors without it (Graviton2) do not need
            # it. The vector registers of SVE and SME would be saved at each switch between programs.
            emulated="max,pauth=off,sve=off,sme=off",
            serial="pci-serial",
            bios=False,
            package="qemu-efi-aarch64",
            firmware=(
                ("/usr/share/AAVMF/AAVMF_CODE.no-secboot.fd", "/usr/share/AAVMF/AAVMF_VARS.fd"),
                ("/usr/share/AAVMF/AAVMF_CODE.fd", "/usr/share/AAVMF/AAVMF_VARS.fd"),
                (
                    "/usr/share/edk2/aarch64/QEMU_EFI-silent-pflash.raw",
                    "/usr/share/edk2/aarch64/vars-template-pflash.raw",
                ),
            ),
        ),
    )
}


def boots(platform: Platform) -> bool:
    """Whether there are machines for a platform. Pure."""
    return platform.os == "linux" and platform.architecture in BOARDS


def board_of(architecture: str = "") -> Board:
    """Return what makes a machine of an architecture (empty: this machine's); raises EnvironmentProblem without one."""
    wanted = architecture or Platform.host().architecture
    if wanted not in BOARDS:
        raise EnvironmentProblem(
            f"parbake cannot boot a machine for {wanted}: it supports {' and '.join(BOARDS)}",
            hint="verify the artefact on a node",
        )
    return BOARDS[wanted]

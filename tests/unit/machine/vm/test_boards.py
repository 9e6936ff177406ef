"""QEMU's command lines for machines of each architecture, on hosts of each."""

from __future__ import annotations

import itertools
import platform
import shutil
import sys
from pathlib import Path

import pytest

from parbake.core import run
from parbake.core.errors import EnvironmentProblem
from parbake.core.model import Platform
from parbake.machine.vm import Machine, boards, boots, machine
from parbake.machine.vm.accelerator import accelerator, cpu
from parbake.machine.vm.boards import BOARDS, board_of
from parbake.machine.vm.confine import Files

MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
ESP = b"label: gpt\ntype=C12A7328-F81F-11D2-BA4B-00A0C93EC93B\n"


@pytest.fixture(autouse=True)
def nothing_is_known() -> None:
    accelerator.cache_clear()


def command_of(folder: Path, architecture: str) -> list[str]:
    disk = folder / "disk.raw"
    with disk.open("wb") as file:
        file.truncate(16 << 20)
    run.run(["sfdisk", "--quiet", str(disk)], stdin=ESP)
    folder = folder / "machine"
    folder.mkdir()
    with Files(None) as files:
        machine = Machine(disk, folder, architecture=architecture)
        machine._prepare()
        return machine._command({"serial": 7, "agent": 8, "qmp": 9}, files)


def value(command: list[str], option: str) -> list[str]:
    return [after for word, after in itertools.pairwise(command) if word == option]


@pytest.mark.parametrize("host", MACHINES)
@pytest.mark.parametrize("architecture", MACHINES)
@pytest.mark.parametrize("kvm", [True, False])
def test_a_machine_of_each_on_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str, architecture: str, *, kvm: bool
) -> None:
    """Where the host is of the same architecture it may virtualise; another one is emulated, whatever there is."""
    monkeypatch.setattr(platform, "machine", lambda: MACHINES[host])
    module = sys.modules["parbake.machine.vm.accelerator"]  # its package has a function of this name
    monkeypatch.setattr(module, "_runs_on_kvm", lambda _: True)
    monkeypatch.setattr(module, "virtualises", lambda _: True)
    monkeypatch.setattr("os.access", lambda path, _: kvm and path == "/dev/kvm")
    monkeypatch.setattr(Files, "kvm", lambda _: "kvm")
    monkeypatch.setattr(run, "need", str)
    firmware = tmp_path / "firmware"
    firmware.write_bytes(b"")
    monkeypatch.setattr(boards.Board, "uefi", lambda _: (firmware, firmware))
    fast = kvm and host == architecture
    assert accelerator(architecture) == ("kvm" if fast else "tcg")
    monkeypatch.setattr(machine, "accelerator", accelerator)
    command = command_of(tmp_path, architecture)
    board = BOARDS[architecture]
    assert command[0] == {"amd64": "qemu-system-x86_64", "arm64": "qemu-system-aarch64"}[architecture]
    assert value(command, "-machine")[0] == board.machine
    assert value(command, "-cpu") == ["host" if fast else board.emulated]
    assert value(command, "-accel")[0].startswith("kvm" if fast else "tcg")
    assert f"{board.serial},chardev=serial" in value(command, "-device")
    assert "pflash0=code,pflash1=variables" in value(command, "-machine")
    assert value(command, "-nic") == ["none"]


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(EnvironmentProblem) as missing:
        accelerator("arm64")
    assert "qemu-system-aarch64 is not installed" in missing.value.message
    assert "apt-get install qemu-system-arm" in missing.value.hint
    monkeypatch.setattr(run, "need", str)
    monkeypatch.setattr(Path, "is_file", lambda _: False)
    with pytest.raises(EnvironmentProblem) as missing:
        accelerator("arm64")
    assert "UEFI firmware for machines of arm64" in missing.value.message
    assert missing.value.hint == "apt-get install qemu-efi-aarch64"
    with pytest.raises(EnvironmentProblem, match="cannot boot a machine for riscv64"):
        board_of("riscv64")


def test_which_platforms_have_machines() -> None:
    texts = ("linux/amd64", "linux/arm64", "linux/arm64/v9", "linux/riscv64", "windows/amd64")
    assert [boots(Platform.parse(text)) for text in texts] == [True, True, True, False, False]
    assert board_of() is BOARDS[Platform.host().architecture]
    assert cpu("kvm", BOARDS["arm64"]) == "host"

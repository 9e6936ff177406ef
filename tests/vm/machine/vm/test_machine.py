"""Machines that end within seconds: what the console shows, how they fail, and that none outlives its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from parbake.core import run
from parbake.core.errors import BadBase, DeadlineExceeded, EnvironmentProblem, MachineError
from parbake.machine.vm import Machine, agent_seed

pytestmark = pytest.mark.vm

# 16-bit code for a boot sector: print the text that follows to the first serial line, then halt for good.
PRINT = bytes.fromhex(
    "fa31c08ed8be1b7c"  # cli; xor ax,ax; mov ds,ax; mov si,0x7c1b
    "baf803"  # mov dx,0x3f8
    "ac84c07403eeebf8"  # next: lodsb; test al,al; jz stop; out dx,al; jmp next
    "f4ebfd"  # stop: hlt; jmp stop
    "9090909090"
)
# ... or to the keyboard controller, which resets the machine.
RESET = bytes.fromhex("b0fee664")  # mov al,0xfe; out 0x64,al


def sector(folder: Path, code: bytes) -> Path:
    """Make a disk with a boot sector and one partition."""
    disk = folder / "disk.raw"
    entry = bytes.fromhex("80000200830020000100000000080000")
    disk.write_bytes(code.ljust(446, b"\0") + entry.ljust(64, b"\0") + b"\x55\xaa" + bytes(1 << 20))
    return disk


def pid_of(machine: Machine) -> int:
    assert machine._process._popen is not None
    return machine._process._popen.pid


def test_a_panic_is_reported_at_once_with_the_console(tmp_path: Path) -> None:
    disk = sector(tmp_path, PRINT + b"loading\r\n\x1b[31mKernel panic - not syncing: no root\x1b[0m\r\n\0")
    before = disk.read_bytes()
    with Machine(disk, tmp_path / "vm", seed=agent_seed()) as machine:
        with pytest.raises(MachineError) as caught:
            machine.wait_agent()
        assert "the kernel panicked" in caught.value.message
        assert "loading\nKernel panic - not syncing: no root" in caught.value.message
        assert machine.alive
    assert not machine.alive
    assert disk.read_bytes() == before


def test_a_machine_that_switches_itself_off_is_no_boot(tmp_path: Path) -> None:
    with Machine(sector(tmp_path, RESET), tmp_path / "vm") as machine:
        with pytest.raises(MachineError, match="switched itself off before its guest agent started"):
            machine.wait_agent()
        machine.wait_off(10)
        assert machine.power_off()


def test_qemu_that_breaks_down_is_no_fault_of_the_disk(tmp_path: Path) -> None:
    with Machine(sector(tmp_path, PRINT + b"\0"), tmp_path / "vm") as machine:
        qemu = pid_of(machine)
        os.kill(qemu, signal.SIGSTOP)  # it hears the question and ends before it answers
        killer = threading.Timer(1, os.kill, (qemu, signal.SIGKILL))
        killer.start()
        with pytest.raises(EnvironmentProblem, match=r"(?s)QEMU failed while disk.raw booted.* code -9"):
            machine.wait_agent()
        killer.join()


def test_silence_ends_at_the_limit(tmp_path: Path) -> None:
    with Machine(sector(tmp_path, PRINT + b"nothing to see\r\n\0"), tmp_path / "vm") as machine:
        with pytest.raises(MachineError, match=r"(?s)no guest agent after .*nothing to see"):
            machine.wait_agent(3 / machine.stretch)
        with pytest.raises(DeadlineExceeded, match="power-off"):
            machine.wait_off(0)


def test_a_disk_without_anything_is_seen_by_the_firmware(tmp_path: Path) -> None:
    disk = tmp_path / "blank.raw"
    disk.write_bytes(bytes(1 << 20))
    with pytest.raises(BadBase, match="no boot loader"), Machine(disk, tmp_path / "none"):
        pass
    with (
        Machine(disk, tmp_path / "vm", firmware="bios", network=()) as machine,
        pytest.raises(MachineError, match="the firmware found nothing to boot"),
    ):
        machine.wait_agent()


def test_uefi_without_a_loader_is_seen_as_well(tmp_path: Path) -> None:
    disk, qcow2 = tmp_path / "esp.raw", tmp_path / "with, comma.qcow2"
    with disk.open("wb") as file:
        file.truncate(64 << 20)
    run.run(["sfdisk", "--quiet", str(disk)], stdin=b"label: gpt\ntype=C12A7328-F81F-11D2-BA4B-00A0C93EC93B\n")
    run.run(["qemu-img", "convert", "-O", "qcow2", str(disk), str(qcow2)])
    with (
        Machine(qcow2, tmp_path / "vm, too", format="qcow2") as machine,
        pytest.raises(MachineError, match="the firmware found nothing to boot"),
    ):
        machine.wait_agent()


def test_qemu_is_confined_no_root_no_programs_no_network_and_only_lent_files(tmp_path: Path) -> None:
    """Whoever breaks out of the guest is in this process."""
    disk = sector(tmp_path, PRINT + b"here\r\n\0")
    disk.chmod(0o600)
    with Machine(disk, tmp_path / "vm", seed=agent_seed(), reads=tmp_path / "reads.log") as machine:
        with pytest.raises(MachineError, match=r"(?s)no guest agent after .*here"):
            machine.wait_agent(3 / machine.stretch)
        qemu = Path("/proc", str(pid_of(machine)))
        status = dict(line.split(":\t", 1) for line in (qemu / "status").read_text().splitlines() if ":\t" in line)
        argv = (qemu / "cmdline").read_bytes().split(b"\0")
        ours, theirs = (Path(folder, "ns/net").readlink() for folder in ("/proc/self", qemu))
    if os.geteuid() == 0:
        assert not {"0", "65534"} & set(status["Uid"].split() + status["Gid"].split() + status["Groups"].split())
        assert [status[name] for name in ("CapPrm", "CapEff", "CapAmb")] == ["0000000000000000"] * 3
        assert ours != theirs, "QEMU could connect to what this machine can"
    assert (status["Seccomp"], status["NoNewPrivs"]) == ("2", "1")
    options = argv[argv.index(b"-sandbox") + 1].decode().split(",")
    assert set(options) == {
        "on",
        *(f"{what}=deny" for what in ("obsolete", "elevateprivileges", "spawn", "resourcecontrol")),
    }
    assert not any(str(tmp_path).encode() in word for word in argv), "it opens files by their names"
    assert (tmp_path / "reads.log").stat().st_size


def test_kill_9_of_the_parent_kills_the_machine(tmp_path: Path) -> None:
    disk = sector(tmp_path, PRINT + b"here\r\n\0")
    script = (
        "import sys, time; from pathlib import Path; from parbake.machine.vm import Machine\n"
        "with Machine(Path(sys.argv[1]), Path(sys.argv[2])) as machine:\n"
        "    print(machine._process._popen.pid, flush=True); time.sleep(1000)\n"
    )
    command = [sys.executable, "-c", script, str(disk), str(tmp_path / "vm")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert "qemu" in Path(f"/proc/{pid}/cmdline").read_text()
        parent.send_signal(signal.SIGKILL)
    end = time.monotonic() + 20
    while _lives(pid):
        assert time.monotonic() < end, "QEMU outlives its parent"
        time.sleep(0.05)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False

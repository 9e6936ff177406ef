"""The default base boots by both firmwares, offline, into a node whose containerd waits for nothing."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Literal

import pytest

from parbake.images.pause import REFERENCE
from parbake.machine.vm import Machine, agent_seed
from tests.fakes.base import default_base

__all__ = ["default_base"]

pytestmark = pytest.mark.vm


def reaches(machine: Machine, host: str, port: socket.socket | None) -> str:
    """Say why a place cannot be connected to from the machine; empty: it can."""
    number = port.getsockname()[1] if port else 80
    program = f"import socket; socket.create_connection(('{host}', {number}), timeout=10)"
    ran = machine.guest.run(["python3", "-c", program], timeout=30 * machine.stretch)
    if ran.code == 0 and port:  # QEMU's network says yes before it knows
        port.settimeout(10)
        try:
            port.accept()[0].close()
        except TimeoutError:
            return "nobody came"
    return "" if ran.code == 0 else ran.output


@pytest.mark.parametrize("firmware", ["bios", "uefi"])
def test_the_base_boots(default_base: Path, tmp_path: Path, firmware: Literal["bios", "uefi"]) -> None:
    with Machine(default_base, tmp_path / "vm", seed=agent_seed(), firmware=firmware) as machine:
        machine.wait_agent()
        guest = machine.guest
        machine.containerd()
        assert guest.run(["test", "-d", "/sys/firmware/efi"]).code == (0 if firmware == "uefi" else 1)
        within = 120 * machine.stretch
        state = guest.run(["systemctl", "is-system-running", "--wait"], timeout=within).output.strip()
        assert state == "running", guest.run(["systemctl", "--failed", "--no-legend"]).output
        assert len(guest.read("/etc/machine-id").strip()) == 32
        assert "console=ttyS0" in guest.read("/proc/cmdline").decode()
        assert guest.check(["findmnt", "-no", "FSTYPE,OPTIONS", "/"]).split()[0] == "ext4"
        assert REFERENCE in guest.check(["containerd", "config", "dump"], timeout=60 * machine.stretch)
        assert guest.check(["passwd", "--status", "root"]).split()[:2] == ["root", "L"]
        assert guest.run(["sh", "-c", "ls /etc/ssh/ssh_host_* /root/.ssh /home/*/.ssh"]).code != 0
        if firmware == "bios":
            lent, other = (socket.create_server(("127.0.0.1", 0)) for _ in range(2))
            machine.attach_network(lent.getsockname()[1])
            waited = guest.run(
                ["sh", "-c", "until ip -4 -o address show scope global | grep 10.0.2.15; do sleep 0.5; done"],
                timeout=60 * machine.stretch,
            )
            assert waited.code == 0, "a network card that is plugged in later is configured by DHCP"
            with lent, other:
                assert reaches(machine, "10.0.2.2", lent) == "", "the port that was lent"
                assert reaches(machine, "10.0.2.2", other), "another port of this machine's loopback"
                assert reaches(machine, "169.254.169.254", None), "the metadata service of a cloud"
        assert machine.power_off()

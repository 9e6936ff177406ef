"""The default base boots by BIOS with cloud-init, offline, into a node whose containerd waits for nothing.

By UEFI, and without cloud-init, it boots in ``tests/vm/verify/test_verify.py``.
"""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from parbake.core import run
from parbake.core.events import Events
from parbake.machine.vm import Machine
from parbake.verify import Rehearsal
from tests.fakes.base import check_node, default_base, in_journal, mounting

__all__ = ["default_base"]

pytestmark = [pytest.mark.root, pytest.mark.vm, pytest.mark.slow(90)]


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


def test_the_base_boots_by_bios_with_cloud_init_as_a_bare_disk_is_verified(default_base: Path, tmp_path: Path) -> None:
    """The default base as a file: a machine image, no plan, nothing in its store, not even a sandbox image."""
    image = tmp_path / "base.qcow2"
    run.run(["qemu-img", "convert", "-O", "qcow2", str(default_base), str(image)])
    rehearsal = Rehearsal(image, None, events=Events(), folder=tmp_path)
    rehearsal.node.machine._seed = mounting("localhost/pause:1")  # as on a node whose volume was not attached
    with rehearsal:
        machine, guest, verdict = rehearsal.node.machine, rehearsal.node.machine.guest, rehearsal.verdict()
        assert verdict.images == ()
        assert verdict.problems == ("there is no image in the runtime's store (namespace k8s.io)",)
        assert not verdict.passed
        [warning] = verdict.warnings
        assert "no sandbox (pause) image localhost/parbake/pause:1" in warning
        assert verdict.boot_seconds is not None

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
        check_node(machine, uefi=False)
        assert in_journal(machine, "no disk labelled parbake within 8 s: the node keeps its own store, and pulls")
        assert guest.run(["mountpoint", "-q", "/var/lib/containerd"]).code != 0
        assert "not found" not in machine.console_log.read_text(errors="replace"), "a script lacks a program"
        assert machine.power_off()

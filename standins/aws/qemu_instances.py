"""Instances that are real: machines that QEMU boots from a copy of a snapshot, as EC2's Nitro would show them.

Disks are NVMe with the volume's id as their serial number, the firmware says "Amazon EC2", user data come from a
metadata service of version 2 at 169.254.169.254 (``metadata.py``), the console is the serial line, and a machine that
switches itself off is off. Volumes and snapshots are qcow2 files; one that is made from another holds what differs.

Not modelled: Elastic Network Adapters (the card is virtio's), roles' credentials, security groups and routes (there is
one switch: ``isolated`` cuts the machines that are started from then on off from all but the metadata), UEFI, Arm.
Source: EC2 user guide, "Amazon EBS volumes and NVMe", "Identify EC2 Linux instances"; QEMU's manual, ``-netdev user``.
"""

from __future__ import annotations

import itertools
import json
import shutil
import sys
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from parbake.core.run import Process, run
from parbake.machine.vm import accelerator
from parbake.machine.vm.accelerator import EMULATION, cpu
from parbake.machine.vm.boards import board_of
from standins.aws.instances import Machine

NETWORK = "169.254.0.0/16"  # QEMU forwards addresses of a machine's own network alone: the metadata's is in it
METADATA = "169.254.169.254"
_MEMORY = 2048  # MiB


@dataclass
class Qemus:
    """Machines and disks in a folder. ``close`` at the end."""

    folder: Path
    isolated: bool = False
    running: dict[str, Process] = field(default_factory=dict)
    _numbers: Any = field(default_factory=lambda: itertools.count(1))

    def volume(self, snapshot: Any, gib: int) -> Any:
        """Return a disk of ``gib`` GiB that begins as the snapshot's file, which stays as it is."""
        path = self._path()
        source = ["-b", str(snapshot), "-F", "raw" if snapshot.suffix == ".raw" else "qcow2"] if snapshot else []
        run(["qemu-img", "create", "-q", "-f", "qcow2", *source, str(path), f"{gib}G"])
        return path

    def snapshot(self, volume: Any) -> Any:
        """Return a copy of a disk."""
        path = self._path()
        shutil.copyfile(volume, path)
        return path

    def _path(self) -> Path:
        return self.folder / f"disk{next(self._numbers)}.qcow2"

    def start(self, machine: Machine) -> None:
        """Boot it."""
        folder = self.folder / machine.identity
        folder.mkdir()
        (folder / "user-data").write_bytes(machine.user_data)
        (folder / "tree.json").write_text(json.dumps(_metadata(machine)))
        process = Process(self._command(machine, folder), log=folder / "qemu.log")
        self.running[machine.identity] = process.__enter__()

    def look(self, machine: Machine) -> None:
        """Read the console; off is off."""
        process = self.running[machine.identity]
        machine.over = not process.alive
        log = self.folder / machine.identity / "console"
        machine.console = log.read_text(errors="replace") if log.exists() else ""
        assert process.code in {None, 0}, process.tail

    def stop(self, machine: Machine) -> None:
        """Pull the plug."""
        if machine.identity in self.running:
            self.running.pop(machine.identity).stop()

    def close(self) -> None:
        """Pull every plug."""
        for process in self.running.values():
            process.stop()

    def _command(self, machine: Machine, folder: Path) -> list[str]:
        speed, board = accelerator(), board_of()
        serial = f"ec2{uuid.uuid4().hex[3:8]}-{str(uuid.uuid4())[9:]}"
        service = Path(__file__).with_name("metadata.py")
        metadata = f"{sys.executable} -SE {service} {folder}"
        network = f"user,id=net,ipv6=off,net={NETWORK},guestfwd=tcp:{METADATA}:80-cmd:{metadata}"
        command = [
            board.qemu, "-name", machine.identity, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            "-machine", board.machine,
            "-accel", "kvm" if speed == "kvm" else EMULATION, "-cpu", cpu(speed, board),
            "-smp", "2", "-m", str(_MEMORY),
            "-smbios", "type=0,vendor=Amazon EC2",
            "-smbios", f"type=1,manufacturer=Amazon EC2,uuid={serial},serial={serial}",
            "-smbios", f"type=3,asset={machine.identity}",
            "-chardev", f"file,id=console,path={folder / 'console'}", "-serial", "chardev:console",
            "-device", "virtio-rng-pci",
            "-netdev", network + (",restrict=on" if self.isolated else ""),
            "-device", f"virtio-net-pci,netdev=net,mac={_MAC}",
        ]  # fmt: skip
        for index, disk in enumerate(machine.volumes.values()):
            options = f"if=none,id=disk{index},format=qcow2,cache=unsafe,discard=unmap,file={disk}"
            command += ["-drive", options, "-device", f"nvme,drive=disk{index},serial=vol{index:017x}"]
            command[-1] += ",bootindex=1" if index == 0 else ""
        return command


_MAC = "06:00:00:00:00:01"


def _metadata(machine: Machine) -> dict[str, str]:
    card = f"meta-data/network/interfaces/macs/{_MAC}"
    return {
        "meta-data/ami-id": "ami-00000000000000001",
        "meta-data/hostname": "ip-169-254-0-15.ec2.internal",
        "meta-data/instance-id": machine.identity,
        "meta-data/instance-type": "m7i.large",
        "meta-data/local-hostname": "ip-169-254-0-15.ec2.internal",
        "meta-data/local-ipv4": "169.254.0.15",
        "meta-data/mac": _MAC,
        "meta-data/placement/availability-zone": f"{machine.region}a",
        "meta-data/placement/region": machine.region,
        f"{card}/device-number": "0",
        f"{card}/interface-id": "eni-00000000000000001",
        f"{card}/local-ipv4s": "169.254.0.15",
        f"{card}/mac": _MAC,
        f"{card}/subnet-ipv4-cidr-block": NETWORK,
        f"{card}/vpc-id": "vpc-00000000000000001",  # without it, cloud-init takes the machine for one of EC2-Classic
        "dynamic/instance-identity/document": json.dumps(
            {
                "instanceId": machine.identity,
                "region": machine.region,
            }
        ),
    }

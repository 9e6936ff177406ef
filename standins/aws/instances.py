"""What the stand-in's instances run on: what a volume holds, and what a machine with volumes does.

``Notes`` is quick: the guest's script runs on the node of ``standins/guests.py``, whose containerd only keeps
notes, and a volume holds those notes. ``standins/aws/qemu_instances.py`` has machines that boot.
"""

from __future__ import annotations

import gzip
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from standins.guests import SHELLS, Node

LOOKS = 1
"""How often something is looked at before it is done."""


@dataclass
class Machine:
    """An instance: its volumes by device (the root's first) and what they hold, and what came of it."""

    identity: str
    region: str
    user_data: bytes
    volumes: dict[str, Any]
    ends: str = "stop"
    looks: int = 0
    console: str = ""
    over: bool = False
    code: str = "Client.InstanceInitiatedShutdown"


class Hardware(Protocol):
    """Contents of volumes and snapshots are whatever the hardware takes for them; ``gib`` is a size in GiB."""

    def volume(self, snapshot: Any, gib: int) -> Any:
        """Return the content of a new volume made from a snapshot (None: an empty one)."""
        ...

    def snapshot(self, volume: Any) -> Any:
        """Return a copy of a volume's content, which stays as it is."""
        ...

    def start(self, machine: Machine) -> None:
        """Switch a machine on."""
        ...

    def look(self, machine: Machine) -> None:
        """Note a machine's console, and whether it has switched itself off (``over``)."""
        ...

    def stop(self, machine: Machine) -> None:
        """Pull a machine's plug."""
        ...


@dataclass
class Notes:
    """Machines that are folders: they do all of their work when they are looked at."""

    prepare: Callable[[Node], object] = lambda _node: None
    consoles: dict[str, tuple[str, str]] = field(default_factory=dict)

    def volume(self, snapshot: Any, gib: int) -> Any:
        del gib
        return snapshot or ""

    def snapshot(self, volume: Any) -> Any:
        return volume

    def start(self, machine: Machine) -> None:
        """Nothing is done yet."""

    def stop(self, machine: Machine) -> None:
        """Nothing runs."""

    def look(self, machine: Machine) -> None:
        machine.looks += 1
        if machine.looks >= LOOKS:
            self._run_guest(machine)
            machine.over = True

    def _run_guest(self, machine: Machine) -> None:
        """Run the script of the user data; a script that ran before, on the same store, says the same again."""
        data = machine.user_data
        text = (gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data).decode()
        found = re.search(r"PARBAKE_RUN=(\S+)", text)
        assert found
        run = found.group(1)
        *_, device = machine.volumes if "PARBAKE_VOLUME_UUID" in text else list(machine.volumes)[:1]
        stored = machine.volumes[device]
        known = text.replace(run, "RUN") + stored
        if known not in self.consoles:
            with tempfile.TemporaryDirectory() as folder:
                node = Node(Path(folder), next(iter(SHELLS.values())))
                second = re.search(r"PARBAKE_VOLUME=([0-9]+)", text)
                if second:
                    node.second_disk(int(second.group(1)), blank=not stored)
                self.prepare(node)
                node.put(stored, on="volume-" if second else "")
                console = node.run(text.encode())
                stored = node.stored(on="volume-" if second else "")
            self.consoles[known] = (console.replace(run, "RUN"), stored)
        console, machine.volumes[device] = self.consoles[known]
        machine.console = console.replace("RUN", run)

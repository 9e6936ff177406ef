"""An artefact that is verified without a machine: this host's containerd and runc on the store that it holds.

    booted_here.install(monkeypatch, "parbake.workflows.demo")

It has no network, and is lent the port that a machine would be. What a boot itself proves, and the network card of a
machine, is tested in tests/vm.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from importlib import import_module
from typing import Any, Self, override

import pytest

from parbake.coldstart.rehearsal.cold_start import LocalHost
from parbake.coldstart.rehearsal.overlay import writable
from parbake.containerd import Cri, Daemon
from parbake.core import netns, run
from parbake.images.pause import REFERENCE as PAUSE
from parbake.machine import disk
from parbake.verify import Verification
from parbake.verify.booted import RUNTIME_ROOT, Settings
from parbake.verify.starter import Starter


def install(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    """Let a module verify here."""
    monkeypatch.setattr(import_module(module), "Verification", BootedHere)
    monkeypatch.setattr("parbake.verify.pull.connect", lambda node, port: node.machine.attach_network(port))


class BootedHere(Verification):
    """A machine image whose root, or a volume that is mounted here, on an overlay."""

    @override
    def __enter__(self) -> Self:
        with ExitStack() as stack:
            image_format = self.node.machine.format if self.kind == "machine-image" else "raw"
            outside = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
            stack.callback(os.close, outside)
            inside = stack.enter_context(netns.no_network())
            stack.enter_context(disk.private_mounts())
            shown = stack.enter_context(writable(self.artefact, self.folder / "shown", image_format=image_format))
            at, offset, size = self.folder / "root", 0, 0
            if self.kind == "machine-image":
                root = disk.find_root(shown)
                offset, size = root.start, root.size
            device = stack.enter_context(disk.loop_device(shown, offset=offset, size=size))
            at.mkdir()
            run.run(["mount", "-t", "ext4", device, str(at)])
            stack.callback(disk.unmount, at)
            planned = self.plan.sandbox if self.plan else None
            pause = planned.names[0] if planned else PAUSE
            store = at if self.kind == "volume" else disk.inside(at, RUNTIME_ROOT.lstrip("/"))
            daemon = stack.enter_context(Daemon(store, self.folder / "run", cri=True, sandbox_image=pause))
            node, host = self.node, LocalHost()
            node.client = stack.enter_context(daemon.client())
            node.cri = Cri(node.client.connection, cgroup_parent=daemon.cgroup_parent)
            node.runtime, node.settings = node.cri.version(), Settings(sandbox=pause)
            machine: Any = node.machine
            machine.guest = host

            def lend(port: int) -> None:
                with netns.within(outside):
                    self._stack.enter_context(netns.Lent(inside, port))

            machine.attach_network = lend
            logs, places = str(daemon.folder / "logs"), str(daemon.folder / "places")
            self.starter = Starter(host, node.cri, stretch=1.0, pause=pause, logs=logs, places=places)
            self._stack = stack.pop_all()
        return self

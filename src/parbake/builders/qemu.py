"""The QEMU builder: boots the base and lets it bake by itself, with the script and the protocol of an EC2 bake.

It is the rehearsal of an EC2 bake on any machine, and the way for bases whose runtime must do the pulling itself. The
machine pulls from this process alone (``image_server.py``), and its network leads nowhere else: what it takes to reach
a registry stays here.
"""

from __future__ import annotations

import os
from functools import partial
from typing import override

from parbake.builders import Builder, Disk, Ingredients
from parbake.builders.guest import Console, user_data
from parbake.builders.image_server import serve
from parbake.builders.local import grown_copy, in_format
from parbake.core.errors import BakeFailed, InputError
from parbake.core.model import Plan
from parbake.core.run import Deadline, need_root, sleep
from parbake.machine import disk
from parbake.machine.disk import formats
from parbake.machine.vm import Machine, Seed, boots
from parbake.machine.vm import console as serial

HOST = "10.0.2.2"
"""Where a machine with QEMU's user-mode network finds this host's loopback."""

_POLL = 0.5
_GRACE = 300.0  # seconds beyond the guest's own limit, for the boot and the power-off; longer in emulation
_MEMORY = 2048  # MiB
# Whatever cards the machine has, by DHCP, and nothing in it that is this machine's alone.
_NETWORK = b'version: 2\nethernets:\n  all:\n    match: {name: "e*"}\n    dhcp4: true\n'


class QemuBuilder(Builder):
    """Bakes in a virtual machine of this host; needs root, for mounts. ``limit`` is the guest's own, in seconds."""

    def __init__(self, *, limit: float) -> None:
        self._limit = limit

    @override
    def build(self, plan: Plan, ingredients: Ingredients) -> Disk:
        """Make the artefact in the work folder.

        Raises BakeFailed with the guest's own log, what a registry refused, ArtefactFull, MachineError, BadBase, and
        InputError for a platform without machines.
        """
        need_root("baking")
        if not boots(plan.platform):
            raise InputError(f"parbake cannot boot machines for {plan.platform}", hint="write `builder: local`")
        kind = partial(Machine, architecture=plan.platform.architecture, memory=_MEMORY)
        work, events, token = ingredients.work, ingredients.events, os.urandom(6).hex()
        raw = work / "disk.raw"
        with disk.private_mounts():
            root = grown_copy(plan, ingredients)
        with events.stage("guest", "Boot the base and let it bake"), serve(plan, ingredients) as served:
            probe = kind(raw, work / "vm")
            limit = self._limit * probe.stretch
            server = f"http://{HOST}:{served.port}/{served.secret}"
            data = user_data(plan, token, "bake", limit=limit, registries={}, server=server)
            seed = Seed("", {"network-config": _NETWORK, "user-data": data})
            machine = kind(raw, work / "vm", seed=seed, network=(served.port,))
            try:
                with machine:
                    _follow(machine, Console(token), plan, ingredients, limit + _GRACE * machine.stretch)
            except BakeFailed as error:
                if served.failure:  # the guest has only seen a bad gateway
                    raise served.failure from error
                raise
            formats.commit(raw, "raw", work / "vm" / "root.qcow2")
        with events.stage("check", "Check the file system"), disk.private_mounts():
            disk.check_filesystem(raw, root.filesystem, offset=root.start, size=root.size)
        return Disk(in_format(raw, plan, ingredients))


def _follow(machine: Machine, console: Console, plan: Plan, ingredients: Ingredients, seconds: float) -> None:
    """Follow the serial console to the power-off; raises BakeFailed, ArtefactFull."""
    deadline = Deadline(seconds, "the guest's bake")
    while machine.alive and deadline.left:
        for stage in console.read(serial.clean(serial.read(machine.console_log))):
            ingredients.events.note(f"guest: {stage}")
        sleep(_POLL)
    console.read(serial.clean(serial.read(machine.console_log)))
    if machine.alive:
        raise BakeFailed(
            f"the machine did not power off within {seconds:.0f} s; its last stage was `{console.stage}`\n"
            f"{machine.console}",
            hint="raise `time_limit` in the Bakefile if it only needs longer",
        )
    for warning in console.warnings:
        ingredients.events.warn(f"guest: {warning}")
    console.judge(plan.all_images, machine.console)

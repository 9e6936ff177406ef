"""A virtual machine: boots a disk image that stays as it is, without a network, and answers through the guest agent."""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from parbake.core import netns, run
from parbake.core.errors import CommandFailed, DeadlineExceeded, EnvironmentProblem, MachineError
from parbake.machine.disk import formats
from parbake.machine.vm import confine, console, firmware
from parbake.machine.vm.accelerator import EMULATION, STRETCH, accelerator, cpu
from parbake.machine.vm.boards import board_of
from parbake.machine.vm.guest import Guest
from parbake.machine.vm.qmp import Qmp
from parbake.machine.vm.reads import READ_EVENT
from parbake.machine.vm.seed import Seed

CONTAINERD = "/run/containerd/containerd.sock"
AGENT_PORT = "dev.parbake.agent"
NETWORK_MAC = "52:54:00:70:62:6b"
"""Address of the interface that ``attach_network`` plugs in (QEMU's prefix, then "pbk")."""

_BOOT_LIMIT = 180.0  # seconds with hardware virtualisation, power-on to agent; EC2 calls a boot of minutes a failure
_CALL_GRACE = 30.0
_POWER_OFF_LIMIT = 30.0
_POLL = 0.1
_ENDING = 5.0  # seconds from the end of QEMU's control connection to the end of QEMU


@dataclass(frozen=True, slots=True)
class Drive:
    """A further disk; the guest finds it as ``/dev/disk/by-id/virtio-<serial>``. Never changed either."""

    path: Path
    serial: str
    format: str = "raw"


class Machine:
    """Boots ``disk`` on an overlay in ``folder`` when entered and is gone when left. Use with ``with``.

    ``format`` is raw, qcow2, vmdk or vhd; ``memory`` is in MiB; ``architecture`` is that of the machine (empty: this
    one's; any other is emulated); ``firmware`` is ``auto`` (looked up on the disk), ``bios`` or ``uefi``; ``network``
    plugs a user-mode interface in from the start, on which the guest reaches these ports of the host's loopback and
    nothing else (needs root); ``reads`` is a file in which QEMU logs what the guest reads of its disks (``vm.reads``).
    ``credentials`` go to the guest's systemd, by name. Without ``agent_seed`` or ``agent_credentials`` nothing answers
    in the guest, and only the console and ``wait_off`` tell what it does. QEMU is confined (``vm.confine``), and where
    parbake is root it has no network.
    Making one or entering raises EnvironmentProblem when QEMU or the firmware is missing; entering raises BadBase when
    the disk cannot boot or refers to other files.
    """

    def __init__(
        self,
        disk: Path,
        folder: Path,
        *,
        format: str = "raw",  # noqa: A002 - what everybody calls it
        seed: Seed | None = None,
        credentials: Mapping[str, bytes] | None = None,
        drives: Sequence[Drive] = (),
        architecture: str = "",
        memory: int = 2048,
        cpus: int = 2,
        firmware: Literal["auto", "bios", "uefi"] = "auto",
        network: Sequence[int] | None = None,
        reads: Path | None = None,
    ) -> None:
        self.disk, self.folder, self.format = disk, folder.resolve(), format
        self.console_log = self.folder / "console.log"
        self.board = board_of(architecture)
        self.accelerator = accelerator(self.board.architecture)
        self.stretch = STRETCH[self.accelerator]
        self.guest: Guest
        self.started = 0.0
        """When the power came on, by ``time.monotonic()``."""
        self._seed, self._credentials, self._drives = seed, credentials or {}, drives
        self._memory, self._cpus = memory, cpus
        self._firmware, self._network, self._reads = firmware, network, reads
        self._stack = ExitStack()
        self._process: run.Process
        self._qmp: Qmp
        self._namespace = -1  # QEMU's network, where it has one of its own
        self._containerd: Path | None = None

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.folder.mkdir(parents=True, exist_ok=True)
            channels = {name: socket.socketpair() for name in ("qmp", "agent", "serial")}
            for ours, theirs in channels.values():
                stack.callback(ours.close)
                stack.callback(theirs.close)
            fds = {name: theirs.fileno() for name, (_, theirs) in channels.items()}
            files = stack.enter_context(confine.Files(confine.user()))
            command = [*self._command(fds, files), *files.arguments]
            self.started = time.monotonic()
            handles = (*fds.values(), *files.handles)
            process = run.Process(command, log=self.folder / "qemu.log", pass_fds=handles, user=files.borrower)
            with self._apart(stack):
                self._process = stack.enter_context(process)
            files.close()
            for port in self._network or ():
                self._lend(port, stack)
            for _, theirs in channels.values():
                theirs.close()
            self._qmp = Qmp(channels["qmp"][0])
            stack.callback(self._qmp.close)
            self.guest = Guest([channels[name][0] for name in ("agent", "serial")], grace=_CALL_GRACE * self.stretch)
            stack.callback(self.guest.close)
            try:
                self._qmp.greet()
            except MachineError as error:
                raise EnvironmentProblem(
                    f"QEMU did not start: {error.message}\n{self._process.tail}",
                    hint="see `parbake doctor`; the machine needs free memory, and a working QEMU 7 or later",
                ) from error
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @contextmanager
    def _apart(self, stack: ExitStack) -> Iterator[None]:
        """Let QEMU start in a network that leads nowhere: it needs none, and a guest's network begins there.

        Where none can be made, QEMU starts in ours, unless the guest is to have one: that raises EnvironmentProblem.
        """
        with ExitStack() as apart:
            try:
                run.need_root("a network for a machine")
                self._namespace = os.dup(apart.enter_context(netns.no_network()))
                stack.callback(os.close, self._namespace)
            except EnvironmentProblem:
                if self._network is not None:
                    raise
            yield

    # what the machine is made of

    def _command(self, fds: dict[str, int], files: confine.Files) -> list[str]:
        board, chosen = self.board, self._firmware
        if chosen == "auto":
            chosen = firmware.choose(self.disk, self.format, bios=board.bios)
        accel = files.kvm() if self.accelerator == "kvm" else EMULATION
        log = files.lend(self.console_log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        command = [
            board.qemu, "-name", "parbake", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            *confine.SANDBOX,
            "-machine", board.machine, "-accel", accel, "-cpu", cpu(self.accelerator, board),
            "-smp", str(self._cpus), "-m", str(self._memory),
            "-boot", "strict=on",
            "-chardev", f"file,id=console,path={log}", "-serial", "chardev:console",
            "-chardev", f"socket,id=serial,fd={fds['serial']}", "-device", f"{board.serial},chardev=serial",
            "-device", "virtio-serial-pci",
            "-chardev", f"socket,id=agent,fd={fds['agent']}",
            "-device", f"virtserialport,chardev=agent,name={AGENT_PORT}",
            "-chardev", f"socket,id=qmp,fd={fds['qmp']}", "-mon", "chardev=qmp,mode=control",
            "-device", "virtio-rng-pci",
            "-device", "pcie-root-port,id=parbake-slot",
        ]  # fmt: skip
        if chosen == "uefi":
            command += self._pflash(files)
        command += self._disk("root", self.disk, self.format, "bootindex=1", files)
        for index, drive in enumerate(self._drives):
            command += self._disk(f"drive{index}", drive.path, drive.format, f"serial={drive.serial}", files)
        if self._seed is not None:
            path = self.folder / "seed.img"
            self._seed.write(path)
            seed = formats.tree("raw", files.lend(path, os.O_RDWR), read_only=False)
            command += [*self._blockdev("seed", seed, "serial=parbake-seed"), "-smbios", "type=1,serial=ds=nocloud"]
        for name, data in self._credentials.items():
            value = f"io.systemd.credential.binary:{name}={base64.b64encode(data).decode()}"
            command += ["-smbios", f"type=11,value={value}"]
        card = f"user,model=virtio-net-pci,mac={NETWORK_MAC},ipv6=off"
        command += ["-nic", "none" if self._network is None else card]
        if self._reads is not None:
            command += ["-trace", f"enable={READ_EVENT}", "-D", files.lend_log(self._reads), "-msg", "timestamp=on"]
        return command

    def _disk(self, name: str, image: Path, image_format: str, device: str, files: confine.Files) -> list[str]:
        """Show an image that stays as it is: what the guest writes goes into an overlay."""
        overlay, image_format = self.folder / f"{name}.qcow2", firmware.qemu_format(image_format)
        formats.overlay(image, image_format, overlay)
        below = formats.tree(image_format, files.lend(image, os.O_RDONLY))
        # The overlay is thrown away with the machine: what the guest flushes need not reach the disk.
        options = {"cache": {"no-flush": True}, "discard": "unmap"}
        disk = formats.above(below, files.lend(overlay, os.O_RDWR), **options)
        return self._blockdev(name, {**disk, **options}, device)

    def _pflash(self, files: confine.Files) -> list[str]:
        code, template = self.board.uefi()
        variables = self.folder / "variables.fd"
        shutil.copyfile(template, variables)
        graphs = {
            "code": formats.tree("raw", files.lend(code, os.O_RDONLY)),
            "variables": formats.tree("raw", files.lend(variables, os.O_RDWR), read_only=False),
        }
        nodes = [word for name, graph in graphs.items() for word in self._node(name, graph)]
        return [*nodes, "-machine", "pflash0=code,pflash1=variables"]

    @staticmethod
    def _node(name: str, graph: dict[str, Any]) -> list[str]:
        return ["-blockdev", json.dumps({"node-name": name, **graph})]

    def _blockdev(self, name: str, graph: dict[str, Any], device: str) -> list[str]:
        return [*self._node(name, graph), "-device", f"virtio-blk-pci,drive={name},{device}"]

    # what it does

    @property
    def console(self) -> str:
        """The last lines of the serial console."""
        return console.tail(console.read(self.console_log))

    @property
    def alive(self) -> bool:
        """Whether the power is on."""
        return self._process.alive

    def wait_agent(self, seconds: float = _BOOT_LIMIT) -> None:
        """Wait until the guest agent says hello, ``seconds`` with hardware virtualisation and longer without.

        Raises MachineError with the console's last lines as soon as it shows that the machine will not come up,
        EnvironmentProblem when it is QEMU that fails.
        """
        deadline = run.Deadline(seconds * self.stretch, f"boot of {self.disk.name}")
        while not self.guest.wait_hello(_POLL):
            self._check_boot()
            if not deadline.left:
                raise self._fault(f"no guest agent after {deadline.seconds:.0f} s")

    def _check_boot(self) -> None:
        reason = console.diagnosis(console.read(self.console_log))
        if reason:
            raise self._fault(reason)
        try:
            self._process.check_alive()
            status = self._status()
        except CommandFailed as error:
            if self._process.code:  # no fault of the disk: a machine that switches itself off ends with 0
                raise EnvironmentProblem(
                    f"QEMU failed while {self.disk.name} booted: {error.message}",
                    hint="it may have run out of memory (`dmesg` says); run the same command again",
                ) from error
            raise self._fault(f"the machine switched itself off before its guest agent started; {error}") from error
        if status == "internal-error":
            raise EnvironmentProblem(
                f"hardware virtualisation failed while {self.disk.name} booted",
                hint="this host's /dev/kvm does not work: disable it (`chmod 0 /dev/kvm`) to emulate machines",
            )

    def _status(self) -> str:
        """Return QEMU's run state; raises CommandFailed, with QEMU's own words, where it ends while it is asked."""
        try:
            return str(self._qmp.execute("query-status")["status"])
        except MachineError:
            with suppress(DeadlineExceeded):
                self.wait_off(_ENDING)
            self._process.check_alive()
            raise

    def _fault(self, reason: str) -> MachineError:
        shown = self.console or "(nothing)"
        return MachineError(
            f"{self.disk.name} did not boot: {reason}\nthe console's last lines:\n{shown}",
            hint="the base must boot with a serial console on ttyS0 and run cloud-init (NoCloud data source)",
        )

    def containerd(self, seconds: float = _BOOT_LIMIT) -> Path:
        """Wait for the guest's containerd, starting it where nothing has, and return a socket that leads to it.

        Raises MachineError with what systemd knows about containerd.
        """
        if self._containerd is None:
            limit = seconds * self.stretch
            self.guest.run(["systemctl", "start", "--no-block", "containerd.service"], timeout=limit)
            waited = self.guest.wait_unix(CONTAINERD, limit)
            if not waited.up:
                status = self.guest.run(["systemctl", "status", "--no-pager", "--full", "containerd.service"])
                raise MachineError(f"containerd does not answer in the machine: {waited.why}\n{status.output}")
            self._containerd = self.guest.forward(self.folder / "containerd.sock", CONTAINERD)
        return self._containerd

    def attach_network(self, *ports: int) -> None:
        """Plug in a user-mode network interface; the guest is 10.0.2.15 there.

        It reaches ``ports`` of the host's loopback as those of 10.0.2.2, and nothing else. Raises EnvironmentProblem
        where QEMU has no network namespace of its own: without one it would reach all that the host does.
        """
        if self._namespace < 0:
            run.need_root("a network for a machine")
            raise EnvironmentProblem("no network namespace can be made here", hint="in a container, run it privileged")
        for port in ports:
            self._lend(port, self._stack)
        self._qmp.execute("netdev_add", type="user", id="network", ipv6=False)
        self._qmp.execute("device_add", driver="virtio-net-pci", netdev="network", mac=NETWORK_MAC, bus="parbake-slot")

    def _lend(self, port: int, stack: ExitStack) -> None:
        stack.enter_context(netns.Lent(self._namespace, port))

    def wait_off(self, seconds: float) -> None:
        """Wait until the machine has switched itself off; raises DeadlineExceeded."""
        deadline = run.Deadline(seconds, f"power-off of {self.disk.name}")
        while self._process.alive:
            deadline.sleep(_POLL)

    def power_off(self) -> bool:
        """Press the power button, and pull the plug when nothing happens; return whether the guest shut down itself."""
        if not self._process.alive:
            return True
        self._qmp.execute("system_powerdown")
        try:
            self.wait_off(_POWER_OFF_LIMIT * self.stretch)
        except DeadlineExceeded:
            self._process.stop()
            return False
        return True

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
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

from parbake.core import netns, run
from parbake.core.errors import CommandFailed, DeadlineExceeded, EnvironmentProblem, MachineError
from parbake.machine.disk import formats
from parbake.machine.vm import confine, console, firmware, saved
from parbake.machine.vm.accelerator import EMULATION, STRETCH, accelerator, cpu
from parbake.machine.vm.boards import board_of
from parbake.machine.vm.guest import Guest
from parbake.machine.vm.qmp import Qmp
from parbake.machine.vm.reads import READ_EVENT
from parbake.machine.vm.saved import Saved
from parbake.machine.vm.seed import Seed

CONTAINERD = "/run/containerd/containerd.sock"
AGENT_PORT = "dev.parbake.agent"
NETWORK_MAC = "52:54:00:70:62:6b"
"""Address of the interface that ``attach_network`` plugs in (QEMU's prefix, then "pbk")."""

_SEED, _VARIABLES = "seed.img", "variables.fd"
_CHANNELS = ("qmp", "agent", "serial")
_BOOT_LIMIT = 180.0  # seconds with hardware virtualisation, power-on to agent; EC2 calls a boot of minutes a failure
_CALL_GRACE = 30.0
_RESUME_LIMIT = 120.0  # seconds to read a state, and again for the agent: a busy host is the slow part of it
_POWER_OFF_LIMIT = 30.0
_POLL = 0.1
_ENDING = 5.0  # seconds from the end of QEMU's control connection to the end of QEMU


@dataclass(frozen=True, slots=True)
class Drive:
    """A further disk; the guest finds it as ``/dev/disk/by-id/virtio-<serial>``. Never changed either.

    One that is not ``plugged`` comes with ``Machine.plug``: whatever it holds, the machine has not seen it until then.
    """

    path: Path
    serial: str
    format: str = "raw"
    plugged: bool = True


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
        self.saved: Saved | None = None
        """The state that the machine resumes from when it is entered, instead of booting."""
        self.guest: Guest
        self.started = 0.0
        """When the power came on, by ``time.monotonic()``; the time for which a machine was kept does not count."""
        self.resumed_after = 0.0
        """For how many seconds a machine that resumed had run when it was kept; 0 for one that booted."""
        self._seed, self._credentials, self._drives = seed, credentials or {}, drives
        self._memory, self._cpus = memory, cpus
        self._firmware, self._network, self._reads = firmware, network, reads
        self._stack = ExitStack()
        self._process: run.Process
        self._qmp: Qmp
        self._namespace = -1  # QEMU's network, where it has one of its own
        self._containerd: Path | None = None
        self._reader: saved.MemoryReader | None = None

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.folder.mkdir(parents=True, exist_ok=True)
            channels = {name: socket.socketpair() for name in _CHANNELS}
            for ours, theirs in channels.values():
                stack.callback(ours.close)
                stack.callback(theirs.close)
            fds = {name: theirs.fileno() for name, (_, theirs) in channels.items()}
            files = stack.enter_context(confine.Files(confine.user()))
            self._prepare()
            command = self._command(fds, files)
            if self._reads is not None:  # nothing of the machine, which resumes from the same states
                log = files.lend_log(self._reads)
                command += ["-trace", f"enable={READ_EVENT}", "-D", log, "-msg", "timestamp=on"]
            command += files.arguments
            handles = [*fds.values(), *files.handles]
            self._reader = stack.enter_context(saved.MemoryReader(self.saved.memory)) if self.saved else None
            if self._reader:
                command += ["-incoming", f"fd:{self._reader.handle}"]
                handles.append(self._reader.handle)
            self.resumed_after = self.saved.age if self.saved else 0.0
            self.started = time.monotonic() - self.resumed_after
            process = run.Process(command, log=self.folder / "qemu.log", pass_fds=tuple(handles), user=files.borrower)
            with self._apart(stack):
                self._process = stack.enter_context(process)
            files.close()
            if self._reader:
                self._reader.close()
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

    @property
    def shape(self) -> str:
        """What a state of the machine fits, besides its disk's content: QEMU, its firmware, and all that it is told."""
        version = run.run([self.board.qemu, "--version"]).text
        files = self.board.uefi() if self._starts_by == "uefi" else ()
        firmwares = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
        command = self._command(dict.fromkeys(_CHANNELS, 0), confine.PathNames())
        return json.dumps([version, os.uname().machine, firmwares, command])

    @cached_property
    def _starts_by(self) -> str:
        if self._firmware != "auto":
            return self._firmware
        return firmware.choose(self.disk, self.format, bios=self.board.bios)

    def _prepare(self) -> None:
        """Make the files of this run: overlays, variables of the firmware, the seed."""
        if self._starts_by == "uefi":
            shutil.copyfile(self.board.uefi()[1], self.folder / _VARIABLES)
        if self.saved is None:
            formats.overlay(self.disk, firmware.qemu_format(self.format), self._overlay("root"))
        else:
            with self.saved.root.open("rb") as packed, self._overlay("root").open("wb") as overlay:
                saved.unpack(packed, overlay)
        for index, drive in enumerate(self._drives):
            formats.overlay(drive.path, firmware.qemu_format(drive.format), self._overlay(f"drive{index}"))
        if self._seed is not None:
            self._seed.write(self.folder / _SEED)

    def _overlay(self, name: str) -> Path:
        return self.folder / f"{name}.qcow2"

    def _command(self, fds: dict[str, int], files: confine.Lender) -> list[str]:
        board = self.board
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
        if self._starts_by == "uefi":
            command += self._pflash(files)
        command += self._disk("root", self.disk, self.format, files) + self._device("root", "bootindex=1")
        for index, drive in enumerate(self._drives):
            name = f"drive{index}"
            command += self._disk(name, drive.path, drive.format, files)
            if drive.plugged:
                command += self._device(name, f"serial={drive.serial}")
            else:
                command += ["-device", f"pcie-root-port,id={name}-slot,slot={index + 1}"]
        if self._seed is not None:
            seed = formats.tree("raw", files.lend(self.folder / _SEED, os.O_RDWR), read_only=False)
            command += self._node("seed", seed) + self._device("seed", "serial=parbake-seed")
            command += ["-smbios", "type=1,serial=ds=nocloud"]
        for name, data in self._credentials.items():
            value = f"io.systemd.credential.binary:{name}={base64.b64encode(data).decode()}"
            command += ["-smbios", f"type=11,value={value}"]
        card = f"user,model=virtio-net-pci,mac={NETWORK_MAC},ipv6=off"
        return [*command, "-nic", "none" if self._network is None else card]

    def _disk(self, name: str, image: Path, image_format: str, files: confine.Lender) -> list[str]:
        """Open an image that stays as it is: what the guest writes goes into an overlay."""
        below = formats.tree(firmware.qemu_format(image_format), files.lend(image, os.O_RDONLY))
        # The overlay is thrown away with the machine: what the guest flushes need not reach the disk.
        options = {"cache": {"no-flush": True}, "discard": "unmap"}
        disk = formats.above(below, files.lend(self._overlay(name), os.O_RDWR), **options)
        return self._node(name, {**disk, **options})

    def _pflash(self, files: confine.Lender) -> list[str]:
        graphs = {
            "code": formats.tree("raw", files.lend(self.board.uefi()[0], os.O_RDONLY)),
            "variables": formats.tree("raw", files.lend(self.folder / _VARIABLES, os.O_RDWR), read_only=False),
        }
        nodes = [word for name, graph in graphs.items() for word in self._node(name, graph)]
        return [*nodes, "-machine", "pflash0=code,pflash1=variables"]

    @staticmethod
    def _node(name: str, graph: dict[str, Any]) -> list[str]:
        return ["-blockdev", json.dumps({"node-name": name, **graph})]

    @staticmethod
    def _device(name: str, options: str) -> list[str]:
        return ["-device", f"virtio-blk-pci,drive={name},{options}"]

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
        EnvironmentProblem when it is QEMU that fails; where it resumes, MachineError whatever it is.
        """
        if self._reader is not None:
            self._resume(self._reader)
            return
        deadline = run.Deadline(seconds * self.stretch, f"boot of {self.disk.name}")
        while not self.guest.wait_hello(_POLL):
            self._check_boot()
            if not deadline.left:
                raise self._fault(f"no guest agent after {deadline.seconds:.0f} s")

    def _resume(self, reader: saved.MemoryReader) -> None:
        try:
            deadline = run.Deadline(_RESUME_LIMIT, "resuming the machine")
            while self._status() == "inmigrate":
                deadline.sleep(_POLL / 2)
            reader.check()
            self._qmp.execute("cont")
            self.guest.resume(_RESUME_LIMIT)
        except (CommandFailed, DeadlineExceeded) as error:
            raise MachineError(f"the machine does not resume: {error.message}") from error

    def save(self, folder: Path) -> None:
        """Write the machine's state into a folder, for machines of the same ``shape``; it stands still meanwhile.

        What is on drives that are not plugged yet is no part of it. Raises MachineError, DeadlineExceeded, OSError, and
        the machine goes on all the same.
        """
        if not self.guest.speaks_first:
            raise MachineError("the guest agent speaks over the serial line")
        state = Saved(folder)
        self._qmp.execute("stop")
        stopped = time.monotonic()
        try:
            state.write_age(stopped - self.started)
            saved.write_memory(self._qmp, state.memory)
            with self._overlay("root").open("rb", buffering=0) as overlay:  # whole: QEMU lets go of it at the end
                saved.pack(overlay, state.root)
        finally:
            self._qmp.execute("cont")
            self.started += time.monotonic() - stopped

    def plug(self) -> None:
        """Plug in the drives that are not ``plugged``; the guest finds them in a moment."""
        for index, drive in enumerate(self._drives):
            if not drive.plugged:
                name = f"drive{index}"
                device = {"driver": "virtio-blk-pci", "drive": name, "serial": drive.serial, "bus": f"{name}-slot"}
                self._qmp.execute("device_add", **device)

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

"""A node to verify on: the artefact, booted without a network, with its container runtime at hand."""

from __future__ import annotations

import time
import tomllib
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from parbake.containerd import labels
from parbake.core import run
from parbake.core.errors import BadBase, BadReference, MachineError
from parbake.core.model import Descriptor, Platform
from parbake.core.reference import Reference
from parbake.machine.disk import formats
from parbake.machine.vm import Drive, Machine, agent_credentials, agent_seed, is_bootable
from parbake.verify import sandbox, within
from parbake.verify.carrier import Carrier

if TYPE_CHECKING:
    from collections.abc import Callable

    from parbake.containerd import Client, Cri

Kind = Literal["machine-image", "volume"]

RUNTIME_ROOT = "/var/lib/containerd"
_VOLUME = "parbake-volume"
VOLUME_DEVICE = f"/dev/disk/by-id/virtio-{_VOLUME}"
# The runtime starts once, on the volume: it is not to make a store of its own before. The default base only carries the
# volume: nobody logs in, there is no network, and what is for either takes a sixth of a boot in emulation.
_CARRY_VOLUME = {
    "systemd.unit-dropin.containerd.service": f"[Unit]\nConditionPathIsMountPoint={RUNTIME_ROOT}\n".encode(),
    **{
        f"systemd.unit-dropin.{name}.service": b"[Unit]\nConditionPathExists=!/\n"
        for name in (
            "fstrim", "getty@tty1", "serial-getty@ttyS0", "systemd-logind", "systemd-networkd", "systemd-resolved",
            "systemd-timesyncd",
        )
    },
}  # fmt: skip
# A volume's files have no labels: where the node's kernel enforces a policy, they get one, as `node/mount.sh` does it.
_ENFORCES = "/sys/fs/selinux/enforce"
_UNLABELLED = "defcontext=system_u:object_r:container_ro_file_t:s0"
# What the program says on standard error comes along: only the document is wanted. It goes through a pipe,
# since SELinux may forbid the runtime to write into the agent's file.
_DUMP = 'said=$(containerd config dump 2>/dev/null) && printf "%s\\n" "$said"'
_READY = 60.0  # seconds with hardware virtualisation
_FORMATS = {"raw": "raw", "qcow2": "qcow2", "vmdk": "vmdk", "vpc": "vhd"}
_SYSTEMD_PARENT = "/parbake.slice"
_PLAIN_PARENT = "/parbake"


@dataclass(frozen=True, slots=True)
class Settings:
    """What a node's containerd is configured with: its sandbox image, and whether systemd manages the cgroups.

    ``sandbox`` is the name under which the store must hold it, which is not always how it is written.
    """

    sandbox: str = ""
    systemd_cgroups: bool = False

    @property
    def cgroup_parent(self) -> str:
        """Where a kubelet would put pods: runc wants a slice's name exactly when systemd manages the cgroups."""
        return _SYSTEMD_PARENT if self.systemd_cgroups else _PLAIN_PARENT


def settings_of(dump: str) -> Settings:
    """Read ``containerd config dump`` of containerd 1.x (version 2) or 2.x (versions 3, 4). Pure."""
    plugins = tomllib.loads(dump).get("plugins", {})
    old = plugins.get("io.containerd.grpc.v1.cri", {})
    images = plugins.get("io.containerd.cri.v1.images", {})
    runtime = plugins.get("io.containerd.cri.v1.runtime", old)
    containerd = runtime.get("containerd", {})
    runc = containerd.get("runtimes", {}).get(containerd.get("default_runtime_name") or "runc", {})
    return Settings(
        sandbox=_stored(str(images.get("pinned_images", {}).get("sandbox") or old.get("sandbox_image") or "")),
        systemd_cgroups=bool(runc.get("options", {}).get("SystemdCgroup")),
    )


def _stored(name: str) -> str:
    """Return the name that the CRI looks for in the store: a configuration may name one without a tag."""
    try:
        reference = Reference.parse(name)
    except BadReference:
        return name
    return reference.with_digest(reference.digest) if reference.digest else str(reference)


def identify(artefact: Path) -> tuple[Kind, str]:
    """Return what a file is and its format (raw, qcow2, vmdk, vhd).

    Raises BadBase when it is neither kind, or refers to other files, which are not opened.
    """
    found = formats.probe(artefact)
    if found not in _FORMATS:
        raise BadBase(f"{artefact} is a disk image of another kind ({found})", hint="name an artefact or its record")
    image_format = _FORMATS[found]
    if is_bootable(artefact, image_format):
        return "machine-image", image_format
    found = run.run(["blkid", "-p", "-o", "value", "-s", "TYPE", str(artefact)], check=False).text
    if image_format == "raw" and found in {"ext4", "xfs"}:
        return "volume", "raw"
    raise BadBase(
        f"{artefact} is neither a bootable disk nor a volume with ext4 or xfs" + (f" (it holds {found})" * bool(found)),
        hint="name an artefact or its record",
    )


def node_format(image: Path) -> str:
    """Return the format of the image of a node (raw, qcow2); raises BadBase unless it is a disk that boots."""
    kind, image_format = identify(image)
    if kind != "machine-image":
        raise BadBase(f"{image} is a {kind}, not the image of a node", hint="name a disk image that boots")
    return image_format


class BootedNode:
    """Boots an artefact when entered; use with ``with``.

    A volume is attached to ``base``: the image of a node, or what makes the default base and returns it, which boots
    once (``carrier``; ``tell`` hears when it had to again). The machine is of ``architecture``, which QEMU emulates
    where it is not this machine's.

    ``default_base`` says that a machine image was made on the default base, whose systemd starts the guest agent by
    itself; any other needs cloud-init for it. ``reads`` is a file for what the machine reads of its disks
    (``vm.Machine``): a machine image boots with cloud-init then, as on a cloud. ``client`` and ``cri`` talk to the
    runtime of the booted machine, unless that is Docker (``is_docker``); ``boot_seconds`` is from power-on until it was
    ready, without the time for which a machine was kept, ``resumed_seconds`` what a resumed one took. Entering raises
    MachineError when the machine or its runtime does not come up.
    """

    def __init__(
        self,
        artefact: Path,
        kind: Kind,
        image_format: str,
        *,
        folder: Path,
        base: Path | Callable[[], Path],
        memory: int,
        architecture: str = "",
        default_base: bool = False,
        reads: Path | None = None,
        tell: Callable[[str], object] = lambda _: None,
    ) -> None:
        self.kind = kind
        self._whose = base if isinstance(base, Path) else None
        self._carrier: Carrier | None = None
        make = partial(Machine, architecture=architecture, memory=memory, reads=reads)
        if kind == "volume":
            if isinstance(base, Path):
                its, seed = node_format(base), agent_seed()
                drives = [Drive(artefact, _VOLUME, image_format)]
                self.machine = make(base, folder, format=its, seed=seed, drives=drives)
            else:
                orders = agent_credentials() | _CARRY_VOLUME
                drives = [Drive(artefact, _VOLUME, image_format, plugged=False)]
                self.machine = make(base(), folder, credentials=orders, drives=drives)
                self._carrier = Carrier(self.machine, tell)
        elif default_base and reads is None:
            orders = agent_credentials()
            self.machine = make(artefact, folder, format=image_format, credentials=orders)
        else:
            seed = agent_seed()
            self.machine = make(artefact, folder, format=image_format, seed=seed)
        self.boot_seconds = 0.0
        self.resumed_seconds: float | None = None
        self.runtime = ""
        """What the machine's runtime calls itself, such as ``containerd 2.2.4``."""
        self.is_docker = False
        """Whether a machine image's kubelet uses Docker, which has no CRI: ``within.prove_docker`` starts images."""
        self.settings = Settings()
        self.mounting: list[str] = []
        """How a volume was mounted: the command, with its place as the last word."""
        self.client: Client
        self.cri: Cri
        self._stack = ExitStack()

    @property
    def resumes(self) -> bool:
        """Whether the machine, when it is entered, goes on from where one like it was kept, instead of booting."""
        return self._carrier is not None and self._carrier.resumes

    def __enter__(self) -> Self:
        from parbake.containerd import Cri, connect  # gRPC loads while the machine boots

        with ExitStack() as stack:
            machine = self.machine
            if self._carrier is not None:
                self._carrier.start(stack, VOLUME_DEVICE)
            else:
                stack.enter_context(machine)
                machine.wait_agent()
            if self.kind == "volume":
                self._mount_volume()
            elif within.runs_docker(machine):
                self.is_docker, self.runtime = True, within.wait_docker(machine)
                self._answered()
                self._stack = stack.pop_all()
                return self
            socket = machine.containerd()
            self.client = stack.enter_context(connect(socket, patience=machine.stretch))
            limit = run.Deadline(_READY * machine.stretch, "the runtime is ready for pods")
            Cri(self.client.connection).wait_ready(limit)
            self._answered()
            self.runtime = Cri(self.client.connection).version()
            self.settings = self._read(settings_of)
            self.cri = Cri(self.client.connection, cgroup_parent=self.settings.cgroup_parent)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _answered(self) -> None:
        """Take down how long it took until now, in all and this time."""
        self.boot_seconds = time.monotonic() - self.machine.started
        if self.machine.resumed_after:
            self.resumed_seconds = round(self.boot_seconds - self.machine.resumed_after, 3)

    def _mount_volume(self) -> None:
        """Put the volume where the runtime keeps its store, as a node's own start-up would."""
        guest, limit = self.machine.guest, _READY * self.machine.stretch
        root, options = RUNTIME_ROOT, "defaults"
        if self._whose:  # its runtime may run by now, on a store of its own
            guest.check(["udevadm", "settle"], timeout=limit)
            for service in ("kubelet.service", "containerd.service"):
                guest.run(["systemctl", "stop", service], timeout=limit)
            root = self._read(lambda text: str(tomllib.loads(text).get("root") or RUNTIME_ROOT))
            guest.check(["mkdir", "-p", root], timeout=limit)
            with suppress(MachineError):  # there is no such file where the kernel has no SELinux
                options = _UNLABELLED if guest.read(_ENFORCES) == b"1" else options
        self.mounting = ["mount", "-o", options, VOLUME_DEVICE, root]
        guest.check(self.mounting, timeout=limit)

    def _read[T](self, reader: Callable[[str], T]) -> T:
        """Return what the runtime's configuration says; raises MachineError where it is none."""
        said = self.machine.guest.check(["sh", "-c", _DUMP], timeout=_READY * self.machine.stretch)
        try:
            return reader(said)
        except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
            raise MachineError(f"the configuration of the machine's runtime cannot be read: {error}") from error

    # the sandbox image

    def has_sandbox(self) -> bool:
        """Whether the runtime has the image that it makes pods' sandboxes from."""
        return bool(self.settings.sandbox) and self.cri.image_status(self.settings.sandbox) is not None

    def name_sandbox(self, target: Descriptor) -> None:
        """Give an image of the store the name under which this runtime looks for its sandbox image."""
        self.client.images.put(self.settings.sandbox, target, labels.PINNED)
        self._await_sandbox()

    def import_sandbox(self, folder: Path) -> None:
        """Bring parbake's own pause image into the store of this machine, which is thrown away."""
        platform = Platform(architecture=self.machine.board.architecture)
        sandbox.import_image(self.client, folder, self.settings.sandbox, platform)
        self._await_sandbox()

    def _await_sandbox(self) -> None:
        """Wait until the CRI plugin, which follows the store by its events, knows the sandbox image."""
        deadline = run.Deadline(_READY * self.machine.stretch, f"the runtime sees {self.settings.sandbox}")
        while not self.has_sandbox():
            deadline.sleep(0.1)

    def fault_text(self, error: MachineError) -> str:
        """Return what happened to the machine, with the end of its console."""
        return f"{error.message}\nthe console's last lines:\n{self.machine.console}"

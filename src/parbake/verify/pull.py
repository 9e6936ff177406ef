"""The other way to start an image: pull it first, in the same machine, from a registry on the host's loopback."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from parbake.core.errors import ContainerdError, MachineError
from parbake.core.model import Image, Startup
from parbake.core.reference import Reference
from parbake.core.run import Deadline
from parbake.machine.vm import NETWORK_MAC

if TYPE_CHECKING:
    from parbake.machine.vm import Guest
    from parbake.verify.booted import BootedNode
    from parbake.verify.verify import Verification

_HOST = "10.0.2.2"  # QEMU's user-mode network: the host's loopback
_ADDRESS = "10.0.2.15/24"
_PROXY = "/usr/lib/systemd/systemd-socket-proxyd"
_UNIT = "parbake-registry"
_PULL = 600.0  # seconds with hardware virtualisation
_LINK = 30.0


@dataclass(frozen=True, slots=True)
class Pulled:
    """A start with a pull before it: seconds of both, and their sum."""

    pull_seconds: float
    start_seconds: float

    @property
    def seconds(self) -> float:
        """From asking for the image until the container was up."""
        return self.pull_seconds + self.start_seconds


def compare_pull(verification: Verification, image: Image) -> Pulled:
    """Remove an image from the machine's store, pull it as a kubelet would, start it again; return the seconds.

    The image's registry must be one of the host's loopback (``localhost:5055/...``): the same name leads there from the
    machine, which gets a network of its own for that and nothing else. Raises ContainerdError and MachineError.
    """
    node, events = verification.node, verification.events
    if node.is_docker:
        raise ContainerdError("this node runs Docker, and parbake compares only with containerd's pulls")
    name = image.names[0]
    port = _port(image.reference)
    with events.stage("network", "Connect the machine to the host's registry"):
        connect(node, port)
    with events.stage("forget", f"Remove {name} from the machine"):
        forget(node, image)
    with events.stage("pull", f"Pull {name} in the machine"):
        before = node.machine.guest.now()
        node.cri.pull_image(name, timeout=_PULL)
        pull_seconds = node.machine.guest.now().monotonic - before.monotonic
    with events.stage("start-pulled", f"Start {name}, pulled"):
        started = verification.starter.start(name, image.startup or Startup())
    if started.seconds is None:
        raise ContainerdError(f"{name} did not start after a pull: {'; '.join(started.problems)}\n{started.output}")
    return Pulled(pull_seconds, started.seconds)


def _port(reference: Reference) -> int:
    host, _, port = reference.registry.rpartition(":")
    if host not in {"localhost", "127.0.0.1"} or not port.isdecimal():
        raise ContainerdError(
            f"{reference} cannot be pulled in the machine: its registry is not one of this host's loopback",
            hint="push it to localhost:<port>",
        )
    return int(port)


def connect(node: BootedNode, port: int) -> None:
    """Plug a network in and make the guest's loopback port lead to the same port of the host's loopback.

    The interface gets no default route, and leads to that one port and nothing else.
    """
    node.machine.attach_network(port)
    guest = node.machine.guest
    _configure(guest, _LINK * node.machine.stretch)
    guest.check([
        "systemd-run", f"--unit={_UNIT}", f"--socket-property=ListenStream=127.0.0.1:{port}", _PROXY, f"{_HOST}:{port}",
    ])  # fmt: skip
    waited = guest.wait_http(port, "/v2/", _LINK * node.machine.stretch)
    if not waited.up:
        raise MachineError(f"the machine does not reach the registry on port {port} of this host: {waited.why}")


def _configure(guest: Guest, seconds: float) -> None:
    """Give the new interface its address, once it is there; udev may rename it at any moment of that."""
    deadline = Deadline(seconds, "the network interface appears in the machine")
    while True:
        lines = guest.check(["ip", "-o", "link"]).splitlines()
        for name in (line.split(":")[1].strip() for line in lines if NETWORK_MAC in line):
            address = guest.run(["ip", "address", "replace", _ADDRESS, "dev", name])
            link = guest.run(["ip", "link", "set", name, "up"])
            if address.code == link.code == 0:
                return
        deadline.sleep(0.2)


def forget(node: BootedNode, image: Image) -> None:
    """Remove an image's names, and the content and snapshots only it used. Raises ContainerdError if any stays."""
    client = node.client
    for record in client.images.list():
        if record.target.digest in {image.target.digest, image.manifest.digest} or record.name == image.config.digest:
            client.images.delete(record.name, sync=True)
    client.gc()
    top = image.layers[-1].chain_id if image.layers else ""
    if client.content.exists(image.manifest.digest) or (top and client.snapshots.exists(top)):
        raise ContainerdError(f"{image.reference} cannot be removed from the machine's store: something else uses it")

"""The network of a build's steps: one of their own, in which neither this machine's loopback nor a cloud's metadata is.

buildah and podman run steps by an OCI runtime, which a script of ours starts in a network namespace. To them it is the
host's network, so that a step that asks for that (``RUN --network=host``, which a base image may bring along by
ONBUILD) gets the same. slirp4netns connects it, from outside, as a program of this machine does; names are resolved by
it as well. What is refused is refused by routes, which a step has no capability to change. The tools' own connections,
to registries for base images, are not affected. Sources: slirp4netns(1); OCI runtime specification, "Namespaces".
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from parbake.core import cgroups, netns
from parbake.core.errors import CommandFailed, DeadlineExceeded, EnvironmentProblem
from parbake.core.run import Deadline, Process, isolated, need, need_root, run
from parbake.images.build.common import PROBE_TIMEOUT, BuildPlace, Network, last_line

CAUTION: Final = (
    "RUN steps reach all that this machine does, its loopback and a cloud's metadata service (169.254.169.254) "
    "included, since they cannot have a network of their own here: {reason}. `network: host` in `build` accepts it"
)
REFUSED: Final = (
    "169.254.0.0/16",  # link-local: the metadata of AWS (and the credentials of ECS and EKS), Azure, Google, OpenStack
    "168.63.129.16/32",  # Azure's host
    "100.100.100.200/32",  # Alibaba Cloud's metadata
    "192.0.0.192/32",  # Oracle Cloud's metadata, the older place
)
_RESOLVER: Final = "10.0.2.3"  # slirp4netns(1), "Filtering connections": it asks whom this machine asks
_RUNTIME: Final = '#!/bin/sh\nexec {nsenter} --net={namespace} -- {runc} --root={state} "$@"\n'
_SHOW: Final = 'mount --bind "$1" "$2" && shift 2 && exec "$@"'
_READY: Final = 20.0  # seconds


@dataclass(frozen=True, slots=True)
class Steps:
    """How a tool is to run steps: its options, the runtime, and the namespace as an open file and where it is shown."""

    options: tuple[str, ...]
    runtime: Path | None = None
    handle: int = -1
    shown: Path = Path()

    @property
    def handles(self) -> tuple[int, ...]:
        """Open files that the tool inherits."""
        return () if self.runtime is None else (self.handle,)

    def within(self, command: list[str]) -> list[str]:
        """Return a command line that shows the namespace to a program, which has a mount namespace of its own."""
        if self.runtime is None:
            return command
        return ["/bin/sh", "-c", _SHOW, "sh", f"/proc/self/fd/{self.handle}", str(self.shown), *command]


OF_THE_HOST: Final = Steps(("--isolation=chroot",))
"""No daemon, no cgroups, no network set-up: it works everywhere."""


@contextmanager
def steps(place: BuildPlace, network: Network | None) -> Iterator[Steps]:
    """Yield how a build's steps are run; None means private where that can be had, and else the host's, with a warning.

    Raises EnvironmentProblem where what the Bakefile asks for cannot be had.
    """
    if network == "host":
        yield OF_THE_HOST
        return
    with ExitStack() as stack:
        try:
            found = stack.enter_context(_apart(place, connected=network != "none"))
        except (EnvironmentProblem, CommandFailed, DeadlineExceeded, OSError) as error:
            reason = str(error) if isinstance(error, OSError) else last_line(error)
            if network is not None:
                raise EnvironmentProblem(
                    f"RUN steps cannot have the network `{network}` here: {reason}",
                    hint="run parbake as root with runc and slirp4netns installed, or write `network: host` in `build`",
                ) from error
            place.events.warn(CAUTION.format(reason=reason))
            found = OF_THE_HOST
        yield found


@contextmanager
def _apart(place: BuildPlace, *, connected: bool) -> Iterator[Steps]:
    need_root("a network of their own for RUN steps")
    folder = place.work / "steps"
    folder.mkdir()
    shown, runtime = folder / "network", folder / "runtime"
    shown.touch()
    words = {"nsenter": need("nsenter"), "namespace": shown, "runc": need("runc"), "state": folder / "runc"}
    runtime.write_text(_RUNTIME.format(**{name: shlex.quote(str(word)) for name, word in words.items()}))
    runtime.chmod(0o700)
    with ExitStack() as stack:
        with netns.no_network() as namespace:
            inside = os.dup(namespace)
        stack.callback(os.close, inside)
        group = cgroups.name()
        stack.enter_context(cgroups.owned(group))
        options = ["--isolation=oci", "--network=host", "--cap-drop=CAP_NET_RAW", f"--cgroup-parent={group}"]
        if connected:
            _connect(inside, folder, stack)
            options.append(f"--dns={_RESOLVER}")
        found = Steps(tuple(options), runtime, inside, shown)
        _try(found, folder / "try", group)
        yield found


def _connect(inside: int, folder: Path, stack: ExitStack) -> None:
    """Connect a namespace to what this machine reaches, less its loopback and what is refused."""
    ready, told = os.pipe()
    stack.callback(os.close, ready)
    os.set_blocking(ready, False)
    command = [
        "slirp4netns", "--configure", "--mtu=65520", "--disable-host-loopback", "--enable-sandbox", "--enable-seccomp",
        f"--ready-fd={told}", "--netns-type=path", f"/proc/self/fd/{inside}", "tap0",
    ]  # fmt: skip
    try:
        process = Process(command, log=folder / "slirp4netns.log", pass_fds=(inside, told))
        stack.enter_context(process)
    finally:
        os.close(told)
    deadline = Deadline(_READY, "slirp4netns connects the network of RUN steps")
    while not _has_said(ready):
        process.check_alive()
        deadline.sleep(0.02)
    netns.refuse(inside, REFUSED)


def _has_said(ready: int) -> bool:
    try:
        return os.read(ready, 1) == b"1"
    except BlockingIOError:
        return False


def _try(found: Steps, bundle: Path, group: str) -> None:
    """Run a program as a step would be run; raises CommandFailed where the runtime does not work (cgroups, mounts)."""
    assert found.runtime
    bundle.mkdir()
    run([need("runc"), "spec", f"--bundle={bundle}"], timeout=PROBE_TIMEOUT)
    file = bundle / "config.json"
    config = json.loads(file.read_text())
    (root := bundle / "root").mkdir()
    config["root"] = {"path": str(root), "readonly": True}
    config["process"] |= {"terminal": False, "args": ["/bin/true"]}
    config["process"].pop("rlimits", None)
    config["mounts"] = [each for each in config["mounts"] if each["type"] != "cgroup"]  # nor has a step it
    config["linux"]["cgroupsPath"] = f"{group}/try"
    config["linux"]["namespaces"] = [each for each in config["linux"]["namespaces"] if each["type"] != "network"]
    file.write_text(json.dumps(config))
    command = [str(found.runtime), "run", f"--bundle={bundle}", f"parbake-try-{os.getpid()}"]
    command = ["/bin/sh", "-c", _SHOW, "sh", "/", str(root), *command]
    run(isolated(found.within(command)), timeout=PROBE_TIMEOUT, pass_fds=found.handles)

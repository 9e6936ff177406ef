"""A cold start on this machine: mount a volume, start a containerd on it, start an image; each stage is timed."""

from __future__ import annotations

import http.client
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, suppress
from pathlib import Path

from parbake.containerd import Cri, Daemon, own_root
from parbake.core import mounts, run
from parbake.core.errors import CommandFailed, ContainerdError, DeadlineExceeded, MachineError
from parbake.core.model import Image, Plan, Platform, Startup
from parbake.machine import disk
from parbake.machine.vm import Clock, Waited
from parbake.verify import sandbox
from parbake.verify.starter import Started, Starter

_OWN_SANDBOX = "localhost/parbake/pause:1"


_POLL = 0.005


class NotStarted(Exception):
    """An image did not start; the text says why. ``by_itself``: it would not on a node either (``Started``)."""

    def __init__(self, words: str, *, by_itself: bool = False) -> None:
        super().__init__(words)
        self.by_itself = by_itself


def cold_start(
    device: str, filesystem: str, plan: Plan, image: Image, folder: Path, stack: ExitStack, *, pull: bool = False
) -> dict[str, float]:
    """Start an image from the store on a device and return the seconds of each stage; raises NotStarted.

    The mount and the containerd end with ``stack``; ``folder`` is for this start's files. With ``pull`` the store is
    empty at first, and the image is pulled from its registry; then what comes before the pull is not counted.
    """
    stages: dict[str, float] = {}
    begun = time.monotonic()
    root = folder / "root"
    stack.enter_context(disk.mount_device(device, root, filesystem=filesystem, options=("noatime",)))
    stages["mount"] = time.monotonic() - begun
    begun = time.monotonic()
    name = plan.sandbox.names[0] if plan.sandbox and not pull else _OWN_SANDBOX
    places = folder / "containerd" / own_root.PLACES
    mounts.tmpfs(places, size="50%")  # what an image writes there counts as its memory, which has a limit
    stack.callback(mounts.unmount, places)
    try:
        daemon = stack.enter_context(Daemon(root, folder / "containerd", cri=True, sandbox_image=name))
        client = stack.enter_context(daemon.client())
        if plan.sandbox is None or pull:
            sandbox.import_image(client, folder / "pause", name, Platform.host())
        stages["containerd"] = time.monotonic() - begun
        cri = daemon.cri(client)
        if pull:
            begun = time.monotonic()
            cri.pull_image(image.names[0])
            stages = {"pull": time.monotonic() - begun}
        wait_image(cri, image)
        logs = str(daemon.folder / "logs")
        starter = Starter(LocalHost(), cri, stretch=1.0, pause=name, logs=logs, places=str(places))
        started = starter.start(image.names[0], image.startup or Startup())
    except (ContainerdError, MachineError, CommandFailed, DeadlineExceeded) as error:
        raise NotStarted(error.message) from error
    return stages_of(stages, started, daemon.exceeded())


def stages_of(before: dict[str, float], started: Started, exceeded: str = "") -> dict[str, float]:
    """Return the seconds of all stages of a start; raises NotStarted with all that is known of why it is none."""
    if started.seconds is None:
        last = started.output.strip().splitlines()[-1:]
        words = "; ".join(filter(None, [*started.problems, *last, exceeded]))
        raise NotStarted(words, by_itself=started.by_itself and not exceeded)  # a limit is of this machine alone
    stages = before | {"sandbox": started.sandbox_seconds or 0.0, "start": started.seconds}
    return {stage: round(seconds, 3) for stage, seconds in stages.items()}


def wait_image(cri: Cri, image: Image, *, stretch: float = 1.0) -> None:
    """Wait until the CRI plugin, which reads the store when it starts, knows the image."""
    deadline = run.Deadline(30 * stretch, f"the runtime sees {image.reference}")
    while cri.image_status(image.names[0]) is None:
        deadline.sleep(0.01)


class LocalHost:
    """This machine, as ``verify.starter.ContainerHost`` asks for it: programs, files, ports of the loopback, clocks.

    Use it in the thread that has the network.
    """

    def check(self, argv: Sequence[str], *, timeout: float = 60.0, stdin: bytes = b"") -> str:
        """Run a program and return its output; raises CommandFailed."""
        return run.run(list(argv), timeout=timeout, stdin=stdin or None).text

    def read(self, path: str, *, offset: int = 0, limit: int = 1 << 16) -> bytes:
        """Return up to ``limit`` bytes of a file, from ``offset``; raises MachineError."""
        try:
            with Path(path).open("rb") as file:
                file.seek(offset)
                return file.read(limit)
        except OSError as error:
            raise MachineError(f"{path}: {error.strerror}") from error

    def now(self) -> Clock:
        """Return this machine's clocks."""
        return Clock(time.time_ns(), time.monotonic())

    def wait_tcp(self, port: int, seconds: float) -> Waited:
        """Wait until something accepts on a port of the loopback."""

        def knock() -> None:
            with socket.create_connection(("127.0.0.1", port), timeout=1.0):
                pass

        return self._wait(knock, seconds)

    def wait_http(self, port: int, path: str, seconds: float) -> Waited:
        """Wait until GET of a path on the loopback answers with 200 to 399."""

        def ask() -> None:
            with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=max(1.0, seconds))) as connection:
                connection.request("GET", path)
                status = connection.getresponse().status
                if not 200 <= status < 400:
                    raise ConnectionError(f"answers with {status}")

        return self._wait(ask, seconds)

    def _wait(self, attempt: Callable[[], None], seconds: float) -> Waited:
        end, why = time.monotonic() + seconds, ""
        while True:
            try:
                attempt()
            except (OSError, http.client.HTTPException) as error:
                why = str(error)
            else:
                return Waited(True, self.now())
            if time.monotonic() >= end:
                return Waited(False, self.now(), why)
            with suppress(OSError):
                run.sleep(_POLL)

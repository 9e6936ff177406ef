"""A cold start on this machine: mount a volume, start a containerd on it, start an image; each stage is timed."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path

from parbake.coldstart.rehearsal.host import LocalHost
from parbake.containerd import Cri, Daemon, own_root
from parbake.core import mounts, run
from parbake.core.errors import CommandFailed, ContainerdError, DeadlineExceeded, MachineError
from parbake.core.model import Image, Plan, Platform, Startup
from parbake.machine import disk
from parbake.verify import sandbox
from parbake.verify.starter import Started, Starter

_OWN_SANDBOX = "localhost/parbake/pause:1"


class NotStarted(Exception):
    """An image did not start; the text says why."""


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
        raise NotStarted("; ".join(filter(None, [*started.problems, *last, exceeded])))
    stages = before | {"sandbox": started.sandbox_seconds or 0.0, "start": started.seconds}
    return {stage: round(seconds, 3) for stage, seconds in stages.items()}


def wait_image(cri: Cri, image: Image, *, stretch: float = 1.0) -> None:
    """Wait until the CRI plugin, which reads the store when it starts, knows the image."""
    deadline = run.Deadline(30 * stretch, f"the runtime sees {image.reference}")
    while cri.image_status(image.names[0]) is None:
        deadline.sleep(0.01)

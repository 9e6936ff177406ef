"""A volume that is attached to a booted node: which of its disks that is, and how it comes to be cold again."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Final

from parbake.coldstart.trace import SECTOR
from parbake.core import run
from parbake.verify.booted import VOLUME_DEVICE

if TYPE_CHECKING:
    from pathlib import Path

    from parbake.verify.booted import BootedNode

_MARKS: Final = 3
_EACH: Final = f'for at; do dd if={VOLUME_DEVICE} of=/dev/null bs={SECTOR} count=1 iflag=direct skip="$at"; done'
_RUNTIME: Final = "containerd.service"
_LIMIT: Final = 60.0  # seconds with hardware virtualisation


def mark(node: BootedNode, volume: Path) -> tuple[int, ...]:
    """Have some sectors of the volume read in the machine, each by itself; return them, for ``vm.marked_disk``.

    A file system reads larger blocks, and nobody knows beforehand which sectors these are. Raises MachineError.
    """
    marks = tuple(random.SystemRandom().sample(range(volume.stat().st_size // SECTOR), _MARKS))
    words = ["sh", "-ec", _EACH, "sh", *map(str, marks)]
    node.machine.guest.check(words, timeout=_LIMIT * node.machine.stretch)
    return marks


def let_go(node: BootedNode) -> None:
    """Stop the runtime and unmount the volume, so that no cache of the machine has anything of it.

    Raises MachineError, also where something that was started still uses it.
    """
    *_, place = node.mounting
    # At the end: udev looks at a disk that nobody uses any more, and what it reads is none of the next start's.
    for act in (["systemctl", "stop", _RUNTIME], ["umount", place], ["udevadm", "settle"]):
        node.machine.guest.check(act, timeout=_LIMIT * node.machine.stretch)


def take_up(node: BootedNode, filesystem: str) -> dict[str, float]:
    """Mount the volume and start the runtime on it; return the seconds of both stages.

    Its ``filesystem`` is named, so that nobody searches all of the disk for signatures: that was udev's, at the attach.
    Raises MachineError, ContainerdError, DeadlineExceeded.
    """
    limit, begun = _LIMIT * node.machine.stretch, time.monotonic()
    node.machine.guest.check([*node.mounting, "-t", filesystem], timeout=limit)
    mounted = time.monotonic()
    node.machine.guest.check(["systemctl", "start", _RUNTIME], timeout=limit)
    node.cri.wait_ready(run.Deadline(limit, "the runtime is ready for pods"))
    return {"mount": mounted - begun, "containerd": time.monotonic() - mounted}

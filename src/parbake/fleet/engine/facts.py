"""Who takes tasks from a queue, as the engine sees it: it remembers for minutes whoever has asked.

What a worker says of itself is in its name, which is not sealed:

``PID@HOST parbake/0.1.0 key/1a2b3c4d root loops kvm``: its version, a fingerprint of its key, what it can do.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import socket
from collections.abc import Collection
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest
from temporalio.client import Client

from parbake import __version__
from parbake.core.errors import EnvironmentProblem
from parbake.fleet.engine.tasks import BAKE

BAKERS_CAN = {"root": "it is not root", "loops": "it has no loop devices"}
"""What a worker of the queue ``bake`` must be able to, unless all that it bakes are ext4 volumes, and the words for one
that is not."""
_CAN = {"loops": Path("/dev/loop-control"), "kvm": Path("/dev/kvm")}


def fingerprint(key: bytes) -> str:
    """Return a word that tells keys apart, and nothing of them."""
    return hmac.new(key, b"parbake fleet fingerprint", hashlib.sha256).hexdigest()[:8]


@dataclass(frozen=True, slots=True)
class Facts:
    """A worker: its name, version, its key's fingerprint, and what it can (``root``, ``loops``, ``kvm``)."""

    name: str
    version: str = ""
    key: str = ""
    can: frozenset[str] = frozenset()

    @classmethod
    def of_this(cls, key: bytes) -> Self:
        """Return what is so of this process."""
        can = {name for name, path in _CAN.items() if path.exists()} | ({"root"} if os.geteuid() == 0 else set())
        return cls(f"{os.getpid()}@{socket.gethostname()}", __version__, fingerprint(key), frozenset(can))

    @classmethod
    def read(cls, identity: str) -> Self:
        """Return what a worker says of itself; one that is not parbake's, or older, has a name alone."""
        name, *words = identity.split()
        said = dict(word.split("/", 1) for word in words if "/" in word)
        can = frozenset(word for word in words if "/" not in word)
        return cls(name, said.get("parbake", ""), said.get("key", ""), can)

    def identity(self) -> str:
        """Return the facts as the engine hears them."""
        return " ".join([self.name, f"parbake/{self.version}", f"key/{self.key}", *sorted(self.can)])


def need_root(file: Path) -> bool:
    """Whether some bake of a fleet takes root, by its file; one whose Bakefile cannot be read might."""
    from parbake.fleet import cells  # reads YAML, which no task needs

    return cells.take_root(file)


def need_powers(queues: Collection[str], file: Path) -> None:
    """Raise EnvironmentProblem where this process cannot do what a queue asks for, by the fleet's file.

    It would take each task and fail it, until the key is in quarantine.
    """
    lacks = sorted(BAKERS_CAN.keys() - Facts.of_this(b"").can) if BAKE in queues and need_root(file) else []
    if lacks:
        raise EnvironmentProblem(
            f"a worker here cannot bake: {', '.join(BAKERS_CAN[each] for each in lacks)}",
            hint="run the worker as root, privileged; or let it plan and roll out: --queues control,roll; or name the "
            "fleet's file: where all that it bakes are ext4 volumes, no root is needed",
        )


_WAITS = timedelta(seconds=10)
"""A task that waits for so long has found nobody who asks: whoever has not asked since then is busy, or dead."""


@dataclass(frozen=True, slots=True)
class Pollers:
    """Whoever has asked, by identity, and how long ago; ``waits`` is how long the oldest task has been waiting."""

    asked: dict[str, timedelta]
    waits: timedelta = timedelta()

    def alive(self, busy: AbstractSet[str] = frozenset()) -> frozenset[str]:
        """Return who takes tasks, as far as can be told; ``busy`` are known to work on one. Pure."""
        waits = self.waits > _WAITS
        return frozenset(each for each, ago in self.asked.items() if not waits or ago < _WAITS or each in busy)


async def pollers(client: Client, queue: str) -> Pollers:
    """Ask the engine who takes tasks from a queue. Raises RPCError."""
    answer = await client.workflow_service.describe_task_queue(
        DescribeTaskQueueRequest(
            namespace=client.namespace,
            task_queue=TaskQueue(name=queue),
            task_queue_type=TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY,
            report_stats=True,
        )
    )
    now = datetime.now(UTC)
    asked = {each.identity: now - each.last_access_time.ToDatetime(UTC) for each in answer.pollers}
    stats = answer.stats
    waits = stats.approximate_backlog_age.ToTimedelta() if stats.approximate_backlog_count else timedelta()
    return Pollers(asked, waits)

"""Whose a thing in the kernel is that outlives its process (a cgroup, a trace instance): its name says it.

Containers and ``unshare --pid`` number their processes by themselves, yet share these places with everybody else. A
name therefore holds the PID namespace as well, and nobody is called dead by who cannot see whether he is
(pid_namespaces(7), proc_pid_stat(5)).
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

_NAME = re.compile(r"parbake-(\d+)-(\d+)-(\d+)-[0-9a-f]{8}")
_PROC = Path("/proc")
_FIRST_NAMESPACE = 0xEFFFFFFC  # PROC_PID_INIT_INO (include/linux/proc_ns.h): whoever is in it sees every process


def new_name() -> str:
    """Return a name for a thing of this process: PID namespace, process id, start time, and a part that is new."""
    pid = os.getpid()
    return f"parbake-{_namespace('self')}-{pid}-{_started(pid)}-{os.urandom(4).hex()}"


def is_orphan(name: str) -> bool:
    """Whether the owner that a name holds is dead for certain; False for names of any other form."""
    owner = _NAME.fullmatch(name)
    if owner is None:
        return False
    namespace, own = int(owner[1]), _namespace("self")
    if namespace == own:
        return _started(int(owner[2])) != owner[3]
    return own == _FIRST_NAMESPACE and not any(
        _namespace(entry.name) == namespace for entry in _PROC.iterdir() if entry.name.isdecimal()
    )


def _namespace(process: str) -> int:
    """Return the number of a process's PID namespace, 0 when there is no such process or it is not ours to see."""
    with suppress(OSError):
        return int((_PROC / process / "ns/pid").readlink().name.removeprefix("pid:[").removesuffix("]"))
    return 0


def _started(pid: int) -> str:
    """Return the start time of a process in ticks since boot, "" when there is none."""
    with suppress(OSError):
        return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[19]
    return ""

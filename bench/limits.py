"""The limit of a bake on this machine: what its processors and its disk allow, measured with the best tools there are.

The larger of two: CPU-seconds of inflating and of SHA-256 over both sides of every layer, over the cores; and the tars'
bytes over the speed at which a fresh volume takes them, with fsync.
"""

from __future__ import annotations

import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path

from parbake.core.model import MIB
from parbake.core.run import find, run
from parbake.machine.disk import Mounted

_INFLATERS = {
    "gzip": (["igzip", "-d", "-f", "-o", "/dev/null"], ["unpigz", "-t"]),
    "zstd": (["zstd", "-q", "-t"],),
}
_PIECE = 4 * MIB
_TIMEOUT = 1800.0


@dataclass(frozen=True)
class Limit:
    """All in seconds; ``inflate`` and ``hashing`` are CPU-seconds, ``writing`` is wall time."""

    inflate: float
    hashing: float
    writing: float
    inflater: str

    @property
    def processors(self) -> float:
        """Wall time if all cores could share the work evenly."""
        return (self.inflate + self.hashing) / cores()

    @property
    def seconds(self) -> float:
        """The limit."""
        return max(self.processors, self.writing)


def cores() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0))


def measure(blobs: list[Path], compression: str, size: int, raw_size: int, volume: Mounted) -> Limit:
    """Measure once. ``size`` and ``raw_size``: bytes of the blobs and of the tars in them."""
    paths = [str(path) for path in blobs]
    tools = [tool for tool in _INFLATERS[compression] if find(tool[0])]
    inflate, inflater = min((sum(_cpu([*tool, path]) for path in paths), tool[0]) for tool in tools)
    # One pass over what travels; the pass over the tars follows from its speed.
    per_byte = _cpu(["openssl", "dgst", "-sha256", *paths]) / size
    return Limit(inflate, per_byte * (size + raw_size), _write(volume.path / "sequential", raw_size), inflater)


def _cpu(command: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run(command, timeout=_TIMEOUT)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _write(path: Path, size: int) -> float:
    piece = memoryview(os.urandom(_PIECE))
    started = time.monotonic()
    with path.open("wb", buffering=0) as file:
        left = size
        while left:
            left -= file.write(piece[: min(left, _PIECE)])
        os.fsync(file.fileno())
    return time.monotonic() - started

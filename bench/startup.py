"""Measure what users wait for where there is little to do: help, a plan, a bake of what exists already. Needs root.

    make bench-startup [STARTUP_ROUNDS=15]

An image of one file is baked, and then the three commands take turns, each a process of its own, asked of a registry on
the loopback. The last line of standard output is one JSON object: for ``help``, ``plan`` and ``noop`` the ``seconds``
(median), the ``least`` of the rounds, the ``cpu`` seconds (the least: those of a machine that does nothing else), and
the ``goal``.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import statistics
import sys
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bench.bake import opened, say
from bench.images import Recipe
from bench.sides import Parbake
from parbake.core.errors import InputError
from parbake.core.events import Events
from parbake.core.run import run
from parbake.core.workspace import cache_folder

GOALS: Final = {"help": 0.15, "plan": 0.35, "noop": 0.25}
"""Seconds, on a machine that does nothing else."""


def one_file(work: Path, _: Events) -> Iterator[Path]:
    """Yield the tar of a layer with one file."""
    path = work / "one.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        member = tarfile.TarInfo("hello")
        member.size = 5
        tar.addfile(member, io.BytesIO(b"hello"))
    yield path


@dataclass
class Times:
    """What each round took: wall seconds, and CPU seconds of the process and all that it started."""

    walls: list[float] = field(default_factory=list)
    cpus: list[float] = field(default_factory=list)

    def measure(self, command: list[str], env: dict[str, str]) -> None:
        """Run a command once."""
        used, started = _children(), time.monotonic()
        run([sys.executable, "-m", "parbake", *command], env=env)
        self.walls.append(time.monotonic() - started)
        self.cpus.append(_children() - used)

    def summary(self, goal: float) -> dict[str, float]:
        """Return what goes into the last line."""
        found = {"seconds": statistics.median(self.walls), "least": min(self.walls), "cpu": min(self.cpus)}
        return {**{name: round(value, 3) for name, value in found.items()}, "goal": goal}


def _children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def measure(rounds: int) -> dict[str, dict[str, float]]:
    """Bake once, and then ask for what is there, in turns."""
    with opened(cache_folder() / "bench", "startup") as (shelf, work):
        image = shelf.get(Recipe("one-file", "gzip", ("one file",), one_file))
        _, record = Parbake().bake_in(work, image)
        if not record["changed"]:
            raise InputError("the first bake found its artefact", hint="this is a bug in the benchmark")
        rest = ["--file", str(work / "parbake.yaml"), "--progress", "none", "--json"]
        commands = {"help": ["--help"], "plan": ["plan", *rest], "noop": ["bake", "--no-verify", *rest]}
        times = {name: Times() for name in commands}
        for number in range(1, rounds + 1):
            for name, command in commands.items():
                times[name].measure(command, {"PARBAKE_CACHE": str(work / "cache")})
            told = ", ".join(f"{name} {each.walls[-1]:.3f} s" for name, each in times.items())
            say(f"  {number}/{rounds} {told}; load {os.getloadavg()[0]:.1f}")
    return {name: each.summary(GOALS[name]) for name, each in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="how often each command runs")
    print(json.dumps(measure(parser.parse_args().rounds)), flush=True)


if __name__ == "__main__":
    main()

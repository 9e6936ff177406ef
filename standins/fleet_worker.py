"""A worker of fleets whose parbake is a stand-in: ``python -m standins.fleet_worker STATE SLOTS [GRACE]``."""

from __future__ import annotations

import asyncio
import os
import py_compile
import sys
from collections.abc import Sequence
from pathlib import Path

from parbake.fleet.engine.connect import Engine
from parbake.fleet.engine.worker import serve
from standins import adopted, fleet_program

PROGRAM = (sys.executable, "-I", "-S", str(py_compile.compile(fleet_program.__file__, doraise=True)))


def work(arguments: Sequence[str]) -> None:
    state, slots, *grace = arguments
    seconds = float(grace[0]) if grace else 1.0
    pinned = os.environ.get("FLEET_WORKER_PINNED", "")
    engine, metrics = Engine(Path(state)), os.environ.get("FLEET_WORKER_METRICS", "")
    asyncio.run(serve(engine, slots=int(slots), grace=seconds, command=PROGRAM, pinned=pinned, metrics=metrics))


if __name__ == "__main__":
    adopted.main(work)

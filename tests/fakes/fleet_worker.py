"""A worker of fleets whose parbake is a stand-in: ``python -m tests.fakes.fleet_worker STATE SLOTS [GRACE]``."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from parbake.fleet.engine.connect import Engine
from parbake.fleet.engine.worker import serve
from tests.fakes import fleet_program

PROGRAM = (sys.executable, "-I", "-S", str(Path(fleet_program.__file__)))
PINNED = os.environ.get("FLEET_WORKER_PINNED", "")

if __name__ == "__main__":
    state, slots, *grace = sys.argv[1:]
    seconds = float(grace[0]) if grace else 1.0
    asyncio.run(serve(Engine(Path(state)), slots=int(slots), grace=seconds, command=PROGRAM, pinned=PINNED))

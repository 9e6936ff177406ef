"""Bake a large image on a fleet again and again, while its worker is killed at a random moment. Needs root.

    make bench-fleet-kills [FLEET_KILLS=10]
    python -m bench.fleet_kills [--kills 10] [--heartbeat 5]

Two workers on the real engine, parbake's own bakes (not verified), an image of 1.1 GiB that no compression makes
smaller from a registry of the loopback. The first bake has nobody killed: it tells how long one takes. Each other one
has its worker killed (SIGKILL, the worker's process alone) at a random moment of that time; the other worker finishes
it, and the dead one is started again. What is left is looked for one second after the kill (loop devices, mounts,
processes) and when the bake has been finished (work folders), by the kernel's lists and not by what parbake says.

Progress goes to standard error. The last line of standard output is one JSON object: ``bakes``, ``kills``;
``finished_by_another``; ``lost``, bakes without one record whose artefact has the bytes that it says; ``left_behind``
by kind; ``takeover_s``, from the kill until the other worker's parbake runs (``median``, ``max``), which cannot be less
than what is left of ``heartbeat_s``; ``begun_s``, where in a bake each kill was; ``bake_s``; ``image_mib``.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.bake import opened, say
from bench.images import NOISE
from parbake import records
from parbake.core.events import Events
from parbake.core.model import MIB
from parbake.core.workspace import cache_folder, remove_tree
from parbake.fleet.engine.tasks import Counts, Root
from parbake.machine import disk
from parbake.records.store import open_store
from standins.leaks import Snapshot, snapshot, work_folders
from standins.real_fleets import Machine, RealFleet

_LOOK = 0.02
_SETTLED = 1.0
_BAKEFILE = "version: 1\nname: {name}\nbase: none\nimages: ['{reference}']\n"


@dataclass
class Found:
    """What was seen of all bakes; ``left`` counts by kind."""

    bakes: int = 0
    by_another: int = 0
    lost: int = 0
    left: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("loops", "mounts", "processes", "folders"), 0))
    takeovers: list[float] = field(default_factory=list)
    moments: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def count(self, found: Snapshot, before: Snapshot, folders: int = 0) -> None:
        """Count what is there that was not before."""
        self.left["loops"] += len(found.loops - before.loops)
        self.left["mounts"] += len(found.mounts - before.mounts)
        self.left["processes"] += len(found.processes - before.processes)
        self.left["folders"] += folders

    def summary(self, heartbeat: float, image_size: int) -> dict[str, object]:
        """Return the last line."""
        return {
            "bakes": self.bakes,
            "kills": len(self.moments),
            "finished_by_another": self.by_another,
            "lost": self.lost,
            "left_behind": self.left,
            "takeover_s": _spread(self.takeovers),
            "heartbeat_s": heartbeat,
            "begun_s": [round(each, 1) for each in self.moments],
            "bake_s": round(self.seconds, 1),
            "image_mib": round(image_size / MIB),
        }


def _spread(values: list[float]) -> dict[str, float | None]:
    return {
        "median": round(statistics.median(values), 1) if values else None,
        "max": round(max(values), 1) if values else None,
    }


def moments(count: int, seconds: float) -> list[float]:
    """Return when workers die, in seconds after a bake's begin: at random, one in each part of it, in any order."""
    part = seconds / count
    chance = random.SystemRandom()
    found = [(number + chance.random()) * part for number in range(count)]
    chance.shuffle(found)
    return found


class Bench:
    """A fleet whose two workers share a folder, as those of ``fleet up`` do."""

    def __init__(self, fleet: RealFleet, reference: str, workers: list[Machine], found: Found) -> None:
        self._fleet, self._reference, self._workers, self._found = fleet, reference, workers, found

    def bake(self, name: str, moment: float | None) -> bool:
        """Bake once; with a ``moment`` its worker dies then. False where the bake had ended by then."""
        fleet, found = self._fleet, self._found
        folder = fleet.state.parent / name
        with self._bakefile(folder, name):
            before = snapshot(folder)
            fleet.start([f"{name}@amd64"], name=name)
            worker = _first(self._baking)
            began = time.monotonic()
            if moment is None:
                counts = fleet.end(name).counts
                found.seconds = time.monotonic() - began
            else:
                time.sleep(moment)
                if self._baking() is not worker:
                    fleet.end(name)
                    return False
                killed = self._killed(worker, folder, name, before)
                if killed is None:
                    return False
                counts = killed
                found.moments.append(moment)
            found.bakes += 1
            found.lost += not (counts.failed == 0 and counts.done == 1 and _is_whole(folder, name))
            found.count(snapshot(folder), before, len(work_folders(folder)))
        return True

    def _killed(self, worker: Machine, folder: Path, name: str, before: Snapshot) -> Counts | None:
        """Kill a worker; return how its bake ended, None where it had just done so."""
        killed = time.monotonic()
        worker.kill()
        time.sleep(_SETTLED)
        self._found.count(snapshot(folder), before)
        other = _first(lambda: self._baking() or ("nobody" if self._fleet.status(name).state == "completed" else None))
        seconds = time.monotonic() - killed
        counts = self._fleet.end(name).counts
        worker.worker.stop()
        worker.worker.__enter__()
        if other == "nobody":
            return None
        self._found.takeovers.append(seconds)
        self._found.by_another += other is not worker
        return counts

    def _baking(self) -> Machine | None:
        return next((each for each in self._workers if each.worker.alive and each.bakes()), None)

    @contextmanager
    def _bakefile(self, folder: Path, name: str) -> Iterator[None]:
        """Have a fleet of one cell in a folder, which goes with what was baked."""
        fleet = self._fleet
        fleet.store = folder / "store"
        (folder / name).mkdir(parents=True)
        (folder / name / "parbake.yaml").write_text(_BAKEFILE.format(name=name, reference=self._reference))
        text = f"version: 1\nname: {name}\nstore: {fleet.store}\nbakefiles: [{name}/parbake.yaml]\n"
        (folder / "fleet.yaml").write_text(text)
        fleet.at = Root(folder=str(folder))
        yield
        remove_tree(folder)


def _first[Seen](look: Callable[[], Seen | None]) -> Seen:
    """Wait until something is seen."""
    while (seen := look()) is None:
        time.sleep(_LOOK)
    return seen


def _is_whole(folder: Path, name: str) -> bool:
    """Whether there is one record, here and in the store, and the artefact has the bytes that it says."""
    output = folder / name / "artefacts"
    kept = list(open_store(str(folder / "store")).list("artefacts/"))
    found = records.find(output)
    if len(kept) != 1 or len(found) != 1 or not (record := found[0][1]).blocks:
        return False
    listed = disk.block_list(output / record.artefact, Events(), algorithm=record.blocks.algorithm)
    return listed.digest() == record.blocks.digest


def measure(kills: int, heartbeat: float, folder: Path) -> dict[str, object]:
    """Run it, with images cached below ``folder``; return what the last line says."""
    found = Found()
    with opened(folder, "fleet-kills") as (shelf, work), ExitStack() as stack:
        image = shelf.get(NOISE)
        fleet = stack.enter_context(RealFleet(work / "fleet", heartbeat=heartbeat))
        workers = [stack.enter_context(fleet.machine(each, slots=1)) for each in ("one", "two")]
        bench = Bench(fleet, image.reference, workers, found)
        bench.bake("whole", None)
        say(f"a bake takes {found.seconds:.1f} s")
        planned, tries = moments(kills, found.seconds), 0
        while planned:
            tries += 1
            moment = planned.pop()
            if not bench.bake(f"kill{tries}", moment):
                planned.append(found.seconds / 2 * random.SystemRandom().random())  # that one was faster
                continue
            say(f"killed after {moment:.1f} s: taken over {found.takeovers[-1]:.1f} s later; left {found.left}")
    return found.summary(heartbeat, image.size)


def main() -> None:
    """Read the arguments, measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10, help="how many bakes have their worker killed")
    parser.add_argument("--heartbeat", type=float, default=5.0, help="seconds after which a silent worker is dead")
    options = parser.parse_args()
    print(json.dumps(measure(options.kills, options.heartbeat, cache_folder() / "bench")), flush=True)


if __name__ == "__main__":
    main()

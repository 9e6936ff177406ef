"""Bake a thousand simulated cells on the real engine, while its server and each worker are killed once. No root.

    make bench-fleet [FLEET_BAKES=1000]

Four workers with four slots each; a bake is a process of its own that takes 50 ms and writes a record that only the
first of two can write, and a ledger of what began and what ended, which is what lost and doubled work is counted from:
not what the engine says of itself. The server gets SIGKILL once, and each worker once, at random moments. The last line
of standard output is one JSON object: ``bakes``; ``lost``, keys without a record; ``finished_twice`` and
``started_twice``, keys by the ledger; ``per_second``; ``server_cpu_ms_per_bake`` (user and system, both lives of the
server); ``server_rss_mib`` and ``worker_rss_mib``, at their highest.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from temporalio.client import Client

from parbake.core.run import Process
from parbake.fleet.engine.facts import pollers
from standins.fleet_program import key_of
from standins.fleets import Fleet, kill

WORKERS, SLOTS = 4, 4
HEARTBEAT = 5.0
_TICKS = os.sysconf("SC_CLK_TCK")


def say(text: str) -> None:
    """Write progress to standard error."""
    print(text, file=sys.stderr, flush=True)


@dataclass
class Usage:
    """What processes take: CPU seconds by process (the highest seen), and the highest resident MiB."""

    cpu: dict[int, float] = field(default_factory=dict)
    rss_mib: float = 0.0

    def look(self, process: Process) -> None:
        pid = process.pid
        with suppress(OSError, IndexError, ValueError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            self.cpu[pid] = (int(fields[11]) + int(fields[12])) / _TICKS
            self.rss_mib = max(self.rss_mib, int(fields[21]) * os.sysconf("SC_PAGE_SIZE") / (1 << 20))


def doubled(ledger: Counter[str], word: str) -> int:
    """Return how many keys something happened to more than once."""
    return sum(count > 1 for line, count in ledger.items() if line.startswith(f"{word} "))


def measure(bakes: int, folder: Path) -> dict[str, object]:
    """Run them, with the kills; return the figures."""
    cells = [f"cell-{number}" for number in range(bakes)]
    server, workers, over = Usage(), Usage(), threading.Event()
    with Fleet(folder, heartbeat=HEARTBEAT) as fleet:
        fleet.work(WORKERS, slots=SLOTS)
        fleet.wait_until(lambda: fleet.ask(_everybody) >= WORKERS, "the workers")

        def watch() -> None:
            while not over.wait(0.2):
                server.look(fleet.server)
                for worker in fleet.workers:
                    workers.look(worker)

        watching = threading.Thread(target=watch)
        watching.start()
        began = time.monotonic()
        fleet.start(cells, window=64)
        for victim in kills(bakes):
            fleet.wait_until(lambda victim=victim: len(fleet.records) >= victim[0], "records")  # type: ignore[misc]
            _kill(fleet, victim[1])
        ended = fleet.end()
        seconds = time.monotonic() - began
        over.set()
        watching.join()
        ledger, lost = fleet.ledger(), len({key_of(cell) for cell in cells} - fleet.records)
    say(f"the engine says: {ended.counts}")
    return {
        "bakes": bakes,
        "lost": lost,
        "finished_twice": doubled(ledger, "end") + sum(line.startswith("second ") for line in ledger),
        "started_twice": doubled(ledger, "start"),
        "per_second": round(bakes / seconds, 2),
        "server_cpu_ms_per_bake": round(sum(server.cpu.values()) * 1000 / bakes, 1),
        "server_rss_mib": round(server.rss_mib),
        "worker_rss_mib": round(workers.rss_mib),
    }


async def _everybody(client: Client) -> int:
    return len((await pollers(client, "bake")).alive())


def kills(bakes: int) -> Iterable[tuple[int, int]]:
    """Return after how many records which worker dies (from 0; -1 is the server), in order."""
    victims = [-1, *range(WORKERS)]
    random.shuffle(victims)
    places = sorted(random.sample(range(bakes // 10, bakes * 9 // 10), len(victims)))
    return zip(places, victims, strict=True)


def _kill(fleet: Fleet, victim: int) -> None:
    if victim >= 0:
        say(f"{len(fleet.records)} records: worker {victim + 1} dies")
        kill(fleet.workers[victim])
        fleet.work(1, slots=SLOTS)
        return
    say(f"{len(fleet.records)} records: the server dies")
    fleet.end_server()
    fleet.begin_server()


def main() -> None:
    parser = argparse.ArgumentParser(description="Bake simulated cells on a fleet while its parts are killed.")
    parser.add_argument("--bakes", type=int, default=1000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(arguments.bakes, Path(folder))))


if __name__ == "__main__":
    main()

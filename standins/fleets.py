"""A fleet on this machine: the engine's real server, workers whose parbake is a stand-in, the ledger of what they did.

with Fleet(tmp_path) as fleet:
    fleet.work(2)
    ended = fleet.run(["a@amd64", "b@amd64"])
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import pytest
from temporalio.client import Client
from temporalio.worker import Replayer

from parbake.core.events import Events
from parbake.core.run import Deadline, Process
from parbake.fleet.engine import local, rollouts, runs
from parbake.fleet.engine import workflows as workflows_of_runs
from parbake.fleet.engine.connect import Engine, connect
from parbake.fleet.engine.rollout_tasks import SignOff
from parbake.fleet.engine.rollouts import RolloutStatus
from parbake.fleet.engine.tasks import Destination, Progress, Root, RunRequest, bake_id
from parbake.fleet.engine.waves import Rollout
from standins.adopted import Program
from standins.fleet_program import key_of
from standins.loopback import free_port

_LIMIT = 300.0
_WORKER = Program("standins.fleet_worker")
# A server of a few minutes needs no collection of garbage, which takes a sixth of its time.
_NO_GARBAGE = {"GOGC": "off", "GOMEMLIMIT": "400MiB"}


class Fleet:
    """Use with ``with``; ``store`` is the folder that stands for one."""

    def __init__(self, folder: Path, *, heartbeat: float = 3.0) -> None:
        self.state, self.store, self._heartbeat = folder / "state", folder / "store", heartbeat
        (self.store / "records").mkdir(parents=True)
        self.root = folder / "root"
        (self.root / "targets").mkdir(parents=True)
        self.settings = local.Settings(port=free_port(), ui_port=free_port())
        self.engine = Engine(self.state)
        self.workers: list[Process] = []
        self._stack = ExitStack()
        self._runner = self._stack.enter_context(asyncio.Runner())
        self._client: Client | None = None

    def __enter__(self) -> Self:
        with pytest.MonkeyPatch.context() as patched:
            for name, value in _NO_GARBAGE.items():
                patched.setenv(name, value)
            self.server = self._stack.enter_context(local.server(self.state, self.settings, Events()))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def end_server(self, *, fresh: bool = False) -> None:
        """Kill the engine's server; with ``fresh`` its database goes, too."""
        kill(self.server)
        self.server.stop()
        for path in self.state.glob("fleet.db*") if fresh else ():
            path.unlink()

    def begin_server(self) -> None:
        """Start the server again."""
        self.server.__enter__()
        local.wait_for(self.settings.port, self.server)

    def work(
        self, count: int = 1, *, slots: int = 2, grace: float = 1.0, seconds: float = 0.05, before: Sequence[str] = ()
    ) -> list[Process]:
        """Start workers; ``before`` is a command that starts them."""
        arguments = [str(self.state), str(slots), str(grace)]
        env = {**os.environ, "FLEET_PROGRAM_SECONDS": str(seconds), "PYTHONPATH": str(Path(__file__).parents[1])}
        started = []
        for _ in range(count):
            log = self.state / f"worker-{len(self.workers) + 1}.log"
            if before:
                worker = Process([*before, sys.executable, "-m", _WORKER.module, *arguments], log=log, env=env)
            else:
                worker = _WORKER.process(arguments, log=log, env=env)
            started.append(self._stack.enter_context(worker))
            self.workers.append(started[-1])
        return started

    def request(self, cells: list[str], *, name: str = "shop", **more: Any) -> RunRequest:
        usual = {"window": 16, "heartbeat": self._heartbeat, "failures": 100}
        return RunRequest(name, "fleet.yaml", Root(str(self.root)), str(self.store), cells, **{**usual, **more})

    def ask[Answer](self, ask: Callable[[Client], Awaitable[Answer]]) -> Answer:
        """Ask the engine something."""

        async def go() -> Answer:
            self._client = self._client or await connect(self.engine)
            return await asyncio.wait_for(ask(self._client), _LIMIT)

        return self._runner.run(go())

    def start(self, cells: list[str], **more: Any) -> str:
        return self.ask(lambda client: runs.start(client, self.request(cells, **more)))

    def end(self, name: str = "shop") -> Progress:
        """Wait for the end of a run."""
        return self.ask(lambda client: runs.follow(client, name, str(self.store), lambda _: None))

    def run(self, cells: list[str], *, name: str = "shop", **more: Any) -> Progress:
        self.start(cells, name=name, **more)
        return self.end(name)

    def status(self, name: str = "shop") -> runs.Status:
        return self.ask(lambda client: runs.status(client, name, str(self.store)))

    def waves(self, *waves: dict[str, Any], windows: Sequence[str] = (), on_failure: str = "pause") -> None:
        """Say which targets are in which wave: ``{"name": "canary", "targets": ["a/one"], "soak": 1}``."""
        usual = {"at_once": 1, "soak": 0.0, "gate": None, "approve": None}
        document = {
            "waves": [{**usual, **wave, "targets": [_aim(each) for each in wave["targets"]]} for wave in waves],
            "windows": list(windows),
            "on_failure": on_failure,
        }
        (self.root / "waves.json").write_text(json.dumps(document))

    def places(self, *regions: str) -> list[Destination]:
        """Say in which regions all is to be; return them as a run asks for them."""
        (self.root / "places").write_text(" ".join(regions))
        return [Destination(region) for region in regions]

    def newer(self, word: str) -> None:
        """Let every cell have another key."""
        (self.root / "generation").write_text(word)

    def lines(self, *words: str) -> list[list[str]]:
        """Return what the ledger says that begins with one of these words, in order."""
        path = self.store / "ledger"
        found = (line.split(" ") for line in path.read_text().splitlines()) if path.exists() else ()
        return [line for line in found if line[0] in words]

    def target(self, name: str) -> Path:
        """Return the file that stands for a target: what was handed to it, the newest first."""
        return self.root / "targets" / name

    def empty_targets(self) -> None:
        """Let no target hold anything, and nothing have been written."""
        for path in self.target("").iterdir():
            path.unlink()

    def written(self) -> list[str]:
        """Return what became of targets, in order, such as ``write one art-0123abcd``."""
        path = self.target("ledger")
        return path.read_text().splitlines() if path.exists() else []

    def rollout(self, name: str = "shop") -> RolloutStatus:
        found = self.ask(lambda client: rollouts.status(client, name, str(self.store)))
        assert found
        return found

    def until(self, state: str, name: str = "shop") -> RolloutStatus:
        """Wait until the last rollout is in a state."""

        def reached() -> bool:
            found = self.ask(lambda client: rollouts.status(client, name, str(self.store)))
            return found is not None and found.state == state

        self.wait_until(reached, f"a rollout that is {state}")
        return self.rollout(name)

    def stop(self, command: str) -> None:
        """End the programs that run a command for this fleet."""
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                here = (entry / "cwd").resolve() == self.root
            except OSError:
                continue
            if here and command.encode() in words and b"-I" in words:
                os.kill(int(entry.name), signal.SIGKILL)

    def approve(self, wave: str = "", by: str = "ann", name: str = "shop") -> str:
        return self.ask(lambda client: rollouts.approve(client, name, SignOff(wave, by, "here")))

    def replay(self) -> None:
        """Replay the history of each run and rollout; raises NondeterminismError where it would do something else."""

        async def go(client: Client) -> None:
            workflows = [workflows_of_runs.Fleet, workflows_of_runs.Bake, Rollout]
            replayer = Replayer(workflows=workflows, namespace=client.namespace, data_converter=client.data_converter)
            async for each in client.list_workflows("WorkflowType != 'Bake'"):  # of which there are many, and short
                handle = client.get_workflow_handle(each.id, run_id=each.run_id)
                await replayer.replay_workflow(await handle.fetch_history())

        self.ask(go)

    def end_all(self) -> None:
        """End all runs that a test has left, so that they are nothing of the next one's."""

        async def go(client: Client) -> None:
            async for each in client.list_workflows("ExecutionStatus = 'Running'"):
                await client.get_workflow_handle(each.id).terminate()

        self.ask(go)

    def wait_until(self, holds: Callable[[], bool], what: str) -> None:
        """Look again and again, for a fifth of the time at most: an answer of the engine costs it much."""
        deadline = Deadline(_LIMIT, what)
        began = time.monotonic()
        while not holds():
            deadline.sleep(min(max(0.1, 4 * (time.monotonic() - began)), 1.0))
            began = time.monotonic()

    def bake_id(self, cell: str) -> str:
        """Return the name of the workflow that bakes a cell."""
        return bake_id(key_of(cell), str(self.store))

    def ledger(self) -> Counter[str]:
        """Return how often each thing happened, such as ``start KEY``."""
        path = self.store / "ledger"
        return Counter(path.read_text().splitlines()) if path.exists() else Counter()

    def happened(self, word: str) -> Counter[str]:
        """Return how often something happened to each key."""
        found = {line: count for line, count in self.ledger().items() if line.startswith(f"{word} ")}
        return Counter({line.split()[1]: count for line, count in found.items()})

    @property
    def records(self) -> set[str]:
        return {path.name for path in (self.store / "records").iterdir() if "." not in path.name}


def _aim(name: str) -> dict[str, str]:
    bakefile, target = name.split("/")
    return {"name": name, "bakefile": bakefile, "file": f"{bakefile}/parbake.yaml", "target": target, "kind": "file"}


def kill(process: Process, number: int = signal.SIGKILL) -> None:
    """Send a signal to a process alone: what it has started must find out by itself."""
    os.kill(process.pid, number)

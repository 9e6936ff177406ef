"""Everything on this machine: the engine's own server on the loopback, and workers, as children that end with us.

The server is for one machine and disposable: its database holds the order of work, and the store what is true.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from google.protobuf.duration_pb2 import Duration
from temporalio.api.namespace.v1 import NamespaceConfig
from temporalio.api.workflowservice.v1 import UpdateNamespaceRequest

from parbake.core import atomic
from parbake.core.access import private_folder
from parbake.core.errors import CommandFailed, DeadlineExceeded, EngineUnreachable, EnvironmentProblem
from parbake.core.events import Events
from parbake.core.extras import how_to_add
from parbake.core.ports import is_free
from parbake.core.run import Deadline, Process, find, sleep
from parbake.core.workspace import lock
from parbake.fleet.engine.activities import GRACE
from parbake.fleet.engine.connect import ADDRESS_FILE, Client, Engine, connect
from parbake.fleet.engine.failures import in_words
from parbake.fleet.engine.sealing import make_key

_RETENTION = timedelta(days=30)
_START_SECONDS = 30.0
_LETS_GO = 5.0  # seconds in which who was killed has closed what it had open
_LOOK = 0.5
# Queues in one part: of their usual four, the engine shows only the workers that happen to wait at the first.
_DYNAMIC = tuple(
    word
    for setting in (
        "matching.enableFairness=true",
        "matching.numTaskqueueReadPartitions=1",
        "matching.numTaskqueueWritePartitions=1",
    )
    for word in ("--dynamic-config-value", setting)
)


@dataclass(frozen=True, slots=True)
class Settings:
    """How much runs here, where the server and its web interface listen, and the fleet's file."""

    workers: int = 2
    slots: int = 1
    port: int = 7233
    ui_port: int = 8233
    grace: float = 5.0
    file: Path = Path("fleet.yaml")


def program() -> str:
    """Return the engine's program: of PATH, else the one that came with parbake's extra. Raises EnvironmentProblem."""
    found = find("temporal") or find(str(Path(sysconfig.get_path("scripts")) / "temporal"))
    if found is None:
        raise EnvironmentProblem("Temporal's program is not installed", hint=how_to_add("fleet"))
    return found


def server_command(state: Path, settings: Settings) -> list[str]:
    """Return how the server is started: on the loopback, with SQLite's write-ahead log, which is four times as fast."""
    return [
        program(), "server", "start-dev", "--ip", "127.0.0.1", "--port", str(settings.port),
        "--ui-port", str(settings.ui_port), "--db-filename", str(state / "fleet.db"),
        "--sqlite-pragma", "journal_mode=WAL", *_DYNAMIC, "--log-level", "warn",
    ]  # fmt: skip


def worker_command(state: Path, settings: Settings) -> list[str]:
    """Return how a worker is started."""
    return [
        sys.executable, "-m", "parbake", "fleet", "worker", "--state", str(state), "--slots", str(settings.slots),
        "--grace", str(settings.grace), "--file", str(settings.file.absolute()),
    ]  # fmt: skip


@contextmanager
def server(state: Path, settings: Settings, events: Events) -> Iterator[Process]:
    """Run the server until the body ends; yields it when it answers. Raises EngineUnreachable, EnvironmentProblem."""
    private_folder(state)
    (state / ".gitignore").write_text("*\n")
    engine = Engine(state)
    make_key(engine.key)
    for port in (settings.port, settings.ui_port):
        _need_free(port)
    (state / ADDRESS_FILE).unlink(missing_ok=True)
    address = {"address": f"127.0.0.1:{settings.port}", "ui": f"http://127.0.0.1:{settings.ui_port}"}
    with Process(server_command(state, settings), log=state / "server.log", env=_environment()) as process:
        with events.stage("server", "Start the engine"):
            wait_for(settings.port, process)
            atomic.replace(state / ADDRESS_FILE, json.dumps(address))
            asyncio.run(_prepare(engine))
        yield process


def wait_for(port: int, process: Process) -> None:
    """Wait until the server listens. Raises EngineUnreachable with the end of its log."""
    deadline = Deadline(_START_SECONDS, "starting the engine")
    while True:
        try:
            process.check_alive()
        except CommandFailed as error:
            raise EngineUnreachable(
                f"the engine ended: {error.output}", hint="remove its database, which holds only the order of work"
            ) from error
        with socket.socket() as trying:
            if trying.connect_ex(("127.0.0.1", port)) == 0:
                return
        deadline.sleep(0.05)


async def _first_answer(engine: Engine) -> Client:
    """Connect to a server that listens, and may need some time yet until it answers. Raises EngineUnreachable."""
    deadline = Deadline(_START_SECONDS, "the engine's first answer")
    while True:
        try:
            return await connect(engine)
        except EngineUnreachable:
            if not deadline.left:
                raise
        await asyncio.sleep(_LOOK)


async def _prepare(engine: Engine) -> None:
    """Let histories be kept for a month: the default is a day."""
    await _keep_histories(await _first_answer(engine))


@in_words
async def _keep_histories(client: Client) -> None:
    kept = Duration()
    kept.FromTimedelta(_RETENTION)
    await client.workflow_service.update_namespace(
        UpdateNamespaceRequest(
            namespace=client.namespace, config=NamespaceConfig(workflow_execution_retention_ttl=kept)
        )
    )


def _need_free(port: int) -> None:
    """Raise EnvironmentProblem unless nobody listens on a port; an engine that was killed still may, for a moment."""
    deadline = Deadline(_LETS_GO, f"port {port}")
    while not is_free(port):
        try:
            deadline.sleep(_LOOK)
        except DeadlineExceeded:
            raise EnvironmentProblem(
                f"port {port} is in use", hint="another `fleet up` may run; --port and --ui-port name others"
            ) from None


def up(state: Path, settings: Settings, events: Events, on_ready: Callable[[dict[str, object]], object]) -> None:
    """Run the server and workers until somebody ends us; what dies is started again.

    Ctrl-C ends workers first, with what they run. Raises EngineUnreachable, EnvironmentProblem; DeadlineExceeded where
    another ``fleet up`` has this folder.
    """
    private_folder(state)
    with lock(state / "up.lock", what=str(state), timeout=1), ExitStack() as stack:
        engine = stack.enter_context(server(state, settings, events))
        workers = []
        for number in range(1, settings.workers + 1):
            log = state / f"worker-{number}.log"
            worker = stack.enter_context(Process(worker_command(state, settings), log=log, env=_environment()))
            stack.callback(worker.stop, settings.grace + GRACE + 5)
            workers.append(worker)
        on_ready(json.loads((state / ADDRESS_FILE).read_text()))
        while True:
            sleep(_LOOK)
            if not engine.alive:
                events.warn(f"the engine ended; restarting it (log: {state / 'server.log'})")
                engine.__enter__()
                wait_for(settings.port, engine)
            for number, worker in enumerate(workers, 1):
                if not worker.alive:
                    events.warn(f"worker {number} ended; restarting it (log: {worker.log})")
                    worker.__enter__()


def _environment() -> dict[str, str]:
    """Return what children get: all of ours, since workers take credentials from where parbake does.

    The engine wants a user's name, which who has only a number does not have (a container's, as a rule).
    """
    return {"USER": str(os.getuid()), **os.environ}

"""A registry on this machine's loopback (Debian's docker-registry), and a port for it."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from parbake.core import atomic
from parbake.core.ports import is_free
from parbake.core.run import Deadline, Process

HOST = "127.0.0.1"
FIRST_PORT = 5055
"""Where the demo's registry listens, unless something else does: it is part of the image's reference."""
_PORTS_TRIED = 100
_START_SECONDS = 30.0


def free_port(first: int = FIRST_PORT) -> int:
    """Return the first free TCP port of the loopback from ``first`` on, or any that the kernel has."""
    return next((port for port in range(first, first + _PORTS_TRIED) if is_free(port)), 0) or _any_port()


def _any_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


@contextmanager
def serve_registry(folder: Path, port: int) -> Iterator[str]:
    """Serve a registry on the loopback and yield its ``host:port``.

    Its content stays in ``folder``. Raises EnvironmentProblem when it is not installed, CommandFailed when it ends
    (the port is taken), DeadlineExceeded when it does not listen.
    """
    folder.mkdir(parents=True, exist_ok=True)
    host = f"{HOST}:{port}"
    config = {
        "version": 0.1,
        "log": {"level": "info", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(folder.absolute() / "content")}},
        "http": {"addr": host},
    }
    file, log = folder / "config.json", folder / "log"  # YAML is a superset of JSON
    atomic.replace(file, json.dumps(config))
    log.unlink(missing_ok=True)
    with Process(["docker-registry", "serve", str(file)], log=log) as process:
        deadline = Deadline(_START_SECONDS, f"the registry listens on {host}")
        # Its own word, since something else may listen there.
        while f"listening on {host}" not in process.tail:
            process.check_alive()
            deadline.sleep(0.05)
        yield host

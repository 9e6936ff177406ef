"""This machine as a place to start containers in: a network of its own without any way out, and its clocks."""

from __future__ import annotations

import http.client
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from pathlib import Path

from parbake.core import run
from parbake.core.errors import MachineError
from parbake.machine.vm import Clock, Waited

_POLL = 0.005


class LocalHost:
    """This machine, as ``verify.starter.ContainerHost`` asks for it. Use it in the thread that has the network."""

    def check(self, argv: Sequence[str], *, timeout: float = 60.0, stdin: bytes = b"") -> str:
        """Run a program and return its output; raises CommandFailed."""
        return run.run(list(argv), timeout=timeout, stdin=stdin or None).text

    def read(self, path: str, *, offset: int = 0, limit: int = 1 << 16) -> bytes:
        """Return up to ``limit`` bytes of a file, from ``offset``; raises MachineError."""
        try:
            with Path(path).open("rb") as file:
                file.seek(offset)
                return file.read(limit)
        except OSError as error:
            raise MachineError(f"{path}: {error.strerror}") from error

    def now(self) -> Clock:
        """Return this machine's clocks."""
        return Clock(time.time_ns(), time.monotonic())

    def wait_tcp(self, port: int, seconds: float) -> Waited:
        """Wait until something accepts on a port of the loopback."""

        def knock() -> None:
            with socket.create_connection(("127.0.0.1", port), timeout=1.0):
                pass

        return self._wait(knock, seconds)

    def wait_http(self, port: int, path: str, seconds: float) -> Waited:
        """Wait until GET of a path on the loopback answers with 200 to 399."""

        def ask() -> None:
            with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=max(1.0, seconds))) as connection:
                connection.request("GET", path)
                status = connection.getresponse().status
                if not 200 <= status < 400:
                    raise ConnectionError(f"answers with {status}")

        return self._wait(ask, seconds)

    def _wait(self, attempt: Callable[[], None], seconds: float) -> Waited:
        end, why = time.monotonic() + seconds, ""
        while True:
            try:
                attempt()
            except (OSError, http.client.HTTPException) as error:
                why = str(error)
            else:
                return Waited(True, self.now())
            if time.monotonic() >= end:
                return Waited(False, self.now(), why)
            with suppress(OSError):
                run.sleep(_POLL)

"""QEMU's control connection (QMP): commands out, results in, events noted.

Source: QEMU's ``docs/interop/qmp-spec.rst``: newline-delimited JSON, a greeting, ``qmp_capabilities`` first.
"""

from __future__ import annotations

import json
import socket
import threading
from typing import Any, Self

from parbake.core.errors import MachineError

_LONGEST = 4 << 20  # bytes of a line: QEMU has a guest in it, which may have taken it over
_ANSWER_LIMIT = 60.0  # seconds; QEMU answers at once unless the host is badly overloaded


class Qmp:
    """One QMP connection over a connected socket; thread-safe."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._connection.settimeout(_ANSWER_LIMIT)
        self._lines = connection.makefile("rb")
        self._lock = threading.Lock()
        self.events: list[str] = []
        """Names of the events that came with answers, in order."""

    def greet(self) -> Self:
        """Read the greeting and enter command mode; raises MachineError."""
        greeting = self._read("the greeting")
        if "QMP" not in greeting:
            raise MachineError(f"QEMU's control socket said {greeting} instead of a greeting")
        self.execute("qmp_capabilities")
        return self

    def lend(self, name: str, handle: int) -> None:
        """Hand QEMU an open file, which other commands call ``fd:<name>``; raises MachineError."""
        self._execute("getfd", {"fdname": name}, [handle])

    def execute(self, command: str, **arguments: Any) -> Any:
        """Run one command and return its result; raises MachineError when QEMU refuses or is gone."""
        return self._execute(command, arguments, [])

    def _execute(self, command: str, arguments: dict[str, Any], handles: list[int]) -> Any:
        request = {"execute": command, **({"arguments": arguments} if arguments else {})}
        with self._lock:
            try:
                line = json.dumps(request).encode() + b"\n"
                # Open files come with the first byte: a longer line may be sent in parts.
                sent = socket.send_fds(self._connection, [line], handles) if handles else 0
                self._connection.sendall(line[sent:])
            except OSError as error:
                raise MachineError(f"QEMU ended before {command}: {error}") from error
            while True:
                message = self._read(command)
                if "event" in message:
                    self.events.append(message["event"])
                elif "error" in message:
                    raise MachineError(f"QEMU refused {command} {arguments}: {_reason(message['error'])}")
                else:
                    return message.get("return")

    def _read(self, what: str) -> dict[str, Any]:
        try:
            line = self._lines.readline(_LONGEST)
            message = json.loads(line) if line else None
        except (OSError, ValueError, RecursionError) as error:
            raise MachineError(f"QEMU did not answer {what}: {error}") from error
        if not isinstance(message, dict):
            raise MachineError(f"QEMU ended before it answered {what}")
        return message

    def close(self) -> None:
        """Close the connection."""
        self._lines.close()
        self._connection.close()


def _reason(error: object) -> object:
    return error.get("desc", error) if isinstance(error, dict) else error

"""The host's end of the guest agent (``node/agent.py``): requests, and connections into the guest's Unix sockets."""

from __future__ import annotations

import base64
import json
import os
import socket
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from parbake.core.errors import MachineError
from parbake.core.printable import writable

_CHUNK = 1 << 16
_SEED = 32  # bytes: what the kernel's generator takes
_PART = 48 << 10  # bytes of a connection in one line: 64 KiB in base64
_LONGEST = 4 << 20  # bytes of a line that is listened to: the agent's own have a tenth of that
_MOST = 1 << 62  # nanoseconds or seconds that a clock may show


@dataclass(frozen=True, slots=True)
class Clock:
    """A moment in the guest: wall clock in nanoseconds since 1970, monotonic clock in seconds."""

    wall: int
    monotonic: float


@dataclass(frozen=True, slots=True)
class Waited:
    """Whether a wait in the guest came true, when it ended, and otherwise the last reason why not."""

    up: bool
    at: Clock
    why: str = ""


@dataclass(frozen=True, slots=True)
class Ran:
    """What a program in the guest left: its code (None: stopped by the time limit) and the end of its output."""

    code: int | None
    output: str


class Guest:
    """Speaks with the agent over whichever of the given sockets it says hello on. Thread-safe.

    ``grace`` is how many seconds beyond an operation's own limit the host waits for the answer.
    """

    def __init__(self, ports: Sequence[socket.socket], *, grace: float = 60.0) -> None:
        self._ports = ports
        self._grace = grace
        self._port: socket.socket | None = None
        self._hello = threading.Event()
        self._sending = threading.Lock()
        self._numbers = count(1)
        self._state = threading.Lock()
        self._pending: dict[int, Future[dict[str, Any]]] = {}
        self._streams: dict[int, socket.socket] = {}
        self._open_ends = len(ports)
        self._listeners: list[socket.socket] = []
        self._handles: list[int] = []
        for port in ports:
            threading.Thread(target=self._read, args=(port,), daemon=True).start()

    def wait_hello(self, seconds: float) -> bool:
        """Wait up to ``seconds`` for the agent; return whether it is there."""
        return self._hello.wait(seconds)

    @property
    def speaks_first(self) -> bool:
        """Whether the agent said hello on the first of the sockets."""
        return self._port is self._ports[0]

    def resume(self, seconds: float) -> None:
        """Take up with the agent of a machine that was kept while it spoke on the first of the sockets.

        It gets the time of now and other random numbers than in its other lives: what containers make of either is to
        be true and theirs alone. Raises MachineError when it does not answer within ``seconds``.
        """
        self._port = self._ports[0]
        seed = base64.b64encode(os.urandom(_SEED)).decode()
        self.call("resume", within=seconds, grace=0.0, wall=time.time_ns(), seed=seed)
        self._hello.set()

    def close(self) -> None:
        """Close every connection; the reading threads end."""
        with self._state:
            sockets = (*self._ports, *self._listeners, *self._streams.values())
            handles, self._handles = self._handles, []
        for one in sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        for handle in handles:
            os.close(handle)

    # requests

    def call(self, op: str, *, within: float = 10.0, grace: float | None = None, **arguments: Any) -> dict[str, Any]:
        """Have the agent do ``op``, which takes up to ``within`` seconds there; raises MachineError."""
        patience = within + (self._grace if grace is None else grace)
        number = next(self._numbers)
        future: Future[dict[str, Any]] = Future()
        with self._state:
            self._pending[number] = future
        try:
            self._send(request=number, op=op, **arguments)
            answer = future.result(patience)
        except TimeoutError as error:
            raise MachineError(f"the guest agent did not answer {op} within {patience:.0f} s") from error
        finally:
            with self._state:
                self._pending.pop(number, None)
        if "error" in answer:
            raise MachineError(f"the guest could not do {op} {arguments or ''}: {writable(str(answer['error']))}")
        result = answer.get("result") or {}
        if not isinstance(result, dict):
            raise _nonsense(op)
        return result

    def run(self, argv: Sequence[str], *, timeout: float = 60.0, stdin: bytes = b"") -> Ran:
        """Run a program in the guest; output (both streams) is cut to its last 64 KiB."""
        data = base64.b64encode(stdin).decode()
        answer = self.call("run", within=timeout, argv=list(argv), timeout=timeout, stdin=data)
        code, output = answer.get("code"), answer.get("output")
        if not isinstance(code, int | None) or not isinstance(output, str):
            raise _nonsense("run")
        return Ran(code, writable(output))

    def check(self, argv: Sequence[str], *, timeout: float = 60.0, stdin: bytes = b"") -> str:
        """Run a program in the guest and return its output; raises MachineError when it fails."""
        ran = self.run(argv, timeout=timeout, stdin=stdin)
        if ran.code != 0:
            ended = f"was stopped after {timeout:.0f} s" if ran.code is None else f"ended with code {ran.code}"
            raise MachineError(f"in the guest, `{' '.join(argv)}` {ended}\n{ran.output.rstrip()}")
        return ran.output

    def read(self, path: str, *, offset: int = 0, limit: int = _CHUNK) -> bytes:
        """Return up to ``limit`` bytes of a file in the guest, from ``offset``."""
        try:
            return base64.b64decode(self.call("read", path=path, offset=offset, limit=limit)["data"])[:limit]
        except (KeyError, ValueError, TypeError) as error:
            raise _nonsense("read") from error

    def now(self) -> Clock:
        """Return the guest's clocks."""
        return _clock(self.call("now"), "now")

    def wait_unix(self, path: str, seconds: float) -> Waited:
        """Wait in the guest until a Unix socket accepts."""
        return self._wait(seconds, what="unix", path=path)

    def wait_tcp(self, port: int, seconds: float) -> Waited:
        """Wait in the guest until something accepts on a port of its loopback."""
        return self._wait(seconds, what="tcp", port=port)

    def wait_http(self, port: int, path: str, seconds: float) -> Waited:
        """Wait in the guest until GET of a path on its loopback answers with 200 to 399."""
        return self._wait(seconds, what="http", port=port, path=path)

    def _wait(self, seconds: float, **what: Any) -> Waited:
        answer = self.call("wait", within=2 * seconds, timeout=seconds, **what)
        return Waited(answer.get("up") is True, _clock(answer, "wait"), writable(str(answer.get("why", ""))))

    # connections

    def forward(self, socket_path: Path, guest_path: str) -> Path:
        """Listen on a new Unix socket; each connection to it is one to ``guest_path`` in the guest.

        All connections share one port without a window each: who opens one must read what comes (gRPC does).
        Returns the path to connect to from this process: a short one through an open folder, since the name of a Unix
        socket ends after 107 bytes and work folders lie deep.
        """
        folder = os.open(socket_path.parent, os.O_RDONLY | os.O_DIRECTORY)
        path = Path(f"/proc/self/fd/{folder}", socket_path.name)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()
        with self._state:
            self._handles.append(folder)
            self._listeners.append(listener)
        threading.Thread(target=self._accept, args=(listener, guest_path), daemon=True).start()
        return path

    def _accept(self, listener: socket.socket, guest_path: str) -> None:
        with suppress(OSError):  # closed: the machine ends
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=self._carry, args=(connection, guest_path), daemon=True).start()

    def _carry(self, connection: socket.socket, guest_path: str) -> None:
        stream = next(self._numbers)
        with self._state:
            self._streams[stream] = connection
        with suppress(OSError, MachineError):  # either end went away: so does the other
            self.call("connect", stream=stream, path=guest_path)
            while data := connection.recv(_PART):
                self._send(stream=stream, data=base64.b64encode(data).decode())
        with suppress(MachineError):
            self._send(stream=stream, end=True)
        self._end_stream(stream)

    def _end_stream(self, stream: int) -> None:
        with self._state:
            connection = self._streams.pop(stream, None)
        if connection is not None:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    # the port

    def _send(self, **message: Any) -> None:
        if self._port is None:
            raise MachineError("the guest agent has not started yet")
        try:
            with self._sending:
                self._port.sendall(json.dumps(message).encode() + b"\n")
        except OSError as error:
            raise MachineError(f"the machine is gone: {error}") from error

    def _read(self, port: socket.socket) -> None:
        with suppress(OSError), port.makefile("rb") as lines:
            while line := lines.readline(_LONGEST):
                with suppress(ValueError, RecursionError):  # noise of a serial line
                    message = json.loads(line)
                    if isinstance(message, dict):
                        self._take(port, message)
        with self._state:
            self._open_ends -= 1
            lost = list(self._pending.values()) if port is self._port or not self._open_ends else []
        for future in lost:
            with suppress(Exception):  # its caller gave up at this moment
                future.set_exception(MachineError("the machine ended before the guest agent answered"))

    def _take(self, port: socket.socket, message: dict[str, Any]) -> None:
        """Take one message of the guest, which may say anything: what is none of the agent's is noise."""
        number, stream = message.get("request"), message.get("stream")
        if isinstance(number, int):
            with self._state:
                future = self._pending.get(number)
            if future is not None:
                with suppress(InvalidStateError):  # it has answered already
                    future.set_result(message)
        elif isinstance(stream, int):
            with self._state:
                connection = self._streams.get(stream)
            if message.get("end"):
                self._end_stream(stream)
            elif connection is not None and isinstance(data := message.get("data"), str):
                with suppress(OSError):  # our side closed first
                    connection.sendall(base64.b64decode(data))
        elif "hello" in message:
            self._port = port
            self._hello.set()


def _clock(answer: dict[str, Any], op: str) -> Clock:
    wall, monotonic = answer.get("wall"), answer.get("monotonic")
    if not isinstance(wall, int) or not isinstance(monotonic, int | float):
        raise _nonsense(op)
    if not (-_MOST < wall < _MOST and -_MOST < monotonic < _MOST):  # nor what is no number
        raise _nonsense(op)
    return Clock(wall, monotonic)


def _nonsense(op: str) -> MachineError:
    return MachineError(f"the guest agent's answer to {op} makes no sense", hint="the machine is not to be trusted")

"""This machine as a place to start containers in: a network of its own without any way out, and its clocks."""

from __future__ import annotations

import fcntl
import http.client
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from parbake import run
from parbake.errors import EnvironmentProblem, MachineFault
from parbake.vm import Clock, Waited

_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1
_REQUEST = struct.Struct("16sh22x")  # struct ifreq: name, flags
_POLL = 0.005


@contextmanager
def no_network() -> Iterator[None]:
    """Run the body of this thread, and what it starts, in a network namespace that has a loopback and nothing else.

    Ports are free there, and no registry can be reached.
    """
    outside = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            os.unshare(os.CLONE_NEWNET)
        except OSError as error:
            raise EnvironmentProblem(
                f"no network namespace can be made here ({error.strerror})", hint="in a container, run it privileged"
            ) from error
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
                found = fcntl.ioctl(control, _SIOCGIFFLAGS, _REQUEST.pack(b"lo", 0))
                name, flags = _REQUEST.unpack(found)
                fcntl.ioctl(control, _SIOCSIFFLAGS, _REQUEST.pack(name, flags | _IFF_UP))
            yield
        finally:
            os.setns(outside, os.CLONE_NEWNET)
    finally:
        os.close(outside)


class Here:
    """This machine, as ``verify.start.Place`` asks for it. Use it in the thread that has the network."""

    def check(self, argv: Sequence[str], *, timeout: float = 60.0, stdin: bytes = b"") -> str:
        """Run a program and return its output; raises CommandFailed."""
        return run.run(list(argv), timeout=timeout, stdin=stdin or None).text

    def read(self, path: str, *, offset: int = 0, limit: int = 1 << 16) -> bytes:
        """Return up to ``limit`` bytes of a file, from ``offset``; raises MachineFault."""
        try:
            with Path(path).open("rb") as file:
                file.seek(offset)
                return file.read(limit)
        except OSError as error:
            raise MachineFault(f"{path}: {error.strerror}") from error

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

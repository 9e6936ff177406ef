"""Network namespaces: one with nothing but a loopback, and ports of this machine's own loopback lent to it.

Sources: network_namespaces(7), setns(2), netdevice(7); the kernel's ``linux/route.h``.
"""

from __future__ import annotations

import fcntl
import ipaddress
import os
import socket
import struct
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Self

from parbake.core.errors import EnvironmentProblem

_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1
_REQUEST = struct.Struct("16sh22x")  # struct ifreq: name, flags
_SIOCADDRT, _RTF_UP, _RTF_REJECT = 0x890B, 0x1, 0x200
_IN = struct.Struct("=H2x4s8x")  # struct sockaddr_in, without a port
_ROUTE = struct.Struct("=8x16s16s16sH62x")  # struct rtentry: destination, gateway, mask, flags
_HOST = "127.0.0.1"
_PIECE = 1 << 16
_BACKLOG = 128


@contextmanager
def no_network(*lent: int) -> Iterator[int]:
    """Run the body of this thread, and what it starts, in a network namespace that has a loopback and nothing else.

    Ports are free there, and no registry can be reached, but for those ports of this machine's loopback that are
    ``lent``. Yields the namespace as an open file, for as long as the body runs. Raises EnvironmentProblem where none
    can be made.
    """
    outside = _current()
    try:
        try:
            os.unshare(os.CLONE_NEWNET)
        except OSError as error:
            raise EnvironmentProblem(
                f"cannot make a network namespace here ({error.strerror})", hint="in a container, run it privileged"
            ) from error
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
                found = fcntl.ioctl(control, _SIOCGIFFLAGS, _REQUEST.pack(b"lo", 0))
                name, flags = _REQUEST.unpack(found)
                fcntl.ioctl(control, _SIOCSIFFLAGS, _REQUEST.pack(name, flags | _IFF_UP))
            with ExitStack() as stack:
                inside = _current()
                stack.callback(os.close, inside)
                if lent:
                    with within(outside):
                        for port in lent:
                            stack.enter_context(Lent(inside, port))
                yield inside
        finally:
            os.setns(outside, os.CLONE_NEWNET)
    finally:
        os.close(outside)


def _current() -> int:
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


@contextmanager
def within(namespace: int) -> Iterator[None]:
    """Run the body of this thread in a network namespace."""
    outside = _current()
    try:
        os.setns(namespace, os.CLONE_NEWNET)
        try:
            yield
        finally:
            os.setns(outside, os.CLONE_NEWNET)
    finally:
        os.close(outside)


def refuse(namespace: int, networks: Iterable[str]) -> None:
    """Let nobody in a namespace reach some networks (IPv4, as 10.0.0.0/8): only who administers it can change that.

    Raises OSError.
    """
    with within(namespace), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for network in map(ipaddress.IPv4Network, networks):
            words = (_IN.pack(socket.AF_INET, part.packed) for part in (network.network_address, network.netmask))
            address, mask = words
            route = _ROUTE.pack(address, _IN.pack(socket.AF_INET, bytes(4)), mask, _RTF_UP | _RTF_REJECT)
            fcntl.ioctl(control, _SIOCADDRT, route)


class Lent:
    """A port of the loopback that this thread sees, lent to a namespace until ``close``. Use with ``with``.

    Each connection there becomes one here, made by this process: nothing else of this machine is reached.
    """

    def __init__(self, namespace: int, port: int) -> None:
        self._port = port
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        with within(namespace):
            self._listener = socket.create_server((_HOST, port), backlog=_BACKLOG)
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Take the port back and end its connections."""
        with self._lock:
            ends, self._open = [self._listener, *self._open], set()
        for end in ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                inside, _ = self._listener.accept()
                threading.Thread(target=self._carry, args=(inside,), daemon=True).start()

    def _carry(self, inside: socket.socket) -> None:
        with inside, suppress(OSError), socket.create_connection((_HOST, self._port)) as outside:
            with self._lock:
                self._open |= {inside, outside}
            back = threading.Thread(target=_pump, args=(outside, inside), daemon=True)
            back.start()
            _pump(inside, outside)
            back.join()
            with self._lock:
                self._open -= {inside, outside}


def _pump(source: socket.socket, target: socket.socket) -> None:
    """Pass on what comes until its end, and the end as well."""
    with suppress(OSError):  # either side went away
        while data := source.recv(_PIECE):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)

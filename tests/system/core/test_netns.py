"""A network that leads nowhere, and the ports that are lent to it."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from parbake.core.netns import Lent, no_network, within

pytestmark = pytest.mark.root


@pytest.fixture
def echo() -> Iterator[int]:
    """A server of the machine's loopback that says again what it hears, up to the end of it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    heard = b""
                    while data := connection.recv(1 << 16):
                        heard += data
                    connection.sendall(heard)

        threading.Thread(target=serve, daemon=True).start()
        yield int(listener.getsockname()[1])
        listener.shutdown(socket.SHUT_RDWR)


def ask(port: int, data: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(1 << 16), b""))


@pytest.fixture
def nowhere() -> Iterator[int]:
    with no_network() as namespace:
        kept = os.dup(namespace)
    yield kept
    os.close(kept)


def test_a_lent_port_is_all_that_is_reached(echo: int, nowhere: int) -> None:
    data = os.urandom(3 << 20)
    with socket.create_server(("127.0.0.1", 0)) as other, Lent(nowhere, echo) as lent, within(nowhere):
        assert ask(echo, data) == data
        assert ask(echo, b"again") == b"again"
        with pytest.raises(ConnectionRefusedError):
            ask(other.getsockname()[1], b"")
        with pytest.raises(OSError, match="unreachable"):
            socket.create_connection(("169.254.169.254", 80), timeout=5)
        lent.close()
        with pytest.raises(ConnectionRefusedError):
            ask(echo, b"")


def test_where_nothing_listens_the_connection_ends(echo: int, nowhere: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = int(gone.getsockname()[1])
    with Lent(nowhere, port), within(nowhere):
        assert ask(port, b"") == b""
    assert ask(echo, b"outside") == b"outside"


def test_the_thread_is_back_where_it_was() -> None:
    before = Path("/proc/thread-self/ns/net").readlink()
    with no_network():
        assert Path("/proc/thread-self/ns/net").readlink() != before
    assert Path("/proc/thread-self/ns/net").readlink() == before

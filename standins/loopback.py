"""Ports and addresses of the loopback that are a test's own, also where several runs of all tests share a machine."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from parbake.core.run import run

_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_CHANCE = random.SystemRandom()  # Hypothesis seeds the usual one, in each run alike


def free_port() -> int:
    """Return a port for a server that starts later, and again: the kernel gives it to nobody who asks for just any."""
    first = int(_RANGE.read_text().split()[0])
    while True:
        port = _CHANCE.randrange(first // 2, first)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@contextmanager
def own_address() -> Iterator[str]:
    """Give this machine an address (RFC 5737) that is like any host's; needs root.

    Docker asks 127.0.0.1 without looking at certificates, and to a virtual machine that is itself.
    """
    others = (f"198.51.100.{number}" for number in _CHANCE.sample(range(1, 255), 254))
    address = next(each for each in others if not _ip("add", each, check=False))
    try:
        yield address
    finally:
        _ip("delete", address)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """An address of this host's loopback that means the same to a machine, and that no proxy is asked for."""
    with own_address() as found:
        yield found


def _ip(verb: str, address: str, *, check: bool = True) -> int:
    """Return the exit code: an address that is there cannot be added."""
    return run(["ip", "address", verb, f"{address}/32", "dev", "lo"], check=check).code

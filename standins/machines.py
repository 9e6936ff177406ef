"""Machines that share a store, all in this process: each has a name, a cache and folders of its own.

with machines.on("two"):
    ...                      # is done on that machine, also by threads that `elsewhere` starts
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import pytest

from parbake.builders import ebs
from parbake.records.store import leases

_here: ContextVar[str] = ContextVar("machine", default="one")


def install(monkeypatch: pytest.MonkeyPatch, folder: Path, *, ttl: float = 0.3) -> None:
    """Let leases expire after ``ttl`` seconds, and caches be those of machines, below a folder."""
    monkeypatch.setattr(leases, "TTL", ttl)
    monkeypatch.setattr(leases, "RENEWAL", min(ttl / 6, 15.0))
    monkeypatch.setattr(leases, "LOOK", 0.01)
    monkeypatch.setattr(leases, "this_machine", _here.get)
    for module in (leases, ebs):
        monkeypatch.setattr(module, "cache_folder", lambda: folder / _here.get() / "cache")


@contextmanager
def on(machine: str) -> Iterator[None]:
    """Be on a machine."""
    token = _here.set(machine)
    try:
        yield
    finally:
        _here.reset(token)


def elsewhere(act: Callable[[], object], machine: str) -> threading.Thread:
    """Do something on another machine meanwhile."""

    def go() -> None:
        with on(machine):
            act()

    thread = threading.Thread(target=go)
    thread.start()
    return thread

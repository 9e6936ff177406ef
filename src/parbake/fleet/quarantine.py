"""Keys that have failed too often: objects of the store, so that no run on any machine tries them again.

A mended Bakefile has another key, and is free by itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from parbake.records.store import Store

_FOLDER = "quarantine/"


@dataclass(frozen=True, slots=True)
class Note:
    """Which cell failed, with which error of parbake."""

    cell: str
    error: str
    message: str


def add(address: str, key: str, note: Note) -> None:
    """Note that a key has failed too often."""
    from parbake.records.store import open_store  # workers need it once in a while, and start without it

    open_store(address).add(f"{_FOLDER}{key}", json.dumps(asdict(note)).encode())


def read(store: Store, key: str) -> Note | None:
    """Return why a key is not tried again; None where it is, as where somebody has broken the note."""
    from parbake.records.store import state_of

    if held := state_of(store, f"{_FOLDER}{key}"):
        with suppress(ValueError, TypeError, AttributeError, RecursionError):
            document = json.loads(held.content)
            return Note(**{name: str(document[name]) for name in Note.__dataclass_fields__ if name in document})
    return None


def lift(store: Store, keys: Iterable[str]) -> None:
    """Let keys be tried again."""
    for key in keys:
        store.remove(f"{_FOLDER}{key}")

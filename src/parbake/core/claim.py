"""The right to make what has one content key, among all machines that share a store.

Builders that publish in a cloud ask for it: two snapshots of one key cost money, and either could be handed out. A
machine that bakes for itself has nobody to ask (``Alone``).
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol


class Notes(Protocol):
    """What machines note of one piece of work, for whoever goes on with it: lines of text, in order.

    ``holder`` names this machine. A piece of work that is begun anew is another ``series``; ``begin`` begins this one.
    """

    @property
    def holder(self) -> str:  # noqa: D102
        ...

    @property
    def series(self) -> int:  # noqa: D102
        ...

    def read(self) -> str:
        """Return the lines of the newest series, empty where there is none."""
        ...

    def begin(self, line: str) -> None:
        """Begin a series: from now on its lines alone are read. Raises ClaimLost where another machine has."""
        ...

    def add(self, lines: str) -> None:
        """Add lines, each with its end. Raises ClaimLost where another machine has gone on."""
        ...

    def forget(self) -> None:
        """Let nothing of it be read any more: the work is done."""
        ...


class Claim(Protocol):
    """That this machine alone makes what has a key. Whoever takes over from a dead one keeps its ``run`` and ``began``.

    ``run`` is a random word that tells runs apart, ``began`` when the run began (None: now).
    """

    @property
    def run(self) -> str:  # noqa: D102
        ...

    @property
    def began(self) -> datetime | None:  # noqa: D102
        ...

    def need(self) -> None:
        """Raise ClaimLost where another machine has taken over meanwhile."""
        ...

    def notes(self, what: str) -> Notes | None:
        """Return the notes on a part of the work that all machines share; None where nobody else can read them."""
        ...


@dataclass(frozen=True, slots=True)
class Alone:
    """The claim of a machine that shares with nobody."""

    run: str = field(default_factory=lambda: os.urandom(6).hex())
    began: None = None

    def need(self) -> None:
        """Nobody can take over."""

    def notes(self, what: str) -> None:
        """Nobody else could read them."""
        del what

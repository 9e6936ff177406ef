"""Notes on work in a store, from which another machine continues it: objects that are added, and never written twice.

``notes/KEY.WHAT.SERIES-NUMBER`` holds some lines; the numbers of a series have no gap, so that of two writers one is
told that it is not alone any more.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from parbake.core.errors import ClaimLost
from parbake.records.store.port import Store, state_of

FOLDER = "notes/"
NAME = re.compile(rf"{FOLDER}[0-9a-f]{{64}}\.[A-Za-z0-9._-]+\.(?P<series>[0-9]{{4}})-[0-9]{{6}}")


class StoreNotes:
    """The notes on one piece of work. ``need`` raises ClaimLost where another machine has taken the work over."""

    def __init__(self, store: Store, what: str, holder: str, need: Callable[[], None]) -> None:
        self._store, self._prefix, self._need = store, f"{FOLDER}{what}.", need
        self.holder = holder
        self._series, self._count = 0, 0

    @property
    def series(self) -> int:
        """The number of the series that ``begin`` begins; ``read`` comes first."""
        return self._series + 1

    def read(self) -> str:
        """Return the lines of the newest series."""
        there = sorted(each.name for each in self._store.list(self._prefix))
        found = [match for name in there if (match := NAME.fullmatch(name))]
        newest = found[-1]["series"] if found else "0"
        names = [match[0] for match in found if match["series"] == newest]
        self._series, self._count = int(newest), len(names)
        held = (state_of(self._store, name) for name in names)
        return "".join(each.content.decode(errors="replace") for each in held if each)

    def begin(self, line: str) -> None:
        """Begin the next series."""
        self._series, self._count = self.series, 0
        self.add(f"{line}\n")

    def add(self, lines: str) -> None:
        """Add lines."""
        self._need()
        name, content = f"{self._prefix}{self._series:04d}-{self._count:06d}", lines.encode()
        if not self._store.add(name, content):
            held = self._store.get(name)
            if held is None or held.content != content:  # else the answer to a first try was lost
                raise ClaimLost(f"another machine has continued {name}")
        self._count += 1

    def forget(self) -> None:
        """Begin an empty series: no number is used twice, and those who bake need not be allowed to remove anything.

        Pruning removes what is a day old.
        """
        self.begin("{}")

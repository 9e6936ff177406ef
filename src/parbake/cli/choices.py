"""What options and arguments may say: a few fixed words, or names that are found here. Shells complete both.

Names are found without a network and without an engine. What is wrong with a file is said when a command runs: a shell
that completes gets no names then, and no error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from parbake.core.errors import InputError, ParbakeError

if TYPE_CHECKING:
    from parbake.records import Record

_PLAIN = re.compile(r"[A-Za-z0-9_./@:-]+")
"""What shells take as it is; zsh evaluates what it is given."""
_DIGITS_OF_KEYS = 12

type Words = Callable[[], Iterable[str]]


@dataclass(frozen=True, slots=True)
class Choice:
    """The words that an option takes; ``noun`` is what one of them is."""

    option: str
    noun: str
    words: Words

    def need(self, word: str) -> None:
        """Raise InputError for a word that is none of them."""
        *others, last = self.words()
        if word not in {*others, last}:
            hint = f"choose {', '.join(others)} or {last}" if others else f"write {last}"
            raise InputError(f"{self.option} {word}: no such {self.noun}", hint=hint)

    def complete(self, incomplete: str) -> list[str]:
        """Return the words, for shells; the last one of a list with commas is what is completed."""
        before, comma, _ = incomplete.rpartition(",")
        return [f"{before}{comma}{word}" for word in self.words()]


PROGRESS = Choice("--progress", "style", lambda: ("auto", "rich", "plain", "json", "none"))
PLATFORMS = Choice("--platform", "platform", lambda: ("linux/amd64", "linux/arm64"))


def _found(find: Callable[[Path], Iterable[str]], usual: str) -> Callable[[typer.Context], list[str]]:
    """Return what completes with names that are found by way of the file that --file names, or the ``usual`` one."""

    @wraps(find)
    def complete(ctx: typer.Context) -> list[str]:
        try:
            return sorted({name for name in find(Path(ctx.params.get("file") or usual)) if _PLAIN.fullmatch(name)})
        except (ParbakeError, OSError):
            return []

    del complete.__wrapped__  # typer asks for the parameters of what it calls
    return complete


def _known(file: Path) -> Iterable[Record]:
    from parbake import bakefile, records

    folder = bakefile.load(file).output if file.exists() else Path("artefacts")
    return (record for _, record in records.find(folder))


def _records(file: Path) -> Iterable[str]:
    """Name the artefacts in the Bakefile's folder, what they were baked from, and their content keys."""
    for record in _known(file):
        yield from (record.artefact, record.plan.name, record.key[:_DIGITS_OF_KEYS])


def _held(file: Path) -> Iterable[str]:
    """Name what a target may hold: artefacts, and their ids in EC2."""
    for record in _known(file):
        yield from (record.artefact, record.key[:_DIGITS_OF_KEYS])
        for there in record.published.values():
            yield from (there.image, *(disk.id for disk in there.snapshots))


def _targets(file: Path) -> Iterable[str]:
    """Name the targets of the Bakefile."""
    from parbake import bakefile

    return [target.name for target in bakefile.load(file).rollout]


def _cells(file: Path) -> Iterable[str]:
    """Name the cells of the fleet, and all of one Bakefile."""
    from parbake.fleet.cells import cells
    from parbake.fleet.file import load

    for cell in cells(load(file), file.absolute().parent):
        yield from (cell.name, cell.name.rpartition("@")[0])


def _waves(file: Path) -> Iterable[str]:
    """Name the waves of the fleet."""
    from parbake.fleet.file import load

    found = load(file).rollout
    return [wave.name for wave in found.waves] if found else []


records, held, targets = (_found(find, "parbake.yaml") for find in (_records, _held, _targets))
cells, waves = (_found(find, "fleet.yaml") for find in (_cells, _waves))

"""Which target gets the artefacts in which wave: what the fleet's file and its Bakefiles say, put together."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from parbake.bakefile import load
from parbake.core.errors import InputError
from parbake.fleet.cells import Cell
from parbake.fleet.rollout import Rollout, Wave

_MOST_NAMED = 20


@dataclass(frozen=True, slots=True)
class FleetTarget:
    """A target of a Bakefile, for all cells of that. ``bakefile`` is what they are named by, ``file`` its path."""

    bakefile: str
    file: str
    target: str
    kind: str

    @property
    def name(self) -> str:
        """What waves call it."""
        return f"{self.bakefile}/{self.target}"


@dataclass(frozen=True, slots=True)
class Plan:
    """The waves with their targets, and the targets that are in none."""

    rollout: Rollout
    waves: tuple[tuple[Wave, tuple[FleetTarget, ...]], ...]
    left: tuple[FleetTarget, ...]


def targets(folder: Path, cells: Sequence[Cell]) -> tuple[FleetTarget, ...]:
    """Return the targets of the Bakefiles of cells, in the order of the files. Raises BakefileError."""
    bakefiles = {cell.name.rpartition("@")[0]: cell.file for cell in cells}
    return tuple(
        FleetTarget(name, file, target.name, target.kind)
        for name, file in bakefiles.items()
        for target in load(folder / file).rollout
    )


def plan(rollout: Rollout, found: Sequence[FleetTarget], wanted: Collection[str] | None = None) -> Plan:
    """Put targets into waves; of some Bakefiles alone, if they are ``wanted``. Pure.

    Raises InputError where there are no targets, and for what names none.
    """
    if not found:
        raise InputError(
            "none of the Bakefiles has a target", hint="write `rollout` into them: rollout: [{file: image.json}]"
        )
    for wave in rollout.waves:
        for pattern in wave.targets:
            if not any(fnmatchcase(target.name, pattern) for target in found):
                known = ", ".join(target.name for target in found[:_MOST_NAMED])
                raise InputError(f"the wave {wave.name}: {pattern} names no target", hint=f"there are: {known}")
    taken: dict[str, str] = {}
    for wave in rollout.waves:
        for target in found:
            if any(fnmatchcase(target.name, pattern) for pattern in wave.targets):
                taken.setdefault(target.name, wave.name)
    rest = next((wave.name for wave in rollout.waves if wave.rest), None)
    if rest:
        for target in found:
            taken.setdefault(target.name, rest)
    shown = [target for target in found if wanted is None or target.bakefile in wanted]
    waves = tuple(
        (wave, tuple(target for target in shown if taken.get(target.name) == wave.name)) for wave in rollout.waves
    )
    return Plan(rollout, waves, tuple(target for target in shown if target.name not in taken))

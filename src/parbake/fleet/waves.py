"""Which target gets the artefacts in which wave: what the fleet's file and its Bakefiles say, put together.

And what is asked between two waves: whether the nodes still run what they were given, and the fleet's own gate.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import groupby
from operator import attrgetter
from pathlib import Path

from parbake.bakefile import load
from parbake.core.errors import CommandFailed, DeadlineExceeded, InputError
from parbake.core.events import Events
from parbake.core.run import run
from parbake.fleet.cells import Cell
from parbake.fleet.rollout import Gate, Rollout, Wave
from parbake.workflows import rollout

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


@dataclass(frozen=True, slots=True)
class Answer:
    """What one of those that were asked has said; ``problem`` is empty where it said yes."""

    asked: str
    problem: str = ""
    said: str = ""


def ask_gate(
    fleet: str, plan: Plan, wave_name: str, folder: Path, events: Events, *, generation: str
) -> tuple[Answer, ...]:
    """Ask the targets of a wave, then its gate if they all say yes. Raises InputError for a wave that is not there."""
    found = next(((wave, targets) for wave, targets in plan.waves if wave.name == wave_name), None)
    if found is None:
        known = ", ".join(wave.name for wave, _ in plan.waves)
        raise InputError(f"the fleet has no wave {wave_name}", hint=f"waves are: {known}")
    wave, targets = found
    with events.stage("targets", f"Look at the targets of {wave.name}"):
        answers = list(_of_targets(targets, folder))
    if wave.gate and not any(each.problem for each in answers):
        env = {"PARBAKE_FLEET": fleet, "PARBAKE_WAVE": wave.name, "PARBAKE_GENERATION": generation}
        with events.stage("gate", f"Ask the gate of {wave.name}"):
            answers.append(_of_command(wave.gate, folder, env))
    return tuple(answers)


def _of_targets(targets: Sequence[FleetTarget], folder: Path) -> Iterable[Answer]:
    for file, group in groupby(targets, key=attrgetter("file")):
        named = {target.target: target.name for target in group}
        for report in rollout.status(folder / file, tuple(named)):
            yield Answer(named[report.target], _problem(report))


def _problem(report: rollout.TargetReport) -> str:
    status = report.status
    if status is None:
        return report.error
    if status.left is not None:
        return f"it was rolled back, from {status.left}"
    follow = status.follow
    if follow and (follow.failed or not follow.done):
        return follow.failed or f"{follow}: {'; '.join(follow.waiting) or 'wait'}"
    return ""


def _of_command(gate: Gate, folder: Path, env: dict[str, str]) -> Answer:
    program, *words = gate.command
    if "/" in program:
        program = str(folder / program)
    name = " ".join(gate.command)
    try:
        done = run([program, *words], cwd=folder, env=env, timeout=gate.timeout)
    except CommandFailed as error:
        said = error.output or f"it ended with code {error.code}"
        return Answer(name, said.splitlines()[-1], error.output)
    except DeadlineExceeded as error:
        return Answer(name, error.message)
    return Answer(name, said=done.text.strip())

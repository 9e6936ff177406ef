"""What is asked between two waves: whether the nodes still run what they were given, and the fleet's own gate."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path

from parbake.core.errors import CommandFailed, DeadlineExceeded, InputError
from parbake.core.events import Events
from parbake.core.run import run
from parbake.fleet.rollout import Gate
from parbake.fleet.waves import FleetTarget, Plan
from parbake.workflows import rollout


@dataclass(frozen=True, slots=True)
class Answer:
    """What one of those that were asked has said; ``problem`` is empty where it said yes."""

    asked: str
    problem: str = ""
    said: str = ""


def ask(fleet: str, plan: Plan, wave_name: str, folder: Path, events: Events, *, generation: str) -> tuple[Answer, ...]:
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

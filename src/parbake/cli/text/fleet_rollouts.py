"""A fleet's rollouts, as text for people and as JSON for programs. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from parbake.cli.text.tables import table
from parbake.core.printable import word
from parbake.fleet import words

if TYPE_CHECKING:
    from parbake.fleet.audit import Event
    from parbake.fleet.engine.logs import Log
    from parbake.fleet.engine.rollout_tasks import RolloutState, WaveState, WaveTarget
    from parbake.fleet.engine.rollouts import RolloutStatus
    from parbake.fleet.rollout import Wave
    from parbake.fleet.waves import Answer, FleetTarget, Plan

_NEWEST = 5


def plan_json(name: str, plan: Plan) -> dict[str, object]:
    """Return which target is in which wave, and what must hold after each."""
    return {
        "fleet": name,
        "waves": [_wave_json(wave, targets) for wave, targets in plan.waves],
        "left": [target.name for target in plan.left],
        "windows": list(plan.rollout.windows),
        "on_failure": plan.rollout.on_failure,
    }


def _wave_json(wave: Wave, targets: Sequence[FleetTarget]) -> dict[str, object]:
    return {
        "name": wave.name,
        "targets": [{"name": target.name, **asdict(target)} for target in targets],
        "at_once": wave.at_once,
        "soak": wave.soak or 0.0,
        "gate": wave.gate.model_dump(mode="json") if wave.gate else None,
        "approve": wave.approve.model_dump(mode="json") if wave.approve else None,
    }


def plan_text(plan: Plan) -> str:
    """Return the waves and their conditions, for people."""
    rows = [
        (
            wave.name,
            tuple(f"{target.name} ({target.kind})" for target in targets) or "-",
            tuple(_conditions(wave)) or "-",
        )
        for wave, targets in plan.waves
    ]
    lines = [table(rows, header=("wave", "targets", "then"))]
    if plan.left:
        lines.append(f"in no wave: {', '.join(target.name for target in plan.left)}")
    if plan.rollout.windows:
        lines.append(f"begins targets in {' and '.join(plan.rollout.windows)}")
    lines.append(f"on a failure: {plan.rollout.on_failure}")
    return "\n".join(lines)


def _conditions(wave: Wave) -> list[str]:
    found = [f"soaks {span(wave.soak)}"] if wave.soak else []
    if wave.gate:
        found.append(f"asks {' '.join(wave.gate.command)}")
    if wave.approve:
        who = ", ".join(wave.approve.by) or "anybody"
        count = f"{wave.approve.count} of " if wave.approve.count > 1 else ""
        within = f" within {span(wave.approve.within)}" if wave.approve.within else ""
        found.append(f"waits for {count}{who}{within}")
    return found


def span(seconds: float) -> str:
    """Return a time as the fleet's file says it."""
    text, left = "", round(seconds)
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        amount, left = divmod(left, size)
        text += f"{amount}{unit}" if amount else ""
    return text or "0s"


def rollout_json(status: RolloutStatus) -> dict[str, object]:
    """Return how a rollout stands, or has ended."""
    progress = status.progress
    return {
        "rollout": status.rollout,
        "state": status.state,
        "says": words.rollout(status.state),
        "started_at": status.started_at,
        "problem": status.problem or None,
        **(_progress_json(status.state, progress) if progress else {}),
    }


def _progress_json(state: str, progress: RolloutState) -> dict[str, object]:
    return {
        "generation": progress.generation,
        "paused": progress.paused or None,
        "opens": progress.opens or None,
        "noted": progress.noted,
        "waves": [
            {
                "name": wave.name,
                "state": wave.state,
                "says": words.wave(state, wave, progress.noted),
                "until": wave.until or None,
                "approvals": wave.approvals,
                "by": wave.by,
                "approved": [asdict(yes) for yes in wave.approved],
                "targets": [
                    {
                        "name": each.name,
                        "state": each.state,
                        "says": words.target(state, each.state),
                        "before": each.before or None,
                        "after": each.after or None,
                        "problem": each.problem or None,
                    }
                    for each in wave.targets
                ],
            }
            for wave in progress.waves
        ],
        "story": [asdict(entry) for entry in progress.story],
    }


def rollout_text(status: RolloutStatus) -> str:
    """Return how a rollout stands: its waves, targets that are not at an end, what happened last, and what is next."""
    progress = status.progress
    lines = [f"{status.rollout}  {words.rollout(status.state)}  since {status.started_at}"]
    if status.problem:
        lines.append(word(status.problem))
    if progress is None:
        return "\n".join([*lines, "no worker answers, so its progress is unknown"])
    lines[0] += f"  generation {progress.generation}"
    if progress.waves:
        state = status.state
        rows = [
            (each.name, words.wave(state, each, progress.noted), words.targets(state, each), _until(state, each))
            for each in progress.waves
        ]
        lines += ["", table(rows, header=("wave", "state", "targets", ""))]
    busy = [each for each in progress.targets if each.state in {"hands", "returns"} or each.problem]
    if busy:
        lines += [
            "",
            table(
                [_target(status.state, each) for each in busy], header=("target", "state", "before", "after", "problem")
            ),
        ]
    lines += ["", *(f"{entry.at[:19]}  {word(entry.text)}" for entry in progress.story[-_NEWEST:])]
    if next_ := _next(status):
        lines += ["", f"next: {next_}"]
    return "\n".join(lines)


def _until(state: str, wave: WaveState) -> str:
    if wave.approved:
        return f"approved by {' and '.join(yes.by for yes in wave.approved)}"
    waits = state in words.GOES_FORWARD and wave.state in {"soaks", "approval"}
    return f"until {wave.until[:19]}" if wave.until and waits else ""


def _target(state: str, each: WaveTarget) -> tuple[str, ...]:
    return each.name, words.target(state, each.state), each.before or "-", each.after or "-", each.problem or "-"


def _next(status: RolloutStatus) -> str:
    progress = status.progress
    if progress is None:
        return ""
    if status.state == "paused":
        return f"{word(progress.paused)}; `parbake fleet resume --rollout` goes on, `parbake fleet rollback` goes back"
    if status.state == "window":
        return f"the window opens at {progress.opens[:19]}"
    if status.state == "approval" and progress.wave:
        wave = progress.wave
        more = wave.approvals - len(wave.approved)
        who = f"{more} of {', '.join(wave.by)} must" if wave.by else f"{more} must" if more > 1 else "anybody may"
        return f"`parbake fleet approve {wave.name}`: {who}"
    if status.state == "rolled-back" and progress.noted:
        return f"{', '.join(progress.noted)} could not be returned; `parbake fleet rollback` tries again"
    return ""


def story_text(status: RolloutStatus) -> str:
    """Return all that happened in a rollout, a line each."""
    story = status.progress.story if status.progress else []
    return "\n".join(f"{entry.at[:19]}  {word(entry.text)}" for entry in story) or "no worker answers"


_ENDS = {"done": "completed", "rolled-back": "rolled-back", "cancelled": "canceled", "superseded": "superseded"}


def trail_json(fleet: str, trail: Sequence[Event]) -> dict[str, object]:
    """Return what the store knows of the last rollout, where the engine does not; ``state`` as far as that says."""
    return {
        "rollout": f"rollout/{fleet}",
        "state": _ENDS.get(trail[-1].what, "unknown"),
        "started_at": trail[0].at,
        "generation": trail[-1].generation,
        "story": [{"at": event.at, "text": event.text} for event in trail],
        "events": [asdict(event) for event in trail],
    }


def trail_text(trail: Sequence[Event]) -> str:
    """Return what the store knows of the last rollout, for people, a line for each event."""
    return "\n".join(f"{event.at[:19]}  {word(event.text)}" for event in trail)


def log_json(cell: str, log: Log) -> dict[str, object]:
    """Return the end of what a bake has said."""
    return {"cell": cell, **asdict(log), "error": log.error or None, "before": log.before or None}


def log_text(cell: str, log: Log) -> str:
    """Return the end of what a bake has said, for people."""
    lines = [f"{cell}  {log.state}  try {log.attempt} on {log.worker or 'no worker yet'}  since {log.at[:19] or '-'}"]
    if log.before:
        lines.append(f"the try before: {word(log.before)}")
    lines += [word(each) for each in log.lines]
    return "\n".join([*lines, word(log.error)] if log.error else lines)


def answers_json(wave: str, answers: Sequence[Answer]) -> dict[str, object]:
    """Return what a wave's targets and its gate have said."""
    return {
        "wave": wave,
        "passed": not any(each.problem for each in answers),
        "answers": [
            {"asked": each.asked, "problem": each.problem or None, "said": each.said or None} for each in answers
        ],
    }


def answers_text(answers: Sequence[Answer]) -> str:
    """Return what a wave's targets and its gate have said, for people."""
    rows = [(each.asked, each.problem or "yes") for each in answers]
    return table(rows, header=("asked", "answer")) if rows else "there is nothing to ask"

"""Fleets, as text for people and as JSON for programs. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from parbake.cli.text.fleet_rollouts import rollout_json, rollout_text
from parbake.cli.text.tables import table
from parbake.core.printable import word
from parbake.fleet import words
from parbake.fleet.preview import CellPreview

if TYPE_CHECKING:
    from parbake.fleet.engine.rollouts import RolloutStatus
    from parbake.fleet.engine.runs import Status
    from parbake.fleet.engine.tasks import Progress


def previews_json(name: str, found: Sequence[CellPreview]) -> dict[str, object]:
    """Return what a run would do, cell by cell, and how many cells are in each state."""
    cells = [
        {
            "cell": each.cell.name,
            "file": each.cell.file,
            "platform": each.cell.platform,
            "state": each.state,
            "key": each.key or None,
            "artefact_name": each.artefact or None,
            "builder": each.builder or None,
            "places": list(each.places),
            "problem": each.problem or None,
        }
        for each in found
    ]
    counts = Counter(each.state for each in found)
    return {"fleet": name, "counts": {state: counts[state] for state in words.CELLS}, "cells": cells}


def previews_text(found: Sequence[CellPreview]) -> str:
    """Return what a run would do, for people."""
    rows = ((each.cell.name, each.key[:12] or "-", _state_text(each)) for each in found)
    problems = [
        f"{each.cell.name}: {word(each.problem)}" + (f"\n  next: {word(each.hint)}" if each.hint else "")
        for each in found
        if each.problem
    ]
    counts = Counter(each.state for each in found)
    counted = ", ".join(f"{counts[state]} {said}" for state, said in words.CELLS.items() if counts[state])
    return "\n\n".join([table(rows, header=("cell", "key", "state")), *problems, f"{len(found)} cells: {counted}"])


def _state_text(preview: CellPreview) -> str:
    return words.CELLS[preview.state] + (f", to copy to {', '.join(preview.places)}" if preview.places else "")


def progress_json(progress: Progress) -> dict[str, object]:
    """Return how a run stands, or has ended."""
    counts = progress.counts
    return {
        "total": progress.total,
        "counts": {**vars(counts), "done": counts.done},
        "failed": [vars(each) for each in progress.failed],
        "places": progress.places,
        "paused": progress.paused or None,
        "rollout": progress.rollout or None,
    }


def progress_text(progress: Progress, *, goes_on: bool = False) -> str:
    """Return how a run stands, for people; of a run that does not go on, nothing is under way."""
    counts = progress.counts
    counted = [f"{value} {name}" for name, value in vars(counts).items() if value]
    lines = [f"{counts.done} of {progress.total} cells: {', '.join(counted) or 'none is done'}"]
    if progress.places and goes_on:
        under_way = (f"{count} to {region}" for region, count in progress.places.items())
        lines.append(f"copies under way: {', '.join(under_way)}")
    if progress.paused and goes_on:
        lines.append(f"paused: {progress.paused}; `parbake fleet resume` goes on, `parbake fleet cancel` ends it")
    for each in progress.failed:
        lines.append(f"{each.cell}: {each.error}: {word(each.message)}")
        if each.hint:
            lines.append(f"  next: {word(each.hint)}")
    if progress.rollout:
        lines.append(progress.rollout)
    return "\n".join(lines)


def status_json(status: Status, rollout: RolloutStatus | None = None) -> dict[str, object]:
    """Return how the last run is, with the bakes under way and the workers of each queue, and the last rollout."""
    return {
        "run": status.run,
        "state": status.state,
        "says": status.says,
        "started_at": status.started_at,
        **(progress_json(status.progress) if status.progress else {}),
        "running": [{**asdict(each), "says": each.says} for each in status.running],
        "workers": status.workers,
        "last_rollout": rollout_json(rollout) if rollout else None,
    }


def status_text(status: Status, rollout: RolloutStatus | None = None) -> str:
    """Return how the last run is, for people."""
    lines = [f"{status.run}  {status.says}  since {status.started_at}"]
    goes_on = status.state in words.RUN_GOES_ON
    silence = "no worker answers, so its progress is unknown"
    lines.append(progress_text(status.progress, goes_on=goes_on) if status.progress else silence)
    if status.running:
        rows = (
            (
                each.cell,
                each.key[:12] or "-",
                f"{each.attempt}/{each.attempts}" if each.attempt else "-",
                each.worker.partition(" ")[0] or "-",
                each.says,
                "-" if each.heard is None else f"{each.heard:.0f} s ago",
                word(each.last_failure) or "-",
            )
            for each in status.running
        )
        lines += ["", table(rows, header=("cell", "key", "try", "worker", "progress", "heard", "last failure"))]
    if rollout:
        lines += ["", rollout_text(rollout)]
    for queue, count in status.workers.items():
        places = status.progress.places if status.progress else {}
        if not count and {"roll": bool(rollout), "place": bool(places)}.get(queue, True):
            lines.append(f"no worker serves the queue {queue}: start one with `parbake fleet worker --queues {queue}`")
    return "\n".join(lines)

"""The page of a fleet: its cells, what became of the last run, and how far its rollout is. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from typing import TYPE_CHECKING

from parbake.cli.report.charts import table
from parbake.cli.report.page import framed, tiled
from parbake.core.units import human_bytes
from parbake.fleet import words
from parbake.fleet.preview import CellPreview, State

if TYPE_CHECKING:
    from parbake.fleet.audit import Event
    from parbake.fleet.engine.rollout_tasks import RolloutState
    from parbake.fleet.engine.rollouts import RolloutStatus
    from parbake.fleet.engine.runs import Status
    from parbake.records import Record

_GOOD: State = "there"


@dataclass(frozen=True, slots=True)
class FleetNow:
    """A fleet at a time: its cells, and what its engine says. ``silence`` is why that was not asked, if it was not.

    ``trail`` is what the store knows of the last rollout, where the engine does not.
    """

    name: str
    now: datetime
    cells: Sequence[CellPreview]
    run: Status | None = None
    rollout: RolloutStatus | None = None
    silence: str = ""
    trail: Sequence[Event] = ()


def fleet_page(fleet: FleetNow) -> str:
    """Return the report of a fleet."""
    parts = [_head(fleet), f"<h2>Cells</h2>{_cells(fleet)}"]
    if failures := _failures(fleet):
        parts.append(f"<h2>Failures</h2>{table(('what', 'error', 'says'), failures, path=2)}")
    parts.append(f"<h2>Rollout</h2>{_rollout(fleet)}")
    return framed(
        f"parbake: fleet {fleet.name}",
        parts,
        "Ages are those of the bakes. Saved is the time that the bakes took of what the last run found in the store. "
        "What a node need not pull are the images of the largest cell, compressed.",
    )


def _head(fleet: FleetNow) -> str:
    counts = Counter(each.state for each in fleet.cells)
    records = [each.record for each in fleet.cells if each.record]
    oldest = max((_age(record, fleet.now) for record in records), default=None)
    tiles = [("cells", str(len(fleet.cells))), ("there, verified", str(counts[_GOOD]))]
    tiles += [(said, str(counts[state])) for state, said in words.CELLS.items() if state != _GOOD and counts[state]]
    if oldest is not None:
        tiles.append(("oldest", _span(oldest)))
    if fleet.run:
        before = [each for each in records if _when(each.finished_at) < _when(fleet.run.started_at)]
        tiles.append(("saved: not baked again", _span(sum(record.seconds for record in before))))
    progress = fleet.run.progress if fleet.run else None
    if progress:
        tiles.append(("failed in the last run", str(progress.counts.failed + progress.counts.quarantined)))
    if records:
        tiles.append(("a node need not pull", human_bytes(max(map(_images, records)))))
    run = "there was no run yet"
    if fleet.run:
        run = f"run {escape(fleet.run.says)} · since {escape(fleet.run.started_at[:16])}"
    silence = f'<p class="bad">{escape(fleet.silence)}</p>' if fleet.silence else f'<p class="soft">{run}</p>'
    when = f'<p class="soft">{fleet.now:%Y-%m-%d %H:%M} UTC</p>'
    return f"<h1>{escape(fleet.name)}</h1>{when}{silence}{tiled(tiles)}"


def _cells(fleet: FleetNow) -> str:
    rows = []
    under_way = {each.cell: each.says for each in fleet.run.running} if fleet.run else {}
    for each in fleet.cells:
        record, state = each.record, under_way.get(each.cell.name, words.CELLS[each.state])
        if record is None:
            rows.append((each.cell.name, state, each.artefact or "-", "-", "-", "-", "-"))
            continue
        where = ", ".join(sorted(record.published)) or "-"
        age, took = _span(_age(record, fleet.now)), f"{record.seconds:.0f} s"
        rows.append((each.cell.name, state, record.artefact, where, age, took, human_bytes(_images(record))))
    header = ("cell", "state", "artefact", "places", "age", "bake", "images")
    return table(header, rows, numbers=(4, 5, 6), path=2)


def _failures(fleet: FleetNow) -> list[Sequence[str]]:
    rows: list[Sequence[str]] = [(each.cell.name, "", each.problem) for each in fleet.cells if each.problem]
    if fleet.run and fleet.run.progress:
        rows += [(each.cell, each.error, each.message) for each in fleet.run.progress.failed]
    if fleet.rollout:
        if fleet.rollout.problem:
            rows.append((fleet.rollout.rollout, "", fleet.rollout.problem))
        targets = fleet.rollout.progress.targets if fleet.rollout.progress else []
        rows += [(each.name, *_parted(each.problem)) for each in targets if each.problem]
    return rows


def _parted(problem: str) -> tuple[str, str]:
    error, _, said = problem.partition(": ")
    return error, said


def _rollout(fleet: FleetNow) -> str:
    status = fleet.rollout
    if fleet.trail and (status is None or status.progress is None):
        return _trail(fleet.trail)
    if status is None:
        return '<p class="soft">There was none yet.</p>'
    head = f"<p>{escape(words.rollout(status.state))}"
    if status.progress is None:
        return f"{head} · no worker answers, so its progress is unknown</p>"
    progress = status.progress
    head += f' <span class="soft">· generation <code>{escape(progress.generation)}</code></span></p>'
    return head + _waves(status.state, progress) + _targets(status.state, progress) + _story(progress)


def _waves(state: str, progress: RolloutState) -> str:
    rows = []
    for wave in progress.waves:
        who = ", ".join(f"{yes.by} ({yes.at[:16]})" for yes in wave.approved) or "-"
        rows.append((wave.name, words.wave(state, wave, progress.noted), words.targets(state, wave), who))
    return table(("wave", "state", "targets", "approved by"), rows)


def _targets(state: str, progress: RolloutState) -> str:
    rows = [
        (each.name, wave.name, words.target(state, each.state), each.before or "-", each.after or "-")
        for wave in progress.waves
        for each in wave.targets
    ]
    return f"<h3>Targets</h3>{table(('target', 'wave', 'state', 'before', 'after'), rows, path=4)}"


def _story(progress: RolloutState) -> str:
    rows = [(entry.at[:19], entry.text) for entry in progress.story]
    return f"<h3>What happened</h3>{table(('when', 'what'), rows, path=1)}"


def _trail(trail: Sequence[Event]) -> str:
    rows = [(event.at[:19], event.text, event.by or "-", event.host or "-") for event in trail]
    said = f'<p class="soft">As the store has it · generation <code>{escape(trail[-1].generation)}</code></p>'
    return f"{said}<h3>What happened</h3>{table(('when', 'what', 'who', 'where'), rows, path=1)}"


def _age(record: Record, now: datetime) -> float:
    return max(0.0, (now - _when(record.finished_at)).total_seconds())


def _when(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _images(record: Record) -> int:
    return sum(image.size for image in record.plan.all_images)


def _span(seconds: float) -> str:
    """Return a time in the largest unit of which there are two."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"

"""Choose among records, purely: what a bake may start from, and what a prune removes."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from parbake.records.record import Record


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether one record is kept, and why."""

    record: Record
    keep: bool
    reason: str


def decide_prune(
    records: Iterable[Record], *, keep: int, younger: timedelta = timedelta(), now: datetime | None = None
) -> tuple[Decision, ...]:
    """Decide which artefacts go. Pure with ``now``.

    For each name the newest ``keep`` stay, what is ``younger``, and always the newest verified one.
    """
    now = now or datetime.now(UTC)
    by_name: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda item: (item.finished_at, item.artefact), reverse=True):
        by_name.setdefault(record.plan.name, []).append(record)
    decisions = []
    for name in sorted(by_name):
        verified = next((record for record in by_name[name] if record.verified), None)
        for place, record in enumerate(by_name[name]):
            if place < keep:
                decisions.append(Decision(record, True, f"among the newest {keep} of {name}"))
            elif younger and now - _finished(record) < younger:
                decisions.append(Decision(record, True, f"younger than {younger.days} d"))
            elif record is verified:
                decisions.append(Decision(record, True, f"the newest verified one of {name}"))
            else:
                decisions.append(Decision(record, False, f"older than the newest {keep} of {name}"))
    return tuple(decisions)


def _finished(record: Record) -> datetime:
    with suppress(ValueError):
        return datetime.fromisoformat(record.finished_at)
    return datetime.fromtimestamp(0, UTC)

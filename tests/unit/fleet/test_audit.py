"""The audit trail: the same once, in order, of one fleet, kept for so long."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from parbake.fleet import audit
from parbake.fleet.audit import Event
from parbake.records.store import open_store, trail

BEGUN = Event("2026-11-28T22:00:00.000001+00:00", "begun", "begins with 2 waves", "6c75bf45712e", by="ann on desk")
APPROVED = Event(
    "2026-11-28T22:10:00+00:00", "approved", "canary: approved by ann on desk", "6c75bf45712e", "canary", "ann", "desk"
)
DONE = Event("2026-11-29T01:00:00+01:00", "done", "done", "6c75bf45712e")


def test_what_happened_is_written_once_and_read_in_order(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    assert audit.last_rollout(store, "shop") == []
    before = replace(BEGUN, at="2026-11-27T22:00:00+00:00", generation="0")
    audit.write(str(tmp_path), "shop", [APPROVED, before, BEGUN])
    audit.write(str(tmp_path), "shop", [APPROVED, BEGUN, DONE])
    audit.write(str(tmp_path), "shop-two", [replace(DONE, at="2026-12-24T00:00:00+00:00")])
    assert len(list((tmp_path / "events").glob("*/*"))) == 5
    assert audit.last_rollout(store, "shop") == [BEGUN, APPROVED, DONE]
    days = sorted(path.name for path in (tmp_path / "events").iterdir())
    assert days == ["2026-11-27", "2026-11-28", "2026-11-29", "2026-12-24"], "those of UTC"


def test_what_somebody_has_broken_hides_nothing_else(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    audit.write(str(tmp_path), "shop", [BEGUN, DONE])
    for content in (b"{", b"[]"):
        trail.write(store, datetime(2026, 11, 28, 23, tzinfo=UTC), "shop", content)
    (tmp_path / "events/2026-11-28/readme").write_text("of somebody")
    assert audit.last_rollout(store, "shop") == [BEGUN, DONE]


def test_it_is_kept_for_longer_than_a_year(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    audit.write(str(tmp_path), "shop", [BEGUN, DONE])
    day = datetime(2026, 11, 28, 12, tzinfo=UTC)
    trail.sweep(store, day + trail.KEPT)
    assert audit.last_rollout(store, "shop") == [BEGUN, DONE]
    trail.sweep(store, day + trail.KEPT + timedelta(days=1))
    assert audit.last_rollout(store, "shop") == [DONE]

"""A fleet in the middle of its life, as its commands and its report tell it."""

from __future__ import annotations

from datetime import UTC, datetime

from parbake.cli.report.fleet import FleetNow
from parbake.fleet.cells import Cell
from parbake.fleet.engine.rollout_tasks import Entry, RolloutState, SignOff, WaveState, WaveTarget
from parbake.fleet.engine.rollouts import RolloutStatus
from parbake.fleet.engine.runs import Status
from parbake.fleet.engine.tasks import Counts, Failure, Progress
from parbake.fleet.preview import CellPreview
from standins.plans import record

NOW = datetime(2026, 11, 28, 23, 0, tzinfo=UTC)


def rollout(state: str = "approval", said: str = "3 of 9 nodes run it", target: str = "eu-1") -> RolloutStatus:
    sign_off = SignOff("canary", "ann", "desk", "looks well", "2026-11-28T22:10:00+00:00")
    held = WaveTarget(
        "web/canary", "web/parbake.yaml", "canary", ["k"], "holds", "web-0.raw", "web-1.raw", ["web-1.raw"]
    )
    failed = WaveTarget(
        f"web/{target}", "web/parbake.yaml", target, ["k"], "failed", "web-0.raw", problem=f"Stalled: {said}"
    )
    waits = WaveTarget("web/us-1", "web/parbake.yaml", "us-1", ["k"])
    waves = [
        WaveState("canary", [held], approvals=1, by=["ann"], state="done", approved=[sign_off]),
        WaveState(
            "europe", [failed], approvals=2, by=["ann", "eve"], state="approval", until="2026-11-29T00:00:00+00:00"
        ),
        WaveState("world", [waits]),
    ]
    story = [Entry("2026-11-28T22:00:00+00:00", "begins with 3 waves of 3 targets")]
    progress = RolloutState("6c75bf45712e", waves, noted=["web/canary", f"web/{target}"], story=story)
    return RolloutStatus("rollout/shop", state, "2026-11-28T22:00:00+00:00", progress)


def fleet_now(words: str, long: str) -> FleetNow:
    """Return a fleet in whose names and errors somebody has put ``words``, and ``long`` ones."""
    made = record("web").model_copy(update={"finished_at": "2026-11-20T22:00:00Z", "seconds": 75.0})
    cells = [
        CellPreview(
            Cell("web@amd64", "web/parbake.yaml", "linux/amd64"), "there", "k" * 64, made.artefact, record=made
        ),
        CellPreview(Cell(long, "x/parbake.yaml", "linux/arm64"), "wrong", problem=words),
    ]
    failed = [Failure("worker@amd64", "VerificationFailed", words, "mend it")]
    progress = Progress(Counts(there=1, failed=1), 2, failed=failed)
    run = Status("fleet/shop/1", "completed", "2026-11-28T22:00:00+00:00", progress, (), {"control": 1})
    return FleetNow("shop", NOW, cells, run, rollout(said=words, target=long))

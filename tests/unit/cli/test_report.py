"""The report's waterfall, as far as no browser is needed: what a node told of itself is in it."""

from __future__ import annotations

import re

from parbake.cli.report import Subject, page
from parbake.core.model import HydrateFigures, TraceSummary, Verdict
from standins.plans import record

STAGES = {"mount": 0.1, "containerd": 0.6, "sandbox": 0.3, "start": 9.0}


def bars(figures: HydrateFigures | None) -> list[tuple[str, str]]:
    """Return the names and styles of the bars of one start."""
    update = {
        "verdict": Verdict(passed=True, accelerator="kvm", hydrate=figures),
        "trace": TraceSummary(stages={"example.com/a:1": STAGES}),
    }
    found = page(Subject(record("node").model_copy(update=update)))
    return re.findall(
        r'<span>(\w+)</span><div class="track"><div class="bar" style="[^"]*background:var\(--(\w+)\)', found
    )


def test_hydrate_and_prefetch_come_before_the_start() -> None:
    prefetch: dict[str, str | float] = {"state": "done", "bytes": 5 << 20, "seconds": 2.0, "started_after": 4.0}
    told = HydrateFigures(state="done", seconds=3.0, started_after=1.5, prefetch=prefetch)
    before = [("boot", "boot"), ("hydrate", "hydrate"), ("prefetch", "prefetch")]
    start = [("mount", "mount"), ("containerd", "containerd"), ("sandbox", "sandbox"), ("application", "start")]
    assert bars(told) == [*before, *start]
    nothing = told.model_copy(update={"prefetch": {"state": "no-mount"}})
    assert bars(nothing) == [*before[:2], *start]
    assert bars(None) == start

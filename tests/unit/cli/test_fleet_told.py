"""What is told of a fleet's rollouts, logs and report."""

from __future__ import annotations

import io
import json
import sys

import pytest

from parbake.cli.fleet.runs import Screen
from parbake.cli.report.fleet import FleetNow, fleet_page
from parbake.cli.text import fleet as of_runs
from parbake.cli.text import fleet_rollouts as text
from parbake.fleet.engine.logs import Log
from parbake.fleet.engine.rollouts import RolloutStatus
from standins.fleet_told import NOW, fleet_now, rollout

TOLD = """\
rollout/shop  waits for an approval  since 2026-11-28T22:00:00+00:00  generation 6c75bf45712e

 wave     state                   targets
 ─────────────────────────────────────────────────────────────────────────
 canary   is done                 1 holding it   approved by ann
 europe   waits for an approval   1 failed       until 2026-11-29T00:00:00
 world    waits for its turn      1 waiting

 target     state    before      after   problem
 ────────────────────────────────────────────────────────────────────
 web/eu-1   failed   web-0.raw   -       Stalled: 3 of 9 nodes run it

2026-11-28T22:00:00  begins with 3 waves of 3 targets

next: `parbake fleet approve europe`: 2 of ann, eve must"""


def test_a_rollout_as_it_is_shown() -> None:
    assert "\n".join(line.rstrip() for line in text.rollout_text(rollout()).splitlines()) == TOLD


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("paused", "`parbake fleet resume --rollout` goes on"),
        ("rolled-back", "web/canary, web/eu-1 could not be returned"),
        ("window", "the window opens at 2026-11-30T08:00:00"),
        ("canceled", "was cancelled; targets keep what they hold"),
    ],
)
def test_each_state_says_what_is_next(state: str, words: str) -> None:
    status = rollout(state)
    assert status.progress
    status.progress.opens = "2026-11-30T08:00:00+00:00"
    assert words in text.rollout_text(status)


def test_without_a_worker_and_with_a_failure() -> None:
    silent = RolloutStatus("rollout/shop", "failed", "2026-11-28T22:00:00+00:00", None, "no such wave")
    said = text.rollout_text(silent)
    assert "no such wave" in said
    assert "no worker answers" in said
    assert text.story_text(silent) == "no worker answers"
    assert text.rollout_json(silent)["problem"] == "no such wave"


def test_a_rollout_for_programs() -> None:
    document = text.rollout_json(rollout())
    assert json.loads(json.dumps(document)) == document
    waves = document["waves"]
    assert isinstance(waves, list)
    assert waves[0]["approved"][0]["by"] == "ann"
    assert waves[1]["targets"][0]["problem"].startswith("Stalled: ")


def test_a_log() -> None:
    log = Log("bake/k/1", "failed", "2026-11-28T22:00:00Z", 2, "7@vm", ("22:00:01 Fill a",), "Denied: no", "gone")
    assert text.log_text("a@amd64", log).splitlines() == [
        "a@amd64  failed  try 2 on 7@vm  since 2026-11-28T22:00:00",
        "the try before: gone",
        "22:00:01 Fill a",
        "Denied: no",
    ]
    assert text.log_json("a@amd64", log)["lines"] == ("22:00:01 Fill a",)
    waits = Log("bake/k/1", "running", "", 1, "")
    assert text.log_text("a@amd64", waits) == "a@amd64  running  try 1 on no worker yet  since -"


def test_the_report_says_what_there_is() -> None:
    page = fleet_page(fleet_now("<b>boom</b>", "long"))
    assert "<b>boom" not in page
    assert page.count("&lt;b&gt;boom&lt;/b&gt;") == 3, "a cell, a run's failure, a target"
    for said in ("8 d", "75 s", "saved: not baked again", "ann (2026-11-28T22:10)", "web/us-1", "6c75bf45712e"):
        assert said in page
    silent = fleet_page(FleetNow("shop", NOW, [], silence="nobody answers"))
    assert "nobody answers" in silent
    assert "There was none yet" in silent
    assert "there was no run yet" in fleet_page(FleetNow("shop", NOW, []))


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_screen_shows_what_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    for made, as_json, wanted in (
        (io.StringIO(), False, "one\n\ntwo\n\n"),
        (io.StringIO(), True, '{"a":1}\n{"a":1}\n{"a":2}\n'),
    ):
        monkeypatch.setattr(sys, "stdout", made)
        with Screen(as_json=as_json) as screen:
            for number, said in ((1, "one"), (1, "one"), (2, "two")):
                screen.show({"a": number}, said)
        assert made.getvalue().replace(" ", "") == wanted.replace(" ", "")
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", "10")
    monkeypatch.setenv("LINES", "3")
    with Screen() as screen:
        screen.show({}, "a line that is too long\nsecond\nthird\nfourth")
    shown = terminal.getvalue()
    assert "a line tha\x1b[K" in shown
    assert "too long" not in shown
    assert "third" not in shown
    assert shown.endswith("\x1b[?25h\x1b[?1049l"), "the terminal is as it was"


def test_a_status_has_both() -> None:
    now = fleet_now("boom", "long")
    assert now.run
    said = of_runs.status_text(now.run, now.rollout)
    assert "1 there, 1 failed" in said
    assert "rollout/shop  waits for an approval" in said
    document = of_runs.status_json(now.run, now.rollout)
    assert document["last_rollout"]
    assert of_runs.status_json(now.run)["last_rollout"] is None

"""Text, page and JSON say the same of a fleet in every state, and nothing that they say contradicts the rest."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import unescape
from itertools import product
from typing import Any

import pytest
from temporalio.client import WorkflowExecutionStatus

from parbake.cli.report.fleet import FleetNow, fleet_page
from parbake.cli.text import fleet as text
from parbake.cli.text import tables
from parbake.fleet import words
from parbake.fleet.cells import Cell
from parbake.fleet.engine.rollout_tasks import RolloutState, WaveState, WaveTarget
from parbake.fleet.engine.rollouts import RolloutStatus, _state
from parbake.fleet.engine.runs import Running, Status
from parbake.fleet.engine.tasks import Counts, Progress
from parbake.fleet.preview import CellPreview
from standins.fleet_told import NOW

SINCE = "2026-11-28T22:00:00+00:00"
SOON = "2026-11-29T00:00:00+00:00"
ENGINE = list(WorkflowExecutionStatus)
OF_WAVES = ["waits", "looks", "hands", "soaks", "asks", "approval", "done"]
OF_TARGETS = ["waits", "hands", "holds", "failed", "returns", "returned", "left", "not-returned"]
# Nothing of this is so once what it belongs to has ended.
GOING_ON = re.compile(
    r"is (being|running|checking|under way|paused)|waits|waiting|being (written|returned)|soaks|goes (on|back)|until "
    r"|must|may|opens|under way|resume"
)


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row stands on one line, to be read by its columns."""
    monkeypatch.setattr(tables, "WIDTH", 1000)


def rollouts() -> Iterator[RolloutStatus]:
    """Yield every state that the engine and a rollout can be in together, and targets in each of theirs."""
    of_targets = 0
    for status, state, paused, opens, wave in product(
        ENGINE, ["waves", "back", "done", "rolled-back"], ["", "why"], ["", SOON], OF_WAVES
    ):
        if status is WorkflowExecutionStatus.COMPLETED and (state not in {"done", "rolled-back"} or paused or opens):
            continue
        if (state == "done") != (wave == "done") and state in {"waves", "done"}:
            continue
        one, other = (OF_TARGETS[(of_targets + more) % 8] for more in (0, 3))
        of_targets += 1
        targets = [WaveTarget("a/one", "a", "one", ["k"], one), WaveTarget("a/two", "a", "two", ["k"], other)]
        waves = [
            WaveState("first", [WaveTarget("a/zero", "a", "zero", ["k"], "holds")], state="done"),
            WaveState("second", targets, approvals=1, state=wave, until=SOON),
            WaveState("third", [], state="done" if state == "done" else "waits"),
        ]
        noted = ["a/one"] if one in {"hands", "failed", "returns", "not-returned"} else []
        progress = RolloutState("6c75bf45712e", waves, state=state, paused=paused, opens=opens, noted=noted)
        yield RolloutStatus("rollout/shop", _state(status, progress), SINCE, progress)


RUN = Status("fleet/shop/1", "completed", SINCE, Progress(Counts(), 1), (), {})


def rows(html: str, part: str) -> dict[str, list[str]]:
    """Return the rows of a table of the page by their first column."""
    body = html.rsplit(f"<h2>{part}</h2>", maxsplit=1)[-1] if part else html
    found = (re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", body))
    shown = ([unescape(re.sub("<[^>]*>", "", cell)) for cell in row] for row in found if row)
    table: dict[str, list[str]] = {}
    for name, *more in shown:
        table.setdefault(name, more)
    return table


def columns(said: str, name: str) -> list[str]:
    """Return what stands in the row of a table."""
    (line,) = [line for line in said.splitlines() if line.startswith(f" {name} ")]
    return re.split(r"\s{3,}", line.strip())[1:]


def test_a_rollout_is_the_same_everywhere_and_nothing_contradicts() -> None:
    seen = set()
    for status in rollouts():
        seen.add(status.state)
        said = text.status_text(RUN, status)
        page = fleet_page(FleetNow("shop", NOW, [], RUN, status))
        document: Any = text.status_json(RUN, status)["last_rollout"]
        whole = words.rollout(status.state)
        assert f"rollout/shop  {whole}  since" in said
        assert f"<p>{whole} " in page
        assert document["says"] == whole
        in_waves = {}
        for wave in document["waves"]:
            does, counts, *_ = columns(said, wave["name"])
            in_waves[wave["name"]] = does
            assert [does, counts] == rows(page, "Rollout")[wave["name"]][:2], status
            assert does == wave["says"]
            for target in wave["targets"]:
                assert rows(page, "Rollout")[target["name"]][1] == target["says"]
                assert target["says"] in counts
        now = said.partition("rollout/shop  ")[2] + page.partition("<h3>What happened")[0].partition("Rollout</h2>")[2]
        if status.ended:
            assert not GOING_ON.search(now), now
        for words_of_waits in ("waits for an approval", "waits for a window"):
            assert (words_of_waits in in_waves.values()) <= (words_of_waits in whole), status
        going = {"is being rolled out", "soaks", "is running its gate", "is checking its targets"}
        assert bool(going & set(in_waves.values())) <= (whole == "is under way"), status
        assert ("paused" in whole) >= any("paused" in does for does in in_waves.values()), status
    assert words.ROLLOUT_GOES_ON | {"completed", "rolled-back", "canceled", "failed", "terminated"} <= seen


def runnings() -> Iterator[Running]:
    told = [{}, {"text": "Fill", "done": 900 << 20}]
    for key, attempt, worker, progress, failure in product(["", "k" * 64], [0, 1, 2], ["", "7@vm"], told, ["", "no"]):
        if worker and not attempt:
            continue
        yield Running("a@amd64", key, attempt, 4, worker, progress, 1.0 if worker else None, failure)


@pytest.mark.parametrize("state", ["running", "paused"])
def test_a_cell_is_the_same_everywhere_and_waits_for_no_worker_that_it_has(state: str) -> None:
    preview = CellPreview(Cell("a@amd64", "a/parbake.yaml", "linux/amd64"), "bake", "k" * 64)
    for one in runnings():
        run = Status("fleet/shop/1", state, SINCE, Progress(Counts(), 1), (one,), {})
        said = columns(text.status_text(run), "a@amd64")[3]
        document: Any = text.status_json(run)["running"]
        assert document[0]["says"] == said
        assert rows(fleet_page(FleetNow("shop", NOW, [preview], run)), "Cells")["a@amd64"][0] == said
        if one.key and one.worker:
            assert "waits" not in said
            assert one.progress.get("text", "has begun") in said
        else:
            assert "Fill" not in said, "that was the try before"


@pytest.mark.parametrize("draining", [False, True])
@pytest.mark.parametrize("paused", ["", "ann on desk"])
@pytest.mark.parametrize("state", [*[each.name.lower() for each in ENGINE], "paused"])
def test_a_run_is_the_same_everywhere_and_nothing_contradicts(state: str, paused: str, draining: bool) -> None:
    if (state == "paused") > bool(paused) or (state == "running" and paused):
        return
    progress = Progress(Counts(there=1), 3, paused=paused, draining=draining, places={"us-east-1": 2})
    run = Status("fleet/shop/1", state, SINCE, progress, (), {})
    said, document = text.status_text(run), text.status_json(run)
    assert f"fleet/shop/1  {document['says']}  since" in said
    assert f"run {document['says']} ·" in unescape(fleet_page(FleetNow("shop", NOW, [], run)))
    if state not in words.RUN_GOES_ON:
        assert not GOING_ON.search(said), said
    assert ("is paused" in said) == (state == "paused" and not draining)


def test_what_a_run_has_done_for_a_rollout_stays_true_whatever_becomes_of_it() -> None:
    sentences = [
        words.rollout_begun("g1"),
        words.rollout_superseded("g2", "g1"),
        words.rollout_known("g1"),
        words.rollout_postponed("g2", "g1"),
        words.rollout_refused(1, 3),
    ]
    assert not [each for each in sentences if GOING_ON.search(each)]

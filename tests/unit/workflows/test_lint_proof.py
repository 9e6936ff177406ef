"""Lint of a bake that no rollout takes: its record is part of what stands in the way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from parbake import records
from parbake.cli import run
from standins.plans import record
from tests.unit.workflows.test_lint import pod


@pytest.mark.parametrize(("passed", "said"), [(None, ["bake-not-verified"]), (False, ["bake-failed"]), (True, [])])
def test_a_bake_that_no_rollout_takes_is_an_error(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    passed: bool | None,
    said: list[str],
) -> None:
    made = record("a", passed=passed)
    (tmp_path / "artefacts").mkdir()
    records.write(tmp_path / "artefacts", made)
    (tmp_path / "good.yaml").write_text(pod(str(made.plan.images[0].reference)))
    monkeypatch.chdir(tmp_path)
    assert run(["lint", "good.yaml", "--bake", f"artefacts/{made.file_name}", "--json"]) == (3 if said else 0)
    found = json.loads(capsys.readouterr().out)["findings"]
    assert [(each["rule"], each["source"], each["object"]) for each in found] == [
        (rule, f"{made.artefact}.json", made.artefact) for rule in said
    ]

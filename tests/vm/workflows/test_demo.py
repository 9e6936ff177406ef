"""The main job, end to end, as `make demo` runs it: nothing in it is a stand-in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from parbake import records
from parbake.cli import run

pytestmark = [pytest.mark.root, pytest.mark.vm, pytest.mark.slow]


def test_the_demo_bakes_boots_starts_and_compares(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["demo", str(tmp_path / "demo"), "--json", "--progress", "none"]) == 0
    outcome = json.loads(capsys.readouterr().out)
    assert outcome["verified"]
    (image,) = outcome["plan"]["images"]
    (started,) = [seen for seen in outcome["verdict"]["images"] if seen["reference"] == image["reference"]]
    assert started["pinned"]
    assert started["unpacked"]
    assert started["digest"] == image["target"]["digest"]
    assert sum(layer["raw_size"] for layer in image["layers"]) > 200 << 20
    # The pull moves a hundred megabytes and unpacks them in emulation; the baked start does neither.
    assert outcome["start_baked_seconds"] > 0
    assert outcome["start_pulled_seconds"] > 0
    record = records.read(Path(outcome["record_path"]))
    assert record.verified
    assert record.plan.base.kind == "debian"
    assert record.base_digest

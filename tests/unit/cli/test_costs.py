"""Advice from the command line: what is asked for reaches the arithmetic, what is wrong is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from parbake import records
from parbake.cli import run
from parbake.coldstart.trace import Part, Read, Trace
from parbake.coldstart.trace.data import HotEntry
from parbake.core.model import GIB, MIB, TraceSummary
from parbake.workflows import trace as workflow
from standins.plans import record


def told(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> Any:
    assert run([*arguments, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_advice_of_a_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    trace = TraceSummary(hot_bytes=90 * MIB, hot_blocks=180, reads=1500, read_bytes=60 * MIB)
    made = record("a").model_copy(update={"trace": trace})
    (tmp_path / "artefacts").mkdir()
    (tmp_path / "artefacts" / made.artefact).touch()
    records.write(tmp_path / "artefacts", made)
    found = told(capsys, "advise", made.artefact, "--drive", "gp3-raised", "--lifetime", "2", "--bakes", "0")
    at = found["situation"]
    assert (at["read"], at["reads"], at["lifetime"], at["drive"], at["bakes"]) == (60 * MIB, 1500, 2, "gp3-raised", 0)
    assert found["drive"] == {"latency": 0.0007, "operations": 16_000, "throughput": 1000}
    assert [each["name"] for each in found["pulls"]] == ["pull", "pull-soci-al2023", "pull-soci-bottlerocket"]
    assert found["bake"] is not found["recommended"].startswith("pull")
    assert "gp3" not in {each["name"] for each in found["remedies"]}, "they have it anyway"
    half = told(capsys, "advise", made.artefact, "--hot", "45", "--pull-rate", "1000")
    assert (half["situation"]["reads"], half["situation"]["read"]) == (750, 30 * MIB)
    assert [(each["source"], each["fastest"]) for each in half["pulls"]] == [("yours", 1000)]
    assert "gp3-raised or io2" in told(capsys, "advise", made.artefact, "--drive", "tape", code=2)["hint"]
    assert found["stream"] == [], "no trace is beside it"
    records.write(tmp_path / "artefacts", made.model_copy(update={"trace": None}))
    unknown = told(capsys, "advise", made.artefact, "--hot", "45")
    assert unknown["situation"]["reads"] == 360, "pieces as large as what is read ahead"


def test_without_a_record_every_kind_of_pull_is_compared_with_a_bake(capsys: pytest.CaptureFixture[str]) -> None:
    found = told(capsys, "advise", "--launches", "40", "--size", "9354", "--bakes", "60")
    kinds = ["pull", "pull-soci-al2023", "pull-soci-bottlerocket"]
    assert [each["name"] for each in found["remedies"]] == [kinds[2], "bake", kinds[1], kinds[0]]
    assert (found["bake"], found["recommended"]) == (False, kinds[2]), "a faster pull costs less than bakes"
    assert told(capsys, "advise", "--launches", "1000", "--pull-seconds", "120", "--headroom", "3")["bake"]
    measured = told(capsys, "advise", "--launches", "1", "--pull-seconds", "3")
    assert (measured["bake"], len(measured["remedies"])) == (False, 2)
    assert "--size" in told(capsys, "advise", "--launches", "1", code=2)["hint"]


def test_the_command_that_was_says_where_it_went(capsys: pytest.CaptureFixture[str]) -> None:
    assert "parbake advise --size" in told(capsys, "savings", "--pulls", "1", code=2)["hint"]


def test_weights_are_streamed_and_not_baked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    made = record("a")
    (tmp_path / "artefacts").mkdir()
    records.write(tmp_path / "artefacts", made)
    (tmp_path / "artefacts" / made.artefact).touch()
    weights = HotEntry("models/weights.safetensors", 15 * GIB, ((0, 15 * GIB),))
    reads = (Part(name="a", reads=(Read(1, 0, 15 * GIB // 512),)),)
    seen = Trace(size=32 * GIB, parts=reads, files=(weights, HotEntry("bin/sh", 4096, ((0, 4096),))))
    workflow.write_trace(tmp_path / "artefacts" / made.artefact, made, seen)
    [stream] = told(capsys, "advise", made.artefact)["stream"]
    assert (stream["path"], stream["size"], round(stream["seconds"], 1)) == (weights.path, 15 * GIB, 51.2)
    assert stream["cost"] == pytest.approx(15 * 0.05)
    assert run(["advise", made.artefact]) == 0
    assert "stream models/weights.safetensors (15.0 GiB), do not bake it" in " ".join(capsys.readouterr().out.split())

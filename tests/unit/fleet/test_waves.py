"""Which target is in which wave, what a gate asks, and how all of it is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from parbake import cli
from parbake.core.errors import InputError
from parbake.core.events import Events
from parbake.fleet import waves
from parbake.fleet.cells import cells
from parbake.fleet.file import load
from parbake.fleet.rollout import Rollout
from parbake.fleet.waves import FleetTarget

WAVES = """
rollout:
  waves:
    - {name: canary, targets: [search/canary], soak: 1h30m, approve: ann, gate: {command: [./gate, now]}}
    - {name: europe, targets: ["*/eu-*"], at_once: 2, approve: {by: [ann, eve], count: 2, within: 72h}}
    - {name: world, rest: true, approve: anybody}
  windows: [Mon-Fri 08:00-16:00 Europe/Berlin]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    world = tmp_path / "shop"
    for name in ("search", "gpu"):
        (world / name).mkdir(parents=True)
        targets = "".join(f"  - {{name: {each}, file: {each}.json}}\n" for each in ("canary", "eu-1", "us-1"))
        text = f"version: 1\nimages: [r.example/{name}:1]\nbase: none\nrollout:\n{targets}"
        (world / name / "parbake.yaml").write_text(text)
    (world / "bare").mkdir()
    (world / "bare/parbake.yaml").write_text("version: 1\nimages: [r.example/bare:1]\nbase: none\n")
    bakefiles = "[search/parbake.yaml, gpu/parbake.yaml, bare/parbake.yaml]"
    text = f"version: 1\nstore: shared\narchitectures: [amd64, arm64]\nbakefiles: {bakefiles}\n"
    (world / "fleet.yaml").write_text(text + WAVES)
    return world


def plan(folder: Path, wanted: set[str] | None = None) -> waves.Plan:
    fleet = load(folder / "fleet.yaml")
    assert fleet.rollout
    return waves.plan(fleet.rollout, waves.targets(folder, cells(fleet, folder)), wanted)


def test_a_target_belongs_to_the_first_wave_that_names_it(folder: Path) -> None:
    found = plan(folder)
    assert {wave.name: [target.name for target in targets] for wave, targets in found.waves} == {
        "canary": ["search/canary"],
        "europe": ["search/eu-1", "gpu/eu-1"],
        "world": ["search/us-1", "gpu/canary", "gpu/us-1"],
    }
    assert found.left == ()
    some = plan(folder, {"gpu"})
    assert [len(targets) for _, targets in some.waves] == [0, 1, 2]


def test_what_no_wave_names_is_left(folder: Path) -> None:
    path = folder / "fleet.yaml"
    path.write_text(path.read_text().replace("    - {name: world, rest: true, approve: anybody}\n", ""))
    assert [target.name for target in plan(folder).left] == ["search/us-1", "gpu/canary", "gpu/us-1"]


def test_what_names_nothing_is_an_error() -> None:
    target = FleetTarget("search", "search/parbake.yaml", "canary", "file")
    rollout = Rollout.model_validate({"waves": [{"name": "europe", "targets": ("*/eu-*",)}]})
    with pytest.raises(InputError, match=r"the wave europe: \*/eu-\* names no target") as caught:
        waves.plan(rollout, [target])
    assert caught.value.hint == "there are: search/canary"
    with pytest.raises(InputError, match="none of the Bakefiles has a target"):
        waves.plan(rollout, [])


def test_the_waves_as_they_are_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(folder / "fleet.yaml")
    assert cli.run(["fleet", "rollout", "--dry-run", "-f", file]) == 0
    said = capsys.readouterr().out
    assert "soaks 1h30m" in said
    assert "asks ./gate now" in said
    assert "waits for 2 of ann, eve within 3d" in said
    assert "waits for anybody" in said
    assert "begins targets in Mon-Fri 08:00-16:00 Europe/Berlin" in said
    assert cli.run(["fleet", "rollout", "--dry-run", "--cell", "gpu", "--json", "-f", file]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [len(wave["targets"]) for wave in document["waves"]] == [0, 1, 2]
    assert document["waves"][0]["gate"] == {"command": ["./gate", "now"], "timeout": 600.0}
    assert document["waves"][1]["approve"] == {"by": ["ann", "eve"], "count": 2, "within": 259200.0}
    assert document["on_failure"] == "pause"
    path = folder / "fleet.yaml"
    path.write_text(path.read_text().replace(WAVES, ""))
    assert cli.run(["fleet", "rollout", "--dry-run", "--json", "-f", file]) == 2
    assert "has no `rollout`" in json.loads(capsys.readouterr().out)["message"]


def test_a_gate_asks_targets_then_its_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = folder / "gate"
    script.write_text('#!/bin/sh\necho "$1 $PARBAKE_FLEET $PARBAKE_WAVE $PARBAKE_GENERATION"\n')
    script.chmod(0o755)
    [target, command] = waves.ask_gate("shop", plan(folder), "canary", folder, Events(), generation="0a")
    assert (target.asked, target.problem) == ("search/canary", "")
    assert (command.asked, command.problem, command.said) == ("./gate now", "", "now shop canary 0a")
    script.write_text("#!/bin/sh\necho first >&2\necho too many errors >&2\nexit 1\n")
    file = str(folder / "fleet.yaml")
    assert cli.run(["fleet", "gate", "canary", "--json", "--progress", "none", "-f", file]) == 3
    document = json.loads(capsys.readouterr().out)
    assert document["passed"] is False
    assert document["answers"][1]["problem"] == "too many errors"
    assert cli.run(["fleet", "gate", "canary", "--progress", "none", "-f", file]) == 3
    assert "too many errors" in capsys.readouterr().out
    assert cli.run(["fleet", "gate", "europe", "--progress", "none", "-f", file]) == 0
    with pytest.raises(InputError, match="the fleet has no wave asia"):
        waves.ask_gate("shop", plan(folder), "asia", folder, Events(), generation="")


def test_a_gate_that_takes_too_long_says_no(folder: Path) -> None:
    path = folder / "fleet.yaml"
    path.write_text(path.read_text().replace("{command: [./gate, now]}", "{command: [sleep, '60'], timeout: 100ms}"))
    answers = waves.ask_gate("shop", plan(folder), "canary", folder, Events(), generation="")
    assert "not done within" in answers[-1].problem


def test_a_target_that_cannot_be_asked_says_no_and_the_command_is_not_asked(folder: Path) -> None:
    (folder / "search/canary.json").write_text("not ours")
    [answer] = waves.ask_gate("shop", plan(folder), "canary", folder, Events(), generation="")
    assert "not a file of parbake" in answer.problem

"""Rollouts to Spot Ocean, against a stand-in of its REST API."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from parbake.rollouts import Change, Offer, ocean
from standins.clusters import goes_out_again, machine_image, parbake, project, refused, volume
from standins.spot import Spot, serving_spot

pytestmark = pytest.mark.usefixtures("made_up_records")

FIRST, SECOND = machine_image("first", "ami-1"), machine_image("second", "ami-2")
GROUPS = {"ocean": {"cluster": "o-1", "groups": ["ols-1", "ols-2"], "batch": 25}}
QUICK = ("--interval", "0.05")


@pytest.fixture
def spot(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Spot]:
    monkeypatch.chdir(tmp_path)
    with serving_spot(monkeypatch) as spot:
        yield spot


@pytest.mark.parametrize("target", [GROUPS, {"ocean": {"cluster": "o-1"}}], ids=["groups", "cluster"])
def test_there_and_back(spot: Spot, tmp_path: Path, capsys: pytest.CaptureFixture[str], target: dict[str, Any]) -> None:
    names = target["ocean"].get("groups", ["o-1"])
    spot.specifications[names[0]]["tags"].append({"tagKey": "team", "tagValue": "ml"})
    project(tmp_path, [target], FIRST, SECOND)
    assert parbake(capsys, "rollout", FIRST.key, "--dry-run")[0] == 0
    assert spot.rolls == []
    assert parbake(capsys, "rollout", FIRST.key, *QUICK)[0] == 0
    assert {spot.specifications[name]["imageId"] for name in names} == {"ami-1"}
    assert {"tagKey": "team", "tagValue": "ml"} in spot.specifications[names[0]]["tags"], "other tags stay"
    assert (spot.asked[0]["respectPdb"], spot.asked[0].get("launchSpecIds")) == (True, target["ocean"].get("groups"))
    code, done = parbake(capsys, "rollout", FIRST.key, *QUICK)
    assert (code, done["changed"], len(spot.rolls)) == (0, False, 1)
    assert not any("owed" in tag["tagKey"] for name in names for tag in spot.specifications[name]["tags"])
    report = parbake(capsys, "status")[1][0]
    assert (report["holds"]["images"], report["previous"]["images"]) == (["ami-1"], ["ami-0"])
    code, done = parbake(capsys, "rollback", *QUICK)
    assert (code, done["changed"], len(spot.rolls)) == (0, True, 2)
    assert {spot.specifications[name]["imageId"] for name in names} == {"ami-0"}
    code, done = parbake(capsys, "rollback", *QUICK)
    assert (code, done["changed"], len(spot.rolls)) == (0, False, 2), "it has gone back already"
    assert not goes_out_again(tmp_path, FIRST)
    assert parbake(capsys, "rollout", FIRST.key, *QUICK)[0] == 0
    assert parbake(capsys, "rollout", SECOND.key, "--superseding", "ami-1", *QUICK)[0] == 0
    assert parbake(capsys, "rollback", *QUICK)[0] == 0
    assert {spot.specifications[name]["imageId"] for name in names} == {"ami-0"}, "what was superseded is no way back"


class Killed(BaseException):
    """As by kill -9."""


@pytest.mark.parametrize("target", [GROUPS, {"ocean": {"cluster": "o-1"}}], ids=["groups", "cluster"])
def test_killed_after_any_write(
    spot: Spot, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, target: Any
) -> None:
    names = target["ocean"].get("groups", ["o-1"])
    writes = 2 * len(names) + 1  # the image of each, the roll, and that none is owed any more
    project(tmp_path, [target], FIRST)
    real, left = ocean.Spot.ask, 0

    def ask(self: ocean.Spot, method: str, path: str, body: object = None) -> list[dict[str, Any]]:
        nonlocal left
        answer = real(self, method, path, body)
        left -= method != "GET"
        if left == 0 and method != "GET":
            raise Killed
        return answer

    monkeypatch.setattr(ocean.Spot, "ask", ask)
    for command, image in (("rollout", "ami-1"), ("rollback", "ami-0")):
        words = [FIRST.key] if command == "rollout" else []
        for number in range(1, writes + 1):
            spot.specifications.update({name: {"imageId": "ami-0", "tags": []} for name in names})
            spot.rolls.clear()
            if command == "rollback":
                left = 99
                assert parbake(capsys, "rollout", FIRST.key, *QUICK)[0] == 0
            before = len(spot.rolls)
            left = number
            with pytest.raises(Killed):
                parbake(capsys, command, *words, *QUICK)
            left = 99
            for roll in spot.rolls:
                roll["status"] = "COMPLETED"
            assert parbake(capsys, command, *words, *QUICK)[0] == 0
            assert {spot.specifications[name]["imageId"] for name in names} == {image}, number
            assert len(spot.rolls) == before + 1, "it is rolled, and once"
            assert parbake(capsys, command, *words, *QUICK)[1]["changed"] is False


def test_a_roll_that_fails_or_hangs_or_is_stopped(
    spot: Spot, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project(tmp_path, [GROUPS], FIRST, SECOND)
    spot.fails = True
    refused(parbake(capsys, "rollout", FIRST.key, *QUICK), 1, "the roll is FAILED at 25 %")
    code, done = parbake(capsys, "rollout", FIRST.key, *QUICK)
    assert (code, done["changed"], len(spot.rolls)) == (0, True, 2), "the same command rolls again"
    spot.stuck = True
    assert parbake(capsys, "rollout", SECOND.key, "--no-follow")[0] == 0
    refused(parbake(capsys, "rollout", SECOND.key, *QUICK, "--deadline", "1"), 1, "batch 1 of 4")
    code, error = parbake(capsys, "rollout", FIRST.key, "--no-follow")
    assert (code, error["error"]) == (1, "TargetMoved"), "one roll at a time"
    assert parbake(capsys, "freeze", "--to", "ocean")[1]["changed"] == {"ocean": ["roll scr-2"]}
    assert spot.rolls[2]["status"] == "STOPPED"
    spot.stuck = False
    code, done = parbake(capsys, "rollout", SECOND.key, *QUICK)
    assert (code, done["changed"], len(spot.rolls)) == (0, True, 4), "and after a freeze as well"


def test_two_rollouts_race(
    spot: Spot, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    project(tmp_path, [GROUPS], FIRST)
    decided = ocean.Ocean.plan

    def plan(self: ocean.Ocean, offer: Offer) -> Change:
        change = decided(self, offer)
        spot.specifications["ols-2"]["imageId"] = "ami-7"
        return change

    monkeypatch.setattr(ocean.Ocean, "plan", plan)
    code, error = parbake(capsys, "rollout", FIRST.key, "--no-follow")
    assert (code, error["error"], spot.rolls) == (1, "TargetMoved", [])
    assert [spot.specifications[name]["imageId"] for name in ("ols-1", "ols-2")] == ["ami-0", "ami-7"]


def test_bad_input(
    spot: Spot, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    project(tmp_path, [{"ocean": {"cluster": "o-1", "groups": ["ols-9"]}}], FIRST, data := volume("d", "snap-1"))
    code, error = parbake(capsys, "rollout", FIRST.key)
    assert (code, error["hint"]) == (2, "there are: ols-1, ols-2")
    project(tmp_path, [{"ocean": {"cluster": "o-9"}}])
    assert parbake(capsys, "rollout", FIRST.key)[1]["hint"] == "there are: o-1"
    assert parbake(capsys, "rollout", data.key)[0] == 2
    monkeypatch.setenv("SPOTINST_TOKEN", "wrong")
    code, error = parbake(capsys, "rollout", FIRST.key)
    refused((code, error), 1, "SPOTINST_TOKEN")
    assert "wrong" not in error["message"]
    monkeypatch.delenv("SPOTINST_TOKEN")
    code, error = parbake(capsys, "rollout", FIRST.key)
    assert (code, error["error"]) == (1, "EnvironmentProblem")
    assert spot.rolls == []


def test_a_failed_roll_of_many_groups_is_rolled_again(
    spot: Spot, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a roll brings stands in its comment, of 255 characters, however many images there were before."""
    names = [f"ols-{number}" for number in range(12)]
    spot.specifications.update({name: {"imageId": f"ami-{name:0>17}", "tags": []} for name in names})
    project(tmp_path, [{"ocean": {"cluster": "o-1", "groups": names}}], FIRST)
    spot.fails = True
    assert parbake(capsys, "rollout", FIRST.key, *QUICK)[0] == 1
    code, done = parbake(capsys, "rollout", FIRST.key, *QUICK)
    assert (code, done["changed"], len(spot.rolls)) == (0, True, 2)

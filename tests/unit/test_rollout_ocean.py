"""Rollouts to Spot Ocean, against a stand-in of its REST API that rolls a quarter at each look."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from parbake.rollouts import ocean
from tests.support.clusters import goes_out_again, kitchen, machine_image, parbake, volume

FIRST, SECOND = machine_image("first", "ami-1"), machine_image("second", "ami-2")
GROUPS = {"ocean": {"cluster": "o-1", "groups": ["ols-1", "ols-2"], "batch": 25}}
QUICK = ("--interval", "0.05")


@dataclass
class Spot:
    """Stands in for Spot's API, for tests only: launch specifications, rolls one at a time, errors as documented."""

    specifications: dict[str, dict[str, Any]] = field(default_factory=dict)
    rolls: list[dict[str, Any]] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)
    fails: bool = False
    stuck: bool = False

    def answer(  # noqa: PLR0911 (a request each)
        self, method: str, path: str, body: dict[str, Any]
    ) -> tuple[int, list[dict[str, Any]]]:
        match method, path.split("/"):
            case "GET", ["launchSpec", name] if name in self.specifications:
                return 200, [self.specifications[name]]
            case "PUT", ["launchSpec", name] if name in self.specifications:
                self.specifications[name] |= body["launchSpec"]
                return 200, [self.specifications[name]]
            case "GET", ["cluster", "o-1"]:
                return 200, [{"id": "o-1", "compute": {"launchSpecification": self.specifications["o-1"]}}]
            case "PUT", ["cluster", "o-1"]:
                self.specifications["o-1"] |= body["cluster"]["compute"]["launchSpecification"]
                return 200, []
            case "POST", ["cluster", "o-1", "roll"]:
                if any(each["status"] == "IN_PROGRESS" for each in self.rolls):
                    return 400, []
                self.asked.append(body["roll"])
                number = len(self.rolls)
                made: dict[str, Any] = {
                    "id": f"scr-{number}",
                    "status": "IN_PROGRESS",
                    "progress": {"unit": "percent", "value": 0},
                }
                self.rolls.append(
                    {**made, "createdAt": f"2026-01-01T00:00:0{number}Z", "currentBatch": 1, "numOfBatches": 4}
                )
                return 200, [self.rolls[-1]]
            case "GET", ["cluster", "o-1", "roll"]:
                self.step()
                return 200, self.rolls
            case "PUT", ["cluster", "o-1", "roll", name]:
                next(each for each in self.rolls if each["id"] == name)["status"] = body["roll"]["status"]
                return 200, []
            case _:
                return 404, []

    def step(self) -> None:
        for each in self.rolls:
            if each["status"] == "IN_PROGRESS" and not self.stuck:
                each["progress"]["value"] += 25
                if self.fails:
                    each["status"], self.fails = "FAILED", False
                elif each["progress"]["value"] == 100:
                    each["status"] = "COMPLETED"


@pytest.fixture
def spot(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Spot]:
    spot = Spot({name: {"imageId": "ami-0", "tags": []} for name in ("ols-1", "ols-2", "o-1")})

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def _serve(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
            path, _, query = self.path.removeprefix("/ocean/aws/k8s/").partition("?")
            if self.headers["Authorization"] != "Bearer secret" or query != "accountId=act-1":
                code, items = 401, list[dict[str, Any]]()
            else:
                code, items = spot.answer(self.command, path, body)
            errors = [] if code == 200 else [{"code": "X", "message": "as documented"}]
            text = json.dumps({"response": {"items": items, "errors": errors}}).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_PUT = do_POST = _serve  # noqa: N815 (http.server's names)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    monkeypatch.setattr(ocean, "API", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("SPOTINST_TOKEN", "secret")
    monkeypatch.setenv("SPOTINST_ACCOUNT", "act-1")
    monkeypatch.chdir(tmp_path)
    yield spot
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("target", [GROUPS, {"ocean": {"cluster": "o-1"}}], ids=["groups", "cluster"])
def test_there_and_back(spot: Spot, tmp_path: Path, capsys: pytest.CaptureFixture[str], target: dict[str, Any]) -> None:
    names = target["ocean"].get("groups", ["o-1"])
    spot.specifications[names[0]]["tags"].append({"tagKey": "team", "tagValue": "ml"})
    kitchen(tmp_path, [target], FIRST)
    assert parbake(capsys, "rollout", FIRST.key, "--dry-run")[0] == 0
    assert spot.rolls == []
    assert parbake(capsys, "rollout", FIRST.key, *QUICK)[0] == 0
    assert {spot.specifications[name]["imageId"] for name in names} == {"ami-1"}
    assert {"tagKey": "team", "tagValue": "ml"} in spot.specifications[names[0]]["tags"], "other tags stay"
    assert (spot.asked[0]["respectPdb"], spot.asked[0].get("launchSpecIds")) == (True, target["ocean"].get("groups"))
    code, done = parbake(capsys, "rollout", FIRST.key, *QUICK)
    assert (code, done["changed"], len(spot.rolls)) == (0, False, 1)
    report = parbake(capsys, "status")[1][0]
    assert (report["holds"]["image"], report["previous"]["image"]) == ("ami-1", "ami-0")
    code, done = parbake(capsys, "rollback", *QUICK)
    assert (code, done["changed"], len(spot.rolls)) == (0, True, 2)
    assert {spot.specifications[name]["imageId"] for name in names} == {"ami-0"}
    code, done = parbake(capsys, "rollback", *QUICK)
    assert (code, done["changed"], len(spot.rolls)) == (0, False, 2), "it has gone back already"
    assert not goes_out_again(tmp_path, FIRST)


def test_a_roll_that_fails_or_hangs_or_is_stopped(
    spot: Spot, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kitchen(tmp_path, [GROUPS], FIRST, SECOND)
    spot.fails = True
    code, error = parbake(capsys, "rollout", FIRST.key, *QUICK)
    assert (code, "the roll is FAILED at 25 %" in error["message"]) == (1, True)
    spot.stuck = True
    assert parbake(capsys, "rollout", SECOND.key, "--no-follow")[0] == 0
    code, error = parbake(capsys, "rollout", SECOND.key, *QUICK, "--deadline", "1")
    assert (code, "batch 1 of 4" in error["message"]) == (1, True)
    code, error = parbake(capsys, "rollout", FIRST.key, "--no-follow")
    assert (code, error["error"]) == (1, "TargetMoved"), "one roll at a time"
    assert parbake(capsys, "freeze", "--to", "ocean")[1]["changed"] == {"ocean": ["roll scr-1"]}
    assert spot.rolls[1]["status"] == "STOPPED"


def test_bad_input(
    spot: Spot, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kitchen(tmp_path, [{"ocean": {"cluster": "o-1", "groups": ["ols-9"]}}], FIRST, data := volume("d", "snap-1"))
    code, error = parbake(capsys, "rollout", FIRST.key)
    assert (code, "check the ids" in error["hint"]) == (2, True)
    assert parbake(capsys, "rollout", data.key)[0] == 2
    monkeypatch.setenv("SPOTINST_TOKEN", "wrong")
    code, error = parbake(capsys, "rollout", FIRST.key)
    assert (code, "SPOTINST_TOKEN" in error["hint"], "wrong" in error["message"]) == (1, True, False)
    monkeypatch.delenv("SPOTINST_TOKEN")
    code, error = parbake(capsys, "rollout", FIRST.key)
    assert (code, error["error"]) == (1, "EnvironmentProblem")
    assert spot.rolls == []

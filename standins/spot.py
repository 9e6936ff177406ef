"""Stands in for Spot's API of Ocean, for tests only."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from parbake.rollouts import ocean


@dataclass
class Spot:
    """Launch specifications, rolls one at a time, errors as documented. A roll comes a quarter further at each look.

    Not modelled: anything behind the specifications (instances, pods, PDBs), paging, more than one cluster (``o-1``).
    """

    specifications: dict[str, dict[str, Any]] = field(default_factory=dict)
    rolls: list[dict[str, Any]] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)
    fails: bool = False
    stuck: bool = False

    def answer(  # noqa: C901, PLR0911 (a request each)
        self, method: str, path: str, body: dict[str, Any]
    ) -> tuple[int, list[dict[str, Any]]]:
        match method, path.split("/"):
            case "GET", ["launchSpec", name] if name in self.specifications:
                return 200, [self.specifications[name]]
            case "PUT", ["launchSpec", name] if name in self.specifications:
                self.specifications[name] |= body["launchSpec"]
                return 200, [self.specifications[name]]
            case "GET", ["launchSpec"]:
                return 200, [{"id": name, **each} for name, each in self.specifications.items() if name != "o-1"]
            case "GET", ["cluster"]:
                return self.answer("GET", "cluster/o-1", {})
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
                    "comment": body["roll"].get("comment"),
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


@contextmanager
def serving_spot(monkeypatch: pytest.MonkeyPatch) -> Iterator[Spot]:
    """Serve it, and let parbake ask there."""
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
    try:
        yield spot
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

"""`parbake fleet up` as a user has it: real bakes of small images, by workers that it started, told by its commands."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from parbake.core.run import Deadline, run
from standins.command import Corner, Running
from standins.images import image, layer, push
from standins.loopback import free_port
from standins.registry import DockerRegistry

pytestmark = [pytest.mark.root, pytest.mark.slow(60)]

USUAL = "version: 1\nbase: none\nsize: 32MiB\n"


@pytest.fixture
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    with DockerRegistry(tmp_path_factory.mktemp("registry")) as running:
        for tag in ("1", "2"):
            push(running.url, "app", image(layer({"app": random.Random(1).randbytes(1 << 18), "v": tag.encode()})), tag)
        yield running


class Up:
    """A corner with a fleet, in which `fleet up` can be started, killed and started again."""

    def __init__(self, folder: Path, registry: DockerRegistry) -> None:
        self.corner = Corner(folder)
        self.ports = (free_port(), free_port())
        for number in (1, 2):
            text = f"{USUAL}images: ['{registry.host}/app:{number}']\n"
            self.corner.write(f"bake{number}/parbake.yaml", text)
        assert self.corner.parbake("fleet", "init").code == 0
        file = self.corner.folder / "fleet.yaml"
        file.write_text(file.read_text().replace("#verify: true", "verify: false"))

    def start(self, *more: str) -> Running:
        port, ui_port = map(str, self.ports)
        return self.corner.start("fleet", "up", "--port", port, "--ui-port", ui_port, "--progress", "json", *more)

    def fleet(self, *words: str, code: int = 0) -> Any:
        done = self.corner.parbake("fleet", *words, "--json")
        assert done.code == code, done
        return done.document


def ready(up: Running) -> None:
    up.wait_for("note", "the engine listens on")
    threading.Thread(target=lambda: list(up.events()), daemon=True).start()  # so that it is never held up by a pipe


def processes(folder: Path) -> dict[int, str]:
    """Return the processes whose command lines name a folder."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = entry.read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if str(folder) in text:
            found[int(entry.parent.name)] = text
    return found


def started(folder: Path, named: str) -> int:
    """Wait for the one process of a fleet whose command line says this; return its id."""
    deadline = Deadline(60, f"the start of {named}")
    while not (found := [pid for pid, text in processes(folder).items() if named in text]):
        deadline.sleep(0.1)
    (pid,) = found
    return pid


def until_gone(folder: Path) -> None:
    deadline = Deadline(120, "the end of all that was started")
    while processes(folder):
        deadline.sleep(0.05)


def test_a_fleet_is_baked_and_its_engine_can_be_lost(tmp_path: Path, registry: DockerRegistry) -> None:
    up = Up(tmp_path / "corner", registry)
    refused = up.fleet("status", code=2)
    assert "there is no key" in refused["message"]
    nothing = up.fleet("doctor", code=1)
    assert [(each["name"], each["status"]) for each in nothing] == [("store", "ok"), ("engine", "missing")]
    assert "there is no key" in nothing[1]["found"]
    with up.start("--workers", "1") as running:
        ready(running)
        again = up.fleet("up", "--port", str(up.ports[0]), code=1)
        assert again["error"] == "DeadlineExceeded"
        ended = up.fleet("run", "--wait", "--progress", "none")
        assert ended["counts"] == {"there": 0, "baked": 2, "joined": 0, "failed": 0, "quarantined": 0, "done": 2}
        status = up.fleet("status")
        assert (status["state"], status["workers"]) == ("completed", {"control": 1, "bake": 1, "place": 1, "roll": 1})
        assert "2 of 2 cells: 2 baked" in up.corner.parbake("fleet", "status").stdout
        assert "no run of corner is under way" in up.fleet("pause", code=2)["message"]
        healthy = up.fleet("doctor")
        assert [each["name"] for each in healthy] == ["store", "engine", "search", "control", "bake", "place", "roll"]
        assert "missing" not in {each["status"] for each in healthy}
        file = up.corner.folder / "fleet.yaml"
        file.write_text(file.read_text() + "schedule: {every: 24h}\n")
        assert up.fleet("apply") == {
            "schedule": "created",
            "prune": "none",
            "starts_per_second": None,
            "held": None,
            "dry_run": False,
        }
        drained = {"schedule_held": True, "run": False, "done": None, "left": None}
        assert up.fleet("drain") == drained
        assert up.fleet("resume")["told"] == "resume"
        file.write_text(file.read_text().replace("schedule: {every: 24h}\n", ""))
        removed = up.corner.parbake("fleet", "apply").stdout
        assert removed == "schedule of runs: removed\nschedule of pruning: none\n"
        listening = run(["ss", "-Hltnp"]).text
        mine = [line.split()[3] for line in listening.splitlines() if "temporal" in line]
        assert [each for each in mine if each.endswith(f":{up.ports[0]}")] == [f"127.0.0.1:{up.ports[0]}"]
        assert [each for each in mine if each.endswith(f":{up.ports[1]}")] == [f"127.0.0.1:{up.ports[1]}"]
        assert (up.corner.folder / ".fleet").stat().st_mode & 0o077 == 0
        running.kill(signal.SIGKILL, group=False)
        until_gone(up.corner.folder / ".fleet")
    for path in (up.corner.folder / ".fleet").glob("fleet.db*"):
        path.unlink()
    with up.start("--workers", "1") as running:
        ready(running)
        ended = up.fleet("run", "--wait", "--progress", "none")
        assert (ended["counts"]["there"], ended["counts"]["baked"]) == (2, 0), "what is true is in the store"
        running.kill(signal.SIGTERM, group=False)
        assert running.finish().code == 130
        until_gone(up.corner.folder / ".fleet")
    assert up.corner.leaked() == []


def test_what_dies_is_started_again_and_a_failed_cell_is_told(tmp_path: Path, registry: DockerRegistry) -> None:
    up = Up(tmp_path / "corner", registry)
    up.corner.write("bake1/parbake.yaml", f"{USUAL}images: ['{registry.host}/app:3']\n")
    with up.start("--workers", "1") as running:
        ready(running)
        for named in ("server start-dev", "fleet worker"):
            os.kill(started(up.corner.folder / ".fleet", named), signal.SIGKILL)
        run_it = ("fleet", "run", "--wait", "--progress", "none")
        deadline = Deadline(120, "the engine answers again")
        while "does not answer" in (done := up.corner.parbake(*run_it)).said:
            assert done.code == 1
            deadline.sleep(0.2)
        assert done.code == 3, done
        assert "bake1@amd64: Wrong: " in done.stdout
        assert "has no tag 3" in done.stdout
        assert "1 of 2 cells have failed" in done.said
        freed = up.fleet("retry", "bake2", "--progress", "none")
        assert freed == {"freed": []}
        key = next(each["key"] for each in up.fleet("plan", "--cell", "bake2", "--progress", "none")["cells"])
        (up.corner.folder / "store/quarantine").mkdir()
        note = '{"cell": "bake2@amd64", "error": "WorkerLost", "message": "its workers died"}'
        (up.corner.folder / "store/quarantine" / key).write_text(note)
        for path in (up.corner.folder / "store/artefacts").iterdir():
            path.unlink()
        for path in (up.corner.folder / "bake2/artefacts").iterdir():
            path.unlink()
        held = up.fleet("plan", "--cell", "bake2", "--progress", "none")
        assert held["cells"][0]["state"] == "quarantined"
        assert "its workers died" in held["cells"][0]["problem"]
        assert up.fleet("retry", "bake2", "--progress", "none") == {"freed": ["bake2@amd64"]}
        assert up.fleet("plan", "--cell", "bake2", "--progress", "none")["cells"][0]["state"] == "bake"
        running.kill(signal.SIGTERM, group=False)

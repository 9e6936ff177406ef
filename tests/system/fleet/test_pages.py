"""What others see of a fleet: the engine's own program by way of the codec, searches, and Prometheus."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.request import urlopen

import pytest
from ruamel.yaml import YAML
from temporalio.client import Client

from parbake.fleet.engine import health, local, search
from parbake.fleet.engine.codec import server, word
from parbake.fleet.engine.sealing import read_keys
from standins import documents
from standins.fleets import Fleet
from standins.loopback import free_port

pytestmark = pytest.mark.slow(60)

ALERTS = Path(__file__).parents[3] / "deploy/chart/files/fleet-alerts.yaml"
HOW_TO = Path(__file__).parents[3] / "docs/how-to/fleet-engine.md"


@pytest.fixture(scope="module")
def metrics() -> str:
    return f"127.0.0.1:{free_port()}"


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, metrics: str) -> Iterator[Fleet]:
    """An engine that has the attributes, and a worker that serves its metrics; a cell of three has failed."""
    with Fleet(tmp_path_factory.mktemp("fleet")) as fleet, pytest.MonkeyPatch.context() as patched:
        assert fleet.ask(search.registered) == []
        assert fleet.ask(lambda client: health.look(client, "shop")).searchable == []
        temporal(fleet, *search.HOW.split()[1:])
        patched.setenv("FLEET_WORKER_METRICS", metrics)
        fleet.work(1)
        fleet.run(["one", "two", "refused"])
        yield fleet


def temporal(fleet: Fleet, *arguments: str) -> str:
    """Run the engine's own program."""
    command = [local.program(), *arguments, "--address", fleet.engine.address]
    home = {"HOME": str(fleet.state), "PATH": os.environ["PATH"]}
    return subprocess.run(command, capture_output=True, text=True, check=True, env=home, timeout=60).stdout


def said(payload: dict[str, str]) -> Any:
    return json.loads(b64decode(payload["data"]))


def test_the_engine_finds_cells_and_states(fleet: Fleet) -> None:
    async def found(client: Client, query: str) -> dict[str, str]:
        shown = [each async for each in client.list_workflows(query)]
        pairs = [{pair.key.name: str(pair.value) for pair in each.typed_search_attributes} for each in shown]
        return {each.get(search.CELL, "-"): each[search.STATE] for each in pairs}

    def ask(query: str) -> dict[str, str]:
        return fleet.ask(lambda client: found(client, query))

    of_all = {"-": "incomplete", "one": "baked", "two": "baked", "refused": "failed"}
    fleet.wait_until(lambda: ask("ParbakeFleet = 'shop'") == of_all, "all that is to be seen")
    assert ask("ParbakeState = 'failed'") == {"refused": "failed"}
    assert ask("ParbakeCell = 'one'") == {"one": "baked"}


def test_a_rollout_shows_its_states(fleet: Fleet) -> None:
    fleet.waves({"name": "all", "targets": ["three/here"], "approve": {"by": [], "count": 1, "within": None}})
    fleet.run(["three@amd64"], name="waits", rollout=True)
    fleet.until("approval", "waits")

    async def states(client: Client) -> list[str]:
        query = "WorkflowType = 'Rollout' AND ParbakeFleet = 'waits'"
        return [
            str(each.typed_search_attributes.get(search._KEYS[search.STATE]))
            async for each in client.list_workflows(query)
        ]

    fleet.wait_until(lambda: fleet.ask(states) == ["approval"], "the state of one that waits")
    fleet.approve(name="waits")
    fleet.until("completed", "waits")
    fleet.wait_until(lambda: fleet.ask(states) == ["done"], "the state of one that is done")


def test_the_engines_program_shows_what_is_sealed_by_way_of_the_codec(fleet: Fleet) -> None:
    keys = read_keys(fleet.engine.key)
    with server(keys, 0, []) as listening:
        Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        address = f"http://127.0.0.1:{listening.server_address[1]}/{word(keys[0])}"
        show = ("workflow", "show", "--workflow-id", "fleet/shop", "--output", "json")
        assert str(fleet.store) not in temporal(fleet, *show)
        opened = temporal(fleet, *show, "--codec-endpoint", address)
        listening.shutdown()
    first, *_, last = json.loads(opened)["events"]
    [asked] = first["workflowExecutionStartedEventAttributes"]["input"]["payloads"]
    [ended] = last["workflowExecutionCompletedEventAttributes"]["result"]["payloads"]
    assert said(asked)["store"] == str(fleet.store)
    assert said(ended)["counts"]["failed"] == 1
    assert "binary/parbake-sealed" not in opened, "nothing stays sealed"


def test_alerts_ask_for_what_workers_measure(fleet: Fleet, metrics: str) -> None:
    assert fleet.workers[0].alive
    with urlopen(f"http://{metrics}/metrics") as answer:
        said = answer.read().decode()
    measured = set(re.findall(r"^(\w+)(?:\{| )", said, re.MULTILINE))
    labels = dict[str, set[str]]()
    for name, inside in re.findall(r"^(\w+)\{(.*)\}", said, re.MULTILINE):
        labels.setdefault(name, set()).update(re.findall(r'\w+="[^"]*"', inside))
    [group] = YAML(typ="safe").load(ALERTS.read_text())["groups"]
    assert len(group["rules"]) == 3
    for rule in group["rules"]:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert {"summary", "description"} == set(rule["annotations"])
        expression: Any = rule["expr"]
        asked = re.findall(r"(temporal_\w+)\{(.*?)\}", expression)
        assert asked
        for name, inside in asked:
            assert name in measured, f"{rule['alert']}: {name}"
            assert set(re.findall(r'\w+="[^"]*"', inside)) <= labels[name], f"{rule['alert']}: {inside}"


def test_the_page_can_be_followed(fleet: Fleet, tmp_path: Path) -> None:
    """Its engine is this one, which has the attributes already: the page may be followed twice."""
    here = tmp_path / "here"
    here.mkdir()
    (here / ".fleet").symlink_to(fleet.state)
    (here / "fleet.yaml").write_text("version: 1\nname: shop\nstore: store\nbakefiles: [parbake.yaml]\n")
    (here / "parbake.yaml").write_text("version: 1\nimages: [r.example/app:1]\nbase: none\n")
    programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = {**os.environ, "PATH": programs, "HOME": str(tmp_path)}
    theirs = {"engine.example.com:7233": fleet.engine.address, "8234": str(free_port())}

    def place(text: str) -> str:
        for ours, other in theirs.items():
            text = text.replace(ours, other)
        return text

    said = documents.run(documents.read(HOW_TO), here, env, change=place)
    assert search.HOW in HOW_TO.read_text().replace(" \\\n  ", " ")
    assert f"the codec server is http://127.0.0.1:{theirs['8234']}/" in said
    assert re.search(r"Temporal\s+1\.", said), "doctor has found it"

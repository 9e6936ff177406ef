"""Watching: what moved, when something is done, and what a failure does. And the files that make it run elsewhere."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from parbake.cli.text.pruning import decisions_json
from parbake.cli.text.rollouts import turn_json, turn_text
from parbake.core.errors import BakefileError, RegistryError
from parbake.core.events import Event, Events
from parbake.workflows import bake, watch
from parbake.workflows.plan import BakeResult
from standins.clusters import machine_image, project
from standins.command import documents
from standins.plans import record

pytestmark = pytest.mark.usefixtures("made_up_records")

DEPLOY = Path(__file__).parents[3] / "deploy"
DONE = BakeResult(Path("a.raw"), record(passed=True), changed=True)


class Enough(Exception):
    pass


def test_what_moved() -> None:
    assert watch.moved(None, {"a": "1", "base": ""}) == ("a", "base")
    assert watch.moved({"a": "1", "b": "1"}, {"a": "1", "b": "2", "c": "1"}) == ("b", "c")
    assert watch.moved({"a": "1", "gone": "1"}, {"a": "1"}) == ()


def taking_turns(
    monkeypatch: pytest.MonkeyPatch, looks: list[Any]
) -> tuple[list[tuple[str, ...]], list[float], list[str]]:
    """Let each look see the next of a list, or fail by it; return what was acted on, the pauses and the warnings."""
    acted: list[tuple[str, ...]] = []
    pauses: list[float] = []
    warnings: list[str] = []
    monkeypatch.setattr(watch, "sleep", pauses.append)

    def look() -> watch.Seen:
        if not looks:
            raise Enough
        seen = looks.pop(0)
        if isinstance(seen, Exception):
            raise seen
        return dict(seen)

    def note(event: Event) -> None:
        if event.kind == "warning":
            warnings.append(event.text)

    with pytest.raises(Enough):
        watch.watch(
            look,
            lambda: (DONE, (), None),
            Events(note),
            once=False,
            interval=100,
            on_turn=lambda turn: acted.append(turn.moved),
        )
    return acted, pauses, warnings


def test_something_is_done_at_first_and_when_something_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    acted, pauses, _ = taking_turns(monkeypatch, [{"a": "1"}, {"a": "1"}, {"a": "2"}, {"a": "2"}])
    assert acted == [("a",), ("a",)]
    assert all(90 <= pause <= 110 for pause in pauses)
    assert len(set(pauses)) > 1, "not in step with others"


def test_what_fails_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    acted, _, warnings = taking_turns(monkeypatch, [{"a": "1"}, RegistryError("down"), {"a": "2"}])
    assert acted == [("a",), ("a",)]
    assert warnings == ["down; trying again in 100 s"]


def test_a_bake_that_fails_is_tried_again_although_nothing_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "sleep", lambda _: None)
    results: list[Any] = [RegistryError("x"), (DONE, (), None), Enough()]

    def act() -> Any:
        result = results.pop(0)
        if isinstance(result, Exception):
            raise result
        return result

    seen = iter([{"a": "1"}, {"a": "1"}, {"a": "1"}, {"a": "2"}])
    with pytest.raises(Enough):
        watch.watch(lambda: next(seen), act, Events(), once=False, interval=1)
    assert results == [], "once again, then not until something moved"


def test_old_artefacts_go_after_a_turn_when_that_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = record("a", at=1, passed=True), record("b", at=2, passed=True)
    file = project(tmp_path, [], old, new, retention={"keep": 1})
    for each in (old, new):
        (tmp_path / "artefacts" / each.artefact).touch()
    monkeypatch.setattr(bake, "bake", lambda *_: DONE)
    assert watch.act(file, Events(), None) == (DONE, (), None)
    assert len(list((tmp_path / "artefacts").glob("*.json"))) == 2, "not asked for"
    turn = watch.Turn(("x",), *watch.act(file, Events(), None, prune=True))
    assert turn.tidied is not None
    assert turn.tidied.pruned is None, "nothing is published"
    assert [path.name for path in (tmp_path / "artefacts").glob("*.json")] == [new.file_name]
    said = turn_json(turn)["prune"]
    assert said == decisions_json(turn.tidied.decisions)
    assert old.artefact in turn_text(turn)


def test_once_raises_and_so_does_a_wrong_bakefile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "sleep", lambda _: pytest.fail("no turn after it"))

    def down() -> watch.Seen:
        raise RegistryError("down")

    def wrong() -> watch.Seen:
        raise BakefileError("parbake.yaml", ())

    with pytest.raises(RegistryError):
        watch.watch(down, lambda: (DONE, (), None), Events(), once=True, interval=1)
    with pytest.raises(BakefileError):
        watch.watch(wrong, lambda: (DONE, (), None), Events(), once=False, interval=1)


INTERRUPTED = """
import os, signal, sys, time
from pathlib import Path
from parbake.workflows import bake as flow, plan as planning
from parbake.records import genuine
from parbake.core import interrupts
from parbake import records
from parbake.cli.text import rollouts as rollout_tables
from parbake.cli import app as door
import parbake.cli.rollouts
from parbake.core.events import Events
from parbake.workflows import watch as watching

where, = sys.argv[1:]
path, record = next(iter(records.find(Path("artefacts"))))
look, show, emit = iter([{"app": "1"}]), rollout_tables.turn_json, Events.emit

def emitted(self, event):
    emit(self, event)
    if (event.kind, event.name) == (where, "follow-file"):
        os.kill(os.getpid(), signal.SIGINT)

def slow(turn):
    time.sleep(0.2)  # longer than a signal waits that finds the program cleaning up
    return show(turn)

watching.look = lambda *_: next(look)
genuine.need_published = lambda *_, **__: None  # there is no AWS to ask
flow.bake = lambda *_: planning.BakeResult(path, record, changed=True)
Events.emit, rollout_tables.turn_json = emitted, slow
interrupts.install()
sys.exit(door.run(["watch", "--json", "--progress", "none"]))
"""


def interrupted(folder: Path, where: str) -> tuple[int, list[Any]]:
    """Watch a file as target, with a SIGINT at the start or the end of following it; return the code and documents."""
    project(folder, [{"file": "image.json"}], machine_image("a", "ami-1"))
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, where], capture_output=True, text=True, cwd=folder, timeout=60, check=False
    )
    sys.stderr.write(done.stderr)  # for whoever reads why a test failed
    return done.returncode, documents(done.stdout)


def test_a_turn_that_is_done_is_told_before_a_signal_ends_the_watch(tmp_path: Path) -> None:
    code, told = interrupted(tmp_path, "stage-end")
    assert (code, [turn.get("moved") for turn in told]) == (130, [["app"]])
    assert [target["written"] for target in told[0]["rollout"]["targets"]] == [True]


def test_a_turn_that_still_acts_is_interrupted(tmp_path: Path) -> None:
    code, told = interrupted(tmp_path, "stage-start")
    assert (code, [turn.get("error") for turn in told]) == (130, ["Interrupted"])


def test_the_container_gets_the_packages_that_parbake_needs_and_no_more() -> None:
    (line,) = [line for line in (DEPLOY / "Containerfile").read_text().splitlines() if "sed " in line]
    script = line.partition("sed '")[2].partition("'")[0]
    packages = DEPLOY.parent / "packages.apt"
    given = subprocess.run(
        ["/bin/sed", script, str(packages)], capture_output=True, text=True, check=True
    ).stdout.split()
    ours = packages.read_text().partition("# Tests:")[0]
    assert given == [word for line in ours.splitlines() if not line.startswith("#") for word in line.split()]
    assert {"containerd", "kubectl"} <= set(given)
    assert "docker-registry" not in given or "docker-registry" in ours

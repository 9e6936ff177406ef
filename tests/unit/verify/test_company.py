"""Who is proven beside whom, and when each is looked at once more: on the host's side, and within a machine.

Nobody waits: the clock is the test's.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from parbake.containerd.cri import ContainerStatus
from parbake.core import nodefiles
from parbake.core.events import Events
from parbake.core.model import ImageVerdict, Probe, RunningProbe, Startup, TcpProbe
from parbake.machine.vm import Clock, Waited
from parbake.verify import within
from parbake.verify.company import cautions, start_all
from parbake.verify.starter import Starter

NANO = 10**9


@dataclass
class Program:
    """What an image does: ``ends`` seconds after its start with ``code``; ``port`` is one that it takes, or ends."""

    ends: float = 1e6
    code: int = 0
    port: int = 0
    probe: Probe = field(default_factory=RunningProbe)
    watch: float = 10.0
    failing: int = 1000
    """How many of its starts end so; the others run on."""


class Node:
    """A machine that runs such programs on one network; as a guest and its CRI, and as a runtime within."""

    mounts = True

    def __init__(self, programs: dict[str, Program]) -> None:
        self.programs, self.clock, self.starts = programs, [1000.0], list[tuple[str, float]]()
        self.running: dict[str, dict[str, Any]] = {}

    # -- both

    def create(self, name: str) -> str:
        program, now = self.programs[name], self.clock[0]
        taken = any(each["port"] == program.port and self.state(each)[0] == 1 for each in self.running.values())
        before = sum(1 for each, _ in self.starts if each == name)
        self.starts.append((name, now))
        over = (0.5, 98) if program.port and taken else (program.ends, program.code)
        if before >= program.failing:
            over = (1e6, 0)
        self.container = f"{name}#{len(self.starts)}"
        self.running[self.container] = {"port": program.port, "began": now, "over": now + over[0], "code": over[1]}
        return self.container

    def state(self, each: dict[str, Any]) -> tuple[int, float, float, int, str]:
        is_over = self.clock[0] >= each["over"]
        return (
            2 if is_over else 1,
            each["began"],
            each["over"] if is_over else 0.0,
            each["code"] if is_over else 0,
            "",
        )

    # -- the guest and its CRI

    def now(self) -> Clock:
        return Clock(int(self.clock[0] * NANO), self.clock[0])

    def wait_tcp(self, port: int, _seconds: float) -> Waited:
        return Waited(self.listens(port), self.now())

    def listens(self, port: int) -> bool:
        return any(each["port"] == port and self.state(each)[0] == 1 for each in self.running.values())

    def check(self, *_: object, **__: object) -> str:
        return "0"

    def read(self, *_: object, **__: object) -> bytes:
        return b""

    def run_pod_sandbox(self, *_: object, **__: object) -> object:
        return SimpleNamespace(id="")

    def create_container(self, pod: Any, _name: str, reference: str, **_: object) -> str:
        pod.id = self.create(reference)
        return str(pod.id)

    def start_container(self, *_: object, **__: object) -> None:
        pass

    def container_status(self, container: str) -> ContainerStatus:
        state, started, finished, code, _ = self.state(self.running[container])
        return ContainerStatus(
            id="", state="running" if state == 1 else "exited", exit_code=code, reason="", message="", created=0,
            started=started, finished=finished, log_path="",
        )  # fmt: skip

    def stop_pod_sandbox(self, container: str) -> None:
        del self.running[container]

    def remove_pod_sandbox(self, _: str) -> None:
        pass

    # -- the runtime within

    def start(self, name: str, _how: object) -> tuple[float, float]:
        self.create(name)
        return self.clock[0], 0.1

    def status(self) -> tuple[int, float, float, int, str]:
        return self.state(self.running[self.container])

    def log(self) -> list[tuple[float, str]]:
        return []

    def end(self) -> None:
        del self.running[self.container]


type Way = Callable[[Node], dict[str, ImageVerdict]]


def by_host(node: Node) -> dict[str, ImageVerdict]:
    starter = Starter(node, node, stretch=1, pause="pause")  # type: ignore[arg-type]
    found: dict[str, ImageVerdict] = {}
    for name, seen in start_all(starter, list(startups(node).items()), Events()):
        ran, problems = seen.ran_seconds, seen.problems
        found[name] = ImageVerdict(reference=name, shown=seen.shown, ran_seconds=ran, problems=problems)
    return found


def by_itself(node: Node) -> dict[str, ImageVerdict]:
    """With the program that goes to nodes."""
    prove = importlib.import_module("prove")
    told = startups(node)
    pairs: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"start": how.model_dump(mode="json")}, {"name": name, "pinned": True, "problems": []})
        for name, how in told.items()
    ]
    prove.start_all(node, pairs)
    return {proof["name"]: within.proof(proof["name"], "", proof, told[proof["name"]]) for _, proof in pairs}


def startups(node: Node) -> dict[str, Startup]:
    return {name: Startup(up=each.probe, watch=each.watch, timeout=30) for name, each in node.programs.items()}


@pytest.fixture(params=[by_host, by_itself])
def prove(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Way]:
    way: Way = request.param
    monkeypatch.setattr(sys, "path", [str(nodefiles.node_file("prove.py").parent), *sys.path])

    def proven(node: Node) -> dict[str, ImageVerdict]:
        def sleep(seconds: float) -> None:
            node.clock[0] += seconds

        monkeypatch.setattr(time, "sleep", sleep)
        monkeypatch.setattr(time, "time", lambda: node.clock[0])
        module = importlib.import_module("prove")
        monkeypatch.setattr(module, "answers", lambda up: node.listens(up["port"]))
        try:
            return way(node)
        finally:
            assert node.running == {}, "all are removed"

    yield proven
    sys.modules.pop("prove", None)
    sys.modules.pop("cri", None)


def test_a_program_that_ends_while_it_is_watched_is_no_proof(prove: Way) -> None:
    for watch, fails in ((10, True), (1.5, False)):
        found = prove(Node({"app": Program(ends=5, code=1, watch=watch)}))["app"]
        assert bool(found.problems) is fails
    found = prove(Node({"app": Program(ends=5, code=1)}))["app"]
    assert found.problems == ("it was up, and ended with code 1 5 s after its start",)


def test_what_ran_is_told_from_what_answered_and_what_ended(prove: Way) -> None:
    node = Node({"runs": Program(), "ends": Program(ends=3), "serves": Program(port=80, probe=TcpProbe(port=80))})
    found = prove(node)
    assert {name: each.shown for name, each in found.items()} == {
        "runs": "running", "ends": "ended", "serves": "answered",
    }  # fmt: skip
    assert found["runs"].ran_seconds == pytest.approx(10, abs=4)
    assert found["ends"].ran_seconds is None
    assert not any(each.problems for each in found.values())


def test_a_server_that_ends_well_after_it_answered_is_no_proof(prove: Way) -> None:
    found = prove(Node({"app": Program(ends=5, port=80, probe=TcpProbe(port=80))}))["app"]
    assert found.problems == ("it was up, and ended with code 0 5 s after its start",)


def test_all_are_looked_at_when_the_last_has_started(prove: Way) -> None:
    """The first ends after its own watch, while the last is still starting."""
    slow = Program(probe=RunningProbe(seconds=20))
    node = Node({"first": Program(ends=15, code=1), "slow": slow})
    found = prove(node)
    assert found["first"].problems
    assert found["slow"].problems == ()
    first = [at for name, at in node.starts if name == "first"]
    assert (len(first), first[1] - first[0] > 20) == (2, True), "what fails beside others is started once more, alone"


def test_images_that_want_the_same_port_are_proven_one_after_the_other(prove: Way) -> None:
    by_probe = Program(port=80, probe=TcpProbe(port=80))
    node = Node({"one": Program(port=80), "two": Program(port=80), "asked": by_probe, "other": Program()})
    found = prove(node)
    assert [each.problems for each in found.values()] == [()] * 4
    assert [name for name, _ in node.starts] == ["one", "two", "other", "two", "asked"]


def test_what_fails_only_beside_others_passes_alone(prove: Way) -> None:
    """As one that the kernel ended because all together took more memory than there is."""
    found = prove(Node({"one": Program(ends=6, code=137, failing=1), "two": Program()}))
    assert [each.problems for each in found.values()] == [(), ()]


def test_what_fails_alone_is_not_started_again(prove: Way) -> None:
    node = Node({"bad": Program(ends=0.5, code=7), "good": Program()})
    found = prove(node)
    assert found["bad"].problems[0].startswith("it ended with code 7 before ")
    assert [name for name, _ in node.starts] == ["bad", "good"]


def test_a_reader_is_told_of_what_nothing_was_asked_of() -> None:
    ran = ImageVerdict(reference="shop/api:1", startup=Startup(), shown="running", ran_seconds=12.2)
    chosen = ran.model_copy(update={"startup": Startup(up=RunningProbe(seconds=5))})
    answered = ran.model_copy(update={"shown": "answered"})
    [caution] = cautions([ran, chosen, answered, ran.model_copy(update={"problems": ("no",)})])
    assert caution.startswith("nothing was asked of shop/api:1 (12 s): that a program runs does not say that it works")

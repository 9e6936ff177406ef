"""What a machine with Docker is asked, and what is made of its answers; with a real one: tests/vm/builders."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, cast

import pytest

from parbake.core.errors import ContainerdError, MachineError
from parbake.core.events import Events
from parbake.core.model import ExitProbe, Startup
from parbake.machine.vm import Machine
from parbake.verify import Verification, compare_pull, within
from standins.plans import image, plan


class Answers:
    """A machine whose guest lists one image, and proves what it is asked for; ``said`` replaces its answers."""

    stretch = 2.0

    def __init__(self, said: str = "") -> None:
        self.said, self.asked, self.limits = said, list[dict[str, Any]](), list[float]()

    @property
    def guest(self) -> Answers:
        return self

    def run(self, _argv: Sequence[str], **_: object) -> Any:
        class Ran:
            code, output = 0, "registry.test/b:1 sha256:22\nregistry.test/a:1 sha256:11\n"

        return Ran()

    def check(self, argv: Sequence[str], *, timeout: float = 60.0, stdin: bytes = b"") -> str:
        if argv[0] == "python3":
            self.limits.append(timeout)
            proof = {"pinned": True, "problems": [], "start_seconds": 0.5, "output": "ready"}
            named = [{**proof, "name": each["names"][0]} for each in self.asked]
            return self.said or "stage start\n" + "".join(f"proved {json.dumps(each)}\n" for each in named)
        if b'"names"' in stdin:
            self.asked += json.loads(stdin)
        return ""


def test_a_plans_images_are_asked_for_with_time() -> None:
    machine = Answers()
    app = image("registry.test/app:1", startup=Startup(up=ExitProbe(), timeout=30), also_by_digest=True)
    [verdict] = within.prove_docker(cast("Machine", machine), plan(images=(app,)), Events())
    assert (verdict.reference, verdict.digest, verdict.start_seconds) == (app.names[0], app.target.digest, 0.5)
    [asked] = machine.asked
    assert asked["names"] == list(app.names)
    assert app.target.digest.startswith(asked["target"])
    assert len(asked["target"]) == len("sha256:") + 32, "half of it is enough, and user data has little room"
    assert asked["start"]["timeout"] == 60, "an emulated machine takes longer"
    assert machine.limits == [2 * (2 * (30 + 10) + 60)], "started, started once more alone, and watched each time"


def test_without_a_plan_all_that_docker_has_is_started() -> None:
    machine = Answers()
    found = list(within.prove_docker(cast("Machine", machine), None, Events()))
    assert [each.reference for each in found] == ["registry.test/a:1", "registry.test/b:1"]
    assert [each["config"] for each in machine.asked] == ["sha256:11", "sha256:22"]


@pytest.mark.parametrize("said", ["Traceback", "proved {"])
def test_a_proof_that_breaks_off_says_so(said: str) -> None:
    with pytest.raises(MachineError, match="the verification program failed"):
        list(within.prove_docker(cast("Machine", Answers(said)), plan(), Events()))


def test_a_machine_that_says_nothing_of_an_image_has_not_proven_it() -> None:
    verdict = within.proof("registry.test/app:1", "sha256:11", None)
    assert verdict.problems == ("the machine did not report on it",)


def test_a_pull_is_compared_with_containerds_alone() -> None:
    class Docker:
        is_docker = True

    class Rehearsed:
        node, events = Docker(), Events()

    with pytest.raises(ContainerdError, match="this node runs Docker"):
        compare_pull(cast("Verification", Rehearsed()), image())

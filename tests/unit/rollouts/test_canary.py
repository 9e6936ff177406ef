"""The gate of a rollout to Karpenter: pods on the new nodes decide, and whoever comes after a kill knows."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from parbake import aws, records
from parbake.bakefile import load
from parbake.core.errors import BakefileError, CanaryFailed
from parbake.core.events import Events
from parbake.core.model import Verdict
from parbake.core.run import Deadline
from parbake.rollouts import cluster as kubectl
from parbake.workflows import rollout
from parbake.workflows.rollout import canary as gate
from standins.clusters import SHOWN, machine_image, project
from standins.kubernetes.karpenter import Karpenter
from standins.kubernetes.kubectl_in_process import replace_kubectl
from standins.kubernetes.kubelet import Box, Kubelet
from standins.kubernetes.server import Server
from standins.plans import digest
from standins.runs import Done, parbake
from tests.unit.rollouts.test_karpenter import FIRST, GPU, SECOND, cluster, images, pool, server, terms
from tests.unit.rollouts.test_node_classes import ALIAS

pytestmark = pytest.mark.usefixtures("made_up_records")

__all__ = ["cluster", "server"]

APP = "registry.example/first:1"
NOTE = "parbake/canary"
HIT = {"min_hit_rate": 0.8, "pods": 2, "within": "2s"}


class Pods:
    """What comes to nodes of the first record's image, once: ``box`` on each, ``slow`` seconds by a pull."""

    def __init__(self, server: Server, *boxes: Box | str, per_node: int = 1, slow: float = 5.0) -> None:
        self.server, self.boxes, self.per_node, self.slow = server, boxes, per_node, slow

    def come(self) -> None:
        there = {each["metadata"]["name"] for each in self.server.list("nodes")}
        for claim in self.server.list("nodeclaims"):
            name = claim["status"].get("nodeName", "")
            if claim["status"].get("imageID") != "ami-1" or name in there:
                continue
            store = {APP: digest("manifest " + APP)}
            kubelet = Kubelet(self.server, name, store=store, at=datetime.now(UTC), pulls=self.slow)
            for number in range(self.per_node if self.boxes else 0):
                kubelet.run(f"pod-{name[-3:].strip('-')}-{number}", *self.boxes)


@pytest.fixture
def comes(server: Server, cluster: Karpenter, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Pods]:
    """Let pods come: while a rollout waits, Karpenter does a round, pods come, and a tenth of a second is over."""
    replace_kubectl(monkeypatch)
    pods = Pods(server)

    class Turns(Deadline):
        passed = 0.0

        @property
        def left(self) -> float:
            return max(0.0, self.seconds - self.passed)

        def sleep(self, seconds: float) -> None:
            del seconds
            cluster.step()
            pods.come()
            self.passed += 0.1

    monkeypatch.setattr(rollout, "Deadline", Turns)
    monkeypatch.setattr(gate, "Deadline", Turns)

    def like(*boxes: Box | str, **more: Any) -> Pods:
        pods.__init__(server, *boxes, **more)  # type: ignore[misc]
        return pods

    return like


def with_canary(**asks: Any) -> dict[str, Any]:
    return {**GPU, "canary": {**HIT, **asks}}


def rolls_out(*more: str) -> Done:
    return parbake("rollout", FIRST.key, "--json", *more)


def noted(server: Server) -> Any:
    text = server.get("ec2nodeclasses", "gpu")["metadata"]["annotations"].get(NOTE)
    return json.loads(text) if text else None


def test_pods_that_use_the_bake_let_it_stay(comes: Callable[..., Pods], server: Server, tmp_path: Path) -> None:
    comes(APP)
    project(tmp_path, [with_canary(max_start="10s")], FIRST)
    done = rolls_out().good()
    assert (done["targets"][0]["canary"], images(server), noted(server)) == ("passed", ["ami-1", "ami-1"], None)
    assert rolls_out().good()["targets"][0]["canary"] is None, "it has passed: nobody looks again"


def test_pods_that_pull_send_it_back_by_name_and_cause(
    comes: Callable[..., Pods], server: Server, cluster: Karpenter, tmp_path: Path
) -> None:
    comes(Box(APP, "Always"))
    server.create("ec2nodeclasses", "rest", spec=ALIAS["spec"])
    server.create("nodepools", "rest", spec=pool("rest"))
    project(tmp_path, [with_canary(), {"name": "rest", "karpenter": {"nodeclass": "rest"}}], FIRST, SECOND)
    error = rolls_out().refused(3, "CanaryFailed", "0 of 2 pods used the bake", "pull-policy-always", "shop/pod-")
    assert "It went back to the alias al2023@latest" in error["message"] or "al2023" in error["message"]
    assert (terms(server), images(server)) == ([{"alias": "al2023@latest"}], ["ami-0", "ami-0"])
    assert server.get("ec2nodeclasses", "rest")["metadata"]["generation"] == 1, "the next target is not touched"
    assert noted(server)["state"] == "failed"
    writes = server.store.version
    rolls_out().refused(3, "CanaryFailed", "0 of 2 pods used the bake", hint="--force")
    assert server.store.version == writes, "said again, and nothing is written"
    assert parbake("rollout", FIRST.key, "--dry-run", "--json").good()["targets"][0]["canary"] == "failed"
    with pytest.raises(CanaryFailed, match="0 of 2 pods"):
        rollout.rollout(tmp_path / "parbake.yaml", [FIRST.key], Events(), rollout.RolloutOptions(again=False))
    assert cluster.replaced
    comes(APP)
    assert rolls_out("--force", "--to", "gpu").good()["targets"][0]["canary"] == "passed"
    assert (images(server), noted(server)) == (["ami-1", "ami-1"], None)
    assert parbake("rollout", SECOND.key, "--json", "--no-follow", "--to", "gpu").code == 0
    assert noted(server)["of"] == ["ami-2"]
    assert parbake("rollback", "--json", "--no-follow", "--to", "gpu").code == 0
    assert noted(server) is None, "somebody has gone back: nothing is open"


def test_starts_that_are_too_slow_send_it_back(comes: Callable[..., Pods], server: Server, tmp_path: Path) -> None:
    comes("other.example/sidecar:1", Box(APP, name="app"), slow=40.0)
    project(tmp_path, [{**GPU, "canary": {"max_start": "30s", "pods": 2, "within": "2s"}}], FIRST)
    rolls_out().refused(3, "CanaryFailed", "2 of 2 pods took longer than 30 s to start", "shop/pod-")
    assert images(server) == ["ami-0", "ami-0"]


@pytest.mark.parametrize(
    ("why", "says"),
    [
        ("none", "no pod with an image of the bake"),
        ("forbidden", "events cannot be read"),
        ("no nodes", "names no node"),
    ],
)
def test_a_canary_that_nobody_answers_is_no_success(
    comes: Callable[..., Pods], server: Server, tmp_path: Path, why: str, says: str
) -> None:
    pods = comes(*([APP] if why == "forbidden" else []))
    if why == "forbidden":
        server.store.forbidden |= {("list", "events")}
    if why == "no nodes":
        pods.come = lambda: None  # type: ignore[method-assign]
    project(tmp_path, [with_canary()], FIRST)
    rolls_out().refused(1, "CanarySilent", "nobody knows whether pods use it", says, hint="looks again")
    assert (images(server), noted(server)["state"]) == (["ami-1", "ami-1"], "waits"), "nothing bad was seen"
    assert parbake("rollout", FIRST.key, "--dry-run", "--json").good()["targets"][0]["canary"] == "waits"
    server.store.forbidden.clear()
    for each in server.list("nodes"):
        server.delete("nodes", each["metadata"]["name"])
    for key in [key for key in server.store.objects if key[1] in {"pods", "events"}]:
        del server.store.objects[key]
    comes(APP).come()
    Pods.come(comes(APP))
    assert rolls_out().good()["targets"][0]["canary"] == "passed", "the same command looks again"


def test_fewer_pods_than_are_enough_decide_when_the_time_is_over(
    comes: Callable[..., Pods], server: Server, tmp_path: Path
) -> None:
    comes(Box(APP, "Always"))
    project(tmp_path, [with_canary(pods=50)], FIRST)
    rolls_out().refused(3, "CanaryFailed", "0 of 2 pods used the bake")
    assert images(server) == ["ami-0", "ami-0"]


UNPROVEN = machine_image("first", "ami-1", passed=None)
REST = {"name": "rest", "karpenter": {"nodeclass": "rest"}}


@pytest.fixture
def tagged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What EC2 is told to be verified."""
    ids = list[str]()

    class Ec2:
        def create_tags(self, Resources: list[str], Tags: list[dict[str, str]]) -> None:  # noqa: N803 (EC2's names)
            ids.extend(Resources)
            for each in Resources:
                SHOWN[each]["Tags"] = [*SHOWN[each]["Tags"], *Tags]

    monkeypatch.setattr(aws, "client", lambda *_: Ec2())
    return ids


def verdict(folder: Path) -> Verdict:
    [(_, found)] = records.find(folder / "artefacts")
    assert found.verdict, "nobody has proven it"
    return found.verdict


def test_what_nothing_has_booted_goes_to_a_canary_that_proves_it_and_then_to_others(
    comes: Callable[..., Pods], server: Server, tmp_path: Path, tagged: list[str]
) -> None:
    comes(APP)
    server.create("ec2nodeclasses", "rest", spec=ALIAS["spec"])
    server.create("nodepools", "rest", spec=pool("rest"))
    project(tmp_path, [with_canary(), REST], UNPROVEN, verify="canary")
    nobody = "is not proven yet"
    rolls_out("--to", "rest").refused(2, "InputError", nobody, "rest has no canary that could prove it")
    rolls_out("--no-follow").refused(2, "InputError", nobody, "rest gets it once the canary of gpu has")
    rolls_out().good()
    assert (images(server), noted(server), tagged) == (["ami-1", "ami-1"], None, ["ami-1", "snap-1"])
    assert server.get("ec2nodeclasses", "rest")["spec"]["amiSelectorTerms"] == [{"id": "ami-1"}]
    proof = verdict(tmp_path)
    assert (proof.passed, proof.accelerator) == (True, "canary")
    assert proof.canary == f"gpu: 2 of 2 pods used the bake ({APP})"
    assert "by the canary" in parbake("list").out
    assert f"proven by the canary of gpu: 2 of 2 pods used the bake ({APP})" in parbake("show", UNPROVEN.key).out
    assert tagged == ["ami-1", "snap-1"]
    assert rolls_out().good()["targets"][0]["canary"] is None, "proven once: nobody looks again"


def test_a_canary_that_fails_proves_nothing(
    comes: Callable[..., Pods], server: Server, tmp_path: Path, tagged: list[str]
) -> None:
    comes(Box(APP, "Always"))
    project(tmp_path, [with_canary()], UNPROVEN, verify="canary")
    rolls_out().refused(3, "CanaryFailed", "0 of 2 pods used the bake")
    [(_, found)] = records.find(tmp_path / "artefacts")
    assert (found.verdict, tagged, images(server)) == (None, [], ["ami-0", "ami-0"])


def test_without_the_canary_as_its_proof_what_nothing_has_booted_is_refused(
    server: Server, cluster: Karpenter, tmp_path: Path
) -> None:
    del server, cluster
    project(tmp_path, [with_canary()], UNPROVEN)
    rolls_out().refused(3, "VerificationFailed", "was not verified")
    project(tmp_path, [{**GPU, "canary": {"max_start": "30s"}}], UNPROVEN, verify={"by": "canary"})
    rolls_out().refused(2, "InputError", "gpu has no canary that could prove it", hint="min_hit_rate")


class Killed(BaseException):
    """As by kill -9."""


@pytest.mark.parametrize(("uses", "unproven"), [(True, False), (False, False), (True, True)])
def test_killed_at_any_call_the_next_run_knows(
    comes: Callable[..., Pods],
    server: Server,
    cluster: Karpenter,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tagged: list[str],
    uses: bool,
    unproven: bool,
) -> None:
    del tagged
    comes(APP if uses else Box(APP, "Always"))
    before, real, left = copy.deepcopy(server.store.objects), vars(kubectl)["run"], 0

    def ask(command: list[str], **options: Any) -> Any:
        nonlocal left
        answer = real(command, **options)
        left -= 1
        if left == 0:
            raise Killed
        return answer

    monkeypatch.setattr(kubectl, "run", ask)
    for number in range(1, 200, 3):  # of what lies between two writes one call is as good as another
        project(tmp_path, [with_canary()], UNPROVEN if unproven else FIRST, verify="canary" if unproven else {})
        server.store.objects = copy.deepcopy(before)
        cluster.replaced.clear()
        left = number
        try:
            rolls_out()
        except Killed:
            left = 10_000
        else:
            break
        done = rolls_out()
        if uses:
            assert (done.code, images(server), noted(server)) == (0, ["ami-1", "ami-1"], None), number
            assert not unproven or verdict(tmp_path).passed, number
        else:
            assert (done.code, done.document["error"]) == (3, "CanaryFailed"), number
            assert (terms(server), images(server)) == ([{"alias": "al2023@latest"}], ["ami-0", "ami-0"]), number
            assert "pull-policy-always" in done.document["message"]
    assert number > 12


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ({"file": "x.json", "canary": HIT}, "only `karpenter` names one"),
        ({"karpenter": {"nodeclass": "gpu"}, "canary": {"pods": 3}}, "asks for nothing"),
        ({"karpenter": {"nodeclass": "gpu"}, "canary": {"min_hit_rate": 1.5}}, "min_hit_rate"),
    ],
)
def test_a_canary_that_makes_no_sense_is_refused(tmp_path: Path, target: dict[str, Any], says: str) -> None:
    path = project(tmp_path, [target])
    with pytest.raises(BakefileError, match=says):
        load(path)
    assert load(project(tmp_path, [with_canary(min_hit_rate=1)])).rollout[0].canary

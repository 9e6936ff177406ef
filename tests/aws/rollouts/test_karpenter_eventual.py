"""Karpenter's half: a rollout that dies after any write, to AWS or to the cluster, that hears late, or is throttled.

Moto, the API server and kubectl's part are all in this process: a fork is a copy of the whole world, and serves its
own.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from parbake.core.errors import AwsLimit, CommandFailed, RolloutError
from parbake.core.events import Events
from parbake.core.run import Result
from parbake.records import Record
from parbake.rollouts.cluster import Cluster
from parbake.workflows import rollout
from standins.aws.eventual import Eventual
from standins.aws.interceptor import killed_everywhere, throttled_everywhere
from standins.aws.moto_with_faults import Plain, stand
from standins.clusters import machine_image, project
from standins.kubernetes.kubectl_in_process import kubectl
from standins.kubernetes.server import Server, listening, serving
from standins.kubernetes.store import Refused
from tests.aws.conftest import REGION
from tests.unit.rollouts.test_karpenter import images, pool, use
from tests.unit.rollouts.test_node_classes import ALIAS, NEW
from tests.unit.rollouts.test_pointers import BY_PARAMETER, BY_TAG, InTheCloud, register

pytestmark = pytest.mark.usefixtures("aws_mock", "made_up_records")
BY_ID = {"name": "gpu", "karpenter": {"nodeclass": "gpu"}}
OPTIONS = rollout.RolloutOptions(interval=0.001)
WRITES = {
    "id": ["PatchNodeClass"],
    "tag": ["CreateTags", "PatchNodeClass"],
    "parameter": ["PutParameter", "PatchNodeClass"],
}


@dataclass
class World:
    """AWS, a cluster with two nodes of one node class, and a Bakefile with two records."""

    plain: Plain
    server: Server
    karpenter: InTheCloud
    file: Path
    first: Record
    second: Record

    def out(self, record: Record) -> Any:
        """Hand out, and follow until the nodes run it."""
        [handed] = rollout.rollout(self.file, [record.key], Events(), OPTIONS)
        assert handed.follow
        assert handed.follow.done
        return handed

    def back(self) -> Any:
        """Go back, later."""
        self.settle()
        [handed] = rollout.rollback(self.file, Events(), OPTIONS)
        return handed

    def settle(self) -> None:
        """Let what was written be known everywhere."""
        if self.plain.eventual:
            self.plain.eventual.settle()
            self.plain.parameters.clear()

    def holds(self) -> str:
        self.settle()
        [report] = rollout.status(self.file)
        assert report.status, report.error
        return report.status.holds.image

    def image(self, record: Record) -> str:
        return record.published[REGION].image

    def copied(self) -> ExitStack:
        """Serve this copy of the cluster to whoever asks from now on: the threads of before were not copied."""
        stack = ExitStack()
        folder = self.server.kubeconfig.parent / f"copy{os.getpid()}"
        folder.mkdir()
        self.server.store.unlock()
        self.server = self.karpenter.server = stack.enter_context(listening(self.server.store, folder))
        return stack


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: dict[str, Any]) -> Iterator[World]:
    first, second = (machine_image(word, register(word), region=REGION) for word in ("first", "second"))
    file = project(tmp_path, [target], first, second)
    plain = stand(monkeypatch)
    with serving(tmp_path, NEW, "karpenter.sh_nodepools.v1", "karpenter.sh_nodeclaims.v1") as server:
        use(server, monkeypatch)
        server.create("ec2nodeclasses", "gpu", spec=ALIAS["spec"])
        server.create("nodepools", "gpu", spec=pool("gpu"))
        karpenter = InTheCloud(server, [])
        karpenter.look()
        karpenter.start_nodes("gpu", "gpu", 2)
        made = World(plain, server, karpenter, file, first, second)

        def asks(cluster: Cluster, arguments: list[str]) -> Result:
            if any("nodeclaims" in each for each in arguments):
                made.karpenter.step()  # time passes while a rollout looks
            try:
                answer = kubectl(made.server, arguments)
            except CommandFailed as error:
                raise cluster._translated(arguments, error) from error
            if arguments[0] == "patch" and "--dry-run=server" not in arguments:
                for hook in [*plain.after]:
                    hook("kubernetes", "PatchNodeClass", {})
            return answer

        monkeypatch.setattr(Cluster, "_run", asks)
        yield made


@pytest.mark.parametrize(
    ("target", "late"),
    [(BY_ID, 0), (BY_TAG, 2), (BY_PARAMETER, 2)],
    ids=["id", "late-tag", "late-parameter"],
)
def test_killed_after_any_write_and_started_again(world: World, late: int, request: pytest.FixtureRequest) -> None:
    """The first rollout, the second and the way back: each goes on, and the way back stays what was there before."""
    way = request.node.callspec.id.split("-")[-1]
    world.plain.eventual = Eventual(late=late)

    def first() -> None:
        with world.copied():
            world.out(world.first)
            assert (world.holds(), images(world.server)) == (world.image(world.first), [world.image(world.first)] * 2)
            world.back()
            assert images(world.server) == ["ami-0"] * 2

    def second() -> None:
        with world.copied():
            world.out(world.second)
            assert images(world.server) == [world.image(world.second)] * 2
            world.back()
            assert (world.holds(), images(world.server)) == (world.image(world.first), [world.image(world.first)] * 2)

    def going_back() -> None:
        with world.copied():
            world.back()
            assert (world.holds(), images(world.server)) == (world.image(world.first), [world.image(world.first)] * 2)

    calls = killed_everywhere(world.plain, lambda: world.out(world.first), first)
    assert calls == WRITES[way]
    world.settle()
    again = killed_everywhere(world.plain, lambda: world.out(world.second), second)
    assert sorted(set(again)) == sorted({*WRITES[way], *(["DeleteTags"] if way == "tag" else [])})
    assert killed_everywhere(world.plain, world.back, going_back)
    assert images(world.server) == [world.image(world.first)] * 2


@pytest.mark.parametrize("target", [BY_TAG, BY_PARAMETER], ids=["tag", "parameter"])
def test_throttled_at_any_call_to_aws(world: World) -> None:
    def judge(came: Exception | None, throttled: Counter[str]) -> None:
        assert isinstance(came, AwsLimit), came
        assert "throttles" in came.hint
        assert list(throttled.values()) == [1], "nothing above botocore tries again"

    met = throttled_everywhere(world.plain, lambda: world.out(world.first), judge)
    world.out(world.second)
    met |= throttled_everywhere(world.plain, world.back, judge)
    assert len(met) >= 2
    assert images(world.server) == [world.image(world.first)] * 2


@pytest.mark.parametrize("target", [BY_TAG], ids=["tag"])
def test_the_cluster_is_too_busy_at_any_question(world: World) -> None:
    """What is asked for is told, or done without where it is only of use; the same command again goes on."""
    met = left = 0
    told: set[tuple[bool, str]] = set()

    def refuse() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Refused(429, "TooManyRequests", "the server has received too many requests")

    world.server.store.before_answer = refuse
    while True:
        left = met
        try:
            world.out(world.first)
        except RolloutError as error:
            told.add(("too busy" in error.message, error.hint))
        if left >= 0:
            break
        met += 1
    assert met > 5
    assert told == {(True, "run the same command again")}
    assert images(world.server) == [world.image(world.first)] * 2

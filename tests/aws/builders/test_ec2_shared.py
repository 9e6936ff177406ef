"""An instance that bakes, and machines that share a store: whoever takes over a run makes the same requests."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from parbake import aws
from parbake.builders import Publication
from parbake.builders.ec2.launch import Launcher
from parbake.core.errors import ParbakeError
from parbake.core.events import Events
from parbake.core.model import Plan
from parbake.records.store import claimed, leases, open_store
from parbake.records.store.leases import LeaseClaim
from standins import machines
from standins.aws.ec2 import Cloud, Killed
from standins.aws.ec2_support import Bake, bake, cloud, named, plan, volume
from standins.aws.eventual import Eventual
from tests.aws.conftest import REGION

__all__ = ["bake", "cloud", "plan", "volume"]


@pytest.fixture
def shared(bake: Bake, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Publication]:
    """Return what bakes on a machine, with the lease that it needs."""
    machines.install(monkeypatch, tmp_path)

    def run(machine: str = "one", **more: Any) -> Publication:
        store = open_store(str(tmp_path / "store"))
        with machines.on(machine), claimed(store, plan.key, "node", Events()) as claim, aws.guarded(claim.need):
            return bake(claim=claim, **more)

    return run


def once(cloud: Cloud, at: str, act: Callable[[], object]) -> None:
    """Do something when AWS has acted on a call of this name for the first time."""

    def after(_service: str, operation: str, _arguments: dict[str, Any]) -> None:
        if operation == at:
            cloud.after.remove(after)
            act()

    cloud.after.append(after)


def killed() -> None:
    raise Killed


@pytest.mark.parametrize("at", ["RunInstances", "CreateImage"])
def test_another_machine_goes_on_where_nothing_is_seen_yet(
    cloud: Cloud, shared: Callable[..., Publication], monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """No list shows what the dead one has made a moment ago: the same token, and the same name, bring it back."""
    once(cloud, at, killed)
    with monkeypatch.context() as cut:
        cut.setattr(LeaseClaim, "release", lambda _: None)
        cut.setattr("parbake.builders.ec2._Run.clean", lambda *_, **__: None)
        with pytest.raises(Killed):
            shared()
    cloud.eventual = Eventual(late=1)
    baked = shared("two", verify=False)
    requests = named(cloud, "RunInstances")
    assert len({str(each) for each in requests}) == 1, "the same request, if another at all"
    assert len(cloud.left(REGION)["images"]) == 1
    assert cloud.left(REGION)["images"] == [baked.published[REGION].image]


def test_what_is_over_is_not_gone_on_with(
    cloud: Cloud, shared: Callable[..., Publication], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed when its instance was removed already: its token would bring back an instance that has ended."""
    monkeypatch.setattr(aws, "UNKNOWN_SECONDS", 0.05)
    with monkeypatch.context() as cut:
        cut.setattr(LeaseClaim, "release", lambda _: None)
        cut.setattr("parbake.builders.ec2.image.Amis.create", lambda *_: killed())
        with pytest.raises(Killed):
            shared(verify=False)
    assert cloud.left(REGION) == {}
    baked = shared("two", verify=False)
    tokens = [each["ClientToken"] for each in named(cloud, "RunInstances")]
    assert len(tokens) == 3
    assert tokens[0] == tokens[1] != tokens[2]
    assert cloud.left(REGION)["images"] == [baked.published[REGION].image]


def test_a_frozen_machine_removes_nothing_of_the_one_that_took_over(
    cloud: Cloud, shared: Callable[..., Publication], monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[Publication] = []
    renew = LeaseClaim._renew
    frozen = threading.Event()

    def renewed(claim: LeaseClaim) -> None:
        if not (frozen.is_set() and claim._holder == "one"):
            renew(claim)

    monkeypatch.setattr(leases.LeaseClaim, "_renew", renewed)
    real = Launcher.follow

    def freeze(launcher: Launcher, *more: Any) -> str:
        monkeypatch.setattr(Launcher, "follow", real)
        frozen.set()
        machines.elsewhere(lambda: done.append(shared("two", verify=False)), "two").join()
        frozen.clear()
        return real(launcher, *more)

    monkeypatch.setattr(Launcher, "follow", freeze)
    with pytest.raises(ParbakeError):
        shared(verify=False)
    assert len({str(each) for each in named(cloud, "RunInstances")}) == 1
    assert cloud.left(REGION)["images"] == [done[0].published[REGION].image]

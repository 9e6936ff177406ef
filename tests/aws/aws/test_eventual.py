"""The EC2 builder where EC2 says late what was written: nothing is made twice, nothing is left, nothing is lost."""

from __future__ import annotations

from typing import Any

import pytest

from parbake import aws
from parbake.aws import images, waiters
from parbake.aws.leftovers import LeftoverFilter, remove
from parbake.core.errors import AwsLimit, AwsNoAccess, AwsNotFound, DeadlineExceeded
from parbake.core.events import Events
from parbake.core.model import Plan
from standins.aws.ec2 import Cloud, Killed
from standins.aws.ec2_support import OTHER, Bake, bake, cloud, failing, named, plan, volume
from standins.aws.eventual import Eventual
from tests.aws.conftest import REGION

__all__ = ["bake", "cloud", "plan", "volume"]

KINDS = pytest.mark.parametrize("kind", ["plan", "volume"])


def only_artefacts(cloud: Cloud, published: Any) -> None:
    for region, there in published.items():
        only = {"images": [there.image] * bool(there.image), "snapshots": [each.id for each in there.snapshots]}
        assert cloud.left(region) == {kind: ids for kind, ids in only.items() if ids}


@KINDS
@pytest.mark.parametrize("late", [1, 3])
def test_a_bake_where_all_that_is_new_is_unknown_at_first(
    cloud: Cloud, bake: Bake, kind: str, late: int, request: pytest.FixtureRequest
) -> None:
    cloud.eventual = Eventual(late=late)
    baked = bake(
        of=request.getfixturevalue(kind), copy_to=(OTHER,), purchase="spot-first", share_with=("210987654321",)
    )
    assert baked.verdict
    assert baked.verdict.passed
    unknown = {identity.partition("-")[0] for _, identity in cloud.eventual.refused}
    assert unknown >= {"i", "sg", "snap"} | ({"ami"} if kind == "plan" else set()), "the stand-in did its part"
    asked = len(named(cloud, "RunInstances"))
    assert asked - len([each for each in cloud.eventual.refused if each[0] == "RunInstances"]) == 2, "bake and proof"
    cloud.eventual.settle()
    only_artefacts(cloud, baked.published)


@KINDS
def test_a_bake_whose_tags_and_deletions_show_late(
    cloud: Cloud, bake: Bake, kind: str, request: pytest.FixtureRequest
) -> None:
    """The clean-up at the end sees the tags of before: what was just promoted is not taken for a leftover."""
    cloud.eventual = Eventual(stale=2)
    wanted = request.getfixturevalue(kind)
    baked = bake(of=wanted, copy_to=(OTHER,))
    assert cloud.eventual.old
    only_artefacts(cloud, baked.published)
    assert bake(of=wanted, copy_to=(OTHER,)).published == baked.published
    only_artefacts(cloud, baked.published)


LAUNCH: dict[str, tuple[str, str, type[Exception]]] = {
    "a group alone": ("RunInstances", "InsufficientInstanceCapacity", AwsLimit),
    "an instance": ("GetConsoleOutput", "UnauthorizedOperation", AwsNoAccess),
}


@pytest.mark.parametrize("made", LAUNCH)
@pytest.mark.parametrize("purchase", ["spot", "on-demand"])
def test_a_run_that_fails_takes_away_what_no_list_shows_yet(cloud: Cloud, bake: Bake, made: str, purchase: str) -> None:
    operation, code, error = LAUNCH[made]
    failing(cloud, operation, code)
    cloud.eventual = Eventual(late=4)
    with pytest.raises(error):
        bake(purchase=purchase)
    assert cloud.eventual.hidden
    assert cloud.left(REGION) == {}


def killed_after(cloud: Cloud, operation: str, bake: Bake, **wanted: Any) -> None:
    """Bake, and be dead as soon as AWS has done a call."""
    dead: list[str] = []

    def before(*_: Any) -> None:
        if dead:
            raise Killed

    def after(_service: str, called: str, _arguments: dict[str, Any]) -> None:
        if called == operation:
            dead.append(called)
            raise Killed

    cloud.before.append(before)
    cloud.after.append(after)
    with pytest.raises(Killed):
        bake(**wanted)
    cloud.before.remove(before)
    cloud.after.remove(after)


KILLS = [("plan", each) for each in ("CreateSecurityGroup", "RunInstances", "CreateImage", "CopyImage")]
KILLS += [("volume", each) for each in ("CreateSnapshot", "CopySnapshot")]


@pytest.mark.parametrize(("kind", "operation"), KILLS)
def test_killed_and_started_again_before_aws_shows_what_was_made(
    cloud: Cloud, bake: Bake, kind: str, operation: str, request: pytest.FixtureRequest
) -> None:
    """What a look before the making misses may be made twice, but then it is temporary, and goes."""
    wanted = request.getfixturevalue(kind)
    cloud.eventual = Eventual(late=2)
    killed_after(cloud, operation, bake, of=wanted, copy_to=(OTHER,))
    baked = bake(of=wanted, copy_to=(OTHER,))
    assert baked.verdict
    assert baked.verdict.passed
    cloud.eventual.settle()
    for region in (REGION, OTHER):
        remove(LeftoverFilter(key=wanted.key), region, Events())
    only_artefacts(cloud, baked.published)


NEVER = {
    "sg": "RunInstances .* not even",
    "i": "EC2 has not listed i-",
    "ami": "DescribeImages .* not even",
    "snap": "DescribeSnapshots .* not even",
}


@pytest.mark.parametrize("kind", NEVER)
def test_what_stays_unknown_is_said_in_the_end(
    cloud: Cloud, plan: Plan, bake: Bake, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (waiters, images, aws):
        monkeypatch.setattr(module, "UNKNOWN_SECONDS", 0.05)
    cloud.eventual = Eventual(late=10**6, kinds=(kind,))
    with pytest.raises(AwsNotFound, match=NEVER[kind]) as caught:
        bake()
    assert "run the same command again" in caught.value.hint
    cloud.eventual.settle()
    remove(LeftoverFilter(name=plan.name), REGION, Events())
    assert cloud.left(REGION) == {}


def test_tags_that_never_show_keep_the_clean_up_from_the_artefact(
    cloud: Cloud, bake: Bake, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (waiters, images, aws):
        monkeypatch.setattr(module, "UNKNOWN_SECONDS", 0.05)
    cloud.eventual = Eventual(stale=10**6, kinds=("ami", "snap"))
    with pytest.raises(DeadlineExceeded, match="tags") as caught:
        bake(verify=False)
    assert "run the same command again" in caught.value.hint
    assert set(cloud.left(REGION)) >= {"images", "snapshots"}
    cloud.eventual = None
    only_artefacts(cloud, bake(verify=False).published)


def test_a_clean_up_after_a_clean_up_minds_no_ghosts(cloud: Cloud, plan: Plan, bake: Bake) -> None:
    """What is gone is listed for a while: to take it away once more is no error, and the next bake is a new one."""
    killed_after(cloud, "CreateImage", bake)
    cloud.eventual = Eventual(stale=1)
    assert remove(LeftoverFilter(name=plan.name), REGION, Events())
    assert remove(LeftoverFilter(name=plan.name), REGION, Events())
    assert cloud.eventual.old
    assert cloud.left(REGION) == {}
    cloud.eventual.settle()
    only_artefacts(cloud, bake().published)

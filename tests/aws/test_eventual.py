"""The EC2 builder where EC2 says late what was written: nothing is made twice, nothing is left, nothing is lost."""

from __future__ import annotations

from typing import Any

import pytest

from tests.aws.cloud import Cloud
from tests.aws.ec2_support import OTHER, Bake, bake, cloud, named, plan, volume
from tests.aws.eventual import Eventual

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

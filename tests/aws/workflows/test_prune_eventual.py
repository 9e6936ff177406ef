"""Retention where AWS shows late what was written, throttles, or where the run dies: the same command goes on."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from parbake.aws.tags import as_dict
from parbake.core.errors import AwsLimit
from parbake.core.events import Events
from parbake.workflows import prune as retention
from parbake.workflows.prune.decide import RetentionRules
from parbake.workflows.prune.inventory import RETIRED
from standins.aws.boto_clients import raw
from standins.aws.eventual import Eventual
from standins.aws.image_lifecycle import Shelves
from standins.aws.interceptor import killed_everywhere, throttled_everywhere
from standins.aws.moto_with_faults import Plain, stand
from standins.aws.references import snapshot_of
from tests.aws.rollouts.test_rollouts import group
from tests.aws.workflows.test_prune import age, image, shelves, there

__all__ = ["shelves"]
pytestmark = pytest.mark.usefixtures("aws_mock", "made_up_records")
AT_ONCE, WITH_GRACE = RetentionRules(keep=0, grace=timedelta()), RetentionRules(keep=0, grace=timedelta(days=7))


@pytest.fixture
def plain(shelves: Shelves, monkeypatch: pytest.MonkeyPatch) -> Plain:
    del shelves
    return stand(monkeypatch)


def prune(rules: RetentionRules = WITH_GRACE) -> dict[str, str]:
    done = retention.prune_published(Path("parbake.yaml"), rules, Events(), dry_run=False)
    return {each.item.id: each.action for each in done.decisions}


@pytest.fixture
def amis(shelves: Shelves) -> dict[str, str]:
    """Return an image for each of the three things that are done, in a region where others run their own."""
    group()
    made = {name: image(name) for name in ("goes", "returns", "retires")}
    for name in ("goes", "returns"):
        age(made[name], 8)
        shelves.deprecated[made[name]] = "long ago"
    shelves.fast.enable([snapshot_of(made["goes"])], ["eu-west-1a"])
    raw("ssm").put_parameter(Name="/any", Value=made["returns"], Type="String", DataType="aws:ec2:image")
    return made


def pruned(amis: dict[str, str], shelves: Shelves) -> None:
    """Check that all of it has been done."""
    left = {amis["returns"], amis["retires"]}
    assert there() == (left, {snapshot_of(each) for each in left})
    tags = {each["ImageId"]: as_dict(each) for each in raw("ec2").describe_images(ImageIds=sorted(left))["Images"]}
    assert [each for each in sorted(left) if RETIRED in tags[each]] == [amis["retires"]]
    assert left & set(shelves.deprecated) == {amis["retires"]}


@pytest.mark.parametrize("stale", [0, 2])
def test_killed_after_any_call_and_started_again(
    plain: Plain, shelves: Shelves, amis: dict[str, str], stale: int
) -> None:
    eventual = plain.eventual = Eventual(stale=stale)

    def finishes() -> None:
        prune()
        if stale:
            eventual.settle()
            prune()
        pruned(amis, shelves)

    calls = killed_everywhere(plain, prune, finishes)
    assert sorted(calls) == [
        "CreateTags",
        "DeleteSnapshot",
        "DeleteTags",
        "DeregisterImage",
        "DisableFastSnapshotRestores",
        "DisableImageDeprecation",
        "EnableImageDeprecation",
    ]
    pruned(amis, shelves)


def test_what_is_gone_and_still_shown_is_no_error(plain: Plain, shelves: Shelves, amis: dict[str, str]) -> None:
    """Not to remove it again, and not to retire it by a rule that would keep it longer."""
    plain.eventual = Eventual(stale=3)
    assert prune(AT_ONCE)[amis["goes"]] == "remove"
    assert prune(AT_ONCE)[amis["goes"]] == "remove"
    assert prune()[amis["retires"]] == "retire"
    assert plain.eventual.old
    assert there()[0] == {amis["returns"]}
    plain.eventual.settle()
    assert list(prune()) == [amis["returns"]]
    del shelves


def test_throttled_at_any_call(plain: Plain, shelves: Shelves, amis: dict[str, str]) -> None:
    def judge(came: Exception | None, throttled: Counter[str]) -> None:
        assert isinstance(came, AwsLimit), came
        assert "throttles" in came.hint
        assert max(throttled.values()) <= 4, "one for each thread that looks, and nothing tries again"

    met = throttled_everywhere(plain, prune, judge)
    assert len(met) > 15
    pruned(amis, shelves)


def test_what_is_too_new_to_be_shown_costs_nothing_older_its_place(plain: Plain, amis: dict[str, str]) -> None:
    """The newest is not in the list yet: the one before it is kept as if it were the newest."""
    ami, unseen = amis["retires"], image("another")
    raw("ec2").create_tags(Resources=[unseen], Tags=[{"Key": "Name", "Value": "retires-0123456789ac"}])
    plain.eventual = Eventual()
    plain.eventual._unknown |= dict.fromkeys((unseen, snapshot_of(unseen)), 9)
    decided: dict[str, Any] = prune(RetentionRules(keep=1, grace=timedelta()))
    assert (decided[ami], unseen in decided) == ("keep", False)
    assert unseen in there()[0]

"""What stays and what goes: cases by hand, and for any graph of references that nothing referred to is removed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parbake.core.model import Published
from parbake.records import Record
from parbake.workflows.prune.decide import Decision, Item, RetentionRules, decide, items_here
from standins.plans import record

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
DAY = timedelta(days=1)


def item(number: int, *, days: float = 30, retired: float | None = None, **more: str) -> Item:
    """Return an artefact that is some days old, and was retired some days ago."""
    return Item(
        id=f"ami-{number}",
        region=more.get("region", "eu-west-1"),
        name=f"node-{number}",
        family=more.get("family", "node"),
        created=NOW - days * DAY - timedelta(minutes=number),
        snapshots=(f"snap-{number}",),
        size=1,
        retired=None if retired is None else NOW - retired * DAY,
    )


CASES = {
    "the newest of a family stay": ([item(0), item(1), item(2)], {}, RetentionRules(keep=2), "keep keep retire"),
    "families and regions are counted apart": (
        [item(0), item(1, family="other"), item(2, region="us-east-1")],
        {},
        RetentionRules(keep=1),
        "keep keep keep",
    ),
    "what is used stays": ([item(0), item(1)], {"ami-1": ["i-1"]}, RetentionRules(keep=1), "keep keep"),
    "what is used by its snapshot stays": ([item(0), item(1)], {"snap-1": ["x"]}, RetentionRules(keep=1), "keep keep"),
    "what is young stays": ([item(0, days=1), item(1, days=2)], {}, RetentionRules(0, 3 * DAY), "keep keep"),
    "the grace is waited for": ([item(0, retired=1)], {}, RetentionRules(keep=0), "wait"),
    "and ends": ([item(0, retired=7)], {}, RetentionRules(keep=0), "remove"),
    "without a grace it goes at once": ([item(0)], {}, RetentionRules(keep=0, grace=0 * DAY), "remove"),
    "what is used again comes back": ([item(0, retired=30)], {"ami-0": ["x"]}, RetentionRules(keep=0), "restore"),
    "what is kept again comes back": ([item(0, retired=30)], {}, RetentionRules(keep=1), "restore"),
    "what was retired and is old goes": ([item(0), item(1, retired=8)], {}, RetentionRules(keep=1), "keep remove"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_decided(case: str) -> None:
    items, used, rules, actions = CASES[case]
    found = {each.item.id: each.action for each in decide(items, rules, NOW, used)}
    assert [found[each.id] for each in items] == actions.split()


def test_reasons_name_the_user() -> None:
    (decision,) = decide([item(0)], RetentionRules(0), NOW, {"ami-0": ["launch template a:1", "instance i-1"]})
    assert decision.reason == "used by instance i-1 and 1 more"


def test_here_the_newest_of_each_name_stay_and_the_newest_verified() -> None:
    made = [
        record("a", at=1, passed=True),
        record("b", at=2, passed=True),
        record("c", at=3, passed=False),
        record("d", at=4),
        record("x", name="other", at=0),
    ]
    found = {each.item.id: each.action for each in decide(items_here(made), RetentionRules(keep=1), NOW)}
    assert [found[each.artefact] for each in made] == ["remove", "keep", "remove", "keep", "keep"]


def test_here_what_is_younger_stays() -> None:
    made = [record("a", at=1), record("b", at=2), record("c", at=3)]
    dated = [
        each.model_copy(update={"finished_at": (NOW - days * DAY).isoformat()})
        for each, days in zip(made, (40, 10, 1), strict=True)
    ]

    def decided(records: list[Record]) -> list[Decision]:
        return list(decide(items_here(records), RetentionRules(1, 14 * DAY), NOW))

    assert [(each.action, each.reason.partition(" ")[0]) for each in decided(dated)] == [
        ("keep", "among"), ("keep", "younger"), ("remove", "older"),
    ]  # fmt: skip
    undated = [each.model_copy(update={"finished_at": "?"}) for each in made]
    assert [each.action for each in decided(undated)].count("keep") == 1


def test_here_what_is_published_stays() -> None:
    made = record("a", at=1).model_copy(update={"published": {"eu-west-1": Published()}})
    found = decide(items_here([made, record("b", at=2)]), RetentionRules(keep=1), NOW)
    assert [(each.action, each.reason) for each in found] == [
        ("keep", "among the newest 1 of node"), ("keep", "published in eu-west-1"),
    ]  # fmt: skip


ITEMS = st.lists(
    st.builds(
        item,
        st.integers(0, 50),
        days=st.floats(0, 400),
        retired=st.none() | st.floats(0, 400),
        family=st.sampled_from(["node", "data"]),
        region=st.sampled_from(["eu-west-1", "us-east-1"]),
    ),
    max_size=12,
    unique_by=lambda each: each.id,
)
USES = st.dictionaries(
    st.integers(0, 50).flatmap(lambda number: st.sampled_from([f"ami-{number}", f"snap-{number}"])),
    st.lists(st.sampled_from(["instance i-1", "parameter /x", "the rollback of y"]), min_size=1),
)
RULES = st.builds(
    RetentionRules, st.integers(0, 3), st.floats(0, 400).map(lambda d: d * DAY), st.floats(0, 40).map(lambda d: d * DAY)
)


@given(ITEMS, USES, RULES)
def test_nothing_that_is_referred_to_is_ever_removed(
    items: list[Item], used: dict[str, list[str]], rules: RetentionRules
) -> None:
    decisions = decide(items, rules, NOW, used)
    assert {each.item.id for each in decisions} == {each.id for each in items}, "each is decided about, once"
    for decision in decisions:
        gone = decision.action in {"remove", "retire"}
        assert not (gone and decision.item.ids & set(used))
        if decision.action == "remove":
            assert decision.item.retired is not None or not rules.grace
            younger = [each for each in items if each.created > decision.item.created]
            peers = [
                each for each in younger if (each.family, each.region) == (decision.item.family, decision.item.region)
            ]
            assert len(peers) >= rules.keep

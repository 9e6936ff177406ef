"""Tags and tokens: what everything in AWS is known by."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from parbake import aws
from parbake.aws.tags import ARTEFACT, MANAGED, ROLE, expired

STAMP = aws.Stamp(key="k" * 64, run="r1", name="node", hours=2.0, extra={"team": "x", "Name": "mine"})


def test_temporary_things_say_when_they_may_go() -> None:
    tags = STAMP.tags("builder")
    assert (tags[aws.KEY], tags[aws.RUN], tags[MANAGED], tags[ROLE]) == ("k" * 64, "r1", "temporary", "builder")
    assert tags["team"] == "x"
    assert not expired(tags)
    assert expired(tags, now=datetime.now(UTC) + timedelta(hours=2, seconds=2))
    assert not expired({aws.EXPIRY: "soon"})


def test_artefacts_do_not_expire() -> None:
    tags = STAMP.tags("ami", kind=ARTEFACT, name="node-1")
    assert aws.EXPIRY not in tags
    assert tags["Name"] == "node-1"


def test_tokens_follow_from_what_they_are_for() -> None:
    assert aws.token("a", "b") == aws.token("a", "b") != aws.token("ab")
    assert len(aws.token("a")) == 64


def test_filters_and_specifications() -> None:
    assert aws.mine(key="x", role="ami")[1:] == [
        {"Name": "tag:parbake:key", "Values": ["x"]},
        {"Name": "tag:parbake:role", "Values": ["ami"]},
    ]
    assert aws.specifications({"a": "b"}, "volume") == [
        {"ResourceType": "volume", "Tags": [{"Key": "a", "Value": "b"}]}
    ]
    assert aws.as_dict({"Tags": [{"Key": "a", "Value": "b"}]}) == {"a": "b"}
    assert aws.as_dict({}) == {}

"""What a target is known to hold, of the records that were rolled out to it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parbake.core.errors import InputError
from parbake.rollouts import Rollout, TargetStatus
from parbake.rollouts.nodeclass import NodeClass, decide
from parbake.workflows.rollout import _has_had
from parbake.workflows.rollout.offers import offer
from standins import plans
from standins.clusters import REGION, machine_image
from standins.kubernetes.store import merge
from tests.unit.rollouts.test_node_classes import ALIAS, node_class

RECORDS = [machine_image("one", "ami-1"), machine_image("two", "ami-2", architecture="arm64")]
OLD = node_class("v1alpha1", amiSelector={"aws-ids": "ami-0"})


def holding(found: dict[str, Any]) -> Rollout:
    class Target(Rollout):
        def status(self) -> TargetStatus:
            return TargetStatus("EC2NodeClass gpu", NodeClass(found).held("/dev/xvdb"))

    return Target()  # type: ignore[abstract]


@given(
    st.lists(st.sampled_from(RECORDS), min_size=1, max_size=2, unique_by=id),
    st.booleans(),
    st.sampled_from([ALIAS, OLD]),
)
def test_a_target_goes_by_each_of_its_ids_names_and_keys_in_whatever_order_they_stand(
    records: list[Any], turned: bool, before: dict[str, Any]
) -> None:
    offered = offer(records, REGION)
    after = merge(before, decide(NodeClass(before), offered, device="/dev/xvdb", disk={}).payload)
    spec = after["spec"]
    if turned and before is OLD:
        spec["amiSelector"]["aws-ids"] = ", ".join(reversed(spec["amiSelector"]["aws-ids"].split(",")))
    elif turned:
        spec["amiSelectorTerms"].reverse()
    for each in (offered, offer(records[::-1], REGION)):
        change = decide(NodeClass(after), each, device="/dev/xvdb", disk={})
        assert (change.diff, change.before) == ("", NodeClass(after).held("/dev/xvdb"))
    for record in records:
        for name in (record.published[REGION].image, record.artefact, record.key, record.key[:12]):
            assert _has_had(holding(after), [name]), name
        assert record.artefact in str(NodeClass(after).held("/dev/xvdb")), "the name is kept"
    assert not _has_had(holding(after), [records[0].artefact, "ami-9"])


@pytest.mark.parametrize("region", [None, REGION])
@pytest.mark.parametrize("more", [[], [RECORDS[0]]], ids=["alone", "beside an AMI"])
def test_what_is_published_nowhere_names_the_builders_that_publish(region: str | None, more: list[Any]) -> None:
    local = plans.record("local")
    with pytest.raises(InputError) as caught:
        offer([local, *more], region)
    assert (
        caught.value.message == f"{local.artefact}: published in no region of a cloud, so there is nothing to hand out"
    )
    assert "`builder: ebs`" in caught.value.hint
    assert "`builder: ec2`" in caught.value.hint


@pytest.mark.parametrize("region", [None, "us-west-2"])
def test_what_is_published_elsewhere_is_told_to_be_copied(region: str | None) -> None:
    elsewhere = machine_image("far", "ami-3", architecture="arm64")
    there = elsewhere.model_copy(update={"published": {"us-west-2": elsewhere.published[REGION]}})
    with pytest.raises(InputError) as caught:
        offer([RECORDS[0], there], region)
    assert "`parbake copy`" in caught.value.hint

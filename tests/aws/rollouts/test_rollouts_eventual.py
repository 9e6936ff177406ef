"""Rollouts where AWS says late what was written, throttles, or where the run dies: the same command goes on."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from parbake.aws.tags import MANAGED
from parbake.core.errors import AwsLimit, TargetMoved
from parbake.core.events import Events
from parbake.rollouts.pointers import ParameterPointer, Pointer, TagPointer
from parbake.workflows import rollout
from standins.aws.autoscaling import Fleets
from standins.aws.boto_clients import raw
from standins.aws.eventual import Eventual
from standins.aws.interceptor import killed_everywhere, throttled_everywhere
from standins.aws.moto_with_faults import Plain, stand
from standins.clusters import project
from tests.aws.conftest import REGION
from tests.aws.rollouts.test_rollouts import FIRST, GROUP, NODES, PARAMETER, SECOND, fleets, group, node_group, versions

__all__ = ["fleets"]
pytestmark = pytest.mark.usefixtures("aws_mock", "made_up_records")
OPTIONS = rollout.RolloutOptions(interval=0.001)
KINDS = pytest.mark.parametrize("target", [GROUP, NODES, PARAMETER], ids=lambda each: next(iter(each)))


@pytest.fixture
def plain(fleets: Fleets, monkeypatch: pytest.MonkeyPatch) -> Plain:
    del fleets
    return stand(monkeypatch)


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    """Return a Bakefile beside two records; its targets are still to be written."""
    return project(tmp_path, [], FIRST, SECOND)


def ready(file: Path, target: dict[str, Any]) -> str:
    """Make the target, and the Bakefile that names it; return its launch template."""
    project(file.parent, [target])
    if target is PARAMETER:
        raw("ssm").put_parameter(Name="/nodes/gpu", Value="ami-0", Type="String")
        return ""
    return group() if target is GROUP else node_group("CUSTOM")


def out(file: Path, key: str = FIRST.key) -> Any:
    [handed] = rollout.rollout(file, [key], Events(), OPTIONS)
    assert handed.follow
    assert handed.follow.done
    return handed


def back(file: Path) -> Any:
    [handed] = rollout.rollback(file, Events(), OPTIONS)
    return handed


def holds(file: Path) -> str:
    [report] = rollout.status(file)
    assert report.status, report.error
    return report.status.holds.image


@KINDS
@pytest.mark.parametrize("late", [1, 3])
def test_a_rollout_and_back_where_all_that_is_new_is_unknown_at_first(
    plain: Plain, stage: Path, target: dict[str, Any], late: int
) -> None:
    template = ready(stage, target)
    plain.eventual = Eventual(late=late)
    assert out(stage).written
    assert holds(stage) == "ami-1"
    assert not out(stage).written
    assert out(stage, SECOND.key).written
    assert back(stage).written
    assert holds(stage) == "ami-1"
    if template:
        assert plain.eventual.refused
        assert len(versions(template)) == (3 if target is GROUP else 4), "EKS only goes forward"
    else:
        assert plain.parameters == {"/nodes/gpu": 0}


@KINDS
@pytest.mark.parametrize("late", [0, 2])
def test_killed_after_any_call_and_started_again(plain: Plain, stage: Path, target: dict[str, Any], late: int) -> None:
    """Also before AWS shows what was written: nothing is made twice, and the way back is to what was there."""
    template = ready(stage, target)
    plain.eventual = Eventual(late=late)

    def finishes() -> None:
        out(stage)
        assert holds(stage) == "ami-1"
        assert not template or len(versions(template)) == 2
        back(stage)
        assert holds(stage) == "ami-0"

    calls = killed_everywhere(plain, lambda: out(stage), finishes)
    assert (
        calls
        == {
            "asg": ["CreateLaunchTemplateVersion", "CreateOrUpdateTags", "DeleteTags", "StartInstanceRefresh"],
            "nodegroup": ["CreateLaunchTemplateVersion", "TagResource", "UntagResource", "UpdateNodegroupVersion"],
            "ssm": ["PutParameter"],
        }[next(iter(target))]
    )


@KINDS
def test_throttled_at_any_call(plain: Plain, stage: Path, target: dict[str, Any]) -> None:
    template = ready(stage, target)

    def judge(came: Exception | None, throttled: Counter[str]) -> None:
        assert isinstance(came, AwsLimit), came
        assert "throttles" in came.hint
        assert list(throttled.values()) == [1], "nothing above botocore tries again"

    met = throttled_everywhere(plain, lambda: out(stage), judge)
    met |= throttled_everywhere(plain, lambda: back(stage), judge)
    assert len(met) > (1 if target is PARAMETER else 6)
    assert holds(stage) == "ami-0"
    assert not template or len(versions(template)) == (2 if target is GROUP else 3)


def test_a_parameter_that_is_made_twice_in_a_row(plain: Plain, stage: Path) -> None:
    """The second run does not see yet what the first has made: it says so, and later finds it."""
    project(stage.parent, [PARAMETER])
    plain.eventual = Eventual(late=4)
    rollout.rollout(stage, [FIRST.key], Events(), rollout.RolloutOptions(follow=False))
    with pytest.raises(TargetMoved, match="made in the meantime") as caught:
        out(stage)
    assert "run the same command again" in caught.value.hint
    plain.parameters.clear()
    assert not out(stage).written
    assert len(raw("ssm").get_parameter_history(Name="/nodes/gpu")["Parameters"]) == 1


def pointed(file: Path) -> tuple[str, str]:
    """Let a tag and a parameter name the older of two images; return both."""
    project(file.parent, [{"karpenter": {"nodeclass": "gpu", "tag": "image=gpu"}}, PARAMETER])
    old, new = (raw("ec2").register_image(Name=name, RootDeviceName="/dev/xvda")["ImageId"] for name in ("old", "new"))
    raw("ec2").create_tags(
        Resources=[old, new], Tags=[{"Key": MANAGED, "Value": "artefact"}]
    )  # else it is not promoted
    raw("ec2").create_tags(Resources=[old], Tags=[{"Key": "image", "Value": "gpu"}])
    raw("ssm").put_parameter(Name="/nodes/gpu", Value=old, Type="String", DataType="aws:ec2:image")
    return old, new


def test_a_tag_that_shows_late_moves_all_the_same(plain: Plain, stage: Path) -> None:
    old, new = pointed(stage)
    plain.eventual = Eventual(stale=2)
    for _ in range(3):
        TagPointer("image=gpu", REGION).move(old, new, "a")
    assert plain.eventual.old
    plain.eventual.settle()
    assert TagPointer("image=gpu", REGION)._images() == [new]


@pytest.mark.parametrize("kind", ["tag", "parameter"])
def test_what_a_node_class_points_to_moves_where_aws_throttles(plain: Plain, stage: Path, kind: str) -> None:
    old, new = pointed(stage)
    pointer: Pointer = TagPointer("image=gpu", REGION) if kind == "tag" else ParameterPointer("/nodes/gpu", REGION)

    def judge(came: Exception | None, throttled: Counter[str]) -> None:
        assert isinstance(came, AwsLimit), came
        assert list(throttled.values()) == [1]

    met = throttled_everywhere(plain, lambda: pointer.move(old, new, "a"), judge)
    assert met == (
        {"DescribeImages", "CreateTags", "DeleteTags"} if kind == "tag" else {"GetParameter", "PutParameter"}
    )
    assert pointer.image() == new

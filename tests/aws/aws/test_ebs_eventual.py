"""The EBS builder where EC2 and EBS say late what was written. Being killed meanwhile: see ``test_ebs_crash``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from parbake import aws
from parbake.aws import ebs, images, waiters
from parbake.core.errors import AwsError, AwsNotFound, DeadlineExceeded
from parbake.core.events import Events
from parbake.core.model import Plan
from standins.aws.ebs_direct_in_process import Direct
from standins.aws.eventual import Eventual
from standins.aws.interceptor import refuse
from standins.ebs_direct_server import Cloud
from tests.aws.aws.test_ebs_crash import HOME, OTHER, artefacts, clean, left, settings_for, settle
from tests.aws.builders.test_ebs_builder import MACHINE, VOLUME, FakeBuilder, build, cloud, direct, fake_builder

__all__ = ["cloud", "direct", "fake_builder"]

KINDS = pytest.mark.parametrize("wanted", [VOLUME, MACHINE], ids=lambda plan: plan.name)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (waiters, images, aws):
        monkeypatch.setattr(module, "UNKNOWN_SECONDS", 0.05)


@KINDS
@pytest.mark.parametrize("late", [1, 4])
def test_all_that_is_new_is_unknown_at_first(
    tmp_path: Path, fake_builder: FakeBuilder, direct: Direct, wanted: Plan, late: int
) -> None:
    direct.world.late, direct.world.slow, direct.eventual = late, 1, Eventual(late=late)
    build(tmp_path, wanted, **settings_for(wanted))
    unknown = {identity.partition("-")[0] for _, identity in direct.eventual.refused}
    assert unknown == {"snap"} | ({"ami"} if wanted is MACHINE else set()), "the stand-in did its part"
    assert left(direct.world) == artefacts(wanted, HOME) + artefacts(wanted, OTHER)
    assert len(fake_builder.bakes) == 1


@KINDS
def test_tags_and_deletions_show_late(tmp_path: Path, fake_builder: FakeBuilder, direct: Direct, wanted: Plan) -> None:
    direct.eventual = Eventual(stale=2)
    first = build(tmp_path, wanted, **settings_for(wanted)).published
    assert direct.eventual.old
    clean(wanted)
    assert left(direct.world) == artefacts(wanted, HOME) + artefacts(wanted, OTHER)
    assert build(tmp_path, wanted, **settings_for(wanted)).published == first
    assert len(fake_builder.bakes) == 1


@pytest.mark.parametrize("kind", ["ami", "snap"])
def test_what_stays_unknown_is_said_in_the_end(
    tmp_path: Path, fake_builder: FakeBuilder, direct: Direct, impatient: None, kind: str
) -> None:
    direct.eventual = Eventual(late=10**6, kinds=(kind,))
    with pytest.raises(AwsNotFound, match="not even") as caught:
        build(tmp_path, MACHINE, **settings_for(MACHINE))
    assert "run the same command again" in caught.value.hint
    settle(direct)
    direct.eventual = None
    clean(MACHINE)
    assert left(direct.world) == []
    build(tmp_path, MACHINE, **settings_for(MACHINE))
    assert len(fake_builder.bakes) == 1
    del impatient


def test_tags_that_never_show_keep_the_artefact_from_nobody(
    tmp_path: Path, fake_builder: FakeBuilder, direct: Direct, impatient: None
) -> None:
    direct.eventual = Eventual(stale=10**6)
    with pytest.raises(DeadlineExceeded, match="tags") as caught:
        build(tmp_path, VOLUME, **settings_for(VOLUME))
    assert "run the same command again" in caught.value.hint
    direct.eventual = None
    build(tmp_path, VOLUME, **settings_for(VOLUME))
    assert left(direct.world) == artefacts(VOLUME, HOME) + artefacts(VOLUME, OTHER)
    del impatient, fake_builder


def test_an_upload_that_fails_before_its_snapshot_is_known_leaves_none(
    tmp_path: Path, fake_builder: FakeBuilder, direct: Direct, cloud: Cloud
) -> None:
    direct.eventual = Eventual(late=3)

    def fault(_service: str, operation: str, _arguments: dict[str, Any]) -> None:
        if operation == "PutSnapshotBlock":
            raise refuse("AccessDeniedException", "no")

    direct.before.append(fault)
    with pytest.raises(AwsError):
        build(tmp_path, VOLUME)
    assert cloud.snapshots == {}
    assert {operation for operation, _ in direct.eventual.refused} == {"DeleteSnapshot"}
    del fake_builder


def test_a_name_that_is_taken_by_another_snapshots_ami(
    tmp_path: Path, fake_builder: FakeBuilder, direct: Direct
) -> None:
    """Also where no list shows that AMI yet: whose it is is looked for before anything is said."""
    there = build(tmp_path, MACHINE).published[HOME]
    image = direct.world.images[there.image]
    image["tags"].clear()
    other = ebs.copy(there.snapshots[0].id, HOME, HOME, stamp=aws.Stamp("k", "r", "n"), name="other", events=Events())
    image["snapshot"] = other
    direct.eventual = Eventual()
    direct.eventual._unknown[there.image] = 2
    with pytest.raises(AwsError, match="already in use") as caught:
        build(tmp_path, MACHINE)
    assert "from another snapshot" in caught.value.hint
    assert direct.eventual.hidden == [("DescribeImages", there.image)] * 2
    assert len(fake_builder.bakes) == 2

"""The EBS builder, killed at each of its calls: the same command finishes, and a clean-up would leave nothing.

A copy of this process, and of its files, is what is left when the process dies: as a call arrives (what followed from
the answers before it is done on this machine) and when AWS has changed something and nobody has heard of it.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from parbake import aws
from parbake.aws.leftovers import LeftoverFilter, remove
from parbake.builders.ebs import kept_files
from parbake.core import sealed
from parbake.core.events import Events
from parbake.core.model import GIB, Base, Plan
from parbake.records import Record
from standins.aws.ebs_direct_in_process import Direct
from standins.aws.eventual import Eventual
from standins.aws.iam_recorder import allowed_by
from standins.aws.interceptor import killed_everywhere
from standins.ebs_direct_server import Cloud
from standins.forks import in_child
from tests.aws.aws.test_ebs import held
from tests.aws.builders.test_ebs_builder import (
    MACHINE,
    VOLUME,
    FakeBuilder,
    build,
    cloud,
    direct,
    fake_builder,
    policy_for,
)

pytestmark = pytest.mark.slow

__all__ = ["cloud", "direct", "fake_builder"]

HOME, OTHER = "eu-west-1", "us-east-1"
SETTINGS: dict[str, Any] = {
    "region": HOME,
    "copy_to": [OTHER],
    "share_with": ["123456789012"],
    "fast_snapshot_restore": [f"{OTHER}b"],
}
# Before calls of these kinds this machine may have done something: noted, baked, put away.
ALSO_BEFORE = ("StartSnapshot", "PutSnapshotBlock", "CompleteSnapshot", "CreateTags", "RegisterImage", "CopySnapshot")


def settings_for(wanted: Plan) -> dict[str, Any]:
    return {**SETTINGS, **({"deprecate_after": "90d"} if wanted is MACHINE else {})}


def clean(wanted: Plan) -> None:
    for region in (HOME, OTHER):
        with allowed_by(policy_for(wanted, settings_for(wanted))):
            remove(LeftoverFilter(name=wanted.name), region, Events())


def left(cloud: Cloud) -> list[str]:
    """Return all that is there, as region and what parbake says of it."""
    tagged = [(each["region"], each["tags"]) for each in cloud.images.values()]
    tagged += [(each.region, each.tags) for each in cloud.snapshots.values()]
    return sorted(f"{region} {tags['parbake:managed']}" for region, tags in tagged)


def artefacts(wanted: Plan, region: str) -> list[str]:
    return [f"{region} artefact"] * (2 if wanted is MACHINE else 1)


def elsewhere(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of the files, which is the copied process's own."""
    mine = folder.with_name("copy")
    shutil.rmtree(mine, ignore_errors=True)
    subprocess.run(["/bin/cp", "-a", str(folder), str(mine)], check=True)
    monkeypatch.setenv("PARBAKE_CACHE", str(mine / "cache"))
    for kept in (folder / "cache/uploads").glob("[0-9a-f]*/"):
        if sealed.is_bound(kept, kept_files(kept)):  # the copy stands for the same files, which nobody has moved
            there = mine / "cache/uploads" / kept.name
            sealed.bind(there, kept_files(there))
    return mine


@pytest.mark.parametrize("late", [0, 3])
@pytest.mark.parametrize("wanted", [VOLUME, MACHINE], ids=lambda plan: plan.name)
def test_killed_at_each_call(
    tmp_path: Path, fake_builder: FakeBuilder, direct: Direct, monkeypatch: pytest.MonkeyPatch, wanted: Plan, late: int
) -> None:
    """``late``: AWS has not shown yet what was made when the next run begins, which then goes on with it all the same.

    A copy in another region that no list shows is made again: it stays temporary, and a clean-up takes it.
    """
    for service, region, tries in (("ec2", HOME, 0), ("ec2", OTHER, 0), ("ebs", HOME, 0), ("ebs", HOME, 1)):
        aws.client(service, region, tries=tries)  # made once for all copies, which takes longer than a bake
    cloud, work = direct.world, tmp_path / "work"
    cloud.slow, cloud.late, direct.eventual = 1, late, Eventual(late=late)
    for region in (HOME, OTHER):  # by a key of the account's own, as what is shared must be
        cloud.by_default[region] = f"arn:aws:kms:{region}:123456789012:key/own"
    monkeypatch.setenv("PARBAKE_CACHE", str(work / "cache"))

    def whole(folder: Path) -> Record:
        return build(folder, wanted, **settings_for(wanted))

    def finishes() -> None:
        folder = elsewhere(work, monkeypatch)
        assert in_child(lambda: clean_up_leaves_nothing(direct, wanted)) == 0
        whole(folder)
        settle(direct)
        here = artefacts(wanted, HOME)
        assert [each for each in left(cloud) if each.startswith(HOME)] == here, "nothing is made twice at home"
        if late:
            clean(wanted)
        assert left(cloud) == here + artefacts(wanted, OTHER)
        assert all(set(held(cloud, snapshot)) == set(fake_builder.content) for snapshot in cloud.snapshots)

    calls = killed_everywhere(direct, lambda: whole(work), finishes, also_before=ALSO_BEFORE, files=work)
    assert len(calls) > 8
    assert bool(direct.eventual.refused) == bool(late)


def test_killed_at_each_call_onto_a_base_with_further_disks(
    tmp_path: Path, fake_builder: FakeBuilder, direct: Direct, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the base is made of besides is copied once, and is in the AMI, whenever the run dies."""
    cloud, work = direct.world, tmp_path / "work"
    monkeypatch.setenv("PARBAKE_CACHE", str(work / "cache"))
    base = build(work, MACHINE).published[HOME].image
    data = build(work, VOLUME).published[HOME].snapshots[0].id
    cloud.images[base]["further"] = [{"device": "/dev/xvdc", "snapshot": data, "virtual": "", "gib": "1"}]
    onto = MACHINE.model_copy(update={"name": "onto", "base": Base(kind="ami", identity=base, size=GIB)})
    fake_builder.content, before = {6: b"baked"}, len(cloud.snapshots)
    direct.eventual = Eventual(late=0)

    def finishes() -> None:
        folder = elsewhere(work, monkeypatch)
        there = build(folder, onto, bases=[data], region=HOME).published[HOME]
        assert [each.device for each in there.snapshots] == ["/dev/xvda", "/dev/xvdc"]
        made = [each for each in cloud.snapshots.values() if each.tags["parbake:key"] == onto.key]
        assert [each.tags["parbake:managed"] for each in made] == ["artefact"] * 2, "nothing is made twice"
        assert len(cloud.snapshots) == before + 2

    calls = killed_everywhere(
        direct, lambda: build(work, onto, bases=[data], region=HOME), finishes, also_before=ALSO_BEFORE, files=work
    )
    assert calls[:2] == ["CopySnapshot", "StartSnapshot"]


def settle(direct: Direct) -> None:
    """Let all be known by now."""
    assert direct.eventual
    direct.eventual.settle()
    for snapshot in direct.world.snapshots.values():
        snapshot.unknown = 0


def clean_up_leaves_nothing(direct: Direct, wanted: Plan) -> None:
    clean(wanted)
    settle(direct)
    clean(wanted)
    home, other = artefacts(wanted, HOME), artefacts(wanted, OTHER)
    assert left(direct.world) in ([], other, home + other), "what is done stays, the home region's last"

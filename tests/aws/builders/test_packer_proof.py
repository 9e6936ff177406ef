"""What Packer has made is launched once and proven, as the EC2 builder does; packer is a stand-in on PATH."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from secrets import token_hex
from typing import Any

import pytest

from parbake import aws
from parbake.aws.tags import KEY, MANAGED, VERIFIED, as_list
from parbake.builders import Ingredients, Publication
from parbake.builders.packer import builder as packer
from parbake.builders.packer.builder import PackerBuilder
from parbake.core.errors import InputError, ParbakeError
from parbake.core.events import Events
from parbake.core.model import Plan
from parbake.core.reference import Reference
from standins import packer_program
from standins.aws.boto_clients import raw
from standins.aws.ec2 import Cloud
from standins.aws.ec2_support import OTHER, Bake, bake, cloud, notes, plan
from standins.aws.iam_recorder import allowed_by, bakefile_for, printed
from standins.aws.interceptor import killed_everywhere, throttled_everywhere
from standins.plans import bake_remotely
from tests.aws.conftest import REGION

__all__ = ["bake", "cloud", "plan"]


class Place:
    """Packer on PATH, which says that it made an AMI: one with the plan's images in it, or the bare base."""

    def __init__(self, folder: Path, cloud: Cloud, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.cloud, self.plan, self.patch = folder, cloud, plan, monkeypatch
        self.bakefile = bakefile_for(
            "packer",
            {"region": REGION, "copy_to": [OTHER]},
            base=plan.base.identity,
            image=str(plan.images[0].reference),
        )
        program = folder / "bin/packer"
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\nexec {sys.executable} {packer_program.__file__} "$@"\n')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
        monkeypatch.setenv("HOME", str(folder))
        monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
        monkeypatch.setattr(packer, "_LOOK_SECONDS", 0.02)

    def makes(self, amis: dict[str, str]) -> None:
        """Let Packer name these AMIs, with the tags that its template gives them."""
        self.patch.setenv("PACKER_STAND_IN_AMIS", ",".join(f"{region}:{ami}" for region, ami in amis.items()))
        for region, ami in amis.items():
            tags = {MANAGED: "artefact", KEY: self.plan.key}
            raw("ec2", region).create_tags(Resources=[ami, self.snapshot(region, ami)], Tags=as_list(tags))

    def snapshot(self, region: str, ami: str) -> str:
        mapping = self.cloud.details[ami]["BlockDeviceMappings"][0]
        del region
        return str(mapping["Ebs"]["SnapshotId"])

    def build(self, *, verify: bool = True, fresh: bool = False) -> Publication:
        work = self.folder / f"work{len(list(self.folder.glob('work*')))}"
        work.mkdir()
        nothing: Any = None
        with allowed_by(printed(self.bakefile)["caller"]):
            builder = PackerBuilder(self.bakefile, verify=verify, fresh=fresh)
            return bake_remotely(builder, self.plan, Ingredients(None, nothing, work, Events(lambda _event: None)))

    def tags(self, region: str, ami: str) -> dict[str, str]:
        return aws.as_dict(raw("ec2", region).describe_images(ImageIds=[ami])["Images"][0])


@pytest.fixture
def place(tmp_path: Path, cloud: Cloud, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> Place:
    return Place(tmp_path, cloud, plan, monkeypatch)


@pytest.fixture
def amis(bake: Bake) -> dict[str, str]:
    """AMIs with the images in them."""
    return {region: there.image for region, there in bake(verify=False, copy_to=(OTHER,)).published.items()}


def launched(cloud: Cloud) -> int:
    return sum(operation == "RunInstances" for _, operation, _ in cloud.calls)


def test_what_packer_made_is_proven_once(place: Place, amis: dict[str, str]) -> None:
    place.makes(amis)
    before = launched(place.cloud)
    baked = place.build(fresh=True)
    assert baked.verdict
    assert (baked.verdict.passed, baked.verdict.accelerator) == (True, "ec2")
    assert [each.reference for each in baked.verdict.images] == [str(place.plan.images[0].reference)]
    assert launched(place.cloud) == before + 1
    assert list(baked.published) == [REGION, OTHER]
    for region, there in baked.published.items():
        tags = place.tags(region, there.image)
        assert (tags[VERIFIED], tags[MANAGED]) == (baked.verdict.verified_at, "artefact")
        assert set(place.cloud.left(region)) == {"images", "snapshots"}, "the verifier and its group are gone"
    again = place.build()
    assert again.verdict
    assert (again.verdict.verified_at, launched(place.cloud)) == (baked.verdict.verified_at, before + 1)


@pytest.mark.slow
def test_killed_after_any_call_it_is_finished(place: Place, bake: Bake) -> None:
    """Whether Packer has run or not: the same command finishes, proves, copies, and leaves nothing temporary."""
    place.makes({REGION: bake(verify=False).published[REGION].image})

    def finishes() -> None:
        baked = place.build()
        assert baked.verdict
        assert baked.verdict.passed
        assert list(baked.published) == [REGION, OTHER]
        for region, there in baked.published.items():
            assert place.tags(region, there.image)[MANAGED] == "artefact"
            assert set(place.cloud.left(region)) == {"images", "snapshots"}
            assert len(place.cloud.left(region)["images"]) == 1, "no copy is made twice"

    calls = killed_everywhere(place.cloud, place.build, finishes)
    assert {"RunInstances", "TerminateInstances", "CopyImage", "CreateTags"} <= set(calls)


@pytest.mark.slow
def test_throttled_anywhere_the_next_run_finishes(place: Place, bake: Bake) -> None:
    place.makes({REGION: bake(verify=False).published[REGION].image})

    def judge(came: Exception | None, throttled: Counter[str]) -> None:
        assert came is None or isinstance(came, ParbakeError), throttled

    met = throttled_everywhere(place.cloud, place.build, judge)
    assert {"DescribeImages", "RunInstances", "TerminateInstances"} <= met
    assert set(place.cloud.left(REGION)) == {"images", "snapshots"}


def test_what_was_not_verified_is_by_the_same_command_without_packer(place: Place, amis: dict[str, str]) -> None:
    place.makes(amis)
    assert place.build(verify=False).verdict is None
    baked = place.build()
    assert baked.verdict
    assert baked.verdict.passed
    assert not (place.folder / "packer.log").exists(), "the AMI is there"


def test_an_ami_without_the_images_is_found_out(place: Place) -> None:
    bare = place.cloud.base(REGION, "bare", "---\n")
    place.makes({REGION: bare, OTHER: place.cloud.base(OTHER, "bare", "---\n")})
    baked = place.build(fresh=True)
    assert baked.verdict
    assert (baked.verdict.passed, baked.published[REGION].image) == (False, bare)
    assert baked.verdict.images[0].problems
    assert VERIFIED not in place.tags(REGION, bare)
    assert set(place.cloud.left(REGION)) == {"images", "snapshots"}


def test_a_plan_that_cannot_be_proven_is_refused_before_packer_runs(place: Place) -> None:
    names = [Reference("registry.example", token_hex(40), "1") for _ in range(400)]
    many = tuple(place.plan.images[0].model_copy(update={"reference": name}) for name in names)
    place.plan = place.plan.model_copy(update={"images": many})
    with pytest.raises(InputError):
        place.build()
    assert not (place.folder / "packer.log").exists()
    assert notes(place.cloud).consoles == {}

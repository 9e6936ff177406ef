"""The Packer builder: a stand-in for packer on PATH (which makes no AMI), AWS is moto in this process."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import boto3
import pytest

from parbake.aws.tags import KEY, MANAGED, NAME, as_list
from parbake.bakefile import Bakefile, load
from parbake.builders import Ingredients, packer
from parbake.builders.choose import remote_builder_of
from parbake.builders.packer.builder import PackerBuilder
from parbake.core import run
from parbake.core.errors import EnvironmentProblem, ParbakeError
from parbake.core.events import Events
from parbake.core.model import GIB, Artefact, Base, Plan
from parbake.workflows import clean
from standins import packer_program
from standins.aws.iam_recorder import allowed_by, printed
from standins.plans import bake_remotely, image, plan

pytestmark = pytest.mark.usefixtures("aws_mock")

REGION, OTHER = "eu-west-1", "eu-central-1"


class Place:
    """A Bakefile, a plan, AMIs that Packer will name, and packer on PATH."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.notes = folder, list[str]()
        self.patch = monkeypatch
        self.ec2 = {region: boto3.client("ec2", region_name=region) for region in (REGION, OTHER)}
        self.base = self.ami(REGION, "base")
        path = folder / "parbake.yaml"
        path.write_text(
            f"version: 1\nname: shop\nplatform: linux/amd64\nbuilder: packer\nbase: {self.base}\n"
            "images: [registry.example.com/team/app:1.4]\n"
            f"aws: {{region: {REGION}, copy_to: [{OTHER}], tags: {{team: a}}}}\n"
        )
        self.bakefile: Bakefile = load(path)
        self.plan: Plan = plan(
            name="shop",
            base=Base(kind="ami", identity=self.base),
            artefact=Artefact(kind="machine-image", format="ami"),
            images=(image("registry.example.com/team/app:1.4"),),
            size=33 * GIB,
        )
        program = folder / "bin/packer"
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\nexec {sys.executable} {packer_program.__file__} "$@"\n')
        program.chmod(0o755)
        self.made = self.ami(REGION, "made")
        monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
        monkeypatch.setenv("HOME", str(folder))
        monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
        monkeypatch.setenv("PACKER_STAND_IN_AMIS", f"{REGION}:{self.made}")

    def tag(self) -> None:
        """Give the AMI the tags that Packer's template gives it."""
        snapshot = self.ec2[REGION].describe_images(ImageIds=[self.made])["Images"][0]["BlockDeviceMappings"][0]
        tags = [{"Key": KEY, "Value": self.plan.key}, {"Key": MANAGED, "Value": "artefact"}]
        self.ec2[REGION].create_tags(Resources=[self.made, snapshot["Ebs"]["SnapshotId"]], Tags=tags)

    def ami(self, region: str, name: str) -> str:
        ec2 = self.ec2[region]
        snapshot = ec2.create_snapshot(VolumeId=ec2.create_volume(AvailabilityZone=f"{region}a", Size=33)["VolumeId"])
        mapping = [{"DeviceName": "/dev/xvda", "Ebs": {"SnapshotId": snapshot["SnapshotId"], "VolumeSize": 33}}]
        found = ec2.register_image(
            Name=name, RootDeviceName="/dev/xvda", BlockDeviceMappings=mapping, Architecture="x86_64"
        )
        return str(found["ImageId"])

    def build(self, *, fresh: bool = False) -> Any:
        work = self.folder / f"work{len(list(self.folder.glob('work*')))}"
        work.mkdir()
        events = Events(lambda event: self.notes.append(event.text))
        nothing: Any = None
        with allowed_by(printed(self.bakefile)["caller"]):
            return bake_remotely(
                PackerBuilder(self.bakefile, verify=False, fresh=fresh),
                self.plan,
                Ingredients(None, nothing, work, events),
            )

    def values(self, number: int = 0) -> dict[str, Any]:
        values: dict[str, Any] = json.loads((self.folder / f"work{number}/template/{packer.VALUES}").read_text())
        return values

    @property
    def calls(self) -> list[str]:
        log = self.folder / "packer.log"
        return [line.split()[0] for line in log.read_text().splitlines()] if log.exists() else []


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    return Place(tmp_path, monkeypatch)


def test_the_plan_is_baked(place: Place) -> None:
    place.tag()
    made = place.build(fresh=True)
    assert place.calls == ["init", "validate", "build"]
    assert made.published[REGION].image == place.made
    assert list(made.published) == [REGION, OTHER]
    assert all(there.snapshots[0].id.startswith("snap-") for there in made.published.values())
    values = place.values()
    app = place.plan.images[0]
    assert values["IMAGE"] == f"{app.reference}@{app.target.digest}"
    assert values["AMI_NAME"].startswith(f"shop-{place.plan.key[:12]}-")
    assert (values["SOURCE_AMI"], values["VOLUME_SIZE"]) == (place.base, 33)
    assert not {"COPY_TO", "SHARE_WITH_ACCOUNTS", "DEPRECATE_AFTER"} & set(values), "what parbake does itself"
    assert (values["TAGS"][KEY], values["TAGS"][MANAGED], values["TAGS"]["team"]) == (place.plan.key, "artefact", "a")
    assert values["RUN_TAGS"][MANAGED] == "temporary"
    assert any("Prevalidating" in note for note in place.notes)
    assert any(f"parbake: pulling {app.reference}" in note for note in place.notes)


def test_an_ami_that_exists_is_taken(place: Place) -> None:
    place.tag()
    published = place.build().published
    assert published[REGION].image == place.made
    assert place.build().published == published, "the copy as well"
    assert place.calls == []
    place.build(fresh=True)
    assert place.calls == ["init", "validate", "build"]
    assert place.values(2)["AMI_NAME"].startswith(f"shop-{place.plan.key[:12]}-")


def test_a_packer_that_writes_no_manifest_is_told(place: Place) -> None:
    place.patch.setenv("PACKER_STAND_IN", "forget")
    with pytest.raises(ParbakeError, match="wrote no manifest"):
        place.build()


def test_without_packer(place: Place) -> None:
    (place.folder / "bin/packer").unlink()
    if run.find("packer"):
        pytest.skip("this machine has packer")
    with pytest.raises(EnvironmentProblem, match="packer is not installed"):
        place.build()


def test_what_a_killed_packer_leaves_is_removed(place: Place) -> None:
    """Its key pair, group and launch template, tagged as the template says; what is not ours stays."""
    place.tag()
    place.build(fresh=True)
    ec2, tags = place.ec2[REGION], as_list(place.values()["RUN_TAGS"])

    def make(name: str, tags: list[dict[str, str]]) -> None:
        def kind(of: str) -> Any:
            return [{"ResourceType": of, "Tags": tags}] if tags else []

        ec2.create_key_pair(KeyName=name, TagSpecifications=kind("key-pair"))
        ec2.create_security_group(GroupName=name, Description=name, TagSpecifications=kind("security-group"))
        ec2.create_launch_template(
            LaunchTemplateName=name,
            LaunchTemplateData={"ImageId": place.base},
            TagSpecifications=kind("launch-template"),
        )

    def left() -> set[str]:
        pairs = {each["KeyName"] for each in ec2.describe_key_pairs()["KeyPairs"]}
        groups = {each["GroupName"] for each in ec2.describe_security_groups()["SecurityGroups"]} - {"default"}
        templates = {each["LaunchTemplateName"] for each in ec2.describe_launch_templates()["LaunchTemplates"]}
        return {f"{kind}:{each}" for kind, names in (("k", pairs), ("g", groups), ("t", templates)) for each in names}

    make("theirs", [])
    make("packer_1", tags)
    make("other", [{"Key": MANAGED, "Value": "temporary"}, {"Key": NAME, "Value": "another"}])
    removed = clean.clean_aws(place.folder / "parbake.yaml", Events(lambda _event: None)).removed[REGION]
    assert sorted(each.partition("-")[0] for each in removed) == ["key", "lt", "sg"]
    assert left() == {f"{kind}:{name}" for kind in "kgt" for name in ("theirs", "other")}
    assert clean.clean_aws(place.folder / "parbake.yaml", Events(lambda _event: None)).removed[REGION] == ()


def test_the_bakefile_chooses_it(place: Place) -> None:
    assert isinstance(remote_builder_of(place.bakefile), PackerBuilder)

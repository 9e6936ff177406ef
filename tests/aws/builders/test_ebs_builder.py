"""Publishing to EBS, on a disk that a stand-in for the local builder makes: what is sent, what is found, what is gone.

The story itself runs (``make``); what it does to a disk before that is the stand-in's as well.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from parbake import aws
from parbake.aws import clients, ebs
from parbake.aws.leftovers import LeftoverFilter, remove
from parbake.bakefile import load
from parbake.builders import Disk, Ingredients, coldstart
from parbake.builders import ebs as publishing
from parbake.builders.choose import publisher_of
from parbake.builders.ebs import EbsShipment
from parbake.coldstart.trace import Part, Read, Trace
from parbake.coldstart.trace import load as load_trace
from parbake.core import sealed
from parbake.core.errors import InputError, VerificationFailed
from parbake.core.events import Event, Events
from parbake.core.model import EBS_BLOCK, GIB, MIB, Artefact, Base, Plan, Verdict
from parbake.images.registry import Registry
from parbake.machine import base
from parbake.records import Record, read
from parbake.workflows import verify
from parbake.workflows.bake import clouds, disks, make
from parbake.workflows.identity import acting
from parbake.workflows.plan import Bake, BakeOptions, Session
from standins.aws.ebs_direct_in_process import Direct
from standins.aws.iam_recorder import allowed_by, bakefile_for, printed
from standins.ebs_direct_server import Cloud
from standins.plans import plan
from tests.aws.aws.test_ebs import held, holds

PASSED = Verdict(passed=True, accelerator="kvm")
FAILED = Verdict(passed=False, accelerator="kvm", problems=("it does not start",))
TRACE = Trace(
    uuid="0", filesystem="ext4", size=GIB, how="loop", made_at="2026-01-01T00:00:00Z",
    parts=(Part(name="app", kind="image", seconds=1.0, reads=(Read(0, 0, 8),)),),
)  # fmt: skip
VOLUME = plan(name="data", artefact=Artefact(kind="volume", format="snapshot"), size=700 * MIB)
MACHINE = plan(name="node", artefact=Artefact(kind="machine-image", format="ami"), base=Base(kind="debian"), size=GIB)


class FakeBuilder:
    """Stands in for the local builder: writes ``content`` into some blocks of a disk, on top of the base's.

    ``steps`` is what became of disks, in request: built, prepared for cold starts, proven (with ``verdict``).
    """

    def __init__(self) -> None:
        self.content = {0: b"boot", 5: b"data", 900: b"more"}
        self.bakes: list[Plan] = []
        self.steps: list[str] = []
        self.verdict = PASSED

    def build(self, wanted: Plan, ingredients: Ingredients) -> Disk:
        self.bakes.append(wanted)
        self.steps.append("build")
        path = ingredients.work / "disk.raw"
        with path.open("wb") as file:
            if ingredients.base:
                for index, data in holds(ingredients.base).items():
                    os.pwrite(file.fileno(), data, index * EBS_BLOCK)
            file.truncate(wanted.size)
            for index, data in self.content.items():
                os.pwrite(file.fileno(), data, index * EBS_BLOCK)
        return Disk(path, ("machine-id",))

    def prepare(self, disk: Disk, *_: object, **__: object) -> Disk:
        """Change what is not final, as the layout does."""
        self.steps.append("rehearse" if disk.final else "lay out")
        if not disk.final:
            with disk.path.open("r+b") as file:
                os.pwrite(file.fileno(), b"laid out", 700 * EBS_BLOCK)
        return replace(disk, trace=disk.trace or TRACE)

    def boot(self, *_: object) -> Verdict:
        self.steps.append("prove")
        return self.verdict


@pytest.fixture
def fake_builder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeBuilder:
    made = FakeBuilder()
    monkeypatch.setattr(disks, "builder_of", lambda _: made)
    monkeypatch.setattr(clouds, "boot", made.boot)
    monkeypatch.setattr(verify, "can_boot", lambda *_: True)
    monkeypatch.setattr(clouds, "need_rights", lambda *_: None)
    monkeypatch.setattr(coldstart, "prepare", made.prepare)
    monkeypatch.setattr(base, "ensure", lambda *_, **__: None)
    # The plan's images are nowhere: nobody is to look for their registry's name, again and again.
    monkeypatch.setattr(Registry, "find_attachments", lambda *_: dict)
    monkeypatch.setenv("PARBAKE_CACHE", str(tmp_path / "cache"))
    return made


@pytest.fixture
def direct(monkeypatch: pytest.MonkeyPatch) -> Direct:
    made = Direct()
    made.install(monkeypatch)
    clients.forget()
    return made


@pytest.fixture
def cloud(direct: Direct) -> Cloud:
    return direct.world


def build(
    folder: Path,
    wanted: Plan,
    *,
    fresh: bool = False,
    verify: bool = True,
    rehearse: bool = False,
    bases: Sequence[str] = (),
    **settings: Any,
) -> Record:
    """Bake as the story does once it has a plan; the policy for it must allow every call."""
    folder.mkdir(exist_ok=True)
    options = BakeOptions(force=fresh, verify=verify, rehearse=rehearse)
    with session(folder, wanted, settings) as run, allowed_by(policy_for(wanted, settings, bases)):
        publisher = publisher_of(run.bakefile, fresh=fresh)
        assert publisher
        return make.make(Bake(run, wanted, options, publisher=publisher)).record


@contextmanager
def session(
    folder: Path, wanted: Plan, settings: Mapping[str, Any], events: Events | None = None, **more: Any
) -> Iterator[Session]:
    path = folder / "parbake.yaml"
    base = {"ami": {"ami": wanted.base.identity}}.get(wanted.base.kind, wanted.base.kind)
    document = {"version": 1, "name": wanted.name, "builder": "ebs", "base": base, "output": ".", **more}
    path.write_text(json.dumps({**document, "aws": settings, "images": ["registry.example/app:1"]}))
    bakefile = load(path)
    with Registry(bakefile.registries, events=Events()) as registry:
        yield Session(bakefile, registry, events or Events())


def policy_for(wanted: Plan, settings: Mapping[str, Any], bases: Sequence[str] = ()) -> Mapping[str, Any]:
    """Return the policy of whoever bakes a plan with settings; ``bases`` are the base's snapshots, which are told."""
    artefact = wanted.artefact
    aws = {"region": "eu-west-1", **settings, "encrypted": artefact.encrypted}
    aws |= {"kms_key": artefact.kms_key} if artefact.kms_key else {}
    base = {"ami": wanted.base.identity, "none": "none"}.get(wanted.base.kind, "debian")
    bakefile = bakefile_for("ebs", aws, base=base, image="registry.example/app:1")
    policy: Mapping[str, Any] = printed(bakefile, **({"base_snapshots": tuple(bases)} if bases else {}))["caller"]
    return policy


def staged(folder: Path) -> list[Path]:
    return [
        path
        for path in (folder / "cache/uploads").glob("*")
        if path.suffix != sealed.SUFFIX and path.stem != ".parbake"
    ]


def test_a_volume_becomes_a_snapshot(tmp_path: Path, fake_builder: FakeBuilder, cloud: Cloud) -> None:
    baked = build(tmp_path, VOLUME)
    ((region, there),) = baked.published.items()
    (snapshot,) = there.snapshots
    assert (region, there.image, snapshot.device, snapshot.size) == ("eu-west-1", "", "", GIB)
    assert set(held(cloud, snapshot.id)) == {0, 5, 900}
    assert (baked.size, baked.verdict, baked.sealed) == (GIB, PASSED, ("machine-id",))
    assert fake_builder.bakes[0].artefact == Artefact(kind="volume")
    assert staged(tmp_path) == []


def test_a_machine_image_becomes_an_ami(tmp_path: Path, fake_builder: FakeBuilder, cloud: Cloud) -> None:
    there = build(tmp_path, MACHINE).published["eu-west-1"]
    assert cloud.images[there.image]["name"] == f"node-{MACHINE.key[:12]}"
    assert cloud.images[there.image]["attributes"]["BootMode"] == "legacy-bios", "the disk has no ESP"
    assert there.snapshots[0].device == "/dev/xvda"
    assert cloud.images[there.image]["tags"]["parbake:managed"] == "artefact"
    again = build(tmp_path, MACHINE, fresh=True).published["eu-west-1"]
    assert again.image != there.image, "an AMI that exists is never touched"
    assert len(fake_builder.bakes) == 2


def test_what_fails_verification_is_not_sent(tmp_path: Path, fake_builder: FakeBuilder, cloud: Cloud) -> None:
    fake_builder.verdict = FAILED
    with pytest.raises(VerificationFailed, match="it does not start"):
        build(tmp_path, VOLUME)
    record = read(tmp_path / f"{VOLUME.artefact_name}.json")
    assert (record.published, record.verdict) == ({}, FAILED)
    assert cloud.calls["StartSnapshot"] == 0
    fake_builder.verdict = PASSED
    assert build(tmp_path, VOLUME).published, "verified anew: how to start an image is no part of the plan"
    assert len(fake_builder.bakes) == 1


def test_what_leaves_was_rehearsed_laid_out_and_proven_before(
    tmp_path: Path, fake_builder: FakeBuilder, cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The protocol, whatever publishes: and what was sent are the bytes that were laid out and proven."""
    send = EbsShipment.send

    def sent(shipment: EbsShipment, disk: Disk) -> Any:
        fake_builder.steps.append("send")
        return send(shipment, disk)

    monkeypatch.setattr(EbsShipment, "send", sent)
    record = build(tmp_path, VOLUME, rehearse=True)
    assert fake_builder.steps == ["build", "lay out", "prove", "send"]
    snapshot = record.published["eu-west-1"].snapshots[0].id
    assert held(cloud, snapshot)[700].startswith(b"laid out")
    assert record.trace is not None
    assert record.trace.file == record.trace_name
    assert load_trace(tmp_path / record.trace_name) == TRACE

    (tmp_path / record.file_name).unlink()
    fake_builder.steps.clear()
    again = build(tmp_path, VOLUME, rehearse=True)
    assert fake_builder.steps == ["rehearse", "prove"], "what AWS has is read back and stays as it is"
    assert again.trace == record.trace
    assert list(cloud.snapshots) == [snapshot]


def test_the_trace_of_a_disk_outlives_a_run_that_was_cut_off(
    tmp_path: Path, fake_builder: FakeBuilder, cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as cut:
        cut.setattr(ebs, "upload", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            build(tmp_path, VOLUME, rehearse=True)
    fake_builder.steps.clear()
    monkeypatch.setattr(coldstart, "prepare", lambda disk, *_, **__: disk if disk.trace else pytest.fail("no trace"))
    assert build(tmp_path, VOLUME, rehearse=True).trace is not None
    assert fake_builder.steps == ["prove"]
    assert len(cloud.snapshots) == 1


def test_a_run_that_was_cut_off_goes_on_with_its_disk(
    tmp_path: Path, fake_builder: FakeBuilder, cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    for call in ("upload", "register"):
        with monkeypatch.context() as cut:
            cut.setattr(ebs, call, _interrupted)
            with pytest.raises(KeyboardInterrupt):
                build(tmp_path, MACHINE)
        assert len(staged(tmp_path)) == 1
    baked = build(tmp_path, MACHINE)
    assert len(fake_builder.bakes) == 1
    assert len(cloud.snapshots) == len(cloud.images) == 1
    assert baked.sealed == ("machine-id",)
    assert staged(tmp_path) == []


@pytest.mark.parametrize("copied", [False, True], ids=["one byte", "a restored cache"])
def test_a_disk_that_others_could_have_changed_meanwhile_is_made_anew(
    tmp_path: Path, fake_builder: FakeBuilder, cloud: Cloud, monkeypatch: pytest.MonkeyPatch, copied: bool
) -> None:
    with monkeypatch.context() as cut:
        cut.setattr(ebs, "upload", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            build(tmp_path, VOLUME)
    [kept] = staged(tmp_path)
    if copied:
        shutil.copytree(kept, tmp_path / "copy")
        shutil.rmtree(kept)
        (tmp_path / "copy").rename(kept)
    else:
        with (kept / "disk.raw").open("r+b") as disk:
            disk.write(b"evil")
    build(tmp_path, VOLUME)
    assert len(fake_builder.bakes) == 2
    [snapshot] = cloud.snapshots
    assert set(held(cloud, snapshot)) == set(fake_builder.content)


@pytest.mark.usefixtures("fake_builder", "cloud")
def test_the_disk_of_a_base_that_others_have_changed_is_fetched_anew(tmp_path: Path) -> None:
    ami = build(tmp_path, MACHINE).published["eu-west-1"].image
    said: list[Event] = []
    fetched = publishing.base_of(ami, "eu-west-1", Events(said.append))
    true = fetched.path.read_bytes()
    assert publishing.base_of(ami, "eu-west-1", Events(said.append)) == fetched
    with fetched.path.open("r+b") as disk:
        disk.write(b"evil")
    assert publishing.base_of(ami, "eu-west-1", Events(said.append)) == fetched
    assert fetched.path.read_bytes() == true
    warnings = [event.text for event in said if event.kind == "warning"]
    assert warnings == [f"{fetched.path} has no seal of this user's key: it is fetched anew"]


def test_a_snapshot_that_no_ami_was_made_of_is_cleaned(
    tmp_path: Path, fake_builder: FakeBuilder, cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as cut:
        cut.setattr(ebs, "register", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            build(tmp_path, MACHINE)
    monkeypatch.setattr(aws, "UNKNOWN_SECONDS", 0.05)  # else it would be waited for
    [left] = cloud.snapshots.values()
    assert left.tags["parbake:managed"] == "temporary"
    assert remove(LeftoverFilter(key=MACHINE.key), "eu-west-1", Events()) == (left.id,)
    assert build(tmp_path, MACHINE).published, "it is sent anew"
    assert len(fake_builder.bakes) == 1


def test_a_volume_that_was_cut_off_is_finished(
    tmp_path: Path, fake_builder: FakeBuilder, cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copies, shares and the last word are made sure of, with nothing baked or sent again."""
    settings: dict[str, Any] = {"region": "eu-west-1", "copy_to": ["us-east-1"], "share_with": ["123456789012"]}
    for call in ("copy", "share", "mark_permanent"):
        with monkeypatch.context() as cut:
            cut.setattr(ebs, call, _interrupted)
            with pytest.raises(KeyboardInterrupt):
                build(tmp_path, VOLUME, **settings)
        assert {made.tags["parbake:managed"] for made in cloud.snapshots.values()} == {"temporary"}
    places = build(tmp_path, VOLUME, **settings).published
    assert list(places) == ["eu-west-1", "us-east-1"]
    assert len(cloud.snapshots) == 2
    for made in cloud.snapshots.values():
        assert (made.tags["parbake:managed"], made.shared) == ("artefact", {"123456789012"})
    assert (len(fake_builder.bakes), cloud.calls["PutSnapshotBlock"]) == (1, 3)


@pytest.mark.parametrize("wanted", [VOLUME, MACHINE], ids=["volume", "ami"])
def test_a_copy_belongs_to_the_account_of_its_role(
    tmp_path: Path, fake_builder: FakeBuilder, cloud: Cloud, wanted: Plan
) -> None:
    """The original is shared with it, the copy is made there in its role; and what `parbake iam` prints is enough."""
    role = "arn:aws:iam::210987654321:role/copies"
    settings = {"region": "eu-west-1", "copy_to": ["us-east-1"], "copy_roles": {"us-east-1": role}}
    with session(tmp_path, wanted, settings) as run:
        found, publisher = printed(run.bakefile), publisher_of(run.bakefile, fresh=False)
        assert publisher
        theirs = [found[name] for name in ("caller", "role_of_copies_in_us-east-1")]
        theirs.append({"Statement": [{**found["assume"]["Statement"][0], "Resource": ["*"]}]})  # noted without its name
        with acting(run.bakefile), allowed_by(*theirs):
            made = [make.make(Bake(run, wanted, publisher=publisher)).record for _ in range(2)]
    (own, copied) = (cloud.snapshots[each.snapshots[0].id] for each in made[1].published.values())
    assert made[0].published == made[1].published
    assert (own.owner, own.shared, copied.owner, copied.shared) == (
        "123456789012",
        {"210987654321"},
        "210987654321",
        set(),
    )
    assert copied.tags["parbake:managed"] == "artefact"
    assert (len(fake_builder.bakes), len(cloud.snapshots)) == (1, 2)
    assert found["assume"]["Statement"][0]["Resource"] == [role]


def test_what_exists_goes_where_the_bakefile_says_by_now(
    tmp_path: Path, fake_builder: FakeBuilder, cloud: Cloud
) -> None:
    for wanted in (VOLUME, MACHINE):
        first = build(tmp_path, wanted, region="eu-west-1").published
        again = build(tmp_path, wanted, region="eu-west-1", copy_to=["us-east-1"]).published
        assert again["eu-west-1"].snapshots == first["eu-west-1"].snapshots
        copied = again["us-east-1"].snapshots[0].id
        assert cloud.snapshots[copied].tags["parbake:managed"] == "artefact"
    assert len(fake_builder.bakes) == 2


def _interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_a_volume_is_copied_shared_and_warmed(tmp_path: Path, fake_builder: FakeBuilder, cloud: Cloud) -> None:
    cloud.slow = 2
    zones = ["eu-west-1a", "us-east-1b"]
    settings: dict[str, Any] = {"region": "eu-west-1", "copy_to": ["us-east-1"], "share_with": ["123456789012"]}
    places = build(tmp_path, VOLUME, **settings, copy_within="45m", fast_snapshot_restore=zones).published
    assert list(places) == ["eu-west-1", "us-east-1"]
    for region, zone in zip(places, zones, strict=True):
        assert cloud.snapshots[places[region].snapshots[0].id].within == (45 if region == "us-east-1" else 0)
        made = cloud.snapshots[places[region].snapshots[0].id]
        assert (made.region, made.state, made.shared) == (region, "completed", {"123456789012"})
        assert cloud.fast.on(made.id) == {zone}
        assert set(held(cloud, made.id)) == {0, 5, 900}
    with pytest.raises(InputError, match="accounts only"):
        build(tmp_path, VOLUME, share_with=["arn:aws:organizations::123456789012:organization/o-abcdefghij"])
    with pytest.raises(InputError, match="can be deprecated"):
        build(tmp_path, VOLUME, deprecate_after="90d")
    assert len(fake_builder.bakes) == 1


def test_an_ami_is_copied_shared_and_dated(tmp_path: Path, fake_builder: FakeBuilder, cloud: Cloud) -> None:
    cloud.slow = 2
    settings: dict[str, Any] = {"region": "eu-west-1", "copy_to": ["us-east-1"], "share_with": ["123456789012"]}
    settings["copy_within"] = "1h"
    places = build(tmp_path, MACHINE, **settings, deprecate_after="90d", fast_snapshot_restore=["us-east-1b"]).published
    assert list(places) == ["eu-west-1", "us-east-1"]
    for region, there in places.items():
        image, snapshot = cloud.images[there.image], cloud.snapshots[there.snapshots[0].id]
        assert snapshot.within == (60 if region == "us-east-1" else 0)
        assert (image["region"], image["shared"], snapshot.shared) == (region, {"123456789012"}, {"123456789012"})
        assert image["deprecated"].startswith("20")
        assert image["tags"]["parbake:managed"] == "artefact"
        assert cloud.fast.on(snapshot.id) == ({"us-east-1b"} if region == "us-east-1" else set())
        assert set(held(cloud, snapshot.id)) == {0, 5, 900}
    assert len(fake_builder.bakes) == 1


@pytest.mark.usefixtures("fake_builder")
def test_what_the_base_says_of_itself_stays(tmp_path: Path, cloud: Cloud) -> None:
    """Ubuntu's root is /dev/sda1; its further disks, among them another account's, become this account's own."""
    base = build(tmp_path, MACHINE).published["eu-west-1"]
    data = cloud.snapshots[build(tmp_path, VOLUME).published["eu-west-1"].snapshots[0].id]
    data.owner, data.shared = "210987654321", {"123456789012"}
    image = cloud.images[base.image]
    image["device"] = image["attributes"]["RootDeviceName"] = "/dev/sda1"
    said = {
        "BootMode": "uefi",
        "TpmSupport": "v2.0",
        "SriovNetSupport": "simple",
        "UefiData": "QU1B",
        "EnaSupport": "true",
    }
    image["attributes"] |= said
    image["further"] = [
        {"device": "/dev/sdb", "snapshot": "", "virtual": "ephemeral0"},
        {"device": "/dev/sdc", "snapshot": data.id, "virtual": "", "gib": "1"},
        {"device": "/dev/sdd", "snapshot": "", "virtual": "", "gib": "7"},
    ]
    onto = MACHINE.model_copy(update={"name": "onto", "base": Base(kind="ami", identity=base.image, size=GIB)})
    settings: dict[str, Any] = {"region": "eu-west-1", "copy_to": ["us-east-1"], "share_with": ["123456789012"]}
    places = build(tmp_path, onto, bases=[data.id], **settings).published
    for region, there in places.items():
        made = cloud.images[there.image]
        assert made["attributes"].items() >= {**said, "ImdsSupport": "v2.0"}.items()
        assert (made["device"], made["attributes"]["RootDeviceName"]) == ("/dev/sda1", "/dev/sda1")
        kinds = [(each["device"], each["virtual"], each["gib"]) for each in made["further"]]
        assert kinds == [("/dev/sdb", "ephemeral0", ""), ("/dev/sdc", "", "1"), ("/dev/sdd", "", "7")]
        own = cloud.snapshots[made["further"][1]["snapshot"]]
        assert (own.owner, own.region, own.shared) == ("123456789012", region, {"123456789012"})
        assert own.tags["parbake:managed"] == "artefact"
        assert [each.device for each in there.snapshots] == ["/dev/sda1", "/dev/sdc"]
    assert (data.shared, data.tags["parbake:managed"]) == ({"123456789012"}, "artefact"), "nobody touched the original"
    again = build(tmp_path, onto, fresh=True, bases=[data.id]).published["eu-west-1"]
    assert (
        cloud.images[again.image]["further"][1]["snapshot"]
        == cloud.images[places["eu-west-1"].image]["further"][1]["snapshot"]
    ), "copied once"


@pytest.mark.usefixtures("fake_builder")
def test_uefi_variables_that_may_not_be_read_are_told(tmp_path: Path, cloud: Cloud) -> None:
    base = build(tmp_path, MACHINE).published["eu-west-1"]
    cloud.images[base.image]["attributes"]["BootMode"] = "uefi"
    cloud.images[base.image]["owner"] = "210987654321"
    said: list[Any] = []
    traits = ebs.traits_of(base.image, "eu-west-1", Events(said.append))
    assert (traits.boot, traits.uefi) == ("uefi", "")
    assert "AuthFailure" in said[0].text

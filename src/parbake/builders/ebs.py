"""The EBS builder: what is baked on this machine becomes an EBS snapshot, and an AMI, without any instance.

The disk lies in the cache until AWS has all of it, so that a run which was killed goes on with the upload. What is in
AWS already, its tags say. Only what differs from a parent snapshot is sent: the one that the user names, the newest
that was made under the same name, or that of the base AMI.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from parbake import atomic, aws, ebs
from parbake.aws.tags import ARTEFACT
from parbake.bakefile import AwsSection
from parbake.builders import Baked, Ingredients
from parbake.builders.ec2.image import Amis, published
from parbake.builders.ec2.volume import Volumes, refuse
from parbake.builders.local import LocalBuilder
from parbake.disk import BlockList
from parbake.errors import InputError
from parbake.events import Events
from parbake.model import GIB, Plan, Published, Snapshot, Verdict
from parbake.workspace import cache_folder, lock, publish, remove_leftovers, remove_tree, room_for, work_folder

_DISK, _MADE = "disk.raw", "made.json"


@dataclass(frozen=True, slots=True)
class _Made:
    """A disk that was baked here and waits to be sent."""

    folder: Path
    sealed: tuple[str, ...]
    boot: str
    base: ebs.Parent | None = None
    tpm: bool = False

    @property
    def disk(self) -> Path:
        return self.folder / _DISK

    @property
    def gib(self) -> int:
        """The size of volumes made from it."""
        return -(-self.disk.stat().st_size // GIB)


class EbsBuilder:
    """Bakes here, sends it to EC2. ``fresh`` bakes what exists already; ``lists`` is a folder with lists of blocks."""

    name = "ebs"

    def __init__(self, settings: AwsSection, lists: Path, *, fresh: bool = False) -> None:
        self._settings, self._lists, self._fresh = settings, lists, fresh

    def build(self, plan: Plan, ingredients: Ingredients) -> Baked:
        """Make sure that the plan's snapshot, or AMI, exists; bake and prove it here first where it does not.

        Raises what the local builder raises, AwsFault, AwsNotFound, AwsNoAccess, AwsLimit, InputError.
        """
        refuse(plan, self._settings)
        region = aws.client("ec2", self._settings.region or "").region
        local = _local(plan)
        run = _Run(self._settings, plan, region, ingredients.events, self._lists, fresh=self._fresh)
        with _staging(plan.key) as (folder, work):
            if self._fresh:
                remove_tree(folder)
            elif there := run.existing():
                return _again(there, run, local, replace(ingredients, work=work))
            made = _found(folder) or _bake(local, replace(ingredients, work=work), folder, region)
            verdict = ingredients.prove(made.disk, local, work) if ingredients.prove else None
            if verdict and not verdict.passed:
                return Baked(None, sealed=made.sealed, verdict=verdict, size=local.size)
            with ingredients.events.stage("upload", "Write the snapshot"):
                sent = run.upload(made)
            published = run.spread(run.publish(sent.snapshot, made), verdict)
            remove_tree(folder)
        return Baked(
            None, sealed=made.sealed, published=published, verdict=verdict, size=local.size, blocks=sent.blocks
        )


def _again(there: Published, run: _Run, plan: Plan, ingredients: Ingredients) -> Baked:
    """Return what AWS has of a plan already, read back to be proven; what the Bakefile wants of it is made sure of."""
    made = Baked(None, published={run.region: there}, size=plan.size)
    if ingredients.prove:
        with ingredients.events.stage("fetch", f"Fetch {there.image or there.snapshots[0].id}"):
            snapshot, target = there.snapshots[0].id, ingredients.work / _DISK
            fetched = ebs.fetch(snapshot, target, ingredients.events, region=run.region)
        made = replace(made, verdict=ingredients.prove(target, plan, ingredients.work), blocks=fetched.blocks)
    if made.verdict and not made.verdict.passed:
        return made
    return replace(made, published=run.spread(there, made.verdict))


def _local(plan: Plan) -> Plan:
    """Return the plan for the disk that is made here: raw, and of whole GiB as volumes are."""
    artefact = plan.artefact.model_copy(update={"format": "raw", "encrypted": False, "kms_key": ""})
    return plan.model_copy(update={"artefact": artefact, "size": -(-plan.size // GIB) * GIB})


@contextmanager
def _staging(key: str) -> Iterator[tuple[Path, Path]]:
    """Yield the folder for the disk of a plan, which outlives the run, and a work folder on the same file system."""
    uploads = cache_folder() / "uploads"
    uploads.mkdir(parents=True, exist_ok=True)
    remove_leftovers(uploads)
    with lock(uploads / f"{key}.lock", what=f"the upload of {key[:12]}"), work_folder(uploads, key[:12]) as work:
        yield uploads / key, work


def _found(folder: Path) -> _Made | None:
    """Return the disk that an earlier run has made."""
    try:
        said = json.loads((folder / _MADE).read_text())
        base = said["base"] and ebs.Parent(said["base"], BlockList.read(folder / "base.blocks"))
        return _Made(folder, tuple(said["sealed"]), said["boot"], base or None, said["tpm"])
    except (FileNotFoundError, ValueError, KeyError, TypeError, InputError):
        return None


def _bake(plan: Plan, ingredients: Ingredients, folder: Path, region: str) -> _Made:
    """Bake the disk; it appears in ``folder`` with all that is to be known of it."""
    base, tpm = None, False
    if plan.base.kind == "ami":
        fetched = _base(plan.base.identity, region, ingredients.events)
        base, tpm = ebs.Parent(fetched.snapshot, fetched.blocks), fetched.tpm
        ingredients = replace(ingredients, base=fetched.path)
    baked = LocalBuilder().build(plan, ingredients)
    assert baked.path
    boot = ebs.boot_mode(baked.path, plan.platform) if plan.artefact.kind == "machine-image" else ""
    remove_tree(folder)
    draft = ingredients.work / "made"
    with room_for(folder):
        draft.mkdir()
        baked.path.rename(draft / _DISK)
        if base:
            base.blocks.write(draft / "base.blocks")
        said = {"sealed": baked.sealed, "boot": boot, "base": base.snapshot if base else "", "tpm": tpm}
        (draft / _MADE).write_text(json.dumps(said))
        publish(draft, folder)
    return _Made(folder, baked.sealed, boot, base, tpm)


def _base(ami: str, region: str, events: Events) -> ebs.Fetched:
    """Return the root disk of an AMI, fetched once; what an AMI holds never changes."""
    folder = cache_folder() / "amis"
    path, about = folder / f"{ami}.raw", folder / f"{ami}.json"
    folder.mkdir(parents=True, exist_ok=True)
    with lock(folder / f"{ami}.lock", what=f"the disk of {ami}"):
        if path.exists() and about.exists():
            blocks = BlockList.read(folder / f"{ami}.raw.blocks")
            said = json.loads(about.read_text())
            return ebs.Fetched(path, said["snapshot"], blocks, said.get("tpm", False))
        path.unlink(missing_ok=True)
        with events.stage("fetch", f"Fetch the base {ami}"):
            fetched = ebs.fetch(ami, path, events, region=region)
        fetched.blocks.write(folder / f"{ami}.raw.blocks")
        atomic.replace(about, json.dumps({"snapshot": fetched.snapshot, "tpm": fetched.tpm}))
    return fetched


@dataclass(frozen=True, slots=True)
class _Run:
    """What one run does in AWS. ``fresh``: one of the plan exists already, and the name of an AMI has to be new."""

    settings: AwsSection
    plan: Plan
    region: str
    events: Events
    lists: Path
    fresh: bool = False
    token: str = field(default_factory=lambda: os.urandom(6).hex())

    @property
    def name(self) -> str:
        return f"{self.plan.name}-{self.plan.key[:12]}" + (f"-{self.token}" if self.fresh else "")

    @property
    def stamp(self) -> aws.Stamp:
        # Each run has tokens of its own: tags say when it began, and no token is good for another request.
        return aws.Stamp(self.plan.key, self.token, self.plan.name, 12.0, self.settings.tags)

    def existing(self) -> Published | None:
        """Return what an earlier run has finished for this plan, the newest."""
        ec2, filters = aws.client("ec2", self.region), aws.mine(key=self.plan.key, managed=ARTEFACT)
        if self.plan.artefact.kind == "volume":
            found = ec2.pages("describe_snapshots", "Snapshots", OwnerIds=["self"], Filters=filters)
            done = [each for each in found if each["State"] == "completed"]
            newest = max(done, key=lambda each: str(each["StartTime"]), default=None)
            return newest and self._volume(str(newest["SnapshotId"]), int(newest["VolumeSize"]) * GIB)
        found = ec2.pages("describe_images", "Images", Owners=["self"], Filters=filters)
        done = [each for each in found if each["State"] == "available"]
        image = max(done, key=lambda each: str(each.get("CreationDate", "")), default=None)
        return published(image) if image else None

    @staticmethod
    def _volume(snapshot: str, size: int) -> Published:
        return Published(snapshots=(Snapshot(id=snapshot, size=size),))

    def upload(self, made: _Made) -> ebs.Sent:
        """Make sure of the snapshot, incremental where there is a parent."""
        order = ebs.Order(
            path=made.disk,
            journal=made.folder / "upload",
            stamp=self.stamp,
            name=self.name,
            region=self.region,
            parent=self.parent(made),
            encrypted=self.plan.artefact.encrypted,
            kms_key=self.plan.artefact.kms_key,
        )
        sent = ebs.upload(order, self.events)
        if order.parent:
            self.events.note(f"{sent.changed} blocks of 512 KiB differ from {order.parent.snapshot}")
        return sent

    def parent(self, made: _Made) -> ebs.Parent | None:
        """Return what to build on: what the user names, else the newest of this name, else the base AMI's snapshot."""
        ec2 = aws.client("ec2", self.region)
        gib, named = made.gib, self.settings.parent_snapshot
        if named:
            found = ec2.describe_snapshots(SnapshotIds=[named])["Snapshots"][0]
            if found["State"] != "completed" or int(found["VolumeSize"]) > gib:
                raise InputError(
                    f"the parent {named} is {found['State']}, with {found['VolumeSize']} GiB; this disk has {gib} GiB",
                    hint="raise `size`, or name another `aws.parent_snapshot`",
                )
            blocks = self._list(found) or ebs.blocks_of(named, made.disk, self.events, region=self.region)
            return ebs.Parent(named, blocks)
        filters = aws.mine(managed=ARTEFACT)  # what is temporary, a clean-up may take at any time
        filters += [{"Name": "tag-key", "Values": [ebs.BLOCKS_TAG]}, {"Name": "status", "Values": ["completed"]}]
        ours = re.compile(re.escape(self.plan.name) + "-[0-9a-f]{12}(-[0-9a-f]{12})?")
        usable = [
            snapshot
            for snapshot in ec2.pages("describe_snapshots", "Snapshots", OwnerIds=["self"], Filters=filters)
            if ours.fullmatch(aws.as_dict(snapshot).get("Name", ""))
            and int(snapshot["VolumeSize"]) <= gib
            and self._locked_alike(snapshot)
        ]
        for snapshot in sorted(usable, key=lambda each: str(each["StartTime"]), reverse=True):
            known = self._list(snapshot)
            if known is not None:
                return ebs.Parent(str(snapshot["SnapshotId"]), known)
        return self._base_of(made, gib)

    def _base_of(self, made: _Made, gib: int) -> ebs.Parent | None:
        """Return the base AMI's snapshot where it is this account's."""
        if made.base is None:
            return None
        wanted = [{"Name": "snapshot-id", "Values": [made.base.snapshot]}]
        for snapshot in aws.client("ec2", self.region).pages(
            "describe_snapshots", "Snapshots", OwnerIds=["self"], Filters=wanted
        ):
            if int(snapshot["VolumeSize"]) <= gib and self._locked_alike(snapshot):
                return made.base
        return None

    def _locked_alike(self, snapshot: Mapping[str, Any]) -> bool:
        """Whether a child of a snapshot is encrypted as the Bakefile says: the parent decides that."""
        artefact = self.plan.artefact
        if bool(snapshot.get("Encrypted")) != artefact.encrypted:
            return False
        return not artefact.kms_key or snapshot.get("KmsKeyId") == ebs.key_arn(artefact.kms_key, self.region)

    def _list(self, snapshot: Mapping[str, Any]) -> BlockList | None:
        """Return the list of a snapshot's blocks, if the list of that digest is here."""
        digest = aws.as_dict(snapshot).get(ebs.BLOCKS_TAG, "")
        for path in sorted(self.lists.glob("*.blocks")):
            try:
                blocks = BlockList.read(path)
            except InputError:
                continue
            if blocks.digest() == digest:
                return blocks
        return None

    def publish(self, snapshot: str, made: _Made) -> Published:
        """Make an AMI of a machine image's snapshot; return what there is then."""
        if self.plan.artefact.kind == "volume":
            return self._volume(snapshot, made.gib * GIB)
        with self.events.stage("image", "Make an AMI of it"):
            image = ebs.register(
                snapshot,
                name=self.name,
                platform=self.plan.platform,
                boot=made.boot,
                stamp=self.stamp,
                events=self.events,
                region=self.region,
                tpm=made.tpm,
            )
        return Published(image=image, snapshots=(Snapshot(id=snapshot, size=made.gib * GIB),))

    def spread(self, there: Published, verdict: Verdict | None) -> dict[str, Published]:
        """Copy, share and warm what is there; say of all of it that it stays, and return where it is."""
        verified, made = verdict.verified_at if verdict else "", (self.settings, self.stamp, self.name, self.events)
        if there.image:
            amis = Amis(*made)
            return amis.spread(self.region, amis.wait(self.region, there.image), verified=verified)
        volume = {"SnapshotId": there.snapshots[0].id, "VolumeSize": there.snapshots[0].size // GIB}
        return Volumes(*made).spread(self.region, volume, verified=verified)

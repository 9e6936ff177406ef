"""The EBS publisher: a disk that was built on this machine becomes an EBS snapshot, and an AMI, without any instance.

The disk lies in the cache until AWS has all of it, so that a run which was killed goes on with the upload. What is in
AWS already, its tags say. Only what differs from a parent snapshot is sent: the one that the user names, the newest
that was made under the same name, or that of the base AMI.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, override

from parbake import aws
from parbake.aws import ebs, encryption
from parbake.aws.tags import ARTEFACT
from parbake.bakefile import AwsSection
from parbake.builders import Disk, Publisher, earlier
from parbake.builders.ec2.image import Amis, published
from parbake.builders.ec2.volume import Volumes, refuse
from parbake.coldstart.trace import load, save
from parbake.core import atomic, sealed
from parbake.core.blocks import BlockList
from parbake.core.claim import Claim, Notes
from parbake.core.errors import DiskFull, EnvironmentProblem, InputError
from parbake.core.events import Events
from parbake.core.files import read_file
from parbake.core.model import GIB, MIB, Plan, Published, Snapshot, Verdict
from parbake.core.workspace import (
    cache_folder,
    lock,
    part_of,
    publish,
    remove_leftovers,
    remove_tree,
    room_for,
    work_folder,
)
from parbake.machine.disk import block_list

_DISK, _MADE, _TRACE, _BASE = "disk.raw", "made.json", "trace", "base.blocks"
_INHERITED = "inherited.blocks"


@dataclass(frozen=True, slots=True)
class _Kept:
    """A disk that waits in ``folder`` to be sent, and what registering it as an AMI takes."""

    folder: Path
    sealed: tuple[str, ...]
    traits: ebs.Traits
    base: ebs.ParentSnapshot | None = None
    inherited: Mapping[int, bytes] = field(default_factory=dict)
    parent: str = ""

    @property
    def disk(self) -> Path:
        return self.folder / _DISK

    @property
    def gib(self) -> int:
        """The size of volumes made from it."""
        return -(-self.disk.stat().st_size // GIB)


class EbsPublisher(Publisher):
    """Sends disks to EC2. ``fresh`` sends what exists already; ``lists`` is a folder with lists of blocks."""

    def __init__(self, settings: AwsSection, lists: Path, *, fresh: bool = False) -> None:
        self._settings, self._lists, self._fresh = settings, lists, fresh

    @property
    def _region(self) -> str:
        return aws.client("ec2", self._settings.region or "").region

    @override
    def disk_plan(self, plan: Plan) -> Plan:
        """Return the plan for the disk that is built here: raw, and of whole GiB as volumes are. Raises InputError."""
        refuse(plan, self._settings)
        artefact = plan.artefact.model_copy(update={"format": "raw", "encrypted": False, "kms_key": ""})
        return plan.model_copy(update={"artefact": artefact, "size": -(-plan.size // GIB) * GIB})

    @override
    def base(self, plan: Plan, events: Events) -> Path | None:
        """Return the root disk of the base AMI, fetched once. Raises AwsError, AwsNotFound, AwsNoAccess."""
        return base_of(plan.base.identity, self._region, events).path if plan.base.kind == "ami" else None

    @override
    @contextmanager
    def opened(self, plan: Plan, events: Events, *, keep: bool = False, claim: Claim) -> Iterator[EbsShipment]:
        """Open the shipment of a plan. The folder of its disk, in the cache, outlives the run."""
        uploads = part_of(cache_folder(), "uploads")
        remove_leftovers(uploads)
        key = plan.key
        with (
            lock(uploads / f"{key}.lock", what=f"the upload of {key[:12]}"),
            work_folder(uploads, key[:12], keep=keep) as work,
        ):
            if keep:
                events.note(f"the work folder stays: {work}")
            if self._fresh:
                remove_tree(uploads / key)
                if notes := claim.notes(self._region):
                    ebs.abandon(notes, self._region)
            yield EbsShipment(
                self._settings, plan, self._region, events, self._lists, uploads / key, work, claim, fresh=self._fresh
            )


def kept_files(folder: Path) -> list[str]:
    """Return what is in the folder of a disk that waits to be sent: a run that goes on with it wants all unchanged."""
    return [name for name in (_DISK, _MADE, _BASE, _TRACE, _INHERITED) if (folder / name).exists()]


def base_of(ami: str, region: str, events: Events) -> ebs.FetchedSnapshot:
    """Return the root disk of an AMI, fetched once; what an AMI holds never changes."""
    folder = part_of(cache_folder(), "amis")
    path, about = folder / f"{ami}.raw", folder / f"{ami}.json"
    with lock(folder / f"{ami}.lock", what=f"the disk of {ami}"):
        if found := _fetched(path, about, events):
            return found
        path.unlink(missing_ok=True)
        with events.stage("fetch", f"Fetch the base {ami}"):
            fetched = ebs.fetch(ami, path, events, region=region)
        atomic.replace(about, json.dumps({"snapshot": fetched.snapshot}))
        sealed.seal(path, f"{fetched.snapshot} {fetched.blocks.digest()}")
    return fetched


def _fetched(path: Path, about: Path, events: Events) -> ebs.FetchedSnapshot | None:
    """Return the disk of an AMI that an earlier run has fetched, where its bytes are still those."""
    if not path.exists():
        return None
    with suppress(OSError, ValueError, KeyError, TypeError, InputError):
        snapshot = json.loads(read_file(about, MIB))["snapshot"]
        blocks = block_list(path, events)
        if sealed.is_sealed(path, f"{snapshot} {blocks.digest()}"):
            return ebs.FetchedSnapshot(path, snapshot, blocks)
    events.warn(f"{path} has no seal of this user's key: it is fetched anew")
    return None


@dataclass
class EbsShipment:
    """What one run does in AWS. ``fresh``: one of the plan exists already, and the name of an AMI has to be new.

    ``sent`` is what this run has sent of the disk: all of it.
    """

    settings: AwsSection
    plan: Plan
    region: str
    events: Events
    lists: Path
    folder: Path
    work: Path
    claim: Claim
    fresh: bool = False
    sent: BlockList | None = None

    def fetch(self, there: Published) -> Disk:
        """Read the snapshot back: nothing of it can change any more."""
        with self.events.stage("fetch", f"Fetch {there.image or there.snapshots[0].id}"):
            fetched = ebs.fetch(there.snapshots[0].id, self.work / _DISK, self.events, region=self.region)
        return Disk(fetched.path, final=True, blocks=fetched.blocks)

    @property
    def _notes(self) -> Notes | None:
        return self.claim.notes(self.region)

    def kept(self) -> Disk | None:
        """Return the disk that an earlier run has made. It must not change any more: AWS may have parts of it."""
        if not sealed.is_bound(self.folder, kept_files(self.folder)) or (made := self._made()) is None:
            return None  # there is none, or it was not made here: the cache is a copy, or others write to it
        trace = self.folder / _TRACE
        found = load(trace) if trace.exists() else None
        return Disk(made.disk, made.sealed, parent=made.parent, trace=found, final=True)

    def _made(self) -> _Kept | None:
        try:
            saved = json.loads((self.folder / _MADE).read_text())
            base = saved["base"] and ebs.ParentSnapshot(saved["base"], BlockList.read(self.folder / _BASE))
            same = self.folder / _INHERITED
            inherited = BlockList.read(same).blocks if same.exists() else {}
            traits = ebs.Traits.read(saved["traits"])
            return _Kept(self.folder, tuple(saved["sealed"]), traits, base or None, inherited, str(saved["parent"]))
        except (FileNotFoundError, ValueError, KeyError, TypeError, InputError):
            return None

    def keep(self, disk: Disk) -> Disk:
        """Move the disk into the folder of the shipment, with all that is to be known of it."""
        base, traits = None, ebs.Traits()
        if self.plan.base.kind == "ami":
            base = base_of(self.plan.base.identity, self.region, self.events)
            traits = ebs.traits_of(self.plan.base.identity, self.region, self.events)
        if self.plan.artefact.kind == "machine-image" and not traits.boot:
            traits = replace(traits, boot=ebs.boot_mode(disk.path, self.plan.platform))
        remove_tree(self.folder)
        draft = self.work / "made"
        with room_for(self.folder):
            draft.mkdir()
            disk.path.rename(draft / _DISK)
            if base:
                base.blocks.write(draft / _BASE)
            if disk.trace:
                save(disk.trace, draft / _TRACE)
            if disk.inherited:
                BlockList((draft / _DISK).stat().st_size, disk.inherited).write(draft / _INHERITED)
            saved = {
                "sealed": disk.sealed,
                "traits": traits.to_json(),
                "base": base.snapshot if base else "",
                "parent": disk.parent,
            }
            (draft / _MADE).write_text(json.dumps(saved))
            publish(draft, self.folder)
            sealed.bind(self.folder, kept_files(self.folder))
        return replace(disk, path=self.folder / _DISK, final=True)

    def send(self, disk: Disk) -> tuple[Published, BlockList]:
        """Write the snapshot, and make an AMI of a machine image's.

        Raises AwsError, AwsNotFound, AwsNoAccess, AwsLimit, InputError.
        """
        made = self._made()
        assert made, "keep comes before send"
        assert made.disk == disk.path
        traits = made.traits.with_snapshots(self._further(made.traits))  # what AWS may refuse comes first
        with self.events.stage("upload", "Write the snapshot"):
            sent = self._upload(made)
        self.sent = sent.blocks
        return self._publish(sent.snapshot, made.gib, traits), sent.blocks

    def finish(self, there: Published, verdict: Verdict | None) -> dict[str, Published]:
        """Copy, share and warm what is there; say of all of it that it stays, and return where it is."""
        published = self._spread(there, verdict)
        self._retire()
        remove_tree(self.folder)
        sealed.loosen(self.folder)
        if notes := self._notes:
            notes.read()
            notes.forget()
        return published

    def _retire(self) -> None:
        """Let the next bake of this name go on with the disk, where it can change one in place."""
        plan, disk = self.plan, self.folder / _DISK
        if self.sent is None or plan.artefact.mounted or plan.keep_layers:
            return
        if sealed.is_bound(self.folder, kept_files(self.folder)):
            with suppress(OSError, DiskFull, EnvironmentProblem):  # it spares time, nothing more
                earlier.keep(disk, plan, self.sent.digest(), cache_folder())

    @property
    def name(self) -> str:
        """The name of the snapshot or AMI."""
        return f"{self.plan.name}-{self.plan.key[:12]}" + (f"-{self.claim.run}" if self.fresh else "")

    @property
    def stamp(self) -> aws.Stamp:
        """What tags say of this run."""
        # Each run has tokens of its own: tags say when it began, and no token is good for another request.
        return aws.Stamp(self.plan.key, self.claim.run, self.plan.name, 12.0, self.settings.tags, self.claim.began)

    def existing(self) -> Published | None:
        """Return what an earlier run has finished for this plan, the newest; or sent, on a machine that has died."""
        return self._done() or self._sent_elsewhere()

    def _done(self) -> Published | None:
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

    def _sent_elsewhere(self) -> Published | None:
        """Return what a machine that has died since had sent completely: AWS's bytes count, and are verified again."""
        notes = self._notes
        journal = notes and ebs.complete_elsewhere(notes, self.region, self.events)
        if not notes or not journal or (journal.completed_by == notes.holder and self._made()):
            return None  # what is kept here is what was sent
        self.events.note(f"continuing with {journal.snapshot}, which another machine has uploaded")
        gib = int(journal.start["gib"])
        if self.plan.artefact.kind == "volume":
            return self._volume(journal.snapshot, gib * GIB)
        traits = ebs.Traits()
        if self.plan.base.kind == "ami":
            traits = ebs.traits_of(self.plan.base.identity, self.region, self.events)
        traits = replace(traits, boot=str(journal.start["about"]["boot"]))
        return self._publish(journal.snapshot, gib, traits.with_snapshots(self._further(traits)))

    @staticmethod
    def _volume(snapshot: str, size: int) -> Published:
        return Published(snapshots=(Snapshot(id=snapshot, size=size),))

    def _further(self, traits: ebs.Traits) -> dict[str, str]:
        """Return copies of the base's further disks by their originals: what an AMI is made of has to be ours."""
        artefact = self.plan.artefact
        return {
            snapshot: ebs.copy(
                snapshot,
                self.region,
                self.region,
                stamp=self.stamp,
                name=self.name,
                encrypted=artefact.encrypted,
                kms_key=artefact.kms_key,
                events=self.events,
            )
            for snapshot in traits.snapshots()
        }

    def _upload(self, made: _Kept) -> ebs.UploadResult:
        """Make sure of the snapshot, incremental where there is a parent."""
        request = ebs.UploadRequest(
            path=made.disk,
            journal=made.folder / "upload",
            stamp=self.stamp,
            name=self.name,
            region=self.region,
            parent=begun[0] if (begun := self._begun_on(made)) else self._parent(made),
            encrypted=self.plan.artefact.encrypted,
            kms_key=self.plan.artefact.kms_key,
            shared=self._notes,
            about={"boot": made.traits.boot},
            inherited=made.inherited,
        )
        sent = ebs.upload(request, self.events)
        if request.parent:
            self.events.note(f"{sent.changed} blocks of 512 KiB differ from {request.parent.snapshot}")
        return sent

    def _begun_on(self, made: _Kept) -> tuple[ebs.ParentSnapshot | None, ...]:
        """Return the parent, if any, of the snapshot that another machine has started; nothing if none was started."""
        journal = ebs.Journal.read(self._notes) if self._notes else None
        if journal is None or "parent" not in journal.start:
            return ()
        parent = str(journal.start["parent"])
        if not parent:
            return (None,)
        found = ebs.completed(parent, self.region)
        if found is None:
            return ()
        blocks = self._list(found) or ebs.blocks_of(parent, made.disk, self.events, region=self.region)
        return (ebs.ParentSnapshot(parent, blocks),)

    def _parent(self, made: _Kept) -> ebs.ParentSnapshot | None:
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
            if self._encryption.by_default and not found.get("Encrypted"):
                raise InputError(
                    f"{self.region} encrypts snapshots by default, and the parent {named} is not encrypted",
                    hint="remove `aws.parent_snapshot`, or name an encrypted copy of it",
                )
            blocks = self._list(found) or ebs.blocks_of(named, made.disk, self.events, region=self.region)
            return ebs.ParentSnapshot(named, blocks)
        filters = aws.mine(managed=ARTEFACT)  # what is temporary, a clean-up may take at any time
        filters += [{"Name": "tag-key", "Values": [ebs.BLOCKS_TAG]}, {"Name": "status", "Values": ["completed"]}]
        ours = re.compile(re.escape(self.plan.name) + "-[0-9a-f]{12}(-[0-9a-f]{12})?")
        found = ec2.pages("describe_snapshots", "Snapshots", OwnerIds=["self"], Filters=filters)
        of_name = [each for each in found if ours.fullmatch(aws.as_dict(each).get("Name", ""))]
        of_name.sort(key=lambda each: str(each["StartTime"]), reverse=True)
        # Where it may not be asked whether the account encrypts by default, the newest snapshot tells.
        encrypted = self._encrypts(of_name[0] if of_name else {})
        for snapshot in of_name:
            if int(snapshot["VolumeSize"]) <= gib and self._locked_alike(snapshot, encrypted=encrypted):
                known = self._list(snapshot)
                if known is not None:
                    return ebs.ParentSnapshot(str(snapshot["SnapshotId"]), known)
        if of_name:
            self.events.note(
                f"none of {len(of_name)} earlier snapshots can be built on: each is larger, encrypted in another way "
                "or with another key, or the list of its blocks is not here"
            )
        return self._base_of(made, gib, encrypted=encrypted)

    def _base_of(self, made: _Kept, gib: int, *, encrypted: bool) -> ebs.ParentSnapshot | None:
        """Return the base AMI's snapshot where it is this account's."""
        if made.base is None:
            return None
        wanted = [{"Name": "snapshot-id", "Values": [made.base.snapshot]}]
        for snapshot in aws.client("ec2", self.region).pages(
            "describe_snapshots", "Snapshots", OwnerIds=["self"], Filters=wanted
        ):
            if int(snapshot["VolumeSize"]) <= gib and self._locked_alike(snapshot, encrypted=encrypted):
                return made.base
        return None

    def _encrypts(self, newest: Mapping[str, Any]) -> bool:
        """Whether what is made now will be encrypted: as the Bakefile says, or the account for all that is made."""
        if self.plan.artefact.encrypted or self._encryption.by_default:
            return True
        return self._encryption.by_default is None and bool(newest.get("Encrypted"))

    def _locked_alike(self, snapshot: Mapping[str, Any], *, encrypted: bool) -> bool:
        """Whether a child of a snapshot is encrypted as required, and with the same key: the parent decides that."""
        if bool(snapshot.get("Encrypted")) != encrypted:
            return False
        return not encrypted or not self._key or snapshot.get("KmsKeyId") == self._key

    @cached_property
    def _encryption(self) -> encryption.Encryption:
        return encryption.ask(self.region)

    @cached_property
    def _key(self) -> str:
        """The ARN of the key that encrypts what has no parent; empty where that may not be asked."""
        if named := self.plan.artefact.kms_key:
            return ebs.key_arn(named, self.region)
        found = self._encryption.key
        if found.startswith("arn:") or not found:
            return found
        key = encryption.key(found, self.region)
        return key.arn if key else ""

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

    def _publish(self, snapshot: str, gib: int, traits: ebs.Traits) -> Published:
        """Make an AMI of a machine image's snapshot; return what there is then."""
        if self.plan.artefact.kind == "volume":
            return self._volume(snapshot, gib * GIB)
        with self.events.stage("image", "Make an AMI of it"):
            image = ebs.register(
                snapshot,
                name=self.name,
                platform=self.plan.platform,
                traits=traits,
                stamp=self.stamp,
                events=self.events,
                region=self.region,
            )
        return Published(image=image, snapshots=(Snapshot(id=snapshot, size=gib * GIB),))

    def _spread(self, there: Published, verdict: Verdict | None) -> dict[str, Published]:
        verified, made = verdict.verified_at if verdict else "", (self.settings, self.stamp, self.name, self.events)
        if there.image:
            amis = Amis(*made)
            return amis.spread(self.region, amis.wait(self.region, there.image), verified=verified)
        volume = {"SnapshotId": there.snapshots[0].id, "VolumeSize": there.snapshots[0].size // GIB}
        return Volumes(*made).spread(self.region, volume, verified=verified)

"""The snapshot of a data volume: made once from the stopped builder's second disk, copied, shared.

Every step is "make sure that", as for AMIs (``image.py``), and the snapshot is tagged as temporary until all is done.
Sources: EC2 API reference, CreateSnapshot (it takes no client token: what is there is looked up by its tags first).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from parbake import aws
from parbake.aws import ebs
from parbake.bakefile import AwsSection
from parbake.builders.ec2 import bottlerocket
from parbake.core.errors import AwsNotFound, BakeFailed, InputError
from parbake.core.events import Events
from parbake.core.model import GIB, Family, Plan, Published, Snapshot

_WAIT = 6 * 3600.0  # seconds: the first snapshot of a large volume takes hours
_HINT = "the snapshot is still being made: run the same command again to keep waiting for it"


def refuse(plan: Plan, settings: AwsSection) -> None:
    """Refuse what AWS does with AMIs alone, before any work. Raises InputError."""
    if plan.artefact.kind != "volume":
        return
    if not all(share.isdigit() for share in settings.share_with):
        raise InputError("AWS shares snapshots with accounts only", hint="name accounts in `aws.share_with`")
    if settings.deprecate_after:
        raise InputError("only AMIs can be deprecated, not snapshots", hint="remove `aws.deprecate_after`")


def data_device(source: aws.SourceImage) -> str:
    """Return a name for the second disk that the AMI's own disks leave free; Bottlerocket's is there already."""
    if source.is_bottlerocket:
        return bottlerocket.DEVICE
    taken = {str(each["DeviceName"]) for each in source.raw.get("BlockDeviceMappings", [])} | {source.root_device}
    stem = "/dev/xvd" if source.root_device.startswith("/dev/xvd") else "/dev/sd"
    return next(name for name in (f"{stem}{letter}" for letter in "bcdefghijklmnop") if name not in taken)


@dataclass(frozen=True, slots=True)
class Volumes:
    """Makes sure of volumes' snapshots for one Bakefile's ``aws`` section; ``device`` is the second disk's name.

    ``family`` is whose nodes alone can take it (empty: any).
    """

    settings: AwsSection
    stamp: aws.Stamp
    name: str
    events: Events
    device: str = ""
    family: Family = ""

    def id_of(self, snapshot: Mapping[str, Any]) -> str:
        """Return the id of a described snapshot."""
        return str(snapshot["SnapshotId"])

    def published(self, snapshot: Mapping[str, Any]) -> Published:
        """Return a snapshot as records hold it."""
        held = Snapshot(id=self.id_of(snapshot), size=int(snapshot["VolumeSize"]) * GIB)
        return Published(snapshots=(held,), family=self.family)

    def find(self, region: str) -> dict[str, Any] | None:
        """Return the snapshot of this plan, pending or completed, the newest; those that failed are removed."""
        ec2, usable = aws.client("ec2", region), []
        for snapshot in ec2.pages(
            "describe_snapshots", "Snapshots", OwnerIds=["self"], Filters=aws.mine(key=self.stamp.key)
        ):
            if snapshot["State"] == "error":
                ec2.delete_snapshot(SnapshotId=snapshot["SnapshotId"])
            else:
                usable.append(snapshot)
        return max(usable, key=lambda each: str(each["StartTime"]), default=None)

    def create(self, region: str, instance: str) -> str:
        """Make the snapshot of a stopped instance's second disk."""
        ec2 = aws.client("ec2", region)
        [described] = ec2.describe_instances(InstanceIds=[instance])["Reservations"][0]["Instances"]
        volumes = [
            each["Ebs"]["VolumeId"] for each in described["BlockDeviceMappings"] if each["DeviceName"] == self.device
        ]
        if not volumes:
            raise BakeFailed(f"{instance} has no disk at {self.device} any more", hint="run the same command again")
        tags = self.stamp.tags("snapshot", name=self.name)
        request: dict[str, Any] = {"VolumeId": volumes[0], "Description": f"parbake {self.stamp.key[:12]}"}
        request["TagSpecifications"] = aws.specifications(tags, "snapshot")
        return str(aws.when_known(lambda: ec2.create_snapshot(**request), volumes[0])["SnapshotId"])

    def wait(self, region: str, snapshot: str) -> dict[str, Any]:
        """Wait until a snapshot is completed, with progress; return its description."""
        what = f"Wait for {snapshot} in {region}"
        aws.wait(what, lambda: ebs.look(snapshot, region), seconds=_WAIT, events=self.events, hint=_HINT)
        found = aws.client("ec2", region).describe_snapshots(SnapshotIds=[snapshot])["Snapshots"]
        if not found:
            raise AwsNotFound(f"there is no snapshot {snapshot} in {region}")
        described: dict[str, Any] = found[0]
        return described

    def spread(self, home: str, snapshot: Mapping[str, Any], *, verified: str) -> dict[str, Published]:
        """Copy, share, warm; then say of every snapshot that it stays; return them by region, the home's first."""
        there = self.published(snapshot)
        places = {home: there}
        for region in self.settings.copy_to:
            places[region] = self._copied(there, home, region)
        for region, each in places.items():
            places[region] = self._finished(each, region)
        for region, each in reversed(list(places.items())):
            ebs.mark_permanent(each.snapshots[0].id, region, verified=verified, events=self.events)
        return places

    def bring(self, there: Published, home: str, region: str, *, verified: str) -> Published:
        """Make sure that one more region has a copy of a snapshot that is done, shared as the settings say."""
        made = self._finished(self._copied(there, home, region), region)
        ebs.mark_permanent(made.snapshots[0].id, region, verified=verified, events=self.events)
        return made

    def share(self, there: Published, region: str) -> Published:
        """Let those of the settings make volumes of what is in a region."""
        others = self.settings.share_with
        if others:
            ebs.share(there.snapshots[0].id, region, others)
        return there.model_copy(update={"shared_with": tuple(dict.fromkeys((*there.shared_with, *others)))})

    def _copied(self, there: Published, home: str, region: str) -> Published:
        with self.events.stage("copy", f"Copy to {region}"):
            copied = ebs.copy(
                there.snapshots[0].id,
                home,
                region,
                stamp=self.stamp,
                name=self.name,
                kms_key=self.settings.key_in(region),
                minutes=self.settings.copy_minutes,
                events=self.events,
            )
        held = there.snapshots[0].model_copy(update={"id": copied})
        return there.model_copy(update={"snapshots": (held,), "account": "", "shared_with": ()})

    def _finished(self, there: Published, region: str) -> Published:
        if self.settings.fast_at_bake:
            ebs.fast_restore.enable(self.settings.fast_snapshot_restore, region, there.snapshots, self.events)
        return self.share(there, region)

    def promote(self, region: str, snapshot: Mapping[str, Any], *, verified: str) -> None:
        """Say that a snapshot is what the run was for: no clean-up takes it any more."""
        ebs.mark_permanent(self.id_of(snapshot), region, verified=verified, events=self.events)

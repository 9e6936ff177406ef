"""The AMI of a bake: made once from the stopped builder, copied, shared, dated. Every step is "make sure that".

Until all of it is done and verified, the AMI and its snapshots are tagged as temporary: a run that was cut off is
finished by the next one, or cleaned away. Sources: EC2 API reference, CreateImage, CopyImage, ModifyImageAttribute,
EnableImageDeprecation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from parbake import aws
from parbake.aws.ebs import fast_restore
from parbake.aws.leftovers import remove_image
from parbake.bakefile import AwsSection
from parbake.core.errors import AwsError, AwsNotFound
from parbake.core.events import Events
from parbake.core.model import GIB, Published, Snapshot

_WAIT = 6 * 3600.0  # seconds: the first snapshot of a large volume takes hours
_HINT = "the AMI is still being made: run the same command again to keep waiting for it"


@dataclass(frozen=True, slots=True)
class Amis:
    """Makes sure of AMIs for one Bakefile's ``aws`` section; ``fresh``: copies of an earlier AMI do not count."""

    settings: AwsSection
    stamp: aws.Stamp
    name: str
    events: Events
    fresh: bool = False

    def find(self, region: str) -> dict[str, Any] | None:
        """Return the AMI of this plan, whatever its state, the newest.

        One that failed is removed on the way, with its snapshots: its name is needed.
        """
        ec2 = aws.client("ec2", region)
        filters = aws.mine(key=self.stamp.key)
        usable = []
        for image in ec2.pages("describe_images", "Images", Owners=["self"], Filters=filters):
            if image["State"] in {"failed", "error", "invalid"}:
                remove_image(ec2, image)
            elif image["State"] in {"pending", "available"}:
                usable.append(image)
        return max(usable, key=lambda each: str(each.get("CreationDate", "")), default=None)

    def id_of(self, image: Mapping[str, Any]) -> str:
        """Return the id of a described AMI."""
        return str(image["ImageId"])

    def published(self, image: Mapping[str, Any]) -> Published:
        """Return an AMI as records hold it."""
        return published(image)

    def create(self, region: str, instance: str) -> str:
        """Make the AMI of a stopped instance; one of the same name that another run made meanwhile is taken."""
        ec2 = aws.client("ec2", region)
        try:
            return str(
                ec2.create_image(
                    InstanceId=instance,
                    Name=self.name,
                    Description=f"parbake {self.stamp.key[:12]}",
                    TagSpecifications=self._tagged(),
                )["ImageId"]
            )
        except AwsError as error:
            if error.code != "InvalidAMIName.Duplicate":
                raise
            found = aws.named(ec2, self.name, self.events)
            if aws.as_dict(found).get(aws.KEY) == self.stamp.key:
                return str(found["ImageId"])
            hint = "an AMI of that name exists and is not parbake's: rename it, or change `name` in the Bakefile"
            raise AwsError(error.message, code=error.code, hint=hint) from error

    def _tagged(self) -> list[dict[str, Any]]:
        return aws.specifications(self.stamp.tags("ami", name=self.name), "image", "snapshot")

    def wait(self, region: str, image: str) -> dict[str, Any]:
        """Wait until an AMI is available, with the progress of its snapshots; return its description."""
        ec2 = aws.client("ec2", region)

        def look() -> aws.Observation:
            found = ec2.describe_images(ImageIds=[image])["Images"]
            if not found:
                raise AwsNotFound(f"there is no AMI {image} in {region}")
            state = found[0]["State"]
            reason = found[0].get("StateReason", {}).get("Message", "")
            failed = f"{image} is {state}: {reason}" if state in {"failed", "error", "invalid", "deregistered"} else ""
            return aws.Observation(state == "available", state, self._percent(ec2, found[0]), failed, found[0])

        shown = f"Wait for {image} in {region}"
        found: dict[str, Any] = aws.wait(shown, look, seconds=_WAIT, events=self.events, hint=_HINT)
        return found

    def _percent(self, ec2: aws.Client, image: Mapping[str, Any]) -> int | None:
        ids = [each.id for each in snapshots_of(image)]
        if not ids:
            return None
        try:
            snapshots = ec2.describe_snapshots(SnapshotIds=ids)["Snapshots"]
        except AwsNotFound:
            if image["State"] == "available":
                raise  # what comes next names them
            return None
        parts = [str(each.get("Progress") or "0").rstrip("%") for each in snapshots]
        return sum(int(part) for part in parts if part.isdigit()) // max(1, len(parts))

    def copy(self, source: str, home: str, region: str) -> str:
        """Make sure that another region has a copy; return its id.

        Where that region's role is of another account, the copy is that account's, and the AMI is shared with it.
        """
        found = None if self.fresh else self.find(region)
        if found:
            return str(found["ImageId"])
        if other := aws.stranger(region, home):
            self._lend(source, home, other)
        request: dict[str, Any] = {
            "Name": self.name,
            "SourceImageId": source,
            "SourceRegion": home,
            # With the run in it: the token of a copy that failed and is gone would bring back the same id.
            "ClientToken": aws.token(self.stamp.key, self.stamp.run, source, region),
            "TagSpecifications": self._tagged(),
        }
        if minutes := self.settings.copy_minutes:
            request["SnapshotCopyCompletionDurationMinutes"] = minutes
        if self.settings.encrypted:
            request["Encrypted"] = True
            if key := self.settings.key_in(region):
                request["KmsKeyId"] = key
        return str(aws.client("ec2", region).copy_image(**request)["ImageId"])

    def _lend(self, source: str, home: str, account: str) -> None:
        """Let an account read an AMI and its snapshots: AWS copies what the account that asks may read."""
        ec2 = aws.client("ec2", home)
        described = ec2.describe_images(ImageIds=[source])["Images"]
        _share(ec2, source, [each.id for image in described for each in snapshots_of(image)], [account])

    def finish(self, region: str, image: Mapping[str, Any]) -> None:
        """Make sure of what becomes of an available AMI: IMDSv2 only, shares, deprecation, fast snapshot restore."""
        ec2, identity = aws.client("ec2", region), str(image["ImageId"])
        snapshots = [each.id for each in snapshots_of(image)]
        if image.get("ImdsSupport") != "v2.0":
            ec2.modify_image_attribute(ImageId=identity, ImdsSupport={"Value": "v2.0"})
        if self.settings.share_with:
            _share(ec2, identity, snapshots, self.settings.share_with)
        if self.settings.deprecate_after:
            end = datetime.now(UTC) + timedelta(days=self.settings.deprecate_after)
            ec2.enable_image_deprecation(ImageId=identity, DeprecateAt=end.replace(second=0, microsecond=0))
        if self.settings.fast_at_bake:
            fast_restore.enable(self.settings.fast_snapshot_restore, region, snapshots_of(image), self.events)

    def spread(self, home: str, image: Mapping[str, Any], *, verified: str) -> dict[str, Published]:
        """Copy, share, date; then say of every AMI that it is done; return them by region, the home's first.

        Copies come first there, so that the home region's is the last word.
        """
        places = {home: image}
        copies = {region: self.copy(str(image["ImageId"]), home, region) for region in self.settings.copy_to}
        for region, made in copies.items():
            with self.events.stage("copy", f"Copy to {region}"):
                places[region] = self.wait(region, made)
        for region, each in places.items():
            self.finish(region, each)
        for region, each in reversed(list(places.items())):
            self.promote(region, each, verified=verified)
        return {region: self._shared(published(each)) for region, each in places.items()}

    def bring(self, there: Published, home: str, region: str, *, verified: str) -> Published:
        """Make sure that one more region has a copy of an AMI that is done, shared and dated as the settings say."""
        made = self.copy(there.image, home, region)
        with self.events.stage("copy", f"Copy to {region}"):
            image = self.wait(region, made)
        self.finish(region, image)
        self.promote(region, image, verified=verified)
        return self._shared(published(image))

    def share(self, there: Published, region: str) -> Published:
        """Let those of the settings launch what is in a region."""
        _share(aws.client("ec2", region), there.image, [each.id for each in there.snapshots], self.settings.share_with)
        return self._shared(there)

    def _shared(self, there: Published) -> Published:
        others = (*there.shared_with, *self.settings.share_with)
        return there.model_copy(update={"shared_with": tuple(dict.fromkeys(others))})

    def promote(self, region: str, image: Mapping[str, Any], *, verified: str) -> None:
        """Say that an AMI and its snapshots are what the run was for: no clean-up takes them any more."""
        tags = self.stamp.tags("ami", kind=aws.ARTEFACT, name=self.name)
        if verified:
            tags[aws.VERIFIED] = verified
        ids = [str(image["ImageId"]), *(each.id for each in snapshots_of(image))]
        aws.mark(aws.client("ec2", region), ids, tags, self.events)


def _share(ec2: aws.Client, image: str, snapshots: Sequence[str], shares: Sequence[str]) -> None:
    """Let others launch an AMI; accounts may read its snapshots as well."""
    ec2.modify_image_attribute(ImageId=image, LaunchPermission={"Add": [_permission(each) for each in shares]})
    accounts = [each for each in shares if each.isdigit()]
    for snapshot in snapshots if accounts else ():
        ec2.modify_snapshot_attribute(
            SnapshotId=snapshot, Attribute="createVolumePermission", OperationType="add", UserIds=accounts
        )


def _permission(share: str) -> dict[str, str]:
    if share.isdigit():
        return {"UserId": share}
    return {"OrganizationArn": share} if ":organization/" in share else {"OrganizationalUnitArn": share}


def snapshots_of(image: Mapping[str, Any]) -> tuple[Snapshot, ...]:
    """Return the snapshots of an AMI, the root's first."""
    root = image.get("RootDeviceName", "")
    found = [
        Snapshot(
            id=each["Ebs"]["SnapshotId"], size=int(each["Ebs"].get("VolumeSize", 0)) * GIB, device=each["DeviceName"]
        )
        for each in image.get("BlockDeviceMappings", [])
        if each.get("Ebs", {}).get("SnapshotId")
    ]
    return tuple(sorted(found, key=lambda each: (each.device != root, each.device)))


def published(image: Mapping[str, Any]) -> Published:
    """Return an AMI as records hold it."""
    return Published(
        image=str(image["ImageId"]), snapshots=snapshots_of(image), account=str(image.get("OwnerId") or "")
    )

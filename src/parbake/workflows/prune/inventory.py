"""What parbake has published in EC2, and the two steps by which it goes. Whose a resource is follows from its tags.

Facts: EC2 API reference, EnableImageDeprecation, DeregisterImage, DeleteSnapshot (refused while an image uses it).
Deleting what is gone already is not an error, so that a killed run is finished by the next.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

from parbake.aws import client, mine
from parbake.aws.ebs import fast_restore
from parbake.aws.images import guard_of
from parbake.aws.tags import ARTEFACT, KEY, as_dict, as_list
from parbake.core.errors import AwsError, AwsNotFound
from parbake.core.model import GIB
from parbake.core.timestamps import timestamp
from parbake.rollouts.protocol import OWNER
from parbake.workflows.prune.decide import Item

RETIRED = f"{OWNER}:retired"
"""The tag with the time at which an artefact was retired, RFC 3339 in UTC."""
_KEYED = re.compile(r"-[0-9a-f]{12}(\.\w+)?$")


class PublishedInventory:
    """The published artefacts of one region."""

    def __init__(self, region: str) -> None:
        self.region = region
        self.ec2 = client("ec2", region)

    def items(self) -> tuple[Item, ...]:
        """Return every artefact here: machine images with their snapshots, and snapshots of no image."""
        images = list(
            self.ec2.pages(
                "describe_images", "Images", Owners=["self"], IncludeDeprecated=True, Filters=mine(managed=ARTEFACT)
            )
        )
        snapshots = list(
            self.ec2.pages("describe_snapshots", "Snapshots", OwnerIds=["self"], Filters=mine(managed=ARTEFACT))
        )
        found = [self._image(each) for each in images]
        of_images = {snapshot for item in found for snapshot in item.snapshots}
        volumes = [self._volume(each) for each in snapshots if each["SnapshotId"] not in of_images]
        return (*found, *volumes)

    def retire(self, item: Item) -> None:
        """Deprecate an image, then write down when; nothing that runs is touched."""
        now = datetime.now(UTC)
        with suppress(AwsNotFound):  # gone since it was listed
            if item.id.startswith("ami-"):
                soon = (now + timedelta(minutes=2)).replace(second=0, microsecond=0)  # not in the past, whole minutes
                self.ec2.enable_image_deprecation(ImageId=item.id, DeprecateAt=soon)
            self.ec2.create_tags(Resources=sorted(item.ids), Tags=as_list({RETIRED: timestamp(now)}))

    def restore(self, item: Item) -> None:
        """Take back what ``retire`` did; what is written down goes last, so that a killed run does it again."""
        with suppress(AwsNotFound):
            if item.id.startswith("ami-"):
                self.ec2.disable_image_deprecation(ImageId=item.id)
            self.ec2.delete_tags(Resources=sorted(item.ids), Tags=[{"Key": RETIRED}])

    def remove(self, item: Item) -> None:
        """Remove an artefact: fast snapshot restores off, the image, then snapshots that no other image uses."""
        snapshots = [*item.snapshots, *([item.id] if item.id.startswith("snap-") else [])]
        fast_restore.disable(self.ec2, snapshots)
        if item.id.startswith("ami-"):
            with suppress(AwsNotFound):
                self.ec2.deregister_image(ImageId=item.id)
        for snapshot in snapshots:
            try:
                self.ec2.delete_snapshot(SnapshotId=snapshot)
            except AwsNotFound:
                continue
            except AwsError as error:
                if error.code != "InvalidSnapshot.InUse":  # by another image, which somebody made of it
                    raise

    def _image(self, image: Mapping[str, Any]) -> Item:
        disks = [each["Ebs"] for each in image.get("BlockDeviceMappings", []) if each.get("Ebs", {}).get("SnapshotId")]
        name = str(image.get("Name") or image["ImageId"])
        return Item(
            id=image["ImageId"],
            region=self.region,
            name=name,
            family=f"{_KEYED.sub('', name)} {image.get('Architecture', '')} image",
            created=_time(image.get("CreationDate")) or datetime.now(UTC),
            snapshots=tuple(sorted(each["SnapshotId"] for each in disks)),
            size=sum(int(each.get("VolumeSize", 0)) for each in disks) * GIB,
            retired=_time(as_dict(image).get(RETIRED)),
            guarded=guard_of(image),
            key=as_dict(image).get(KEY, ""),
        )

    def _volume(self, snapshot: Mapping[str, Any]) -> Item:
        tags = as_dict(snapshot)
        name = tags.get("Name") or snapshot["SnapshotId"]
        return Item(
            id=snapshot["SnapshotId"],
            region=self.region,
            name=name,
            family=f"{_KEYED.sub('', name)} volume",
            created=_time(snapshot.get("StartTime")) or datetime.now(UTC),
            size=int(snapshot.get("VolumeSize", 0)) * GIB,
            retired=_time(tags.get(RETIRED)),
            key=tags.get(KEY, ""),
        )


def _time(value: object) -> datetime | None:
    if isinstance(value, datetime):
        return value if value.tzinfo else value.replace(tzinfo=UTC)
    if not isinstance(value, str):
        return None
    with suppress(ValueError):
        return datetime.fromisoformat(value.replace("Z", "+00:00"))
    return None

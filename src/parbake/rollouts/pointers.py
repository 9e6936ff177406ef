"""What a node class can point to instead of an id: a tag that moves from image to image, or a parameter.

The node class stays as it is when an image is promoted. Facts: karpenter.sh documentation "NodeClasses": a term of tags
alone finds images of any account, so ``owner: self`` stands beside them; of several images the newest that is not
deprecated wins; a parameter is read again after some minutes (``ssmParameter``, v1.4), and a wrong one is passed over.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol, override

from parbake.aws import client
from parbake.bakefile.targets import KarpenterTarget
from parbake.core.errors import AwsNotFound, InputError, TargetMoved
from parbake.rollouts.parameter import put
from parbake.rollouts.protocol import OWNER


class Pointer(Protocol):
    """Something in AWS that names one machine image, and that can be moved to another."""

    term: dict[str, Any]
    """The term of a node class that follows it."""
    caution: str
    """What to know when a node class begins to follow it."""

    def __str__(self) -> str: ...

    def image(self) -> str:
        """Return the id of the image that it names; empty when it names none."""
        ...

    def check(self, image: str) -> None:
        """Raise InputError when it cannot name this image."""
        ...

    def move(self, before: str, after: str, artefact: str) -> None:
        """Let it name another image; raises TargetMoved when it names neither of the two."""
        ...


def pointer_of(target: KarpenterTarget, region: str) -> Pointer | None:
    """Return what a target's node class points to; None where it names its image by id."""
    if target.tag:
        return TagPointer(target.tag, region)
    return ParameterPointer(target.parameter, region) if target.parameter else None


def by_preference(images: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sort described images by Karpenter's preference, its choice first."""
    found = sorted(images, key=lambda each: str(each.get("Name", "")))
    found.sort(key=lambda each: str(each.get("CreationDate", "")), reverse=True)
    found.sort(key=lambda each: bool(each.get("DeprecationTime")))
    return found


class TagPointer(Pointer):
    """One tag of machine images of this account, in one region."""

    caution = ""

    def __init__(self, tag: str, region: str) -> None:
        self.key, _, self.value = tag.partition("=")
        self.term = {"tags": {self.key: self.value}, "owner": "self"}
        self.ec2 = client("ec2", region)

    @override
    def __str__(self) -> str:
        return f"tag {self.key}={self.value}"

    @override
    def image(self) -> str:
        """Return the image that Karpenter takes of those that have the tag."""
        return next(iter(self._images()), "")

    @override
    def check(self, image: str) -> None:
        """Raise InputError when the image is another account's: a term with ``owner: self`` would not find it."""
        if not self.ec2.describe_images(Owners=["self"], ImageIds=[image], IncludeDeprecated=True)["Images"]:
            raise InputError(
                f"{image} does not belong to this account, and {self} is looked for with owner: self",
                hint="copy the image into the account of the nodes, or name it by id (remove `tag`)",
            )

    @override
    def move(self, before: str, after: str, artefact: str) -> None:
        """Tag the image, then take the tag from all others: there is one at every moment."""
        del artefact
        tagged = self._images()
        if tagged and tagged[0] not in {before, after}:
            raise TargetMoved(f"{self}: it is on {tagged[0]} now, not on {before or 'no image'}")
        tag = {"Key": self.key, "Value": self.value}
        if after not in tagged:
            self.ec2.create_tags(Resources=[after], Tags=[tag])
        others = [each for each in tagged if each != after]
        if others:
            self.ec2.delete_tags(Resources=others, Tags=[tag])

    def _images(self) -> list[str]:
        """Return the images with the tag, Karpenter's first choice first."""
        filters = [{"Name": f"tag:{self.key}", "Values": [self.value]}]
        found = list(
            self.ec2.pages("describe_images", "Images", Owners=["self"], IncludeDeprecated=True, Filters=filters)
        )
        return [str(each["ImageId"]) for each in by_preference(found)]


class ParameterPointer(Pointer):
    """One parameter of Systems Manager, in one region."""

    def __init__(self, name: str, region: str) -> None:
        self.name = name
        self.term = {"ssmParameter": name}
        self.caution = (
            f"Karpenter sees {self} up to 11 minutes late, silently ignores a wrong value, "
            "and its role needs ssm:GetParameter on it"
        )
        self.ssm = client("ssm", region)

    @override
    def __str__(self) -> str:
        return f"parameter {self.name}"

    @override
    def image(self) -> str:
        try:
            return str(self.ssm.get_parameter(Name=self.name)["Parameter"]["Value"])
        except AwsNotFound:
            return ""

    @override
    def check(self, image: str) -> None:
        """Do nothing: Systems Manager looks at the image when it is put."""
        del image

    @override
    def move(self, before: str, after: str, artefact: str) -> None:
        """Put the image; a parameter that is missing is made, with a data type that lets AWS check the image."""
        now = self.image()
        if now == after:
            return
        if now != before:
            raise TargetMoved(f"{self}: it holds {now or 'nothing'} now, not {before or 'nothing'}")
        more: dict[str, Any] = {} if now else {"Type": "String", "DataType": "aws:ec2:image"}
        description = f"{OWNER}: {artefact}".rstrip(": ")
        more |= {"Description": description, "Overwrite": bool(now)}
        put(self.ssm, str(self), Name=self.name, Value=after, **more)

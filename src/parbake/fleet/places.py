"""Where what a fleet bakes is to be, and how much may happen at once: the keys ``places`` and ``quotas`` of its file.

There is one rule for how places go with what a Bakefile says itself: both hold. Where both name a region, they must
name the same role.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, ValidationError
from pydantic import field_validator as check

from parbake.bakefile import AwsSection, Bakefile
from parbake.bakefile.aws import Share, distinct
from parbake.bakefile.sections import Section, Via
from parbake.bakefile.targets import RoleArn
from parbake.bakefile.values import Region, wrong
from parbake.core.errors import InputError
from parbake.core.roles import Role

if TYPE_CHECKING:
    from parbake.records import Record

_COPIES = 5  # of the 20 copies of snapshots that AWS makes at once for a region (Amazon EBS user guide, "Quotas")


class Place(Section):
    """A region of EC2 that all artefacts are to be in which lie in EC2 at all."""

    region: Region
    """The region. What was baked in another one is copied there."""
    role: RoleArn | None = None
    """The role that copies, perhaps in another account: the copy belongs to that, and is looked after and removed in
    this role. Default: the Bakefile's `aws.role`."""
    share_with: tuple[Share, ...] = ()
    """Accounts (12 digits), organisations and units (ARNs) that may launch what is in this region."""

    @check("share_with")
    @classmethod
    def _once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return distinct(value)


def _place(text: str) -> object:
    return {"region": text}


PlaceText = Annotated[Place, Via(Place, short=_place, short_schema={"type": "string", "examples": ["us-east-1"]})]
AtOnce = Annotated[int, Field(ge=1, le=500)]


class BakesAtOnce(Section):
    """How many cells of each builder are built and baked at once. Default: as many as `concurrency.cells` says."""

    local: AtOnce | None = None
    """Of the builder `local`."""
    qemu: AtOnce | None = None
    """Of the builder `qemu`."""
    ebs: AtOnce | None = None
    """Of the builder `ebs`."""
    ec2: AtOnce | None = None
    """Of the builder `ec2`: each is an instance."""
    packer: AtOnce | None = None
    """Of the builder `packer`: each is an instance."""


class Quotas(Section):
    """Limits that hold over all workers."""

    bakes: BakesAtOnce = Field(default_factory=BakesAtOnce)
    """How many bakes of each builder are under way at once, in a run."""
    copies: Annotated[int, Field(ge=1, le=100)] = _COPIES
    """How many copies are under way at once in each region of `places`, in a run. AWS makes 20 copies of snapshots at
    once for a region, over all that an account does."""
    starts_per_second: Annotated[int, Field(ge=1, le=1000)] | None = None
    """How many bakes may begin in a second, and how many copies in each region: the engine holds them back. It is the
    same for all fleets of an engine. Default: any number."""

    @property
    def by_builder(self) -> dict[str, int]:
        """How many bakes of a builder may run at once; builders without a limit are missing."""
        return self.bakes.model_dump(exclude_none=True)


def are_distinct(places: tuple[Place, ...]) -> tuple[Place, ...]:
    """Check that each region is named once: a region has one copy of an artefact."""
    for region, count in Counter(place.region for place in places).items():
        if count > 1:
            raise wrong(f"{region} is in the list {count} times, and a region has one copy", "name it once")
    return places


def need_agreement(places: Sequence[Place], bakefile: Bakefile) -> None:
    """Raise InputError where the fleet and a Bakefile say different things, or AWS would refuse what both say."""
    aws = bakefile.aws
    for place in places:
        if place.role and place.region == aws.region and place.role != aws.role:
            raise InputError(
                f"it is baked in {place.region}, where nothing is copied, and the fleet's `places` name a role there",
                hint="remove `role` there; `share_with` lets other accounts launch what is in the region",
            )
        if place.region in aws.copy_to:
            own, theirs = aws.copy_roles.get(place.region, aws.role), place.role or aws.role
            if own != theirs:
                raise InputError(
                    f"the copy in {place.region} belongs to {own or 'no role'} by the Bakefile, and to "
                    f"{theirs or 'no role'} by the fleet's `places`",
                    hint="make both say the same, or keep only one of them: copy_to and copy_roles, or places",
                )
        if bakefile.artefact.kind == "volume" and (others := [each for each in place.share_with if not each.isdigit()]):
            raise InputError(
                f"AWS shares snapshots with accounts only, and the fleet's `places` name {others[0]}",
                hint=f"name accounts in `share_with` of {place.region}",
            )
    _need_sense(places, aws)


def _need_sense(places: Sequence[Place], aws: AwsSection) -> None:
    """Raise InputError where the Bakefile's settings do not allow what both say together, such as keys for copies."""
    joined = _joined(places, aws)
    together = {
        "region": aws.region,
        "encrypted": aws.encrypted,
        "kms_key": aws.kms_key,
        "copy_to": joined["copy_to"],
        "share_with": joined["share_with"],
    }
    try:
        AwsSection.model_validate(together, strict=True)
    except ValidationError as error:
        said = error.errors()[0].get("ctx", {})
        raise InputError(
            f"the fleet's `places` conflict with the Bakefile's `aws`: {said.get('message', error)}",
            hint=str(said.get("suggestion", "")),
        ) from error


def _joined(places: Sequence[Place], aws: AwsSection) -> dict[str, Any]:
    """Return the settings of copies and shares that the Bakefile's and the fleet's come to together."""
    copies = [place for place in places if place.region not in {aws.region, *aws.copy_to}]
    shares = dict.fromkeys([*aws.share_with, *(each for place in places for each in place.share_with)])
    return {
        "copy_to": (*aws.copy_to, *(place.region for place in copies)),
        "copy_roles": {**aws.copy_roles, **{place.region: place.role for place in copies if place.role}},
        "share_with": tuple(shares),
    }


def with_places(bakefile: Bakefile, places: Sequence[Place]) -> Bakefile:
    """Return the Bakefile as if it named the fleet's places itself. Raises InputError where it says other things."""
    if not bakefile.traits.in_ec2:
        return bakefile
    need_agreement(places, bakefile)
    return bakefile.model_copy(update={"aws": bakefile.aws.model_copy(update=_joined(places, bakefile.aws))})


def lacking(places: Sequence[Place], bakefile: Bakefile, record: Record | None) -> tuple[str, ...]:
    """Return the regions that an artefact is still to be brought to; all of them where it is not baked yet."""
    if not bakefile.traits.in_ec2:
        return ()
    return tuple(place.region for place in places if record is None or not _reached(record, place))


def _reached(record: Record, place: Place) -> bool:
    there = record.published.get(place.region)
    if there is None or not set(place.share_with) <= set(there.shared_with):
        return False
    return not (place.role and there.account) or Role(str(place.role)).account == there.account

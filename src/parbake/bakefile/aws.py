"""The Bakefile's ``aws``: where and how to bake in EC2, and what becomes of the result there."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, WithJsonSchema
from pydantic import field_validator as check

from parbake.bakefile.kms import EVERYWHERE, KmsKeys, is_managed_by_aws, key_in, reaches, travels
from parbake.bakefile.sections import Section
from parbake.bakefile.targets import ExternalId, RoleArn
from parbake.bakefile.values import REGION, Days, Duration, Region, described, matching, text_schema, wrong

_MOST_TAGS = 40  # AWS allows 50; parbake's own take some
_LEAST_SHARES = 0.25  # MiB/s of gp3 for each provisioned IOPS, at most (EBS user guide)
_LEAST_SECONDS = 3600.0  # of fast snapshot restore (Amazon EBS pricing: billed by the minute, an hour at least)
_COPY_STEP, _LONGEST_COPY = 900.0, 48 * 3600.0  # seconds (EC2 API reference, CopySnapshot; "Time-based copies")
_MOST_CREDITS = 10  # of fast snapshot restore (EBS user guide, "Volume creation credits")
_GP3 = {"iops": (3000, 80_000), "throughput": (125, 2000)}

_TYPE = r"[a-z][a-z0-9-]*\.[a-z0-9-]+"
_PROFILE = r"[\w+=,.@-]{1,128}|arn:aws[a-z-]*:iam::[0-9]{12}:instance-profile/[\w+=,.@/-]+"
_SHARE = r"[0-9]{12}|arn:aws[a-z-]*:organizations::[0-9]{12}:(organization|ou)/[a-z0-9/-]+"

Zone = Annotated[
    str,
    matching(rf"{REGION}[a-z]", "an availability zone", "such as eu-west-1a"),
    text_schema(f"^{REGION}[a-z]$", "eu-west-1a"),
]
InstanceType = Annotated[
    str, matching(_TYPE, "an instance type", "such as m7i.large"), text_schema(f"^{_TYPE}$", "m7i.large")
]
Subnet = Annotated[
    str,
    matching("subnet-[0-9a-f]{8,17}", "a subnet id", "such as subnet-0123456789abcdef0"),
    text_schema("^subnet-[0-9a-f]{8,17}$", "subnet-0123456789abcdef0"),
]
SecurityGroup = Annotated[
    str,
    matching("sg-[0-9a-f]{8,17}", "a security group id", "such as sg-0123456789abcdef0"),
    text_schema("^sg-[0-9a-f]{8,17}$", "sg-0123456789abcdef0"),
]
Snapshot = Annotated[
    str,
    matching("snap-[0-9a-f]{8,17}", "a snapshot id", "such as snap-0123456789abcdef0"),
    text_schema("^snap-[0-9a-f]{8,17}$", "snap-0123456789abcdef0"),
]
Profile = Annotated[
    str,
    matching(_PROFILE, "an instance profile (its name or its ARN)", "such as parbake-bake"),
    text_schema("", "parbake-bake"),
]
Share = Annotated[
    str,
    matching(_SHARE, "an account, an organisation or an organisational unit", "such as 123456789012, or its ARN"),
    text_schema("", "123456789012"),
]


RolesByRegion = Annotated[
    dict[Region, RoleArn],
    WithJsonSchema({
        "type": "object",
        "propertyNames": {"pattern": f"^{REGION}$"},
        "additionalProperties": {"type": "string", "pattern": "^arn:aws[a-z-]*:iam::[0-9]{12}:role/"},
    }),
]  # fmt: skip


def _whole(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int):
        raise wrong(f"must be a whole number, not {described(value)}")
    return value


Whole = Annotated[int, BeforeValidator(_whole), Field(json_schema_extra={"type": "integer"})]


def _some(value: object) -> object:
    """Let a single text pass as a list of one, as in ``instance_types: m7i.large``."""
    return (value,) if isinstance(value, str) else value


def _an_hour_at_least(value: float) -> float:
    if value < _LEAST_SECONDS:
        raise wrong("AWS bills at least an hour of it", "write 1h, or more")
    return value


Hours = Annotated[Duration, AfterValidator(_an_hour_at_least)]


def distinct(value: tuple[str, ...]) -> tuple[str, ...]:
    """Check that nothing is in a list twice."""
    twice = [each for place, each in enumerate(value) if each in value[:place]]
    if twice:
        raise wrong(f"{twice[0]} is already in the list", "remove one of them")
    return value


def _need_key(keys: dict[str, str] | None, region: str | None) -> None:
    """Refuse keys that mean none for a region."""
    if not keys or not region:
        return
    if EVERYWHERE not in keys and region not in keys:
        raise wrong(f"there is no key for {region}", f"add {region}: KEY to kms_key")
    key = keys.get(region) or keys[EVERYWHERE]
    if not reaches(key, region):
        raise wrong(f"the key {key} is not in {region}", "name a key in that region, or its alias there")


class VolumeSection(Section):
    """The builder's volume, for the time of the bake: nodes choose their own."""

    iops: Whole = 3000
    """gp3's I/O operations a second: 3000 to 80000."""
    throughput: Whole = 500
    """gp3's throughput in MiB/s: 125 to 2000, at most a quarter of `iops`."""

    @check("iops", "throughput")
    @classmethod
    def _in_bounds(cls, value: int, info: ValidationInfo) -> int:
        least, most = _GP3[str(info.field_name)]
        if not least <= value <= most:
            raise wrong(f"{value} is not between {least} and {most}, the limits of gp3")
        if info.field_name == "throughput" and value > info.data.get("iops", most) * _LEAST_SHARES:
            raise wrong(f"{value} MiB/s need more than {info.data['iops']} IOPS", f"write iops: {value * 4}")
        return value


class FastRestoreSection(Section):
    """In which zones volumes are fast from their first block on, from when, and for how long: it costs by the hour."""

    zones: tuple[Zone, ...]
    """Availability zones, of the region and of those in `copy_to`."""
    at: Literal["bake", "rollout"] = "bake"
    """When it begins: as soon as the snapshot is there, or with `parbake rollout`, which waits until it counts."""
    for_: Annotated[Hours | None, Field(alias="for")] = None
    """Turn it off after this long, such as 6h (`parbake watch`, `prune --aws` and `clean --aws` do). Default: never."""

    credits: Whole = 1
    """With `at: rollout`: how many credits each zone must have before nodes of a target are replaced, 1 to 10. They
    start at zero and come with 1024/GiB an hour, 10 at most; a volume without one loads lazily."""

    @check("credits")
    @classmethod
    def _fit_a_bucket(cls, value: int) -> int:
        if not 1 <= value <= _MOST_CREDITS:
            raise wrong(f"{value} is not between 1 and {_MOST_CREDITS}, the size of a credit bucket")
        return value

    @check("zones")
    @classmethod
    def _some_and_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise wrong("it names no zone", "write zones: [eu-west-1a], or remove fast_snapshot_restore")
        return distinct(value)


def _zones_alone(value: object) -> object:
    return {"zones": value} if isinstance(value, list | tuple) else value


FastRestore = Annotated[
    FastRestoreSection,
    BeforeValidator(_zones_alone, json_schema_input_type=tuple[Zone, ...] | FastRestoreSection),
]


class AwsSection(Section):
    """Where and how to bake in EC2 (the builders ec2, ebs and packer), and what becomes of the result there."""

    region: Region | None = None
    """The region. Default: that of the AWS configuration (AWS_REGION, the profile)."""
    role: RoleArn | None = None
    """The role to bake, sign, prune and clean up in, and to ask ECR in, perhaps in another account. Default: the
    caller's own rights."""
    external_id: ExternalId | None = None
    """The external id that the role's trust policy asks for, and those of `copy_roles`."""
    instance_types: Annotated[tuple[InstanceType, ...], BeforeValidator(_some)] = ()
    """Instance types for the bake, tried in this order. Default: several with 2 CPUs and 8 GiB, for the platform."""
    purchase: Literal["on-demand", "spot", "spot-first"] = "on-demand"
    """How to buy the instance; `spot-first` falls back to on-demand."""
    subnets: tuple[Subnet, ...] = ()
    """Subnets that reach the registry, tried in this order. Default: those of the default VPC."""
    security_groups: tuple[SecurityGroup, ...] = ()
    """Security groups of the builder. Default: one without ingress, created for the bake and removed after it."""
    instance_profile: Profile | None = None
    """The instance profile that lets the builder pull (see `parbake iam`). Needed for private ECR repositories."""
    volume: VolumeSection = Field(default_factory=VolumeSection.model_construct)
    """The builder's volume during the bake."""
    encrypted: bool = False
    """Encrypt the result's snapshots."""
    kms_key: KmsKeys | None = None
    """The KMS key for that (alias, id or ARN), or keys by region: `{eu-west-1: KEY, us-east-1: KEY}`. Default: the
    account's key for EBS. Sharing needs one of your own; copies need one that their region has."""
    tags: dict[str, str] = Field(default_factory=dict)
    """Tags for everything that parbake creates, besides its own."""
    copy_to: tuple[Region, ...] = ()
    """Regions to copy the result to."""
    copy_roles: RolesByRegion = Field(default_factory=dict)
    """Roles by region of `copy_to`, perhaps in other accounts: the copy belongs to the role's account, with which the
    original is shared; it is looked after, pruned and rolled out in that role. Default: `role`."""
    copy_within: Annotated[Duration | None, text_schema("^[0-9]+[hm]$", "4h")] = None
    """Have AWS finish each copy within this time, for a fee: 15 minutes to 48 hours, in steps of 15 minutes."""
    share_with: tuple[Share, ...] = ()
    """Accounts (12 digits), organisations and units (ARNs) that may launch the result."""
    deprecate_after: Days | None = None
    """When the AMI is deprecated, such as 90d after the bake. It still works then."""
    fast_snapshot_restore: FastRestore | None = None
    """Fast snapshot restore: zones, when it begins, and for how long. A list means zones, from the bake on."""
    parent_snapshot: Snapshot | None = None
    """The snapshot that `builder: ebs` builds on: it writes only what differs."""

    @check("instance_types", "subnets", "security_groups", "copy_to", "share_with")
    @classmethod
    def _once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return distinct(value)

    @property
    def fast_at_bake(self) -> bool:
        """Whether fast snapshot restore begins as soon as the snapshot is there."""
        return bool(self.fast_snapshot_restore and self.fast_snapshot_restore.at == "bake")

    def key_in(self, region: str) -> str:
        """Return the KMS key for a region, as that region knows it (empty: the account's key for EBS)."""
        return key_in(self.kms_key, region)

    @check("kms_key")
    @classmethod
    def _needs_encryption(cls, value: dict[str, str] | None, info: ValidationInfo) -> dict[str, str] | None:
        if value and info.data.get("encrypted") is False:
            raise wrong("a key has no effect without `encrypted`", "write encrypted: true beside it")
        _need_key(value, info.data.get("region"))
        return value

    @check("tags")
    @classmethod
    def _are_ours_to_give(cls, value: dict[str, str]) -> dict[str, str]:
        for key, text in value.items():
            if key.lower().startswith(("aws:", "parbake:")):
                raise wrong(f"the tag {key!r} begins with a reserved prefix", "choose another")
            if not 1 <= len(key) <= 128 or len(text) > 256:
                raise wrong(f"the tag {key!r} is too long", "up to 128 characters, and 256 for the value")
        if len(value) > _MOST_TAGS:
            raise wrong(f"{len(value)} tags are more than the {_MOST_TAGS} that fit beside parbake's own")
        return value

    @check("copy_to")
    @classmethod
    def _goes_elsewhere(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if info.data.get("region") in value and value:
            raise wrong(f"{info.data['region']} is the region of the bake itself", "remove it from the list")
        keys = info.data.get("kms_key")
        key = (keys or {}).get(EVERYWHERE, "")
        if value and key and not travels(key):
            raise wrong(
                f"the key {key} exists in one region, so the copy to {value[0]} would fail after the bake",
                f"write kms_key: {{{info.data.get('region') or 'REGION'}: KEY, {value[0]}: KEY}}, an alias that each "
                "region has, or the ARN of a multi-Region key (mrk-…)",
            )
        for region in value:
            _need_key(keys, region)
        return value

    @check("copy_roles")
    @classmethod
    def _of_copies(cls, value: dict[str, str], info: ValidationInfo) -> dict[str, str]:
        for region in value:
            if region not in info.data.get("copy_to", (region,)):
                raise wrong(f"nothing is copied to {region}", f"add {region} to copy_to, or remove its role")
        return value

    @check("copy_within")
    @classmethod
    def _in_steps(cls, value: float | None, info: ValidationInfo) -> float | None:
        if value is None:
            return None
        if value % _COPY_STEP or not _COPY_STEP <= value <= _LONGEST_COPY:
            raise wrong("AWS takes steps of 15 minutes, from 15m to 48h", "write such as 4h, or 45m")
        if not info.data.get("copy_to"):
            raise wrong("there are no copies", "write copy_to: [REGION], or remove it")
        return value

    @property
    def copy_minutes(self) -> int:
        """Within how many minutes a copy is to be finished (0: whenever AWS has)."""
        return int((self.copy_within or 0) // 60)

    @check("share_with")
    @classmethod
    def _can_be_read_there(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        keys = info.data.get("kms_key")
        if value and info.data.get("encrypted") and (not keys or any(is_managed_by_aws(key) for key in keys.values())):
            raise wrong(
                "snapshots that are encrypted with the account's own EBS key cannot be shared",
                "write kms_key: alias/NAME, a key whose policy lets those accounts use it",
            )
        return value

    @check("fast_snapshot_restore")
    @classmethod
    def _is_in_the_region(cls, value: FastRestoreSection | None, info: ValidationInfo) -> FastRestoreSection | None:
        regions = {info.data.get("region"), *info.data.get("copy_to", ())} - {None}
        zones = value.zones if value else ()
        outside = [zone for zone in zones if info.data.get("region") and zone[:-1] not in regions]
        if outside:
            raise wrong(f"{outside[0]} is in none of the regions {', '.join(sorted(map(str, regions)))}")
        return value

    @check("parent_snapshot")
    @classmethod
    def _goes_without_encryption(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value and info.data.get("encrypted"):
            raise wrong(
                "a snapshot with a parent inherits its parent's encryption: AWS does not accept both",
                "remove encrypted (the parent's key is used), or parent_snapshot",
            )
        return value

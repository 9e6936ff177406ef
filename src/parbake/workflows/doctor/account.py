"""What an AWS account allows, for `parbake doctor --aws`. Looks first (``gather``), then judges purely (``judge``).

Read calls only. A question that this role may not ask is noted, and the others are asked all the same.
Sources: EC2 API reference (the calls below); Service Quotas user guide; EBS endpoints and quotas ("Fast snapshot
restore", "Snapshots per Region"); EC2 user guide, "Allowed AMIs" (they never concern AMIs of one's own) and "Protect an
AMI from deregistration".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pydantic import Field

from parbake import aws
from parbake.aws import encryption
from parbake.aws.ebs.traits import billing
from parbake.aws.errors import name_of
from parbake.aws.images import architecture, find_source, guard_of
from parbake.aws.tags import mine
from parbake.bakefile import Bakefile
from parbake.core.errors import AwsError, AwsNoAccess, AwsNotFound, InputError, ParbakeError
from parbake.core.model import Frozen
from parbake.workflows.doctor import Check, Status
from parbake.workflows.identity import acting
from parbake.workflows.preflight import account_cautions

_PULL = ("ecr.api", "ecr.dkr", "s3")
"""The services whose endpoints an instance needs that reaches ECR without a way to the internet (ECR user guide)."""
_FAST, _SNAPSHOTS = "fast snapshot restore", "snapshots per region"
_ON = ("enabling", "optimizing", "enabled")


class RegionFacts(Frozen):
    """The facts about a region; None or empty: there is no right to ask."""

    region: str
    by_default: bool | None = None
    default_key: str = ""
    public_snapshots: str = ""
    public_images: str = ""
    fast_quota: int | None = None
    fast_used: int | None = None
    snapshot_quota: int | None = None
    guarded_images: int | None = None


class AccountFacts(Frozen):
    """What was seen of an account.

    ``problems`` are what a bake would be refused for, ``denied`` the actions that this role may not use, ``types`` the
    architectures of instance types (none: not in the region), ``profile_roles`` how many roles the profile has (-1:
    there is no such profile), ``closed_subnets`` what subnets without a way out have no endpoint for, ``registers``
    whether AMIs are registered of snapshots that were sent.
    """

    account: str = ""
    caller: str = ""
    unreachable: str = ""
    regions: tuple[RegionFacts, ...] = ()
    base: str = ""
    base_problem: str = ""
    billed: str = ""
    registers: bool = False
    allowed_images: str = ""
    base_allowed: bool | None = None
    wanted_architecture: str = ""
    types: Mapping[str, tuple[str, ...]] = Field(default_factory=dict)
    profile: str = ""
    profile_roles: int | None = None
    closed_subnets: Mapping[str, tuple[str, ...]] = Field(default_factory=dict)
    problems: tuple[str, ...] = ()
    cautions: tuple[str, ...] = ()
    denied: tuple[str, ...] = ()


class _Questions:
    """Asks, and notes what it has no right to ask."""

    def __init__(self) -> None:
        self.denied: dict[str, None] = {}

    @contextmanager
    def asked(self, *actions: str) -> Iterator[None]:
        """Note the actions where this role may not use one of them."""
        try:
            yield
        except AwsNoAccess:
            self.denied |= dict.fromkeys(actions)

    def say(self, service: str, region: str, call: str, key: str, **arguments: Any) -> Any:
        """Return one answer; None where it may not be asked."""
        with self.asked(f"{service.replace('-', '')}:{name_of(call)}"):
            return getattr(aws.client(service, region), call)(**arguments).get(key)
        return None


def gather(bakefile: Bakefile) -> AccountFacts:
    """Ask AWS. Never raises for what is missing, forbidden, or cannot be reached."""
    with acting(bakefile):
        return _gather(bakefile)


def _gather(bakefile: Bakefile) -> AccountFacts:
    ask, settings = _Questions(), bakefile.aws
    try:
        home = settings.region or aws.default_region()
        who = aws.client("sts", home).get_caller_identity()
    except ParbakeError as error:
        return AccountFacts(unreachable=f"{error.message}: {error.hint}" if error.hint else error.message)
    found: dict[str, Any] = {
        "account": str(who["Account"]),
        "caller": str(who["Arn"]),
        "registers": bakefile.traits.sends,
    }
    found["regions"] = tuple(_region(ask, region) for region in dict.fromkeys((home, *settings.copy_to)))
    found |= _base(ask, bakefile, home)
    if bakefile.traits.on_instance:
        found |= _instances(ask, bakefile, home)
    try:
        found["cautions"] = account_cautions(bakefile, home)
    except ParbakeError as error:
        found["problems"] = (f"{error.message}: {error.hint}" if error.hint else error.message,)
    return AccountFacts(**found, denied=tuple(ask.denied))


def _region(ask: _Questions, region: str) -> RegionFacts:
    known = encryption.ask(region)
    if known.by_default is None:
        ask.denied["ec2:GetEbsEncryptionByDefault"] = None
    elif not known.key:
        ask.denied["ec2:GetEbsDefaultKmsKeyId"] = None
    quotas: dict[str, int] = {}
    with ask.asked("servicequotas:ListServiceQuotas"):
        listed = aws.client("service-quotas", region).pages("list_service_quotas", "Quotas", ServiceCode="ebs")
        quotas = {str(each["QuotaName"]).lower(): int(each["Value"]) for each in listed}
    fast: int | None = None
    with ask.asked("ec2:DescribeFastSnapshotRestores"):
        filters = [{"Name": "state", "Values": list(_ON)}]
        on = aws.client("ec2", region).pages("describe_fast_snapshot_restores", "FastSnapshotRestores", Filters=filters)
        fast = len({str(each["SnapshotId"]) for each in on})
    guarded: int | None = None
    with ask.asked("ec2:DescribeImages"):
        ours = aws.client("ec2", region).pages("describe_images", "Images", Owners=["self"], Filters=mine())
        guarded = sum(bool(guard_of(each)) for each in ours)
    return RegionFacts(
        region=region,
        by_default=known.by_default,
        default_key=known.key,
        public_snapshots=ask.say("ec2", region, "get_snapshot_block_public_access_state", "State") or "",
        public_images=ask.say("ec2", region, "get_image_block_public_access_state", "ImageBlockPublicAccessState")
        or "",
        fast_quota=quotas.get(_FAST),
        fast_used=fast,
        snapshot_quota=quotas.get(_SNAPSHOTS),
        guarded_images=guarded,
    )


def _base(ask: _Questions, bakefile: Bakefile, home: str) -> dict[str, Any]:
    if not bakefile.base.ami or not bakefile.traits.in_ec2:
        return {}
    found: dict[str, Any] = {"allowed_images": ask.say("ec2", home, "get_allowed_images_settings", "State") or ""}
    try:
        with ask.asked("ec2:DescribeImages", "ssm:GetParameter"):
            image = find_source(bakefile.base.ami, bakefile.platform, home)
            found |= {"base": f"{image.id} ({image.name})", "billed": billing(image)}
            found["base_allowed"] = image.raw.get("ImageAllowed")
    except (AwsNotFound, InputError) as error:
        found["base_problem"] = error.message
    return found


def _instances(ask: _Questions, bakefile: Bakefile, home: str) -> dict[str, Any]:
    settings = bakefile.aws
    found: dict[str, Any] = {"wanted_architecture": architecture(bakefile.platform)}
    with ask.asked("ec2:DescribeInstanceTypes"):
        found["types"] = {kind: _architectures(kind, home) for kind in settings.instance_types}
    if settings.instance_profile:
        name = settings.instance_profile.rpartition("/")[2]
        found["profile"] = name
        with ask.asked("iam:GetInstanceProfile"):
            try:
                profile = aws.client("iam", home).get_instance_profile(InstanceProfileName=name)
                found["profile_roles"] = len(profile["InstanceProfile"]["Roles"])
            except AwsNotFound:
                found["profile_roles"] = -1
    if settings.subnets:
        with ask.asked("ec2:DescribeSubnets", "ec2:DescribeRouteTables", "ec2:DescribeVpcEndpoints"):
            found["closed_subnets"] = _closed(settings.subnets, home)
    return found


def _architectures(kind: str, region: str) -> tuple[str, ...]:
    try:
        found = aws.client("ec2", region).describe_instance_types(InstanceTypes=[kind])["InstanceTypes"]
    except AwsNoAccess:
        raise
    except AwsError:  # InvalidInstanceType: not in this region
        return ()
    return tuple(found[0]["ProcessorInfo"]["SupportedArchitectures"]) if found else ()


def _closed(subnets: tuple[str, ...], region: str) -> dict[str, tuple[str, ...]]:
    """Return subnets without a default route, with the services to which their network has no endpoint either."""
    ec2, found = aws.client("ec2", region), {}
    for subnet in ec2.describe_subnets(SubnetIds=list(subnets))["Subnets"]:
        in_vpc = [{"Name": "vpc-id", "Values": [subnet["VpcId"]]}]
        tables = list(ec2.pages("describe_route_tables", "RouteTables", Filters=in_vpc))
        if _has_way_out(subnet["SubnetId"], tables):
            continue
        endpoints = ec2.pages("describe_vpc_endpoints", "VpcEndpoints", Filters=in_vpc)
        there = {str(each["ServiceName"]).rpartition(f".{region}.")[2] for each in endpoints}
        if missing := tuple(name for name in _PULL if name not in there):
            found[str(subnet["SubnetId"])] = missing
    return found


def _has_way_out(subnet: str, tables: list[Mapping[str, Any]]) -> bool:
    """Whether the route table of a subnet (its own, else the network's main one) leads anywhere."""
    own = [each for each in tables if any(one.get("SubnetId") == subnet for one in each.get("Associations", ()))]
    main = [each for each in tables if any(one.get("Main") for one in each.get("Associations", ()))]
    routes = [route for table in own or main for route in table.get("Routes", ())]
    return any("0.0.0.0/0" in {route.get("DestinationCidrBlock")} for route in routes)


def judge(facts: AccountFacts) -> tuple[Check, ...]:
    """Return every check (pure)."""
    if facts.unreachable:
        return (_check("AWS", "credentials and a region", ("AWS",), "missing", hint=facts.unreachable),)
    return (
        _check("AWS account", "who asks", ("AWS",), "ok", f"{facts.account}, {facts.caller}"),
        *(check for region in facts.regions for check in _judge_region(region)),
        *_judge_base(facts),
        *_judge_instances(facts),
        *(_check("the bake", "what AWS would refuse", ("bake",), "missing", hint=each) for each in facts.problems),
        *_judge_rights(facts),
    )


def _check(
    name: str, purpose: str, needed_by: tuple[str, ...], status: Status, found: str = "", hint: str = ""
) -> Check:
    return Check(name=name, purpose=purpose, needed_by=needed_by, status=status, found=found, hint=hint)


def _judge_region(facts: RegionFacts) -> Iterator[Check]:
    where = facts.region
    if facts.by_default is not None:
        found = f"on, with {facts.default_key or 'some key'}" if facts.by_default else "off"
        yield _check(f"encryption by default in {where}", "how snapshots are encrypted", ("bake",), "ok", found)
    if facts.fast_used is not None:
        full = facts.fast_quota is not None and facts.fast_used >= facts.fast_quota
        yield _check(
            f"fast snapshot restore in {where}",
            "snapshots that it may be enabled for",
            ("aws.fast_snapshot_restore",),
            "warn" if full else "ok",
            f"{facts.fast_used} of {'?' if facts.fast_quota is None else facts.fast_quota} snapshots",
            "disable it for others, or ask for more in Service Quotas (EBS, Fast snapshot restore)" if full else "",
        )
    if facts.snapshot_quota is not None:
        found = f"{facts.snapshot_quota} snapshots"
        yield _check(f"snapshot quota of {where}", "how many there may be", ("bake",), "ok", found)
    if facts.public_snapshots or facts.public_images:
        found = f"snapshots {facts.public_snapshots or '?'}, AMIs {facts.public_images or '?'}"
        yield _check(f"public access in {where}", "whether results could become public", ("bake",), "ok", found)
    if facts.guarded_images:
        yield _check(
            f"deregistration protection in {where}",
            "AMIs of parbake's that nobody can remove",
            ("prune",),
            "warn",
            f"{facts.guarded_images} AMIs",
            "`parbake prune --aws` keeps them: aws ec2 disable-image-deregistration-protection --image-id ID first",
        )


def _judge_base(facts: AccountFacts) -> Iterator[Check]:
    if facts.base_problem:
        yield _check("base", "the AMI to bake onto", ("bake",), "missing", hint=facts.base_problem)
    elif facts.base and facts.billed and facts.registers:
        hint = "write `builder: ec2`: an AMI that is registered of a snapshot loses its billing data"
        yield _check("base", "the AMI to bake onto", ("bake",), "missing", f"{facts.base}, {facts.billed}", hint)
    elif facts.base:
        yield _check(
            "base", "the AMI to bake onto", ("bake",), "ok", f"{facts.base}{facts.billed and f', {facts.billed}'}"
        )
    if facts.allowed_images:
        refused = facts.allowed_images == "enabled" and (facts.base_allowed is False or facts.base_problem)
        hint = "the account allows certain AMIs only: let it allow the base's owner, or copy the base into the account"
        yield _check(
            "Allowed AMIs",
            "which AMIs the account may use",
            ("bake",),
            "missing" if refused else "ok",
            facts.allowed_images,
            hint if refused else "",
        )


def _judge_instances(facts: AccountFacts) -> Iterator[Check]:
    for kind, architectures in facts.types.items():
        good = facts.wanted_architecture in architectures
        hint = f"name a type for {facts.wanted_architecture} that the region has in `aws.instance_types`"
        found = ", ".join(architectures) or "not in this region"
        yield _check(
            kind, "the builder's instance", ("bake",), "ok" if good else "missing", found, "" if good else hint
        )
    if facts.profile and facts.profile_roles is not None:
        good = facts.profile_roles > 0
        hint = "" if good else "make it with the role that `parbake iam` prints (instance_role)"
        found = "there" if good else "without a role" if facts.profile_roles == 0 else ""
        yield _check(
            f"instance profile {facts.profile}",
            "lets the builder pull",
            ("bake",),
            "ok" if good else "missing",
            found,
            hint,
        )
    for subnet, missing in facts.closed_subnets.items():
        yield _check(
            subnet,
            "a way from the builder to ECR",
            ("bake",),
            "warn",
            "no default route",
            f"the network has no endpoint for {', '.join(missing)}: make them, or name another subnet",
        )


def _judge_rights(facts: AccountFacts) -> Iterator[Check]:
    if facts.denied:
        hint = "`parbake iam` prints the policy `doctor`; nothing else depends on these"
        yield _check(
            "rights to ask", "what doctor may look at", ("doctor",), "warn", f"not {', '.join(facts.denied)}", hint
        )

"""What policies are made of: statements, resources, and the conditions that narrow them to what parbake made."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from parbake.aws import MANAGED
from parbake.bakefile import Bakefile
from parbake.bakefile.targets import Target

type Policy = dict[str, Any]

ACCOUNT, REGION, TEMPLATE, ROLE, NODES_IMAGE, BASE_SNAPSHOT, CALLER = (
    "ACCOUNT_ID", "REGION", "LAUNCH_TEMPLATE_ID", "NODES_ROLE", "NODES_IMAGE_ID", "BASE_SNAPSHOT_ID", "CALLERS_ACCOUNT",
)  # fmt: skip
"""What stands in a policy for a name that nobody has given: it allows nothing until somebody replaces it."""

OURS = {"StringLike": {f"aws:ResourceTag/{MANAGED}": "*"}}
TAGGED = {"StringLike": {f"aws:RequestTag/{MANAGED}": "*"}}

# Their ARNs name no account (Service Authorization Reference, "Resource types defined by Amazon EC2").
_OF_NO_ACCOUNT = {"image", "snapshot"}
_HOW = {
    ACCOUNT: "the account (12 digits): --account",
    REGION: "the region: `aws: {region: …}` in the Bakefile",
    TEMPLATE: "the launch templates of the groups: --template",
    ROLE: "the role of the groups' nodes: --role",
    NODES_IMAGE: "the AMI of the groups' nodes, where it is neither parbake's nor Amazon's: --launches",
    CALLER: "the account (12 digits) from which parbake acts in the roles",
    BASE_SNAPSHOT: "the snapshot of the base AMI's root disk, where it is not parbake's: --base-snapshot",
}


@dataclass(frozen=True, slots=True)
class Names:
    """What policies name and the Bakefile does not say.

    ``region`` is for a Bakefile without one; ``templates`` are ids of launch templates and ``roles`` names of roles
    (with their path), of the nodes of ``asg`` and ``nodegroup`` targets; ``parameters`` of Systems Manager are those
    besides the targets' that name images, with ``*`` for any text; ``launched`` are AMIs and snapshots that the
    templates name and that are neither parbake's nor AMIs of Amazon's; ``base_snapshots`` are what a base AMI is made
    of; ``default_keys`` are ARNs of the account's own KMS keys by which EBS encrypts by default.
    """

    account: str = ACCOUNT
    region: str = REGION
    templates: tuple[str, ...] = (TEMPLATE,)
    roles: tuple[str, ...] = (ROLE,)
    parameters: tuple[str, ...] = ()
    launched: tuple[str, ...] = (NODES_IMAGE,)
    base_snapshots: tuple[str, ...] = (BASE_SNAPSHOT,)
    default_keys: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Scope:
    """A Bakefile, and where its policies hold: one account, and the regions that it names."""

    bakefile: Bakefile
    names: Names = Names()

    def alone(self, targets: Iterable[Target], account: str = "") -> Scope:
        """Return the scope of some targets, in another account where one is named."""
        bakefile = self.bakefile.model_copy(update={"rollout": tuple(targets)})
        return Scope(bakefile, replace(self.names, account=account) if account else self.names)

    def copied_to(self, region: str, account: str) -> Scope:
        """Return the scope of the copies in one region, in the account of their role."""
        only: dict[str, Any] = {"region": region, "copy_to": (), "copy_roles": {}, "role": None}
        aws = self.bakefile.aws.model_copy(update=only)
        return Scope(self.bakefile.model_copy(update={"aws": aws, "rollout": ()}), replace(self.names, account=account))

    @property
    def home(self) -> str:
        """The region where bakes happen."""
        return self.bakefile.aws.region or self.names.region

    @property
    def copies(self) -> tuple[str, ...]:
        """The regions that results are copied to, but for those whose copies have a role of their own."""
        aws = self.bakefile.aws
        return tuple(region for region in aws.copy_to if region not in aws.copy_roles)

    @property
    def places(self) -> tuple[str, ...]:
        """The regions where results lie."""
        return (self.home, *self.copies)

    def of(self, targets: Iterable[Target]) -> tuple[str, ...]:
        """Return the regions of targets: their own, else those where results lie."""
        return tuple(sorted({place for each in targets for place in ((each.region,) if each.region else self.places)}))

    def arn(self, service: str, rest: str, region: str | None = None, *, account: str | None = None) -> str:
        """Return an ARN, in the home region where none is given; an empty region is for services that have none."""
        place = self.home if region is None else region
        owner = self.names.account if account is None else account
        return f"arn:{partition(place.strip('*') or self.home)}:{service}:{place}:{owner}:{rest}"

    def ec2(self, *kinds: str, regions: Sequence[str] | None = None, name: str = "*") -> list[str]:
        """Return the ARNs of the resources of some kinds of EC2's, in the home region where none are given."""
        places = (self.home,) if regions is None else regions
        owners = {kind: "" if kind in _OF_NO_ACCOUNT else self.names.account for kind in kinds}
        return [
            self.arn("ec2", f"{kind}/{name}", region, account=owner)
            for kind, owner in owners.items()
            for region in places
        ]

    def parameter(self, name: str, regions: Sequence[str]) -> list[str]:
        """Return the ARNs of a parameter; AWS's own, which everybody may read, belong to no account."""
        owner = "" if name.startswith("/aws/service/") else None
        return [self.arn("ssm", f"parameter/{name.removeprefix('/')}", place, account=owner) for place in regions]


def here(regions: Sequence[str]) -> Policy:
    """Return the condition that a call is made in one of these regions."""
    return {"StringEquals": {"aws:RequestedRegion": list(regions)}}


def tagging(key: str) -> Policy:
    """Return the condition that a call writes this tag, and no other."""
    return {"ForAllValues:StringEquals": {"aws:TagKeys": [key]}, "Null": {"aws:TagKeys": "false"}}


def both(*conditions: Policy) -> Policy:
    """Return the condition that all of these hold."""
    found: Policy = {}
    for condition in conditions:
        for operator, keys in condition.items():
            found[operator] = {**found.get(operator, {}), **keys}
    return found


def policy(statements: Iterator[Policy] | Sequence[Policy]) -> Policy:
    """Return a policy of statements."""
    return {"Version": "2012-10-17", "Statement": list(statements)}


def allow(
    sid: str, actions: Sequence[str], resources: Sequence[str] = ("*",), condition: Policy | None = None
) -> Policy:
    """Return a statement that allows actions."""
    statement: Policy = {"Sid": sid, "Effect": "Allow", "Action": sorted(actions), "Resource": list(resources)}
    return {**statement, "Condition": condition} if condition else statement


def never_take_over(scope: Scope, made_by: Sequence[str] = ()) -> Policy:
    """Return the statement that denies parbake's tag to what is not parbake's, whatever else a role may do.

    parbake's are what has its tag, and what the call makes that brings the tag: ``made_by`` are the creating actions.
    A resource that is being made is called ``*``, so that the ids here are those of resources that exist. IAM does not
    look at the case of a tag's key where a condition is named after it, and does where keys are compared.
    """
    ids = (
        "image/ami-", "instance/i-", "key-pair/key-", "launch-template/lt-", "network-interface/eni-",
        "security-group/sg-", "snapshot/snap-", "spot-instances-request/sir-", "volume/vol-",
    )  # fmt: skip
    condition: Policy = {
        "Null": {f"aws:RequestTag/{MANAGED}": "false", f"aws:ResourceTag/{MANAGED}": "true"},
    }
    if made_by:
        condition["StringNotEquals"] = {"ec2:CreateAction": list(made_by)}
    named = [scope.arn("ec2", f"{each}*", "*", account="*") for each in ids]
    return {**allow("NeverTakeOver", ["ec2:CreateTags"], named, condition), "Effect": "Deny"}


def partition(region: str) -> str:
    """Return the partition of a region."""
    return "aws-cn" if region.startswith("cn-") else "aws-us-gov" if region.startswith("us-gov-") else "aws"


def suffix(region: str) -> str:
    """Return what service principals end with besides ``amazonaws.com``."""
    return ".cn" if partition(region) == "aws-cn" else ""


def missing(policies: Policy) -> tuple[str, ...]:
    """Return a sentence for each placeholder that policies contain."""
    text = json.dumps(policies)
    return tuple(f"{name} stands for {how}" for name, how in _HOW.items() if name in text)


def cautions(policies: dict[str, Policy]) -> tuple[str, ...]:
    """Return what whoever holds these policies can do beyond parbake, since AWS has no condition for it."""
    wide = [name for name, each in policies.items() if '"ec2:CreateLaunchTemplateVersion"' in json.dumps(each)]
    if not wide:
        return ()
    return (
        f"whoever has {' or '.join(wide)} decides by a new launch template version what the nodes run: any user data,"
        " which runs as root with the nodes' role, in any subnet and security group (docs/how-to/ec2.md#permissions)",
    )


def for_store(scope: Scope, *more: str, noting: str = "") -> Iterator[Policy]:
    """Yield the statements of a Bakefile's store, where it is a bucket: one prefix of it. ``more``: besides reading.

    Below ``noting``, a part of the store, objects may be written.
    """
    address = scope.bakefile.store or ""
    if not address.startswith("s3://"):
        return
    bucket, _, prefix = address.removeprefix("s3://").partition("/")
    arn = f"arn:{partition(scope.home)}:s3:::{bucket}"
    below = f"{prefix}/*" if prefix else "*"
    yield allow("ListTheStore", ["s3:ListBucket"], [arn], {"StringLike": {"s3:prefix": [below]}})
    yield allow("UseTheStore", ["s3:GetObject", *more], [f"{arn}/{below}"])
    if noting:
        yield allow("NoteInTheStore", ["s3:PutObject"], [f"{arn}/{below.removesuffix('*')}{noting}*"])

"""Packer's own way: a key pair, SSH, a stop from outside, and for spot a fleet of a launch template."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from parbake.aws.iam.statements import TAGGED, Policy, Scope, allow

_LOOKS = (
    "DescribeImageAttribute", "DescribeInstanceStatus", "DescribeKeyPairs", "DescribeLaunchTemplates",
    "DescribeRegions", "DescribeTags", "DescribeVpcs",
)  # fmt: skip


class Additions(NamedTuple):
    """What is allowed besides to whoever bakes on an instance, where Packer does it; nothing for other builders.

    ``reads`` are calls that read EC2, ``makes`` those that make something with tags, of these ``kinds``; ``ends`` those
    that change or end what is parbake's, of the kinds ``ended``; ``launches`` those that launch, with the kinds
    ``launched``.
    """

    reads: Sequence[str] = ()
    makes: Sequence[str] = ()
    kinds: Sequence[str] = ()
    ends: Sequence[str] = ()
    ended: Sequence[str] = ()
    launches: Sequence[str] = ()
    launched: Sequence[str] = ()


def additions(scope: Scope) -> Additions:
    """Return what Packer needs besides: a key pair, and for spot a fleet of a launch template."""
    if not scope.bakefile.traits.runs_packer:
        return Additions()
    spot = _spot(scope)
    ends = ["CreateTags", "DeleteKeyPair", "DeleteLaunchTemplate", "StopInstances"]
    return Additions(
        reads=[*_LOOKS, *["DescribeSpotPriceHistory"] * spot],
        makes=["CreateKeyPair", *["CreateFleet", "CreateLaunchTemplate"] * spot],
        kinds=["key-pair", *["fleet", "launch-template"] * spot],
        ends=[*ends, *([] if scope.bakefile.aws.security_groups else ["AuthorizeSecurityGroupIngress"])],
        ended=["key-pair", "launch-template", "network-interface"],
        launches=["ec2:CreateFleet"] * spot,
        launched=["key-pair", *["launch-template"] * spot],
    )


def statements(scope: Scope) -> Iterator[Policy]:
    """Yield the statements of whoever runs Packer, besides those of whoever bakes on an instance."""
    if not scope.bakefile.traits.runs_packer:
        return
    yield allow("MakeTheKey", ["ec2:CreateKeyPair"], scope.ec2("key-pair"), TAGGED)
    if not _spot(scope):
        return
    yield allow("MakeTheTemplate", ["ec2:CreateLaunchTemplate"], scope.ec2("launch-template"), TAGGED)
    subnets = [scope.arn("ec2", f"subnet/{each}") for each in scope.bakefile.aws.subnets] or scope.ec2("subnet")
    yield allow("Fleet", ["ec2:CreateFleet"], [*scope.ec2("fleet", "instance", "volume"), *subnets])
    services = ("ec2fleet.amazonaws.com", "spot.amazonaws.com")
    roles = [scope.arn("iam", f"role/aws-service-role/{service}/*", "") for service in services]
    condition = {"StringEquals": {"iam:AWSServiceName": list(services)}}
    yield allow("FirstSpot", ["iam:CreateServiceLinkedRole"], roles, condition)


def _spot(scope: Scope) -> bool:
    return scope.bakefile.aws.purchase != "on-demand"

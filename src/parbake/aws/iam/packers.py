"""Packer's own way: a key pair, SSH, a stop from outside, and for spot a fleet of a launch template."""

from __future__ import annotations

from collections.abc import Iterator

from parbake.aws.iam.statements import TAGGED, Policy, Scope, allow

_LOOKS = (
    "DescribeImageAttribute", "DescribeInstanceStatus", "DescribeKeyPairs", "DescribeLaunchTemplates",
    "DescribeRegions", "DescribeTags", "DescribeVpcs",
)  # fmt: skip


def looks(scope: Scope) -> list[str]:
    """Return what Packer reads of EC2 besides; nothing for other builders."""
    if scope.bakefile.builder != "packer":
        return []
    return [*_LOOKS, *(["DescribeSpotPriceHistory"] if _spot(scope) else [])]


def makes(scope: Scope) -> list[str]:
    """Return the calls by which Packer makes something with tags besides."""
    if scope.bakefile.builder != "packer":
        return []
    return ["CreateKeyPair", *(["CreateFleet", "CreateLaunchTemplate"] if _spot(scope) else [])]


def kinds(scope: Scope) -> list[str]:
    """Return the kinds of resources that these calls make."""
    if scope.bakefile.builder != "packer":
        return []
    return ["key-pair", *(["fleet", "launch-template"] if _spot(scope) else [])]


def launches(scope: Scope, *calls: str) -> list[str]:
    """Return the calls that launch: a fleet besides, where Packer makes one."""
    return [*calls, *(["ec2:CreateFleet"] if scope.bakefile.builder == "packer" and _spot(scope) else [])]


def ours(scope: Scope) -> tuple[list[str], list[str]]:
    """Return what Packer does with what is parbake's besides, and the kinds of that."""
    if scope.bakefile.builder != "packer":
        return [], []
    calls = ["CreateTags", "DeleteKeyPair", "DeleteLaunchTemplate", "StopInstances"]
    calls += [] if scope.bakefile.aws.security_groups else ["AuthorizeSecurityGroupIngress"]
    return calls, ["key-pair", "launch-template", "network-interface"]


def launched(scope: Scope) -> list[str]:
    """Return the kinds of resources of its own that Packer launches with."""
    if scope.bakefile.builder != "packer":
        return []
    return ["key-pair", *(["launch-template"] if _spot(scope) else [])]


def statements(scope: Scope) -> Iterator[Policy]:
    """Yield the statements of whoever runs Packer, besides those of whoever bakes on an instance."""
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

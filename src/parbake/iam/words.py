"""What policies are made of: statements, resources, and the conditions that narrow them to what parbake made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from parbake.aws import MANAGED
from parbake.bakefile import Bakefile

type Policy = dict[str, Any]

OURS = {"StringLike": {f"aws:ResourceTag/{MANAGED}": "*"}}
TAGGED = {"StringLike": {f"aws:RequestTag/{MANAGED}": "*"}}


def policy(statements: Iterator[Policy] | Sequence[Policy]) -> Policy:
    """Return a policy of statements."""
    return {"Version": "2012-10-17", "Statement": list(statements)}


def allow(
    sid: str, actions: Sequence[str], resources: Sequence[str] = ("*",), condition: Policy | None = None
) -> Policy:
    """Return a statement that allows actions."""
    statement: Policy = {"Sid": sid, "Effect": "Allow", "Action": sorted(actions), "Resource": list(resources)}
    return {**statement, "Condition": condition} if condition else statement


def partition(bakefile: Bakefile, region: str = "") -> str:
    """Return the partition of a region, or of the Bakefile's."""
    region = region or bakefile.aws.region or ""
    return "aws-cn" if region.startswith("cn-") else "aws-us-gov" if region.startswith("us-gov-") else "aws"


def suffix(bakefile: Bakefile, region: str = "") -> str:
    """Return what service principals end with besides ``amazonaws.com``."""
    return ".cn" if partition(bakefile, region) == "aws-cn" else ""


def arn(bakefile: Bakefile, service: str, rest: str, *, region: str = "", account: str = "*") -> str:
    """Return an ARN; without a region it is for all of them."""
    return f"arn:{partition(bakefile, region)}:{service}:{region or '*'}:{account}:{rest}"


def ec2(bakefile: Bakefile, *kinds: str) -> list[str]:
    """Return the ARNs of all resources of some kinds of EC2's."""
    return [arn(bakefile, "ec2", f"{kind}/*") for kind in kinds]

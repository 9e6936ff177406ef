"""The least-privilege policies that a Bakefile needs in AWS: of who calls, of the instance that bakes, of Karpenter.

Sources: Service Authorization Reference, "Actions, resources, and condition keys for Amazon EC2" (which actions take
which resources and conditions), and those for EBS direct APIs, ECR, SSM and KMS.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from parbake.aws import MANAGED
from parbake.bakefile import Bakefile
from parbake.reference import Reference
from parbake.registry import ecr

type Policy = dict[str, Any]

_OURS = {"StringLike": {f"aws:ResourceTag/{MANAGED}": "*"}}
_TAGGED = {"StringLike": {f"aws:RequestTag/{MANAGED}": "*"}}
_PULL = ("ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer")
_PUSH = (
    "ecr:CompleteLayerUpload", "ecr:CreateRepository", "ecr:DescribeRepositories", "ecr:InitiateLayerUpload",
    "ecr:PutImage", "ecr:PutImageScanningConfiguration", "ecr:PutImageTagMutability", "ecr:TagResource",
    "ecr:UploadLayerPart",
)  # fmt: skip
_KMS = (
    "kms:CreateGrant", "kms:Decrypt", "kms:DescribeKey", "kms:GenerateDataKeyWithoutPlaintext", "kms:ReEncryptFrom",
    "kms:ReEncryptTo",
)  # fmt: skip


def policies(bakefile: Bakefile) -> dict[str, Policy]:
    """Return the policies by what they are for.

    ``caller``, and where they are needed ``instance_role``, ``instance_role_trust`` and ``karpenter``.
    """
    found = {"caller": _policy(_caller(bakefile))}
    if bakefile.builder in {"ec2", "packer"}:
        found["instance_role"] = _policy(_pull(bakefile))
        found["instance_role_trust"] = _trust(bakefile)
    karpenter = list(_karpenter(bakefile))
    if karpenter:
        found["karpenter"] = _policy(karpenter)
    return found


def actions(policy: Policy) -> set[str]:
    """Return the actions that a policy allows."""
    return {action for statement in policy["Statement"] for action in statement["Action"]}


def _policy(statements: Iterator[Policy] | Sequence[Policy]) -> Policy:
    return {"Version": "2012-10-17", "Statement": list(statements)}


def _allow(
    sid: str, actions: Sequence[str], resources: Sequence[str] = ("*",), condition: Policy | None = None
) -> Policy:
    statement: Policy = {"Sid": sid, "Effect": "Allow", "Action": sorted(actions), "Resource": list(resources)}
    return {**statement, "Condition": condition} if condition else statement


def _partition(bakefile: Bakefile) -> str:
    region = bakefile.aws.region or ""
    return "aws-cn" if region.startswith("cn-") else "aws-us-gov" if region.startswith("us-gov-") else "aws"


def _arn(bakefile: Bakefile, service: str, rest: str, *, region: str = "*", account: str = "*") -> str:
    return f"arn:{_partition(bakefile)}:{service}:{region}:{account}:{rest}"


def _ec2(bakefile: Bakefile, *kinds: str) -> list[str]:
    return [_arn(bakefile, "ec2", f"{kind}/*") for kind in kinds]


# -- who calls


def _caller(bakefile: Bakefile) -> Iterator[Policy]:
    yield from _repositories(bakefile)
    in_ec2 = bakefile.builder in {"ec2", "ebs", "packer"}
    if bakefile.base.ami and not (bakefile.base.ami.id or bakefile.base.ami.name):
        name = bakefile.base.ami.parameter(bakefile.platform)
        yield _allow("FindTheBase", ["ssm:GetParameter"], [_arn(bakefile, "ssm", f"parameter{name}")])
    if in_ec2:
        yield _allow("Look", _looks(bakefile))
        yield from _clean_up(bakefile)
        yield from _results(bakefile)
    if bakefile.builder in {"ec2", "packer"}:
        yield from _instances(bakefile)
    if bakefile.builder == "ebs":
        yield from _blocks(bakefile)
    if in_ec2 and bakefile.aws.encrypted:
        key = bakefile.aws.kms_key or ""
        keys = [key] if key.startswith("arn:") else [_arn(bakefile, "kms", "key/*")]
        condition = None if key.startswith("arn:") else {"StringLike": {"kms:ViaService": "ec2.*.amazonaws.com"}}
        yield _allow("Encrypt", _KMS, keys, condition)


def _looks(bakefile: Bakefile) -> list[str]:
    """Return the actions that only read; EC2 grants them on everything or not at all."""
    looks = ["DescribeImages", "DescribeInstances", "DescribeSecurityGroups", "DescribeSnapshots", "DescribeVolumes"]
    if bakefile.builder in {"ec2", "packer"}:
        looks += ["DescribeSubnets"]
    if bakefile.builder == "packer":
        looks += ["DescribeImageAttribute", "DescribeInstanceStatus", "DescribeRegions", "DescribeTags", "DescribeVpcs"]
    return [f"ec2:{look}" for look in looks]


def _clean_up(bakefile: Bakefile) -> Iterator[Policy]:
    """Allow to end or change what carries parbake's tag, and nothing else."""
    yield _allow(
        "RemoveOurs",
        [
            "ec2:DeleteSecurityGroup", "ec2:DeleteSnapshot", "ec2:DeleteTags", "ec2:DeleteVolume",
            "ec2:DeregisterImage", "ec2:TerminateInstances",
        ],
        _ec2(bakefile, "image", "instance", "security-group", "snapshot", "volume"),
        _OURS,
    )  # fmt: skip
    if bakefile.aws.purchase != "on-demand":
        resources = _ec2(bakefile, "spot-instances-request")
        yield _allow("CancelOurs", ["ec2:CancelSpotInstanceRequests"], resources, _OURS)
    made = ["RunInstances", "CreateImage", "CreateSecurityGroup", "CopyImage", "CopySnapshot", "RegisterImage"]
    made += ["CreateSnapshot", "CreateVolume"]
    kinds = (
        "image", "instance", "network-interface", "security-group", "snapshot", "spot-instances-request", "volume",
    )  # fmt: skip
    condition = {"StringEquals": {"ec2:CreateAction": made}}
    yield _allow("TagWhatIsMade", ["ec2:CreateTags"], _ec2(bakefile, *kinds), condition)
    yield _allow("TagOurs", ["ec2:CreateTags"], _ec2(bakefile, "image", "snapshot"), _OURS)


def _results(bakefile: Bakefile) -> Iterator[Policy]:
    """Allow what becomes of an AMI."""
    aws, changes = bakefile.aws, ["ec2:ModifyImageAttribute"]
    if aws.share_with:
        changes.append("ec2:ModifySnapshotAttribute")
    if aws.deprecate_after:
        changes.append("ec2:EnableImageDeprecation")
    if aws.fast_snapshot_restore:
        changes.append("ec2:EnableFastSnapshotRestores")
    yield _allow("ChangeOurs", changes, _ec2(bakefile, "image", "snapshot"), _OURS)
    if aws.copy_to:
        copies = ["ec2:CopyImage"] if bakefile.builder != "ebs" else ["ec2:CopyImage", "ec2:CopySnapshot"]
        yield _allow("Copy", copies, _ec2(bakefile, "image", "snapshot"))


def _instances(bakefile: Bakefile) -> Iterator[Policy]:
    """Allow to bake and verify on instances."""
    aws = bakefile.aws
    made = ["instance", "volume"] + (["spot-instances-request"] if aws.purchase != "on-demand" else [])
    yield _allow("LaunchTagged", ["ec2:RunInstances"], _ec2(bakefile, *made), _TAGGED)
    subnets = [_arn(bakefile, "ec2", f"subnet/{each}") for each in aws.subnets] or _ec2(bakefile, "subnet")
    groups = [_arn(bakefile, "ec2", f"security-group/{each}") for each in aws.security_groups]
    others = _ec2(bakefile, "image", "network-interface", "snapshot")
    used = [*others, *subnets, *(groups or _ec2(bakefile, "security-group"))]
    yield _allow("LaunchOf", ["ec2:RunInstances"], used)
    if not aws.security_groups:
        group = _ec2(bakefile, "security-group")
        yield _allow("CloseTheBuilder", ["ec2:CreateSecurityGroup"], group, _TAGGED)
        yield _allow("InTheVpc", ["ec2:CreateSecurityGroup"], _ec2(bakefile, "vpc"))
    yield _allow("Follow", ["ec2:GetConsoleOutput"], _ec2(bakefile, "instance"), _OURS)
    yield _allow("Image", ["ec2:CreateImage"], _ec2(bakefile, "instance"), _OURS)
    yield _allow("ImageOf", ["ec2:CreateImage"], _ec2(bakefile, "image", "snapshot"), _TAGGED)
    if bakefile.builder == "packer":  # Packer's own way: a key pair, SSH, a stop from outside
        packer = ("AuthorizeSecurityGroupIngress", "CreateKeyPair", "CreateSnapshot", "CreateVolume", "DeleteKeyPair")
        rest = ("AttachVolume", "DetachVolume", "ModifyInstanceAttribute", "StopInstances")
        yield _allow("Packer", [f"ec2:{action}" for action in (*packer, *rest)])
    if aws.instance_profile:
        name = aws.instance_profile.rpartition("/")[2]
        role = [f"arn:{_partition(bakefile)}:iam::*:role/{name}"]  # the role that the profile is made of, of its name
        condition = {"StringEquals": {"iam:PassedToService": f"ec2.amazonaws.com{_suffix(bakefile)}"}}
        yield _allow("PassTheRole", ["iam:PassRole"], role, condition)
        yield _allow(
            "LookAtTheProfile",
            ["iam:GetInstanceProfile"],
            [f"arn:{_partition(bakefile)}:iam::*:instance-profile/{name}"],
        )


def _suffix(bakefile: Bakefile) -> str:
    return ".cn" if _partition(bakefile) == "aws-cn" else ""


def _blocks(bakefile: Bakefile) -> Iterator[Policy]:
    """Allow to write and read snapshots by the EBS direct APIs."""
    snapshots = _ec2(bakefile, "snapshot")
    yield _allow("BeginSnapshots", ["ebs:StartSnapshot"], snapshots, _TAGGED)
    yield _allow("WriteOurs", ["ebs:CompleteSnapshot", "ebs:PutSnapshotBlock"], snapshots, _OURS)
    yield _allow("ReadBack", ["ebs:GetSnapshotBlock", "ebs:ListChangedBlocks", "ebs:ListSnapshotBlocks"], snapshots)
    yield _allow("Register", ["ec2:RegisterImage"], _ec2(bakefile, "image", "snapshot"))


# -- registries


def _repositories(bakefile: Bakefile) -> Iterator[Policy]:
    yield from _pull(bakefile)
    pushed = _found(bakefile, built=True)
    if pushed:
        yield _allow("Push", _PUSH, pushed)


def _pull(bakefile: Bakefile) -> Iterator[Policy]:
    repositories = _found(bakefile)
    if repositories:
        yield _allow("LogInToEcr", ["ecr:GetAuthorizationToken"])
        yield _allow("Pull", _PULL, repositories)


def _found(bakefile: Bakefile, *, built: bool = False) -> list[str]:
    """Return the ARNs of the ECR repositories that the Bakefile's images are in, or are pushed to."""
    references = [entry.parsed for entry in bakefile.images if entry.build or not built]
    if bakefile.sandbox not in {"auto", "none"} and not built:
        references.append(Reference.parse(bakefile.sandbox))
    arns = []
    for reference in references:
        host = ecr.parse(reference.registry)
        if host and not host.public:
            name = f"repository/{reference.repository}"
            arns.append(_arn(bakefile, "ecr", name, region=host.region, account=host.account))
    return sorted(set(arns))


# -- roles


def _trust(bakefile: Bakefile) -> Policy:
    service = {"Service": f"ec2.amazonaws.com{_suffix(bakefile)}"}
    statement = {"Effect": "Allow", "Principal": service, "Action": ["sts:AssumeRole"]}
    return {"Version": "2012-10-17", "Statement": [statement]}


def _karpenter(bakefile: Bakefile) -> Iterator[Policy]:
    """Allow Karpenter's role what its own policy does not: the keys of encrypted snapshots."""
    if bakefile.builder in {"ec2", "ebs", "packer"} and bakefile.aws.encrypted and bakefile.aws.kms_key:
        key = bakefile.aws.kms_key
        keys = [key] if key.startswith("arn:") else [_arn(bakefile, "kms", "key/*")]
        actions = [action for action in _KMS if action != "kms:CreateGrant"]
        yield _allow("StartEncrypted", actions, keys)
        yield _allow("Grant", ["kms:CreateGrant"], keys, {"Bool": {"kms:GrantIsForAWSResource": "true"}})

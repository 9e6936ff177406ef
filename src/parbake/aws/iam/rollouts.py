"""What a Bakefile's ``rollout`` needs in AWS: of whoever rolls out, and of Karpenter where it reads a parameter.

Sources: Service Authorization Reference for EC2 Auto Scaling, EKS and Systems Manager; EC2 Auto Scaling user guide,
"Launch template support" (who gives a group a version must be allowed to launch what it says, which is not asked where
the group takes $Latest or $Default); EC2 user guide, "Control access to launch templates with IAM permissions" (no
policy restricts what a new version names) and "Example policies" (ec2:IsLaunchTemplateResource); Systems Manager user
guide, "Using AMI IDs in parameters" (who puts one must be allowed to describe images); EC2 API reference, DeleteTags
(without tags it deletes all); ModifyVolume is narrowed by the volume's tags, DescribeVolumesModifications by nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from parbake.aws import VERIFIED
from parbake.aws.iam.statements import OURS, Policy, Scope, allow, both, here, never_take_over, suffix, tagging
from parbake.aws.tags import BOOST
from parbake.bakefile.targets import Target

_AROUND = (
    "capacity-reservation", "instance", "launch-template", "network-interface", "placement-group", "security-group",
    "subnet", "volume",
)  # fmt: skip


def statements(scope: Scope) -> Iterator[Policy]:
    """Yield the statements of whoever rolls out: to look at artefacts, and for targets without a role of their own."""
    bakefile, own = scope.bakefile, scope.alone(each for each in scope.bakefile.rollout if not each.role)
    if bakefile.rollout:  # what a record names is compared with its tags
        condition = here(scope.of(bakefile.rollout))
        yield allow("LookAtArtefacts", ["ec2:DescribeImages", "ec2:DescribeSnapshots"], condition=condition)
    fast = bool(bakefile.rollout and bakefile.aws.fast_snapshot_restore and not bakefile.aws.fast_at_bake)
    if fast:
        reads = ["cloudwatch:GetMetricData", "ec2:DescribeFastSnapshotRestores"]
        yield allow("LookAtFastRestores", reads, condition=here(scope.places))
        changes = ["ec2:CreateTags", "ec2:EnableFastSnapshotRestores"]
        yield allow("RestoreFast", changes, scope.ec2("snapshot", regions=scope.places), OURS)
    if bakefile.verify.by == "canary" and any(target.canary for target in bakefile.rollout):
        made = scope.ec2("image", "snapshot", regions=scope.places)
        yield allow("SayWhatIsProven", ["ec2:CreateTags"], made, both(OURS, tagging(VERIFIED)))
    of_targets = list(for_targets(own))
    yield from of_targets
    if fast and not any(each["Sid"] == "NeverTakeOver" for each in of_targets):
        yield never_take_over(scope)


def for_targets(scope: Scope, baked_in: str = "") -> Iterator[Policy]:
    """Yield the statements for targets in AWS; files, and node classes that name images by id, need none.

    ``baked_in`` is the account that shares its artefacts with that of the targets, if it is another.
    """
    bakefile = scope.bakefile
    groups = [target for target in bakefile.rollout if target.asg]
    nodegroups = [target for target in bakefile.rollout if target.nodegroup]
    if groups:
        yield from _groups(scope, groups)
    if nodegroups:
        yield from _nodegroups(scope, nodegroups)
    if groups or nodegroups:
        yield from _templates(scope, [*groups, *nodegroups], roles=bool(groups))
        yield from _launches(scope, scope.of([*groups, *nodegroups]), baked_in)
    read = parameters(scope)
    tags = [target for target in bakefile.rollout if target.karpenter and target.karpenter.tag]
    if read:
        yield allow("Parameters", ["ssm:GetParameter", "ssm:GetParameterHistory", "ssm:PutParameter"], read)
    if tags:
        yield from _tags(scope, tags)
    if tags or groups or nodegroups:
        yield never_take_over(scope)


def boosting(scope: Scope) -> list[Target]:
    """Return the targets whose nodes launch with raised volumes."""
    return [each for each in scope.bakefile.rollout if each.remedy == "boost"]


def taking_back(scope: Scope, targets: Sequence[Target]) -> Iterator[Policy]:
    """Allow to take raised volumes back, those with the tag of ``boost`` alone: what the nodes of targets do.

    AWS has no condition on what a volume is changed to, nor on whose instance it is.
    """
    places = scope.of(targets) or scope.places
    tagged: Policy = {"StringLike": {f"aws:ResourceTag/{BOOST}": "*"}}
    yield allow("TakeBackRaised", ["ec2:ModifyVolume"], scope.ec2("volume", regions=places), tagged)
    yield allow("LookAtChanges", ["ec2:DescribeVolumesModifications"], condition=here(places))


def parameters(scope: Scope) -> list[str]:
    """Return the ARNs of the parameters of targets, which hold machine images' ids."""
    found = set()
    for target in scope.bakefile.rollout:
        reads = target.ssm or target.karpenter
        if reads and reads.parameter:
            found |= set(scope.parameter(reads.parameter, scope.of([target])))
    return sorted(found)


def _tags(scope: Scope, targets: Sequence[Target]) -> Iterator[Policy]:
    """Allow to move tags from image to image, to parbake's own alone, and no other tag."""
    keys: dict[str, list[Target]] = {}
    for target in targets:
        if target.karpenter and target.karpenter.tag:
            keys.setdefault(target.karpenter.tag, []).append(target)
    for number, (tag, its) in enumerate(sorted(keys.items()), 1):
        key, _, value = tag.partition("=")
        images = scope.ec2("image", regions=scope.of(its))
        alone = tagging(key)
        yield allow(f"PromoteImages{number}", ["ec2:CreateTags"], images, both(OURS, alone))
        tagged: Policy = {"StringEquals": {f"aws:ResourceTag/{key}": value}}
        yield allow(f"DemoteImages{number}", ["ec2:DeleteTags"], images, both(tagged, alone))
        # Where AWS still shows a tag that has gone already, it is taken away once more.
        yield allow(f"DemoteOurs{number}", ["ec2:DeleteTags"], images, both(OURS, alone))


def _groups(scope: Scope, targets: Sequence[Target]) -> Iterator[Policy]:
    reads = ["autoscaling:DescribeAutoScalingGroups", "autoscaling:DescribeInstanceRefreshes"]
    yield allow("LookAtGroups", reads, condition=here(scope.of(targets)))
    changes = ["CreateOrUpdateTags", "DeleteTags", "RollbackInstanceRefresh", "StartInstanceRefresh"]
    named = {
        scope.arn("autoscaling", f"autoScalingGroup:*:autoScalingGroupName/{target.asg.group}", region)
        for target in targets
        if target.asg
        for region in scope.of([target])
    }
    yield allow("RefreshGroups", [f"autoscaling:{change}" for change in changes], sorted(named))


def _nodegroups(scope: Scope, targets: Sequence[Target]) -> Iterator[Policy]:
    clusters, named = set(), set()
    for target in targets:
        if target.nodegroup:
            cluster = target.nodegroup.cluster
            for region in scope.of([target]):
                clusters.add(scope.arn("eks", f"cluster/{cluster}", region))
                named.add(scope.arn("eks", f"nodegroup/{cluster}/{target.nodegroup.group}/*", region))
    yield allow("ListClusters", ["eks:ListClusters"], condition=here(scope.of(targets)))
    reads = ["DescribeNodegroup", "DescribeUpdate", "ListNodegroups", "ListUpdates"]
    yield allow("LookAtNodeGroups", [f"eks:{read}" for read in reads], [*sorted(clusters), *sorted(named)])
    changes = ["TagResource", "UntagResource", "UpdateNodegroupConfig", "UpdateNodegroupVersion"]
    yield allow("UpdateNodeGroups", [f"eks:{change}" for change in changes], sorted(named))


def _templates(scope: Scope, targets: Sequence[Target], *, roles: bool) -> Iterator[Policy]:
    """Allow a new version of the launch templates, whose ids are told, and to hand over the nodes' role."""
    places = scope.of(targets)
    reads = ["ec2:DescribeImages", "ec2:DescribeLaunchTemplateVersions"]
    yield allow("LookAtTemplates", reads, condition=here(places))
    yield allow("NewVersions", ["ec2:CreateLaunchTemplateVersion"], _arns(scope, places))
    if roles:  # the nodes' role is in the template; that of a managed node group is EKS's to pass
        named = [scope.arn("iam", f"role/{name}", "") for name in scope.names.roles]
        services = sorted({f"ec2.amazonaws.com{suffix(region)}" for region in places})
        yield allow("PassTheNodesRole", ["iam:PassRole"], named, {"StringEquals": {"iam:PassedToService": services}})


def _launches(scope: Scope, places: Sequence[str], baked_in: str) -> Iterator[Policy]:
    """Allow to let groups launch by the templates: what they boot and mount is parbake's, Amazon's, or told by its id.

    A group says itself in which subnets its instances start, and EKS which image where the template names none: so
    only parbake's, what is told, and keys must come from the template. The tags of what another account shares are not
    to be seen, so that there its owner counts.
    """
    launch, by_template = ["ec2:RunInstances"], {"ArnLike": {"ec2:LaunchTemplate": _arns(scope, places)}}
    named = both(by_template, {"Bool": {"ec2:IsLaunchTemplateResource": "true"}})
    disks = scope.ec2("image", "snapshot", regions=places)
    yield allow("LaunchByTemplates", launch, scope.ec2(*_AROUND, regions=places), by_template)
    yield allow("LaunchAmazons", launch, scope.ec2("image", regions=places), both(by_template, _owned("amazon")))
    yield allow("LaunchOurs", launch, disks, both(named, OURS))
    if baked_in not in {"", scope.names.account}:
        yield allow("LaunchShared", launch, disks, both(named, _owned(baked_in)))
    told = [
        arn
        for each in scope.names.launched
        for arn in scope.ec2("snapshot" if each.startswith("snap-") else "image", regions=places, name=each)
    ]
    yield allow("LaunchTold", launch, [*scope.ec2("key-pair", regions=places), *told], named)
    launched = scope.ec2("instance", "network-interface", "spot-instances-request", "volume", regions=places)
    yield allow("TagLaunched", ["ec2:CreateTags"], launched, {"StringEquals": {"ec2:CreateAction": "RunInstances"}})


def _arns(scope: Scope, places: Sequence[str]) -> list[str]:
    """Return the ARNs of the launch templates, as somebody has told their ids."""
    return [arn for each in scope.names.templates for arn in scope.ec2("launch-template", regions=places, name=each)]


def _owned(account: str) -> Policy:
    return {"StringEquals": {"ec2:Owner": account}}

"""What a Bakefile's ``rollout`` needs in AWS: of whoever rolls out, and of Karpenter where it reads a parameter.

Sources: Service Authorization Reference for EC2 Auto Scaling, EKS and Systems Manager; EC2 Auto Scaling user guide,
"Launch template support" (who gives a group a version must be allowed to launch what it says); Systems Manager user
guide, "Using AMI IDs in parameters" (who puts one must be allowed to describe images).
"""

from __future__ import annotations

from collections.abc import Iterator

from parbake.bakefile import Bakefile
from parbake.bakefile.targets import Target
from parbake.iam.words import OURS, Policy, allow, arn, ec2, partition, suffix


def statements(bakefile: Bakefile) -> Iterator[Policy]:
    """Yield the statements for all targets; files, and node classes that name images by id, need only a look."""
    groups = [target for target in bakefile.rollout if target.asg]
    nodegroups = [target for target in bakefile.rollout if target.nodegroup]
    if groups:
        yield from _groups(bakefile, groups)
    if nodegroups:
        yield from _nodegroups(bakefile, nodegroups)
    if groups or nodegroups:
        yield from _templates(bakefile, [*groups, *nodegroups], roles=bool(groups))
    read = parameters(bakefile)
    tags = [target for target in bakefile.rollout if target.karpenter and target.karpenter.tag]
    if read:
        yield allow("Parameters", ["ssm:GetParameter", "ssm:GetParameterHistory", "ssm:PutParameter"], read)
    if bakefile.rollout:  # what a record names is compared with its tags
        yield allow("LookAtArtefacts", ["ec2:DescribeImages", "ec2:DescribeSnapshots"])
    if tags:
        yield _tags(bakefile, tags)
    if bakefile.rollout and bakefile.aws.fast_snapshot_restore and not bakefile.aws.fast_at_bake:
        yield allow("LookAtFastRestores", ["ec2:DescribeFastSnapshotRestores"])
        changes = ["ec2:CreateTags", "ec2:EnableFastSnapshotRestores"]
        yield allow("RestoreFast", changes, ec2(bakefile, "snapshot"), OURS)


def parameters(bakefile: Bakefile) -> list[str]:
    """Return the ARNs of the parameters that hold machine images' ids."""
    found = []
    for target in bakefile.rollout:
        reads = target.ssm or target.karpenter
        parameter = reads.parameter if reads else None
        if parameter:
            name = parameter.removeprefix("/")
            found.append(arn(bakefile, "ssm", f"parameter/{name}", region=target.region or ""))
    return sorted(set(found))


def _tags(bakefile: Bakefile, targets: list[Target]) -> Policy:
    """Allow to move tags from image to image, and no other tag."""
    places = sorted({target.region or "" for target in targets})
    images = [arn(bakefile, "ec2", "image/*", region=region, account="") for region in places]
    keys = sorted(
        {target.karpenter.tag.partition("=")[0] for target in targets if target.karpenter and target.karpenter.tag}
    )
    condition = {"ForAllValues:StringEquals": {"aws:TagKeys": keys}}
    return allow("PromoteImages", ["ec2:CreateTags", "ec2:DeleteTags"], images, condition)


def _groups(bakefile: Bakefile, targets: list[Target]) -> Iterator[Policy]:
    looks = ["autoscaling:DescribeAutoScalingGroups", "autoscaling:DescribeInstanceRefreshes"]
    yield allow("LookAtGroups", looks)
    changes = ["CreateOrUpdateTags", "DeleteTags", "RollbackInstanceRefresh", "StartInstanceRefresh"]
    named = [
        arn(
            bakefile,
            "autoscaling",
            f"autoScalingGroup:*:autoScalingGroupName/{target.asg.group}",
            region=target.region or "",
        )
        for target in targets
        if target.asg
    ]
    yield allow("RefreshGroups", [f"autoscaling:{change}" for change in changes], sorted(set(named)))


def _nodegroups(bakefile: Bakefile, targets: list[Target]) -> Iterator[Policy]:
    clusters, named = set(), set()
    for target in targets:
        if target.nodegroup:
            cluster, region = target.nodegroup.cluster, target.region or ""
            clusters.add(arn(bakefile, "eks", f"cluster/{cluster}", region=region))
            named.add(arn(bakefile, "eks", f"nodegroup/{cluster}/{target.nodegroup.group}/*", region=region))
    yield allow("ListClusters", ["eks:ListClusters"])
    looks = ["DescribeNodegroup", "DescribeUpdate", "ListNodegroups", "ListUpdates"]
    yield allow("LookAtNodeGroups", [f"eks:{look}" for look in looks], [*sorted(clusters), *sorted(named)])
    changes = ["TagResource", "UntagResource", "UpdateNodegroupVersion"]
    yield allow("UpdateNodeGroups", [f"eks:{change}" for change in changes], sorted(named))


def _templates(bakefile: Bakefile, targets: list[Target], *, roles: bool) -> Iterator[Policy]:
    """Allow a new version of a launch template, and to let a group launch of it: the ids are not in the Bakefile."""
    places = sorted({target.region or "" for target in targets})
    templates = [arn(bakefile, "ec2", "launch-template/*", region=region) for region in places]
    yield allow("LookAtTemplates", ["ec2:DescribeImages", "ec2:DescribeLaunchTemplateVersions"])
    yield allow("NewVersions", ["ec2:CreateLaunchTemplateVersion"], templates)
    yield allow("LaunchOfTemplates", ["ec2:RunInstances"], ["*"], {"ArnLike": {"ec2:LaunchTemplate": templates}})
    kinds = ("instance", "network-interface", "spot-instances-request", "volume")
    launched = [arn(bakefile, "ec2", f"{kind}/*", region=region) for region in places for kind in kinds]
    yield allow("TagLaunched", ["ec2:CreateTags"], launched, {"StringEquals": {"ec2:CreateAction": "RunInstances"}})
    if roles:  # the nodes' role is in the template; that of a managed node group is EKS's to pass
        every = sorted({f"arn:{partition(bakefile, region)}:iam::*:role/*" for region in places})
        services = sorted({f"ec2.amazonaws.com{suffix(bakefile, region)}" for region in places})
        yield allow("PassTheNodesRole", ["iam:PassRole"], every, {"StringEquals": {"iam:PassedToService": services}})

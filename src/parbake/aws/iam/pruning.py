"""What `parbake prune --aws` needs: to read every place that may refer to an artefact, and to remove parbake's own."""

from __future__ import annotations

from collections.abc import Iterator

from parbake.aws.iam import rollouts
from parbake.aws.iam.statements import OURS, Policy, Scope, allow, here, never_take_over

_LOOKS = (
    "autoscaling:DescribeAutoScalingGroups", "autoscaling:DescribeInstanceRefreshes",
    "autoscaling:DescribeLaunchConfigurations", "ec2:DescribeFastSnapshotRestores", "ec2:DescribeImageAttribute",
    "ec2:DescribeImageReferences", "ec2:DescribeImageUsageReportEntries", "ec2:DescribeImageUsageReports",
    "ec2:DescribeImages", "ec2:DescribeInstances", "ec2:DescribeLaunchTemplates", "ec2:DescribeLaunchTemplateVersions",
    "ec2:DescribeSnapshots", "ec2:DescribeVolumes", "eks:DescribeNodegroup", "eks:DescribeUpdate", "eks:ListClusters",
    "eks:ListNodegroups", "eks:ListUpdates", "imagebuilder:GetContainerRecipe", "imagebuilder:ListContainerRecipes",
    "imagebuilder:ListImageRecipes", "ssm:DescribeParameters",
)  # fmt: skip
_CHANGES = (
    "ec2:CreateTags", "ec2:DeleteSnapshot", "ec2:DeleteTags", "ec2:DeregisterImage", "ec2:DisableFastSnapshotRestores",
    "ec2:DisableImageDeprecation", "ec2:EnableImageDeprecation",
)  # fmt: skip
_READS = ("ssm:GetParameter", "ssm:GetParameterHistory", "ssm:GetParameters")


def reads(scope: Scope) -> Iterator[Policy]:
    """Yield what it takes to see what refers to images and snapshots in an account."""
    regions = _regions(scope)
    yield allow("LookForUses", _LOOKS, condition=here(regions))
    named = [arn for name in ("/aws/service/*", *scope.names.parameters) for arn in scope.parameter(name, regions)]
    yield allow("ReadParameters", _READS, [*rollouts.parameters(scope), *named])


def _regions(scope: Scope) -> list[str]:
    return sorted({*scope.places, *scope.of(scope.bakefile.rollout)})


def statements(scope: Scope) -> Iterator[Policy]:
    """Yield the statements: no policy besides this one is needed.

    Parameters may hold secrets, and AWS knows no condition on what they are: those of the targets are named, AWS's own
    are public, and others that name an image have to be told (``Names.parameters``).
    """
    regions = _regions(scope)
    yield from reads(scope)
    yield allow("RetireOurs", _CHANGES, scope.ec2("image", "snapshot", regions=regions), OURS)
    yield allow("ReportOnOurs", ["ec2:CreateImageUsageReport"], scope.ec2("image", regions=regions), OURS)
    reports = scope.ec2("image-usage-report", regions=regions)
    yield allow("MakeReports", ["ec2:CreateImageUsageReport"], reports)
    yield never_take_over(scope)

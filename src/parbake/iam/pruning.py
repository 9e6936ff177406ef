"""What `parbake prune --aws` needs: to read every place that may refer to an artefact, and to remove parbake's own."""

from __future__ import annotations

from collections.abc import Iterator

from parbake.bakefile import Bakefile
from parbake.iam.words import OURS, Policy, allow, arn, ec2

_LOOKS = (
    "autoscaling:DescribeAutoScalingGroups", "autoscaling:DescribeLaunchConfigurations",
    "ec2:DescribeFastSnapshotRestores", "ec2:DescribeImages", "ec2:DescribeInstances",
    "ec2:DescribeLaunchTemplateVersions", "ec2:DescribeSnapshots", "ec2:DescribeVolumes", "eks:DescribeNodegroup",
    "eks:ListClusters", "eks:ListNodegroups", "ssm:DescribeParameters",
)  # fmt: skip
_CHANGES = (
    "ec2:CreateTags", "ec2:DeleteSnapshot", "ec2:DeleteTags", "ec2:DeregisterImage", "ec2:DisableFastSnapshotRestores",
    "ec2:DisableImageDeprecation", "ec2:EnableImageDeprecation",
)  # fmt: skip


def statements(bakefile: Bakefile) -> Iterator[Policy]:
    """Yield the statements; what targets hold is read with the policy ``rollout``."""
    yield allow("LookForUses", _LOOKS)
    yield allow("ReadParameters", ["ssm:GetParameter", "ssm:GetParameters"], [arn(bakefile, "ssm", "parameter/*")])
    yield allow("RetireOurs", _CHANGES, ec2(bakefile, "image", "snapshot"), OURS)

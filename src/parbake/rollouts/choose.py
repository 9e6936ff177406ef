"""From a target of the Bakefile to what can write to it. Each kind is loaded only where it is used."""

from __future__ import annotations

from parbake.aws import acting_as
from parbake.bakefile.targets import (
    AsgTarget,
    FileTarget,
    GitopsTarget,
    KarpenterTarget,
    NodegroupTarget,
    OceanTarget,
    SsmTarget,
    Target,
)
from parbake.rollouts.protocol import Rollout


def open_target(target: Target, region: str, *, force_conflicts: bool = False) -> Rollout:
    """Return the means to write to a target, in its role; ``region`` is that of AWS (empty: the user's default)."""
    with acting_as(target.role, target.external_id):
        return _opened(target, region, force_conflicts=force_conflicts)


def _opened(target: Target, region: str, *, force_conflicts: bool) -> Rollout:  # noqa: PLR0911 (one a kind)
    match target.options:
        case KarpenterTarget() as options:
            from parbake.rollouts.karpenter import Karpenter

            return Karpenter(options, region, force_conflicts=force_conflicts)
        case AsgTarget() as options:
            from parbake.rollouts.asg import Asg

            return Asg(options, region)
        case NodegroupTarget() as options:
            from parbake.rollouts.nodegroup import Nodegroup

            return Nodegroup(options, region)
        case SsmTarget() as options:
            from parbake.rollouts.parameter import Parameter

            return Parameter(options, region)
        case GitopsTarget() as options:
            from parbake.rollouts.manifests import NodeClassFile, ValuesFile

            return ValuesFile(options) if options.image_at or options.snapshot_at else NodeClassFile(options)
        case FileTarget() as options:
            return _file(options)
        case OceanTarget() as options:
            from parbake.rollouts.ocean import Ocean

            return Ocean(options)


def _file(options: FileTarget) -> Rollout:
    if options.as_ in {"json", "tfvars"}:
        from parbake.rollouts.files import ValuesForTools

        return ValuesForTools(options)
    from parbake.rollouts.manifests import InstanceGroupFile, MachineTemplateFile

    return InstanceGroupFile(options) if options.as_ == "kops" else MachineTemplateFile(options)

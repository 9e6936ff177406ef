"""From a target of the Bakefile to what can write to it. Each kind is loaded only where it is used."""

from __future__ import annotations

from parbake.bakefile.targets import KarpenterTarget, Target
from parbake.errors import InputError
from parbake.rollouts.words import Rollout


def open_target(target: Target, region: str, *, force_conflicts: bool = False) -> Rollout:
    """Return the means to write to a target; ``region`` is that of AWS, where the target is in one."""
    del region
    match target.options:
        case KarpenterTarget() as options:
            from parbake.rollouts.karpenter import Karpenter

            return Karpenter(options, force_conflicts=force_conflicts)
        case _:
            raise InputError(f"{target.name}: {target.kind} is not there yet", hint="use karpenter")

"""Auto Scaling groups: a new launch template version, and an instance refresh that brings it to the instances.

Facts: Amazon EC2 Auto Scaling user guide, "Instance refresh" (ten states, checkpoints, skip matching, rollback): the
group takes the new version when the refresh succeeds; a rollback is refused where the version before is ``$Latest`` or
``$Default`` or takes its image from a parameter.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, override

from parbake.aws import client
from parbake.aws.tags import as_dict
from parbake.bakefile.targets import AsgTarget
from parbake.core.errors import InputError, TargetMoved
from parbake.rollouts.groups import GroupState, LaunchTemplateGroup, tags_of
from parbake.rollouts.protocol import Change, RolloutProgress, TargetState
from parbake.rollouts.templates import LEFT, PREVIOUS, RESOLVED, Templates, Version

_ACTIVE = {"Pending", "InProgress", "Cancelling", "RollbackInProgress", "Baking"}
_BAD = {"Failed", "Cancelled", "RollbackFailed", "RollbackSuccessful"}


class Asg(LaunchTemplateGroup):
    """One Auto Scaling group."""

    never_took = "it has already rolled back by itself"
    no_freeze = ("an instance refresh cannot be frozen", "use checkpoints, or roll back")

    def __init__(self, target: AsgTarget, region: str) -> None:
        self.target = target
        self.device, self.disk = target.device, target.performance
        self.scaling = client("autoscaling", region)
        self.templates = Templates(region)
        self.where = f"Auto Scaling group {target.group}"

    @override
    def read(self) -> GroupState:
        """Look at the group, and at the refresh that is under way."""
        group, active = self._group(), self._refresh(active=True)
        return GroupState(group, as_dict(group), self._wanted(group, active), active)

    @override
    def unchanged(self, state: GroupState, before: TargetState, after: TargetState) -> Change:
        """Decide for a group that holds the version: nothing, or a refresh where instances are left of before."""
        behind = [each["InstanceId"] for each in state.group.get("Instances", []) if not _matches(each, state.version)]
        if state.under_way or not behind:
            return Change(self.where, before, after)
        tags = {key: value for key, value in state.tags.items() if key in {PREVIOUS, LEFT}}
        payload = {"back": state.version, "source": state.version, "tags": tags}
        diff = f"instance refresh of {', '.join(behind)} to {state.version}"
        return Change(self.where, before, after, diff, payload)

    @override
    def cautions(self, state: GroupState) -> tuple[str, ...]:
        """Return why AWS cannot go back by itself, where it cannot."""
        version = state.version
        if _revertible(version) or not self.target.auto_rollback:
            return ()
        why = "names its version as $Latest or $Default" if not version.pinned else "takes its image from a parameter"
        return (f"the group {why}, which AWS cannot roll back to on its own: the refresh runs without auto-rollback",)

    @override
    def back_to(self, before: Version) -> dict[str, Any]:
        """Name the version itself."""
        return {"back": before}

    @override
    def write(self, change: Change) -> None:
        """Make the version, write down the one before, and start the refresh."""
        state = self.read()
        source = self.still(state, change)
        back: Version | None = change.payload.get("back")
        if back and state.under_way and state.under_way["Status"] in {"Pending", "InProgress", "Baking"}:
            self._tag(change, back)
            self.scaling.rollback_instance_refresh(AutoScalingGroupName=self.target.group)
            return
        if state.under_way:
            raise TargetMoved(
                f"{self.where}: an instance refresh is {state.under_way['Status']}",
                hint="wait for it, or cancel it, and run again",
            )
        version = back or self.templates.make(source, change.payload["changes"], change.payload["description"])
        self._tag(change, version)
        self.scaling.start_instance_refresh(
            AutoScalingGroupName=self.target.group,
            Strategy="Rolling",
            DesiredConfiguration=_desired(state.group, version),
            Preferences=preferences(self.target, revertible=_revertible(source)),
        )

    @override
    def follow(self, wanted: TargetState) -> RolloutProgress:
        group, last = self._group(), self._refresh(active=False)
        return judge(group, last, self._version_of(group), self._wanted(group, last), wanted, self.device)

    def _group(self) -> dict[str, Any]:
        found = self.scaling.describe_auto_scaling_groups(AutoScalingGroupNames=[self.target.group])
        if not found["AutoScalingGroups"]:
            every = self.scaling.pages("describe_auto_scaling_groups", "AutoScalingGroups")
            names = ", ".join(each["AutoScalingGroupName"] for each in every)
            raise InputError(f"there is no {self.where}", hint=f"there are: {names or 'none'}")
        group: dict[str, Any] = found["AutoScalingGroups"][0]
        if not _specification(group):
            raise InputError(f"{self.where} has no launch template", hint="give it one")
        return group

    def _version_of(self, group: Mapping[str, Any]) -> Version:
        return self.templates.version(_specification(group))

    def _wanted(self, group: Mapping[str, Any], refresh: Mapping[str, Any] | None) -> Version:
        """Return the version that a refresh under way brings, or else that of the group."""
        desired = (refresh or {}).get("DesiredConfiguration") if (refresh or {}).get("Status") in _ACTIVE else None
        if desired and (refresh or {}).get("Status") != "RollbackInProgress":
            return self.templates.version(_specification(desired))
        return self._version_of(group)

    def _refresh(self, *, active: bool) -> dict[str, Any] | None:
        found = self.scaling.describe_instance_refreshes(AutoScalingGroupName=self.target.group, MaxRecords=1)
        last: dict[str, Any] | None = next(iter(found["InstanceRefreshes"]), None)
        return last if last and (not active or last["Status"] in _ACTIVE) else None

    def _tag(self, change: Change, version: Version) -> None:
        written, gone = tags_of(change, version)
        place = {"ResourceId": self.target.group, "ResourceType": "auto-scaling-group"}
        made = [{**place, "Key": key, "Value": value, "PropagateAtLaunch": False} for key, value in written.items()]
        self.scaling.create_or_update_tags(Tags=made)
        self.scaling.delete_tags(Tags=[{**place, "Key": key} for key in gone])


def preferences(target: AsgTarget, *, revertible: bool) -> dict[str, Any]:
    """Return the preferences of a refresh. Pure."""
    found: dict[str, Any] = {
        "MinHealthyPercentage": target.healthy,
        "SkipMatching": True,
        "AutoRollback": target.auto_rollback and revertible,
    }
    if target.checkpoints:
        found |= {"CheckpointPercentages": list(target.checkpoints), "CheckpointDelay": int(target.checkpoint_wait)}
    if target.warmup is not None:
        found["InstanceWarmup"] = int(target.warmup)
    return found


def judge(
    group: Mapping[str, Any],
    refresh: Mapping[str, Any] | None,
    version: Version,
    wanted_version: Version,
    wanted: TargetState,
    device: str,
) -> RolloutProgress:
    """Say how far the instances are; pure. ``version`` is the group's, ``wanted_version`` what a refresh brings."""
    total = len(group.get("Instances", []))
    state = (refresh or {}).get("Status", "")
    reason = (refresh or {}).get("StatusReason", "")
    if state in _ACTIVE:
        left = int((refresh or {}).get("InstancesToUpdate", total))
        says = f"instance refresh {state}" + (f": {reason}" if reason else "")
        return RolloutProgress(max(0, total - left), total, False, (says,))
    arrived = version.held(device).same_ids(wanted)
    if state in _BAD and not arrived:
        return RolloutProgress(
            0, total, False, failed=f"the instance refresh ended as {state}: {reason or 'no reason given'}"
        )
    if not arrived:
        return RolloutProgress(0, total, False, (f"the group holds {version}, {wanted_version.held(device)}",))
    behind = [each["InstanceId"] for each in group.get("Instances", []) if not _matches(each, version)]
    waiting = tuple(f"{each}: started from another version" for each in behind)
    return RolloutProgress(total - len(behind), total, not behind, waiting)


def _matches(instance: Mapping[str, Any], version: Version) -> bool:
    template = instance.get("LaunchTemplate", {})
    number = str(template.get("Version", ""))
    return template.get("LaunchTemplateId") == version.template and number == str(version.number)


def _specification(group: Mapping[str, Any]) -> dict[str, Any]:
    mixed = group.get("MixedInstancesPolicy", {}).get("LaunchTemplate", {}).get("LaunchTemplateSpecification")
    return dict(group.get("LaunchTemplate") or mixed or {})


def _desired(group: Mapping[str, Any], version: Version) -> dict[str, Any]:
    """Return the configuration that a refresh brings: the group's own, with another version by its number."""
    specification = {"LaunchTemplateId": version.template, "Version": str(version.number)}
    if group.get("MixedInstancesPolicy"):
        policy = copy.deepcopy(group["MixedInstancesPolicy"])
        policy["LaunchTemplate"]["LaunchTemplateSpecification"] = specification
        return {"MixedInstancesPolicy": policy}
    return {"LaunchTemplate": specification}


def _revertible(version: Version) -> bool:
    return version.pinned and not str(version.data.get("ImageId", "")).startswith(RESOLVED)

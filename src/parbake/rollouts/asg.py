"""Auto Scaling groups: a new launch template version, and an instance refresh that brings it to the instances.

Facts: Amazon EC2 Auto Scaling user guide, "Instance refresh" (ten states, checkpoints, skip matching, rollback): the
group takes the new version when the refresh succeeds; a rollback is refused where the version before is ``$Latest`` or
``$Default`` or takes its image from a parameter.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from parbake.aws import client
from parbake.aws.tags import as_dict
from parbake.bakefile.targets import AsgTarget
from parbake.errors import InputError, TargetMoved
from parbake.rollouts.templates import (
    CURRENT,
    LEFT,
    PREVIOUS,
    Templates,
    Version,
    artefact_of,
    describe,
    new_data,
    the_way_back,
)
from parbake.rollouts.words import Change, Follow, Held, Offer, Standing, show

_ACTIVE = {"Pending", "InProgress", "Cancelling", "RollbackInProgress", "Baking"}
_BAD = {"Failed", "Cancelled", "RollbackFailed", "RollbackSuccessful"}


class Asg:
    """One Auto Scaling group."""

    def __init__(self, target: AsgTarget, region: str) -> None:
        self.target = target
        self.scaling = client("autoscaling", region)
        self.templates = Templates(region)
        self.where = f"Auto Scaling group {target.group}"

    def plan(self, offer: Offer) -> Change:
        """Decide which version the group gets."""
        group = self._group()
        active = self._refresh(active=True)
        now = self._wanted(group, active)
        before = now.held(self.target.device, artefact_of(as_dict(group), now))
        changes = new_data(now.data, offer, device=self.target.device)
        kept = {"image": offer.image or before.image, "snapshot": offer.snapshot or before.snapshot}
        after = offer.held.model_copy(update=kept)
        if not changes:
            return self._refreshed(group, now, active, before, after)
        diff = show(now.data, {**now.data, **changes}, f"{self.where}: launch template {now}")
        payload = {"source": now, "changes": changes, "description": describe(offer), "tags": {PREVIOUS: str(now)}}
        return Change(self.where, before, after, diff, payload, (), _cautions(now, self.target))

    def _refreshed(
        self, group: Mapping[str, Any], now: Version, active: Mapping[str, Any] | None, before: Held, after: Held
    ) -> Change:
        """Decide for a group that holds it: nothing, or a refresh where instances are left of before."""
        behind = [each["InstanceId"] for each in group.get("Instances", []) if not _matches(each, now)]
        if active or not behind:
            return Change(self.where, before, after)
        tags = {key: value for key, value in as_dict(group).items() if key in {PREVIOUS, LEFT}}
        payload = {"back": now, "source": now, "tags": tags}
        return Change(self.where, before, after, f"instance refresh of {', '.join(behind)} to {now}", payload)

    def plan_back(self) -> Change:
        """Decide how the group returns to the version before."""
        group = self._group()
        now = self._wanted(group, self._refresh(active=True))
        holds = now.held(self.target.device, artefact_of(as_dict(group), now))
        text = the_way_back(as_dict(group), self.where)
        if not text:
            return Change(self.where, holds, holds, cautions=(f"it has returned already, from {as_dict(group)[LEFT]}",))
        before = self.templates.numbered(text)
        if str(before) == str(now):
            return Change(self.where, holds, holds, cautions=("it has gone back by itself already",))
        diff = show(now.data, before.data, f"{self.where}: launch template {now} -> {before}")
        payload = {"back": before, "source": now, "tags": {LEFT: str(now)}}
        diff = diff or f"launch template {now} -> {before}"
        return Change(self.where, holds, before.held(self.target.device), diff, payload)

    def write(self, change: Change) -> None:
        """Make the version, write down the one before, and start the refresh."""
        group, active = self._group(), self._refresh(active=True)
        source: Version = change.payload["source"]
        if str(self._wanted(group, active)) != str(source):
            raise TargetMoved(f"{self.where}: it holds {self._wanted(group, active)} now, not {source}")
        back: Version | None = change.payload.get("back")
        if active and back and active["Status"] in {"Pending", "InProgress", "Baking"}:
            self._tag(change.payload["tags"], back, change.after)
            self.scaling.rollback_instance_refresh(AutoScalingGroupName=self.target.group)
            return
        if active:
            raise TargetMoved(
                f"{self.where}: an instance refresh is {active['Status']}",
                hint="wait for it, or cancel it, and run again",
            )
        version = back or self.templates.make(source, change.payload["changes"], change.payload["description"])
        self._tag(change.payload["tags"], version, change.after)
        self.scaling.start_instance_refresh(
            AutoScalingGroupName=self.target.group,
            Strategy="Rolling",
            DesiredConfiguration=_desired(group, version),
            Preferences=preferences(self.target, revertible=_revertible(source)),
        )

    def follow(self, wanted: Held) -> Follow:
        """Look at the refresh and the instances."""
        group, last = self._group(), self._refresh(active=False)
        return judge(group, last, self._version_of(group), self._wanted(group, last), wanted, self.target.device)

    def standing(self) -> Standing:
        """Say what the group holds and wants."""
        group = self._group()
        now = self._wanted(group, self._refresh(active=True))
        tags = as_dict(group)
        holds = now.held(self.target.device, artefact_of(tags, now))
        before, left = self.templates.behind(tags, self.target.device)
        return Standing(f"{self.where}, launch template {now}", holds, before, self.follow(holds), left=left)

    def freeze(self, *, frozen: bool) -> tuple[str, ...]:
        """Refuse: an instance refresh cannot wait, only end."""
        del frozen
        raise InputError(f"{self.where}: an instance refresh cannot be frozen", hint="use checkpoints, or go back")

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

    def _tag(self, tags: Mapping[str, str], version: Version, holds: Held) -> None:
        written = {CURRENT: f"{version} {holds.artefact}".strip(), **tags}
        gone = {PREVIOUS, LEFT} - set(tags)
        place = {"ResourceId": self.target.group, "ResourceType": "auto-scaling-group"}
        made = [{**place, "Key": key, "Value": value, "PropagateAtLaunch": False} for key, value in written.items()]
        self.scaling.create_or_update_tags(Tags=made)
        self.scaling.delete_tags(Tags=[{**place, "Key": key} for key in sorted(gone)])


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
    wanted: Held,
    device: str,
) -> Follow:
    """Say how far the instances are; pure. ``version`` is the group's, ``wanted_version`` what a refresh brings."""
    total = len(group.get("Instances", []))
    state = (refresh or {}).get("Status", "")
    reason = (refresh or {}).get("StatusReason", "")
    if state in _ACTIVE:
        left = int((refresh or {}).get("InstancesToUpdate", total))
        says = f"instance refresh {state}" + (f": {reason}" if reason else "")
        return Follow(max(0, total - left), total, False, (says,))
    arrived = _same(version.held(device), wanted)
    if state in _BAD and not arrived:
        return Follow(0, total, False, failed=f"the instance refresh ended as {state}: {reason or 'no reason given'}")
    if not arrived:
        return Follow(0, total, False, (f"the group holds {version}, {wanted_version.held(device)}",))
    behind = [each["InstanceId"] for each in group.get("Instances", []) if not _matches(each, version)]
    waiting = tuple(f"{each}: started from another version" for each in behind)
    return Follow(total - len(behind), total, not behind, waiting)


def _same(one: Held, other: Held) -> bool:
    return (one.image, one.snapshot) == (other.image, other.snapshot)


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
    return version.pinned and not str(version.data.get("ImageId", "")).startswith("resolve:ssm:")


def _cautions(version: Version, target: AsgTarget) -> tuple[str, ...]:
    if _revertible(version) or not target.auto_rollback:
        return ()
    why = "names its version as $Latest or $Default" if not version.pinned else "takes its image from a parameter"
    return (f"the group {why}, which AWS cannot go back to by itself: the refresh runs without auto-rollback",)

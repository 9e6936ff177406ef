"""Managed node groups of EKS: a new version of the group's own launch template, and EKS's update to it.

Facts: Amazon EKS user guide, "Launch templates" and "Update a managed node group": the template stays the same, its
version rises; a group that EKS chose the image for cannot get one of its own later. Its Auto Scaling group is EKS's.

So is its warm pool, whose instances have booted already, from the template of before, and would join as they are (user
guide, "warm pools with managed node groups": only with EKS's own images, and to be configured by EKS's API alone). A
rollout takes the pool away, updates the group, and brings the pool back as it was; what it was is a tag meanwhile.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, override

from parbake.aws import Observation, client, token, wait
from parbake.bakefile.targets import NodegroupTarget
from parbake.core.errors import AwsNotFound, InputError, TargetMoved
from parbake.core.events import Events
from parbake.rollouts.groups import GroupState, LaunchTemplateGroup, tags_of
from parbake.rollouts.protocol import OWNER, Change, Offer, RolloutProgress, TargetState
from parbake.rollouts.templates import Templates, Version

POOL = f"{OWNER}:pool"
"""The tag that says what a warm pool was, while a rollout has taken it away."""
_POOL_SECONDS = 1800.0
_UPDATES = 6  # that are looked at: those of a pool stand between those of versions


class Nodegroup(LaunchTemplateGroup):
    """One managed node group."""

    never_took = "the update of the last rollout never took effect"
    no_freeze = ("an update of EKS cannot be frozen", "roll back when it has ended")

    def __init__(self, target: NodegroupTarget, region: str) -> None:
        self.target = target
        self.device, self.disk = target.device, target.performance
        self.eks = client("eks", region)
        self.templates = Templates(region)
        self.where = f"node group {target.group} of {target.cluster}"

    @override
    def read(self) -> GroupState:
        """Look at the group, and at the update that is under way."""
        group, coming = self._group(), None
        if group["status"] == "UPDATING":
            coming = self._coming(group)
            if coming is None:
                group = self._group()  # it may have ended since
        return GroupState(group, group.get("tags") or {}, coming or self._version(group))

    @override
    def refusals(self, state: GroupState, offer: Offer) -> tuple[str, ...]:
        """Return why EKS would take no image, or its nodes not the volume."""
        kind = str(state.group.get("amiType"))
        if kind == "CUSTOM":
            return ()
        if offer.images:
            return (f"EKS chooses the images of this group (amiType {kind}); it takes no other",)
        if offer.family and not kind.startswith(offer.family.upper()):
            return (f"the volume is {offer.family}'s own, and EKS runs this group with amiType {kind}",)
        if offer.mount and kind.startswith(("BOTTLEROCKET", "WINDOWS")):
            return (f"EKS runs this group with amiType {kind}, whose nodes cannot mount the volume",)
        return ()

    @override
    def cautions(self, state: GroupState) -> tuple[str, ...]:
        """Return a warning where the warm pool goes for a while."""
        if not _pool(state.group).get("enabled") and POOL not in state.tags:
            return ()
        return ("its warm pool is emptied for the update and filled anew after it: until then, new nodes start cold",)

    @override
    def back_to(self, before: Version) -> dict[str, Any]:
        """Say what the version before says: EKS only goes forward, so that it becomes a new version."""
        kept = {key: before.data[key] for key in ("ImageId", "BlockDeviceMappings") if key in before.data}
        return {"from": before, "changes": kept, "description": f"parbake back to {before}"}

    @override
    def write(self, change: Change) -> None:
        """Make the version, write down the one before, and let EKS update the group."""
        state = self.read()
        source = self.still(state, change)
        if POOL in state.tags or _pool(state.group).get("enabled"):
            state = self._without_pool(state)
        if state.group["status"] != "ACTIVE":
            raise TargetMoved(
                f"{self.where}: it is {state.group['status']}", hint="wait until it is ACTIVE, and run it again"
            )
        version: Version = change.payload.get("from") or source
        if version.number <= source.number:  # else a run before has made it, to go back to
            version = self.templates.make(version, change.payload["changes"], change.payload["description"])
        written, gone = tags_of(change, version)
        self.eks.tag_resource(resourceArn=state.group["nodegroupArn"], tags=written)
        self.eks.untag_resource(resourceArn=state.group["nodegroupArn"], tagKeys=gone)
        self.eks.update_nodegroup_version(
            clusterName=self.target.cluster,
            nodegroupName=self.target.group,
            launchTemplate={"id": version.template, "version": str(version.number)},
            force=self.target.force,
            clientRequestToken=token("nodegroup", self.where, str(source), str(version)),
        )

    @override
    def progress(self, wanted: TargetState) -> RolloutProgress:
        group = self._group()
        return judge(group, self._last_update(), self._version(group).held(self.device), wanted)

    @override
    def follow(self, wanted: TargetState) -> RolloutProgress:
        """Look once how far the nodes are; when the update has ended, bring the warm pool back."""
        seen, group = self.progress(wanted), self._group()
        kept = (group.get("tags") or {}).get(POOL)
        if not kept or not (seen.done or seen.failed) or group["status"] != "ACTIVE":
            return seen
        if _pool(group).get("enabled"):
            self.eks.untag_resource(resourceArn=group["nodegroupArn"], tagKeys=[POOL])
            return seen
        self._set_pool(_read_pool(kept))
        return seen if seen.failed else replace(seen, done=False, waiting=("EKS fills its warm pool anew",))

    def _without_pool(self, state: GroupState) -> GroupState:
        """Remove the warm pool, after recording what it was; the next run continues one that was killed meanwhile."""
        pool = _pool(state.group)
        if pool.get("enabled"):
            self.eks.tag_resource(resourceArn=state.group["nodegroupArn"], tags={POOL: _written_pool(pool)})
            self._settled(pool=True)
            self._set_pool({"enabled": False})
        return replace(state, group=self._settled(pool=False))

    def _set_pool(self, pool: Mapping[str, Any]) -> None:
        self.eks.update_nodegroup_config(
            clusterName=self.target.cluster, nodegroupName=self.target.group, warmPoolConfig=dict(pool)
        )

    def _settled(self, *, pool: bool) -> Mapping[str, Any]:
        """Wait until EKS is done with the group, and has or has not a warm pool. Raises DeadlineExceeded."""

        def look() -> Observation:
            group = self._group()
            there = bool(_pool(group).get("enabled"))
            return Observation(group["status"] == "ACTIVE" and there == pool, str(group["status"]), value=group)

        hint = "run the same command again: it goes on from here"
        what = f"the warm pool of {self.where}"
        found: Mapping[str, Any] = wait(what, look, seconds=_POOL_SECONDS, events=Events(), hint=hint, new=False)
        return found

    def _group(self) -> dict[str, Any]:
        try:
            group: dict[str, Any] = self.eks.describe_nodegroup(
                clusterName=self.target.cluster, nodegroupName=self.target.group
            )["nodegroup"]
        except AwsNotFound as error:
            raise InputError(f"there is no {self.where}: {error.message}", hint=self._there_are()) from error
        if not group.get("launchTemplate"):
            raise InputError(f"{self.where} has no launch template", hint="make a node group with one of its own")
        return group

    def _there_are(self) -> str:
        clusters = list(self.eks.pages("list_clusters", "clusters"))
        if self.target.cluster not in clusters:
            return f"there are the clusters: {', '.join(clusters) or 'none'}"
        names = self.eks.pages("list_nodegroups", "nodegroups", clusterName=self.target.cluster)
        return f"there are: {', '.join(names) or 'none'}"

    def _version(self, group: Mapping[str, Any]) -> Version:
        template = group["launchTemplate"]
        return self.templates.version({"LaunchTemplateId": template["id"], "Version": template.get("version")})

    def _coming(self, group: Mapping[str, Any]) -> Version | None:
        """Return the version that an update under way brings."""
        update = self._last_update()
        if not update or update.get("status") != "InProgress":
            return None
        said = {each["type"]: each["value"] for each in update.get("params", [])}
        if "LaunchTemplateVersion" not in said:
            return None
        template = group["launchTemplate"]["id"]
        return self.templates.version({"LaunchTemplateId": template, "Version": said["LaunchTemplateVersion"]})

    def _last_update(self) -> dict[str, Any] | None:
        names = {"name": self.target.cluster, "nodegroupName": self.target.group}
        listed = list(self.eks.pages("list_updates", "updateIds", **names))
        updates = [self.eks.describe_update(updateId=each, **names)["update"] for each in listed[-_UPDATES:]]
        ours = [each for each in updates if each.get("type") == "VersionUpdate"]
        return max(ours, key=lambda each: str(each.get("createdAt", "")), default=None)


def _pool(group: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = group.get("warmPoolConfig") or {}
    return found


def _written_pool(pool: Mapping[str, Any]) -> str:
    """Return a warm pool as a tag may hold it: its values allow neither quotes nor braces."""
    return " ".join(f"{name}={json.dumps(value)}".replace('"', "") for name, value in sorted(pool.items()))


def _read_pool(text: str) -> dict[str, Any]:
    """Return the warm pool that a tag holds."""
    said = (each.partition("=") for each in text.split())
    return {name: value if value.isupper() else json.loads(value) for name, _, value in said}


def judge(
    group: Mapping[str, Any], update: Mapping[str, Any] | None, holds: TargetState, wanted: TargetState
) -> RolloutProgress:
    """Say how far a node group is; pure. EKS counts no nodes: all of them, or none yet."""
    total = int(group.get("scalingConfig", {}).get("desiredSize", 0))
    troubles = [f"{each['code']}: {each['message']}" for each in group.get("health", {}).get("issues", [])]
    state = (update or {}).get("status", "Successful")
    errors = [f"{each.get('errorCode')}: {each.get('errorMessage')}" for each in (update or {}).get("errors", [])]
    arrived = holds.same_ids(wanted)
    if state == "InProgress" or group["status"] == "UPDATING":
        return RolloutProgress(0, total, False, (f"EKS is updating it ({state})", *errors, *troubles))
    if not arrived:
        if state in {"Failed", "Cancelled"}:
            return RolloutProgress(
                0, total, False, failed=f"EKS's update {state.lower()}: {'; '.join(errors) or 'no reason given'}"
            )
        return RolloutProgress(0, total, False, (f"it holds {holds}", *troubles))
    return RolloutProgress(total, total, group["status"] == "ACTIVE", tuple(troubles))

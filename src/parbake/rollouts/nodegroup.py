"""Managed node groups of EKS: a new version of the group's own launch template, and EKS's update to it.

Facts: Amazon EKS user guide, "Launch templates" and "Update a managed node group": the template stays the same, its
version rises; a group that EKS chose the image for cannot get one of its own later. Its Auto Scaling group is EKS's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from parbake.aws import client, token
from parbake.bakefile.targets import NodegroupTarget
from parbake.errors import AwsNotFound, InputError, TargetMoved
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


class Nodegroup:
    """One managed node group."""

    def __init__(self, target: NodegroupTarget, region: str) -> None:
        self.target = target
        self.eks = client("eks", region)
        self.templates = Templates(region)
        self.where = f"node group {target.group} of {target.cluster}"

    def plan(self, offer: Offer) -> Change:
        """Decide which version the node group gets."""
        group = self._group()
        now = self._version(group)
        before = now.held(self.target.device, artefact_of(_tags(group), now))
        changes = new_data(now.data, offer, device=self.target.device)
        kept = {"image": offer.image or before.image, "snapshot": offer.snapshot or before.snapshot}
        after = offer.held.model_copy(update=kept)
        if not changes:
            return Change(self.where, before, after)
        diff = show(now.data, {**now.data, **changes}, f"{self.where}: launch template {now}")
        payload = {"source": now, "changes": changes, "description": describe(offer), "tags": {PREVIOUS: str(now)}}
        refusals: tuple[str, ...] = ()
        if offer.image and group.get("amiType") != "CUSTOM":
            refusals = (f"EKS chooses the images of this group (amiType {group.get('amiType')}); it takes no other",)
        return Change(self.where, before, after, diff, payload, refusals)

    def plan_back(self) -> Change:
        """Decide how the group returns: EKS only goes forward, so to a new version that says what the old one says."""
        group = self._group()
        now = self._version(group)
        holds = now.held(self.target.device, artefact_of(_tags(group), now))
        text = the_way_back(_tags(group), self.where)
        if not text:
            return Change(self.where, holds, holds, cautions=(f"it has returned already, from {_tags(group)[LEFT]}",))
        before = self.templates.numbered(text)
        after = before.held(self.target.device)
        if str(before) == str(now):
            return Change(self.where, holds, holds, cautions=("the update of the last rollout never took",))
        diff = show(now.data, before.data, f"{self.where}: launch template {now}, as {before}")
        kept = {key: before.data[key] for key in ("ImageId", "BlockDeviceMappings") if key in before.data}
        payload = {
            "source": now,
            "from": before,
            "changes": kept,
            "description": f"parbake back to {before}",
            "tags": {LEFT: str(now)},
        }
        return Change(self.where, holds, after, diff or f"as {before}", payload)

    def write(self, change: Change) -> None:
        """Make the version, write down the one before, and let EKS update the group."""
        group = self._group()
        source: Version = change.payload["source"]
        if str(self._version(group)) != str(source):
            raise TargetMoved(f"{self.where}: it holds {self._version(group)} now, not {source}")
        if group["status"] != "ACTIVE":
            raise TargetMoved(
                f"{self.where}: it is {group['status']}", hint="wait until it is ACTIVE, and run it again"
            )
        made_from: Version = change.payload.get("from") or source
        version = self.templates.make(made_from, change.payload["changes"], change.payload["description"])
        written = {CURRENT: f"{version} {change.after.artefact}".strip(), **change.payload["tags"]}
        self.eks.tag_resource(resourceArn=group["nodegroupArn"], tags=written)
        gone = sorted({PREVIOUS, LEFT} - set(written))
        self.eks.untag_resource(resourceArn=group["nodegroupArn"], tagKeys=gone)
        self.eks.update_nodegroup_version(
            clusterName=self.target.cluster,
            nodegroupName=self.target.group,
            launchTemplate={"id": version.template, "version": str(version.number)},
            force=self.target.force,
            clientRequestToken=token("nodegroup", self.where, str(source), str(version)),
        )

    def follow(self, wanted: Held) -> Follow:
        """Look at the group and at EKS's last update of it."""
        group = self._group()
        return judge(group, self._last_update(), self._version(group).held(self.target.device), wanted)

    def standing(self) -> Standing:
        """Say what the node group holds."""
        group = self._group()
        now, tags = self._version(group), _tags(group)
        holds = now.held(self.target.device, artefact_of(tags, now))
        before, left = self.templates.behind(tags, self.target.device)
        return Standing(f"{self.where}, launch template {now}", holds, before, self.follow(holds), left=left)

    def freeze(self, *, frozen: bool) -> tuple[str, ...]:
        """Refuse: EKS ends what it has begun."""
        del frozen
        raise InputError(f"{self.where}: an update of EKS cannot be frozen", hint="go back when it has ended")

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

    def _last_update(self) -> dict[str, Any] | None:
        names = {"name": self.target.cluster, "nodegroupName": self.target.group}
        listed = list(self.eks.pages("list_updates", "updateIds", **names))
        updates = [self.eks.describe_update(updateId=each, **names)["update"] for each in listed[-3:]]
        ours = [each for each in updates if each.get("type") == "VersionUpdate"]
        return max(ours, key=lambda each: str(each.get("createdAt", "")), default=None)


def judge(group: Mapping[str, Any], update: Mapping[str, Any] | None, holds: Held, wanted: Held) -> Follow:
    """Say how far a node group is; pure. EKS counts no nodes: all of them, or none yet."""
    total = int(group.get("scalingConfig", {}).get("desiredSize", 0))
    troubles = [f"{each['code']}: {each['message']}" for each in group.get("health", {}).get("issues", [])]
    state = (update or {}).get("status", "Successful")
    errors = [f"{each.get('errorCode')}: {each.get('errorMessage')}" for each in (update or {}).get("errors", [])]
    arrived = (holds.image, holds.snapshot) == (wanted.image, wanted.snapshot)
    if state == "InProgress" or group["status"] == "UPDATING":
        return Follow(0, total, False, (f"EKS is updating it ({state})", *errors, *troubles))
    if not arrived:
        if state in {"Failed", "Cancelled"}:
            return Follow(
                0, total, False, failed=f"EKS's update {state.lower()}: {'; '.join(errors) or 'no reason given'}"
            )
        return Follow(0, total, False, (f"it holds {holds}", *troubles))
    return Follow(total, total, group["status"] == "ACTIVE", tuple(troubles))


def _tags(group: Mapping[str, Any]) -> dict[str, str]:
    return dict(group.get("tags") or {})

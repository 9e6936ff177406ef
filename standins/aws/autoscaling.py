"""What moto lacks of Auto Scaling and EKS: instance refreshes and updates of node groups, as state machines.

And new launch template versions begin as their source, as they do at AWS.

They answer before moto does (botocore's ``before-call``, after botocore has checked the arguments against AWS's model).
Each look moves a refresh or an update one step on. Not modelled: time, capacity, health checks, baking time, the
instances' own life: a refresh replaces the version that an instance says it was started from, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

from standins.aws.boto_clients import raw
from standins.aws.mappings import dependency

Answer = dict[str, Any]


class Said(Exception):
    """An error of AWS."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code)
        self.answer = {"Error": {"Code": code, "Message": message}}


@dataclass
class Refresh:
    group: str
    number: int
    before: Answer
    desired: Answer
    preferences: Answer
    total: int
    status: str = "Pending"
    reason: str = ""
    left: int = 0

    def described(self) -> Answer:
        return {
            "InstanceRefreshId": f"refresh-{self.number}", "AutoScalingGroupName": self.group, "Status": self.status,
            "StatusReason": self.reason, "InstancesToUpdate": self.left, "DesiredConfiguration": self.desired,
            "PercentageComplete": 0, "Preferences": self.preferences,
        }  # fmt: skip


@dataclass
class Fleets:
    """Refreshes by group, updates by node group. ``fails`` makes the next one fail, for this reason."""

    refreshes: list[Refresh] = field(default_factory=list)
    updates: dict[str, list[Answer]] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    instances: dict[str, list[str]] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    fails: str = ""
    stuck: bool = False
    pools: dict[str, Answer] = field(default_factory=dict)
    """Warm pools by node group, as EKS describes them (EKS API reference, WarmPoolConfig)."""
    warm: dict[str, list[str]] = field(default_factory=dict)
    """The versions that the instances of pools were launched from."""

    def attach(self, made: Any, service: str) -> None:
        """Answer for moto in one boto3 client."""
        mine: dict[str, Callable[[Answer], Answer]] = {
            "StartInstanceRefresh": self.start,
            "DescribeInstanceRefreshes": self.look,
            "RollbackInstanceRefresh": self.back,
            "UpdateNodegroupVersion": self.update,
            "UpdateNodegroupConfig": self.configure,
            "DescribeUpdate": self.look_at_update,
            "ListUpdates": self.list_updates,
            "TagResource": self.tag,
            "UntagResource": self.untag,
        }
        for operation, answer in mine.items():
            made.meta.events.register(f"before-call.{service}.{operation}", self._handler(answer))
        made.meta.events.register(f"after-call.{service}.DescribeAutoScalingGroups", self._groups)
        made.meta.events.register(f"after-call.{service}.DescribeNodegroup", self._nodegroup)
        made.meta.events.register(f"provide-client-params.{service}.CreateLaunchTemplateVersion", self._inherit)

    @staticmethod
    def _inherit(params: Answer, **_: Any) -> None:
        """Fill a new version from its source, which moto forgets; snapshots are not inherited."""
        source = _version({"LaunchTemplateId": params["LaunchTemplateId"], "Version": params["SourceVersion"]})
        data = source["LaunchTemplateData"]
        for each in data.get("BlockDeviceMappings", []):
            each.get("Ebs", {}).pop("SnapshotId", None)
        params["LaunchTemplateData"] = {**data, **params["LaunchTemplateData"]}

    def _handler(self, answer: Callable[[Answer], Answer]) -> Callable[..., Any]:
        def handle(params: Answer, **_: Any) -> Any:
            import json
            from urllib.parse import parse_qs

            path = params["url_path"]
            if isinstance(params["body"], dict):
                arguments = params["body"]
            else:
                text = params["body"].decode() if isinstance(params["body"], bytes) else params["body"] or "{}"
                arguments = json.loads(text) if text.startswith("{") else {k: v[0] for k, v in parse_qs(text).items()}
            try:
                return SimpleNamespace(status_code=200), answer(
                    {**arguments, "path": path, "query": params["query_string"]}
                )
            except Said as said:
                return SimpleNamespace(status_code=400), said.answer

        return handle

    # -- Auto Scaling: the query protocol flattens its arguments

    def start(self, asked: Answer) -> Answer:
        name = asked["AutoScalingGroupName"]
        if any(
            each.group == name and each.status in {"Pending", "InProgress", "RollbackInProgress"}
            for each in self.refreshes
        ):
            raise Said("InstanceRefreshInProgress", "An Instance Refresh is already in progress and blocks this one")
        group = raw("autoscaling").describe_auto_scaling_groups(AutoScalingGroupNames=[name])["AutoScalingGroups"][0]
        before = dict(group["LaunchTemplate"])
        prefix = "DesiredConfiguration.LaunchTemplate."
        desired = {key.removeprefix(prefix): value for key, value in asked.items() if key.startswith(prefix)}
        wanted = {
            key.removeprefix("Preferences."): value for key, value in asked.items() if key.startswith("Preferences.")
        }
        image = _image(before)
        if str(wanted.get("AutoRollback")).lower() == "true" and not _revertible(before["Version"], image):
            raise Said("ValidationError", "AutoRollback is not possible with $Latest, $Default or a parameter")
        if refused := _refused(desired):
            raise Said("ValidationError", f"You must use a valid fully-formed launch template. {refused}")
        made = Refresh(
            name, len(self.refreshes) + 1, before, {"LaunchTemplate": desired}, wanted, len(group["Instances"])
        )
        made.left = made.total
        self.instances.setdefault(name, [_number(before)] * made.total)
        self.refreshes.append(made)
        return {"InstanceRefreshId": f"refresh-{made.number}"}

    def look(self, asked: Answer) -> Answer:
        ours = [each for each in self.refreshes if each.group == asked["AutoScalingGroupName"]]
        if ours:
            self._step(ours[-1])
        return {"InstanceRefreshes": [each.described() for each in reversed(ours)]}

    def _step(self, refresh: Refresh) -> None:
        if self.stuck or refresh.status not in {"Pending", "InProgress", "RollbackInProgress"}:
            return
        if refresh.status == "Pending":
            refresh.status = "InProgress"
        elif self.fails and refresh.status == "InProgress":
            automatic = str(refresh.preferences.get("AutoRollback")).lower() == "true"
            refresh.status, refresh.reason = ("RollbackInProgress" if automatic else "Failed"), self.fails
            self.fails = ""
        elif refresh.status == "RollbackInProgress":
            refresh.status, refresh.left = "RollbackSuccessful", 0
            self.instances[refresh.group] = [_number(refresh.before)] * refresh.total
        elif refresh.left:
            self.instances[refresh.group][refresh.total - refresh.left] = _number(refresh.desired["LaunchTemplate"])
            refresh.left -= 1
        else:
            refresh.status = "Successful"
            raw("autoscaling").update_auto_scaling_group(
                AutoScalingGroupName=refresh.group, LaunchTemplate=refresh.desired["LaunchTemplate"]
            )

    def back(self, asked: Answer) -> Answer:
        ours = [each for each in self.refreshes if each.group == asked["AutoScalingGroupName"]]
        if not ours or ours[-1].status not in {"Pending", "InProgress"}:
            raise Said("ActiveInstanceRefreshNotFound", "No in progress or pending Instance Refresh found")
        if not _revertible(ours[-1].before["Version"], _image(ours[-1].before)):
            raise Said("IrreversibleInstanceRefresh", "The refresh cannot be rolled back")
        ours[-1].status = "RollbackInProgress"
        return {"InstanceRefreshId": f"refresh-{ours[-1].number}"}

    def _groups(self, parsed: Answer, **_: Any) -> None:
        for group in parsed.get("AutoScalingGroups", []):
            numbers = self.instances.get(group["AutoScalingGroupName"])
            for place, instance in enumerate(group["Instances"]):
                number = numbers[place] if numbers else _number(group["LaunchTemplate"])
                instance["LaunchTemplate"] = {
                    **instance.get("LaunchTemplate", group["LaunchTemplate"]),
                    "Version": number,
                }

    # -- EKS: arguments in the path and as JSON

    def update(self, asked: Answer) -> Answer:
        group = asked["path"].split("/")[4]
        template = asked["launchTemplate"]
        if any(each["status"] == "InProgress" for each in self.updates.get(group, [])):
            raise Said("ResourceInUseException", "Nodegroup has an update in progress")
        now = int(self.versions.get(group, "1"))
        if int(template["version"]) <= now:
            raise Said(
                "InvalidParameterException", "Requested launch template version is not newer than the current one"
            )
        if refused := _refused({"LaunchTemplateId": template["id"], "Version": template["version"]}):
            raise Said("InvalidRequestException", refused)
        made = {
            "id": f"update-{len(self.updates.get(group, [])) + 1}", "status": "InProgress", "type": "VersionUpdate",
            "params": [{"type": "LaunchTemplateVersion", "value": template["version"]}], "errors": [],
            "createdAt": datetime.now(UTC),
        }  # fmt: skip
        self.updates.setdefault(group, []).append(made)
        return {"update": made}

    def configure(self, asked: Answer) -> Answer:
        """Change a warm pool. EKS user guide, "warm pools with managed node groups": not with images of one's own."""
        group = asked["path"].split("/")[4]
        if any(each["status"] == "InProgress" for each in self.updates.get(group, [])):
            raise Said("ResourceInUseException", "Nodegroup has an update in progress")
        made = {
            "id": f"update-{len(self.updates.get(group, [])) + 1}", "status": "InProgress", "type": "ConfigUpdate",
            "params": [], "errors": [], "createdAt": datetime.now(UTC), "pool": asked["warmPoolConfig"],
        }  # fmt: skip
        self.updates.setdefault(group, []).append(made)
        return {"update": {key: value for key, value in made.items() if key != "pool"}}

    def _pool(self, group: str, update: Answer) -> None:
        """Take a pool away, with its instances; or fill one, with instances of the version of now."""
        self.pools[group] = {**self.pools.get(group, {}), **update["pool"]}
        count = int(self.pools[group].get("minSize", 0)) if self.pools[group]["enabled"] else 0
        self.warm[group] = [self.versions.get(group, "1")] * count

    def list_updates(self, asked: Answer) -> Answer:
        for each in self.updates.values():
            for update in each:
                if update["status"] == "InProgress" and not self.stuck:
                    update["looks"] = update.get("looks", 0) + 1
                    self._end(each, update)
        found = [update["id"] for each in self.updates.values() for update in each]
        del asked
        return {"updateIds": found}

    def tag(self, asked: Answer) -> Answer:
        """Tag a node group; moto does so for clusters alone."""
        self.tags |= asked["tags"]
        return {}

    def untag(self, asked: Answer) -> Answer:
        for key in asked["query"]["tagKeys"]:
            self.tags.pop(key, None)
        return {}

    def _end(self, updates: list[Answer], update: Answer) -> None:
        if update["looks"] < 2:
            return
        if update["type"] == "ConfigUpdate":
            update["status"] = "Successful"
            self._pool(next(name for name, each in self.updates.items() if each is updates), update)
            return
        if self.fails:
            error = {"errorCode": "PodEvictionFailure", "errorMessage": self.fails, "resourceIds": ["i-1"]}
            update |= {"status": "Failed", "errors": [error]}
            self.fails = ""
            return
        update["status"] = "Successful"
        group = next(name for name, each in self.updates.items() if each is updates)
        self.versions[group] = update["params"][0]["value"]
        assert not self.warm.get(group), "a pool's instances of the version before would join"

    def look_at_update(self, asked: Answer) -> Answer:
        wanted = asked["path"].rpartition("/")[2]
        return {"update": next(each for updates in self.updates.values() for each in updates if each["id"] == wanted)}

    def _nodegroup(self, parsed: Answer, **_: Any) -> None:
        group = parsed.get("nodegroup")
        if group:
            name = group["nodegroupName"]
            for update in self.updates.get(name, []):
                if update["status"] == "InProgress" and update["type"] == "ConfigUpdate":
                    update["looks"] = update.get("looks", 0) + 1
                    self._end(self.updates[name], update)
            if name in self.pools:
                group["warmPoolConfig"] = dict(self.pools[name])
            group["tags"] = {**group.get("tags", {}), **self.tags}
            if name in self.versions:
                group["launchTemplate"]["version"] = self.versions[name]
            if any(each["status"] == "InProgress" for each in self.updates.get(name, [])):
                group["status"] = "UPDATING"


def _version(specification: Answer) -> Answer:
    found: Answer = raw("ec2").describe_launch_template_versions(
        LaunchTemplateId=specification["LaunchTemplateId"], Versions=[specification.get("Version") or "$Default"]
    )["LaunchTemplateVersions"][0]
    return found


def _number(specification: Answer) -> str:
    return str(_version(specification)["VersionNumber"])


def _image(specification: Answer) -> str:
    return str(_version(specification)["LaunchTemplateData"].get("ImageId", ""))


def _refused(specification: Answer) -> str:
    """Return what EC2 says to a launch of a template's version; empty: it launches."""
    mapped = _version(specification)["LaunchTemplateData"].get("BlockDeviceMappings", [])
    return dependency(each.get("Ebs", {}) for each in mapped)


def _revertible(version: str, image: str) -> bool:
    return not version.startswith("$") and not image.startswith("resolve:ssm:")

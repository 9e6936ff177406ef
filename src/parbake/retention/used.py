"""What refers to images and snapshots in one region, and what the Bakefile's targets refer to.

Every id that stands anywhere in a description counts: too much is kept rather than too little. What cannot be read is
an error and not "unused".
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from parbake.aws import client
from parbake.aws.tags import as_dict
from parbake.rollouts.templates import PREVIOUS
from parbake.rollouts.words import Standing

Use = tuple[str, str]
"""An id, and what refers to it."""
_ID = re.compile(r"\b(?:ami|snap)-[0-9a-z]+\b")
_MOST_NAMES = 10  # GetParameters takes so many


def ids_in(described: object) -> frozenset[str]:
    """Return every id of an image or a snapshot in a description."""
    return frozenset(_ID.findall(json.dumps(described, default=str)))


def together(uses: Iterable[Use]) -> dict[str, set[str]]:
    """Return the users by id."""
    found: dict[str, set[str]] = {}
    for identity, user in uses:
        found.setdefault(identity, set()).add(user)
    return found


def by_standing(standing: Standing) -> Iterator[Use]:
    """Yield what a target holds, and what it held before: a rollback must find it."""
    for identity in ids_in(standing.holds.model_dump()):
        yield identity, standing.where
    if standing.previous:
        for identity in ids_in(standing.previous.model_dump()):
            yield identity, f"the rollback of {standing.where}"


def in_region(region: str) -> Iterator[Use]:
    """Yield what refers to images and snapshots in a region: templates, groups, instances, parameters, images."""
    yield from _templates(region)
    yield from _groups(region)
    yield from _instances(region)
    yield from _parameters(region)


def _templates(region: str) -> Iterator[Use]:
    """Yield the default and latest versions of all launch templates."""
    versions = client("ec2", region).pages(
        "describe_launch_template_versions", "LaunchTemplateVersions", Versions=["$Default", "$Latest"]
    )
    for each in versions:
        user = f"launch template {each.get('LaunchTemplateName') or each['LaunchTemplateId']}:{each['VersionNumber']}"
        yield from ((identity, user) for identity in ids_in(each["LaunchTemplateData"]))


def _groups(region: str) -> Iterator[Use]:
    """Yield what Auto Scaling groups and node groups use, and what they would go back to."""
    scaling = client("autoscaling", region)
    for group in scaling.pages("describe_auto_scaling_groups", "AutoScalingGroups"):
        user = f"Auto Scaling group {group['AutoScalingGroupName']}"
        specifications = [*_specifications(group), *(_specified(as_dict(group).get(PREVIOUS, "")))]
        yield from _versions(region, specifications, user)
    for each in scaling.pages("describe_launch_configurations", "LaunchConfigurations"):
        user = f"launch configuration {each['LaunchConfigurationName']}"
        yield from ((identity, user) for identity in ids_in(each))
    eks = client("eks", region)
    for cluster in eks.pages("list_clusters", "clusters"):
        for name in eks.pages("list_nodegroups", "nodegroups", clusterName=cluster):
            group = eks.describe_nodegroup(clusterName=cluster, nodegroupName=name)["nodegroup"]
            template = group.get("launchTemplate") or {}
            specifications = [{"LaunchTemplateId": template.get("id"), "Version": template.get("version")}]
            specifications += _specified((group.get("tags") or {}).get(PREVIOUS, ""))
            yield from _versions(region, specifications, f"node group {name} of {cluster}")


def _specifications(described: object) -> Iterator[dict[str, Any]]:
    """Find every launch template specification in a group, its instances and overrides included."""
    if isinstance(described, dict):
        if "LaunchTemplateId" in described or "LaunchTemplateName" in described:
            yield described
        for value in described.values():
            yield from _specifications(value)
    elif isinstance(described, list):
        for value in described:
            yield from _specifications(value)


def _specified(tag: str) -> list[dict[str, Any]]:
    template, _, version = tag.rpartition(":")
    return [{"LaunchTemplateId": template, "Version": version}] if template else []


def _versions(region: str, specifications: Iterable[dict[str, Any]], user: str) -> Iterator[Use]:
    ec2 = client("ec2", region)
    seen = set()
    for each in specifications:
        key = "LaunchTemplateId" if each.get("LaunchTemplateId") else "LaunchTemplateName"
        asked = (key, each.get(key), str(each.get("Version") or "$Default"))
        if not each.get(key) or asked in seen:
            continue
        seen.add(asked)
        found = ec2.describe_launch_template_versions(**{key: each[key]}, Versions=[asked[2]])
        for version in found["LaunchTemplateVersions"]:
            yield from ((identity, user) for identity in ids_in(version["LaunchTemplateData"]))


def _instances(region: str) -> Iterator[Use]:
    filters = [{"Name": "instance-state-name", "Values": ["pending", "running", "stopping", "stopped"]}]
    for reservation in client("ec2", region).pages("describe_instances", "Reservations", Filters=filters):
        for each in reservation["Instances"]:
            yield each["ImageId"], f"instance {each['InstanceId']}"


def _parameters(region: str) -> Iterator[Use]:
    """Yield the values of parameters that hold images."""
    ssm = client("ssm", region)
    filters = [{"Key": "DataType", "Option": "Equals", "Values": ["aws:ec2:image"]}]
    names = [each["Name"] for each in ssm.pages("describe_parameters", "Parameters", ParameterFilters=filters)]
    for start in range(0, len(names), _MOST_NAMES):
        for each in ssm.get_parameters(Names=names[start : start + _MOST_NAMES])["Parameters"]:
            yield from ((identity, f"parameter {each['Name']}") for identity in ids_in(each["Value"]))

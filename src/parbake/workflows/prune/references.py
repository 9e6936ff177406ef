"""What refers to images and snapshots in one region, and what the Bakefile's targets refer to.

Every id that stands anywhere in a description counts: too much is kept rather than too little. What cannot be read is
an error and not "unused".
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from parbake.aws import MANAGED, client
from parbake.aws.tags import ARTEFACT, as_dict
from parbake.core.errors import AwsNoAccess, AwsNotFound
from parbake.rollouts.pointers import by_preference
from parbake.rollouts.protocol import TargetStatus
from parbake.rollouts.templates import PREVIOUS, RESOLVED

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


def by_status(status: TargetStatus) -> Iterator[Use]:
    """Yield what a target holds, and what it held before: a rollback must find it."""
    for identity in ids_in(status.holds.model_dump()):
        yield identity, status.where
    if status.previous:
        for identity in ids_in(status.previous.model_dump()):
            yield identity, f"the rollback of {status.where}"


def by_node_class(node_class: Mapping[str, Any], regions: Iterable[str]) -> Iterator[Use]:
    """Yield what a node class of Karpenter names, has resolved, and would resolve to now.

    Which region its cluster is in does not stand in it: tags and parameters are looked up in all of these.
    """
    metadata, spec = node_class["metadata"], node_class["spec"]
    user = f"{node_class['kind']} {metadata['name']}"
    found = [metadata.get("annotations"), spec, node_class.get("status")]
    yield from ((identity, user) for identity in ids_in(found))
    terms = [
        *(spec.get("amiSelectorTerms") or []),
        *([_old_term(spec["amiSelector"])] if "amiSelector" in spec else []),
    ]
    for region in regions:
        for term in terms:
            yield from ((identity, user) for identity in _chosen(term, region))


def _old_term(selector: Mapping[str, str]) -> dict[str, Any]:
    """Return the selector of an AWSNodeTemplate as a term: what is not ``aws-ids`` or ``aws::name`` is a tag."""
    tags = {key: value for key, value in selector.items() if not key.startswith(("aws-", "aws::"))}
    return {"tags": tags, "name": selector.get("aws::name")}


def _chosen(term: Mapping[str, Any], region: str) -> Iterator[str]:
    """Yield the images of this account that Karpenter would take for a term now: one for each architecture."""
    if term.get("ssmParameter"):
        yield from _parameter(region, term["ssmParameter"])
    filters = [{"Name": "name", "Values": [term["name"]]}] if term.get("name") else []
    for key, value in (term.get("tags") or {}).items():
        any_value = value in {"", "*"}
        filters.append({"Name": "tag-key" if any_value else f"tag:{key}", "Values": [key if any_value else value]})
    if filters:
        images = client("ec2", region).pages(
            "describe_images", "Images", Owners=["self"], IncludeDeprecated=True, Filters=filters
        )
        best = {each.get("Architecture"): str(each["ImageId"]) for each in reversed(by_preference(images))}
        yield from best.values()


def in_region(region: str) -> Iterator[Use]:
    """Yield what refers to images and snapshots in a region: templates, groups, instances, volumes, images, ..."""
    yield from _templates(region)
    yield from _groups(region)
    yield from _instances(region)
    yield from _volumes(region)
    yield from _images(region)
    yield from _parameters(region)


def _by_template(region: str, data: Mapping[str, Any], user: str) -> Iterator[Use]:
    """Yield what a version of a launch template names, also by a parameter."""
    yield from ((identity, user) for identity in ids_in(data))
    image = str(data.get("ImageId", ""))
    if image.startswith(RESOLVED):
        yield from ((identity, user) for identity in _parameter(region, image.removeprefix(RESOLVED)))


def _parameter(region: str, name: str) -> frozenset[str]:
    """Return the ids in a parameter (``name``, or ``name:version``); none where there is no such parameter."""
    try:
        with _told(name):
            return ids_in(client("ssm", region).get_parameter(Name=name)["Parameter"]["Value"])
    except AwsNotFound:
        return frozenset()


@contextmanager
def _told(*names: str) -> Iterator[None]:
    """Say which parameters a policy has to name that does not allow to read them."""
    try:
        yield
    except AwsNoAccess as error:
        options = " ".join(f"--parameter {name.partition(':')[0]}" for name in names)
        error.hint = (
            f"no right to read one of {', '.join(names)}: `parbake iam {options}` prints a policy that allows it"
        )
        raise


def _templates(region: str) -> Iterator[Use]:
    """Yield the default and latest versions of all launch templates."""
    versions = client("ec2", region).pages(
        "describe_launch_template_versions", "LaunchTemplateVersions", Versions=["$Default", "$Latest"]
    )
    for each in versions:
        user = f"launch template {each.get('LaunchTemplateName') or each['LaunchTemplateId']}:{each['VersionNumber']}"
        yield from _by_template(region, each["LaunchTemplateData"], user)


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
            yield from _by_template(region, version["LaunchTemplateData"], user)


def _instances(region: str) -> Iterator[Use]:
    filters = [{"Name": "instance-state-name", "Values": ["pending", "running", "stopping", "stopped"]}]
    for reservation in client("ec2", region).pages("describe_instances", "Reservations", Filters=filters):
        for each in reservation["Instances"]:
            yield each["ImageId"], f"instance {each['InstanceId']}"


def _volumes(region: str) -> Iterator[Use]:
    """Yield the snapshots of volumes in use: what an instance has not read yet still comes from there."""
    filters = [{"Name": "status", "Values": ["in-use"]}]
    for each in client("ec2", region).pages("describe_volumes", "Volumes", Filters=filters):
        if each.get("SnapshotId"):
            instances = ", ".join(sorted(place["InstanceId"] for place in each.get("Attachments", [])))
            yield each["SnapshotId"], f"volume {each['VolumeId']} of {instances or 'an instance'}"


def _images(region: str) -> Iterator[Use]:
    """Yield the snapshots of images that are not parbake's: such an image was made by hand, or by another tool."""
    for each in client("ec2", region).pages("describe_images", "Images", Owners=["self"], IncludeDeprecated=True):
        if as_dict(each).get(MANAGED) != ARTEFACT:
            yield from ((identity, f"image {each['ImageId']}") for identity in ids_in(each.get("BlockDeviceMappings")))


def _parameters(region: str) -> Iterator[Use]:
    """Yield the values of parameters that hold images."""
    ssm = client("ssm", region)
    filters = [{"Key": "DataType", "Option": "Equals", "Values": ["aws:ec2:image"]}]
    names = [each["Name"] for each in ssm.pages("describe_parameters", "Parameters", ParameterFilters=filters)]
    for start in range(0, len(names), _MOST_NAMES):
        some = names[start : start + _MOST_NAMES]
        with _told(*some):
            found = ssm.get_parameters(Names=some)["Parameters"]
        for each in found:
            yield from ((identity, f"parameter {each['Name']}") for identity in ids_in(each["Value"]))

"""Notes what each call to AWS must be allowed for, and holds it against the policies that `parbake iam` prints."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from moto.ec2.models import ec2_backends

from parbake.aws import iam
from parbake.bakefile import Bakefile, load
from standins.policies import ACCOUNT, WORLDS, Check, Tags, TagsOf, checks, refused

NOTED: list[Check] = []
"""What calls needed, in their order; ``allowed_by`` looks at those of its own time."""
_FREE = {"sts:GetCallerIdentity"}  # needs no permission (STS API reference)


def tags_in_moto(resource: str) -> Tags:
    """Return the tags of a resource of EC2 in moto."""
    for region in ("eu-west-1", "us-east-1", "eu-central-1"):
        backend: Any = ec2_backends[ACCOUNT][region]
        if resource in backend.tags:
            found: Tags = dict(backend.tags[resource])
            return found
    return {}


def note(service: str, operation: str, asked: Mapping[str, Any], region: str, tags_of: TagsOf = tags_in_moto) -> None:
    """Note a call that is about to be made, as it may look to AWS in any of the worlds."""
    if f"{service}:{operation}" in _FREE:
        return
    found: list[Check] = []
    for world in WORLDS if {"Tags", "TagSpecifications", "tags"} & set(asked) else WORLDS[:1]:
        found += [each for each in checks(service, operation, asked, region, tags_of, world) if each not in found]
    NOTED.extend(found)


def attach(client: Any, region: str, tags_of: TagsOf = tags_in_moto) -> None:
    """Note each call of a boto3 client, but not in children: what they see of a stand-in's memory is old."""
    here = os.getpid()

    def see(params: Mapping[str, Any], model: Any, **_: Any) -> None:
        if os.getpid() == here:
            note(model.service_model.service_name, model.name, params, region, tags_of)
            if model.name in {"StartInstanceRefresh", "UpdateNodegroupVersion"}:
                note("ec2", "RunInstances", _launch(params, region), region, tags_of)

    client.meta.events.register_first("before-parameter-build", see)


def _launch(params: Mapping[str, Any], region: str) -> dict[str, Any]:
    """Return the launch that AWS tries as whoever gives a group a version of a template: of that version."""
    desired = params.get("DesiredConfiguration", {})
    mixed = desired.get("MixedInstancesPolicy", {}).get("LaunchTemplate", {}).get("LaunchTemplateSpecification", {})
    said = params.get("launchTemplate") or desired.get("LaunchTemplate") or mixed
    template, number = said.get("id") or said["LaunchTemplateId"], said.get("version") or said["Version"]
    versions: Any = ec2_backends[ACCOUNT][region].launch_templates[template].versions
    [data] = [each.data for each in versions if str(each.number) == number]
    return {"LaunchTemplate": {"LaunchTemplateId": template}, "LaunchTemplateData": data, "SubnetId": "subnet-0a"}


@contextmanager
def allowed_by(*policies: Mapping[str, Any]) -> Iterator[None]:
    """Fail unless these policies allow every call that is made meanwhile, also where it ends in an error."""
    before = len(NOTED)
    try:
        yield
    finally:
        no = refused(list(policies), NOTED[before:])
        if no:
            raise AssertionError("no policy allows\n" + "\n".join(no))


def printed(bakefile: Bakefile, **names: Any) -> dict[str, Any]:
    """Return the policies that `parbake iam` prints where somebody gives it all names that the Bakefile lacks."""
    templates = [
        each for region in ("eu-west-1", "us-east-1") for each in ec2_backends[ACCOUNT][region].launch_templates
    ]
    usual = {"account": ACCOUNT, "region": "eu-west-1", "templates": tuple(templates) or ("lt-0",), "roles": ("nodes",)}
    return iam.policies(bakefile, iam.Names(**{**usual, **names}))


def bakefile_for(builder: str, settings: Mapping[str, Any], *, base: str, image: str, **more: Any) -> Bakefile:
    """Return the Bakefile of a test that has settings of its ``aws`` section, and hardly anything besides."""
    text = {"version": 1, "name": "shop", "images": [image], "builder": builder, "base": base, "aws": dict(settings)}
    text |= more
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "parbake.yaml"
        path.write_text(json.dumps(text, default=list))
        return load(path)


def caller(builder: str, settings: Mapping[str, Any], **more: Any) -> Mapping[str, Any]:
    """Return the policy of whoever bakes so."""
    policy: Mapping[str, Any] = printed(bakefile_for(builder, settings, **more))["caller"]
    return policy

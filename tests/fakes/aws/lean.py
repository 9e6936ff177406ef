"""moto and botocore without what they do again and again, or keep and nobody asks for; their package loads it first.

Each of four workers keeps thirty megabytes less, and a test that calls AWS takes a quarter less time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import PurePath
from typing import Any

import botocore.client
import botocore.session
import moto.core.responses
import moto.utilities.utils
from botocore.model import ServiceModel

_REGIONS = {"ap-south-1", "cn-north-1", "eu-central-1", "eu-west-1", "us-east-1", "us-east-2"}
"""Where tests start instances; moto knows no types in others."""


def _only_our_regions(load: Callable[[str], Any]) -> Callable[[str], Any]:
    """Leave out which types of instances there are in regions that are in no test."""

    def loaded(path: str) -> Any:
        name = PurePath(path)
        wanted = "instance_type_offerings" not in name.parts or name.name.partition(".")[0] in _REGIONS
        return load(path) if wanted else []

    return loaded


def _made_once(create: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Make the hundreds of methods of a service's clients once: they are the same for each client."""
    made: dict[str, dict[str, Any]] = {}

    def methods(creator: Any, model: ServiceModel) -> dict[str, Any]:
        if model.service_name not in made:
            made[model.service_name] = create(creator, model)
        return dict(made[model.service_name])

    return methods


for owner, name, made in (
    # Each test makes clients anew: else each would keep models of AWS's of its own, tens of megabytes for EC2.
    (botocore.session, "create_loader", functools.cache),
    (botocore.client.ClientCreator, "_create_methods", _made_once),
    (moto.core.responses, "method_names_from_class", functools.cache),  # looked up at each call
    (moto.utilities.utils, "load_resource", _only_our_regions),
):
    setattr(owner, name, made(getattr(owner, name)))

from moto import mock_aws  # noqa: E402 (what is loaded from here on, is loaded so)
from moto.ec2.models import amis  # noqa: E402

__all__ = ["amis", "mock_aws"]

"""moto and botocore without what they do again and again, or keep and nobody asks for; their package loads it first.

Each of four workers keeps a hundred megabytes less, and a test that calls AWS takes a quarter less time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import PurePath
from types import CodeType
from typing import Any
from xml.sax.saxutils import escape, quoteattr

import botocore.client
import botocore.hooks
import botocore.loaders
import botocore.session
import moto.core.responses
import moto.utilities.utils
from botocore.hooks import EventAliaser
from botocore.model import ServiceModel
from moto.core.serialize import AttributePicker, EC2Serializer, XFormedAttributePicker
from moto.core.utils import get_value

_REGIONS = {"ap-south-1", "cn-north-1", "eu-central-1", "eu-west-1", "us-east-1", "us-east-2"}
_TYPES = {
    f"{family}.{size}"
    for family in ("c7g", "m5", "m6a", "m6g", "m6i", "m7g", "m7i", "t4g")
    for size in ("large", "2xlarge")
}
"""Where tests start instances, and of which types; moto knows no others."""


def _only_ours(load: Callable[[str], Any]) -> Callable[[str], Any]:
    """Leave out regions and types of instances that are in no test."""

    def loaded(path: str) -> Any:
        name = PurePath(path)
        if name.stem == "instance_types":
            return {kind: found for kind, found in load(path).items() if kind in _TYPES}
        if "instance_type_offerings" not in name.parts:
            return load(path)
        if name.name.partition(".")[0] not in _REGIONS:
            return []
        return [offer for offer in load(path) if offer["InstanceType"] in _TYPES]

    return loaded


def _made_once(create: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Make the hundreds of methods of a service's clients once: they are the same for each client."""
    made: dict[str, dict[str, Any]] = {}

    def methods(creator: Any, model: ServiceModel) -> dict[str, Any]:
        if model.service_name not in made:
            made[model.service_name] = create(creator, model)
        return dict(made[model.service_name])

    return methods


def _found(_slow: Callable[..., Any]) -> Callable[[AttributePicker, Any], Any]:
    """Find each value of an answer under names that are the same for each object of a class: looked up once."""
    known: dict[tuple[Any, ...], tuple[str, ...]] = {}

    def value(picker: AttributePicker, context: Any) -> Any:
        which = (type(picker), context.shape, context.key, type(context.obj))
        names = known.get(which)
        if names is None:
            names = known[which] = tuple(dict.fromkeys(picker.get_possible_keys(context)))
        values = (get_value(context.obj, name, known) for name in names)
        found = next((each for each in values if each is not known), None)
        path = f"{context.key_path}.{context.key}"
        if path.endswith(tuple(picker.response_transformers)):
            change = next(change for end, change in picker.response_transformers.items() if path.endswith(end))
            found = change(found)
        return found

    return value


def _as_xml(_slow: Callable[..., str]) -> Callable[[EC2Serializer, Mapping[str, Any]], str]:
    """Write EC2's answers in one go: of what the library checks and can do besides, they need nothing."""

    def body(_serializer: EC2Serializer, answer: Mapping[str, Any]) -> str:
        return '<?xml version="1.0" encoding="utf-8"?>\n' + "".join(
            part for name, value in answer.items() for part in _elements(name, value)
        )

    return body


def _elements(name: str, value: Any) -> Iterator[str]:
    """Yield an element, or one for each of a list's items: what begins with @ is an attribute."""
    for each in value if isinstance(value, list) else [value]:
        if isinstance(each, Mapping):
            attributes = (f" {key[1:]}={quoteattr(text)}" for key, text in each.items() if key[0] == "@")
            yield f"<{name}{''.join(attributes)}>"
            for key, inner in each.items():
                if key[0] != "@":
                    yield from _elements(key, inner)
            yield f"</{name}>"
        else:
            yield f"<{name}>{escape(str(each))}</{name}>"


def _own_tags(_slow: Callable[..., Any]) -> Callable[[Any], list[dict[str, str]]]:
    """Look up a resource's tags by its id, where moto looks through those of all resources."""

    def tags(resource: Any) -> list[dict[str, str]]:
        own = resource.ec2_backend.tags.get(resource.id, {}) if resource.id else {}
        kind = EC2_PREFIX_TO_RESOURCE.get(get_prefix(resource.id), "") if own else ""
        return [
            {"resource_id": resource.id, "key": key, "value": value, "resource_type": kind}
            for key, value in own.items()
        ]

    return tags


def _names_noted(alias: Callable[[EventAliaser, str], str]) -> Callable[[EventAliaser, str], str]:
    """Translate each event's name once: each session translates the same hundreds."""
    noted: dict[str, str] = {}

    def translated(aliaser: EventAliaser, event: str) -> str:
        if event not in noted:
            noted[event] = alias(aliaser, event)
        return noted[event]

    return translated


def _signatures_noted(accepts: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Look at each handler's signature once, whatever client it is registered for."""
    known: dict[CodeType, bool] = {}

    def accepted(handler: Any) -> bool:
        code = getattr(getattr(handler, "__func__", handler), "__code__", None)
        if code is None:
            return accepts(handler)
        if code not in known:
            known[code] = accepts(handler)
        return known[code]

    return accepted


for owner, name, made in (
    # Each test makes clients anew: else each would keep models of AWS's of its own, tens of megabytes for EC2.
    (botocore.session, "create_loader", functools.cache),
    (botocore.client.ClientCreator, "_create_methods", _made_once),
    (EventAliaser, "_alias_event_name", _names_noted),
    (botocore.hooks, "accepts_kwargs", _signatures_noted),
    (moto.core.responses, "method_names_from_class", functools.cache),  # looked up at each call
    (moto.utilities.utils, "load_resource", _only_ours),
    (botocore.loaders, "OrderedDict", lambda _: dict),  # of AWS's models: a third of the memory, and dicts keep order
):
    setattr(owner, name, made(getattr(owner, name)))

# What is loaded from here on, is loaded so; each of these loads moto's EC2.
from moto import mock_aws  # noqa: E402
from moto.ec2.models import amis  # noqa: E402
from moto.ec2.models.core import TaggedEC2Resource  # noqa: E402
from moto.ec2.utils import EC2_PREFIX_TO_RESOURCE, get_prefix  # noqa: E402

REPLACED: dict[tuple[Any, str], Callable[..., Any]] = {
    (XFormedAttributePicker, "__call__"): _found,
    (EC2Serializer, "_serialize_body"): _as_xml,
    (TaggedEC2Resource, "get_tags"): _own_tags,
}
"""How moto writes its answers, which is most of what a call takes: quicker, with the same result."""
SLOW = {(owner, name): getattr(owner, name) for owner, name in REPLACED}
for (writer, name), quicker in REPLACED.items():
    setattr(writer, name, quicker(getattr(writer, name)))

__all__ = ["amis", "mock_aws"]

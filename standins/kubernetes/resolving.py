"""What Karpenter makes of a node class, for tests only: which image each instance type starts, with how much storage.

Rules (karpenter.sh, "NodeClasses"; aws/karpenter-provider-aws, ``pkg/providers/amifamily`` and ``instancetype``): terms
are or-ed; an alias is an image for each variant, with requirements, and whatever else is named has that of its
architecture alone; of images with the same requirements one wins (not deprecated first, then newest, then name). The
real Karpenter 1.13 answers alike to 21 node classes (``tests/unit/standins/test_karpenter_answers.py``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, NamedTuple

from parbake.core.families import BOTTLEROCKET, family_of
from standins.aws.mappings import dependency
from standins.nodeadm import karpenter_refuses

ARCH, TYPE = "kubernetes.io/arch", "node.kubernetes.io/instance-type"
_AWS = "karpenter.k8s.aws/instance-"
_GPU, _ACCELERATOR = f"{_AWS}gpu-count", f"{_AWS}accelerator-count"
_OF_VARIANTS = {
    "standard": {_GPU: "DoesNotExist", _ACCELERATOR: "DoesNotExist"},
    "nvidia": {_GPU: "Exists"},
    "neuron": {_ACCELERATOR: "Exists"},
}
type Object = dict[str, Any]


class Instance(NamedTuple):
    """An instance type: what it has for ``variant``'s drivers, and its local disks."""

    architecture: str = "amd64"
    variant: str = "standard"
    local: str = ""

    @property
    def labels(self) -> dict[str, str]:
        parts = [key for key, operator in _OF_VARIANTS[self.variant].items() if operator == "Exists"]
        return {ARCH: self.architecture, **dict.fromkeys(parts, "1")}


INSTANCES = {
    "m5.large": Instance(),
    "g4dn.8xlarge": Instance(variant="nvidia", local="900G"),
    "g5.12xlarge": Instance(variant="nvidia", local="3800G"),
    "inf2.xlarge": Instance(variant="neuron"),
    "m6idn.32xlarge": Instance(local="7600G"),
    "c6g.large": Instance("arm64"),
}


def labels_of(instance_type: str) -> dict[str, str]:
    """Return the labels of a NodeClaim of an instance type."""
    family = instance_type.partition(".")[0]
    named = {TYPE: instance_type, f"{_AWS}family": family}
    return named | INSTANCES[instance_type].labels


@dataclass(frozen=True)
class Ami:
    id: str
    name: str
    created: str = "2026-01-01T00:00:00Z"
    deprecated: bool = False
    tags: dict[str, str] = field(default_factory=dict)
    mine: bool = True
    architecture: str = "amd64"
    variant: str = "standard"
    """What an alias knows of it, and nobody else."""

    def fits(self, term: Object, parameters: Mapping[str, str]) -> bool:
        if term.get("id"):
            return bool(self.id == term["id"])
        if term.get("ssmParameter"):
            return parameters.get(term["ssmParameter"]) == self.id
        if term.get("alias"):
            return self.name.startswith(term["alias"].partition("@")[0])
        owned = term.get("owner") != "self" or self.mine
        tags = term.get("tags", {})
        return owned and term.get("name") in {None, self.name} and all(self.tags.get(k) == v for k, v in tags.items())

    def requirements(self, *, by_alias: bool) -> list[Object]:
        variant = _OF_VARIANTS[self.variant] if by_alias else {}
        return [
            {"key": ARCH, "operator": "In", "values": [self.architecture]},
            *({"key": key, "operator": operator} for key, operator in variant.items()),
        ]


def resolved(spec: Object, amis: Iterable[Ami], parameters: Mapping[str, str] | None = None) -> list[Object]:
    """Return what Karpenter writes into ``status.amis``."""
    terms = spec["amiSelectorTerms"]
    by_alias = any(term.get("alias") for term in terms)

    def asked(ami: Ami) -> str:
        return str(ami.requirements(by_alias=by_alias))

    fitting = [ami for ami in amis if any(ami.fits(term, parameters or {}) for term in terms)]
    best = sorted(fitting, key=lambda ami: ami.name)
    best = sorted(best, key=lambda ami: ami.created, reverse=True)
    best = sorted(sorted(best, key=lambda ami: ami.deprecated), key=asked)
    winners = [next(group) for _, group in groupby(best, asked)]
    return [{"id": ami.id, "name": ami.name, "requirements": ami.requirements(by_alias=by_alias)} for ami in winners]


def image_for(instance_type: str, amis: Iterable[Object]) -> str:
    """Return the image that an instance type starts of those in ``status.amis``; empty: none."""
    labels = INSTANCES[instance_type].labels
    return next((str(ami["id"]) for ami in amis if all(_met(each, labels) for each in ami["requirements"])), "")


def _met(asked: Object, labels: Mapping[str, str]) -> bool:
    value = labels.get(asked["key"])
    if asked["operator"] == "In":
        return value in asked["values"]
    return (value is not None) is (asked["operator"] == "Exists")


def ephemeral_storage(spec: Object, instance_type: str = "m5.large") -> str:
    """Return what Karpenter counts on for pods: the root's size; of Custom without one, the last mapping's.

    With ``instanceStorePolicy: RAID0`` it is the local disks, where there are some.
    """
    if spec.get("instanceStorePolicy") == "RAID0" and INSTANCES[instance_type].local:
        return INSTANCES[instance_type].local
    disks = spec.get("blockDeviceMappings") or []
    ephemeral = "/dev/xvdb" if family_of(spec) == BOTTLEROCKET else "/dev/xvda"
    roots = [each for each in disks if each.get("rootVolume")]
    if not roots and family_of(spec).is_custom:
        roots = disks[-1:]
    elif not roots:
        roots = [each for each in disks if each["deviceName"] == ephemeral]
    return str((roots or [{}])[0].get("ebs", {}).get("volumeSize") or "20Gi")


def without_template(spec: Object) -> str:
    """Return why Karpenter makes no launch template; empty: it does. It hands on what ``Custom`` has unread."""
    return "" if family_of(spec).is_custom else karpenter_refuses(spec.get("userData", ""))


def not_validated(spec: Object) -> str:
    """Return what Karpenter's validation stops at: the launch template, or EC2's dry run; empty: nothing."""
    return without_template(spec) or dependency(each.get("ebs", {}) for each in spec.get("blockDeviceMappings") or [])


def answers(spec: Object, amis: Sequence[Object]) -> dict[str, str]:
    """Return what each instance type starts, or why it does not, and the storage that Karpenter counts on for it."""
    refused = without_template(spec)
    nothing = f"no instance types satisfy requirements of amis [{' '.join(each['id'] for each in amis)}]"
    return {
        name: f"{refused or image_for(name, amis) or nothing}:{ephemeral_storage(spec, name)}" for name in INSTANCES
    }

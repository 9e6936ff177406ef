"""Karpenter's families of node images: which one a node class is of, and the disks that its nodes have. Pure.

Facts: aws/karpenter-provider-aws, ``pkg/providers/amifamily`` (default mappings and the device for ephemeral storage of
each family; ``Custom`` has no mappings of its own) and ``instancetype/types.go`` (``ephemeralStorage``), as the real
Karpenter 1.13 answered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

ALIASES = {
    "al2": "AL2",
    "al2023": "AL2023",
    "bottlerocket": "Bottlerocket",
    "windows2019": "Windows2019",
    "windows2022": "Windows2022",
    "windows2025": "Windows2025",
}
"""The family of a node class that an alias names."""
DEFAULT_DISKS: Mapping[str, Mapping[str, int]] = {
    "AL2": {"/dev/xvda": 20},
    "AL2023": {"/dev/xvda": 20},
    "Ubuntu": {"/dev/sda1": 20},
    "Bottlerocket": {"/dev/xvda": 4, "/dev/xvdb": 20},
}
"""What Karpenter gives a node without ``blockDeviceMappings`` (GiB); it gives none of it to a node with some."""
ASSUMED = 20
"""GiB of ephemeral storage that Karpenter assumes where no mapping says it."""
SILENT = "AL2"
"""What Karpenter before v1 takes where neither a family nor an alias is named."""
_ROOTS = {"Ubuntu": "/dev/sda1"}


def family_of(spec: Mapping[str, Any], *, silent: str = "") -> str:
    """Return the family of a node class: by its alias, else as it says, else ``silent``; empty: nobody knows it."""
    terms = spec.get("amiSelectorTerms")
    for term in terms if isinstance(terms, list | tuple) else ():
        alias = str((term.get("alias") if isinstance(term, Mapping) else "") or "").partition("@")[0]
        if alias:
            return ALIASES.get(alias, "")
    return str(spec.get("amiFamily") or silent)


def default_disks(family: str) -> Mapping[str, int]:
    """Return what Karpenter maps by itself, in GiB by device; nothing for Custom and for what nobody knows."""
    return DEFAULT_DISKS.get(family or SILENT, {})


def root_device(family: str) -> str:
    """Return the device of the root disk."""
    return _ROOTS.get(family, "/dev/xvda")


def counts_the_last(family: str, disks: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the last mapping is what Karpenter takes for the node's ephemeral storage: of Custom, if none is root."""
    return family == "Custom" and not any(each.get("rootVolume") for each in disks)

"""Variants of a node's image: what an alias has for instances with GPUs or accelerators. Pure.

An alias of Karpenter is several AMIs (standard, nvidia, neuron), which Karpenter tells apart by requirements that it
knows of them (its ``amifamily/types.go``). AMIs by id, name or tag have the requirement of their architecture alone: of
two for one architecture the newest wins, on every instance. Source: recorded answers of Karpenter 1.13.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

_KEYS = {"karpenter.k8s.aws/instance-gpu-": "nvidia", "karpenter.k8s.aws/instance-accelerator-": "neuron"}
_NAMED = {f"karpenter.k8s.aws/instance-{each}" for each in ("category", "family")} | {
    "node.kubernetes.io/instance-type"
}
# How instance types are named (EC2, "Instance type naming conventions").
_FAMILIES = {"nvidia": re.compile(r"(?:g|gr|p)(?:\d|$)"), "neuron": re.compile(r"(?:inf|trn)(?:\d|$)")}


def several(
    node_class: Mapping[str, Any], pools: Iterable[Mapping[str, Any]], claims: Iterable[Mapping[str, Any]]
) -> tuple[str, ...]:
    """Return what speaks against one image (an architecture) for a node class: several variants of it are in use.

    They are where nodes run them, or NodePools ask for instances that take them; a class that does not tell variants
    apart now loses none.
    """
    amis = node_class.get("status", {}).get("amis", [])
    known = {str(ami.get("id")): _variant_of(ami) for ami in amis}
    if len(set(known.values())) < 2:
        return ()
    users: dict[str, set[str]] = defaultdict(set)
    for pool in pools:
        for asked in _asked(pool):
            users[asked].add(f"NodePool {pool['metadata']['name']}")
    for claim in claims:
        variant = known.get(str(claim.get("status", {}).get("imageID", "")), "")
        if variant:
            pool = claim["metadata"].get("labels", {}).get("karpenter.sh/nodepool", "")
            users[variant].add(f"NodePool {pool}" if pool else f"NodeClaim {claim['metadata']['name']}")
    if len(users) < 2:
        return ()
    used = "; ".join(f"{variant}: {', '.join(sorted(names))}" for variant, names in sorted(users.items()))
    return (
        f"Karpenter launches several variants of its image ({used}), and would launch this one image for all of them: "
        "GPUs and accelerators would have no driver. Give each variant a node class of its own, and roll out to it "
        "what was baked onto that variant",
    )


def _variant_of(ami: Mapping[str, Any]) -> str:
    """Return the variant that Karpenter's requirements say an AMI to be."""
    for each in ami.get("requirements", []):
        for key, variant in _KEYS.items():
            if str(each.get("key", "")).startswith(key) and each.get("operator") != "DoesNotExist":
                return variant
    return "standard"


def _asked(pool: Mapping[str, Any]) -> set[str]:
    """Return the variants that a NodePool's instances take; one that names nothing asks for the standard one."""
    found = set()
    for each in pool["spec"].get("template", {}).get("spec", {}).get("requirements", []):
        key, operator = str(each.get("key", "")), each.get("operator")
        if operator in {"Exists", "In", "Gt", "Gte"}:
            found |= {variant for start, variant in _KEYS.items() if key.startswith(start)}
        if key in _NAMED and operator == "In":
            found |= {_named(str(value)) for value in each.get("values", [])}
    special = found - {"standard"}
    return found if special else {"standard"}


def _named(name: str) -> str:
    return next((variant for variant, pattern in _FAMILIES.items() if pattern.match(name)), "standard")

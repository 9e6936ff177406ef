"""What a Bakefile takes of Kubernetes: rules of RBAC for whoever rolls out, as ``aws.iam`` says it of AWS.

The Helm chart's rules are made of these (``tools.chart``). Source: Kubernetes, "Using RBAC Authorization": a rule
without names is for all; ``list`` cannot be bound to names, ``get`` and ``patch`` can. Discovery needs no rule of ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from parbake.bakefile import Bakefile


@dataclass(frozen=True, slots=True)
class Right:
    """Verbs on resources of an API group: ``named`` are only for what targets name, ``namespace`` bounds the others."""

    group: str
    resources: tuple[str, ...]
    verbs: tuple[str, ...]
    named: bool = False
    namespace: str = ""

    def rule(self, names: tuple[str, ...] = ()) -> dict[str, Any]:
        """Return a PolicyRule of ``rbac.authorization.k8s.io/v1``, with its namespace where it has one."""
        found = {"apiGroups": [self.group], "resources": [*self.resources], "verbs": [*self.verbs]}
        found |= {"resourceNames": [*names]} if self.named else {}
        return found | ({"namespace": self.namespace} if self.namespace else {})


_CLASSES: Final = ("ec2nodeclasses", "awsnodetemplates")
RIGHTS: Final[Mapping[str, tuple[Right, ...]]] = {
    "karpenter": (
        Right("karpenter.k8s.aws", _CLASSES, ("get", "list")),
        Right("karpenter.k8s.aws", _CLASSES, ("patch",), named=True),
        Right("karpenter.sh", ("nodepools", "nodeclaims"), ("list",)),
        Right("", ("nodes",), ("list",)),
        # Events about what has no namespace, such as node classes and claims, are in this one.
        Right("", ("events",), ("list",), namespace="default"),
    ),
    # Pods of any namespace are on a node, and kubelets tell of them there.
    "canary": (Right("", ("pods", "events"), ("list",)),),
    # In the namespaces that the Bakefile names; in all, where it names none.
    "images_from": (Right("", ("pods",), ("list",)),),
}
"""By the key of a target, or of the Bakefile. Other targets are not in a cluster. ``parbake freeze`` patches NodePools
besides, by hand."""


def rights(bakefile: Bakefile) -> tuple[dict[str, Any], ...]:
    """Return the rules for a Bakefile in the cluster that parbake runs in: what names a context is of another one."""
    here = [each for each in bakefile.rollout if each.karpenter and not each.karpenter.context]
    names = tuple(sorted({each.karpenter.nodeclass for each in here if each.karpenter}))
    keys = [key for key in RIGHTS if any(getattr(each, key, None) for each in here)]
    found = [right.rule(names) for key in keys for right in RIGHTS[key]]
    if bakefile.images_from and not (cluster := bakefile.images_from.cluster).context:
        places = dict.fromkeys(cluster.namespaces or ("",))
        found += [replace(each, namespace=place).rule() for place in places for each in RIGHTS["images_from"]]
    return tuple(found)


def roles(bakefile: Bakefile) -> dict[str, dict[str, Any]]:
    """Return the roles with these rules, by what ``parbake iam`` calls them: for the cluster, and for namespaces."""
    found: dict[str, dict[str, Any]] = {}
    for rule in rights(bakefile):
        namespace = rule.pop("namespace", "")
        name, kind = (f"role_in_{namespace}", "Role") if namespace else ("cluster_role", "ClusterRole")
        metadata = {"name": "parbake", **({"namespace": namespace} if namespace else {})}
        role = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind, "metadata": metadata, "rules": []}
        found.setdefault(name, role)["rules"].append(rule)
    return found

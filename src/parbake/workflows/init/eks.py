"""What a cluster of EKS with Karpenter says of where artefacts are to go: node class, region, platform."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from parbake.bakefile.scaffold import scalar
from parbake.bakefile.values import valid_name
from parbake.core.errors import InputError, ParbakeError
from parbake.rollouts.cluster import Cluster
from parbake.rollouts.nodeclass import NodeClass

_GROUP: Final = "karpenter.k8s.aws"
_KIND: Final = "ec2nodeclasses"
_REGION, _ARCHITECTURE = "topology.kubernetes.io/region", "kubernetes.io/arch"


@dataclass(frozen=True, slots=True)
class Found:
    """A cluster's node classes that take a volume, the others, and what its nodes say (empty: nothing)."""

    classes: tuple[str, ...]
    others: tuple[str, ...]
    region: str
    architectures: tuple[str, ...]

    def settings(self, context: str) -> dict[str, str]:
        """Return the keys of a Bakefile for this cluster, as text; raises InputError where it has no node class."""
        if not self.classes:
            which = f" that a volume of `builder: ebs` fits (not {', '.join(self.others)})" if self.others else ""
            raise InputError(
                f"the cluster has no EC2NodeClass of Karpenter{which}",
                hint="Bottlerocket's data volume is made with `builder: ec2`; node groups are targets as well",
            )
        where = f", context: {scalar(context)}" if context else ""
        targets = [f"karpenter: {{nodeclass: {scalar(name)}{where}}}" for name in self.classes]
        if len(targets) > 1:  # a target without a name is named after its kind, and names must differ
            named = zip(self.classes, targets, strict=True)
            targets = [f"{{name: {scalar(valid_name(name))}, {target}}}" for name, target in named]
        further = "".join(f"\n#  - {each}" for each in targets[1:])
        settings = {
            "builder": "builder: ebs",
            "base": "base: none",
            "aws": f"aws:\n  region: {scalar(self.region)}",
            "rollout": f"rollout:\n  - {targets[0]}{further}",
        }
        if len(self.architectures) == 1:
            settings["platform"] = f"platform: linux/{scalar(self.architectures[0])}"
        return settings


def look(context: str) -> Found:
    """Ask a cluster for its node classes and nodes; raises what ``Cluster`` does, InputError without a region."""
    cluster = Cluster(context)
    classes = node_classes(cluster)
    names = {each["metadata"]["name"]: NodeClass(each).family for each in classes}
    labels: list[Mapping[str, Any]] = []
    with suppress(ParbakeError):  # who may not list nodes says the region otherwise
        labels = [each["metadata"].get("labels") or {} for each in cluster.items("nodes")]
    regions = sorted({str(each[_REGION]) for each in labels if each.get(_REGION)})
    architectures = sorted({str(each[_ARCHITECTURE]) for each in labels if each.get(_ARCHITECTURE)})
    fitting = tuple(sorted(name for name, family in names.items() if family.takes_parts))
    return Found(fitting, tuple(sorted(names.keys() - {*fitting})), _region(regions), tuple(architectures))


def node_classes(cluster: Cluster) -> list[dict[str, Any]]:
    """Return the EC2NodeClasses of a cluster; none where Karpenter is not installed."""
    versions = cluster.served(_GROUP)
    return cluster.items(f"{_KIND}.{versions[0]}.{_GROUP}") if versions else []


def _region(of_nodes: list[str]) -> str:
    if of_nodes:
        return of_nodes[0]
    from parbake.aws import default_region

    return default_region()

"""One machine image for an alias that is several: as Karpenter 1.13 resolved ``al2023@latest``."""

from __future__ import annotations

from typing import Any

import pytest

from parbake.rollouts import variants
from standins.clusters import NEEDS_KUBECTL, parbake, project
from standins.kubernetes.karpenter import Karpenter
from standins.kubernetes.server import Server
from tests.unit.rollouts.test_karpenter import AMIS, FIRST, GPU, pool, server, terms, without_kubectl
from tests.unit.rollouts.test_node_classes import ALIAS as NODE_CLASS

__all__ = ["server", "without_kubectl"]

_GPU, _NEURON = "karpenter.k8s.aws/instance-gpu-count", "karpenter.k8s.aws/instance-accelerator-count"
AMI = [
    {"id": "ami-standard", "requirements": [{"key": k, "operator": "DoesNotExist"} for k in (_GPU, _NEURON)]},
    {"id": "ami-nvidia", "requirements": [{"key": _GPU, "operator": "Exists"}]},
    {"id": "ami-neuron", "requirements": [{"key": _NEURON, "operator": "Exists"}]},
]
ALIAS = {"status": {"amis": AMI}}


def _pool(name: str, key: str = "", *values: str, operator: str = "In") -> dict[str, Any]:
    asked = [{"key": key, "operator": operator, "values": list(values)}] if key else []
    return {"metadata": {"name": name}, "spec": {"template": {"spec": {"requirements": asked}}}}


@pytest.mark.parametrize(
    "other",
    [
        _pool("other", "karpenter.k8s.aws/instance-family", "g4dn"),
        _pool("other", "node.kubernetes.io/instance-type", "inf2.xlarge"),
        _pool("other", "karpenter.k8s.aws/instance-category", "p"),
        _pool("other", _GPU, operator="Exists"),
    ],
)
def test_pools_of_two_variants_are_named(other: dict[str, Any]) -> None:
    [said] = variants.several(ALIAS, [_pool("plain"), other], [])
    assert "standard: NodePool plain" in said
    assert "NodePool other" in said
    assert variants.several(ALIAS, [other], []) == (), "one variant is one image"
    assert variants.several({"status": {"amis": AMI[:1]}}, [_pool("plain"), other], []) == (), "it has one now"


@pytest.mark.parametrize("family", ["m5", "c6g", "i4i", "im4gn", "mac2", "t4g"])
def test_other_families_take_the_standard_image(family: str) -> None:
    named = _pool("other", "karpenter.k8s.aws/instance-family", family)
    assert variants.several(ALIAS, [_pool("plain"), named], []) == ()


@NEEDS_KUBECTL
@pytest.mark.usefixtures("without_kubectl")
def test_a_rollout_is_refused_where_nodes_run_another_variant(
    server: Server, tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    server.create("ec2nodeclasses", "gpu", spec=NODE_CLASS["spec"])
    server.create("nodepools", "gpu", spec=pool("gpu"))
    cluster = Karpenter(server, AMIS)
    cluster.start_nodes("gpu", "gpu", 1)
    project(tmp_path, [GPU], FIRST)
    server.set_status("ec2nodeclasses", "gpu", {"amis": [{"id": "ami-x", **AMI[0]}, {**AMI[1], "id": "ami-0"}]}, "v1")
    code, error = parbake(capsys, "rollout", FIRST.key, "--no-follow")
    assert code == 1, error
    assert "several variants of its image (nvidia: NodePool gpu; standard: NodePool gpu)" in error["message"]
    assert terms(server) == [{"alias": "al2023@latest"}], "nothing was written"

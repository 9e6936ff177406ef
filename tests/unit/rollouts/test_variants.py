"""One machine image for what was several: by variants and architectures, as Karpenter 1.13 launches them."""

from __future__ import annotations

from typing import Any

import pytest

from parbake.core.model import Base, Variant
from parbake.records import Record
from parbake.rollouts.nodeclass import NodeClass
from parbake.rollouts.protocol import Offer
from parbake.rollouts.variants import objections
from parbake.workflows.rollout.offers import offer
from standins.clusters import NEEDS_KUBECTL, machine_image, parbake, project, volume
from standins.kubernetes.karpenter import Ami, Karpenter
from standins.kubernetes.server import Server
from tests.unit.rollouts.test_karpenter import AMIS, FIRST, GPU, images, pool, server, terms, without_kubectl
from tests.unit.rollouts.test_node_classes import ALIAS as NODE_CLASS
from tests.unit.rollouts.test_node_classes import IDS

pytestmark = pytest.mark.usefixtures("made_up_records")

__all__ = ["server", "without_kubectl"]

AWS = "karpenter.k8s.aws/instance-"
ARCH, TYPE, FAMILY, CATEGORY = (
    "kubernetes.io/arch",
    "node.kubernetes.io/instance-type",
    f"{AWS}family",
    f"{AWS}category",
)
GPUS, ACCELERATORS = f"{AWS}gpu-count", f"{AWS}accelerator-count"


def ami(name: str, *requirements: tuple[str, str], architecture: str = "amd64") -> dict[str, Any]:
    asked = [{"key": key, "operator": operator} for key, operator in requirements]
    return {"id": name, "requirements": [{"key": ARCH, "operator": "In", "values": [architecture]}, *asked]}


_NONE = ((GPUS, "DoesNotExist"), (ACCELERATORS, "DoesNotExist"))
AMI = [
    ami("ami-standard", *_NONE), ami("ami-nvidia", (GPUS, "Exists")), ami("ami-neuron", (ACCELERATORS, "Exists")),
    ami("ami-arm", *_NONE, architecture="arm64"),
]  # fmt: skip
ALIAS = NodeClass({**NODE_CLASS, "status": {"amis": AMI}})
BY_ID = NodeClass({**IDS, "status": {"amis": [ami("ami-0")]}})
IMAGE = Offer(artefacts=("node-1.raw",), keys=("k1",), architectures=("amd64",), images=("ami-1",))
STANDARD, NVIDIA = (IMAGE.model_copy(update={"variant": each}) for each in ("standard", "nvidia"))
BOTH = IMAGE.model_copy(update={"architectures": ("amd64", "arm64"), "images": ("ami-1", "ami-2")})
VOLUME = Offer(artefacts=("data-1.raw",), keys=("k2",), architectures=("amd64",), snapshot="snap-1")


def of(name: str, *asked: tuple[str, str, str], labels: dict[str, str] | None = None) -> dict[str, Any]:
    """Return a NodePool that asks by (key, operator, values with spaces between)."""
    listed = [{"key": key, "operator": how, "values": values.split()} for key, how, values in asked]
    template = {"metadata": {"labels": labels or {}}, "spec": {"requirements": listed}}
    return {"metadata": {"name": name}, "spec": {"template": template}}


PLAIN, AMD64 = of("plain"), (ARCH, "In", "amd64")
GENERAL = of("general", AMD64, (CATEGORY, "In", "c m r"), (f"{AWS}generation", "Gt", "2"))


@pytest.mark.parametrize(
    ("asked", "variant"),
    [
        ((FAMILY, "In", "g4dn"), "nvidia"),
        ((TYPE, "In", "inf2.xlarge"), "neuron"),
        ((CATEGORY, "In", "p"), "nvidia"),
        ((CATEGORY, "In", "trn"), "neuron"),
        ((GPUS, "Exists", ""), "nvidia"),
        ((GPUS, "Gt", "0"), "nvidia"),
        ((f"{AWS}gpu-manufacturer", "In", "nvidia"), "nvidia"),
        ((f"{AWS}gpu-memory", "Lt", "30000"), "nvidia"),
        ((f"{AWS}accelerator-name", "In", "inferentia2"), "neuron"),
    ],
)
def test_pools_of_two_variants_are_named(asked: tuple[str, str, str], variant: str) -> None:
    """And a class that only one of them uses takes what was baked onto that, and nothing else."""
    other = of("other", AMD64, asked)
    [said] = objections(ALIAS, [GENERAL, other], [], IMAGE).refusals
    assert f"several variants of its image ({variant}: NodePool other; standard: NodePool general)" in said
    [said] = objections(ALIAS, [other], [], STANDARD).refusals
    assert f"another variant of its image ({variant}: NodePool other)" in said
    assert "baked onto its standard variant" in said
    right = IMAGE.model_copy(update={"variant": variant})
    assert objections(ALIAS, [other], [], right) == ((), ())
    unknown = objections(ALIAS, [other], [], IMAGE)
    assert unknown.refusals == ()
    assert unknown.cautions == (
        f"Karpenter launches {variant}: NodePool other: see that node-1.raw was baked onto that variant",
    )
    assert objections(BY_ID, [GENERAL, other], [], IMAGE) == ((), ()), "it has one now"
    [said] = objections(BY_ID, [other], [], STANDARD).cautions
    assert f"{variant}: NodePool other; node-1.raw was baked onto the standard image, and has no driver" in said


@pytest.mark.parametrize(
    "asked",
    [
        [(FAMILY, "In", "m5 i4i mac2-m2")],
        [(CATEGORY, "In", "c m r")],
        [(GPUS, "DoesNotExist", ""), (ACCELERATORS, "DoesNotExist", "")],
        [(FAMILY, "In", "a99z")],
    ],
)
def test_other_families_take_the_standard_image(asked: list[tuple[str, str, str]]) -> None:
    assert objections(ALIAS, [of("other", AMD64, *asked)], [], STANDARD) == ((), ())
    assert objections(ALIAS, [of("other", AMD64, *asked)], [], NVIDIA).refusals, "the wrong one for them"


@pytest.mark.parametrize(
    ("asked", "left"),
    [
        ([], "neuron: NodePool plain; nvidia: NodePool plain"),
        ([(f"{AWS}cpu", "Gt", "3")], "neuron: NodePool plain; nvidia: NodePool plain"),
        ([(CATEGORY, "NotIn", "inf trn")], "nvidia: NodePool plain"),
        ([(CATEGORY, "NotIn", "g gr p dl")], "neuron: NodePool plain"),
        ([(FAMILY, "NotIn", "g4dn g5")], "neuron: NodePool plain; nvidia: NodePool plain"),
        ([(FAMILY, "Exists", "")], "neuron: NodePool plain; nvidia: NodePool plain"),
        ([(TYPE, "NotIn", "g5.xlarge")], "neuron: NodePool plain; nvidia: NodePool plain"),
        ([(GPUS, "DoesNotExist", "")], "neuron: NodePool plain"),
        ([(ACCELERATORS, "DoesNotExist", "")], "nvidia: NodePool plain"),
        ([(f"{AWS}generation", "Gte", "3")], "nvidia: NodePool plain"),
    ],
)
def test_what_a_pool_launches_only_for_pods_that_ask_for_it_is_to_be_known(
    asked: list[tuple[str, str, str]], left: str
) -> None:
    refusals, [said] = objections(ALIAS, [of("plain", AMD64, *asked)], [], STANDARD)
    assert refusals == ()
    assert said.startswith(f"Karpenter launches {left} as well, for pods that ask for it")


@pytest.mark.parametrize(
    "asked",
    [
        (ARCH, "In", "arm64"),
        (ARCH, "NotIn", "amd64"),
        (FAMILY, "In", "c6g m5"),
        (TYPE, "In", "m7gd.large c7gn.xlarge"),
        (FAMILY, "In", "a1"),
        (FAMILY, "In", "g5g"),
        (FAMILY, "In", "c9gd"),
        (f"{AWS}cpu-manufacturer", "In", "aws"),
        ("beta.kubernetes.io/arch", "In", "arm64"),
    ],
)
def test_pools_that_ask_for_another_architecture_are_refused(asked: tuple[str, str, str]) -> None:
    """Named or meant, on every class, and for volumes, whose images would not run there."""
    for node_class in (ALIAS, BY_ID):
        assert any(
            "arm64; the image is for amd64" in each
            for each in objections(node_class, [of("arm", asked)], [], IMAGE).refusals
        )
    assert any("the volume is for amd64" in each for each in objections(ALIAS, [of("arm", asked)], [], VOLUME).refusals)
    refused = objections(ALIAS, [of("arm", asked)], [], BOTH).refusals
    assert not any("is for amd64" in each for each in refused)
    by_label = of("arm", labels={asked[0]: asked[2].split()[0]})
    if asked[1] == "In":
        assert objections(BY_ID, [by_label], [], IMAGE).refusals, "a template's labels count as requirements"


@pytest.mark.parametrize("asked", [[], [(CATEGORY, "In", "c m r")], [(ARCH, "Exists", "")]])
def test_a_pool_that_names_no_architecture_loses_its_arm_instances(asked: list[tuple[str, str, str]]) -> None:
    pools = [of("plain", *asked, (GPUS, "DoesNotExist", ""), (ACCELERATORS, "DoesNotExist", ""))]
    refusals, [said] = objections(ALIAS, pools, [], STANDARD)
    assert refusals == ()
    assert "NodePool plain names no architecture and has arm64 instances, and the image is for amd64" in said
    assert objections(ALIAS, pools, [], BOTH) == ((), ())
    assert objections(BY_ID, pools, [], IMAGE) == ((), ()), "it launches none of them now either"
    node = {"metadata": {"name": "n", "labels": {"karpenter.sh/nodepool": "plain"}}, "status": {"imageID": "ami-arm"}}
    assert objections(ALIAS, pools, [node], STANDARD).refusals == (
        "NodePool plain has nodes for arm64; the image is for amd64",
    )


@pytest.mark.parametrize(
    ("labels", "image", "variant"),
    [
        ({}, "ami-nvidia", "nvidia"),
        ({FAMILY: "g5", GPUS: "1", ARCH: "amd64"}, "ami-gone", "nvidia"),
        ({FAMILY: "inf2", ACCELERATORS: "1", ARCH: "amd64"}, "ami-gone", "neuron"),
    ],
)
def test_what_nodes_are_counts_whatever_their_pool_says(labels: dict[str, str], image: str, variant: str) -> None:
    node: dict[str, Any] = {
        "metadata": {"name": "n-1", "labels": {**labels, "karpenter.sh/nodepool": "general"}},
        "status": {"imageID": image},
    }
    [said] = objections(ALIAS, [GENERAL], [node], STANDARD).refusals
    assert f"({variant}: NodePool general; standard: NodePool general)" in said
    del node["metadata"]["labels"]["karpenter.sh/nodepool"]
    assert "NodeClaim n-1" in objections(ALIAS, [GENERAL], [node], IMAGE).refusals[0]


def test_a_class_of_which_karpenter_said_nothing_yet_is_what_its_alias_is() -> None:
    other = of("gpu", AMD64, (FAMILY, "In", "g5"))
    assert objections(NodeClass(NODE_CLASS), [GENERAL, other], [], IMAGE).refusals
    assert objections(NodeClass(NODE_CLASS), [other], [], STANDARD).refusals
    assert objections(NodeClass(IDS), [GENERAL, other], [], IMAGE) == ((), ())
    [said] = objections(NodeClass(NODE_CLASS), [], [], IMAGE).cautions
    assert "no NodePool of the node class is known here" in said


def test_broken_requirements_of_a_file_are_no_traceback() -> None:
    for broken in (
        None,
        3,
        [None, "x", {"key": FAMILY, "operator": "In", "values": 7}, {"key": GPUS, "operator": "Gt", "values": ["x"]}],
    ):
        assert objections(
            ALIAS, [{"metadata": {"name": "x"}, "spec": {"template": {"spec": {"requirements": broken}}}}], [], BOTH
        )


def test_an_offer_says_the_variant_of_its_base() -> None:
    def based(made: Record, variant: Variant) -> Record:
        base = Base(kind="ami", identity="ami-9", variant=variant)
        return made.model_copy(update={"plan": made.plan.model_copy(update={"base": base})})

    arm = machine_image("first", "ami-3", architecture="arm64")
    assert based(FIRST, "nvidia").plan.key == based(FIRST, "").plan.key, "keys are those of before"
    assert offer([based(FIRST, "nvidia"), volume("data", "snap-9")], None).variant == "nvidia"
    assert offer([based(FIRST, "nvidia"), based(arm, "nvidia")], None).variant == "nvidia"
    assert offer([based(FIRST, "nvidia"), based(arm, "standard")], None).variant == ""


@NEEDS_KUBECTL
@pytest.mark.usefixtures("without_kubectl")
def test_a_rollout_is_refused_where_nodes_run_another_variant(
    server: Server, tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    server.create("ec2nodeclasses", "gpu", spec=NODE_CLASS["spec"])
    server.create("nodepools", "gpu", spec=pool("gpu"))
    cluster = Karpenter(server, [*AMIS, Ami("ami-n", "al2023-nvidia", variant="nvidia")])
    cluster.start_nodes("gpu", "gpu", 1, "g4dn.8xlarge")
    assert images(server) == ["ami-n"]
    project(tmp_path, [GPU], FIRST)
    code, error = parbake(capsys, "rollout", FIRST.key, "--no-follow")
    assert code == 1, error
    assert "several variants of its image (nvidia: NodePool gpu; standard: NodePool gpu)" in error["message"]
    assert terms(server) == [{"alias": "al2023@latest"}], "nothing was written"

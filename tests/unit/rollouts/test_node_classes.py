"""What a rollout writes into a node class, and what going back writes: one small file a case.

`UPDATE_GOLDEN=1 pytest tests/unit/rollouts/test_node_classes.py` writes them anew. What is written must pass the schema
and the CEL rules of Karpenter's own CRDs.
"""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any, get_args

import pytest

from parbake.bakefile.targets import KarpenterTarget, RemedyName
from parbake.core.errors import InputError
from parbake.core.model import GIB
from parbake.rollouts import Change, Offer
from parbake.rollouts.nodeclass import ANNOTATION, NodeClass, decide, decide_rollback, options_of
from parbake.rollouts.userdata import KEEP_STORE, with_parts
from standins.kubernetes import schemas
from standins.kubernetes.resolving import ephemeral_storage
from standins.kubernetes.server import load_crds
from standins.kubernetes.store import merge

FOLDER = Path(__file__).with_name("cases")
OLD = "karpenter.k8s.aws_awsnodetemplates.v1alpha1"
BOTH = "karpenter.k8s.aws_ec2nodeclasses.v1+v1beta1"
NEW = "karpenter.k8s.aws_ec2nodeclasses.v1"
IMAGE = Offer(
    artefacts=("node-1.raw",),
    keys=("k1",),
    region="eu-central-1",
    architectures=("amd64",),
    images=("ami-1",),
    image_size=12 * GIB,
)
VOLUME = Offer(
    artefacts=("data-1.raw",), keys=("k2",), architectures=("amd64",), snapshot="snap-1", snapshot_size=30 * GIB + 1
)
TOGETHER = IMAGE.model_copy(update={"snapshot": "snap-1", "snapshot_size": 30 * GIB, "artefacts": ("data-1", "node-1")})
LARGE = IMAGE.model_copy(update={"image_size": 40 * GIB})
MOUNTED = VOLUME.model_copy(update={"mount": "#cloud-boothook\nmount\n"})
HOT = VOLUME.model_copy(
    update={"hydrate": "#cloud-boothook\n#!/bin/sh\ntrue\n", "boost": "#cloud-boothook\n#!/bin/sh\ntrue back\n"}
)
BOTTLEROCKETS = VOLUME.model_copy(update={"family": "Bottlerocket"})
COMMON: dict[str, Any] = {
    "role": "nodes",
    "subnetSelectorTerms": [{"id": "subnet-1"}],
    "securityGroupSelectorTerms": [{"id": "sg-1"}],
}


def node_class(version: str = "v1", **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": f"karpenter.k8s.aws/{version}",
        "kind": "AWSNodeTemplate" if version == "v1alpha1" else "EC2NodeClass",
        "metadata": {"name": "gpu"},
        "spec": {**(COMMON if version != "v1alpha1" else {}), **spec},
    }


def node_config(spec: str) -> str:
    return f"apiVersion: node.eks.aws/v1alpha1\nkind: NodeConfig\nspec: {spec}\n"


def disk(name: str, size: str, **more: Any) -> dict[str, Any]:
    return {"deviceName": name, "ebs": {"volumeSize": size, "volumeType": "gp3", **more}}


ALIAS = node_class(amiSelectorTerms=[{"alias": "al2023@latest"}])
IDS = node_class(amiFamily="AL2023", amiSelectorTerms=[{"id": "ami-0"}, {"id": "ami-00"}])
BOOST = {"raised": True, "boost": True}
LARGE_BOOST = HOT.model_copy(update={"boost": "#cloud-boothook\n" + "x" * 14_000})
FASTER: dict[str, Any] = {
    "blockDeviceMappings": [disk("/dev/xvdb", "100Gi", snapshotID="snap-0", iops=8000, throughput=2000)]
}
OTHER_KIND: dict[str, Any] = {"blockDeviceMappings": [disk("/dev/xvdb", "9Gi", volumeType="io2", iops=9000)]}
CASES: dict[str, tuple[str, dict[str, Any], Offer, dict[str, Any]]] = {
    "image-over-alias": (NEW, ALIAS, IMAGE, {}),
    "image-over-ids": (NEW, IDS, IMAGE, {}),
    "image-over-parameter": (
        NEW,
        node_class(amiFamily="AL2023", amiSelectorTerms=[{"ssmParameter": "/nodes/gpu"}]),
        IMAGE,
        {},
    ),
    "image-over-tags": (
        NEW,
        node_class(amiFamily="AL2023", amiSelectorTerms=[{"tags": {"team": "ml"}, "owner": "self"}]),
        IMAGE,
        {},
    ),
    "image-larger-than-the-default-disk": (NEW, ALIAS, LARGE, {}),
    "image-larger-than-its-disk": (
        NEW,
        node_class(
            amiSelectorTerms=[{"alias": "al2023@latest"}],
            blockDeviceMappings=[disk("/dev/xvda", "20Gi", throughput=500), disk("/dev/xvdc", "1Ti")],
        ),
        LARGE,
        {},
    ),
    "image-on-a-marked-root": (
        NEW,
        node_class(
            amiFamily="AL2023",
            amiSelectorTerms=[{"id": "ami-0"}],
            blockDeviceMappings=[{**disk("/dev/sda1", "8G"), "rootVolume": True}, disk("/dev/xvda", "10Gi")],
        ),
        IMAGE,
        {},
    ),
    "volume-beside-the-default-disk": (NEW, ALIAS, VOLUME, {}),
    "boost": (NEW, node_class(**ALIAS["spec"], tags={"team": "ml"}), HOT, {**BOOST, "hydrate": True}),
    "boost-without-room": (NEW, ALIAS, LARGE_BOOST, {**BOOST, "hydrate": True}),
    "boost-as-told": (NEW, ALIAS, HOT, {**BOOST, "disk": {"iops": 8000, "throughput": 2000}}),
    "boost-no-longer": (NEW, node_class(**ALIAS["spec"], **FASTER, tags={"parbake:boost": "3000/125"}), VOLUME, {}),
    "boost-of-another-kind": (NEW, node_class(**ALIAS["spec"], **OTHER_KIND), VOLUME, BOOST),
    "volume-faster-than-its-size-allows": (NEW, ALIAS, VOLUME, {"disk": {"iops": 16000, "throughput": 500}}),
    "volume-on-bottlerocket": (NEW, node_class(amiSelectorTerms=[{"alias": "bottlerocket@latest"}]), VOLUME, {}),
    "volume-again": (
        NEW,
        node_class(
            amiSelectorTerms=[{"alias": "al2023@latest"}],
            blockDeviceMappings=[
                disk("/dev/xvda", "20Gi"),
                disk("/dev/xvdb", "100Gi", snapshotID="snap-0", encrypted=True, iops=4000),
            ],
        ),
        VOLUME,
        {"disk": {"volumeInitializationRate": 300}},
    ),
    "volume-baked-encrypted": (
        NEW,
        node_class(
            amiSelectorTerms=[{"alias": "al2023@latest"}],
            blockDeviceMappings=[disk("/dev/xvda", "20Gi"), disk("/dev/xvdb", "100Gi", encrypted=True)],
        ),
        VOLUME.model_copy(update={"encrypted": True}),
        {},
    ),
    "volume-over-a-disk-with-a-key": (
        NEW,
        node_class(
            amiSelectorTerms=[{"alias": "al2023@latest"}],
            blockDeviceMappings=[
                disk("/dev/xvda", "20Gi"),
                disk("/dev/xvdb", "50Gi", encrypted=True, kmsKeyID="arn:aws:kms:eu-central-1:123456789012:key/k"),
            ],
        ),
        VOLUME.model_copy(update={"encrypted": True, "kms_key": "alias/bakes"}),
        {},
    ),
    "volume-on-custom-with-a-root-disk": (
        NEW,
        node_class(
            amiFamily="Custom",
            amiSelectorTerms=[{"id": "ami-0"}],
            blockDeviceMappings=[disk("/dev/xvda", "100Gi")],
        ),
        VOLUME,
        {},
    ),
    "volume-on-another-device": (
        NEW,
        ALIAS,
        VOLUME,
        {"device": "/dev/sdf", "disk": {"volumeInitializationRate": 100, "throughput": 500}},
    ),
    "image-and-volume": (NEW, ALIAS, TOGETHER, {}),
    "raid0": (
        NEW,
        node_class(amiSelectorTerms=[{"alias": "al2023@latest"}], instanceStorePolicy="RAID0"),
        IMAGE,
        {},
    ),
    "raid0-keep-store": (
        NEW,
        node_class(
            amiSelectorTerms=[{"alias": "al2023@latest"}],
            instanceStorePolicy="RAID0",
            userData="#!/bin/sh\necho hello\n",
        ),
        IMAGE,
        {"keep_store": True},
    ),
    "raid0-containerd-stays": (
        NEW,
        node_class(
            amiSelectorTerms=[{"alias": "al2023@latest"}],
            instanceStorePolicy="RAID0",
            userData=node_config("{instance: {localStorage: {disabledMounts: [PodLogs, Containerd]}}}"),
        ),
        IMAGE,
        {},
    ),
    "raid0-other-mounts-win-over-keep-store": (
        NEW,
        node_class(
            amiSelectorTerms=[{"alias": "al2023@latest"}],
            instanceStorePolicy="RAID0",
            userData=node_config("{instance: {localStorage: {disabledMounts: [PodLogs]}}}"),
        ),
        IMAGE,
        {"keep_store": True},
    ),
    "raid0-on-bottlerocket": (
        NEW,
        node_class(amiSelectorTerms=[{"alias": "bottlerocket@latest"}], instanceStorePolicy="RAID0"),
        BOTTLEROCKETS,
        {},
    ),
    "keep-store-on-al2": (
        NEW,
        node_class(amiFamily="AL2", amiSelectorTerms=[{"id": "ami-0"}]),
        IMAGE,
        {"keep_store": True},
    ),
    "keep-store-no-longer": (
        NEW,
        node_class(
            amiFamily="AL2023", amiSelectorTerms=[{"id": "ami-0"}], userData=with_parts("", {"store": KEEP_STORE})
        ),
        IMAGE,
        {},
    ),
    "soci-on-al2023": (
        NEW,
        node_class(
            amiSelectorTerms=[{"alias": "al2023@latest"}], userData=node_config("{featureGates: {FastImagePull: true}}")
        ),
        VOLUME,
        {},
    ),
    "soci-on-bottlerocket": (
        NEW,
        node_class(
            amiSelectorTerms=[{"alias": "bottlerocket@latest"}],
            userData='[settings.container-runtime]\nsnapshotter = "soci"\n',
        ),
        BOTTLEROCKETS,
        {},
    ),
    "image-on-bottlerocket": (
        NEW,
        node_class(amiFamily="Bottlerocket", amiSelectorTerms=[{"id": "ami-0"}]),
        IMAGE,
        {},
    ),
    "v1beta1": (
        BOTH,
        node_class("v1beta1", amiFamily="AL2", amiSelectorTerms=[{"name": "amazon-eks-node-1.30-*"}]),
        TOGETHER,
        {},
    ),
    "v1beta1-without-terms": (BOTH, node_class("v1beta1", amiFamily="AL2023"), IMAGE, {}),
    "v1alpha1": (OLD, node_class("v1alpha1", amiSelector={"aws-ids": "ami-0,ami-00"}), IMAGE, {}),
    "v1alpha1-newer-spelling": (OLD, node_class("v1alpha1", amiSelector={"aws::ids": "ami-0"}), IMAGE, {}),
    "v1alpha1-by-tags": (OLD, node_class("v1alpha1", amiSelector={"team": "ml", "stage": "x"}), TOGETHER, {}),
    "volume-on-bottlerocket-elsewhere": (
        NEW,
        node_class(amiSelectorTerms=[{"alias": "bottlerocket@latest"}]),
        VOLUME,
        {"device": "/dev/sdf"},
    ),
    "bottlerockets-volume": (
        NEW,
        node_class(amiSelectorTerms=[{"alias": "bottlerocket@v1.50.0"}]),
        BOTTLEROCKETS,
        {},
    ),
    "bottlerockets-volume-on-al2023": (NEW, ALIAS, BOTTLEROCKETS, {}),
    "bottlerockets-volume-on-custom": (
        NEW,
        node_class(amiFamily="Custom", amiSelectorTerms=[{"id": "ami-0"}]),
        BOTTLEROCKETS,
        {"device": "/dev/sdf"},
    ),
    "bottlerockets-volume-without-a-family": (OLD, node_class("v1alpha1"), BOTTLEROCKETS, {}),
    "image-on-windows": (NEW, node_class(amiSelectorTerms=[{"alias": "windows2022@latest"}]), IMAGE, {}),
    "bottlerockets-volume-on-windows": (
        NEW,
        node_class(amiFamily="Windows2019", amiSelectorTerms=[{"alias": "windows2019@latest"}]),
        BOTTLEROCKETS,
        {},
    ),
    "volume-on-the-root": (NEW, ALIAS, VOLUME, {"device": "/dev/xvda"}),
    "hydrate": (NEW, ALIAS, HOT, {"hydrate": True}),
    "hydrate-beside-a-script": (
        NEW,
        node_class(amiSelectorTerms=[{"alias": "al2023@latest"}], userData="#!/bin/sh\necho hello\n"),
        HOT,
        {"hydrate": True, "disk": {"volumeInitializationRate": 300}},
    ),
    "hydrate-another-list": (
        NEW,
        node_class(
            amiSelectorTerms=[{"alias": "al2023@latest"}],
            userData=with_parts("#!/bin/sh\n", {"hydrate": "#cloud-boothook\nold\n"}),
        ),
        HOT,
        {"hydrate": True},
    ),
    "hydrate-no-longer": (
        NEW,
        node_class(
            amiSelectorTerms=[{"alias": "al2023@latest"}],
            userData=with_parts("#!/bin/sh\n", {"hydrate": "#cloud-boothook\nold\n"}),
        ),
        VOLUME,
        {},
    ),
    "hydrate-on-bottlerocket": (
        NEW,
        node_class(amiSelectorTerms=[{"alias": "bottlerocket@latest"}]),
        HOT,
        {"hydrate": True},
    ),
    "hydrate-too-large": (
        NEW,
        ALIAS,
        HOT.model_copy(update={"hydrate": "#cloud-boothook\n" + "x" * 15_000}),
        {"hydrate": True},
    ),
    "mount": (NEW, ALIAS, MOUNTED, {}),
    "mount-beside-a-node-config": (
        NEW,
        node_class(
            amiSelectorTerms=[{"alias": "al2023@latest"}],
            userData="apiVersion: node.eks.aws/v1alpha1\nkind: NodeConfig\nspec: {}\n",
        ),
        MOUNTED.model_copy(update={"hydrate": "#cloud-boothook\nhot\n"}),
        {"hydrate": True},
    ),
    "mount-no-longer": (
        NEW,
        node_class(
            amiSelectorTerms=[{"alias": "al2023@latest"}],
            userData=with_parts("#!/bin/sh\n", {"mount": "#cloud-boothook\nold\n"}),
        ),
        VOLUME,
        {},
    ),
    "mount-stays-with-another-image": (
        NEW,
        node_class(
            amiSelectorTerms=[{"alias": "al2023@latest"}],
            blockDeviceMappings=[disk("/dev/xvda", "20Gi"), disk("/dev/xvdb", "100Gi", snapshotID="snap-0")],
            userData=with_parts("", {"mount": "#cloud-boothook\nold\n"}),
        ),
        IMAGE,
        {},
    ),
    "mount-on-bottlerocket": (NEW, node_class(amiSelectorTerms=[{"alias": "bottlerocket@latest"}]), MOUNTED, {}),
    "nothing-to-do": (NEW, node_class(amiFamily="AL2023", amiSelectorTerms=[{"id": "ami-1"}]), IMAGE, {}),
}


def decided(found: dict[str, Any], offer: Offer, options: dict[str, Any]) -> Change:
    return decide(NodeClass(found), offer, **{"device": "/dev/xvdb", "disk": {}, **options})


def told(change: Change) -> dict[str, Any]:
    payload = copy.deepcopy(dict(change.payload))
    for name, text in payload.get("metadata", {}).get("annotations", {}).items():
        payload["metadata"]["annotations"][name] = json.loads(text)
    return {
        "where": change.where,
        "before": str(change.before),
        "after": str(change.after),
        "payload": payload,
        "refusals": change.refusals,
        "cautions": change.cautions,
    }


@pytest.mark.parametrize("case", CASES)
def test_what_is_written_into_a_node_class(case: str) -> None:
    crd, found, offer, options = CASES[case]
    change = decided(found, offer, options)
    device = options.get("device", "/dev/xvdb")
    document: dict[str, Any] = {"rollout": told(change)}
    if not change.empty:
        after = merge(found, change.payload)
        allowed(crd, after)
        back = decide_rollback(NodeClass(after), device=device)
        document["rollback"] = told(back)
        returned = merge(after, back.payload)
        allowed(crd, returned)
        assert returned["spec"] == found["spec"], "going back leaves nothing behind"
        assert decide_rollback(NodeClass(returned), device=device).empty, "going back twice is going back once"
        assert decided(after, offer, options).empty, "the same again is nothing"
    text = json.dumps(document, indent=2) + "\n"
    path = FOLDER / f"{case}.json"
    if os.environ.get("UPDATE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert path.read_text() == text


REMEDIES = [{"remedy": name} for name in get_args(RemedyName)] + [{"remedy": "rate", "initialization_rate": 150}]


@pytest.mark.parametrize("first", REMEDIES, ids=str)
def test_a_remedy_replaces_the_one_before_it(first: dict[str, Any]) -> None:
    found = node_class(amiSelectorTerms=[{"alias": "al2023@latest"}])
    for second in REMEDIES:
        specs = []
        for each in ((second,), (first, second)):
            now = found
            for remedy in each:
                target = KarpenterTarget.model_validate({"nodeclass": "gpu", **remedy})
                now = merge(now, decide(NodeClass(now), HOT, **options_of(target)).payload)
            allowed(NEW, now)
            specs.append(now["spec"])
        assert specs[0] == specs[1], f"{second} after {first}"


def test_a_remedy_leaves_the_speed_that_somebody_gave_a_volume() -> None:
    own = disk("/dev/xvdb", "100Gi", snapshotID="snap-0", throughput=1000, iops=10_000)
    found = node_class(amiSelectorTerms=[{"alias": "al2023@latest"}], blockDeviceMappings=[own])
    target = KarpenterTarget(nodeclass="gpu", remedy="nothing")
    after = merge(found, decide(NodeClass(found), HOT, **options_of(target)).payload)
    assert after["spec"]["blockDeviceMappings"][0]["ebs"]["iops"] == 10_000


LAB = VOLUME.model_copy(update={"snapshot_size": 8 * GIB})


@pytest.mark.parametrize(
    ("disks", "seen"),
    [
        ([disk("/dev/xvda", "100Gi")], "100Gi"),
        ([{**disk("/dev/xvda", "100Gi"), "rootVolume": True}], "100Gi"),
        ([], "20Gi"),
    ],
)
def test_karpenter_counts_on_the_same_ephemeral_storage_after_a_volume_came(
    disks: list[dict[str, Any]], seen: str
) -> None:
    """``seen`` is what the real Karpenter 1.13 said before; with the volume last it said 8Gi, and pods did not fit."""
    found = node_class(amiFamily="Custom", amiSelectorTerms=[{"id": "ami-0"}], blockDeviceMappings=disks)
    assert ephemeral_storage(found["spec"]) == seen
    appended = {**found["spec"], "blockDeviceMappings": [*disks, disk("/dev/xvdb", "8Gi", snapshotID="snap-1")]}
    assert ephemeral_storage(appended) == ("100Gi" if "rootVolume" in str(disks) else "8Gi"), "as it said"
    assert ephemeral_storage(merge(found, decided(found, LAB, {}).payload)["spec"]) == seen


def test_every_answer_has_its_case() -> None:
    assert {path.stem for path in FOLDER.glob("*.json")} == set(CASES)


def allowed(crd: str, found: dict[str, Any]) -> None:
    """Check an object against the schema and the rules of its CRD."""
    version = found["apiVersion"].rpartition("/")[2]
    versions = load_crds(crd)[0]["spec"]["versions"]
    schema = next(each["schema"]["openAPIV3Schema"] for each in versions if each["name"] == version)
    checked = copy.deepcopy(found)
    assert schemas.prune(schema, checked) == []
    schemas.default(schema, checked)
    assert schemas.problems(schema, checked, None) == []


def test_a_rollout_after_another_goes_back_one_step() -> None:
    first = merge(ALIAS, decided(ALIAS, IMAGE, {}).payload)
    other = IMAGE.model_copy(update={"images": ("ami-2",), "artefacts": ("node-2.raw",)})
    second = merge(first, decided(first, other, {}).payload)
    assert NodeClass(second).held("/dev/xvdb").artefacts == ("node-2.raw",)
    back = merge(second, decide_rollback(NodeClass(second), device="/dev/xvdb").payload)
    assert back["spec"] == first["spec"]
    assert NodeClass(back).held("/dev/xvdb").artefacts == ("node-1.raw",)


def test_a_change_by_hand_after_the_rollout_is_told() -> None:
    after = merge(ALIAS, decided(ALIAS, IMAGE, {}).payload)
    after["spec"]["amiSelectorTerms"] = [{"id": "ami-9"}]
    back = decide_rollback(NodeClass(after), device="/dev/xvdb")
    assert back.cautions == (
        "it was changed after the rollout, from node-1.raw (ami-1) to ami-9: that change goes too",
    )
    assert NodeClass(after).held("/dev/xvdb").artefacts == (), "the note says nothing of what somebody else wrote"


@pytest.mark.parametrize("note", ["", "{", "[]", '{"previous": 3}', '{"previous": {"nonsense": 1}}', "null"])
def test_without_a_note_there_is_no_way_back(note: str) -> None:
    found = copy.deepcopy(IDS)
    if note:
        found["metadata"]["annotations"] = {ANNOTATION: note}
    with pytest.raises(InputError, match="records no rollout"):
        decide_rollback(NodeClass(found), device="/dev/xvdb")
    assert not decided(found, IMAGE, {}).empty

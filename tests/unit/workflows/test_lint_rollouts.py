"""What a rollout writes into a node class, lint finds nothing wrong with."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import assume, given
from hypothesis import strategies as st

from parbake.core.families import BY_WORD, FAMILIES
from parbake.core.model import GIB, Platform
from parbake.rollouts import Offer
from parbake.rollouts.nodeclass import NodeClass, decide
from parbake.workflows.lint import Bake, examine
from standins.kubernetes.store import merge

DEVICES = ("/dev/xvda", "/dev/sda1", "/dev/xvdb", "/dev/xvdc")
MACHINE = Platform(architecture="amd64")
sizes = st.integers(1, 200)
disks = st.lists(st.sampled_from(DEVICES), unique=True, max_size=3).flatmap(
    lambda names: st.tuples(*(st.tuples(st.just(name), st.none() | sizes, st.booleans()) for name in names))
)
families = st.sampled_from(sorted(FAMILIES))


def mapping(name: str, size: int | None, *, root: bool) -> dict[str, Any]:
    return {
        "deviceName": name,
        "ebs": {"volumeSize": f"{size}Gi"} if size else {"volumeType": "gp3"},
        **({"rootVolume": True} if root else {}),
    }


@given(
    families,
    st.none() | st.sampled_from(sorted(BY_WORD.keys() - {"ubuntu"})),
    disks,
    st.booleans(),
    sizes,
    st.sampled_from(["/dev/xvdb", "/dev/xvdc"]),
)
def test_whatever_a_rollout_writes_lints_without_an_error(
    family: str, alias: str | None, mapped: tuple[Any, ...], is_volume: bool, size: int, device: str
) -> None:
    root = next((name for name, _, root in mapped if root), "")
    spec: dict[str, Any] = {
        "amiSelectorTerms": [{"alias": f"{alias}@latest"} if alias else {"id": "ami-0"}],
        "blockDeviceMappings": [mapping(name, given, root=name == root) for name, given, _ in mapped],
    }
    if family and not alias:
        spec["amiFamily"] = family
    found = {"apiVersion": "karpenter.k8s.aws/v1", "kind": "EC2NodeClass", "metadata": {"name": "gpu"}, "spec": spec}
    offer = Offer(
        artefacts=("a-1",),
        keys=("k",),
        architectures=("amd64",),
        mount="#cloud-boothook\n#!/bin/sh\n# parbake-mount.sh\n",
    )
    bake = Bake("a-1", MACHINE, "machine-image", (), size=size * GIB, amis=frozenset({"ami-1"}))
    if is_volume:
        offer = offer.model_copy(update={"snapshot": "snap-1", "snapshot_size": size * GIB})
        pause = "localhost/kubernetes/pause:latest"
        bake = Bake("a-1", MACHINE, "volume", (), sandbox=pause, size=size * GIB, snapshots=(("snap-1", size * GIB),))
    else:
        offer = offer.model_copy(update={"images": ("ami-1",), "image_size": size * GIB, "mount": ""})
    change = decide(NodeClass(found), offer, device=device, disk={})
    assume(not change.refusals)  # then nothing is written
    told = examine([("x.yaml", json.dumps(merge(found, change.payload)))], (bake,))
    assert [each for each in told if each.level == "error"] == []

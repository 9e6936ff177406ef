"""Karpenter's double against what the real one answered, and what parbake writes now against both.

``cases/karpenter-1.13.json`` holds what Karpenter 1.13 made of 21 node classes on 2 December 2026, before a rollout and
after what parbake wrote then: the images in ``status.amis``, what six instance types start, the disks of the launch
template. User data is that of ``nodeadm.json``, recorded the same day.
"""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

from parbake.core.model import GIB
from parbake.rollouts import Offer, mount
from parbake.rollouts.nodeclass import NodeClass, decide_rollback
from parbake.rollouts.variants import objections
from standins.kubernetes.karpenter import Karpenter
from standins.kubernetes.resolving import Ami, answers, not_validated, resolved
from standins.kubernetes.server import serving
from standins.kubernetes.store import merge
from tests.unit.rollouts.test_node_classes import NEW, decided, node_class
from tests.unit.rollouts.test_userdata_nodeadm import ANSWERS as USER_DATA
from tests.unit.rollouts.test_variants import FAMILY, of

ROOT = Path(__file__).parents[3]
RECORDED: dict[str, Any] = json.loads((Path(__file__).parent / "cases" / "karpenter-1.13.json").read_text())
SHARED = ROOT.parent / "shared" / "karpenter-answers" / "matrix.txt"
OF_ALIAS = [
    Ami("ami-standard", "al2023-standard"), Ami("ami-nvidia", "al2023-nvidia", variant="nvidia"),
    Ami("ami-neuron", "al2023-neuron", variant="neuron"), Ami("ami-arm", "al2023-arm", architecture="arm64"),
]  # fmt: skip
AMIS = [*OF_ALIAS, Ami("ami-baked", "shop"), Ami("ami-bakedarm", "shop-arm", architecture="arm64")]
IMAGE = {"images": ("ami-baked",), "image_size": 30 * GIB, "architectures": ("amd64",)}
IMAGES = {**IMAGE, "images": ("ami-baked", "ami-bakedarm"), "architectures": ("amd64", "arm64")}
VOLUME = {"snapshot": "snap-1", "snapshot_size": 8 * GIB, "mount": mount.user_data("pause:1")}
OFFERS = {"image": IMAGE, "two architectures": IMAGES, "both": IMAGE | VOLUME}
# What each class has in its user data, by the names of ``nodeadm.json``.
WRITTEN = {
    "script": "script", "cloud-config": "cloud_config", "MIME": "mime", "MIME //": "mime_slashes",
    "MIME CRLF (terraform)": "terraform", "MIME CRLF all": "mime_crlf", "MIME lower case": "mime_lower",
    "MIME after an empty line": "mime_leading_newline", "NodeConfig as JSON": "json",
    "RAID0, NodeConfig with other disabledMounts, keep_store": "raid_other",
}  # fmt: skip
LOST = {
    "kms key on the data volume + volume",
    "Custom, root 100Gi, no rootVolume + volume",
    "Custom, no mappings + volume",
    "MIME CRLF (terraform) + volume",
    "MIME CRLF all + volume",
}
"""Classes that lost something by what parbake wrote then, and may not any more."""


def recorded(text: str) -> dict[str, Any]:
    """Read the matrix as it was recorded: what cannot be known from a node class (nodeadm, hashes) is left out."""
    found: dict[str, Any] = {}
    for block in re.split(r"^== ", text, flags=re.MULTILINE)[1:]:
        name, _, rest = block.partition("\n")
        phases = re.findall(
            r"^   (?:before|after +)\s*amis (\[.*?\]).*\n      (.*)\n(?:      disks (.*?) userData)?", rest, re.M
        )
        found[name] = [
            {
                "amis": ast.literal_eval(amis),
                "starts": dict(each.split(":", 1) for each in re.split(r"  (?=[a-z0-9]+\.)", starts)),
                "disks": [_disk(each) for each in ast.literal_eval(disks or "[]")],
            }
            for amis, starts, disks in phases
        ]
    return found


def _disk(made: dict[str, Any]) -> dict[str, Any]:
    """Return a launch template's mapping as that of a node class."""
    names = {"VolumeSize": "volumeSize", "SnapshotId": "snapshotID", "Encrypted": "encrypted", "KmsKeyId": "kmsKeyID"}
    ebs = {names[key]: value for key, value in made.items() if key in names}
    return {"deviceName": made["dev"], "ebs": {**ebs, "volumeSize": f"{ebs['volumeSize']}Gi"}}


def spec_of(name: str, number: int) -> dict[str, Any]:
    """Return the node class before (0), or as parbake wrote it then (1)."""
    phase = RECORDED[name][number]
    custom = name.startswith("Custom")
    terms = [{"id": each} for each in phase["amis"]] if custom or (number and "ami-baked" in phase["amis"]) else []
    spec: dict[str, Any] = {
        "amiFamily": "Custom" if custom else "AL2023",
        "amiSelectorTerms": terms or [{"alias": "al2023@latest"}],
    }
    disks = json.loads(json.dumps(phase["disks"]))
    if ", rootVolume" in name:
        disks[0]["rootVolume"] = True
    if disks and (number or custom or any(word in name for word in ("own root", "kms key"))):
        spec["blockDeviceMappings"] = disks
    if name.startswith("RAID0"):
        spec["instanceStorePolicy"] = "RAID0"
    written = WRITTEN.get(name.removesuffix(" + volume"))
    if written:
        spec["userData"] = USER_DATA[written]["mount" if number else "before"]["user_data"]
    return spec


@pytest.mark.parametrize("name", RECORDED)
def test_the_double_answers_as_karpenter_did(name: str) -> None:
    for number, phase in enumerate(RECORDED[name]):
        spec = spec_of(name, number)
        amis = resolved(spec, AMIS)
        assert sorted(each["id"] for each in amis) == phase["amis"]
        assert answers(spec, amis) == phase["starts"]


@pytest.mark.parametrize("name", RECORDED)
def test_no_instance_loses_by_what_parbake_writes_now(name: str) -> None:
    """Its image, its storage, or that it starts: either it stays, or the rollout is refused and names it."""
    before, then = (phase["starts"] for phase in RECORDED[name])
    found = node_class(**spec_of(name, 0))
    found["status"] = {"amis": resolved(found["spec"], AMIS)}
    offer = Offer(
        artefacts=("shop.raw",),
        keys=("k",),
        **{"architectures": ("amd64",)} | OFFERS.get(name.partition(" + ")[2], VOLUME),
    )
    change = decided(found, offer, {"keep_store": "keep_store" in name})
    after = merge(found, change.payload)
    amis = resolved(after["spec"], AMIS)
    now = answers(after["spec"], amis)
    assert now == (before if name in LOST else then)
    assert not_validated(after["spec"]) == not_validated(found["spec"])
    pools = [of(each, (FAMILY, "In", each.partition(".")[0])) for each in now]
    refused = " ".join(objections(NodeClass(found), pools, [], offer).refusals)
    for instance_type in now:
        was, became = (starts[instance_type].partition(":")[0] for starts in (before, now))
        if was != became and (was, became) not in {("ami-standard", "ami-baked"), ("ami-arm", "ami-bakedarm")}:
            assert f"NodePool {instance_type}" in refused
    back = decide_rollback(NodeClass(after), device="/dev/xvdb")
    assert merge(after, back.payload)["spec"] == found["spec"]


def test_a_key_without_encryption_is_not_validated() -> None:
    """Karpenter makes the template, and EC2 refuses the dry run of an instance from it."""
    name = "kms key on the data volume + volume"
    assert not_validated(spec_of(name, 1)) == "The parameter KmsKeyId requires the parameter Encrypted to be set."
    assert not_validated(spec_of(name, 0)) == ""


@pytest.mark.parametrize("name", ["kms key on the data volume + volume", "MIME CRLF (terraform) + volume"])
def test_a_class_that_is_not_validated_has_the_conditions_that_were_recorded(name: str, tmp_path: Path) -> None:
    """Ready is Unknown, ReconcilingDependents, of the new generation; of the NodePool False, NodeClassReady."""
    with serving(tmp_path, NEW, "karpenter.sh_nodepools.v1", "karpenter.sh_nodeclaims.v1") as server:
        server.create("ec2nodeclasses", "gpu", spec=node_class(**spec_of(name, 0))["spec"])
        reference = {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": "gpu"}
        server.create("nodepools", "gpu", spec={"template": {"spec": {"nodeClassRef": reference, "requirements": []}}})
        karpenter = Karpenter(server, AMIS)
        for number, wanted in ((0, ("True", "Ready", 1)), (1, ("Unknown", "ReconcilingDependents", 2))):
            server.change("ec2nodeclasses", "gpu", {"spec": spec_of(name, number)}, "v1")
            karpenter.step()
            [ready] = [each for each in conditions(server, "ec2nodeclasses") if each["type"] == "Ready"]
            assert (ready["status"], ready["reason"], ready["observedGeneration"]) == wanted
        [ready] = conditions(server, "nodepools")
        assert (ready["status"], ready["reason"]) == ("False", "NodeClassReady")


def conditions(server: Any, plural: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = server.get(plural, "gpu")["status"]["conditions"]
    return found


def test_the_cases_are_what_was_recorded() -> None:
    if not SHARED.exists():
        pytest.skip("the recording itself lies beside the project where it was made; its cases are above")
    assert recorded(SHARED.read_text()) == RECORDED

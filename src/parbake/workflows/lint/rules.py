"""What lint finds, and the rules by which it looks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Literal
from urllib.parse import quote

from parbake.core.yamltext import Where
from parbake.images.workloads import Thing

type Level = Literal["error", "warning", "note"]


@dataclass(frozen=True, slots=True)
class Rule:
    """A cause for which pods do not use a bake. ``short`` says it in a sentence, ``help`` what to do."""

    id: str
    level: Level
    short: str
    help: str


RULES = (
    Rule("bake-failed", "error", "The bake did not pass its verification, so no rollout hands it to nodes.",
         "parbake show says what failed; correct it, and bake again."),
    Rule("bake-not-verified", "error", "The bake is not verified, so no rollout hands it to nodes.",
         "Run parbake verify, or bake without --no-verify."),
    Rule("pull-policy-always", "error", "The pull policy asks the registry at each start.",
         "Write imagePullPolicy: IfNotPresent. Without a policy, :latest means Always."),
    Rule("latest-tag", "warning", "The tag moves, so the bake will soon hold another image.",
         "Name a version, in the workload and in the Bakefile."),
    Rule("reference-differs", "error", "The bake has this image under another name.",
         "Write the same reference in the workload and in the Bakefile."),
    Rule("digest-differs", "error", "The bake has another digest than the workload asks for.",
         "Bake again, or change the workload's digest."),
    Rule("digest-name-missing", "error", "The workload asks by digest, but the bake knows the image only by its tag.",
         "Remove also_by_digest: false from the image in the Bakefile, and bake again."),
    Rule("shared-digest", "warning", "The same image is pulled under another name too, which takes it from other pods.",
         "Use one name for it in all workloads; or allow the baked one by name (parbake export kubelet-config)."),
    Rule("short-name", "warning", "The kubelet's allow list does not cover short names before Kubernetes 1.36.",
         "Write the image's full name in the workload, such as docker.io/library/nginx:1.27."),
    Rule("volume-not-proven", "note", "Pods have the image as a volume, and the bake was proven by starting it.",
         "Write startup: {up: mounted} for the image in the Bakefile, and name an image of your nodes in verify.base."),
    Rule("platform-differs", "error", "The pods run on nodes of another architecture than the bake is for.",
         "Bake for that platform as well."),
    Rule("not-baked", "note", "The bake does not have this image: it is pulled.",
         "Add it to the Bakefile if its pulls are slow."),
    Rule("cannot-use-a-bake", "note", "These nodes take no AMI, volume or user data of yours.",
         "Run the pods on nodes of Karpenter, a node group or an Auto Scaling group to use a bake."),
    Rule("snapshotter-differs", "error", "The node's snapshotter is not overlayfs: pods of baked images fail there.",
         "Turn off FastImagePull, or SOCI, on nodes with a bake."),
    Rule("instance-store", "error", "Local disks take the place of the baked store.",
         "Write localStorage: {disabledMounts: [Containerd]} in the NodeConfig (a target's keep_store: true does)."),
    Rule("volume-too-small", "error", "The volume is smaller than the snapshot, so no node starts.",
         "Write a volumeSize of at least the snapshot's size."),
    Rule("device-differs", "error", "The data volume is mapped under a device where the node does not look for it.",
         "Bottlerocket's data volume is /dev/xvdb."),
    Rule("volume-not-mounted", "error", "Nothing mounts the data volume, so the node pulls as if there were none.",
         "Roll the bake out (parbake rollout): its user data mounts the volume. Or mount it by its label, parbake."),
    Rule("volume-not-grown", "warning", "The file system keeps the snapshot's size, whatever the volume's.",
         "Roll the bake out (parbake rollout), or run resize2fs or xfs_growfs where the volume is mounted."),
    Rule("imagefs-unguarded", "note", "The kubelet evicts no pod before the volume of the runtime's store is full.",
         "Write evictionHard with imagefs.available (and the others: naming one sets the rest to zero)."),
    Rule("image-gc", "warning", "The kubelet's image garbage collection starts close to what the bake fills.",
         "Give the volume more room, or raise imageGCHighThresholdPercent."),
    Rule("credentials-verified", "error", "The kubelet asks the registry before a pod may use a baked image.",
         "Allow the baked images by name: parbake export kubelet-config prints how."),
    Rule("allow-list-refused", "error", "The kubelet does not start with an entry of its allow list.",
         "Write full names, without tag and digest, or prefixes that end with /*: parbake export kubelet-config."),
    Rule("baked-images-are-open", "note", "Any pod on the node may run a baked private image.",
         "If that matters, allow only the others (NeverVerifyAllowlistedImages): parbake export kubelet-config."),
    Rule("pause-image", "error", "The node's pause image is not in the data volume: no pod starts there.",
         "Write sandbox: REFERENCE in the Bakefile, as the node's containerd is configured."),
    Rule("ami-family", "error", "The node class is for another family than the AMI that was baked.",
         "Write the amiFamily of the base in the node class."),
    Rule("ami-differs", "warning", "The node class does not choose the AMI that was baked.",
         "Roll the bake out (parbake rollout), or write its id in amiSelectorTerms."),
    Rule("unreadable", "note", "This file is not a manifest that can be read.",
         "Render templates first: helm template CHART | parbake lint -"),
)  # fmt: skip
BY_ID = {rule.id: rule for rule in RULES}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was found: by which rule, where (line 0: unknown), on what, and why."""

    rule: Rule
    source: str
    line: int
    what: str
    message: str

    @property
    def level(self) -> Level:
        """How bad it is."""
        return self.rule.level

    @property
    def place(self) -> str:
        """Source and line, as compilers write them."""
        return f"{self.source}:{self.line}" if self.line else self.source

    def to_json(self) -> dict[str, object]:
        """Return the finding as JSON."""
        return {
            "rule": self.rule.id, "level": self.level, "source": self.source, "line": self.line, "object": self.what,
            "message": self.message, "hint": self.rule.help,
        }  # fmt: skip


def finding(rule: str, thing: Thing, where: Where, message: str, container: str = "") -> Finding:
    """Make a finding on a place in an object."""
    what = str(thing.use(container)).removesuffix(", ") if container else str(thing.use("")).removesuffix(", ")
    return Finding(BY_ID[rule], thing.source, thing.line(where), what, message)


SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


def sarif(findings: Sequence[Finding], *, version: str, folder: Path) -> dict[str, Any]:
    """Return the findings as a SARIF log with one run, which code hosts show beside the lines. Pure.

    Paths below ``folder`` are written relative to it, as code hosts want them. Source: OASIS, Static Analysis Results
    Interchange Format (SARIF) 2.1.0.
    """
    places = {rule.id: place for place, rule in enumerate(RULES)}
    rules = [
        {
            "id": rule.id,
            "shortDescription": {"text": rule.short},
            "help": {"text": rule.help},
            "defaultConfiguration": {"level": rule.level},
        }
        for rule in RULES
    ]
    results = [
        {
            "ruleId": each.rule.id,
            "ruleIndex": places[each.rule.id],
            "level": each.level,
            "message": {"text": f"{each.what}: {each.message}" if each.what else each.message},
            "locations": [_location(each, folder)],
        }
        for each in findings
    ]
    driver = {"name": "parbake", "semanticVersion": version, "rules": rules}
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [{"tool": {"driver": driver}, "results": results}]}


def _location(each: Finding, folder: Path) -> dict[str, Any]:
    location: dict[str, Any] = {"logicalLocations": [{"fullyQualifiedName": each.what or each.source}]}
    if Path(each.source).exists():
        absolute = Path(os.path.abspath(each.source))  # noqa: PTH100 - resolve() would follow links away
        inside = absolute.is_relative_to(folder)
        uri = quote(PurePath(absolute.relative_to(folder)).as_posix()) if inside else absolute.as_uri()
        physical: dict[str, Any] = {"artifactLocation": {"uri": uri}}
        if each.line:
            physical["region"] = {"startLine": each.line}
        location["physicalLocation"] = physical
    return location

"""A double of Karpenter, for tests only: it resolves node classes, and replaces drifted nodes one at a time.

Rules (karpenter.sh, "Disruption"): a changed image or hash of the disks drifts a node; budgets of its NodePool bound
how many are replaced at once; a drifted node is replaced by a new claim before it goes; PDBs hold it back. What it
cannot validate (user data that Go does not read, disks that EC2 refuses) is Ready: Unknown. Which image an instance
type starts is in ``resolving``.

Not modelled: how instance types are chosen, consolidation, expiry, schedules of budgets, SSM's cache, AWS.
"""

from __future__ import annotations

import hashlib
import json
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count

from standins.kubernetes.resolving import INSTANCES, TYPE, Ami, image_for, labels_of, not_validated, resolved
from standins.kubernetes.server import Server
from standins.kubernetes.store import Object, Refused

__all__ = ["HASH", "Ami", "Karpenter"]

HASH = "karpenter.k8s.aws/ec2nodeclass-hash"


@dataclass
class Karpenter:
    """Steps by hand (``step``) or in a thread (``with``). ``blocked``: claims that pods' PDBs hold, with the PDB."""

    server: Server
    amis: list[Ami]
    parameters: dict[str, str] = field(default_factory=dict)
    blocked: dict[str, str] = field(default_factory=dict)
    unlaunchable: str = ""
    """Why no instance can be launched; empty when it can."""
    pending: set[str] = field(default_factory=set)
    """NodePools that a pod waits for, and that start a node as soon as they can."""
    invalid: bool = False
    """Whether a change from now on cannot be validated, as of user data that cannot be read."""
    version: str = "v1"

    def __post_init__(self) -> None:
        self._numbers = count(1)
        self._stop = threading.Event()
        self.replaced: list[str] = []

    def __enter__(self) -> Karpenter:
        def loop() -> None:
            while not self._stop.wait(0.05):
                self.step()

        self._thread = threading.Thread(target=loop, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def start_nodes(self, pool: str, node_class: str, amount: int, instance_type: str = "m5.large") -> None:
        """Start nodes as the class says now."""
        self._resolve(self.server.get("ec2nodeclasses", node_class, self.version))
        for _ in range(amount):
            self._launch(pool, self.server.get("ec2nodeclasses", node_class, self.version), instance_type)

    def step(self) -> None:
        """Do what Karpenter does in one round."""
        classes = {}
        for each in self.server.list("ec2nodeclasses", self.version):
            self._resolve(each)
            name = each["metadata"]["name"]
            classes[name] = self.server.get("ec2nodeclasses", name, self.version)
        pools = {each["metadata"]["name"]: each for each in self.server.list("nodepools", self.version)}
        for each in pools.values():
            self._pool(each, classes)
        going: dict[str, int] = {}
        self._give_up()
        launched = [each for each in self.server.list("nodeclaims") if each["status"].get("imageID")]
        for pool in self.pending - {each["metadata"]["labels"]["karpenter.sh/nodepool"] for each in launched}:
            wanted = classes[pools[pool]["spec"]["template"]["spec"]["nodeClassRef"]["name"]]
            if _is_ready(wanted):
                self._launch(pool, wanted, next(iter(INSTANCES)))
        for claim in launched:
            node_class = classes.get(claim["spec"]["nodeClassRef"]["name"])
            if node_class and self._drift(claim, node_class):
                pool = claim["metadata"]["labels"]["karpenter.sh/nodepool"]
                if going.get(pool, 0) < self._allowed(pools[pool]):
                    going[pool] = going.get(pool, 0) + self._replace(claim, node_class, pool)
                elif not self._allowed(pools[pool]):
                    text = "No allowed disruptions for disruption reason Drifted due to blocking budget"
                    self._event("NodePool", pool, text)

    def _resolve(self, node_class: Object) -> None:
        name, amis = node_class["metadata"]["name"], resolved(node_class["spec"], self.amis, self.parameters)
        drifting = {k: v for k, v in node_class["spec"].items() if k not in {"amiSelectorTerms", "subnetSelectorTerms"}}
        digest = hashlib.sha256(json.dumps(drifting, sort_keys=True).encode()).hexdigest()[:16]
        ready = _condition("Ready", "True", "Ready", "")
        if not amis:
            ready = _condition("Ready", "False", "AMINotFound", "AMISelector did not match any AMIs")
        conditions = self._conditions(node_class, ready)
        if node_class["metadata"].get("annotations", {}).get(HASH) != digest:
            hashed = {"metadata": {"annotations": {HASH: digest}}}
            self.server.change("ec2nodeclasses", name, hashed, self.version, manager="karpenter")
        self._say("ec2nodeclasses", node_class, {"amis": amis, "conditions": conditions}, self.version)

    def _conditions(self, node_class: Object, ready: Object) -> list[Object]:
        """Return what Karpenter says of a class; where it cannot validate, of the one before (Karpenter 1.13)."""
        generation = node_class["metadata"]["generation"]
        before = {each["type"]: each for each in node_class.get("status", {}).get("conditions", [])}
        refused = not_validated(node_class["spec"])
        validated = generation
        if self.invalid or refused:
            validated = before.get("ValidationSucceeded", {}).get("observedGeneration", 0)
        valid = {**_condition("ValidationSucceeded", "True", "", ""), "observedGeneration": validated}
        if validated < generation:
            ready = _condition("Ready", "Unknown", "ReconcilingDependents", refused or "ValidationSucceeded=True")
        return [valid, {**ready, "observedGeneration": generation}]

    def _pool(self, pool: Object, classes: dict[str, Object]) -> None:
        """Say of a NodePool what its node class says."""
        node_class = classes.get(pool["spec"]["template"]["spec"]["nodeClassRef"]["name"], {})
        ready = _condition("Ready", "True", "Ready", "")
        if not _is_ready(node_class):
            ready = _condition("Ready", "False", "NodeClassReady", "NodeClass not ready")
        self._say("nodepools", pool, {**pool.get("status", {}), "conditions": [ready]}, self.version)

    def _say(self, plural: str, about: Object, status: Object, version: str = "v1") -> None:
        """Write a status, unless it is what the object has, as controllers do."""
        if about.get("status") != status:
            self.server.set_status(plural, about["metadata"]["name"], status, version)

    def _drift(self, claim: Object, node_class: Object) -> bool:
        now = image_for(_type_of(claim), node_class.get("status", {}).get("amis", []))
        reason = ""
        if now and claim["status"]["imageID"] != now:
            reason = "AMIDrift"
        elif claim["metadata"]["annotations"][HASH] != node_class["metadata"]["annotations"][HASH]:
            reason = "NodeClassDrift"
        others = [each for each in claim["status"]["conditions"] if each["type"] != "Drifted"]
        drifted = [_condition("Drifted", "True", reason, "")] if reason else []
        self._say("nodeclaims", claim, {**claim["status"], "conditions": [*others, *drifted]})
        return bool(reason)

    def _allowed(self, pool: Object) -> int:
        budgets = pool["spec"]["disruption"]["budgets"]
        asked = [b["nodes"] for b in budgets if not b.get("reasons") or "Drifted" in b["reasons"]]
        return 0 if {"0", "0%"} & set(asked) else 1

    def _replace(self, claim: Object, node_class: Object, pool: str) -> bool:
        name = claim["metadata"]["name"]
        if name in self.blocked:
            self._event(
                "NodeClaim", name, f'Cannot disrupt NodeClaim: pdb "{self.blocked[name]}" prevents pod evictions'
            )
            return False
        if not _is_ready(node_class) or not self._launch(pool, node_class, _type_of(claim)):
            return False
        self.replaced.append(name)
        self.server.delete("nodeclaims", name)
        return True

    def _event(
        self, kind: str, name: str, message: str, reason: str = "DisruptionBlocked", how: str = "Normal"
    ) -> None:
        """Tell it once; events about what has no namespace are in ``default``."""
        with suppress(Refused):
            self.server.create(
                "events",
                f"{kind.lower()}.{name}.{reason.lower()}",
                metadata={"namespace": "default"},
                reason=reason,
                type=how,
                source={"component": "karpenter"},
                message=message,
                involvedObject={"kind": kind, "name": name},
                lastTimestamp=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            )

    def _give_up(self) -> None:
        """Tell of claims for which there is no instance, and delete them (``nodeclaim/lifecycle/launch.go``)."""
        for each in self.server.list("nodeclaims"):
            name = each["metadata"]["name"]
            if not each["status"].get("imageID"):
                told = f"NodeClaim {name} event: {self.unlaunchable}"
                self._event("NodeClaim", name, told, "InsufficientCapacityError", "Warning")
                self.server.delete("nodeclaims", name)

    def _launch(self, pool: str, node_class: Object, instance_type: str) -> bool:
        """Start a node; a claim for which there is no instance lasts to the next round."""
        image = image_for(instance_type, node_class["status"]["amis"])
        if not image:
            return False
        number = next(self._numbers)
        name = f"{pool}-{number:03}"
        launched = _condition("Launched", "True", "Launched", "")
        if self.unlaunchable:
            launched = _condition("Launched", "Unknown", "AwaitingReconciliation", "object is awaiting reconciliation")
        status: Object = {"conditions": [launched]}
        if not self.unlaunchable:
            status |= {"imageID": image, "nodeName": f"ip-10-0-0-{number}"}
        reference = {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": node_class["metadata"]["name"]}
        self.server.create(
            "nodeclaims",
            name,
            metadata={
                "labels": {"karpenter.sh/nodepool": pool, **labels_of(instance_type)},
                "annotations": {HASH: node_class["metadata"]["annotations"][HASH]},
            },
            spec={
                "nodeClassRef": reference,
                "requirements": [{"key": TYPE, "operator": "In", "values": [instance_type]}],
            },
            status=status,
        )
        return not self.unlaunchable


def _is_ready(node_class: Object) -> bool:
    conditions = node_class.get("status", {}).get("conditions", [])
    return any((each["type"], each["status"]) == ("Ready", "True") for each in conditions)


def _type_of(claim: Object) -> str:
    return str(claim["metadata"]["labels"][TYPE])


def _condition(kind: str, status: str, reason: str, message: str) -> Object:
    return {
        "type": kind, "status": status, "reason": reason or kind, "message": message,
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }  # fmt: skip

"""A cluster whose pods have run: what documents and reports show of one, played by kubelets."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from parbake.records import Record
from standins.clusters import machine_image
from standins.kubernetes.karpenter import HASH
from standins.kubernetes.kubelet import Box, Kubelet, objects, written
from standins.kubernetes.server import Server, store_of
from standins.plans import image

NEW = "karpenter.k8s.aws_ec2nodeclasses.v1"
APP, WEB = "registry.example.com/team/app:1.4", "registry.example.com/team/web:7"
MADE = machine_image("shop", "ami-0123456789abcdef0", images=(image(APP), image(WEB)))
_WHERE: dict[str, Any] = {
    "role": "nodes",
    "subnetSelectorTerms": [{"id": "subnet-1"}],
    "securityGroupSelectorTerms": [{"id": "sg-1"}],
}


def empty_cluster() -> Server:
    """Return a cluster with Karpenter's kinds that nobody can reach: its objects are looked at in this process."""
    return Server(store_of(NEW, "karpenter.sh_nodeclaims.v1"), "", Path())


def node_class(server: Server, name: str, **spec: Any) -> None:
    """Create a node class as Karpenter has seen it; nodes that name it were launched from it as it is."""
    terms = {"amiFamily": "AL2023", "amiSelectorTerms": [{"id": "ami-1"}]}
    server.create("ec2nodeclasses", name, metadata={"annotations": {HASH: name}}, spec={**_WHERE, **terms, **spec})


def node(server: Server, name: str, ami: str, *, of: str = "gpu", **kubelet: Any) -> Kubelet:
    """Return a node that Karpenter has launched."""
    at = kubelet.get("at") or datetime.now(UTC) - timedelta(minutes=20)
    server.store.clock = lambda: at - timedelta(seconds=60)
    reference = {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": of}
    steps = {"Launched": 58, "Registered": 22, "Initialized": 6}
    conditions = [
        {"type": kind, "status": "True", "reason": kind, "message": "",
         "lastTransitionTime": written(at - timedelta(seconds=before))}
        for kind, before in steps.items()
    ]  # fmt: skip
    server.create(
        "nodeclaims",
        f"claim-{name}",
        metadata={"annotations": {HASH: of}},
        spec={"nodeClassRef": reference, "requirements": []},
        status={"imageID": ami, "nodeName": name, "conditions": conditions},
    )
    return Kubelet(server, name, **kubelet)


def shop(record: Record = MADE, *, nodes: int = 3) -> Server:
    """Return a cluster with nodes that run the record's artefact, one without a bake, and three pods that pulled."""
    server = empty_cluster()
    node_class(server, "gpu")
    (ami,) = (there.image for there in record.published.values())
    baked = {str(each.reference): each.target.digest for each in record.plan.images}
    app, web = list(baked)[:2]
    plain = node(server, "ip-10-0-0-9", "ami-9", pulls=64.0, at=datetime.now(UTC) - timedelta(minutes=50))
    plain.run("app-6c4f-old", app)
    for number in range(nodes):
        at = node(server, f"ip-10-0-0-{number + 10}", ami, store=dict(baked), pulls=41.0)
        for place in range(2 + number % 3):
            at.run(f"app-7d9b-{number}{place}", app)
        at.run(f"web-5f6c-{number}", web)
        if number == 1:
            at.run("batch-27", Box(app, "Always"))
        if number == 2:
            at.run("web-canary", web.rpartition(":")[0] + ":8")
            at.run("proxy-x", "public.example.com/mesh/proxy:3")
            at.collect(web)
            at.run("web-late", web)
    return server


def as_files(server: Server, folder: Path) -> None:
    """Write what ``kubectl get KIND`` prints, a file a kind."""
    folder.mkdir(parents=True, exist_ok=True)
    names = {"nodeclaims": "nodeclaims.v1.karpenter.sh", "nodeclasses": "ec2nodeclasses.v1.karpenter.k8s.aws"}
    for plural, items in objects(server).items():
        (folder / f"{names.get(plural, plural)}.json").write_text(json.dumps({"kind": "List", "items": items}))
    (folder / "--raw.json").write_text(json.dumps({"versions": [{"version": "v1"}]}))

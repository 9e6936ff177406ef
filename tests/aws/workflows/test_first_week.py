"""Three services of one's own, from their manifests to a rollout: what fails is named, mended, and proven anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from parbake.core import run
from parbake.machine import base
from standins import booted_here
from standins.images import image, layer, push
from standins.kubernetes.karpenter import Karpenter
from standins.runs import parbake
from tests.aws.workflows.test_eks import host, karpenter, nodes_of, private_places, server

__all__ = ["host", "karpenter", "private_places", "server"]
pytestmark = pytest.mark.root

NEEDS = '[ -n "${name}" ] || {{ echo "{name} is not set" >&2; exit 1; }}\nexec /bin/busybox httpd -f -p 8080 -h /www\n'
PROGRAMS = {
    "ledger:1": NEEDS.format(name="LEDGER_DSN"),
    "web:1": NEEDS.format(name="API_URL"),
    "scores:1": "echo \"ModuleNotFoundError: No module named 'sklearn'\" >&2; exit 1\n",
    "scores:2": "exec /bin/busybox sleep 600\n",
}
LEDGER: dict[str, Any] = {
    "env": [{"name": "LEDGER_DSN", "valueFrom": {"secretKeyRef": {"name": "ledger", "key": "dsn"}}}],
    "securityContext": {"runAsUser": 10001, "readOnlyRootFilesystem": True},
    "ports": [{"name": "web", "containerPort": 8080}],
    "readinessProbe": {"httpGet": {"port": "web", "path": "/ready"}},
}
WEB: dict[str, Any] = {
    "env": [{"name": "API_URL", "valueFrom": {"configMapKeyRef": {"name": "web", "key": "api"}}}],
    "readinessProbe": {"tcpSocket": {"port": 8080}},
}


def manifests(host: str, scores: str) -> str:
    """Return the three services as Deployments."""
    items = []
    for name, tag, more in (("ledger", "1", LEDGER), ("web", "1", WEB), ("scores", scores, {})):
        spec = {"containers": [{"name": name, "image": f"{host}/shop/{name}:{tag}", **more}]}
        deployment = {"metadata": {"name": name, "namespace": "shop"}, "spec": {"template": {"spec": spec}}}
        items.append({"apiVersion": "apps/v1", "kind": "Deployment", **deployment})
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": items})


def test_what_three_services_lack_is_named_mended_and_proven(
    private_places: Path, karpenter: Karpenter, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    booted_here.install(monkeypatch, "parbake.verify.verify")
    monkeypatch.setattr(base, "ensure", lambda *_, **__: private_places / "none.raw")
    busybox = layer({"bin/busybox": Path(run.need("busybox")).read_bytes(), "www/ready": b"yes\n"})
    for name, script in PROGRAMS.items():
        repository, _, tag = name.partition(":")
        entrypoint = {"Entrypoint": ["/bin/busybox", "sh", "/app.sh"]}
        built = image(busybox, layer({"app.sh": script.encode()}), config=entrypoint)
        push(f"http://{host}", f"shop/{repository}", built, tag)
    nodes_of(karpenter, "gpu")
    monkeypatch.chdir(private_places)
    services, bakefile = Path("services.json"), Path("shop/parbake.yaml")
    services.write_text(manifests(host, "1"))

    parbake("init", "shop", "--for", "eks", "--from-manifests", services, "--no-sizes", "--json").good()
    planned = parbake("plan", "-f", bakefile, "--json").good()
    assert len(planned["images"]) == 3
    bake = ("bake", "-f", bakefile, "--no-rehearse", "--json")
    lacks = ("LEDGER_DSN is not set", "API_URL is not set", "No module named 'sklearn'")
    says = (f"{host}/shop/ledger:1: in the rehearsal, it ended with code 1", *lacks)
    known = parbake("bake", "-f", bakefile, "--rehearse-in", "host", "--json")
    known.refused(3, "VerificationFailed", *says, hint="`parbake bake --no-rehearse` boots a machine for it")
    [listed] = parbake("list", "-f", bakefile, "--json").good()
    assert (listed["verified"], listed["verdict"]["accelerator"]) == (False, "rehearsal"), "nothing was booted"
    assert parbake("lint", services, "-f", bakefile).code == 3

    text = bakefile.read_text().replace("/scores:1", "/scores:2").replace("#env:", "env:")
    text = text.replace("#LEDGER_DSN: ''", "LEDGER_DSN: none").replace("#API_URL: ''", "API_URL: http://none")
    text = text.replace("      up:", "      watch: 1s\n      up:")
    bakefile.write_text(text.replace("#startup:", "startup:"))
    services.write_text(manifests(host, "2"))
    record = parbake(*bake).good()
    assert record["verified"]
    shown = {each["reference"].rpartition("/")[2]: each["shown"] for each in record["verdict"]["images"]}
    assert shown.items() >= {"ledger:1": "answered", "web:1": "answered", "scores:2": "running"}.items()
    assert parbake("lint", services, "-f", bakefile).code == 0
    shown = parbake("rollout", "-f", bakefile, "--dry-run", "--json").good()
    [target] = shown["targets"]
    assert record["published"]["eu-west-1"]["snapshots"][0]["id"] in target["diff"]
    assert "blockDeviceMappings" not in karpenter.server.get("ec2nodeclasses", "gpu")["spec"]

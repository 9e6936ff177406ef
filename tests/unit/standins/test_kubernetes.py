"""The API server that stands in for a cluster, driven by the real kubectl."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from parbake.core import run
from parbake.core.errors import ParbakeError
from parbake.core.run import Result
from parbake.rollouts.cluster import Cluster
from standins.clusters import NEEDS_KUBECTL
from standins.kubernetes.kubectl_in_process import replace_kubectl
from standins.kubernetes.server import Server, serving
from tests.unit.rollouts.test_node_classes import ALIAS, BOTH, COMMON, NEW

pytestmark = NEEDS_KUBECTL


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path, NEW, "karpenter.sh_nodepools.v1") as server:
        yield server


def kubectl(server: Server, *arguments: str, document: object = None) -> Result:
    env = {"KUBECONFIG": str(server.kubeconfig), "HOME": str(server.kubeconfig.parent)}
    stdin = json.dumps(document).encode() if document else None
    return run.run(["kubectl", *arguments], stdin=stdin, env=env, check=False, timeout=120)


def named(name: str, **spec: Any) -> dict[str, Any]:
    return {**ALIAS, "metadata": {"name": name}, "spec": {**ALIAS["spec"], **spec}}


def test_create_get_list_delete(server: Server) -> None:
    assert kubectl(server, "create", "-f", "-", document=ALIAS).code == 0
    again = kubectl(server, "create", "-f", "-", document=ALIAS)
    assert "AlreadyExists" in again.stderr
    found = json.loads(kubectl(server, "get", "ec2nodeclass", "gpu", "-o", "json").stdout)
    assert found["spec"]["metadataOptions"]["httpTokens"] == "required", "defaults are filled in"
    assert found["metadata"]["generation"] == 1
    assert kubectl(server, "get", "ec2nodeclasses", "-o", "name").text == "ec2nodeclass.karpenter.k8s.aws/gpu"
    assert kubectl(server, "delete", "ec2nodeclass", "gpu", "--wait=false").code == 0
    assert "NotFound" in kubectl(server, "get", "ec2nodeclass", "gpu").stderr
    assert "doesn't have a resource type" in kubectl(server, "get", "nonsense").stderr


def test_the_rules_of_the_crds_hold(server: Server) -> None:
    both = named("bad", amiSelectorTerms=[{"id": "ami-1", "tags": {"a": "b"}}], amiFamily="AL2023")
    refused = kubectl(server, "create", "-f", "-", document=both).stderr
    assert "'id' is mutually exclusive" in refused
    assert (
        "must specify amiFamily"
        in kubectl(server, "create", "-f", "-", document=named("bad", amiSelectorTerms=[{"id": "ami-1"}])).stderr
    )
    misspelt = kubectl(server, "create", "-f", "-", document=named("bad", amiFamilie="AL2")).stderr
    assert 'unknown field "spec.amiFamilie"' in misspelt
    rate = [{"deviceName": "/dev/xvdb", "ebs": {"volumeSize": "1Gi", "volumeInitializationRate": 200}}]
    assert "is invalid" in kubectl(server, "create", "-f", "-", document=named("bad", blockDeviceMappings=rate)).stderr
    assert server.list("ec2nodeclasses") == []


def test_patches_and_conflicts(server: Server) -> None:
    made = server.create("ec2nodeclasses", "gpu", spec=ALIAS["spec"])
    version = made["metadata"]["resourceVersion"]
    merge = json.dumps({"metadata": {"resourceVersion": version}, "spec": {"role": "other"}})
    assert kubectl(server, "patch", "ec2nodeclass", "gpu", "--type=merge", "-p", merge).code == 0
    assert "(Conflict)" in kubectl(server, "patch", "ec2nodeclass", "gpu", "--type=merge", "-p", merge).stderr
    test = json.dumps([{"op": "test", "path": "/spec/role", "value": "x"}, {"op": "remove", "path": "/spec/tags"}])
    assert kubectl(server, "patch", "ec2nodeclass", "gpu", "--type=json", "-p", test).code == 1
    found = server.get("ec2nodeclasses", "gpu")
    assert found["spec"]["role"] == "other"
    assert found["metadata"]["generation"] == 2
    role = json.dumps({"spec": {"role": None}})
    refused = kubectl(server, "patch", "ec2nodeclass", "gpu", "--type=merge", "-p", role).stderr
    assert "must specify exactly one of ['role', 'instanceProfile']" in refused


def test_server_side_apply_knows_owners(server: Server) -> None:
    def apply(manager: str, document: object, *options: str) -> Result:
        return kubectl(
            server, "apply", "--server-side", f"--field-manager={manager}", *options, "-f", "-", document=document
        )

    assert apply("argocd", ALIAS).code == 0
    other = named("gpu", amiSelectorTerms=[{"alias": "al2023@v20260101"}])
    refused = apply("somebody", other)
    assert 'conflict with "argocd": .spec.amiSelectorTerms' in refused.stderr
    assert apply("somebody", other, "--force-conflicts").code == 0
    owners = {
        entry["manager"]: set(entry["fieldsV1"]["f:spec"])
        for entry in server.get("ec2nodeclasses", "gpu")["metadata"]["managedFields"]
    }
    assert "f:amiSelectorTerms" in owners["somebody"] - owners["argocd"]
    assert "f:role" in owners["argocd"] & owners["somebody"]
    fewer = {**ALIAS, "spec": {key: value for key, value in ALIAS["spec"].items() if key != "amiSelectorTerms"}}
    assert apply("argocd", fewer).code == 0
    assert server.get("ec2nodeclasses", "gpu")["spec"]["amiSelectorTerms"] == [{"alias": "al2023@v20260101"}]


def test_status_is_a_resource_of_its_own(server: Server) -> None:
    server.create("ec2nodeclasses", "gpu", spec=ALIAS["spec"], status={"amis": []})
    status = json.dumps({"status": {"instanceProfile": "p"}, "spec": {"role": "ignored"}})
    arguments = ("patch", "ec2nodeclass", "gpu", "--type=merge", "-p", status)
    assert kubectl(server, *arguments, "--subresource=status").code == 0
    found = server.get("ec2nodeclasses", "gpu")
    assert found["status"]["instanceProfile"] == "p"
    assert (found["spec"]["role"], found["metadata"]["generation"]) == (COMMON["role"], 1)


def test_watch_sees_what_changes(server: Server) -> None:
    server.create("ec2nodeclasses", "gpu", spec=ALIAS["spec"])
    watch = ("get", "ec2nodeclasses", "--watch", "-o", "jsonpath={.metadata.name}{'\\n'}", "--request-timeout=2s")
    server.store.before_write.append(lambda: None)
    import threading

    timer = threading.Timer(0.7, lambda: server.create("ec2nodeclasses", "late", spec=ALIAS["spec"]))
    timer.start()
    assert kubectl(server, *watch).text.splitlines() == ["gpu", "late"]
    timer.join()


def test_two_versions_are_served(tmp_path: Path) -> None:
    with serving(tmp_path, BOTH) as server:
        server.create("ec2nodeclasses", "gpu", spec=ALIAS["spec"])
        old = json.loads(kubectl(server, "get", "ec2nodeclasses.v1beta1.karpenter.k8s.aws", "gpu", "-o", "json").stdout)
        assert old["apiVersion"] == "karpenter.k8s.aws/v1beta1"
        explained = kubectl(server, "explain", "ec2nodeclasses.spec.amiSelectorTerms.alias").text
        assert "FIELD: alias <string>" in explained


def test_who_may_not_is_told(server: Server) -> None:
    server.create("ec2nodeclasses", "gpu", spec=ALIAS["spec"])
    server.store.forbidden.add(("patch", "ec2nodeclasses"))
    refused = kubectl(server, "patch", "ec2nodeclass", "gpu", "--type=merge", "-p", "{}")
    assert 'cannot patch resource "ec2nodeclasses" in API group "karpenter.k8s.aws"' in refused.stderr


def test_what_takes_kubectls_part_in_tests_tells_the_same(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each answer, warning and error that ``Cluster`` makes of kubectl's words: asked by kubectl, and without it."""
    monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig))
    monkeypatch.setenv("HOME", str(server.kubeconfig.parent))
    classes, pools = "ec2nodeclasses.v1.karpenter.k8s.aws", "nodepools.v1.karpenter.sh"
    for name in ("gpu", "cpu"):
        server.create("ec2nodeclasses", name, spec=ALIAS["spec"])
    server.create("nodes", "mine", metadata={"labels": {"a": "b"}})
    found = server.get("ec2nodeclasses", "gpu")
    server.change("ec2nodeclasses", "gpu", {"metadata": {"labels": {"newer": "yes"}}})
    role: dict[str, Any] = {"spec": {"role": "other"}}
    no_one: dict[str, Any] = {"spec": {"role": None}}
    unknown: dict[str, Any] = {"spec": {"rolle": "other"}}

    def forbid(act: Any) -> Any:
        def asks(cluster: Cluster) -> Any:
            server.store.forbidden.add(("patch", "ec2nodeclasses"))
            try:
                return act(cluster)
            finally:
                server.store.forbidden.clear()

        return asks

    def deny(act: Any) -> Any:
        def asks(cluster: Cluster) -> Any:
            server.store.policies.append(lambda _old, _new: 'admission webhook "x.example" denied the request: no')
            try:
                return act(cluster)
            finally:
                server.store.policies.clear()

        return asks

    asked = {
        "versions": lambda cluster: cluster.served("karpenter.sh"),
        "no versions": lambda cluster: cluster.served("nothing.example"),
        "no context": lambda _: Cluster("nowhere").served("karpenter.sh"),
        "one": lambda cluster: cluster.get(classes, "gpu"),
        "not there": lambda cluster: cluster.get(classes, "nothing"),
        "all": lambda cluster: cluster.items(classes),
        "none": lambda cluster: cluster.items(pools),
        "two kinds": lambda cluster: cluster.items(f"{pools},{classes}"),
        "selected": lambda cluster: cluster.items("nodes", "--selector", "a=b"),
        "known": lambda cluster: cluster.knows(classes, "spec.blockDeviceMappings.ebs.snapshotID"),
        "not known": lambda cluster: cluster.knows(classes, "spec.blockDeviceMappings.ebs.nonsense"),
        "judged": lambda cluster: cluster.ask(classes, found, role, manager="parbake"),
        "warned": lambda cluster: cluster.ask(classes, found, unknown, manager="parbake"),
        "refused": lambda cluster: cluster.ask(classes, found, no_one, manager="parbake"),
        "moved": lambda cluster: cluster.patch(classes, found, role, manager="parbake"),
        "forbidden": forbid(lambda cluster: cluster.ask(classes, found, role, manager="parbake")),
        "denied": deny(lambda cluster: cluster.ask(classes, found, role, manager="parbake")),
    }

    def answers() -> dict[str, Any]:
        told = {}
        for name, asks in asked.items():
            try:
                told[name] = asks(Cluster())
            except ParbakeError as error:
                told[name] = (type(error), error.message, error.hint)
        return told

    by_kubectl = answers()
    replace_kubectl(monkeypatch)
    assert answers() == by_kubectl
    wrong = {
        name
        for name, answer in by_kubectl.items()
        if isinstance(answer, tuple) and answer[:1] and isinstance(answer[0], type)
    }
    assert wrong == {"no context", "not there", "refused", "moved", "forbidden", "denied"}
    assert (by_kubectl["known"], by_kubectl["not known"]) == (True, False)
    assert by_kubectl["warned"]

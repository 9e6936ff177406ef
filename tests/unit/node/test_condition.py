"""What the agent makes of a node's state, and what it may do in a cluster: as little as that takes."""

from __future__ import annotations

import ast
import copy
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import cel
import kubernetes_validate
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from parbake.core.nodefiles import node_file
from standins import pod_security
from standins.clusters import NEEDS_KUBECTL
from standins.kubernetes import schemas
from standins.kubernetes.server import load_crds, serving
from standins.kubernetes.store import Kind
from tests.unit.standins.test_kubernetes import kubectl

DEPLOY = Path(__file__).parents[3] / "deploy/chart/files"
NOW = 100.0
DONE = {"version": 1, "phase": "done", "uptime": 40.0, "since": "2026-12-03T09:00:00Z", "state": "done"}


def loaded() -> ModuleType:
    spec = importlib.util.spec_from_file_location("condition", node_file("condition.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PROGRAM = loaded()


@pytest.mark.parametrize(
    ("state", "expected", "hydrating", "hydrated", "reason"),
    [
        ({}, True, True, False, "NotStarted"),
        ({}, False, False, False, "NotStarted"),
        ({**DONE, "phase": "waiting", "uptime": 99.0}, False, True, False, "Waiting"),
        ({**DONE, "phase": "loading", "uptime": 99.0}, False, True, False, "Loading"),
        ({**DONE, "phase": "prefetching", "uptime": 99.0}, False, True, False, "Prefetching"),
        ({**DONE, "phase": "loading", "uptime": 60.0}, False, False, False, "Died"),
        ({**DONE, "phase": "loading", "uptime": 900.0}, False, False, False, "Died"),  # of another boot
        (DONE, False, False, True, "Done"),
        ({**DONE, "prefetch": {"state": "done"}}, False, False, True, "Done"),
        ({**DONE, "prefetch": {"state": "bounded"}}, False, False, True, "Bounded"),
        ({**DONE, "prefetch": {"state": "no-list"}}, False, False, True, "NoList"),
        ({**DONE, "prefetch": {"state": "tight"}}, False, False, False, "Tight"),
        ({**DONE, "prefetch": {"state": "no-mount"}}, False, False, False, "NoMount"),
        ({**DONE, "state": "short-disk", "prefetch": {"state": "done"}}, False, False, False, "ShortDisk"),
        ({**DONE, "phase": "failed", "state": "no-device"}, False, False, False, "NoDevice"),
        ({**DONE, "phase": "resting"}, False, False, True, "Done"),  # of a later version that keeps to this one
        ({**DONE, "version": 2}, True, False, False, "UnknownVersion"),
        ({**DONE, "state": "\n a line"}, False, False, False, "Failed"),
    ],
)
def test_pods_wait_while_something_is_to_come_and_for_nothing_else(
    state: dict[str, Any], expected: bool, hydrating: bool, hydrated: bool, reason: str
) -> None:
    found = PROGRAM.judged(state, NOW, expected)
    assert found[:3] == (hydrating, hydrated, reason)


FILES = {"bytes": 6 << 20, "wanted": 6 << 20, "resident": 5 << 20}


def test_conditions_say_what_has_been_loaded_and_since_when() -> None:
    state = {**DONE, "bytes": 300 << 20, "wanted": 300 << 20, "prefetch": FILES}
    since, now = "2026-12-03T09:00:00Z", "2026-12-03T09:05:00Z"
    hydrating, hydrated = PROGRAM.conditions(PROGRAM.judged(state, NOW, expected=False), since, now)
    assert hydrated == {
        "type": "parbake.dev/Hydrated",
        "status": "True",
        "reason": "Done",
        "message": "300 of 300 MiB of blocks loaded, 5 of 6 MiB of files in memory",
        "lastTransitionTime": since,
        "lastHeartbeatTime": now,
    }
    assert (hydrating["type"], hydrating["status"]) == ("parbake.dev/Hydrating", "False")


ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.sampled_from([1, 99.0, "done"]),
    lambda below: st.lists(below, max_size=2) | st.dictionaries(st.text(max_size=5), below, max_size=2),
    max_leaves=4,
)


@given(st.fixed_dictionaries({}, optional=dict.fromkeys((*DONE, "bytes", "wanted", "prefetch"), ODD)))
def test_any_state_ends_in_conditions_that_an_api_server_takes(state: dict[str, Any]) -> None:
    coming, _, reason, message = PROGRAM.judged(state, NOW, expected=False)
    assert reason.isalpha()
    assert 0 < len(message) <= 500
    if coming:
        assert NOW - PROGRAM.DIED <= state["uptime"] <= NOW + 1, "nobody waits for what tells nothing any more"


def test_whatever_lies_in_the_place_of_the_state_is_read_as_none(tmp_path: Path) -> None:
    file = tmp_path / "state"
    assert PROGRAM.read_state(file) == {}
    for text in ("", "[1]", "{", "[" * 100_000, '{"a": "' + "x" * (1 << 17) + '"}'):
        file.write_text(text)
        assert PROGRAM.read_state(file) == {}
    ast.parse(node_file("condition.py").read_text(), feature_version=(3, 9))


def objects(name: str) -> list[dict[str, Any]]:
    return list(YAML(typ="safe").load_all((DEPLOY / name).read_text()))


def test_the_api_knows_every_field_of_every_object() -> None:
    for each in objects("agent.yaml"):
        kubernetes_validate.validate(each, "1.37", strict=True)


@NEEDS_KUBECTL
def test_the_agent_is_applied_by_kubectl_once(tmp_path: Path) -> None:
    """As the page says it; what is applied again is unchanged."""
    with serving(tmp_path) as server:
        for each in objects("agent.yaml"):
            group, _, version = each["apiVersion"].rpartition("/")
            plural = each["kind"].lower().replace("policy", "policie") + "s"
            kind = Kind(group, version, plural, each["kind"], namespaced="namespace" in each["metadata"])
            server.store.kinds[group, version, plural] = kind
        first = kubectl(server, "apply", "-f", str(DEPLOY / "agent.yaml"))
        assert first.code == 0, first.stderr
        again = kubectl(server, "apply", "-f", str(DEPLOY / "agent.yaml"))
        assert again.text.count("unchanged") == len(objects("agent.yaml")), again.text


def of_kind(kind: str) -> dict[str, Any]:
    [found] = [each for each in objects("agent.yaml") if each["kind"] == kind]
    return found


def test_the_agents_pods_pass_restricted_pod_security_and_displace_nobody() -> None:
    pod = of_kind("DaemonSet")["spec"]["template"]["spec"]
    assert pod_security.refused(pod) == []
    assert "priorityClassName" not in pod
    [container] = pod["containers"]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert [each["readOnly"] for each in container["volumeMounts"]] == [True]
    [volume] = pod["volumes"]
    claim, lent = of_kind("PersistentVolumeClaim"), of_kind("PersistentVolume")["spec"]
    assert volume["persistentVolumeClaim"] == {"claimName": claim["metadata"]["name"], "readOnly": True}
    assert claim["spec"]["volumeName"] == of_kind("PersistentVolume")["metadata"]["name"]
    assert {key: lent["claimRef"][key] for key in ("name", "namespace")} == claim["metadata"]
    state = next(default for name, default, _ in PROGRAM.OPTIONS if name == "--state")
    assert lent["hostPath"]["path"] == container["volumeMounts"][0]["mountPath"] == str(Path(state).parent)


def test_it_may_patch_the_status_of_nodes_and_nothing_else() -> None:
    assert of_kind("ClusterRole")["rules"] == [{"apiGroups": [""], "resources": ["nodes/status"], "verbs": ["patch"]}]
    account = of_kind("ServiceAccount")["metadata"]
    [subject] = of_kind("ClusterRoleBinding")["subjects"]
    assert subject == {"kind": "ServiceAccount", **account}
    name = f"system:serviceaccount:{account['namespace']}:{account['name']}"
    assert name in of_kind("ValidatingAdmissionPolicy")["spec"]["matchConditions"][0]["expression"]


READY = {"type": "Ready", "status": "True"}
NODE = {
    "metadata": {"name": "node-1", "labels": {"pool": "gpu"}},
    "status": {
        "conditions": [READY],
        "capacity": {"cpu": "4"},
        "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}],
    },
}
OURS = {"type": "parbake.dev/Hydrated", "status": "True"}


def with_(**more: Any) -> dict[str, Any]:
    changed: dict[str, Any] = copy.deepcopy(NODE)
    for part, values in more.items():
        changed[part] |= values
    return changed


@pytest.mark.parametrize(
    ("own", "after", "refused"),
    [
        ("node-1", with_(status={"conditions": [READY, OURS]}), ""),
        ("node-2", with_(status={"conditions": [READY, OURS]}), "its own node"),
        ("", with_(status={"conditions": [READY, OURS]}), "its own node"),
        ("node-1", with_(status={"conditions": [{**READY, "status": "False"}, OURS]}), "conditions of parbake"),
        ("node-1", with_(status={"conditions": [OURS]}), "conditions of parbake"),
        ("node-1", with_(status={"capacity": {"cpu": "400"}}), "what a node has"),
        ("node-1", with_(status={"allocatable": {"cpu": "4"}}), "what a node has"),
        ("node-1", with_(status={"addresses": []}), "what a node has"),
        ("node-1", with_(metadata={"labels": {"pool": "safe"}}), "neither labels"),
        ("node-1", with_(metadata={"annotations": {"a": "b"}}), "neither labels"),
    ],
)
def test_the_policy_lets_a_pod_write_the_conditions_of_its_own_node_alone(
    own: str, after: dict[str, Any], refused: str
) -> None:
    extra = {"authentication.kubernetes.io/node-name": [own]} if own else {"other": [""]}
    context = cel.Context({"object": after, "oldObject": NODE, "request": {"userInfo": {"extra": extra}}})
    policy = of_kind("ValidatingAdmissionPolicy")["spec"]
    said = [
        each["message"]
        for each in policy["validations"]
        if cel.compile(each["expression"]).execute(context) is not True
    ]
    assert [refused in each for each in said] == [True] * bool(refused), said


def test_the_rule_waits_for_the_condition_that_the_agent_sets_and_the_node_pools_taint_is_the_rules() -> None:
    """The rule by what its CRD says (node-readiness-controller 0.5, api/v1alpha1), the pool by Karpenter's own CRD."""
    [rule] = objects("readiness.yaml")
    spec = rule["spec"]
    assert (rule["apiVersion"], rule["kind"]) == ("readiness.node.x-k8s.io/v1alpha1", "NodeReadinessRule")
    assert set(spec) == {"conditions", "taint", "enforcementMode", "nodeSelector"}
    found = {each["type"] for each in PROGRAM.conditions((True, False, "Loading", "."), "", "")}
    assert {each["type"] for each in spec["conditions"]} <= found
    assert spec["conditions"] == [{"type": "parbake.dev/Hydrating", "requiredStatus": "False"}]
    assert spec["taint"]["key"].startswith("readiness.k8s.io/"), (
        "the controller owns no others, and Karpenter knows these"
    )
    assert spec["enforcementMode"] == "bootstrap-only"
    [line] = [line for line in (DEPLOY / "readiness.yaml").read_text().splitlines() if "startupTaints" in line]
    part = YAML(typ="safe").load(line.lstrip("# "))
    assert part["spec"]["template"]["spec"]["startupTaints"] == [spec["taint"]]
    label = spec["nodeSelector"]["matchLabels"]
    node_class = {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": "gpu"}
    template = {"metadata": {"labels": label}, "spec": {**part["spec"]["template"]["spec"], "nodeClassRef": node_class}}
    template["spec"]["requirements"] = [{"key": "kubernetes.io/arch", "operator": "In", "values": ["amd64"]}]
    [crd] = load_crds("karpenter.sh_nodepools.v1")
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    pool = {
        "apiVersion": "karpenter.sh/v1",
        "kind": "NodePool",
        "metadata": {"name": "gpu"},
        "spec": {"template": template},
    }
    assert schemas.prune(schema, copy.deepcopy(pool)) == []
    assert schemas.problems(schema, pool, None) == []

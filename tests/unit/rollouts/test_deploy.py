"""What is ready-made in `deploy/`: real kubectl and the API server take the manifests, and the commands are real."""

from __future__ import annotations

import ipaddress
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from parbake import cli
from standins.clusters import NEEDS_KUBECTL
from standins.kubernetes.server import serving
from standins.kubernetes.store import Kind
from tests.unit.standins.test_kubernetes import kubectl

DEPLOY = Path(__file__).parents[3] / "deploy"
CRONJOB, WORKFLOW = DEPLOY / "cronjob.yaml", DEPLOY / "github-actions.yaml"
RBAC = "rbac.authorization.k8s.io"
KINDS = (
    Kind("", "v1", "serviceaccounts", "ServiceAccount", namespaced=True),
    Kind("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim", namespaced=True),
    Kind("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy", namespaced=True),
    Kind("batch", "v1", "cronjobs", "CronJob", namespaced=True),
    Kind(RBAC, "v1", "clusterroles", "ClusterRole"),
    Kind(RBAC, "v1", "clusterrolebindings", "ClusterRoleBinding"),
)


def manifests() -> list[dict[str, Any]]:
    return list(YAML(typ="safe").load_all(CRONJOB.read_text()))


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, f"{path}.{key}")
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from leaves(item, f"{path}[{number}]")
    else:
        yield path, value


def taken(*arguments: str) -> None:
    """Fail unless parbake reads these arguments."""
    assert cli.run([*arguments, "--help"]) == 0, arguments


@NEEDS_KUBECTL
def test_the_api_server_takes_all_of_it(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        for kind in KINDS:
            server.store.kinds[kind.group, kind.version, kind.plural] = kind
        first = kubectl(server, "apply", "-f", str(CRONJOB))
        assert first.code == 0, first.stderr
        assert {key[1] for key in server.store.objects} >= {kind.plural for kind in KINDS}
        assert kubectl(server, "apply", "-f", str(CRONJOB)).text.count("unchanged") == len(manifests())


@NEEDS_KUBECTL
def test_kubectl_knows_every_field_of_the_cronjob(tmp_path: Path) -> None:
    """kubectl reads a CronJob into its own types to change it: a wrong type is refused, an unknown field is lost."""
    (cronjob,) = [each for each in manifests() if each["kind"] == "CronJob"]
    file = tmp_path / "cronjob.json"
    file.write_text(json.dumps(cronjob))
    command = ["kubectl", "set", "env", "--local", "-f", str(file), "X=1", "-o", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    known = dict(leaves(json.loads(done.stdout)))
    assert {path: value for path, value in leaves(cronjob) if known.get(path) != value} == {}


def test_the_container_calls_what_there_is() -> None:
    (cronjob,) = [each for each in manifests() if each["kind"] == "CronJob"]
    (container,) = cronjob["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    taken(*container["args"])
    mounted = {each["mountPath"] for each in container["volumeMounts"]}
    folder = re.findall(r"^WORKDIR (.*)$", (DEPLOY / "Containerfile").read_text(), re.MULTILINE)
    assert [container["workingDir"]] == folder
    assert mounted == {f"{folder[0]}/parbake.yaml", f"{folder[0]}/artefacts"}


def test_the_rights_are_those_that_rollouts_take() -> None:
    """What the how-to says, and no more."""
    (role,) = [each for each in manifests() if each["kind"] == "ClusterRole"]
    rights = {(resource, verb) for rule in role["rules"] for resource in rule["resources"] for verb in rule["verbs"]}
    classes = {(plural, verb) for plural in ("ec2nodeclasses", "awsnodetemplates") for verb in ("get", "list", "patch")}
    pools = {("nodepools", verb) for verb in ("get", "list", "patch")}
    listed = {(plural, "list") for plural in ("nodeclaims", "events", "nodes", "pods")}
    assert rights == classes | pools | listed


def test_rollouts_may_patch_what_is_named_and_nothing_else() -> None:
    (role,) = [each for each in manifests() if each["kind"] == "ClusterRole"]
    patching = [rule for rule in role["rules"] if not {"get", "list"} >= set(rule["verbs"])]
    assert {plural for rule in patching for plural in rule["resources"]} == {
        "ec2nodeclasses", "awsnodetemplates", "nodepools",
    }  # fmt: skip
    for rule in patching:
        assert rule["verbs"] == ["patch"], "one rule for reading, which is for all, and one for patching"
        assert rule["resourceNames"], rule
        # Names of nobody: what is not filled in may not be patched.
        assert all(name.isupper() for name in rule["resourceNames"])


def test_nothing_reaches_the_pod_and_it_reaches_no_metadata_service() -> None:
    (policy,) = [each["spec"] for each in manifests() if each["kind"] == "NetworkPolicy"]
    assert (policy["podSelector"], policy["policyTypes"]) == ({}, ["Ingress", "Egress"])
    assert "ingress" not in policy
    metadata = [ipaddress.ip_address(text) for text in ("169.254.169.254", "fd00:ec2::254")]
    for rule in policy["egress"]:
        ports = {(port["protocol"], port["port"]) for port in rule["ports"]}
        assert ports, "a rule without ports is one for all"
        for peer in rule.get("to", []):
            block = peer["ipBlock"]
            excepted = [ipaddress.ip_network(text) for text in block.get("except", [])]
            for address in metadata:
                inside = address in ipaddress.ip_network(block["cidr"])
                assert not inside or any(address in each for each in excepted)
        assert "to" in rule or ports == {("UDP", 53), ("TCP", 53)}


def step() -> str:
    workflow = YAML(typ="safe").load(WORKFLOW.read_text())
    (found,) = [step for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    return str(found["run"])


@pytest.mark.parametrize("code", [0, 1, 3])
def test_a_verification_that_said_no_fails_the_workflow(tmp_path: Path, code: int) -> None:
    """The step as a runner runs it (``bash -e``), with a stand-in for parbake that ends so."""
    (tmp_path / "parbake").write_text(f"#!/bin/sh\necho '{{}}'\nexit {code}\n")
    (tmp_path / "parbake").chmod(0o755)
    (tmp_path / "step.sh").write_text(step())
    path = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = subprocess.run(
        ["/bin/bash", "-e", "step.sh"], cwd=tmp_path, env=path, capture_output=True, text=True, check=False
    )
    assert done.returncode == code
    assert (tmp_path / "baked.json").read_text() == done.stdout == "{}\n"


def test_the_workflow_is_one_and_calls_what_there_is() -> None:
    check = Path(sys.executable).with_name("check-jsonschema")
    command = [str(check), "--builtin-schema", "vendor.github-workflows", str(WORKFLOW)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    (line,) = [line for line in step().splitlines() if line.startswith("parbake ")]
    taken(*shlex.split(line.partition(">")[0])[1:])

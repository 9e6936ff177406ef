"""The workers in a cluster: kubectl knows every field, the commands are real, and only what bakes is privileged."""

from __future__ import annotations

import ipaddress
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from temporalio.envconfig import ClientConfig

from parbake import cli
from parbake.fleet.engine.tasks import QUEUES
from standins.clusters import NEEDS_KUBECTL
from tests.unit.rollouts.test_deploy import leaves

FILE = Path(__file__).parents[3] / "deploy/fleet-worker.yaml"
MANIFESTS: list[dict[str, Any]] = list(YAML(typ="safe").load_all(FILE.read_text()))
WORKERS = {each["metadata"]["name"]: each for each in MANIFESTS if each["kind"] == "Deployment"}


def named(kind: str, name: str) -> dict[str, Any]:
    (found,) = [each for each in MANIFESTS if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return found


@NEEDS_KUBECTL
@pytest.mark.parametrize("name", WORKERS)
def test_kubectl_knows_every_field(name: str, tmp_path: Path) -> None:
    """kubectl reads a Deployment into its own types to change it: a wrong type is refused, an unknown field is lost."""
    file = tmp_path / "deployment.json"
    file.write_text(json.dumps(WORKERS[name]))
    command = ["kubectl", "set", "env", "--local", "-f", str(file), "X=1", "-o", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    known = dict(leaves(json.loads(done.stdout)))
    assert {path: value for path, value in leaves(WORKERS[name]) if known.get(path) != value} == {}


@pytest.mark.parametrize("name", WORKERS)
def test_the_container_calls_what_there_is(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    spec = WORKERS[name]["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    assert cli.run([*container["args"], "--help"]) == 0
    capsys.readouterr()
    options = dict(zip(container["args"][2::2], container["args"][3::2], strict=True))
    assert options["--queues"] == name
    assert name in QUEUES
    assert float(options["--grace"]) < spec.get("terminationGracePeriodSeconds", 30)
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in spec["volumes"]}
    assert bool(container["securityContext"].get("privileged")) == (name == "bake")


def test_the_environment_is_what_the_library_reads(tmp_path: Path) -> None:
    said = named("ConfigMap", "engine")["data"]
    files = {"TEMPORAL_TLS_CLIENT_CERT_PATH": "tls.crt", "TEMPORAL_TLS_CLIENT_KEY_PATH": "tls.key"}
    for variable, file in files.items():
        assert said[variable] == f"/etc/engine/{file}"
        (tmp_path / file).write_text("pem")
    there = {**said, **{variable: str(tmp_path / file) for variable, file in files.items()}}
    config = ClientConfig.load_client_connect_config(override_env_vars=there)
    assert config["target_host"] == said["TEMPORAL_ADDRESS"]
    assert config["namespace"] == said["TEMPORAL_NAMESPACE"]
    assert config["tls"]
    trigger = named("ScaledObject", "bake")["spec"]["triggers"][0]["metadata"]
    assert (trigger["endpoint"], trigger["namespace"]) == (said["TEMPORAL_ADDRESS"], said["TEMPORAL_NAMESPACE"])
    assert trigger["taskQueue"] in QUEUES


def test_nothing_reaches_the_pods_and_they_reach_no_metadata_service() -> None:
    policy = named("NetworkPolicy", "parbake-fleet")["spec"]
    assert (policy["podSelector"], policy["policyTypes"], "ingress" in policy) == ({}, ["Ingress", "Egress"], False)
    for rule in policy["egress"]:
        assert rule["ports"]
        for peer in rule.get("to", []):
            block = peer["ipBlock"]
            for text in ("169.254.169.254", "fd00:ec2::254"):
                address = ipaddress.ip_address(text)
                inside = address in ipaddress.ip_network(block["cidr"])
                excepted = any(address in ipaddress.ip_network(each) for each in block.get("except", []))
                assert not inside or excepted

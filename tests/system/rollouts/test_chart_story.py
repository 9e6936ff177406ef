"""From six lines of values to a patched node class: what the chart renders is run as the pod that it describes.

Real are helm, the container's user, capabilities, mounts and arguments, the registry, the bake, the upload's protocol
and kubectl; stand-ins are EBS and EC2, the API server, and what a machine would say of the volume (standins/proven).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from standins import pod_security, pods
from standins.clusters import NEEDS_KUBECTL
from standins.ebs_direct_server import Cloud
from standins.kubernetes.karpenter import Ami, Karpenter
from standins.kubernetes.server import Server, serving
from standins.registry import DockerRegistry
from tests.system.rollouts.test_rollout_story import AWS, PROVEN, release, running, snapshot_of
from tests.unit.rollouts.test_karpenter import pool
from tests.unit.rollouts.test_node_classes import ALIAS, NEW
from tools import chart

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    NEEDS_KUBECTL,
    pytest.mark.skipif(not chart.HELM.exists() and not os.environ.get("CI"), reason="`make setup` fetches helm"),
]


@dataclass(frozen=True)
class Pod:
    """The chart's pod, whose volume stays from turn to turn."""

    spec: dict[str, Any]
    volumes: dict[str, Path]

    def turn(self) -> subprocess.CompletedProcess[str]:
        program = [str(Path(sys.prefix, "bin/parbake"))]
        command = pods.as_container(self.spec, self.volumes, program=program)
        env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONPATH": str(PROVEN), **pods.environment(self.spec)}
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path, NEW, "karpenter.sh_nodepools.v1", "karpenter.sh_nodeclaims.v1") as server:
        server.create("ec2nodeclasses", "gpu", spec=ALIAS["spec"])
        server.create("nodepools", "gpu", spec=pool("gpu"))
        yield server


def installed(folder: Path, values: dict[str, Any], server: Server) -> Pod:
    """Return what helm would install, with volumes that are folders here."""
    (folder / "values.json").write_text(json.dumps(values))
    objects = chart.objects("--values", str(folder / "values.json"))
    (spec,) = [spec for each in objects for spec in pod_security.templates(each)]
    (config,) = [each for each in objects if each["kind"] == "ConfigMap"]
    volumes = {each["name"]: folder / each["name"] for each in spec["volumes"]}
    for path in volumes.values():
        path.mkdir()
    for name, text in config["data"].items():
        (volumes["files"] / name).write_text(text)
    (volumes["secret-kubeconfig"] / "config").write_text(server.kubeconfig.read_text())
    return Pod(dict(spec), volumes)


def test_six_lines_of_values_patch_a_node_class(tmp_path: Path, server: Server) -> None:
    karpenter = Karpenter(server, [Ami("ami-0", "al2023-node")])
    karpenter.start_nodes("gpu", "gpu", 2)
    with DockerRegistry(tmp_path / "registry") as registry, Cloud().serve() as url, karpenter:
        release(registry, "1")
        app = {"reference": f"{registry.host}/team/app:stable", "startup": {"up": "exit"}}
        reached = {"AWS_ENDPOINT_URL": url, "AWS_EC2_METADATA_DISABLED": "true", "KUBECONFIG": "/kubeconfig/config"}
        values = {
            "bakefile": {
                "images": [app],
                "aws": {"region": "eu-west-1"},
                "rollout": [{"karpenter": {"nodeclass": "gpu"}}],
            },
            "env": [{"name": name, "value": value} for name, value in {**AWS, **reached}.items()],
            "secrets": [{"name": "kubeconfig", "at": "/kubeconfig"}],
        }
        (tmp_path / "pod").mkdir()
        pod = installed(tmp_path / "pod", values, server)
        first = pod.turn()
        assert first.returncode == 0, first.stderr
        snapshot = snapshot_of(server)
        told = json.loads(first.stdout)
        assert (told["baked"], told["moved"][0]) == (True, app["reference"])
        assert snapshot in json.dumps(told)
        assert running(server) == 2
        assert server.get("ec2nodeclasses", "gpu")["metadata"]["annotations"]["parbake/rollout"]

        again = pod.turn()  # a new pod, with what the claim has kept
        assert again.returncode == 0, again.stderr
        assert (json.loads(again.stdout)["baked"], snapshot_of(server)) == (False, snapshot)

        release(registry, "2")
        assert pod.turn().returncode == 0
        assert snapshot_of(server) not in {"", snapshot}


def test_the_pods_process_is_as_confined_as_the_chart_says(tmp_path: Path, server: Server) -> None:
    """The stand-in for a container itself: what it takes away is gone."""
    (tmp_path / "pod").mkdir()
    values = {"secrets": [{"name": "kubeconfig", "at": "/kubeconfig"}]}
    pod = installed(tmp_path / "pod", values, server)
    tries = "for at in / /usr /kubeconfig; do touch $at/x; done; touch /tmp/x; unshare --user true; echo done"
    status = 'grep -E "^(CapEff|CapBnd|NoNewPrivs)" /proc/self/status'
    program = ["sh", "-c", f"id -u; {status}; {tries}"]
    command = pods.as_container(pod.spec, pod.volumes, program=program)
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout.split() == ["65532", "CapEff:", "0" * 16, "CapBnd:", "0" * 16, "NoNewPrivs:", "1", "done"]
    refused = [line for line in done.stderr.splitlines() if "cannot touch" in line]
    assert len(refused) == 3, done.stderr
    assert "unshare failed" in done.stderr

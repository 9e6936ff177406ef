"""The whole way that the project was made for, on instances that are real: from a Containerfile to a proven AMI."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from parbake.builders.ec2 import launch
from parbake.images.pause import REFERENCE as PAUSE
from standins.aws.ec2 import Cloud
from standins.aws.ec2_support import cloud
from standins.aws.qemu_instances import Qemus
from standins.base import default_base, lean_node
from standins.contexts import write_files
from standins.every_layer_feature import busybox_layer
from standins.images import image, push
from standins.loopback import address
from standins.registry import DockerRegistry
from standins.runs import bake, bakefile, parbake, private_places, traces
from tests.aws.conftest import REGION, aws_mock, environment

__all__ = ["address", "aws_mock", "cloud", "default_base", "environment", "private_places"]

pytestmark = [pytest.mark.root, pytest.mark.vm, pytest.mark.slow(250)]

CONTAINERFILE = """\
FROM scratch
ADD busybox /bin/busybox
ADD greeting /greeting
ENTRYPOINT ["/bin/busybox", "sh", "-c", "/bin/busybox cat /greeting; exec /bin/busybox sleep 1000"]
"""


@pytest.fixture
def machines(cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Qemus]:
    monkeypatch.setattr(launch, "_POLL", 0.5)
    monkeypatch.setattr(launch, "_GRACE", 60.0)
    (tmp_path / "machines").mkdir()
    made = cloud.hardware = Qemus(tmp_path / "machines")
    yield made
    made.close()


def node_image(folder: Path, registry: DockerRegistry, base: Path) -> Path:
    """Return a node's disk as AMIs of EKS are: with the pause image (layers and all) in its containerd, and others."""
    push(registry.url, "team/agent", image(busybox_layer()), "1")
    plain = {registry.host: {"plain_http": True}}
    path = bakefile(
        folder / "node",
        [f"{registry.host}/team/agent:1"],
        base={"file": str(lean_node(base, folder / "lean.raw"))},
        sandbox=PAUSE,
        artefact="raw",
        keep_layers=True,
        registries=plain,
    )
    return Path(bake(path)["artefact_path"])


def test_build_push_bake_and_prove(
    default_base: Path, cloud: Cloud, machines: Qemus, private_places: Path, address: str
) -> None:
    busybox = Path("/bin/busybox").read_bytes()
    with DockerRegistry(private_places / "registry", address=address) as registry:
        base = cloud.base(REGION, "my-node-1", node_image(private_places, registry, default_base))

        def cut_off(_service: str, operation: str, _arguments: dict[str, Any]) -> None:
            if operation == "CreateImage":  # all that follows has no registry
                machines.isolated = True
                registry.stop()

        cloud.before.append(cut_off)
        name = f"{registry.host}/team/app:1"
        folder = private_places / "bake"
        write_files(folder / "app", {"Containerfile": CONTAINERFILE, "busybox": busybox, "greeting": "ready\n"})
        (folder / "app/busybox").chmod(0o755)
        built = {"reference": name, "build": {"context": "app"}, "startup": {"up": {"log": "^ready"}}}
        path = bakefile(
            folder,
            [built],
            builder="ec2",
            base=base,
            aws={"region": REGION},
            time_limit="8m",
            registries={registry.host: {"plain_http": True}},
        )
        baked = parbake("bake", "-f", path, "--json", "--progress", "none").good()
    assert baked["verdict"]["passed"]
    assert [seen["reference"] for seen in baked["verdict"]["images"] if "@" not in seen["reference"]] == [name]
    proof = baked["verdict"]["images"][0]
    assert proof["pinned"]
    assert proof["output"] == "ready"
    assert proof["start_seconds"] > 0
    assert proof["sandbox_seconds"] > 0
    there = baked["published"][REGION]
    assert cloud.left(REGION) == {"images": [there["image"]], "snapshots": [there["snapshots"][0]["id"]]}
    assert traces(private_places) == []

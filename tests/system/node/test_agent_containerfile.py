"""`deploy/agent.Containerfile` is really built, of Debian's parts, and what it makes runs as nobody."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from standins.base import default_base
from standins.disks import sh
from standins.documents import ROOT
from tests.system.images.build.test_containerfile import BASE, LIMITS, Buildah, buildah, lent

__all__ = ["buildah", "default_base"]

pytestmark = [pytest.mark.root, pytest.mark.slow]


def test_the_agents_image_is_built_of_debians_parts_and_runs_as_nobody(buildah: Buildah, tmp_path: Path) -> None:
    options = ("--isolation=chroot", "--network=host", "--pull=never", *LIMITS, *lent(), f"--build-arg=DEBIAN={BASE}")
    buildah("build", *options, f"--file={ROOT}/deploy/agent.Containerfile", "--tag=parbake-agent", str(ROOT))
    found = json.loads(buildah("inspect", "--type=image", "parbake-agent"))["OCIv1"]["config"]
    assert (found["User"], found["Entrypoint"][0]) == ("65532:65532", "/usr/bin/python3")
    root = Path(buildah("mount", buildah("from", "--pull=never", "parbake-agent")))
    assert "--patience" in sh("chroot", "--userspec", found["User"], root, *found["Entrypoint"], "--help")
    buildah("push", "--quiet", "parbake-agent", f"oci:{tmp_path}/agent")
    [manifest] = json.loads((tmp_path / "agent/index.json").read_text())["manifests"]
    layers = json.loads((tmp_path / "agent/blobs" / manifest["digest"].replace(":", "/")).read_text())["layers"]
    assert sum(each["size"] for each in layers) < 9 << 20, "what a node pulls"

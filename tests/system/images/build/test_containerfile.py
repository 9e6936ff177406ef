"""The image of parbake: `deploy/Containerfile` is really built, and run as a pod of the chart."""

from __future__ import annotations

import json
import re
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from parbake.machine import disk
from standins import pod_security, pods
from standins.base import default_base
from standins.disks import sh
from standins.documents import ROOT
from standins.images import image, layer, push
from standins.registry import DockerRegistry
from standins.runs import Done

__all__ = ["default_base"]

pytestmark = [pytest.mark.root, pytest.mark.slow]

DEBIAN_MB = 30
"""What debian:13-slim takes in a registry, for amd64 (2026): 29.8 MB."""
# What doctor misses in it: machine images, volumes of XFS, builds and the demo take root, and are in the full image.
FOR_ROOT = {
    "buildah or docker or podman", "containerd", "runc", "sfdisk", "mkfs.xfs", "xfs_db", "xfs_growfs", "xfs_repair",
    "mkfs.vfat", "grub-mkimage", "mmdebstrap", "fakechroot", "fakeroot", "setfiles", "slirp4netns", "docker-registry",
}  # fmt: skip
BASE = "docker.io/library/debian:13-slim"
LENT = ("/etc/apt/sources.list.d", "/etc/ssl/certs", "/etc/pip.conf", "/etc/xdg/pip")
# No more than this machine allows: buildah asks for more, and a machine may forbid that.
LIMITS = [
    f"--ulimit={name}={soft}:{hard}"
    for name, (soft, hard) in (
        ("nofile", resource.getrlimit(resource.RLIMIT_NOFILE)),
        ("nproc", resource.getrlimit(resource.RLIMIT_NPROC)),
    )
]


def lent() -> list[str]:
    """Return options that lend to a build's steps what this machine needs to reach its mirrors."""
    sources = "".join(path.read_text() for path in Path("/etc/apt/sources.list.d").glob("*.*"))
    folders = re.findall(r"\bfile:(?://)?(/[^\s]+)", sources)
    return [f"--volume={path}:{path}:ro" for path in (*LENT, *folders) if Path(path).exists()]


class Buildah:
    """buildah with a store of its own."""

    def __init__(self, folder: Path) -> None:
        self.command = ("buildah", "--root", str(folder / "store"), "--runroot", str(folder / "run"))

    def __call__(self, *arguments: str) -> str:
        return sh(*self.command, *arguments).strip()


@pytest.fixture(scope="module")
def buildah(tmp_path_factory: pytest.TempPathFactory, default_base: Path) -> Iterator[Buildah]:
    """buildah, with an image of Debian to begin from: our own base's root."""
    folder = tmp_path_factory.mktemp("buildah")
    buildah = Buildah(folder)
    root = disk.find_root(default_base)
    with (
        disk.private_mounts(),
        disk.mount(
            default_base, folder / "root", filesystem=root.filesystem, offset=root.start, size=root.size, read_only=True
        ) as mounted,
    ):
        kernel = ("--exclude=./boot/*", "--exclude=./usr/lib/modules/*")
        sh("tar", "-C", mounted.path, *kernel, "-cf", folder / "root.tar", ".")
    made = buildah("from", "scratch")
    buildah("add", "--quiet", made, str(folder / "root.tar"), "/")
    buildah("commit", "--quiet", "--rm", made, BASE)
    (folder / "root.tar").unlink()
    yield buildah
    buildah("rm", "--all")
    buildah("rmi", "--all", "--force")


@pytest.fixture(scope="module")
def built(buildah: Buildah, default_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image, with the base that is there already: its root, mounted as long as the module runs."""
    folder = tmp_path_factory.mktemp("image")
    (folder / "fast").write_text("force-unsafe-io\n")
    packed = folder / f"{default_base.stem}.qcow2"
    sh("qemu-img", "convert", "-f", "raw", "-c", "-o", "compression_type=zstd", "-O", "qcow2", default_base, packed)
    made = buildah("from", "scratch")
    buildah("add", "--quiet", made, str(packed), "/base/")
    buildah("commit", "--quiet", "--rm", made, "localhost/base")
    fast = f"--volume={folder}/fast:/etc/dpkg/dpkg.cfg.d/fast:ro"
    options = ("--isolation=chroot", "--network=host", "--pull=never", *LIMITS, *lent(), fast)
    bases = (f"--build-arg=DEBIAN={BASE}", "--build-arg=BASE=localhost/base")
    buildah("build", *options, *bases, f"--file={ROOT}/deploy/Containerfile", "--tag=parbake", str(ROOT))
    return Path(buildah("mount", buildah("from", "--pull=never", "localhost/parbake")))


def test_the_image_says_what_it_runs_and_as_whom(buildah: Buildah, built: Path) -> None:
    found = json.loads(buildah("inspect", "--type=image", "parbake"))["OCIv1"]["config"]
    assert (found["Entrypoint"], found["WorkingDir"], found["User"]) == (["parbake"], "/bakes", "65532:65532")
    (spec,) = pod_security.templates(a_cronjob())
    assert f"{spec['securityContext']['runAsUser']}:{spec['securityContext']['runAsGroup']}" == found["User"]
    assert spec["containers"][0]["workingDir"] == found["WorkingDir"]
    assert (built / "bakes").stat().st_uid == spec["securityContext"]["runAsUser"]
    assert [*(built / "usr/src").iterdir()] == [*(built / "var/lib/apt/lists").iterdir()] == [], "all is tidied up"


def test_pulling_the_image_takes_no_more_than_450_mb(buildah: Buildah, built: Path, tmp_path: Path) -> None:
    """Layers as they are in a registry, and Debian's own; those of the stand-in for Debian do not count."""
    assert built.exists()
    quick = ("--compression-format=zstd", "--compression-level=1", "--quiet")
    buildah("push", *quick, "parbake", f"oci:{tmp_path}/image")
    [manifest] = json.loads((tmp_path / "image/index.json").read_text())["manifests"]
    layers = json.loads((tmp_path / "image/blobs" / manifest["digest"].replace(":", "/")).read_text())["layers"]
    assert DEBIAN_MB + sum(each["size"] for each in layers[1:]) / 1e6 < 450


def test_a_pod_of_the_chart_bakes_in_the_image(built: Path, tmp_path: Path) -> None:
    """With all that Restricted takes away, on a read-only root: parbake finds what its main job runs, and bakes."""
    with DockerRegistry(tmp_path / "registry") as registry:
        push(registry.url, "team/app", image(layer({"file": b"text"})), "1")
        document = {"version": 1, "images": [f"{registry.host}/team/app:1"], "base": "none"}
        (spec,) = pod_security.templates(a_cronjob())
        volumes = {each["name"]: tmp_path / each["name"] for each in spec["volumes"]}
        for path in volumes.values():
            path.mkdir()
        (volumes["files"] / "parbake.yaml").write_text(json.dumps(document))

        def run(*arguments: str) -> Any:
            wanted = {**spec, "containers": [{**spec["containers"][0], "args": [*arguments]}]}
            command = pods.as_container(wanted, volumes, program=["parbake"], root=built)
            env = {"PATH": "/opt/parbake/bin:/usr/sbin:/usr/bin:/sbin:/bin", **pods.environment(spec)}
            done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=300)
            return Done(done.returncode, done.stdout, done.stderr).good()

        checks = {each["name"]: each for each in run("doctor", "--json")}
        lacking = {name for name, each in checks.items() if each["status"] == "missing"}
        assert lacking <= FOR_ROOT
        assert run("bake", "--no-verify", "--no-rehearse", "--json")["artefact"].startswith("bakes-")


def a_cronjob() -> dict[str, Any]:
    """Return what the chart renders, as its golden file has it."""
    objects = json.loads((ROOT / "tests/unit/project/cases/chart-default.json").read_text())
    (found,) = [each for each in objects if each["kind"] == "CronJob"]
    return dict(found)


def test_the_full_image_adds_what_only_root_needs() -> None:
    """Its packages are those of this machine, by the same list; the tests run what they bring."""
    full = (ROOT / "deploy/Containerfile").read_text().partition("FROM main AS full")[2].partition("FROM main")[0]
    assert "packages.apt" in full
    assert "/^# Tests:/,$d" in full
    assert "COPY --from=python /opt/parbake /opt/parbake" in full

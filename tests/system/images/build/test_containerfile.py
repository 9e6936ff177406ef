"""The image of parbake: `deploy/Containerfile` is really built, and parbake finds in it all that it runs."""

from __future__ import annotations

import json
import re
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from parbake import __version__
from parbake.machine import disk
from standins.base import default_base
from standins.disks import sh
from standins.documents import ROOT

__all__ = ["default_base"]

pytestmark = [pytest.mark.root, pytest.mark.slow]

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


def test_the_image_is_built_and_has_all_that_parbake_runs(buildah: Buildah, tmp_path: Path) -> None:
    (tmp_path / "fast").write_text("force-unsafe-io\npath-exclude=/usr/share/doc/*\npath-exclude=/usr/share/man/*\n")
    fast = f"--volume={tmp_path}/fast:/etc/dpkg/dpkg.cfg.d/fast:ro"
    options = (
        "--isolation=chroot",
        "--network=host",
        "--pull=never",
        f"--build-arg=DEBIAN={BASE}",
        *LIMITS,
        *lent(),
        fast,
    )
    buildah("build", *options, f"--file={ROOT}/deploy/Containerfile", "--tag=parbake", str(ROOT))
    found = json.loads(buildah("inspect", "--type=image", "parbake"))["OCIv1"]["config"]
    assert (found["Entrypoint"], found["WorkingDir"]) == (["parbake"], "/bakes")
    running = buildah("from", "--isolation=chroot", "--pull=never", "--cap-add=CAP_SYS_ADMIN", *LIMITS, "parbake")
    run = ("run", "--isolation=chroot", running, "--")
    assert buildah(*run, "parbake", "--version") == f"parbake {__version__}"
    checks = json.loads(buildah(*run, "parbake", "doctor", "--json"))
    assert [each["name"] for each in checks if each["status"] == "missing"] == []
    assert buildah(*run, "find", "/usr/src", "/var/lib/apt/lists", "/bakes", "-mindepth", "1") == "", "all is tidied up"

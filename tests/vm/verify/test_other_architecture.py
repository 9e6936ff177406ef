"""An application for the other architecture than this machine's: built, baked and proven here, in emulation.

A small service with a Python of that architecture, which the default base brings. A volume would be attached to that
same base (tests/unit/verify), as those for this machine's architecture are. The demo's own sample is the same and
larger: to install its packages in emulation takes ten times what all of this takes.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from parbake.core.events import Events
from parbake.core.model import Platform
from parbake.core.run import run
from parbake.core.workspace import cache_folder
from parbake.machine import base, disk
from standins.contexts import write_files
from standins.registry import DockerRegistry
from standins.runs import bakefile, parbake, traces

pytestmark = [pytest.mark.root, pytest.mark.vm, pytest.mark.slow(900)]

OTHER = Platform(architecture="amd64" if Platform.host().architecture == "arm64" else "arm64")
EMULATOR, TRIPLET, LOADER = {
    "amd64": ("qemu-system-x86_64", "x86_64-linux-gnu", "lib64/ld-linux-x86-64.so.2"),
    "arm64": ("qemu-system-aarch64", "aarch64-linux-gnu", "lib/ld-linux-aarch64.so.1"),
}[OTHER.architecture]

CONTAINERFILE = """\
FROM scratch
ADD rootfs.tar /
COPY app.py /app.py
RUN ["/usr/bin/python3", "-m", "compileall", "-q", "/app.py"]
ENTRYPOINT ["/usr/bin/python3", "/app.py"]
"""
APP = """\
import http.server, os
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/healthz" else 404)
        self.end_headers()
print("a service on", os.uname().machine, flush=True)
http.server.HTTPServer(("", 8080), Handler).serve_forever()
"""


@pytest.fixture
def context(tmp_path: Path) -> Path:
    """A build context whose root file system has Python for the other architecture."""
    made = cache_folder() / "base" / base.describe(OTHER).file_name
    if not made.exists() and not os.environ.get("CI"):
        pytest.skip(f"to make a base for {OTHER} takes two minutes: CI does, and CI=1 does it here, once")
    default = base.ensure(cache_folder(), Events(), platform=OTHER)
    folder = tmp_path / "app"
    write_files(folder, {"Containerfile": CONTAINERFILE, "app.py": APP})
    root = disk.find_root(default)
    with (
        disk.private_mounts(),
        disk.mount(
            default, tmp_path / "mnt", filesystem=root.filesystem, offset=root.start, size=root.size, read_only=True
        ) as mounted,
    ):
        libraries = Path("usr/lib", TRIPLET)
        wanted = {
            Path(LOADER).parent,
            Path("usr", LOADER),
            *(path.relative_to(mounted.path) for path in (mounted.path / "usr/bin").glob("python3*")),
            *(path.relative_to(mounted.path) for path in (mounted.path / "usr/lib").glob("python3.*")),
            *(libraries / path.name for path in (mounted.path / libraries).glob("ld-linux*")),
            *(libraries / path.name for path in (mounted.path / libraries).glob("lib[cmz].so*")),
            *(libraries / path.name for path in (mounted.path / libraries).glob("libexpat.so*")),
        }
        names = [str(path) for path in sorted(wanted)]
        run(["tar", "-C", str(mounted.path), "-cf", str(folder / "rootfs.tar"), *names])
    return folder


def test_it_is_proven_by_a_machine_of_that_architecture(tmp_path: Path, context: Path) -> None:
    with DockerRegistry(tmp_path / "registry") as registry:
        name = f"{registry.host}/team/service:1"
        app = {"reference": name, "build": {"context": context}, "startup": {"up": {"http": "8080/healthz"}}}
        path = bakefile(tmp_path / "here", [app], platform=str(OTHER), name="other", base="debian", artefact="qcow2")
        done = parbake("bake", "-f", path, "--json")
    document = done.good()
    assert "not verified" not in done.err
    verdict = document["verdict"]
    assert (verdict["passed"], verdict["accelerator"], verdict["emulator"]) == (True, "tcg", EMULATOR)
    assert verdict["runtime"].startswith("containerd ")
    [service, by_digest, sandbox] = verdict["images"]
    assert (service["pinned"], service["unpacked"], service["problems"]) == (True, True, [])
    assert service["start_seconds"] > 0
    assert "a service on " + {"amd64": "x86_64", "arm64": "aarch64"}[OTHER.architecture] in service["output"]
    assert (by_digest["problems"], sandbox["problems"]) == ([], [])
    assert document["verified"]  # what a rollout asks for
    assert f"(tcg, {EMULATOR})" in parbake("show", document["record_path"]).out
    # What was registered with the kernel for the build has been taken back.
    assert list(Path("/proc/sys/fs/binfmt_misc").glob(f"parbake-*.{os.getpid()}.*")) == []
    assert traces(tmp_path) == []

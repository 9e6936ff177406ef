"""Who competes: parbake itself and the tools that people use today. Each fills a fresh volume with one image.

All work on volumes made and mounted by the same code with the same options, and all end with the data on the disk.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.images import Image
from bench.memory import Peak
from parbake.core.errors import CommandFailed
from parbake.core.model import GIB
from parbake.core.run import Deadline, Process, find, run
from parbake.core.workspace import remove_tree
from parbake.machine import disk

_TIMEOUT = 1800.0
_BAKEFILE = """\
version: 1
name: bench
images:
  - {reference}
base: none
artefact: {{kind: volume, filesystem: ext4}}
sandbox: none
output: {output}
"""


@dataclass(frozen=True)
class Run:
    """One run: wall seconds, peak memory in bytes of the process tree, and what the side says of its parts."""

    seconds: float
    peak: int
    parts: dict[str, float] = field(default_factory=dict)


@contextmanager
def fresh_volume(work: Path, image: Image) -> Iterator[tuple[disk.Mounted, Path]]:
    """Yield an empty mounted ext4 volume with room for all that a pull leaves, and its file; remove it afterwards."""
    file = work / "volume.raw"
    size = -(-int(image.raw_size * 1.3 + image.size + 2 * GIB) // GIB) * GIB
    try:
        disk.make_filesystem(file, "ext4", size, name="bench")
        with disk.mount(file, work / "volume", filesystem="ext4", options=disk.FAST["ext4"]) as mounted:
            yield mounted, file
    finally:
        file.unlink(missing_ok=True)


def _settle(mounted: disk.Mounted, file: Path) -> None:
    """Have everything on the disk: the volume's data, and the file that holds it."""
    run(["sync", "--file-system", str(mounted.path)], timeout=_TIMEOUT)
    with file.open("rb") as handle:
        os.fsync(handle)


class Parbake:
    """``parbake bake`` as users run it: from the start of the process to the finished artefact and its record."""

    name = "parbake"

    def __init__(self, cores: int = 0) -> None:
        """``cores`` is how many processors it may use, all of those that this process may if 0."""
        self._cores = sorted(os.sched_getaffinity(0))[: cores or None]

    def missing(self) -> str:
        """Say what is missing; parbake is what runs."""
        return ""

    def bake(self, image: Image, work: Path) -> Run:
        """Bake once."""
        folder = work / "parbake"
        try:
            return self.bake_in(folder, image)[0]
        finally:
            remove_tree(folder)

    def bake_in(self, folder: Path, image: Image) -> tuple[Run, dict[str, Any]]:
        """Bake in a folder with whatever is there from before; return the document that parbake prints as well."""
        folder.mkdir(exist_ok=True)
        file = folder / "parbake.yaml"
        file.write_text(_BAKEFILE.format(reference=image.reference, output=folder / "artefacts"))
        command = ["taskset", "--cpu-list", ",".join(map(str, self._cores))]
        command += [sys.executable, "-m", "parbake", "bake", "--file", str(file)]
        command += ["--no-verify", "--progress", "none", "--json"]
        with Peak() as peak:
            started = time.monotonic()
            done = run(command, env={"PARBAKE_CACHE": str(folder / "cache")}, timeout=_TIMEOUT)
            seconds = time.monotonic() - started
        record: dict[str, Any] = json.loads(done.stdout)
        parts = {"start-up": seconds - record["seconds"], **record["timings"]} if record["changed"] else {}
        return Run(seconds, peak.bytes, parts), record


class Ctr:
    """``ctr images pull`` into a running containerd whose root is the volume; its start does not count."""

    name = "ctr"

    def __init__(self) -> None:
        self.folder = _newest_containerd()

    def missing(self) -> str:
        """Say what is missing, empty for nothing."""
        return "" if self.folder else "containerd"

    @property
    def version(self) -> str:
        """What containerd calls itself."""
        assert self.folder
        return run([str(self.folder / "containerd"), "--version"]).text.split()[2]

    def bake(self, image: Image, work: Path) -> Run:
        """Pull once."""
        assert self.folder
        with fresh_volume(work, image) as (mounted, file), self._daemon(mounted.path) as socket:
            command = [str(self.folder / "ctr"), "--address", str(socket), "--namespace", "k8s.io"]
            command += ["images", "pull", "--plain-http", image.reference]
            with Peak() as peak:
                started = time.monotonic()
                run(command, timeout=_TIMEOUT)
                _settle(mounted, file)
                seconds = time.monotonic() - started
            return Run(seconds, peak.bytes)

    @contextmanager
    def _daemon(self, root: Path) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="parbake-bench-") as name:
            folder = Path(name)  # short: a socket's path has 107 bytes at most
            socket, config = folder / "containerd.sock", folder / "config.toml"
            config.write_text(
                f'version = 2\nroot = "{root}/containerd"\nstate = "{folder}/state"\n'
                f'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n[grpc]\naddress = "{socket}"\n'
            )
            assert self.folder
            program, client = str(self.folder / "containerd"), str(self.folder / "ctr")
            with Process([program, "--config", str(config)], log=folder / "log") as process:
                deadline = Deadline(30, "containerd starts")
                while run([client, "--address", str(socket), "version"], check=False).code:
                    process.check_alive()
                    deadline.sleep(0.05)
                yield socket


class Buildah:
    """``buildah pull`` into a storage of its own on the volume."""

    name = "buildah"

    def missing(self) -> str:
        """Say what is missing, empty for nothing."""
        return "" if find("buildah") else "buildah"

    def bake(self, image: Image, work: Path) -> Run:
        """Pull once."""
        with fresh_volume(work, image) as (mounted, file), tempfile.TemporaryDirectory(prefix="parbake-bench-") as name:
            command = ["buildah", "--root", str(mounted.path / "storage"), "--runroot", name]
            command += ["--storage-driver", "overlay", "pull", "--quiet", "--tls-verify=false"]
            with Peak() as peak:
                started = time.monotonic()
                run([*command, f"docker://{image.reference}"], timeout=_TIMEOUT)
                _settle(mounted, file)
                seconds = time.monotonic() - started
            return Run(seconds, peak.bytes)


class Skopeo:
    """``skopeo copy`` into a folder on the volume: the download alone, verified and not unpacked."""

    name = "skopeo (download only)"

    def missing(self) -> str:
        """Say what is missing, empty for nothing."""
        return "" if find("skopeo") else "skopeo"

    def bake(self, image: Image, work: Path) -> Run:
        """Copy once."""
        with fresh_volume(work, image) as (mounted, file):
            target = f"dir:{mounted.path}/image"
            with Peak() as peak:
                started = time.monotonic()
                run(
                    ["skopeo", "copy", "--quiet", "--src-tls-verify=false", f"docker://{image.reference}", target],
                    timeout=_TIMEOUT,
                )
                _settle(mounted, file)
                seconds = time.monotonic() - started
            return Run(seconds, peak.bytes)


Side = Parbake | Ctr | Buildah | Skopeo


def _newest_containerd() -> Path | None:
    """Return the folder of the containerd to compare with: PARBAKE_BENCH_CONTAINERD, else the newest on PATH."""
    given = os.environ.get("PARBAKE_BENCH_CONTAINERD")
    folders = [Path(given)] if given else [Path(folder) for folder in os.environ["PATH"].split(":") if folder]
    found = []
    for folder in folders:
        if os.access(folder / "containerd", os.X_OK) and os.access(folder / "ctr", os.X_OK):
            try:
                shown = run([str(folder / "containerd"), "--version"]).text
            except CommandFailed:
                continue
            version = re.search(r"\bv?(\d+)\.(\d+)\.(\d+)", shown)
            found.append((tuple(map(int, version.groups())) if version else (0,), folder))
    return max(found)[1] if found else None

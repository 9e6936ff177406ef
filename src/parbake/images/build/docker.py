"""docker buildx, with the daemon's own store and credentials."""

from __future__ import annotations

import re
import shutil
import tarfile
from pathlib import Path
from typing import override

from parbake.core.errors import EnvironmentProblem, RegistryError
from parbake.core.reference import Reference
from parbake.core.run import run
from parbake.images.build.common import (
    BUILD_TIMEOUT,
    PROBE_TIMEOUT,
    BuildPlace,
    BuildTool,
    Request,
    need_tool,
    push,
    run_logged,
)

CAUTION = (
    "RUN steps run in Docker's network, from which a cloud's metadata service (169.254.169.254) may be reached: with "
    "buildah they are kept from it. `network: host` or `none` in `build` chooses another"
)
_DIGEST = re.compile(r"digest: (sha256:[0-9a-f]{64})")


class DockerTool(BuildTool):
    """docker buildx, with the daemon's own store and credentials."""

    name = "docker buildx"

    def __init__(self, place: BuildPlace) -> None:
        self._place = place

    def ready(self) -> None:
        """Raise EnvironmentProblem or CommandFailed unless buildx is there and the daemon answers."""
        need_tool("docker")
        run(["docker", "buildx", "version"], timeout=PROBE_TIMEOUT)
        run(["docker", "version", "--format", "{{.Server.Version}}"], timeout=PROBE_TIMEOUT)

    @override
    def build(self, request: Request) -> None:
        """Build; see BuildTool.

        Docker's own network for steps has no way to this machine's loopback, and one to a cloud's metadata service.
        """
        if request.network == "private":
            raise EnvironmentProblem(
                "Docker cannot keep RUN steps from a cloud's metadata service, as the network `private` asks",
                hint="apt-get install buildah runc slirp4netns, or take `network` out of `build`",
            )
        if request.network is None:
            self._place.events.warn(CAUTION)
        # Docker looks for `<Containerfile>.dockerignore` first: with a copy of both, every tool leaves out the same.
        file = self._place.work / "Dockerfile"
        shutil.copyfile(request.containerfile, file)
        if request.ignorefile:
            shutil.copyfile(request.ignorefile, file.with_name("Dockerfile.dockerignore"))
        epoch = request.source_date_epoch
        options = [
            "--progress=plain",
            "--load",
            "--provenance=false",
            f"--platform={request.platform}",
            f"--file={file}",
            f"--tag={request.tag}",
            *(f"--label={name}={value}" for name, value in request.labels.items()),
            *(f"--build-arg={name}={value}" for name, value in request.args.items()),
            *([f"--target={request.target}"] if request.target else []),
            *([f"--network={request.network}"] if request.network else []),
            *(["--allow=network.host"] if request.network == "host" else []),
            *([f"--build-arg=SOURCE_DATE_EPOCH={epoch}"] if epoch else []),
        ]
        command = ["docker", "buildx", "build", *options, str(request.context)]
        run_logged(command, self._place, f"building {request.tag}")

    @override
    def push(self, tag: str, to: Reference) -> str:
        if tag != str(to):
            run(["docker", "tag", tag, str(to)])
        found = _DIGEST.search(push(["docker", "push", str(to)], self._place, to))
        if found is None:
            raise RegistryError(f"docker pushed {to} and reported no digest", hint="install buildah")
        return found[1]

    @override
    def export(self, tag: str, folder: Path) -> None:
        """Export; see BuildTool. Needs Docker 25, the first whose archives are OCI layouts."""
        archive = self._place.work / "image.tar"
        run(["docker", "save", f"--output={archive}", tag], timeout=BUILD_TIMEOUT)
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
        archive.unlink()
        if not (folder / "oci-layout").is_file():
            raise EnvironmentProblem(
                "this Docker is older than 25: `docker save` writes no OCI layout", hint="apt-get install buildah"
            )

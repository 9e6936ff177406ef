"""The programs that build images: buildah, docker buildx, podman, behind one small interface.

buildah and podman get a store of their own in parbake's cache, so that nothing of the machine's own images is touched
and build steps are cached from one build to the next. They run in private mount and PID namespaces: however parbake
dies, no mount and no process of a ``RUN`` step stays behind, and what they left in their store is removed by the next
build. Steps run with ``chroot`` isolation, which needs no daemon, no cgroups and no network set-up.
docker keeps its own store: the daemon's.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import resource
import shutil
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from parbake.errors import (
    CommandFailed,
    DeadlineExceeded,
    Denied,
    DiskFull,
    EnvironmentProblem,
    ParbakeError,
    RegistryError,
    Unreachable,
)
from parbake.events import Events
from parbake.model import Platform, RegistryOptions
from parbake.reference import Reference
from parbake.run import Deadline, Process, find, isolated, run
from parbake.workspace import remove_tree

BUILD_TIMEOUT = 4 * 3600.0
"""Seconds that a build or a push may take before parbake gives up: builds that compile take hours."""
_PROBE_TIMEOUT = 30.0
_POLL = 0.1
# fuse-overlayfs and others are not tried: where overlay does not work, vfs always does, only slower.
_STORAGE_DRIVERS = ("overlay", "vfs")
_LOOPBACK = re.compile(r"(?:localhost|127(?:\.[0-9]+){3}|\[::1\])(?::[0-9]+)?(?=/)")
_MACHINE_REGISTRIES = Path("/etc/containers/registries.conf")
# A Containerfile that says `FROM debian` means Docker Hub's, unless the machine's configuration says otherwise.
_COMPLETES_NAMES = re.compile(r"^\s*unqualified-search-registries", re.MULTILINE)
_DOCKER_COMPLETES = 'unqualified-search-registries = ["docker.io"]\n'
_DIGEST = re.compile(r"digest: (sha256:[0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class Request:
    """What to build. ``ignorefile`` and ``containerfile`` are paths; ``labels`` go into the image's config."""

    tag: str
    context: Path
    containerfile: Path
    platform: Platform
    ignorefile: Path | None = None
    args: Mapping[str, str] = field(default_factory=dict)
    target: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    source_date_epoch: str = ""


class BuildTool(Protocol):
    """A program that builds images. All methods raise CommandFailed with the end of the program's output."""

    name: str

    def build(self, request: Request) -> None:
        """Build the image and keep it under its tag in the tool's store."""
        ...

    def push(self, tag: str, to: Reference) -> str:
        """Push the image and return its manifest's digest; raises RegistryError."""
        ...

    def export(self, tag: str, folder: Path) -> None:
        """Write the image as an OCI layout into a folder, which is made."""
        ...


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tool works: ``work`` belongs to this run and vanishes with it, ``cache`` stays.

    ``auth_file`` holds credentials for registries (containers-auth.json(5)) that the tool does not find by itself.
    """

    work: Path
    cache: Path
    registries: Mapping[str, RegistryOptions]
    events: Events
    auth_file: Path | None = None


def choose(place: Place) -> BuildTool:
    """Return the first tool that is there and works, and say so; raises EnvironmentProblem with each one's reason."""
    reasons = []
    for name, ready in (("buildah", _ready_buildah), ("docker buildx", _ready_docker), ("podman", _ready_podman)):
        try:
            tool = ready(place)
        except (EnvironmentProblem, CommandFailed, DeadlineExceeded) as error:
            reasons.append(f"{name}: {_last_line(error)}")
            continue
        passed_over = f" ({'; '.join(reasons)})" if reasons else ""
        place.events.note(f"building with {tool.name}{passed_over}")
        return tool
    raise EnvironmentProblem(
        "no program to build images works here:\n" + "\n".join(f"  {reason}" for reason in reasons),
        hint="apt-get install buildah, or take `build` out of the Bakefile and build the image elsewhere",
    )


def _last_line(error: ParbakeError) -> str:
    output = error.output if isinstance(error, CommandFailed) else ""
    return (output or error.message).strip().splitlines()[-1]


def _ready_buildah(place: Place) -> BuildTool:
    return _open_store("buildah", place)


def _ready_podman(place: Place) -> BuildTool:
    return _open_store("podman", place)


def _ready_docker(place: Place) -> BuildTool:
    _installed("docker")
    run(["docker", "buildx", "version"], timeout=_PROBE_TIMEOUT)
    run(["docker", "version", "--format", "{{.Server.Version}}"], timeout=_PROBE_TIMEOUT)
    return Docker(place)


def _installed(program: str) -> None:
    if find(program) is None:
        raise EnvironmentProblem(f"{program} is not installed")


def _run_logged(command: list[str], place: Place, what: str, env: dict[str, str] | None = None) -> str:
    """Run a long program, hand its output to the events line by line, and return it whole; raises CommandFailed."""
    log = place.work / "build.log"
    log.write_bytes(b"")
    deadline = Deadline(BUILD_TIMEOUT, what)
    with Process(command, log=log, env=env) as process, log.open("rb") as output:
        rest = b""
        alive = True
        while alive:
            alive = process.alive  # asked before the last read, so that no line is lost
            *lines, rest = (rest + output.read()).split(b"\n")
            for line in (*lines, b"" if alive else rest):
                if line.strip():
                    place.events.note(line.decode(errors="replace").rstrip())
            if alive:
                deadline.sleep(_POLL)
        if process.code:
            message = f"{what} failed (code {process.code})"
            raise _failure(what, f"{message}\n{process.tail}", process.code, process.tail)
    return log.read_text(errors="replace")


def _failure(what: str, message: str, code: int, output: str) -> ParbakeError:
    """Judge how a tool failed (pure)."""
    if "no space left on device" in output:
        return DiskFull(f"{what}: no space left\n{output}", hint="free space, or set PARBAKE_CACHE to a larger disk")
    if "exec format error" in output.lower():
        hint = "to run another architecture's programs in a build: apt-get install qemu-user-binfmt"
        return CommandFailed(message, code=code, output=output, hint=hint)
    return CommandFailed(message, code=code, output=output, hint="the end of the build's output says why")


class Containers:
    """buildah or podman (they share flags and storage), with a store of parbake's own in the cache."""

    def __init__(self, name: str, place: Place, driver: str) -> None:
        self.name = name
        self.store = place.cache / name / driver
        self._driver = driver
        self._place = place
        self._env: dict[str, str] = {}
        if place.auth_file:
            self._env["REGISTRY_AUTH_FILE"] = str(place.auth_file)
        elif "REGISTRY_AUTH_FILE" not in os.environ and os.environ.get("DOCKER_CONFIG"):
            self._env["REGISTRY_AUTH_FILE"] = str(Path(os.environ["DOCKER_CONFIG"]) / "config.json")

    def command(self, *arguments: str) -> list[str]:
        """Return a command line on the private store, in private namespaces."""
        # The run root says what is mounted. It is this run's own: after a kill nothing is.
        folders = ["--root", str(self.store), "--runroot", str(self._place.work / "run")]
        command = [self.name, "--storage-driver", self._driver, *folders, *arguments]
        # Without root the tool makes namespaces of its own.
        return isolated(command) if os.geteuid() == 0 else command

    def repair(self) -> None:
        """Make the store usable: remove containers that a killed build left; start over when it cannot be read."""
        try:
            self._tidy()
        except CommandFailed:
            if not self.store.exists():
                raise
            remove_tree(self.store)
            self._tidy()

    def _tidy(self) -> None:
        listing = ["containers", "--quiet"] if self.name == "buildah" else ["ps", "--all", "--external", "--quiet"]
        left = run(self.command(*listing), timeout=_PROBE_TIMEOUT, env=self._env).text.split()
        if left:
            self._place.events.note(f"{self.name}: removing {len(left)} containers of a build that was killed")
            run(self.command("rm", *(["--force"] if self.name == "podman" else []), *left), env=self._env)

    def build(self, request: Request) -> None:
        """Build; see BuildTool."""
        ours = [f"--ulimit={name}={soft}:{hard}" for name, soft, hard in _limits()]
        options = [
            "--isolation=chroot",
            *ours,
            "--layers",
            "--pull=newer",
            "--format=oci",
            f"--platform={request.platform}",
            f"--file={request.containerfile}",
            f"--tag={request.tag}",
            *(f"--label={name}={value}" for name, value in request.labels.items()),
            *(f"--build-arg={name}={value}" for name, value in request.args.items()),
            *([f"--target={request.target}"] if request.target else []),
            *([f"--ignorefile={request.ignorefile}"] if request.ignorefile else []),
            *([f"--timestamp={request.source_date_epoch}"] if request.source_date_epoch else []),
            *self._certificates(),
        ]
        folder = _registries_folder(self._place, request.containerfile.read_text(errors="replace"))
        env = {**self._env, "CONTAINERS_REGISTRIES_CONF_DIR": str(folder)}
        command = self.command("build", *options, str(request.context))
        _run_logged(command, self._place, f"building {request.tag}", env)

    def push(self, tag: str, to: Reference) -> str:
        """Push; see BuildTool."""
        file = self._place.work / "digest"
        options = [f"--digestfile={file}", "--format=oci", "--compression-format=gzip", *self._certificates(to)]
        if is_insecure(to.registry, self._place.registries):
            options.append("--tls-verify=false")  # buildah's push passes over the insecure entries of registries.conf.d
        _push(self.command("push", *options, tag, f"docker://{to}"), self._place, to, self._env)
        return file.read_text().strip()

    def export(self, tag: str, folder: Path) -> None:
        """Export; see BuildTool."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        # A colon in the path would end it, so the folder is named relative to where the program stands.
        target = f"oci:{folder.name}:{tag}"
        run(self.command("push", "--format=oci", tag, target), timeout=BUILD_TIMEOUT, env=self._env, cwd=folder.parent)

    def _certificates(self, to: Reference | None = None) -> list[str]:
        """Trust the authorities that the Bakefile names, for one registry or for all that a build may pull from."""
        registries = self._place.registries
        names = [to.registry] if to else sorted(registries)
        files = [registries[name].ca for name in names if name in registries and registries[name].ca]
        if not files:
            return []
        folder = self._place.work / "certificates"
        folder.mkdir(exist_ok=True)
        for number, file in enumerate(files):
            shutil.copyfile(file, folder / f"{number}.crt")
        return [f"--cert-dir={folder}"]


def _open_store(name: str, place: Place) -> BuildTool:
    _installed(name)
    tools = [Containers(name, place, driver) for driver in _STORAGE_DRIVERS]
    for tool in tools[:-1]:
        try:
            tool.repair()
        except CommandFailed as error:
            place.events.note(f"{name}: no overlay storage here, so slower vfs: {_last_line(error)}")
        else:
            return tool
    tools[-1].repair()
    return tools[-1]


def _limits() -> list[tuple[str, int, int]]:
    """Return our own limits: the tools' defaults are higher, and raising one needs a privilege that CI lacks."""
    kinds = {"nofile": resource.RLIMIT_NOFILE, "nproc": resource.RLIMIT_NPROC}
    return [(name, *resource.getrlimit(kind)) for name, kind in kinds.items()]


def _registries_folder(place: Place, containerfile: str) -> Path:
    """Say which registries speak plain HTTP, and what a name without a registry means, beside the machine's own rules.

    Source: containers-registries.conf.d(5); the files of that folder are read in the order of their names.
    """
    folder = place.work / "registries.conf.d"
    folder.mkdir(exist_ok=True)
    machine = [_MACHINE_REGISTRIES, *sorted(_MACHINE_REGISTRIES.with_suffix(".conf.d").glob("*.conf"))]
    for file in machine[1:]:
        shutil.copyfile(file, folder / file.name)
    texts = [file.read_text() for file in machine if file.is_file()]
    lines = [] if any(_COMPLETES_NAMES.search(text) for text in texts) else [_DOCKER_COMPLETES]
    hosts = {*place.registries, *_LOOPBACK.findall(containerfile)}
    insecure = sorted(host for host in hosts if is_insecure(host, place.registries))
    lines += [f"[[registry]]\nlocation = {json.dumps(host)}\ninsecure = true\n" for host in insecure]
    (folder / "zz-parbake.conf").write_text("".join(lines))
    return folder


def is_insecure(registry: str, registries: Mapping[str, RegistryOptions]) -> bool:
    """Whether plain HTTP may be spoken to a registry: loopback hosts, as Docker does, and where the options say so."""
    if registry in registries and registries[registry].plain_http:
        return True
    host = registry.rpartition(":")[0] if re.search(r":[0-9]+$", registry) else registry
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _push(command: list[str], place: Place, to: Reference, env: dict[str, str] | None = None) -> str:
    """Push and return what the tool said; raises Denied, Unreachable or RegistryError with it."""
    try:
        return _run_logged(command, place, f"pushing {to}", env)
    except CommandFailed as error:
        raise push_error(to, error.output) from error


def push_error(to: Reference, output: str) -> RegistryError:
    """Judge what a tool said when a push failed (pure)."""
    text = output.lower()
    message = f"{to} was not pushed:\n{output}"
    if any(word in text for word in ("unauthorized", "denied", "authentication required", "no basic auth", "403")):
        return Denied(
            message, hint=f"log in: `docker login {to.registry}` (or `buildah login`), and check who may push"
        )
    if "server gave http response to https client" in text:
        return Unreachable(message, hint=f"{to.registry} speaks plain HTTP: set plain_http for it under `registries`")
    if any(word in text for word in ("connection refused", "no such host", "i/o timeout", "x509", "unreachable")):
        return Unreachable(message, hint=f"is {to.registry} the right host and port, and is it up?")
    return RegistryError(message, hint="run it again: what is there already is not sent twice")


class Docker:
    """docker buildx, with the daemon's own store and credentials."""

    name = "docker buildx"

    def __init__(self, place: Place) -> None:
        self._place = place

    def build(self, request: Request) -> None:
        """Build; see BuildTool."""
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
            *([f"--build-arg=SOURCE_DATE_EPOCH={epoch}"] if epoch else []),
        ]
        command = ["docker", "buildx", "build", *options, str(request.context)]
        _run_logged(command, self._place, f"building {request.tag}")

    def push(self, tag: str, to: Reference) -> str:
        """Push; see BuildTool."""
        if tag != str(to):
            run(["docker", "tag", tag, str(to)])
        found = _DIGEST.search(_push(["docker", "push", str(to)], self._place, to))
        if found is None:
            raise RegistryError(f"docker pushed {to} and named no digest", hint="install buildah")
        return found[1]

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

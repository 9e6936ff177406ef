"""What the tools share: requests, places, running and judging what they said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from parbake.core.errors import (
    CommandFailed,
    Denied,
    DiskFull,
    EnvironmentProblem,
    ParbakeError,
    RegistryError,
    Unreachable,
)
from parbake.core.events import Events
from parbake.core.model import Platform, RegistryOptions
from parbake.core.reference import Reference
from parbake.core.run import Deadline, Process, find

Network = Literal["private", "host", "none"]

BUILD_TIMEOUT = 4 * 3600.0
"""Seconds that a build or a push may take before parbake gives up: builds that compile take hours."""
PROBE_TIMEOUT = 30.0
"""Seconds that a tool has to say whether it works."""
_POLL = 0.1


@dataclass(frozen=True, slots=True)
class Request:
    """What to build. ``ignorefile`` and ``containerfile`` are paths; ``labels`` go into the image's config.

    ``network`` is what RUN steps reach: private, a network of their own; host, all that this machine does; none.
    None is private where that can be had.
    """

    tag: str
    context: Path
    containerfile: Path
    platform: Platform
    ignorefile: Path | None = None
    args: Mapping[str, str] = field(default_factory=dict)
    target: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    source_date_epoch: str = ""
    network: Network | None = None


class BuildTool(Protocol):
    """A program that builds images. All methods raise CommandFailed with the end of the program's output."""

    name: str

    def build(self, request: Request) -> None:
        """Build the image and keep it under its tag in the tool's store.

        Raises EnvironmentProblem where its steps cannot have the network that is asked for.
        """
        ...

    def push(self, tag: str, to: Reference) -> str:
        """Push the image and return its manifest's digest; raises RegistryError."""
        ...

    def export(self, tag: str, folder: Path) -> None:
        """Write the image as an OCI layout into a folder, which is made."""
        ...


@dataclass(frozen=True, slots=True)
class BuildPlace:
    """Where a tool works: ``work`` belongs to this run and vanishes with it, ``cache`` stays.

    ``auth_file`` holds credentials for registries (containers-auth.json(5)) that the tool does not find by itself.
    ``compression`` is that of the layers that it pushes and exports, where it leaves a choice.
    """

    work: Path
    cache: Path
    registries: Mapping[str, RegistryOptions]
    events: Events
    auth_file: Path | None = None
    compression: Literal["zstd", "gzip"] = "zstd"


def need_tool(program: str) -> None:
    """Raise EnvironmentProblem unless a program is installed."""
    if find(program) is None:
        raise EnvironmentProblem(f"{program} is not installed")


def last_line(error: ParbakeError) -> str:
    """Return the end of what a tool said, or of the error: what a choice between tools shows."""
    output = error.output if isinstance(error, CommandFailed) else ""
    return (output or error.message).strip().splitlines()[-1]


def run_logged(
    command: list[str],
    place: BuildPlace,
    what: str,
    env: dict[str, str] | None = None,
    pass_fds: tuple[int, ...] = (),
) -> str:
    """Run a long program, hand its output to the events line by line, and return it whole; raises CommandFailed."""
    log = place.work / "build.log"
    log.write_bytes(b"")
    deadline = Deadline(BUILD_TIMEOUT, what)
    with Process(command, log=log, env=env, pass_fds=pass_fds) as process, log.open("rb") as output:
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
    if (
        "could not find" in output and "netavark" in output
    ):  # Debian: recommended by what buildah needs, and needed all the same
        return CommandFailed(message, code=code, output=output, hint="apt-get install netavark")
    if "exec format error" in output.lower():
        hint = "to run another architecture's programs in a build: apt-get install qemu-user-binfmt"
        return CommandFailed(message, code=code, output=output, hint=hint)
    return CommandFailed(message, code=code, output=output, hint="the end of the build's output says why")


def push(command: list[str], place: BuildPlace, to: Reference, env: dict[str, str] | None = None) -> str:
    """Push and return what the tool said; raises Denied, Unreachable or RegistryError with it."""
    try:
        return run_logged(command, place, f"pushing {to}", env)
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
    return RegistryError(message, hint="run it again: existing layers are not sent twice")

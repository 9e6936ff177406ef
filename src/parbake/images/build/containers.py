"""buildah and podman, with a store of parbake's own, and a registries.conf(5) of this run.

That file holds the machine's own configuration and parbake's additions: which registries speak plain HTTP. A drop-in
file would say it shorter, but pushes and builds of buildah 1.39 read none from a folder that the environment names.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import resource
import shutil
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, override

from parbake.core.errors import CommandFailed, EnvironmentProblem
from parbake.core.model import RegistryOptions
from parbake.core.reference import Reference
from parbake.core.run import isolated, run
from parbake.core.sealed import bind, is_bound
from parbake.core.workspace import part_of, remove, remove_tree
from parbake.images.build.common import (
    BUILD_TIMEOUT,
    PROBE_TIMEOUT,
    BuildPlace,
    BuildTool,
    Request,
    last_line,
    need_tool,
    push,
    run_logged,
)
from parbake.images.build.network import OF_THE_HOST, Steps, steps

MACHINE = Path("/etc/containers/registries.conf")
_LOOPBACK = re.compile(r"(?:localhost|127(?:\.[0-9]+){3}|\[::1\])(?::[0-9]+)?(?=/)")
# fuse-overlayfs and others are not tried: where overlay does not work, vfs always does, only slower.
_STORAGE_DRIVERS = ("overlay", "vfs")


class Containers(BuildTool):
    """buildah or podman (they share flags and storage), with a store of parbake's own in the cache."""

    def __init__(self, name: str, place: BuildPlace, driver: str) -> None:
        self.name = name
        self.store = place.cache / name / driver
        self._driver = driver
        self._place = place
        # Whole layers pass through temporary files: in the work folder they vanish with the run, however it ends.
        self._env = {"TMPDIR": str(place.work)}
        if place.auth_file:
            self._env["REGISTRY_AUTH_FILE"] = str(place.auth_file)
        elif "REGISTRY_AUTH_FILE" not in os.environ and os.environ.get("DOCKER_CONFIG"):
            self._env["REGISTRY_AUTH_FILE"] = str(Path(os.environ["DOCKER_CONFIG"]) / "config.json")

    def command(self, *arguments: str, how: Steps = OF_THE_HOST) -> list[str]:
        """Return a command line on the private store, in private namespaces."""
        # The run root says what is mounted. It is this run's own: after a kill nothing is.
        folders = ["--root", str(self.store), "--runroot", str(self._place.work / "run")]
        own = [f"--runtime={how.runtime}"] if how.runtime else []
        verb, *rest = arguments
        words = [verb, *own, *rest] if self.name == "buildah" else [*own, verb, *rest]
        command = how.within([self.name, "--storage-driver", self._driver, *folders, *words])
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
        run(self.command("images", "--quiet"), timeout=PROBE_TIMEOUT, env=self._env)  # fails when layers are unreadable
        listing = ["containers", "--quiet"] if self.name == "buildah" else ["ps", "--all", "--external", "--quiet"]
        left = run(self.command(*listing), timeout=PROBE_TIMEOUT, env=self._env).text.split()
        if left:
            self._place.events.note(f"{self.name}: removing {len(left)} containers of a build that was killed")
            run(self.command("rm", *(["--force"] if self.name == "podman" else []), *left), env=self._env)

    @override
    def build(self, request: Request) -> None:
        with steps(self._place, request.network) as found:
            self._build(request, found)

    def _build(self, request: Request, found: Steps) -> None:
        ours = [f"--ulimit={name}={soft}:{hard}" for name, soft, hard in _limits()]
        options = [
            *found.options,
            *ours,
            "--layers",
            "--force-rm",
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
        file = self._place.work / "registries.conf"
        containerfile = request.containerfile.read_text(errors="replace")
        file.write_text(registries_conf(containerfile, self._place.registries))
        env = {**self._env, "CONTAINERS_REGISTRIES_CONF": str(file)}
        command = self.command("build", *options, str(request.context), how=found)
        run_logged(command, self._place, f"building {request.tag}", env, found.handles)

    @override
    def push(self, tag: str, to: Reference) -> str:
        file = self._place.work / "digest"
        options = [f"--digestfile={file}", *self._form, *self._certificates(to)]
        if is_insecure(to.registry, self._place.registries):
            options.append("--tls-verify=false")
        push(self.command("push", *options, tag, f"docker://{to}"), self._place, to, self._env)
        return file.read_text().strip()

    @override
    def export(self, tag: str, folder: Path) -> None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # A colon in the path would end it, so the folder is named relative to where the program stands.
        target = f"oci:{folder.name}:{tag}"
        run(self.command("push", *self._form, tag, target), timeout=BUILD_TIMEOUT, env=self._env, cwd=folder.parent)

    @property
    def _form(self) -> list[str]:
        return ["--format=oci", f"--compression-format={self._place.compression}"]

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


def open_store(name: str, place: BuildPlace) -> Containers:
    """Return the tool on the fastest storage that works here; raises EnvironmentProblem or CommandFailed."""
    need_tool(name)
    folder = place.cache / name
    if os.path.lexists(folder) and not is_bound(folder):
        place.events.warn(f"{folder} was not made by this user on this machine: its layers are not used")
        try:
            remove(folder)
        except OSError as error:
            raise EnvironmentProblem(
                f"{folder} cannot be removed: {error}", hint=f"remove it: buildah unshare rm -r {folder}"
            ) from error
    part_of(place.cache, name)
    bind(folder)
    tools = [Containers(name, place, driver) for driver in _STORAGE_DRIVERS]
    for tool in tools[:-1]:
        try:
            tool.repair()
        except CommandFailed as error:
            place.events.note(f"{name}: no overlay storage here, so slower vfs: {last_line(error)}")
        else:
            return tool
    tools[-1].repair()
    return tools[-1]


def _limits() -> list[tuple[str, int, int]]:
    """Return our own limits: the tools' defaults are higher, and raising one needs a privilege that CI lacks."""
    kinds = {"nofile": resource.RLIMIT_NOFILE, "nproc": resource.RLIMIT_NPROC}
    return [(name, *resource.getrlimit(kind)) for name, kind in kinds.items()]


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


def registries_conf(containerfile: str, registries: Mapping[str, RegistryOptions], machine: Path = MACHINE) -> str:
    """Return the text of a registries.conf for a build; raises EnvironmentProblem when the machine's cannot be read.

    A name without a registry (``FROM debian``) is looked for where the machine says, else in Docker Hub, which is what
    the author of a Containerfile means by it.
    """
    merged: dict[str, Any] = {"unqualified-search-registries": ["docker.io"], "registry": [], "aliases": {}}
    for file in [machine, *sorted(machine.with_suffix(".conf.d").glob("*.conf"))]:
        if file.is_file():
            _merge(merged, _read(file))
    ours = {*registries, *_LOOPBACK.findall(containerfile)}
    own = [{"location": host, "insecure": True} for host in sorted(ours) if is_insecure(host, registries)]
    _merge(merged, {"registry": own})
    tables = {"registry": merged.pop("registry"), "aliases": merged.pop("aliases")}
    lines = [f"{json.dumps(key)} = {_toml(value)}" for key, value in merged.items()]
    for table in tables["registry"]:
        lines += ["[[registry]]", *(f"{json.dumps(key)} = {_toml(value)}" for key, value in table.items())]
    lines += ["[aliases]", *(f"{json.dumps(key)} = {_toml(value)}" for key, value in tables["aliases"].items())]
    return "\n".join(lines) + "\n"


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise EnvironmentProblem(f"{file} cannot be read: {error}", hint="see registries.conf(5)") from error


def _merge(merged: dict[str, Any], more: dict[str, Any]) -> None:
    """Merge as containers-registries.conf.d(5): registries and aliases by name, everything else as a whole."""
    for key, value in more.items():
        if key == "registry":
            known = {_name(table): table for table in merged["registry"]}
            merged["registry"] = list(
                (known | {_name(table): {**known.get(_name(table), {}), **table} for table in value}).values()
            )
        elif key == "aliases":
            merged["aliases"] |= value
        else:
            merged[key] = value


def _name(registry: dict[str, Any]) -> str:
    return str(registry.get("prefix") or registry.get("location"))


def _toml(value: object) -> str:
    """Write a value: JSON's strings, numbers, booleans and lists are TOML's; tables are written inline."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(key)} = {_toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return json.dumps(value)

"""Which registries speak plain HTTP, for buildah and podman: a registries.conf(5) of this run.

It holds the machine's own configuration and parbake's additions. A drop-in file would say it shorter, but pushes and
builds of buildah 1.39 read none from a folder that the environment names.
"""

from __future__ import annotations

import ipaddress
import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from parbake.core.errors import EnvironmentProblem
from parbake.core.model import RegistryOptions

MACHINE = Path("/etc/containers/registries.conf")
_LOOPBACK = re.compile(r"(?:localhost|127(?:\.[0-9]+){3}|\[::1\])(?::[0-9]+)?(?=/)")


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

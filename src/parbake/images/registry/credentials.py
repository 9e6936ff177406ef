"""Where credentials come from: Docker's and Podman's files, their helper programs, the environment, AWS.

Sources: ``docker login`` (config.json: auths, credHelpers, credsStore), docker-credential-helpers (the ``get``
protocol), containers-auth.json(5) (auth.json, keys that name a repository). A secret lives in
memory only; helpers give theirs on standard output.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from parbake.core.errors import Denied, EnvironmentProblem
from parbake.core.model import RegistryOptions
from parbake.core.reference import DOCKER_HUB
from parbake.core.roles import Role
from parbake.core.run import find, run
from parbake.images.registry import ecr

_HUB_KEYS = frozenset({DOCKER_HUB, "index.docker.io", "registry-1.docker.io"})
_HUB_SERVER = "https://index.docker.io/v1/"
# With this user name a helper's secret is an identity token (docker/cli, credentials/native_store.go).
_TOKEN_USER = "<token>"  # noqa: S105 - the name of a kind of user
_HELPER_SECONDS = 60.0
_NOT_FOUND = "credentials not found"


@dataclass(frozen=True, slots=True)
class Credentials:
    """A way to prove who asks: user and password, an identity (refresh) token, or a ready bearer token."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    bearer: str = field(default="", repr=False)
    source: str = ""

    @property
    def basic(self) -> str:
        """The Authorization header of the Basic scheme (RFC 7617)."""
        pair = f"{self.username}:{self.password}".encode()
        return f"Basic {base64.b64encode(pair).decode()}"

    @property
    def secrets(self) -> tuple[str, ...]:
        """Every string that must not be shown."""
        words = (self.password, self.identity_token, self.bearer, self.basic.removeprefix("Basic "))
        return tuple(word for word in words if word)


def find_credentials(
    host: str, repository: str, options: RegistryOptions, role: Role | None = None
) -> Credentials | None:
    """Return the credentials for a repository, or None for none; AWS is asked in ``role``, if there is one.

    Raises EnvironmentProblem when a helper, boto3 or a variable is missing, Denied when a helper or AWS says no.
    """
    match options.credentials:
        case "none":
            return None
        case "environment":
            return _from_environment(host)
        case "docker":
            return _from_files(host, repository)
        case "ecr":
            target = ecr.parse(host)
            if target is None:
                raise EnvironmentProblem(
                    f"{host} is not an ECR host", hint=f"remove registries.{host}.credentials: ecr, or write auto"
                )
            return _from_ecr(host, target, role)
        case "auto":
            return _from_files(host, repository) or from_aws(host, role)


def _from_environment(host: str) -> Credentials:
    username, password = os.environ.get("PARBAKE_USERNAME", ""), os.environ.get("PARBAKE_PASSWORD", "")
    if not username or not password:
        raise EnvironmentProblem(
            f"{host}: PARBAKE_USERNAME and PARBAKE_PASSWORD are not both set",
            hint=f"set them, or change registries.{host}.credentials from environment to auto",
        )
    return Credentials(username, password, source="PARBAKE_USERNAME")


def from_aws(host: str, role: Role | None = None) -> Credentials | None:
    """Return a new login for a private ECR registry, None for other hosts. Raises Denied, EnvironmentProblem."""
    target = ecr.parse(host)
    if target is None or target.public:
        return None  # ECR Public serves the anonymous as well, and needs a permission that few roles have
    return _from_ecr(host, target, role)


def _from_ecr(host: str, target: ecr.EcrHost, role: Role | None) -> Credentials:
    username, password = ecr.login(host, target, role)
    return Credentials(username, password, source="AWS")


def files() -> tuple[Path, ...]:
    """Return the files that are looked into, first one first, whether they exist or not."""
    found: list[Path] = []
    if explicit := os.environ.get("REGISTRY_AUTH_FILE"):
        found.append(Path(explicit))
    found.append(Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker") / "config.json")
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        found.append(Path(runtime) / "containers" / "auth.json")
    found.append(Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "containers" / "auth.json")
    return tuple(found)


def _from_files(host: str, repository: str) -> Credentials | None:
    for path in files():
        try:
            document = json.loads(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise EnvironmentProblem(f"{path}: {error.strerror}", hint="make it readable, or remove it") from error
        except ValueError as error:
            raise EnvironmentProblem(f"{path} is not JSON", hint="repair it, or log in again") from error
        if isinstance(document, dict) and (found := _from_document(document, host, repository, path)):
            return found
    return None


def _from_document(document: dict[str, Any], host: str, repository: str, path: Path) -> Credentials | None:
    helpers = document.get("credHelpers") or {}
    names = _HUB_KEYS if host in _HUB_KEYS else {host}
    helper = next((value for key, value in helpers.items() if _bare(key) in names), "") or document.get("credsStore")
    if helper and (found := _from_helper(str(helper), host, path)):
        return found
    entries = {_bare(key): value for key, value in (document.get("auths") or {}).items()}
    for key in _keys(host, repository):
        entry = entries.get(key)
        if isinstance(entry, dict) and (found := _from_entry(entry, f"{path}: {key}")):
            return found
    return None


def _keys(host: str, repository: str) -> Iterator[str]:
    """Name what an entry may be called, the most specific first: host/a/b, host/a, host."""
    for name in sorted(_HUB_KEYS) if host in _HUB_KEYS else [host]:
        parts = [name, *repository.split("/")]
        for length in range(len(parts), 0, -1):
            yield "/".join(parts[:length])


def _bare(key: str) -> str:
    """Return a key without what ``docker login`` wraps it in: https://index.docker.io/v1/ is index.docker.io."""
    bare = key.removeprefix("https://").removeprefix("http://").rstrip("/")
    return bare.removesuffix("/v1").removesuffix("/v2")


def _from_entry(entry: dict[str, Any], where: str) -> Credentials | None:
    identity, bearer = str(entry.get("identitytoken") or ""), str(entry.get("registrytoken") or "")
    username, password = str(entry.get("username") or ""), str(entry.get("password") or "")
    if packed := entry.get("auth"):
        try:
            plain = base64.b64decode(str(packed), validate=True).decode()
        except (binascii.Error, UnicodeDecodeError) as error:
            raise EnvironmentProblem(f"{where}: the auth value is not base64", hint="log in again") from error
        username, _, password = plain.partition(":")
        password = password.rstrip("\0")
    if not (identity or bearer or (username and password)):
        return None
    return Credentials(username, password, identity, bearer, source=where)


def _from_helper(name: str, host: str, path: Path) -> Credentials | None:
    program = f"docker-credential-{name}"
    where = f"{program} (named by {path})"
    if "/" in name or find(program) is None:
        raise EnvironmentProblem(
            f"{host}: the credential helper {where} is not installed",
            hint=f"install it, remove it from {path}, or set registries.{host}.credentials",
        )
    server = _HUB_SERVER if host in _HUB_KEYS else host
    # Helpers need their own settings (AWS_PROFILE, CLOUDSDK_…): they get the user's environment, as from Docker.
    env = {key: value for key, value in os.environ.items() if key != "PATH" and not key.startswith("PARBAKE_")}
    done = run([program, "get"], stdin=server.encode(), timeout=_HELPER_SECONDS, env=env, check=False, may_ask=True)
    if done.code:
        if _NOT_FOUND in (done.text + done.stderr).lower():
            return None
        raise Denied(
            f"{host}: {where} ended with code {done.code}",
            hint=f"run `echo {server} | {program} get` to see why",
        )
    try:
        answer = json.loads(done.stdout)
        username, secret = str(answer["Username"]), str(answer["Secret"])
    except (ValueError, KeyError, TypeError) as error:
        raise EnvironmentProblem(f"{host}: {where} answers with something other than credentials") from error
    if not secret:
        return None
    if username == _TOKEN_USER:
        return Credentials(identity_token=secret, source=where)
    return Credentials(username, secret, source=where)

"""Build an image from a Containerfile and bring it where its reference says, unless it is there already.

The image carries a label with the digest of all that went into it (see ``context.digest``). When the reference resolves
to an image with that very label, nothing is built: on any machine, without a state file. A reference below
``localhost/`` has no registry: its image is exported as an OCI layout into parbake's cache and read from there.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from parbake.core import sealed
from parbake.core.emulation import runnable
from parbake.core.errors import BadReference, Denied, InputError, NoSuchImage, RegistryError
from parbake.core.events import Events
from parbake.core.files import read_file
from parbake.core.model import MIB, Digest, Frozen, Image, Platform, RegistryOptions
from parbake.core.reference import Reference
from parbake.core.roles import Role
from parbake.core.workspace import lock, part_of, publish, remove_leftovers, remove_tree, work_folder
from parbake.images.build import STORES, BuildPlace, BuildTool, Request, choose
from parbake.images.build.context import BuildSpec, IgnoreRules, digest
from parbake.images.registry import Layout, Registry
from parbake.images.registry.credentials import files as auth_files
from parbake.images.registry.credentials import find_credentials
from parbake.images.registry.documents import load
from parbake.images.registry.ecr import ensure_repository
from parbake.images.registry.strictjson import CONFIG

__all__ = ["LABEL", "BuildSpec", "BuiltImage", "build", "build_key", "clear", "existing", "local_layout"]

LABEL = "dev.parbake.build"
"""Label of the image's config whose value is the digest of the build's inputs."""
FOUND_BY_US = frozenset({"AWS", "PARBAKE_USERNAME"})
"""Sources of credentials that buildah and podman do not look into."""
_FOLDER = "images"
# The layout before the newest may be what another bake is reading right now.
_KEPT_LAYOUTS = 2


class BuiltImage(Frozen):
    """An image that is where its reference says.

    ``key`` is the digest of the build's inputs, ``builder`` the program that built it, empty when it was ``reused``.
    """

    image: Image
    key: Digest
    reused: bool = False
    builder: str = ""


def build_key(spec: BuildSpec, platform: Platform) -> str:
    """Return the digest of a build's inputs; raises InputError when the context cannot be read."""
    return digest(spec, platform, source_date_epoch=os.environ.get("SOURCE_DATE_EPOCH", ""))


def existing(reference: Reference, platform: Platform, key: str, *, registry: Registry, cache: Path) -> Image | None:
    """Return the image behind a reference when its inputs were ``key``, without building: for plans.

    Raises Unreachable when the registry does not answer.
    """
    try:
        if reference.is_local:
            return _from_layout(reference, platform, local_layout(reference, platform, key, cache))
        image = registry.resolve(reference, platform)
        return image if _label(registry, image) == key else None
    except (NoSuchImage, Denied):
        # Registries deny what is not there yet, so as to say nothing about names; a push will tell.
        return None


def build(
    spec: BuildSpec,
    reference: Reference,
    platform: Platform,
    *,
    options: Mapping[str, RegistryOptions],
    events: Events,
    work: Path,
    cache: Path,
    force: bool = False,
    role: Role | None = None,
) -> BuiltImage:
    """Make sure that the reference names an image built from this context, and return it.

    ``work`` is a folder of this run, ``cache`` keeps the builder's store and the layouts of ``localhost/`` images;
    ``force`` builds even when nothing changed (base images and remote files may have). ECR is asked in ``role``. With
    ``SOURCE_DATE_EPOCH`` set, layers are as reproducible as the builder can make them; not by default, since buildah
    then gives every file that time, and programs that compare times (Python's byte code) start slower.

    Raises InputError (context, reference), EnvironmentProblem (nothing to build with), CommandFailed (the build
    failed, with the end of its output), DiskFull, Denied, Unreachable, RegistryError.
    """
    if reference.digest:
        raise BadReference(
            f"{reference}: an image that is built gets its digest from the build",
            hint="name it by a tag, without @sha256:…",
        )
    key = build_key(spec, platform)
    # Asked is the registry itself: a mirror's answer says nothing about where pushes go.
    direct = {host: option.model_copy(update={"mirrors": ()}) for host, option in options.items()}
    with Registry(direct, events=events, role=role) as registry:

        def reuse() -> BuiltImage | None:
            image = None if force else existing(reference, platform, key, registry=registry, cache=cache)
            return None if image is None else BuiltImage(image=image, key=key, reused=True)

        if (built := reuse()) is not None:
            events.note(f"{reference}: context and arguments are unchanged, not built again")
            return built
        with _locked(cache):
            if (built := reuse()) is not None:  # another run built it while we waited
                return built
            folder = _fresh(work / f"build-{key[7:19]}")
            try:
                remove_leftovers(cache)  # of killed builds, which may hold credentials
                auth_file = _write_auth_file(folder / "auth.json", reference, options, role)
                tool = choose(BuildPlace(folder, cache, options, events, auth_file, spec.compression))
                tag = f"{reference.name}:{reference.tag}"
                with events.stage("build", f"build {reference}"), runnable(platform, needed=False):
                    tool.build(_request(spec, tag, platform, key))
                with events.stage("push", f"{'export' if reference.is_local else 'push'} {reference}"):
                    _make_repository(reference, options, events, role)
                    image = _deliver(tool, tag, reference, platform, key, registry=registry, cache=cache)
            finally:
                remove_tree(folder)  # it may hold credentials
    return BuiltImage(image=image, key=key, builder=tool.name)


def _make_repository(
    reference: Reference, options: Mapping[str, RegistryOptions], events: Events, role: Role | None
) -> None:
    """Make the repository where the registry wants it made first: that is ECR."""
    chosen = options.get(reference.registry, RegistryOptions())
    if ensure_repository(reference.registry, reference.repository, chosen, role):
        events.note(f"made the repository {reference.name}")


def clear(cache: Path) -> None:
    """Remove the layers that builders keep to be faster, after any build under way; ``localhost/`` images stay."""
    with _locked(cache):
        for store in STORES:
            remove_tree(cache / store)


def _locked(cache: Path) -> AbstractContextManager[None]:
    return lock(part_of(cache, _FOLDER) / "lock", what=f"the builder's store in {cache}")


def _request(spec: BuildSpec, tag: str, platform: Platform, key: str) -> Request:
    return Request(
        tag=tag,
        context=spec.context.resolve(),
        containerfile=spec.file.resolve(),
        platform=platform,
        ignorefile=IgnoreRules.find(spec.context, spec.file).source,
        args=spec.args,
        target=spec.target,
        labels={LABEL: key},
        source_date_epoch=os.environ.get("SOURCE_DATE_EPOCH", ""),
        network=spec.network,
    )


def _write_auth_file(
    path: Path, reference: Reference, options: Mapping[str, RegistryOptions], role: Role | None = None
) -> Path | None:
    """Write the credentials that parbake finds and the builder would not (AWS, the environment), beside its own.

    Returns None when there are none: the builder then reads its own files.
    """
    hosts = {reference.registry: reference.repository} if not reference.is_local else {}
    hosts |= {host: "" for host in options if host not in hosts}
    found: dict[str, dict[str, str]] = {}
    for host, repository in hosts.items():
        credentials = find_credentials(host, repository, options.get(host, RegistryOptions()), role)
        if credentials and credentials.source in FOUND_BY_US:
            found[host] = {"auth": credentials.basic.removeprefix("Basic ")}
    if not found:
        return None
    own = next((file for file in auth_files() if file.is_file()), None)
    document: dict[str, Any] = json.loads(own.read_bytes()) if own else {}
    helpers = {host: name for host, name in (document.get("credHelpers") or {}).items() if host not in found}
    document |= {"auths": {**(document.get("auths") or {}), **found}, "credHelpers": helpers}
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "w") as file:
        json.dump(document, file)
    return path


def _deliver(
    tool: BuildTool, tag: str, reference: Reference, platform: Platform, key: str, *, registry: Registry, cache: Path
) -> Image:
    if reference.is_local:
        layout = local_layout(reference, platform, key, cache)
        _export(tool, tag, layout)
        return Layout(layout).resolve(reference, platform)
    pushed = tool.push(tag, reference)
    by_digest = Reference(registry=reference.registry, repository=reference.repository, digest=pushed)
    image = registry.resolve(by_digest, platform).model_copy(update={"reference": reference})
    if _label(registry, image) != key:
        raise RegistryError(f"{by_digest}: the registry holds another image than the one that was pushed")
    return image


def local_layout(reference: Reference, platform: Platform, key: str, cache: Path) -> Path:
    """Return where the OCI layout of a ``localhost/`` image lies: a folder that is complete when it is there."""
    name = f"{reference.name}:{reference.tag}-{platform}".replace("/", "_").replace(":", "_")
    return cache / _FOLDER / name / key[7:39]


def _export(tool: BuildTool, tag: str, layout: Path) -> None:
    part_of(layout.parents[2], _FOLDER, layout.parent.name)
    remove_leftovers(layout.parent)
    with work_folder(layout.parent, "export") as beside:
        tool.export(tag, beside / "layout")
        remove_tree(layout)  # a broken one, or one that `force` replaces
        sealed.seal(layout, _digest_of(beside / "layout"))
        publish(beside / "layout", layout)
    others = [path for path in layout.parent.iterdir() if path.is_dir() and len(path.name) == len(layout.name)]
    for old in sorted(others, key=lambda path: path.stat().st_mtime_ns, reverse=True)[_KEPT_LAYOUTS:]:
        remove_tree(old)
        sealed.loosen(old)


def _digest_of(layout: Path) -> str:
    """Return the digest of a layout's index: all else in it is named by digests, and compared with them when read."""
    return hashlib.sha256(read_file(layout / "index.json", MIB)).hexdigest()


def _from_layout(reference: Reference, platform: Platform, path: Path) -> Image | None:
    if not path.is_dir():
        return None
    try:
        if sealed.is_sealed(path, _digest_of(path)):
            return Layout(path).resolve(reference, platform)
    except (RegistryError, InputError, OSError):
        pass
    return None  # damaged, or made by others: built again


def _label(registry: Registry, image: Image) -> str:
    config = load(f"{image.reference}: the image's config", registry.source(image).read(image.config), CONFIG)
    labels = (config.get("config") or {}).get("Labels") or {}
    return str(labels.get(LABEL, ""))


def _fresh(folder: Path) -> Path:
    remove_tree(folder)
    folder.mkdir(parents=True)
    return folder

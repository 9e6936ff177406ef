"""Manifests, indexes and configs: read, bounded, and refused in clear words when they are no container image.

Sources: OCI image specification (manifest.md, image-index.md, config.md, media-types.md); distribution's image manifest
version 2 schema 2. A document that could be read as both an index and a manifest is refused (CVE-2021-41190).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Annotated, Any, NoReturn

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from parbake.errors import BadContent, InputError, NoSuchImage
from parbake.model import MIB, Descriptor, Digest
from parbake.printable import word

MANIFEST_LIMIT = 4 * MIB
"""Bytes of a manifest or index: the OCI distribution specification asks registries to take at most this much."""
CONFIG_LIMIT = 16 * MIB
"""Bytes of a config: more would fit into no gRPC message of containerd's, so no kubelet could look at it."""

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
_SCHEMA1 = "application/vnd.docker.distribution.manifest.v1+"

MANIFESTS = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
INDEXES = frozenset({OCI_INDEX, DOCKER_LIST})
DOCUMENTS = MANIFESTS | INDEXES
ACCEPT = f"{OCI_INDEX}, {DOCKER_LIST}, {OCI_MANIFEST}, {DOCKER_MANIFEST}"

_LAYER_PREFIXES = ("application/vnd.oci.image.layer.v1.tar", "application/vnd.docker.image.rootfs.diff.tar")
_LAYERS = frozenset(
    prefix + suffix for prefix in _LAYER_PREFIXES for suffix in ("", "+gzip", "+zstd", ".gzip", ".zstd")
)
_NOT_DISTRIBUTED = (
    "application/vnd.oci.image.layer.nondistributable.",
    "application/vnd.docker.image.rootfs.foreign.",
)
# What else lies in registries, by the media type of its config.
_KNOWN_ARTIFACTS = {
    "application/vnd.cncf.helm.config.v1+json": "a Helm chart",
    "application/vnd.oci.empty.v1+json": "an artifact without a config (such as a signature or an SBOM)",
    "application/vnd.wasm.config.v0+json": "a WebAssembly module",
    "application/vnd.docker.plugin.v1+json": "a Docker plugin",
}


def _absent_is_empty(value: Any) -> Any:
    return () if value is None else value


class _Loose(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", alias_generator=to_camel)


type _Word = Annotated[str, AfterValidator(word)]
"""A word that may come to be shown; what is no printable character in it stands there escaped."""


class Words(_Loose):
    """A platform as a document spells it; an absent word is empty."""

    os: _Word = ""
    architecture: _Word = ""
    variant: _Word | None = ""


class Entry(_Loose):
    """A descriptor in a document."""

    media_type: _Word = ""
    digest: Digest
    size: int = Field(ge=0)
    platform: Words | None = None
    annotations: dict[str, str] | None = None
    urls: tuple[str, ...] | None = None
    artifact_type: str | None = None

    @property
    def descriptor(self) -> Descriptor:
        """The entry without its extras."""
        return Descriptor(media_type=self.media_type, digest=self.digest, size=self.size)

    @property
    def is_attestation(self) -> bool:
        """Whether it is something about an image (buildkit's attestations, artifacts) and no image itself."""
        if self.artifact_type or "vnd.docker.reference.type" in (self.annotations or {}):
            return True
        return self.platform is not None and "unknown" in {self.platform.os, self.platform.architecture}


type _Entries = Annotated[tuple[Entry, ...], BeforeValidator(_absent_is_empty)]


class Index(_Loose):
    """An image index or a Docker manifest list."""

    manifests: _Entries = ()


class Manifest(_Loose):
    """An image manifest."""

    config: Entry
    layers: _Entries = ()


class _RootFs(_Loose):
    type: str = "layers"
    diff_ids: Annotated[tuple[Digest, ...], BeforeValidator(_absent_is_empty)] = Field(default=(), alias="diff_ids")


class Config(_Loose):
    """An image configuration, as far as a bake needs it."""

    os: _Word = ""
    architecture: _Word = ""
    variant: _Word | None = ""
    rootfs: _RootFs


@dataclass(frozen=True, slots=True)
class Document:
    """A manifest or an index, as it was delivered and as it reads."""

    descriptor: Descriptor
    body: bytes
    content: Index | Manifest


def sha256(data: bytes) -> str:
    """Return the digest of ``data``."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def check(what: str, data: bytes, digest: str, size: int | None = None) -> None:
    """Raise BadContent unless ``data`` is what its digest (and size) says."""
    if size is not None and len(data) != size:
        raise BadContent(f"{what}: {len(data)} bytes were delivered, its descriptor says {size}", hint=_TAMPERED)
    if (actual := sha256(data)) != digest:
        raise BadContent(f"{what}: the content delivered has the digest {actual}, not {digest}", hint=_TAMPERED)


_TAMPERED = "something between here and the registry changes content: try without the proxy or mirror"


def read_document(what: str, body: bytes, content_type: str) -> Document:
    """Read a manifest or an index; ``content_type`` is what the server or the descriptor calls it (may be empty).

    Raises BadContent when it is neither, NoSuchImage for schema 1 and for artifacts that are no image.
    """
    content_type = content_type.partition(";")[0].strip().lower()
    try:
        raw = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadContent(
            f"{what}: what the registry delivers is no manifest (not JSON)",
            hint="does the host name a registry, and not a web page or a login portal?",
        ) from error
    if not isinstance(raw, dict):
        raise BadContent(f"{what}: the manifest is no JSON object")
    media_type = _media_type(what, raw, content_type)
    descriptor = Descriptor(media_type=media_type, digest=sha256(body), size=len(body))
    try:
        content = (Index if media_type in INDEXES else Manifest).model_validate(raw)
    except ValidationError as error:
        _refuse(what, "manifest", error)
    return Document(descriptor, body, content)


def _media_type(what: str, raw: dict[str, Any], content_type: str) -> str:
    own = raw.get("mediaType") or ""
    if content_type.startswith(_SCHEMA1) or raw.get("schemaVersion") == 1 or "fsLayers" in raw:
        raise NoSuchImage(
            f"{what}: the image is in the old schema 1 format, which containerd 2 and Docker 28 no longer take",
            hint="rebuild it, or convert it with `skopeo copy --format v2s2`",
        )
    if not isinstance(own, str):
        raise BadContent(f"{what}: the manifest is malformed: its mediaType is no text")
    if own in DOCUMENTS and content_type in DOCUMENTS and own != content_type:
        raise BadContent(f"{what}: the manifest calls itself {own}, the registry calls it {content_type}")
    index_like, image_like = bool(raw.get("manifests")), bool(raw.get("layers") or raw.get("config"))
    media_type = word(own) or (content_type if content_type in DOCUMENTS else "")
    if not media_type:
        media_type = OCI_INDEX if "manifests" in raw and not image_like else OCI_MANIFEST
    if media_type not in DOCUMENTS:
        raise NoSuchImage(f"{what}: {media_type} is no container image", hint="name an image, not another artifact")
    if (image_like if media_type in INDEXES else index_like) or (index_like and image_like):
        raise BadContent(f"{what}: the document is both an index and a manifest, so readers would not agree on it")
    return media_type


def check_image(what: str, manifest: Manifest) -> None:
    """Raise NoSuchImage or InputError unless config and layers are those of a container image that can be baked."""
    config = manifest.config.media_type
    if config not in {OCI_CONFIG, DOCKER_CONFIG}:
        kind = _KNOWN_ARTIFACTS.get(config, f"an artifact of another kind (its config is {config or 'unnamed'})")
        raise NoSuchImage(f"{what}: there is no container image but {kind}", hint="name a container image")
    for number, layer in enumerate(manifest.layers, 1):
        if layer.media_type.startswith(_NOT_DISTRIBUTED) or layer.urls:
            raise InputError(
                f"{what}: layer {number} ({layer.digest}) is not distributable: its content lies outside the registry",
                hint="only Windows base images have such layers; rebuild the image on a base that can be distributed",
            )
        if layer.media_type not in _LAYERS:
            raise InputError(
                f"{what}: layer {number} ({layer.digest}) has the media type {layer.media_type or '(none)'}",
                hint="layers are tar, tar+gzip or tar+zstd; decrypt an encrypted image before you bake it",
            )


def read_config(what: str, body: bytes) -> Config:
    """Read an image configuration; raises BadContent, or NoSuchImage when it has no root file system."""
    try:
        raw = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadContent(f"{what}: the image's config is not JSON") from error
    if not isinstance(raw, dict) or not isinstance(raw.get("rootfs"), dict):
        raise NoSuchImage(f"{what}: the config has no rootfs, so this is no container image", hint="name an image")
    try:
        config = Config.model_validate(raw)
    except ValidationError as error:
        _refuse(what, "config", error)
    if config.rootfs.type != "layers":
        raise BadContent(f"{what}: the config's rootfs is of type {config.rootfs.type!r}, not 'layers'")
    return config


def _refuse(what: str, kind: str, error: ValidationError) -> NoReturn:
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    raise BadContent(
        f"{what}: the {kind} is malformed: {where}: {first['msg']}", hint="rebuild or push the image again"
    ) from error

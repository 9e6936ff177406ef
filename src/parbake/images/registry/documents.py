"""Manifests, indexes and configs: read, bounded, and refused in clear words unless they are a container image.

Sources: OCI image specification (manifest.md, image-index.md, config.md, media-types.md); distribution's image manifest
version 2 schema 2. A document that could be read as both an index and a manifest is refused (CVE-2021-41190).
"""

import hashlib
from dataclasses import dataclass
from typing import Annotated, Any, NoReturn

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from parbake.core.errors import BadContent, InputError, NoSuchImage
from parbake.core.model import MIB, TIB, Descriptor, Digest
from parbake.core.printable import word
from parbake.images.registry import strictjson

MANIFEST_LIMIT = 4 * MIB
"""Bytes of a manifest or index: the OCI distribution specification asks registries to take at most this much."""
CONFIG_LIMIT = 16 * MIB
"""Bytes of a config: more would fit into no gRPC message of containerd's, so no kubelet could look at it."""

LARGEST_IMAGE = TIB
"""Bytes that an image's layers may take in a registry: twenty times the largest layer that ECR takes (52,000 MiB)."""
MOST_LAYERS = 500
"""Layers of an image: the kernel mounts no overlay of more (``OVL_MAX_STACK``, fs/overlayfs/params.h), so that no node
could start it; Docker builds at most 127."""

DEEPEST = 4
"""Documents on the way from a name to a manifest: an index in an index is rare, a third level has not been seen."""
MOST_DOCUMENTS = 1000
"""Manifests, indexes and configs that are read to find one image: each costs a request, and an index can list more."""

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
"""A word that may come to be shown; what is not a printable character in it stands there escaped."""


class Words(_Loose):
    """A platform as a document spells it; an absent word is empty."""

    os: _Word = ""
    architecture: _Word = ""
    variant: _Word | None = ""


class IndexEntry(_Loose):
    """A descriptor in a document. ``size`` is written as a whole number, which is all that Go takes for one."""

    media_type: _Word = ""
    digest: Digest
    size: int = Field(strict=True, ge=0, le=LARGEST_IMAGE)
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


type _Entries = Annotated[tuple[IndexEntry, ...], BeforeValidator(_absent_is_empty)]


class _Versioned(_Loose):
    schema_version: int | None = Field(default=None, strict=True, ge=0, le=2)


class Index(_Versioned):
    """An image index or a Docker manifest list."""

    manifests: _Entries = ()


class Manifest(_Versioned):
    """An image manifest."""

    config: IndexEntry
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
class FetchedDocument:
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


def load(what: str, body: bytes, shape: strictjson.Shape | None = None) -> Any:
    """Return what a JSON document holds; raises BadContent when readers would not agree on it, else as ``strictjson``.

    ``what`` names the document in the error.
    """
    try:
        return strictjson.load(body, shape)
    except strictjson.AmbiguousJson as error:
        raise BadContent(
            f"{what} would be read differently by containerd: {error}",
            hint="do not use this image: no build tool writes such a document, an attacker would",
        ) from error


def read_document(what: str, body: bytes, content_type: str) -> FetchedDocument:
    """Read a manifest or an index; ``content_type`` is what the server or the descriptor calls it (may be empty).

    Raises BadContent when it is neither, NoSuchImage for schema 1 and for artifacts that are not images.
    """
    content_type = content_type.partition(";")[0].strip().lower()
    try:
        raw = load(f"{what}: the manifest", body, strictjson.DOCUMENT)
    except (ValueError, RecursionError) as error:
        raise BadContent(
            f"{what}: the registry did not deliver a manifest (not JSON)",
            hint="is that host a registry, rather than a web page or a login portal?",
        ) from error
    if not isinstance(raw, dict):
        raise BadContent(f"{what}: the manifest is not a JSON object")
    media_type = _media_type(what, raw, content_type)
    descriptor = Descriptor(media_type=media_type, digest=sha256(body), size=len(body))
    try:
        content = (Index if media_type in INDEXES else Manifest).model_validate(raw)
    except ValidationError as error:
        _refuse(what, "manifest", error)
    return FetchedDocument(descriptor, body, content)


def _media_type(what: str, raw: dict[str, Any], content_type: str) -> str:
    own = raw.get("mediaType") or ""
    if content_type.startswith(_SCHEMA1) or raw.get("schemaVersion") == 1 or "fsLayers" in raw:
        raise NoSuchImage(
            f"{what}: the image is in the old schema 1 format, which containerd 2 and Docker 28 no longer take",
            hint="rebuild it, or convert it with `skopeo copy --format v2s2`",
        )
    if not isinstance(own, str):
        raise BadContent(f"{what}: the manifest is malformed: its mediaType is not text")
    if own in DOCUMENTS and content_type in DOCUMENTS and own != content_type:
        raise BadContent(f"{what}: the manifest calls itself {own}, the registry calls it {content_type}")
    index_like, image_like = bool(raw.get("manifests")), bool(raw.get("layers") or raw.get("config"))
    media_type = word(own) or (content_type if content_type in DOCUMENTS else "")
    if not media_type:
        media_type = OCI_INDEX if "manifests" in raw and not image_like else OCI_MANIFEST
    if media_type not in DOCUMENTS:
        raise NoSuchImage(f"{what}: {media_type} is not a container image", hint="name an image, not another artifact")
    if (image_like if media_type in INDEXES else index_like) or (index_like and image_like):
        raise BadContent(
            f"{what}: the document is both an index and a manifest, so different readers could disagree on it"
        )
    return media_type


def check_image(what: str, manifest: Manifest) -> None:
    """Raise NoSuchImage or InputError unless config and layers are those of a container image that can be baked."""
    config = manifest.config.media_type
    if config not in {OCI_CONFIG, DOCKER_CONFIG}:
        kind = _KNOWN_ARTIFACTS.get(config, f"an artifact of another kind (its config is {config or 'unnamed'})")
        raise NoSuchImage(f"{what}: this is not a container image but {kind}", hint="name a container image")
    if len(manifest.layers) > MOST_LAYERS:
        raise InputError(
            f"{what}: the image has {len(manifest.layers)} layers, and Linux mounts at most {MOST_LAYERS}",
            hint="rebuild it with fewer layers, or squash them",
        )
    if (size := sum(layer.size for layer in manifest.layers)) > LARGEST_IMAGE:
        raise InputError(
            f"{what}: the image's layers claim {size} bytes, more than the {LARGEST_IMAGE} that an image may have",
            hint="do not use this image: no registry accepts that much",
        )
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
        raw = load(f"{what}: the image's config", body, strictjson.CONFIG)
    except (ValueError, RecursionError) as error:
        raise BadContent(f"{what}: the image's config is not JSON") from error
    if not isinstance(raw, dict) or not isinstance(raw.get("rootfs"), dict):
        raise NoSuchImage(f"{what}: the config has no rootfs, so this is not a container image", hint="name an image")
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

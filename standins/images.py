"""Small OCI and Docker images made of bytes, and ways to put them into a registry or an OCI layout.

    base = layer({"etc/motd": b"hi\n", "bin/": None})     # tar bytes; a name that ends in "/" is a folder
    app = image(base, layer({"app": b"..."}))              # gzip, linux/amd64, OCI media types
    arm = image(base, platform="linux/arm64/v8", compression="zstd", docker=False, config={"Cmd": ["/app"]})
    both = index(app, arm)                                 # an image index (docker=True: a manifest list); nests

    digest = push("http://127.0.0.1:5000", "team/app", both, tag="v1")     # plain HTTP PUT; returns the digest
    write_layout(tmp_path / "layout", {"v1": both, "v2": app})             # an OCI image layout

Everything is deterministic. ``image(...)`` and ``index(...)`` return a ``Built``: ``.root`` is the manifest or index,
``.blobs`` what it points to (configs, layers), ``.children`` the images of an index; each is a ``Blob`` with
``.media_type .data .digest .size``. ``.layers``, ``.config`` and ``.diff_ids`` are for single images.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import urllib3
import zstandard

Compression = Literal["gzip", "zstd", "zstd-stream", "none"]
"""``zstd-stream``: as zstd, by a tool that did not know the length when it began, and so does not say it."""

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
_OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
_DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"


def sha256(data: bytes) -> str:
    """Return the digest of ``data``."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@dataclass(frozen=True)
class Blob:
    """Content with its media type; ``platform`` and ``annotations`` end up in the descriptor of an index."""

    media_type: str
    data: bytes
    platform: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        return sha256(self.data)

    @property
    def size(self) -> int:
        return len(self.data)

    @property
    def descriptor(self) -> dict[str, Any]:
        more = {"platform": dict(self.platform), "annotations": dict(self.annotations)}
        small = {"mediaType": self.media_type, "digest": self.digest, "size": self.size}
        return small | {key: value for key, value in more.items() if value}


@dataclass(frozen=True)
class Built:
    """An image or an index with all that it points to."""

    root: Blob
    blobs: tuple[Blob, ...] = ()
    children: tuple[Built, ...] = ()
    diff_ids: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        return self.root.digest

    @property
    def config(self) -> Blob:
        return self.blobs[0]

    @property
    def layers(self) -> tuple[Blob, ...]:
        return self.blobs[1:]


def layer(files: Mapping[str, bytes | tarfile.TarInfo | None]) -> bytes:
    """Return a tar of ``files``: bytes are regular files, None folders, a TarInfo what it says (without data).

    What lies in ``bin/`` can be run.
    """
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in files.items():
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name.rstrip("/"))
            if content is None:
                info.type, info.mode = tarfile.DIRTYPE, 0o755
            elif name.startswith("bin/") and not isinstance(content, tarfile.TarInfo):
                info.mode = 0o755
            data = content if isinstance(content, bytes) else b""
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def compress(data: bytes, compression: Compression) -> bytes:
    """Return ``data`` as it travels."""
    if compression == "gzip":
        return gzip.compress(data, 6, mtime=0)
    if compression == "zstd":
        return zstandard.ZstdCompressor().compress(data)
    if compression == "zstd-stream":
        return zstandard.ZstdCompressor(write_content_size=False).compress(data)
    return data


def image(
    *layers: bytes,
    compression: Compression = "gzip",
    platform: str = "linux/amd64",
    docker: bool = False,
    config: Mapping[str, Any] | None = None,
) -> Built:
    """Return an image of ``layers`` (tar bytes, bottom first); ``config`` is its ``config`` object (Cmd, Env, …)."""
    packer = compression.removesuffix("-stream")
    suffix = {"gzip": ".gzip" if docker else "+gzip", "zstd": ".zstd" if docker else "+zstd", "none": ""}[packer]
    media_type = (_DOCKER_LAYER if docker else _OCI_LAYER) + suffix
    blobs = [Blob(media_type, compress(data, compression)) for data in layers]
    diff_ids = tuple(sha256(data) for data in layers)
    words = platform_words(platform)
    document = {
        "created": "2024-01-01T00:00:00Z",
        **words,
        "config": dict(config or {}),
        "rootfs": {"type": "layers", "diff_ids": list(diff_ids)},
        "history": [{"created_by": f"layer {number}"} for number in range(len(layers))],
    }
    config_blob = json_blob(DOCKER_CONFIG if docker else OCI_CONFIG, document)
    manifest = {
        "schemaVersion": 2,
        "mediaType": DOCKER_MANIFEST if docker else OCI_MANIFEST,
        "config": config_blob.descriptor,
        "layers": [blob.descriptor for blob in blobs],
    }
    root = json_blob(str(manifest["mediaType"]), manifest, platform=words)
    return Built(root, (config_blob, *blobs), diff_ids=diff_ids)


def index(*images: Built, docker: bool = False) -> Built:
    """Return an image index (or a Docker manifest list) of ``images``; an index in an index is fine."""
    media_type = DOCKER_LIST if docker else OCI_INDEX
    manifests = [built.root.descriptor for built in images]
    document = {"schemaVersion": 2, "mediaType": media_type, "manifests": manifests}
    return Built(json_blob(media_type, document), children=images)


def platform_words(platform: str) -> dict[str, str]:
    """Return ``linux/arm64/v8`` as the keys of an image config or an index entry."""
    return dict(zip(("os", "architecture", "variant"), platform.split("/"), strict=False))


def json_blob(
    media_type: str,
    document: object,
    *,
    platform: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
) -> Blob:
    """Return a JSON document as a blob."""
    return Blob(media_type, json.dumps(document, indent=1).encode(), platform or {}, annotations or {})


def push(
    url: str,
    repository: str,
    built: Built,
    tag: str = "latest",
    *,
    user: tuple[str, str] | None = None,
    ca: str = "",
) -> str:
    """Upload an image or an index with all that it points to; returns the digest that ``tag`` names now."""
    headers = urllib3.make_headers(basic_auth=":".join(user)) if user else {}
    with urllib3.PoolManager(headers=headers, ca_certs=ca or None, retries=False) as pool:
        _push(pool, f"{url}/v2/{repository}", built, tag)
    return built.digest


def _push(pool: urllib3.PoolManager, base: str, built: Built, name: str) -> None:
    for child in built.children:
        _push(pool, base, child, child.digest)
    for blob in built.blobs:
        if pool.request("HEAD", f"{base}/blobs/{blob.digest}").status == 200:
            continue
        place = _expect(pool.request("POST", f"{base}/blobs/uploads/"), 202).headers["Location"]
        upload = f"{place}{'&' if '?' in place else '?'}digest={blob.digest}"
        headers = {**pool.headers, "Content-Type": "application/octet-stream"}
        _expect(pool.request("PUT", upload, body=blob.data, headers=headers), 201)
    headers = {**pool.headers, "Content-Type": built.root.media_type}
    _expect(pool.request("PUT", f"{base}/manifests/{name}", body=built.root.data, headers=headers), 201)


def _expect(response: urllib3.BaseHTTPResponse, status: int) -> urllib3.BaseHTTPResponse:
    assert response.status == status, f"{response.status} {response.data[:500]!r}"
    return response


def write_layout(folder: Path, tags: Mapping[str, Built]) -> Path:
    """Write an OCI image layout that names each image by its tag; an empty tag leaves the image without a name."""
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    manifests = []
    for tag, built in tags.items():
        _write(blobs, built)
        annotations = {"org.opencontainers.image.ref.name": tag} if tag else {}
        manifests.append({**built.root.descriptor, "annotations": {**built.root.annotations, **annotations}})
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests}
    (folder / "index.json").write_text(json.dumps(document))
    return folder


def _write(blobs: Path, built: Built) -> None:
    for child in built.children:
        _write(blobs, child)
    for blob in (built.root, *built.blobs):
        (blobs / blob.digest.removeprefix("sha256:")).write_bytes(blob.data)

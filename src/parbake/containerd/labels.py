"""How containerd marks what it stores: pure rules, the same as those of ``ctr images pull`` and of the CRI plugin.

Facts: containerd ``core/images/mediatypes.go`` (ChildGCLabels), ``core/images/handlers.go`` (SetChildrenMappedLabels),
``core/unpack/unpacker.go``, ``core/remotes/docker/handler.go``, ``pkg/labels``; a system test compares them with a real
pull.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

KUBERNETES = "k8s.io"
"""The namespace in which kubelet's runtime looks for images."""

OVERLAY = "overlayfs"
"""The snapshotter that Kubernetes nodes use."""

PINNED = {"io.cri-containerd.pinned": "pinned"}
"""Image label that keeps kubelet from evicting an image."""

EXPIRES = "containerd.io/gc.expire"
"""Lease label: RFC 3339 time from which garbage collection ignores the lease."""

_SOURCE = "containerd.io/distribution.source."
_REFERENCE = "containerd.io/gc.ref.content."
_CONFIGS = {"application/vnd.docker.container.image.v1+json", "application/vnd.oci.image.config.v1+json"}
_MANIFESTS = {
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
}
_LAYERS = {
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    "application/vnd.erofs.layer.v1",
}
_OCI_LAYER = "application/vnd.oci.image.layer."


def reference_labels(document: Mapping[str, Any]) -> dict[str, str]:
    """Return the labels by which an index or a manifest (its JSON) keeps what it refers to from being collected."""
    children = [document["config"]] if "config" in document else []
    children += document.get("layers") or []
    children += document.get("manifests") or []
    counts: Counter[str] = Counter()
    labels = {}
    for child in children:
        label = _REFERENCE + _kind(child.get("mediaType") or "")
        number = counts[label]
        counts[label] += 1
        labels[f"{label}{number}" if number or label.endswith(".") else label] = child["digest"]
    return labels


def _kind(media_type: str) -> str:
    if media_type in _CONFIGS:
        return "config"
    if media_type in _MANIFESTS:
        return "m."
    if media_type.startswith(_OCI_LAYER) or media_type.partition("+")[0] in _LAYERS:
        return "l."
    return ""


def snapshot_reference(chain_id: str, snapshotter: str = OVERLAY) -> dict[str, str]:
    """Return the label of a config's blob that keeps the image's top snapshot, and with it all below."""
    return {f"containerd.io/gc.ref.snapshot.{snapshotter}": chain_id}


def source_label(registry: str, repository: str) -> dict[str, str]:
    """Return the label of a blob that says where it came from: the registry without its port, and the repository."""
    host = urlsplit(f"//{registry}").hostname or registry
    return {_SOURCE + host: repository}


def merge_labels(old: Mapping[str, str], new: Mapping[str, str]) -> dict[str, str]:
    """Return a blob's labels with ``new`` ones on top; a blob of several repositories names them all.

    They are sorted (containerd ``core/remotes/docker/handler.go``, appendDistributionSourceLabel).
    """
    merged = {**old, **new}
    for key in old.keys() & new.keys():
        if key.startswith(_SOURCE):
            merged[key] = ",".join(sorted({*old[key].split(","), *new[key].split(",")}))
    return merged


def uncompressed_label(diff_id: str) -> dict[str, str]:
    """Return the label of a layer's blob that names the digest of its inflated tar."""
    return {"containerd.io/uncompressed": diff_id}


def snapshot_labels(chain_id: str) -> dict[str, str]:
    """Return the labels of a layer's snapshot."""
    return {"containerd.io/snapshot.ref": chain_id}


def unpack_key(unique: str, chain_id: str) -> str:
    """Return the key of an active snapshot that a layer is being unpacked into."""
    return f"extract-{unique} {chain_id}"


def chain_ids(diff_ids: Iterable[str]) -> tuple[str, ...]:
    """Return the chain ID of each layer, bottom first (OCI image specification, config.md, "Layer ChainID")."""
    chain: list[str] = []
    for diff_id in diff_ids:
        above = f"{chain[-1]} {diff_id}" if chain else ""
        chain.append(f"sha256:{hashlib.sha256(above.encode()).hexdigest()}" if above else diff_id)
    return tuple(chain)

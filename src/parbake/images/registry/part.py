"""The lowest layers of an image, baked without the rest: nodes fetch what lies above them, of each image that has them.

containerd unpacks an image from the first chain of layers on that its snapshotter lacks (``core.coverage``). So the
lowest layers serve whatever begins with them, and others serve nothing. The image's own name must not be in the store:
a kubelet would find it there, pull nothing, and start containers without the layers above. What is stored instead is an
image that ends there: a manifest and a config that follow from the layers alone, under ``repository@digest`` of that
manifest, which no registry serves and no pod asks for. It keeps the snapshots from containerd's garbage collection, and
its pin keeps it from the kubelet's.
"""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import override

from parbake.core.errors import InputError
from parbake.core.model import Descriptor, Image, Layer, Platform
from parbake.core.sources import LayerSource, Readable
from parbake.images.registry.documents import OCI_CONFIG, OCI_MANIFEST, sha256


def lowest(image: Image, count: int) -> Image:
    """Return the image that ends after ``count`` layers; raises InputError where it would be the whole one."""
    if count >= len(image.layers):
        raise InputError(
            f"{image.reference} has {len(image.layers)} layers, and the Bakefile asks for the lowest {count} of it",
            hint="remove its `layers` to bake it whole, or write fewer",
        )
    layers = image.layers[:count]
    config, manifest = _documents(image.platform, layers)
    target = _descriptor(OCI_MANIFEST, manifest)
    return image.model_copy(
        update={
            "reference": replace(image.reference, tag="", digest=target.digest, written=""),
            "target": target,
            "manifest": target,
            "config": _descriptor(OCI_CONFIG, config),
            "layers": layers,
            "also_by_digest": False,
            "part_of": image.reference,
        }
    )


class PartSource(LayerSource):
    """Where the content of such an image comes from: its documents are made here, its layers are the whole one's."""

    def __init__(self, part: Image, whole: LayerSource) -> None:
        self._whole = whole
        self._made = {sha256(body): body for body in _documents(part.platform, part.layers)}

    @override
    def read(self, descriptor: Descriptor) -> bytes:
        made = self._made.get(descriptor.digest)
        return self._whole.read(descriptor) if made is None else made

    @override
    def open(self, descriptor: Descriptor, *, offset: int = 0) -> AbstractContextManager[Readable]:
        return self._whole.open(descriptor, offset=offset)


def _documents(platform: Platform, layers: tuple[Layer, ...]) -> tuple[bytes, bytes]:
    """Return the config and the manifest of an image of these layers (OCI image specification)."""
    config = _json(
        {
            **platform.model_dump(exclude_defaults=True),
            "os": platform.os,
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
        }
    )
    described: tuple[Descriptor | Layer, ...] = (_descriptor(OCI_CONFIG, config), *layers)
    first, *others = [{"mediaType": e.media_type, "digest": e.digest, "size": e.size} for e in described]
    return config, _json({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": first, "layers": others})


def _json(document: dict[str, object]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def _descriptor(media_type: str, body: bytes) -> Descriptor:
    return Descriptor(media_type=media_type, digest=sha256(body), size=len(body))

"""What a node that has a bake still fetches of an image. Pure.

containerd unpacks from the bottom and asks its snapshotter for each chain of layers first: from the first chain that is
missing on, it fetches every layer whose blob its store does not hold (unpack/unpacker.go, the same in 1.7 and 2.1).
So a layer on another parent is fetched again, and one in another compression is not. The documents (index, manifest,
config) are fetched by digest, each unless the store holds it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from parbake.core.model import Descriptor, Image, Layer, Plan


@dataclass(frozen=True, slots=True)
class Held:
    """What a runtime's store holds: unpacked layers by chain ID, and blobs by digest."""

    chains: frozenset[str]
    blobs: frozenset[str]

    @classmethod
    def by(cls, plan: Plan) -> Held:
        """Return what a bake of a plan puts into the store, by what the plan says; a base may hold more."""
        layers = [layer for image in plan.all_images for layer in image.layers]
        documents = {each.digest for image in plan.all_images for each in _documents(image)}
        kept = {layer.digest for layer in layers} if plan.keep_layers else set[str]()
        return cls(frozenset(layer.chain_id for layer in layers), frozenset(documents | kept))


@dataclass(frozen=True, slots=True)
class Coverage:
    """What of an image a store holds, and what a pull by its name still fetches.

    ``documents`` and ``layers`` are fetched, each blob once; ``held`` layers lie unpacked under their chain.
    """

    image: Image
    held: tuple[Layer, ...]
    layers: tuple[Layer, ...]
    documents: tuple[Descriptor, ...]

    @property
    def size(self) -> int:
        """Bytes that a pull into an empty store fetches."""
        return sum({**_sizes(_documents(self.image)), **_sizes(self.image.layers)}.values())

    @property
    def fetched(self) -> dict[str, int]:
        """The blobs that are still fetched, and their sizes in bytes."""
        return _sizes(self.documents) | _sizes(self.layers)

    @property
    def missing(self) -> int:
        """Bytes that are still fetched."""
        return sum(self.fetched.values())


def cover(held: Held, image: Image) -> Coverage:
    """Return what a store holds of an image."""
    unpacked = 0
    while unpacked < len(image.layers) and image.layers[unpacked].chain_id in held.chains:
        unpacked += 1
    return Coverage(
        image,
        held=image.layers[:unpacked],
        layers=tuple(each for each in _once(image.layers[unpacked:]) if each.digest not in held.blobs),
        documents=tuple(each for each in _once(_documents(image)) if each.digest not in held.blobs),
    )


def _documents(image: Image) -> tuple[Descriptor, ...]:
    return (image.target, image.manifest, image.config)


def _sizes(blobs: Iterable[Descriptor | Layer]) -> dict[str, int]:
    return {each.digest: each.size for each in blobs}


def _once[Blob: (Descriptor, Layer)](blobs: Iterable[Blob]) -> tuple[Blob, ...]:
    return tuple({blob.digest: blob for blob in blobs}.values())

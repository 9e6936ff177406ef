"""containerd's images: names that point to content."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from google.protobuf.empty_pb2 import Empty
from google.protobuf.field_mask_pb2 import FieldMask

from parbake.containerd.errors import AlreadyExists, NotFound
from parbake.containerd.proto import common_pb2
from parbake.containerd.proto import images_pb2 as pb
from parbake.core.model import Descriptor

if TYPE_CHECKING:
    from parbake.containerd.connection import Connection, Metadata

_SERVICE = "/containerd.services.images.v1.Images"
_COLLECTION = 600.0  # seconds: a synchronous delete waits for garbage collection


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """An image's name, what it points to, and its labels."""

    name: str
    target: Descriptor
    labels: Mapping[str, str]


class Images:
    """The image records of one namespace."""

    def __init__(self, connection: Connection, metadata: Callable[[], Metadata]) -> None:
        self._connection = connection
        self._metadata = metadata

    def put(self, name: str, descriptor: Descriptor, labels: Mapping[str, str] | None = None) -> None:
        """Make sure that the name points to the content, with at least these labels; its other labels stay."""
        target = common_pb2.Descriptor(media_type=descriptor.media_type, digest=descriptor.digest, size=descriptor.size)
        image = pb.Image(name=name, labels=labels, target=target)
        try:
            create = pb.CreateImageRequest(image=image)
            self._connection.unary(
                f"{_SERVICE}/Create", create, pb.CreateImageResponse, metadata=self._metadata(), subject=name
            )
        except AlreadyExists:
            paths = ["target", *(f"labels.{label}" for label in labels or {})]
            update = pb.UpdateImageRequest(image=image, update_mask=FieldMask(paths=paths))
            self._connection.unary(
                f"{_SERVICE}/Update", update, pb.UpdateImageResponse, metadata=self._metadata(), subject=name
            )

    def get(self, name: str) -> ImageRecord | None:
        """Return the image of exactly that name, None when there is none."""
        try:
            reply = self._connection.unary(
                f"{_SERVICE}/Get",
                pb.GetImageRequest(name=name),
                pb.GetImageResponse,
                metadata=self._metadata(),
                subject=name,
            )
        except NotFound:
            return None
        return _record(reply.image)

    def list(self, *filters: str) -> tuple[ImageRecord, ...]:
        """Return every image that matches one of the filters (containerd's filter language), or all."""
        request = pb.ListImagesRequest(filters=filters)
        reply = self._connection.unary(f"{_SERVICE}/List", request, pb.ListImagesResponse, metadata=self._metadata())
        return tuple(_record(image) for image in reply.images)

    def delete(self, name: str, *, sync: bool = True) -> None:
        """Remove an image's name; ``sync`` waits until what only it used is gone as well. Missing is fine."""
        request = pb.DeleteImageRequest(name=name, sync=sync)
        with suppress(NotFound):
            self._connection.unary(
                f"{_SERVICE}/Delete", request, Empty, metadata=self._metadata(), timeout=_COLLECTION, subject=name
            )


def _record(image: pb.Image) -> ImageRecord:
    target = image.target
    # Unchecked: a store may hold images of others whose digests are of a kind that parbake does not bake.
    descriptor = Descriptor.model_construct(media_type=target.media_type, digest=target.digest, size=target.size)
    return ImageRecord(image.name, descriptor, dict(image.labels))

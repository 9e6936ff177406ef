"""containerd's content store: blobs by digest, with labels."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from google.protobuf.empty_pb2 import Empty
from google.protobuf.field_mask_pb2 import FieldMask

from parbake.containerd.errors import AlreadyExists, NotFound, Unavailable
from parbake.containerd.labels import merge_labels
from parbake.containerd.proto import content_pb2 as pb
from parbake.core.errors import BadContent, ContainerdError, DeadlineExceeded
from parbake.core.run import Deadline

if TYPE_CHECKING:
    from parbake.containerd.connection import Connection, Metadata
    from parbake.core.model import Descriptor

_SERVICE = "/containerd.services.content.v1.Content"
_CHUNK = 1 << 20
_LARGEST_DOCUMENT = 16 << 20  # bytes: what a gRPC message of containerd's may hold
# Writing and its commit: containerd hashes and syncs at some tens of MiB/s on the slowest of disks.
_WRITE_BASE, _WRITE_RATE = 120.0, 4 << 20
# An ingest stays locked for a moment after the stream that wrote it broke.
_LOCKED = 10.0


@dataclass(frozen=True, slots=True)
class ContentInfo:
    """A blob: digest, size in bytes, labels."""

    digest: str
    size: int
    labels: Mapping[str, str]


class Content:
    """The blobs of one namespace. ``metadata`` gives namespace and lease of each call."""

    def __init__(self, connection: Connection, metadata: Callable[[], Metadata]) -> None:
        self._connection = connection
        self._metadata = metadata

    def info(self, digest: str) -> ContentInfo | None:
        """Return what is known of a blob, None when it is not there."""
        request = pb.InfoRequest(digest=digest)
        try:
            reply = self._connection.unary(
                f"{_SERVICE}/Info", request, pb.InfoResponse, metadata=self._metadata(), subject=digest
            )
        except NotFound:
            return None
        return _info(reply.info)

    def exists(self, digest: str) -> bool:
        """Whether the blob is there."""
        return self.info(digest) is not None

    def list(self, *filters: str) -> tuple[ContentInfo, ...]:
        """Return every blob that matches one of the filters (containerd's filter language), or all."""
        request = pb.ListContentRequest(filters=filters)
        replies = self._connection.stream(
            f"{_SERVICE}/List", request, pb.ListContentResponse, metadata=self._metadata()
        )
        return tuple(_info(info) for reply in replies for info in reply.info)

    def read(self, digest: str) -> bytes:
        """Return a blob that is a document. Raises NotFound, BadContent for one of any size, whatever ``info`` says."""
        replies = self._connection.stream(
            f"{_SERVICE}/Read",
            pb.ReadContentRequest(digest=digest),
            pb.ReadContentResponse,
            metadata=self._metadata(),
            subject=digest,
        )
        whole = bytearray()
        for reply in replies:
            whole += reply.data
            if len(whole) > _LARGEST_DOCUMENT:
                raise BadContent(f"{digest} in containerd's store has more bytes than a manifest or config may have")
        return bytes(whole)

    def label(self, digest: str, labels: Mapping[str, str]) -> None:
        """Set labels of a blob and keep its others; an empty value removes a label. Raises NotFound."""
        request = pb.UpdateRequest(
            info=pb.Info(digest=digest, labels=labels),
            update_mask=FieldMask(paths=[f"labels.{name}" for name in labels]),
        )
        self._connection.unary(
            f"{_SERVICE}/Update", request, pb.UpdateResponse, metadata=self._metadata(), subject=digest
        )

    def add_labels(self, digest: str, labels: Mapping[str, str]) -> bool:
        """Add labels to a blob and keep those that it has; False when it is not there."""
        if (info := self.info(digest)) is None:
            return False
        merged = merge_labels(info.labels, labels)
        if merged != info.labels:
            self.label(digest, merged)
        return True

    def abort(self, ref: str) -> None:
        """Throw away an unfinished write; missing is fine."""
        with suppress(NotFound):
            self._connection.unary(
                f"{_SERVICE}/Abort", pb.AbortRequest(ref=ref), Empty, metadata=self._metadata(), subject=ref
            )

    def write(
        self,
        descriptor: Descriptor,
        data: bytes | memoryview | Iterable[bytes | memoryview],
        labels: Mapping[str, str] | None = None,
    ) -> None:
        """Make sure that a blob is there, with at least these labels.

        ``data`` is the whole content, or an iterable of its pieces (iterated in another thread). A write that was cut
        off goes on where it ended: the pieces that containerd has are skipped. containerd checks size and digest; a
        mismatch raises BadContent and what was written is thrown away. What ``data`` raises is raised.
        """
        ref = reference(descriptor.digest)
        deadline = Deadline(_LOCKED * self._connection.patience, f"writing {descriptor.digest}")
        while True:
            sender = _Sender(ref, descriptor, data, labels or {})
            try:
                self._send(sender, descriptor)
            except AlreadyExists:
                if labels:
                    self.label(descriptor.digest, labels)
            except Unavailable as error:
                if "locked" not in error.message or sender.started:
                    raise
                deadline.sleep(0.05)
                continue
            except BadContent:
                with suppress(ContainerdError, DeadlineExceeded):
                    self.abort(ref)
                raise
            return

    def _send(self, sender: _Sender, descriptor: Descriptor) -> None:
        replies = self._connection.duplex(
            f"{_SERVICE}/Write",
            sender,
            pb.WriteContentResponse,
            metadata=self._metadata(),
            timeout=_WRITE_BASE + descriptor.size / _WRITE_RATE,
            subject=descriptor.digest,
        )
        committed = False
        try:
            for number, reply in enumerate(replies):
                if number == 0:
                    sender.begin(reply.offset)
                committed = reply.action == pb.COMMIT
        finally:
            sender.give_up()
        if sender.failure is not None:
            raise sender.failure
        if not committed:
            raise Unavailable(f"containerd: Content.Write {descriptor.digest}: the stream ended before the commit")


def reference(digest: str) -> str:
    """Return the reference of the unfinished write of a blob: the same in each run, so that it is resumed."""
    return f"parbake-{digest}"


def _info(info: pb.Info) -> ContentInfo:
    return ContentInfo(info.digest, info.size, dict(info.labels))


class _Sender:
    """The messages of one write, made while gRPC's thread asks for them."""

    def __init__(
        self,
        ref: str,
        descriptor: Descriptor,
        data: bytes | memoryview | Iterable[bytes | memoryview],
        labels: Mapping[str, str],
    ) -> None:
        self.failure: Exception | None = None
        self.started = False
        self._ref, self._descriptor, self._data, self._labels = ref, descriptor, data, labels
        self._offsets: queue.SimpleQueue[int | None] = queue.SimpleQueue()

    def begin(self, offset: int) -> None:
        """Say how much containerd has already."""
        self._offsets.put(offset)

    def give_up(self) -> None:
        """End the iterator if it still waits for the offset."""
        self._offsets.put(None)

    def __iter__(self) -> Iterator[pb.WriteContentRequest]:
        try:
            yield from self._messages()
        except Exception as error:  # noqa: BLE001 - raised again by _send, in the caller's thread
            self.failure = error

    def _messages(self) -> Iterator[pb.WriteContentRequest]:
        digest, size = self._descriptor.digest, self._descriptor.size
        yield pb.WriteContentRequest(action=pb.STAT, ref=self._ref, total=size, expected=digest)
        have = self._offsets.get()
        if have is None:
            return
        self.started = True
        position = 0
        if have < size:  # else all is there: a commit is missing, or another namespace has the blob
            for piece in _pieces(self._data):
                end = position + len(piece)
                if end > have:
                    fresh = piece[max(0, have - position) :]
                    yield pb.WriteContentRequest(
                        action=pb.WRITE, ref=self._ref, offset=end - len(fresh), data=bytes(fresh)
                    )
                position = end
        offset = max(position, have)
        yield pb.WriteContentRequest(
            action=pb.COMMIT, ref=self._ref, offset=offset, total=size, expected=digest, labels=self._labels
        )


def _pieces(data: bytes | memoryview | Iterable[bytes | memoryview]) -> Iterator[memoryview]:
    whole: Iterable[bytes | memoryview] = (data,) if isinstance(data, bytes | memoryview) else data
    for part in whole:
        view = memoryview(part)
        for start in range(0, len(view), _CHUNK):
            yield view[start : start + _CHUNK]

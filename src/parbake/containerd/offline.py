"""A store's files, as containerd leaves them after a pull, written without a containerd (``k8s.io``, ``overlayfs``).

Facts (1.7; a later one migrates the database when it starts, as it does its own): ``core/metadata/buckets.go`` (the
schema), ``core/metadata/db.go`` (its version), ``core/metadata/boltutil``, ``core/snapshots/storage/bolt.go``,
``plugins/snapshots/overlay``, ``plugins/content/local``. A system test compares each value with containerd's own.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_IFDIR, S_IFREG
from typing import TYPE_CHECKING, Final

from parbake.containerd.bolt import Bucket, database
from parbake.containerd.labels import KUBERNETES, OVERLAY, merge_labels, snapshot_labels
from parbake.core.errors import BadContent
from parbake.core.filetree import DataStore, FileNode

if TYPE_CHECKING:
    from parbake.core.model import Descriptor

MOMENT: Final = 1_700_000_000
"""Seconds since 1970: where containerd writes "now", such a store has one fixed moment, and so the same bytes."""

_SCHEMA, _SCHEMA_VERSION = b"v1", 3
_COMMITTED: Final = 3
_YEAR_ONE: Final = 62_135_596_800
"""Seconds from the year 1, with which Go's times begin, to 1970."""
_PIECE: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class CommittedSnapshot:
    """A layer's snapshot: its chain ID and its parent's ("" for the bottom), what it takes in bytes and in inodes."""

    chain_id: str
    parent: str
    size: int
    inodes: int


@dataclass(slots=True)
class _Blob:
    """A blob: its bytes, or the file that holds them."""

    size: int
    held: bytes | Path
    labels: dict[str, str]

    def pieces(self) -> Iterator[memoryview]:
        if isinstance(self.held, bytes):
            yield memoryview(self.held)
            return
        with self.held.open("rb", buffering=0) as file:
            while data := file.read(_PIECE):
                yield memoryview(data)


@dataclass(slots=True)
class OfflineContent:
    """The blobs (see ``content.Content``). Whole documents stay in memory, what comes in pieces goes to ``folder``."""

    folder: Path
    blobs: dict[str, _Blob] = field(default_factory=dict)

    def exists(self, digest: str) -> bool:
        """Whether the blob is there."""
        return digest in self.blobs

    def read(self, digest: str) -> bytes:
        """Return a blob; raises KeyError."""
        return b"".join(self.blobs[digest].pieces())

    def add_labels(self, digest: str, labels: Mapping[str, str]) -> bool:
        """Add labels to a blob and keep those that it has; False when it is not there."""
        if (blob := self.blobs.get(digest)) is None:
            return False
        blob.labels = merge_labels(blob.labels, labels)
        return True

    def write(
        self, descriptor: Descriptor, data: bytes | Iterable[bytes], labels: Mapping[str, str] | None = None
    ) -> None:
        """Make sure that a blob is there, with at least these labels; raises BadContent, and what ``data`` raises."""
        digest = descriptor.digest
        if self.add_labels(digest, labels or {}):
            return
        whole = hashlib.sha256()
        held: bytes | Path
        if isinstance(data, bytes):
            whole.update(data)
            held, size = data, len(data)
        else:
            held, size = self.folder / digest.removeprefix("sha256:"), 0
            with held.open("wb", buffering=0) as file:
                for piece in data:
                    whole.update(piece)
                    size += file.write(piece)
        found = f"sha256:{whole.hexdigest()}"
        if (found, size) != (digest, descriptor.size):
            raise BadContent(
                f"{digest} ({descriptor.size} bytes): the bytes that arrived have the digest {found} ({size} bytes)",
                hint="the bytes are not those that the digest names: fetch them again",
            )
        self.blobs[digest] = _Blob(size, held, dict(labels or {}))


@dataclass(slots=True)
class OfflineImages:
    """The image records (see ``images.Images``)."""

    records: dict[str, tuple[Descriptor, dict[str, str]]] = field(default_factory=dict)

    def put(self, name: str, descriptor: Descriptor, labels: Mapping[str, str] | None = None) -> None:
        """Let a name point to content, with these labels."""
        self.records[name] = (descriptor, dict(labels or {}))


class OfflineStore:
    """What a fill puts into a store, and in the end the files of that store."""

    def __init__(self, folder: Path) -> None:
        """``folder`` takes layers' blobs that the store keeps."""
        self.content = OfflineContent(folder)
        self.images = OfflineImages()

    def tree(
        self,
        snapshots: Sequence[CommittedSnapshot],
        holder: Callable[[str, FileNode, FileNode], FileNode],
        store: DataStore,
    ) -> FileNode:
        """Return containerd's root folder; the data of its files go to ``store``.

        ``snapshots`` are numbered in their order, parents first. ``holder`` makes a snapshot's folder of its chain ID,
        an empty folder, and the one that overlayfs works in.
        """
        blobs = {
            digest.removeprefix("sha256:").encode(): _file(blob.pieces(), blob.size, 0o444, store)
            for digest, blob in sorted(self.content.blobs.items())
        }
        folders = {
            str(number).encode(): holder(snapshot.chain_id, _folder(0o700), _folder(0o711))
            for number, snapshot in enumerate(snapshots, 1)
        }
        metadata, snapshotter = database(self._metadata(snapshots)), database(_snapshotter(snapshots))
        return _folder(0o700, {
            b"io.containerd.content.v1.content": _folder(0o755, {
                b"blobs": _folder(0o755, {b"sha256": _folder(0o755, blobs)}), b"ingest": _folder(0o755),
            }),
            b"io.containerd.metadata.v1.bolt": _folder(0o711, {b"meta.db": _whole(metadata, 0o644, store)}),
            b"io.containerd.snapshotter.v1.overlayfs": _folder(0o700, {
                b"metadata.db": _whole(snapshotter, 0o600, store), b"snapshots": _folder(0o700, folders),
            }),
            b"tmpmounts": _folder(0o700),
        })  # fmt: skip

    def _metadata(self, snapshots: Sequence[CommittedSnapshot]) -> Bucket:
        """Return ``meta.db``: what there is in the namespace."""
        blobs = {
            digest.encode(): _dated(blob.labels, {b"size": _signed(blob.size)})
            for digest, blob in self.content.blobs.items()
        }
        images = {
            name.encode(): _dated(labels, {
                b"target": Bucket({
                    b"digest": target.digest.encode(), b"mediatype": target.media_type.encode(),
                    b"size": _signed(target.size),
                }),
            })
            for name, (target, labels) in self.images.records.items()
        }  # fmt: skip
        children: dict[str, dict[bytes, bytes | Bucket]] = {}
        for snapshot in snapshots:
            children.setdefault(snapshot.parent, {})[snapshot.chain_id.encode()] = b""
        known: dict[bytes, bytes | Bucket] = {}
        for number, snapshot in enumerate(snapshots, 1):
            items: dict[bytes, bytes | Bucket] = {b"name": _name(number, snapshot)}
            if snapshot.parent:
                items[b"parent"] = snapshot.parent.encode()
            if snapshot.chain_id in children:
                items[b"children"] = Bucket(children[snapshot.chain_id])
            known[snapshot.chain_id.encode()] = _dated(snapshot_labels(snapshot.chain_id), items)
        namespace = Bucket({
            b"content": Bucket({b"blob": Bucket(blobs)}),
            b"images": Bucket(images),
            b"snapshots": Bucket({OVERLAY.encode(): Bucket(known, len(snapshots))}),
        })  # fmt: skip
        schema = Bucket({KUBERNETES.encode(): namespace, b"version": _signed(_SCHEMA_VERSION)})
        return Bucket({_SCHEMA: schema})


def _snapshotter(snapshots: Sequence[CommittedSnapshot]) -> Bucket:
    """Return ``metadata.db``: where the snapshotter has them, and what they take."""
    known: dict[str, tuple[int, bytes]] = {}
    found: dict[bytes, bytes | Bucket] = {}
    parents: dict[bytes, bytes | Bucket] = {}
    for number, snapshot in enumerate(snapshots, 1):
        name = _name(number, snapshot)
        known[snapshot.chain_id] = number, name
        items: dict[bytes, bytes | Bucket] = {
            b"id": _unsigned(number), b"kind": bytes([_COMMITTED]), b"inodes": _signed(snapshot.inodes),
            b"size": _signed(snapshot.size),
        }  # fmt: skip
        if snapshot.parent:
            below, items[b"parent"] = known[snapshot.parent]  # parents come first
            parents[_unsigned(below) + b"\0" + _unsigned(number)] = name
        found[name] = _dated(snapshot_labels(snapshot.chain_id), items)
    return Bucket({_SCHEMA: Bucket({b"parents": Bucket(parents), b"snapshots": Bucket(found, len(snapshots))})})


def _name(number: int, snapshot: CommittedSnapshot) -> bytes:
    """Return what the metadata store calls a snapshot before the snapshotter, which knows no namespaces."""
    return f"{KUBERNETES}/{number}/{snapshot.chain_id}".encode()


def _dated(labels: Mapping[str, str], items: Mapping[bytes, bytes | Bucket]) -> Bucket:
    # Go's time.Time.MarshalBinary: version, seconds, nanoseconds, minutes east of Greenwich (-1: UTC).
    moment = struct.pack(">bqih", 1, MOMENT + _YEAR_ONE, 0, -1)
    written = Bucket({key.encode(): value.encode() for key, value in labels.items()})
    return Bucket({**items, b"createdat": moment, b"updatedat": moment, **({b"labels": written} if labels else {})})


def _unsigned(number: int) -> bytes:
    """Return a number as Go's ``binary.PutUvarint`` writes it."""
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])


def _signed(number: int) -> bytes:
    """Return a number (not a negative one) as Go's ``binary.PutVarint`` writes it."""
    return _unsigned(number << 1)


def _folder(mode: int, children: Mapping[bytes, FileNode] | None = None) -> FileNode:
    node = FileNode(S_IFDIR | mode, modified=MOMENT * 10**9)
    node.children = dict(children or {})
    return node


def _file(pieces: Iterable[memoryview], size: int, mode: int, store: DataStore) -> FileNode:
    node = FileNode(S_IFREG | mode, modified=MOMENT * 10**9)
    node.size = size
    node.extents = store.put(pieces)
    return node


def _whole(data: bytes, mode: int, store: DataStore) -> FileNode:
    return _file([memoryview(data)], len(data), mode, store)

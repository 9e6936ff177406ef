"""containerd's snapshots: the file trees that layers become."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from google.protobuf.empty_pb2 import Empty

from parbake.containerd.errors import AlreadyExists, NotFound
from parbake.containerd.proto import snapshots_pb2 as pb
from parbake.core.errors import ContainerdError

if TYPE_CHECKING:
    from parbake.containerd.connection import Connection, Metadata
    from parbake.containerd.proto import common_pb2

_SERVICE = "/containerd.services.snapshots.v1.Snapshots"
Kind = Literal["unknown", "view", "active", "committed"]
_KINDS: dict[int, Kind] = {pb.VIEW: "view", pb.ACTIVE: "active", pb.COMMITTED: "committed"}
_REMOVAL = 600.0  # seconds: the snapshotter deletes the tree before it answers


@dataclass(frozen=True, slots=True)
class Mount:
    """A mount as the snapshotter describes it: type, source, options of mount(8)."""

    type: str
    source: str
    options: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SnapshotFolders:
    """Where an overlay snapshot's own files lie (``upper``), and those of its parents, top first."""

    upper: Path
    lowers: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class SnapshotInfo:
    """A snapshot: its name (a chain ID when committed), its parent's ("" for the bottom), kind, labels."""

    name: str
    parent: str
    kind: Kind
    labels: Mapping[str, str]


class Snapshots:
    """The snapshots of one namespace in one snapshotter."""

    def __init__(self, connection: Connection, metadata: Callable[[], Metadata], snapshotter: str) -> None:
        self._connection = connection
        self._metadata = metadata
        self.snapshotter = snapshotter

    def prepare(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> tuple[Mount, ...]:
        """Make an active snapshot on top of a committed one; raises AlreadyExists, NotFound (the parent)."""
        request = pb.PrepareSnapshotRequest(snapshotter=self.snapshotter, key=key, parent=parent, labels=labels)
        reply = self._connection.unary(
            f"{_SERVICE}/Prepare", request, pb.PrepareSnapshotResponse, metadata=self._metadata(), subject=key
        )
        return tuple(map(self._mount, reply.mounts))

    def view(self, key: str, parent: str, labels: Mapping[str, str] | None = None) -> tuple[Mount, ...]:
        """Make a read-only snapshot of a committed one; raises AlreadyExists, NotFound (the parent)."""
        request = pb.ViewSnapshotRequest(snapshotter=self.snapshotter, key=key, parent=parent, labels=labels)
        reply = self._connection.unary(
            f"{_SERVICE}/View", request, pb.ViewSnapshotResponse, metadata=self._metadata(), subject=key
        )
        return tuple(map(self._mount, reply.mounts))

    def mounts(self, key: str) -> tuple[Mount, ...]:
        """Return the mounts of an active snapshot or a view; raises NotFound."""
        request = pb.MountsRequest(snapshotter=self.snapshotter, key=key)
        reply = self._connection.unary(
            f"{_SERVICE}/Mounts", request, pb.MountsResponse, metadata=self._metadata(), subject=key
        )
        return tuple(map(self._mount, reply.mounts))

    def _mount(self, mount: common_pb2.Mount) -> Mount:
        """Return a mount in our own words for where things lie."""
        ours = self._connection.ours
        options = (option.partition("=") for option in mount.options)
        return Mount(
            mount.type,
            ours(mount.source),
            tuple(f"{key}{sign}{':'.join(map(ours, value.split(':')))}" for key, sign, value in options),
        )

    def commit(self, name: str, key: str, labels: Mapping[str, str] | None = None) -> None:
        """Turn an active snapshot into the committed one ``name``; one that is there already is kept instead.

        The labels given to ``prepare`` are not inherited.
        """
        request = pb.CommitSnapshotRequest(snapshotter=self.snapshotter, name=name, key=key, labels=labels)
        try:
            self._connection.unary(f"{_SERVICE}/Commit", request, Empty, metadata=self._metadata(), subject=name)
        except AlreadyExists:
            self.remove(key)

    def stat(self, name: str) -> SnapshotInfo | None:
        """Return what is known of a snapshot, None when it is not there."""
        request = pb.StatSnapshotRequest(snapshotter=self.snapshotter, key=name)
        try:
            reply = self._connection.unary(
                f"{_SERVICE}/Stat", request, pb.StatSnapshotResponse, metadata=self._metadata(), subject=name
            )
        except NotFound:
            return None
        return _info(reply.info)

    def exists(self, name: str) -> bool:
        """Whether there is a snapshot of that name or key."""
        return self.stat(name) is not None

    def usage(self, name: str) -> tuple[int, int]:
        """Return bytes and inodes that a snapshot itself takes (not its parents); raises NotFound."""
        request = pb.UsageRequest(snapshotter=self.snapshotter, key=name)
        reply = self._connection.unary(
            f"{_SERVICE}/Usage", request, pb.UsageResponse, metadata=self._metadata(), timeout=_REMOVAL, subject=name
        )
        return reply.size, reply.inodes

    def remove(self, name: str) -> None:
        """Remove a snapshot without children; missing is fine."""
        request = pb.RemoveSnapshotRequest(snapshotter=self.snapshotter, key=name)
        with suppress(NotFound):
            self._connection.unary(
                f"{_SERVICE}/Remove", request, Empty, metadata=self._metadata(), timeout=_REMOVAL, subject=name
            )

    def list(self, *filters: str) -> tuple[SnapshotInfo, ...]:
        """Return every snapshot that matches one of the filters (containerd's filter language), or all."""
        request = pb.ListSnapshotsRequest(snapshotter=self.snapshotter, filters=filters)
        replies = self._connection.stream(
            f"{_SERVICE}/List", request, pb.ListSnapshotsResponse, metadata=self._metadata()
        )
        return tuple(_info(info) for reply in replies for info in reply.info)


def folders(mounts: tuple[Mount, ...]) -> SnapshotFolders:
    """Return where the files of an active overlay snapshot go (overlayfs snapshotter, ``mounts()``).

    Without a parent it is a bind mount of the folder itself; raises ContainerdError for mounts of any other kind.
    """
    if len(mounts) == 1 and mounts[0].type == "bind":
        return SnapshotFolders(Path(mounts[0].source), ())
    if len(mounts) == 1 and mounts[0].type == "overlay":
        options = dict(option.partition("=")[::2] for option in mounts[0].options)
        if "upperdir" in options and "lowerdir" in options:
            return SnapshotFolders(
                Path(options["upperdir"]), tuple(Path(lower) for lower in options["lowerdir"].split(":"))
            )
    raise ContainerdError(
        f"containerd's snapshotter describes its snapshot as {mounts!r}: not an overlay with an upper folder",
        hint="parbake fills the overlayfs snapshotter only",
    )


def top_folder(mounts: tuple[Mount, ...]) -> Path:
    """Return where the files of the snapshot lie that an overlay view is of (overlayfs snapshotter, ``view()``).

    Raises ContainerdError for mounts of any other kind.
    """
    if len(mounts) == 1 and mounts[0].type == "bind":
        return Path(mounts[0].source)
    if len(mounts) == 1 and mounts[0].type == "overlay":
        options = dict(option.partition("=")[::2] for option in mounts[0].options)
        if "upperdir" not in options and options.get("lowerdir"):
            return Path(options["lowerdir"].split(":")[0])
    raise ContainerdError(
        f"containerd's snapshotter describes its view as {mounts!r}: not an overlay without an upper folder",
        hint="parbake fills the overlayfs snapshotter only",
    )


def _info(info: pb.Info) -> SnapshotInfo:
    return SnapshotInfo(info.name, info.parent, _KINDS.get(info.kind, "unknown"), dict(info.labels))

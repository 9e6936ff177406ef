"""A client of one containerd: content, snapshots, images of one namespace, over one connection."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

from google.protobuf.empty_pb2 import Empty

from parbake.containerd.connection import Connection, Metadata
from parbake.containerd.content import Content
from parbake.containerd.errors import AlreadyExists
from parbake.containerd.images import Images
from parbake.containerd.labels import EXPIRES, KUBERNETES, OVERLAY
from parbake.containerd.proto import leases_pb2, namespaces_pb2, version_pb2
from parbake.containerd.snapshots import Snapshots
from parbake.core.errors import ContainerdError, ParbakeError
from parbake.core.timestamps import timestamp

_LEASES = "/containerd.services.leases.v1.Leases"
_NAMESPACES = "/containerd.services.namespaces.v1.Namespaces"
_LEASE_HOURS = 24.0  # a lease outlives its run for so long when the run is killed
_COLLECTION = 600.0  # seconds that garbage collection may take


class Client:
    """Speaks to one containerd, in one namespace; thread-safe. Errors: see ``errors.fault``."""

    def __init__(self, connection: Connection, *, namespace: str = KUBERNETES, snapshotter: str = OVERLAY) -> None:
        self.connection = connection
        self.namespace = namespace
        self._lease = ""
        self.content = Content(connection, self._metadata)
        self.snapshots = Snapshots(connection, self._metadata, snapshotter)
        self.images = Images(connection, self._metadata)

    def _metadata(self) -> Metadata:
        namespace = (("containerd-namespace", self.namespace),)
        return (*namespace, ("containerd-lease", self._lease)) if self._lease else namespace

    def version(self) -> str:
        """Return containerd's version."""
        reply = self.connection.unary(
            "/containerd.services.version.v1.Version/Version", Empty(), version_pb2.VersionResponse
        )
        return reply.version

    def make_namespace(self) -> None:
        """Make sure that the client's namespace exists."""
        request = namespaces_pb2.CreateNamespaceRequest(namespace=namespaces_pb2.Namespace(name=self.namespace))
        with suppress(AlreadyExists):
            self.connection.unary(f"{_NAMESPACES}/Create", request, namespaces_pb2.CreateNamespaceResponse)

    @contextmanager
    def lease(self, name: str, *, hours: float = _LEASE_HOURS) -> Iterator[str]:
        """Keep all that this client writes from garbage collection, from any thread; yields the lease's id.

        The end deletes the lease and waits for the collection of what nothing refers to. A lease of a killed run ends
        by itself after ``hours``. Leases do not nest.
        """
        if self._lease:
            raise ContainerdError(f"lease {name}: this client holds {self._lease} already", hint="end that one first")
        lease = f"{name}.{os.urandom(4).hex()}"
        self._make_lease(lease, hours)
        self._lease = lease
        try:
            yield lease
        except BaseException:
            self._lease = ""
            with suppress(ParbakeError):  # the first error is the one to tell; the lease expires
                self._drop_lease(lease, sync=False)
            raise
        self._lease = ""
        self._drop_lease(lease, sync=True)

    def gc(self) -> None:
        """Collect garbage, in all namespaces, and wait for the end of it.

        containerd has no call for that: deleting a lease that holds nothing has the same effect.
        """
        lease = f"parbake-gc.{os.urandom(4).hex()}"
        self._make_lease(lease, _LEASE_HOURS)
        self._drop_lease(lease, sync=True)

    def _make_lease(self, lease: str, hours: float) -> None:
        expires = timestamp(datetime.now(UTC) + timedelta(hours=hours))
        request = leases_pb2.CreateRequest(id=lease, labels={EXPIRES: expires})
        self.connection.unary(
            f"{_LEASES}/Create", request, leases_pb2.CreateResponse, metadata=self._metadata(), subject=lease
        )

    def _drop_lease(self, lease: str, *, sync: bool) -> None:
        request = leases_pb2.DeleteRequest(id=lease, sync=sync)
        self.connection.unary(
            f"{_LEASES}/Delete", request, Empty, metadata=self._metadata(), timeout=_COLLECTION, subject=lease
        )

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def connect(
    target: str | Path | socket.socket,
    *,
    namespace: str = KUBERNETES,
    snapshotter: str = OVERLAY,
    patience: float = 1.0,
    places: Mapping[Path, Path] | None = None,
) -> Client:
    """Return a client of the containerd behind a unix socket's path or an already connected stream.

    A stream becomes the client's and is never opened a second time. ``patience`` multiplies every time limit.
    ``places``: see ``Connection``. Nothing is sent before the first call.
    """
    return Client(Connection(target, patience=patience, places=places), namespace=namespace, snapshotter=snapshotter)

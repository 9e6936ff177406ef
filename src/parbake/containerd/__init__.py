"""A private containerd and a client for any containerd.

``Daemon`` starts one of our own; ``connect`` talks to it, or to one in a virtual machine through a relayed stream. The
names that need gRPC are loaded on first use, so that a daemon is already starting while Python imports.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from parbake.containerd.client import Client as Client
    from parbake.containerd.client import connect as connect
    from parbake.containerd.content import ContentInfo as ContentInfo
    from parbake.containerd.cri import Cri as Cri
    from parbake.containerd.daemon import Daemon as Daemon
    from parbake.containerd.errors import AlreadyExists as AlreadyExists
    from parbake.containerd.errors import NotFound as NotFound
    from parbake.containerd.images import ImageRecord as ImageRecord
    from parbake.containerd.snapshots import Mount as Mount
    from parbake.containerd.snapshots import SnapshotInfo as SnapshotInfo
    from parbake.containerd.snapshots import top_folder as top_folder

_HOMES = {
    "AlreadyExists": "errors",
    "Client": "client",
    "ContentInfo": "content",
    "Cri": "cri",
    "Daemon": "daemon",
    "ImageRecord": "images",
    "Mount": "snapshots",
    "NotFound": "errors",
    "SnapshotInfo": "snapshots",
    "connect": "client",
    "top_folder": "snapshots",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)

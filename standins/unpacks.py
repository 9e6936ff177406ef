"""What containerd makes of a stack of layers, by its own diff service and overlayfs snapshotter, hundreds a minute.

with Containerd(folder) as containerd:
    trees, refusal = containerd.unpack(layers)      # tar bytes, bottom first
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, Self

from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

from parbake.containerd import Client, Daemon
from parbake.containerd.own_root import STORE
from parbake.containerd.proto import common_pb2
from parbake.containerd.snapshots import folders
from parbake.core import mounts
from parbake.core.errors import ParbakeError
from parbake.core.model import Descriptor
from standins.layers import PLAIN, digest
from standins.trees import Node, scan

_MS_REMOUNT, _MS_BIND = 32, 4096  # mount(2)
_APPLY: Final = "/containerd.services.diff.v1.Diff/Apply"


def _messages() -> tuple[type[message.Message], type[message.Message]]:
    """Return request and reply of the call (containerd ``api/services/diff/v1/diff.proto``), which only tests make."""
    common = common_pb2.DESCRIPTOR
    file = descriptor_pb2.FileDescriptorProto(
        name="tests/diff.proto", package="tests.diff", syntax="proto3", dependency=[common.name]
    )
    kind = descriptor_pb2.FieldDescriptorProto
    for name, fields in (("Request", ("Descriptor", "Mount")), ("Reply", ("Descriptor",))):
        found = file.message_type.add(name=name)
        for number, field in enumerate(fields, 1):
            label = kind.LABEL_REPEATED if field == "Mount" else kind.LABEL_OPTIONAL
            found.field.add(
                name=field.lower(), number=number, label=label, type=kind.TYPE_MESSAGE,
                type_name=f".{common.package}.{field}",
            )  # fmt: skip
    pool = descriptor_pool.Default()
    pool.AddSerializedFile(file.SerializeToString())
    request, reply = (pool.FindMessageTypeByName(f"tests.diff.{name}") for name in ("Request", "Reply"))
    return message_factory.GetMessageClass(request), message_factory.GetMessageClass(reply)


_Request, _Reply = _messages()


class FollowingDaemon(Daemon):
    """A containerd on a store in which links are followed, as a node's does."""

    def _build(self, at: Path, programs: list[Path]) -> None:
        super()._build(at, programs)
        store = at / STORE.relative_to("/")
        mounts.bind(self.root, store)
        assert not mounts.attach("none", store, flags=_MS_REMOUNT | _MS_BIND)  # what the mount forbade, it allows again


class Containerd:
    """A containerd of our own below a folder; use with ``with``, in the mount namespace of that folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = itertools.count()
        self._stack = ExitStack()
        self._client: Client

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            daemon = stack.enter_context(FollowingDaemon(self._folder / "root", self._folder / "run"))
            self._client = stack.enter_context(daemon.client())
            self._client.make_namespace()
            stack.enter_context(self._client.lease("stacks"))  # else its garbage collection takes what is under way
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def unpack(self, layers: Sequence[bytes]) -> tuple[list[dict[bytes, Node]], str]:
        """Return the tree of each layer, in overlayfs' form, and why the next was refused ("" when none was)."""
        snapshots = self._client.snapshots
        number = next(self._numbers)
        trees: list[dict[bytes, Node]] = []
        names: list[str] = []
        refusal = ""
        for place, layer in enumerate(layers):
            key, name = f"key-{number}-{place}", f"layer-{number}-{place}"
            mounted = snapshots.prepare(key, names[-1] if names else "")
            try:
                self._apply(layer, mounted)
            except ParbakeError as error:
                refusal = error.message
                snapshots.remove(key)
                break
            trees.append(scan(folders(mounted).upper))
            snapshots.commit(name, key)
            names.append(name)
        for name in reversed(names):
            snapshots.remove(name)
        return trees, refusal

    def _apply(self, layer: bytes, mounted: Sequence[Any]) -> None:
        blob = Descriptor(media_type=PLAIN, digest=digest(layer), size=len(layer))
        self._client.content.write(blob, layer, {})
        request = _Request(
            descriptor=common_pb2.Descriptor(media_type=blob.media_type, digest=blob.digest, size=blob.size),
            mount=[
                common_pb2.Mount(
                    type=each.type, source=self._theirs(each.source), options=map(self._theirs, each.options)
                )
                for each in mounted
            ],
        )
        metadata = (("containerd-namespace", self._client.namespace),)
        self._client.connection.unary(_APPLY, request, _Reply, metadata=metadata)

    def _theirs(self, text: str) -> str:
        """Return what a mount says in the words of the daemon's own root."""
        return text.replace(str(self._folder / "root"), str(STORE))

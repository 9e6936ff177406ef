"""One gRPC channel over one connection, shared by everything that talks to the same containerd."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Self, TypeVar

from google.protobuf.message import Message

from parbake.containerd.errors import fault

# gRPC's C core writes its own lines to standard error, which belongs to our renderer; what matters arrives as an error.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
import grpc

Metadata = tuple[tuple[str, str], ...]
Reply = TypeVar("Reply", bound=Message)

_LARGEST_MESSAGE = 64 << 20  # bytes; containerd's own limit is 16 MiB, a list may be that long
_HANDSHAKE = 20.0  # seconds until the other side must have spoken HTTP/2
_FAREWELL = 2.0  # seconds for closing
_PUMP = 256 << 10
LONGEST_SOCKET_PATH = 107  # bytes (unix(7): sun_path holds 108 with the closing zero)


class Connection:
    """A channel to a containerd; thread-safe.

    ``target`` is the path of its unix socket, or a connected stream socket that reaches it. A stream is used as the
    one connection there is and never opened again; a path is connected to when first needed. Every time limit is
    multiplied with ``patience`` (emulated machines are slow). ``places`` are folders of a containerd with a root of its
    own: what it calls each, and where it lies for us. Errors: those of ``errors.fault``.
    """

    def __init__(
        self, target: str | Path | socket.socket, *, patience: float = 1.0, places: Mapping[Path, Path] | None = None
    ) -> None:
        self.patience = patience
        self._places = places or {}
        self._bridge: _Bridge | None = None
        self._folder = -1
        if isinstance(target, socket.socket):
            self._bridge = _Bridge(target)
            address = self._bridge.address
        else:
            address = f"unix:{self._short(Path(target).absolute())}"
        handshake = int(_HANDSHAKE * patience * 1000)
        self._channel = grpc.insecure_channel(
            address,
            options=(
                ("grpc.client_idle_timeout_ms", 2**31 - 1),  # idle channels hang up, and would have to connect again
                ("grpc.default_authority", "localhost"),  # Go refuses what is derived from odd socket names
                ("grpc.enable_http_proxy", 0),
                ("grpc.enable_retries", 0),
                ("grpc.max_receive_message_length", _LARGEST_MESSAGE),
                ("grpc.max_send_message_length", _LARGEST_MESSAGE),
                ("grpc.min_reconnect_backoff_ms", handshake),
                ("grpc.use_local_subchannel_pool", 1),  # channels of others must not share, or keep, this connection
            ),
        )

    def _short(self, path: Path) -> str:
        """Return a name of the socket that fits into an address: a long path goes through a handle on its folder."""
        if len(os.fsencode(path)) <= LONGEST_SOCKET_PATH:
            return str(path)
        self._folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        return f"/proc/self/fd/{self._folder}/{path.name}"

    def ours(self, path: str) -> str:
        """Return where something lies for us, by the path that containerd calls it."""
        for theirs, ours in self._places.items():
            if Path(path).is_relative_to(theirs):
                return str(ours / Path(path).relative_to(theirs))
        return path

    def theirs(self, path: Path | str) -> str:
        """Return what containerd calls a path of ours. Raises ValueError for what does not lie in its root."""
        for theirs, ours in self._places.items():
            if Path(path).is_relative_to(ours):
                return str(theirs / Path(path).relative_to(ours))
        if self._places:
            raise ValueError(f"{path} is in none of {', '.join(map(str, self._places.values()))}")
        return str(path)

    def unary(
        self,
        method: str,
        request: Message,
        reply: type[Reply],
        *,
        metadata: Metadata = (),
        timeout: float = 30.0,
        subject: str = "",
    ) -> Reply:
        """Call ``/package.Service/Method`` and return its answer."""
        call = self._channel.unary_unary(method, request_serializer=_serialize, response_deserializer=reply.FromString)
        with _translated(method, subject):
            answer: Reply = call(request, timeout=timeout * self.patience, metadata=metadata)
        return answer

    def stream(
        self,
        method: str,
        request: Message,
        reply: type[Reply],
        *,
        metadata: Metadata = (),
        timeout: float = 300.0,
        subject: str = "",
    ) -> Iterator[Reply]:
        """Call a method that answers with a stream of messages; closing the iterator cancels the call."""
        call = self._channel.unary_stream(method, request_serializer=_serialize, response_deserializer=reply.FromString)
        with _translated(method, subject):
            answers = call(request, timeout=timeout * self.patience, metadata=metadata)
            try:
                yield from answers
            finally:
                answers.cancel()

    def duplex(
        self,
        method: str,
        requests: Iterable[Message],
        reply: type[Reply],
        *,
        metadata: Metadata = (),
        timeout: float,
        subject: str = "",
    ) -> Iterator[Reply]:
        """Call a method with a stream of messages each way; ``requests`` is iterated in a thread of gRPC's."""
        call = self._channel.stream_stream(
            method, request_serializer=_serialize, response_deserializer=reply.FromString
        )
        with _translated(method, subject):
            answers = call(iter(requests), timeout=timeout * self.patience, metadata=metadata)
            try:
                yield from answers
            finally:
                answers.cancel()

    def close(self) -> None:
        """Close the connection; calls that are under way end with an error."""
        # gRPC waits for the end of every call, also of one that Ctrl-C cut off inside it, which never comes.
        closer = threading.Thread(target=self._channel.close, name="close-grpc", daemon=True)
        closer.start()
        closer.join(_FAREWELL)
        if self._bridge is not None:
            self._bridge.close()
        if self._folder >= 0:
            os.close(self._folder)
            self._folder = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()


@contextmanager
def _translated(method: str, subject: str) -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as error:
        service, _, verb = method.removeprefix("/").rpartition("/")
        what = f"{service.rpartition('.')[2]}.{verb} {subject}".rstrip()
        raise fault(error.code().name, error.details() or "", what) from error


class _Bridge:
    """Hands a connected stream to gRPC, which takes nothing but addresses.

    It listens on an abstract socket, accepts exactly one connection of this very process, and copies bytes both ways.
    A second attempt finds nobody listening: that is what makes the stream the only connection there will ever be.
    """

    def __init__(self, stream: socket.socket) -> None:
        name = f"parbake-{os.urandom(16).hex()}"
        self.address = f"unix-abstract:{name}"
        self._stream = stream
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(f"\0{name}")
        self._listener.listen(1)
        threading.Thread(target=self._serve, name="containerd-bridge", daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError), closing(self._stream):
            inside = self._accept()
            with closing(inside):
                back = threading.Thread(
                    target=_pump, args=(self._stream, inside), name="containerd-bridge", daemon=True
                )
                back.start()
                _pump(inside, self._stream)
                back.join()

    def _accept(self) -> socket.socket:
        with closing(self._listener):
            while True:
                inside, _ = self._listener.accept()
                credentials = inside.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
                if struct.unpack("3i", credentials)[0] == os.getpid():
                    return inside
                inside.close()

    def close(self) -> None:
        for end in (self._listener, self._stream):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def _pump(source: socket.socket, target: socket.socket) -> None:
    """Copy until either end closes, then close both directions: half a connection is of no use to HTTP/2."""
    with suppress(OSError):
        while data := source.recv(_PUMP):
            target.sendall(data)
    for end in (source, target):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)

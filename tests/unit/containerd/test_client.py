"""The client against a fake containerd: errors, metadata, time limits, the protocol of a write, one connection."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from parbake.containerd import AlreadyExists, Client, Cri, NotFound, connect
from parbake.containerd.errors import Unavailable
from parbake.containerd.proto import content_pb2, cri_pb2, images_pb2, leases_pb2, version_pb2
from parbake.core.errors import BadContent, ContainerdError, DeadlineExceeded, DiskFull, ParbakeError
from parbake.core.model import MIB, Descriptor
from standins import containerd_support as support
from standins.containerd_fake import Abort, FakeContainerd

VERSION = "/containerd.services.version.v1.Version/Version"
WRITE = "/containerd.services.content.v1.Content/Write"
ABORT = "/containerd.services.content.v1.Content/Abort"
GET = "/containerd.services.images.v1.Images/Get"
CRI_VERSION = "/runtime.v1.RuntimeService/Version"
DIGEST = f"sha256:{'ab' * 32}"


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeContainerd]:
    with FakeContainerd(tmp_path / "sock") as fake:
        fake.unary[VERSION] = lambda _: version_pb2.VersionResponse(version="9.9")
        fake.unary[CRI_VERSION] = lambda _: cri_pb2.VersionResponse(runtime_name="fake", runtime_version="9.9")
        yield fake


@pytest.fixture
def client(fake: FakeContainerd) -> Iterator[Client]:
    with connect(fake.socket) as client:
        yield client


@pytest.mark.parametrize(
    ("code", "details", "kind"),
    [
        ("NOT_FOUND", "image x: not found", NotFound),
        ("ALREADY_EXISTS", "x: already exists", AlreadyExists),
        ("UNAVAILABLE", "socket closed", Unavailable),
        ("UNKNOWN", "write /x: no space left on device", DiskFull),
        ("INTERNAL", "mkdir /x: disk quota exceeded: unknown", DiskFull),
        ("RESOURCE_EXHAUSTED", "", DiskFull),
        ("RESOURCE_EXHAUSTED", "Received message larger than max (5 vs. 4)", ContainerdError),
        ("FAILED_PRECONDITION", "unexpected commit digest sha256:1, expected sha256:2", BadContent),
        ("FAILED_PRECONDITION", "cannot remove snapshot with child", ContainerdError),
        ("DEADLINE_EXCEEDED", "", DeadlineExceeded),
        ("UNIMPLEMENTED", "unknown service", ContainerdError),
        ("PERMISSION_DENIED", "no", ContainerdError),
    ],
)
def test_errors_name_what_and_why(
    fake: FakeContainerd, client: Client, code: str, details: str, kind: type[ParbakeError]
) -> None:
    def refuse(_: bytes) -> Message:
        raise Abort(code, details)

    fake.unary["/containerd.services.content.v1.Content/Update"] = refuse
    with pytest.raises(ParbakeError) as caught:
        client.content.label(DIGEST, {"a": "b"})
    assert type(caught.value) is kind
    assert f"Content.Update {DIGEST}: {details or code}" in caught.value.message


def test_a_service_that_is_not_there(client: Client) -> None:
    with pytest.raises(ContainerdError, match=r"Images\.Get some/image") as caught:
        client.images.get("some/image")
    assert "without that service" in caught.value.hint


def test_nobody_there(tmp_path: Path) -> None:
    with connect(tmp_path / "nothing") as client, pytest.raises(Unavailable, match=r"Version\.Version"):
        client.version()


def test_namespace_and_lease_travel_with_each_call(fake: FakeContainerd, client: Client) -> None:
    fake.unary[GET] = lambda _: images_pb2.GetImageResponse()
    leases = "/containerd.services.leases.v1.Leases"
    fake.unary[f"{leases}/Create"] = lambda _: leases_pb2.CreateResponse()
    fake.unary[f"{leases}/Delete"] = lambda _: Empty()
    client.images.get("a")
    with client.lease("mine") as lease:
        client.images.get("b")
        support.in_namespace(client, "other").images.get("c")
    client.images.get("d")
    seen = [
        (data["containerd-namespace"], data.get("containerd-lease")) for method, data in fake.calls if method == GET
    ]
    assert seen == [("k8s.io", None), ("k8s.io", lease), ("other", None), ("k8s.io", None)]
    assert lease.startswith("mine.")


def test_patience_scales_time_limits(fake: FakeContainerd) -> None:
    given_up = threading.Event()

    def slow(_: bytes) -> Message:
        given_up.wait(60)
        return version_pb2.VersionResponse(version="slow")

    fake.unary[VERSION] = slow
    with connect(fake.socket, patience=0.005) as hasty, pytest.raises(DeadlineExceeded, match=r"Version\.Version"):
        hasty.version()
    given_up.set()
    with connect(fake.socket, patience=1.0) as patient:
        assert patient.version() == "slow"


def test_a_long_socket_path(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    with FakeContainerd(tmp_path / "sock") as fake:
        fake.unary[VERSION] = lambda _: version_pb2.VersionResponse(version="far")
        (folder / "sock").symlink_to(fake.socket)
        with connect(folder / "sock") as client:
            assert client.version() == "far"


# ---- writing content


class Ingest:
    """The server's side of one write, as containerd's content server does it (contentserver.go)."""

    def __init__(self, have: int = 0, *, hang_up: bool = False) -> None:
        self.offset = have
        self.hang_up = hang_up
        self.data = b""
        self.sizes: list[int] = []
        self.labels: dict[str, str] | None = None
        self.first = content_pb2.WriteContentRequest()

    def __call__(self, requests: Iterator[bytes]) -> Iterator[Message]:
        for number, raw in enumerate(requests):
            request = content_pb2.WriteContentRequest.FromString(raw)
            if number == 0:
                self.first = request
            if request.action == content_pb2.WRITE:
                if request.offset != self.offset:
                    raise Abort("OUT_OF_RANGE", f"write @{request.offset} must occur at current offset {self.offset}")
                self.data += request.data
                self.sizes.append(len(request.data))
                self.offset += len(request.data)
            if request.action == content_pb2.COMMIT:
                if self.hang_up:
                    return
                self.labels = dict(request.labels)
            yield content_pb2.WriteContentResponse(action=request.action, offset=self.offset)
            if request.action == content_pb2.COMMIT:
                return


def blob(size: int) -> Descriptor:
    return Descriptor(media_type="application/octet-stream", digest=DIGEST, size=size)


def test_a_write_in_pieces_of_at_most_a_mebibyte(fake: FakeContainerd, client: Client) -> None:
    ingest = fake.duplex[WRITE] = Ingest()
    data = bytes(range(256)) * 10_000
    client.content.write(blob(len(data)), data, {"label": "value"})
    assert ingest.data == data
    assert max(ingest.sizes) == MIB
    assert ingest.labels == {"label": "value"}
    assert (ingest.first.expected, ingest.first.total) == (DIGEST, len(data))
    assert ingest.first.ref == f"parbake-{DIGEST}"


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pieces=st.lists(st.binary(max_size=50), max_size=8),
    have=st.integers(min_value=0, max_value=200),
    as_view=st.booleans(),
)
def test_a_resumed_write_sends_what_is_missing(
    fake: FakeContainerd, client: Client, pieces: list[bytes], have: int, *, as_view: bool
) -> None:
    data = b"".join(pieces)
    have = min(have, len(data))
    ingest = fake.duplex[WRITE] = Ingest(have)
    client.content.write(blob(len(data)), (memoryview(piece) if as_view else piece for piece in pieces))
    assert ingest.data == data[have:]
    assert ingest.labels == {}


def test_what_the_data_raises_is_raised(fake: FakeContainerd, client: Client) -> None:
    def broken() -> Iterator[bytes]:
        yield b"some"
        raise BadContent("the registry sent something else")

    aborted: list[str] = []

    def abort(raw: bytes) -> Message:
        aborted.append(content_pb2.AbortRequest.FromString(raw).ref)
        return Empty()

    ingest = fake.duplex[WRITE] = Ingest()
    fake.unary[ABORT] = abort
    with pytest.raises(BadContent, match="the registry sent something else"):
        client.content.write(blob(10), broken())
    assert ingest.labels is None
    assert aborted == [f"parbake-{DIGEST}"]  # what was written is as bad


def test_a_lock_of_a_broken_write_is_waited_for(fake: FakeContainerd, client: Client) -> None:
    ingest = Ingest()
    refusals = 3

    def locked(requests: Iterator[bytes]) -> Iterator[Message]:
        nonlocal refusals
        if refusals:
            refusals -= 1
            raise Abort("UNAVAILABLE", f'ref parbake-{DIGEST} locked for 3ms (since "now"): unavailable')
        yield from ingest(requests)

    fake.duplex[WRITE] = locked
    client.content.write(blob(4), b"data")
    assert ingest.data == b"data"
    assert refusals == 0


def test_a_write_that_ends_early_is_no_success(fake: FakeContainerd, client: Client) -> None:
    fake.duplex[WRITE] = Ingest(hang_up=True)
    with pytest.raises(Unavailable, match="ended before the commit"):
        client.content.write(blob(4), b"data")


def test_existing_content_gets_the_labels(fake: FakeContainerd, client: Client) -> None:
    def exists(_: Iterator[bytes]) -> Iterator[Message]:
        raise Abort("ALREADY_EXISTS", "content exists")
        yield

    labelled: list[content_pb2.UpdateRequest] = []

    def update(raw: bytes) -> Message:
        labelled.append(content_pb2.UpdateRequest.FromString(raw))
        return content_pb2.UpdateResponse()

    fake.duplex[WRITE] = exists
    fake.unary["/containerd.services.content.v1.Content/Update"] = update
    client.content.write(blob(4), b"data")
    assert labelled == []
    client.content.write(blob(4), b"data", {"containerd.io/x": "y"})
    assert [(dict(request.info.labels), list(request.update_mask.paths)) for request in labelled] == [
        ({"containerd.io/x": "y"}, ["labels.containerd.io/x"])
    ]


def test_a_full_disk_while_writing(fake: FakeContainerd, client: Client) -> None:
    def full(requests: Iterator[bytes]) -> Iterator[Message]:
        next(requests)
        yield content_pb2.WriteContentResponse(action=content_pb2.STAT)
        next(requests)
        raise Abort("UNKNOWN", "write /store/ingest/data: no space left on device")

    fake.duplex[WRITE] = full
    with pytest.raises(DiskFull):
        client.content.write(blob(5 * MIB), bytes(5 * MIB))


# ---- a stream that can be connected to once


class Relay:
    """Like QEMU's chardev socket: accepts one connection, copies slowly, notes whether anybody else knocks."""

    def __init__(self, path: Path, target: Path, *, delay: float = 0.0) -> None:
        self.path, self._target, self._delay = path, target, delay
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(5)
        self._ends: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        outside, _ = self._listener.accept()
        inside = socket.socket(socket.AF_UNIX)
        inside.connect(str(self._target))
        self._ends += [outside, inside]
        threading.Thread(target=self._copy, args=(inside, outside), daemon=True).start()
        self._copy(outside, inside)

    def _copy(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(512):
                time.sleep(self._delay)
                target.sendall(data)
        except OSError:
            pass

    def cut(self) -> None:
        for end in self._ends:
            end.shutdown(socket.SHUT_RDWR)

    @property
    def others(self) -> bool:
        self._listener.settimeout(0.2)
        try:
            self._listener.accept()
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        for end in (self._listener, *self._ends):
            end.close()


@pytest.fixture
def relay(fake: FakeContainerd, tmp_path: Path) -> Iterator[Relay]:
    relay = Relay(tmp_path / "chardev", fake.socket, delay=0.01)
    yield relay
    relay.close()


@pytest.mark.parametrize("by", ["stream", "path"])
def test_client_and_cri_share_one_slow_connection(fake: FakeContainerd, relay: Relay, by: str) -> None:
    target: Path | socket.socket = relay.path
    if by == "stream":
        target = socket.socket(socket.AF_UNIX)
        target.connect(str(relay.path))
    with connect(target, patience=4.0) as client:
        cri = Cri(client.connection)
        assert client.version() == "9.9"
        assert cri.version() == "fake 9.9"
        threads = [threading.Thread(target=client.version) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(fake.calls) == 6
    assert not relay.others


def test_a_stream_that_broke_is_not_opened_again(relay: Relay) -> None:
    stream = socket.socket(socket.AF_UNIX)
    stream.connect(str(relay.path))
    with connect(stream) as client:
        client.version()
        relay.cut()
        for _ in range(3):
            with pytest.raises(Unavailable):
                client.version()
    assert not relay.others
    assert stream.fileno() == -1 or stream.recv(1) == b""

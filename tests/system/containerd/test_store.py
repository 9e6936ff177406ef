"""The client against a real containerd: what it writes is what `ctr` sees, what `ctr` pulls is what our rules say."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

import pytest

from parbake.containerd import AlreadyExists, Client, Daemon, NotFound
from parbake.containerd.content import reference
from parbake.containerd.labels import EXPIRES, PINNED, chain_ids
from parbake.containerd.snapshots import folders
from parbake.core import run
from parbake.core.errors import BadContent, ContainerdError
from parbake.core.model import MIB, Descriptor
from standins import containerd_support as support
from standins.containerd_support import CONFIG, INDEX, busybox, describe, digest_of, fill

pytestmark = pytest.mark.root

NAME = "registry.test/team/app:1"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    place = tmp_path_factory.mktemp("store")
    with Daemon(place / "root", place / "run") as daemon:
        yield daemon


@pytest.fixture
def client(daemon: Daemon, request: pytest.FixtureRequest) -> Iterator[Client]:
    """A client of a namespace of the test's own."""
    namespace = re.sub(r"[^a-z]+", "-", request.node.name.lower()).strip("-")[:40].strip("-")
    with daemon.client(namespace) as client:
        yield client
        for image in client.images.list():
            client.images.delete(image.name, sync=False)
        client.gc()


def ctr(daemon: Daemon, client: Client, *arguments: str) -> list[list[str]]:
    command = ["ctr", "--address", str(daemon.socket), "--namespace", client.namespace, *arguments]
    return [line.split() for line in run.run(command).text.splitlines()]


def test_an_image_as_ctr_sees_it(daemon: Daemon, client: Client) -> None:
    made = busybox()
    fill(client, NAME, made)
    assert client.namespace in support.namespaces(client)
    assert [row[:3] for row in ctr(daemon, client, "images", "ls")[1:]] == [
        [NAME, made.manifest.media_type, made.manifest.digest]
    ]
    assert {row[0] for row in ctr(daemon, client, "content", "ls")[1:]} == {made.manifest.digest, made.config.digest}
    bottom, top = chain_ids(made.diff_ids)
    assert sorted(ctr(daemon, client, "snapshots", "ls")[1:]) == sorted(
        [[bottom, "Committed"], [top, bottom, "Committed"]]
    )
    labels = " ".join(ctr(daemon, client, "images", "ls")[1][-1:])
    assert labels == "io.cri-containerd.pinned=pinned"
    assert support.leases(client) == ()


def test_what_nothing_refers_to_goes_and_its_files_go(daemon: Daemon, client: Client) -> None:
    made = busybox({"unique": b"only here"})
    snapshots = daemon.root / "io.containerd.snapshotter.v1.overlayfs/snapshots"
    before = {path.name for path in snapshots.iterdir()}
    fill(client, NAME, made)
    assert len({path.name for path in snapshots.iterdir()} - before) == 2
    client.images.delete(NAME)
    assert client.content.list() == ()
    assert client.snapshots.list() == ()
    assert {path.name for path in snapshots.iterdir()} == before
    client.images.delete(NAME)  # missing is fine


def test_content(client: Client) -> None:
    data = bytes(range(256)) * 20_000  # over several messages
    blob = describe(data, "application/octet-stream")
    with client.lease("content"):
        pieces: list[bytes | memoryview] = [data[:10], data[10 : 3 * MIB], memoryview(data)[3 * MIB :]]
        client.content.write(blob, iter(pieces), {"one": "1"})
        client.content.write(blob, data, {"two": "2"})
        info = client.content.info(blob.digest)
        assert info is not None
        assert (info.size, info.labels) == (len(data), {"one": "1", "two": "2"})
        client.content.label(blob.digest, {"one": "", "three": "3"})
        assert [dict(found.labels) for found in client.content.list()] == [{"two": "2", "three": "3"}]
        assert client.content.read(blob.digest) == data
        empty = describe(b"", "application/octet-stream")
        client.content.write(empty, b"")
        assert client.content.exists(empty.digest)
        with pytest.raises(NotFound, match="0" * 64):
            client.content.read(f"sha256:{'0' * 64}")
    assert client.content.list() == ()  # nothing refers to it, and the lease is gone


def test_a_broken_write_is_resumed(client: Client) -> None:
    data = bytes(range(251)) * 30_000
    blob = describe(data, "application/octet-stream")
    seen = 0

    def pieces(stop: int) -> Iterator[bytes]:
        for start in range(0, len(data), MIB):
            if start >= stop:
                raise ConnectionResetError("the registry hung up")
            yield data[start : start + MIB]

    with client.lease("resume"):
        with pytest.raises(ConnectionResetError, match="hung up"):
            client.content.write(blob, pieces(3 * MIB))
        deadline = run.Deadline(120, "the broken write's end")
        while not (seen := support.unfinished(client).get(reference(blob.digest), 0)):
            deadline.sleep(0.01)
        assert seen <= 3 * MIB
        client.content.write(blob, pieces(len(data)))
        assert client.content.read(blob.digest) == data
        assert support.unfinished(client) == {}


def test_wrong_bytes_are_refused_and_forgotten(client: Client) -> None:
    data = b"what was promised"
    blob = describe(data, "application/octet-stream")
    with client.lease("wrong"):
        with pytest.raises(BadContent, match=blob.digest):
            client.content.write(blob, b"what was delivere")
        with pytest.raises(BadContent):
            client.content.write(blob, data + b" and more")
        assert support.unfinished(client) == {}
        client.content.write(blob, data)
        assert client.content.read(blob.digest) == data


def test_content_of_another_namespace_is_shared(client: Client) -> None:
    data = b"shared" * 1000
    blob = describe(data, "application/octet-stream")
    other = support.in_namespace(client, "other")
    with client.lease("here"), other.lease("there"):
        other.content.write(blob, data)
        assert not client.content.exists(blob.digest)
        client.content.write(blob, data)
        assert client.content.read(blob.digest) == data


def test_snapshots(client: Client) -> None:
    snapshots = client.snapshots
    with client.lease("snapshots"):
        mounts = snapshots.prepare("work", labels={"a": "b"})
        where = folders(mounts)
        assert where.lowers == ()
        (where.upper / "file").write_bytes(b"x" * 10_000)
        assert snapshots.mounts("work") == mounts
        assert snapshots.stat("work") is not None
        with pytest.raises(AlreadyExists):
            snapshots.prepare("work")
        snapshots.commit("bottom", "work", {"c": "d"})
        info = snapshots.stat("bottom")
        assert info is not None
        assert (info.kind, info.parent, info.labels) == ("committed", "", {"c": "d"})
        size, inodes = snapshots.usage("bottom")
        assert size >= 10_000
        assert inodes == 2

        above = folders(snapshots.prepare("work", "bottom"))
        assert above.lowers == (where.upper,)
        snapshots.commit("top", "work")
        # A second hand at the same layer: the first one's result stays.
        snapshots.prepare("again", "bottom")
        snapshots.commit("top", "again")
        assert not snapshots.exists("again")
        assert {(info.name, info.parent) for info in snapshots.list()} == {("bottom", ""), ("top", "bottom")}

        with pytest.raises(ContainerdError, match="not an overlay with an upper folder"):
            folders(snapshots.view("look", "top"))
        with pytest.raises(NotFound, match="nowhere"):
            snapshots.prepare("lost", "nowhere")
        for name in ("look", "top", "top", "bottom"):
            snapshots.remove(name)
        assert snapshots.list() == ()


def test_images(client: Client) -> None:
    first = Descriptor(media_type=CONFIG, digest=digest_of(b"1"), size=1)
    second = Descriptor(media_type=INDEX, digest=digest_of(b"2"), size=2)
    client.images.put(NAME, first, {"mine": "1", **PINNED})
    client.images.put(NAME, second, {"mine": "2"})
    record = client.images.get(NAME)
    assert record is not None
    assert (record.target, record.labels) == (second, {"mine": "2", **PINNED})
    assert client.images.get("registry.test/none:1") is None
    assert client.images.list(f"name=={NAME}") == (record,)
    assert client.images.list("name==other") == ()


def test_leases(daemon: Daemon, client: Client) -> None:
    blob = describe(b"leased", "application/octet-stream")
    with client.lease("keep", hours=2) as lease:
        assert support.leases(client) == (lease,)
        client.content.write(blob, b"leased")
        client.gc()
        assert client.content.exists(blob.digest)
        listed = ctr(daemon, client, "leases", "ls")[1]
        expires = dict(label.split("=", 1) for label in listed[-1].split(","))[EXPIRES]
        left = time.mktime(time.strptime(expires, "%Y-%m-%dT%H:%M:%SZ")) - time.mktime(time.gmtime())
        assert 7000 < left <= 7200
        with pytest.raises(ContainerdError, match="already"), client.lease("nested"):
            pass
    assert support.leases(client) == ()
    assert not client.content.exists(blob.digest)
    with pytest.raises(ZeroDivisionError), client.lease("fails"):
        raise ZeroDivisionError
    assert support.leases(client) == ()

"""A store filled by parbake holds what a pull by containerd would have left."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path

import pytest

from parbake.builders.fill import MountedStore, fill, held
from parbake.containerd import Client, Daemon
from parbake.containerd.labels import PINNED
from parbake.core.errors import BadContent, LayerError, Unreachable
from parbake.core.events import Event, Events
from parbake.core.model import Descriptor, Plan
from parbake.core.sources import LayerSource, Readable
from standins import containerd_support as support
from standins.images import Built, image, index, layer
from standins.store import Memory, ctr, image_of, plan_of, pull_by_ctr, snapshot_folders
from standins.trees import differences, scan

pytestmark = pytest.mark.root


@cache
def base() -> bytes:
    return layer({"etc/": None, "etc/motd": b"hello", "usr/lib/": None, "usr/lib/big": os.urandom(3_000_000)})


@cache
def app() -> Built:
    return image(base(), layer({"app/": None, "app/run": b"#!/bin/sh\n", "etc/.wh.motd": b""}))


@cache
def other() -> Built:
    return image(base(), layer({"other": b"1"}), layer({}), layer({}), compression="zstd")


@cache
def nested() -> Built:
    return index(index(app(), image(base(), platform="linux/arm64")), other())


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Client]:
    with Daemon(tmp_path / "root", tmp_path / "run") as daemon, daemon.client() as client:
        yield client


@pytest.fixture
def work(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


def put(
    plan: Plan, store: Client, source: LayerSource, work: Path, tell: Callable[[Event], None] = lambda _: None
) -> None:
    """Fill a containerd's store, with the lease that a bake takes."""
    with held(store, plan.key) as client:
        fill(plan, client, lambda _: source, events=Events(tell), destination=MountedStore(client, work))


def shape(client: Client) -> set[tuple[str, str, str]]:
    return {(info.name, info.parent, info.kind) for info in client.snapshots.list()}


def test_the_same_store_as_containerds_own(tmp_path: Path, work: Path) -> None:
    name = "localhost/app:1"
    with ExitStack() as stack:
        theirs = stack.enter_context(Daemon(tmp_path / "theirs", tmp_path / "run-theirs"))
        ours = stack.enter_context(Daemon(tmp_path / "ours", tmp_path / "run-ours"))
        their_client, our_client = stack.enter_context(theirs.client()), stack.enter_context(ours.client())
        pull_by_ctr(theirs, app(), tmp_path, name)
        described = image_of(app(), name)
        put(plan_of(described, keep_layers=True), our_client, Memory(app()), work)
        assert list(work.iterdir()) == []

        assert [record.name for record in our_client.images.list()] == list(described.names)
        assert our_client.images.get(name).target == their_client.images.get(name).target  # type: ignore[union-attr]
        assert shape(our_client) == shape(their_client)
        blobs = {info.digest: info for info in their_client.content.list()}
        found = {info.digest: info for info in our_client.content.list()}
        assert found == {digest: info for digest, info in blobs.items() if digest in found}
        assert set(found) == {app().digest, *(blob.digest for blob in app().blobs)}
        chains = tuple(one.chain_id for one in described.layers)
        for one, two in zip(snapshot_folders(our_client, chains), snapshot_folders(their_client, chains), strict=True):
            their_tree = scan(two)
            undated = frozenset(path for path, node in their_tree.items() if node.modified > 1_750_000_000 * 10**9)
            assert differences(scan(one), their_tree, ignore_times_of=undated) == []
        ctr(ours, "images", "export", str(tmp_path / "export.tar"), name)


def test_shared_layers_once_and_a_second_fill_does_nothing(store: Client, work: Path) -> None:
    source = Memory(app(), other())
    # The same tar under another compression is the same snapshot: the first to come brings it.
    plan = plan_of(image_of(app(), "docker.io/library/app:1"), image_of(other(), "quay.io/team/other:2"))
    events: list[Event] = []
    put(plan, store, source, work, events.append)
    assert len(source.opened) == len(set(source.opened)) + 1  # the empty layer comes twice, on different parents
    assert len(store.snapshots.list()) == 5
    assert sum(event.done for event in events if event.kind == "task-end") == sum(
        blob.size for blob in (*app().layers, *other().layers[1:])
    )
    labels = store.content.info(app().digest).labels  # type: ignore[union-attr]
    assert labels["containerd.io/distribution.source.docker.io"] == "library/app"
    assert not any(".l." in label for label in labels)
    assert store.images.get("quay.io/team/other:2").labels == PINNED  # type: ignore[union-attr]

    put(plan, store, Memory(), work)  # a source that has nothing: nothing is asked
    store.gc()
    assert len(store.snapshots.list()) == 5
    assert {info.digest for info in store.content.list()} == {
        app().digest, app().config.digest, other().digest, other().config.digest,
    }  # fmt: skip


def test_an_index_in_an_index(store: Client, work: Path) -> None:
    described = image_of(app(), "localhost:5000/app@" + nested().digest, target=nested())
    put(plan_of(described), store, Memory(nested()), work)
    (record,) = store.images.list()
    assert (record.name, record.target.digest) == (f"localhost:5000/app@{nested().digest}", nested().digest)
    store.gc()
    inner = nested().children[0]
    assert {info.digest for info in store.content.list()} == {
        nested().digest, inner.digest, app().digest, app().config.digest,
    }  # fmt: skip


def test_a_target_that_does_not_lead_to_the_manifest(store: Client, work: Path) -> None:
    described = image_of(app(), "localhost:5000/app:1", target=index(other()))
    with pytest.raises(BadContent, match="does not lead to the manifest"):
        put(plan_of(described), store, Memory(app(), index(other())), work)


def test_layers_are_kept_later_too(store: Client, work: Path) -> None:
    described = image_of(app(), "localhost:5000/app:1")
    source = Memory(app())
    put(plan_of(described), store, source, work)
    assert not store.content.exists(app().layers[0].digest)
    put(plan_of(described, keep_layers=True), store, source, work)
    store.gc()
    assert all(store.content.exists(blob.digest) for blob in app().layers)


class Broken(Memory):
    """A source whose stream of one blob fails, or has other bytes, and whose other streams never end."""

    def __init__(self, built: Built, damaged: str, error: Exception | None = None) -> None:
        super().__init__(built)
        self.damaged, self.error = damaged, error
        if error is None:
            data = self.blobs[damaged]
            self.blobs[damaged] = data[:-20] + bytes(20)

    @contextmanager
    def open(self, descriptor: Descriptor, *, offset: int = 0) -> Iterator[Readable]:
        if descriptor.digest == self.damaged and self.error:
            raise self.error
        with super().open(descriptor, offset=offset) as stream:
            yield stream


@pytest.mark.parametrize("keep_layers", [False, True])
def test_a_fill_that_failed_is_finished_by_the_next(keep_layers: bool, store: Client, work: Path) -> None:
    plan = plan_of(image_of(app(), "localhost:5000/app:1"), keep_layers=keep_layers)
    broken = Broken(app(), app().layers[1].digest)
    with pytest.raises(BadContent, match="the bytes that arrived have the digest"):
        put(plan, store, broken, work)
    with pytest.raises(Unreachable):
        put(plan, store, Broken(app(), app().layers[0].digest, Unreachable("gone")), work)
    assert store.images.list() == ()
    put(plan, store, Memory(app()), work)
    assert {record.name for record in store.images.list()} == set(plan.images[0].names)
    assert list(work.iterdir()) == []
    assert len(store.snapshots.list()) == 2
    assert support.leases(store) == ()


def test_a_hostile_layer_leaves_no_image(store: Client, work: Path) -> None:
    attack = image(base(), layer({"../../../../../../../../tmp/parbake-fill-escape": b"x"}))
    with pytest.raises(LayerError, match="leads outside its root"):
        put(plan_of(image_of(attack, "evil.example/x:1")), store, Memory(attack), work)
    assert store.images.list() == ()
    assert not Path("/tmp/parbake-fill-escape").exists()

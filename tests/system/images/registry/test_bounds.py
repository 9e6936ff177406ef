"""What a registry may claim and cost: sizes are held against what it has, requests and time are bounded."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator

import pytest

from parbake.core.errors import BadContent, InputError, Unreachable
from parbake.images.registry import Patience, Registry
from standins.faulty_proxy import Cut, Drip, FaultyProxy, Header, WholeAnswer
from standins.images import Compression, image, layer, push
from standins.registry import DockerRegistry
from standins.registry_client import AMD64, PLAIN, QUICK, nobody, read_all, ref

__all__ = ["nobody"]  # a fixture for every test here

SOME = layer({"a": bytes(range(256)) * 2000})


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    with DockerRegistry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture
def network(registry: DockerRegistry) -> Iterator[FaultyProxy]:
    with FaultyProxy(registry.url) as running:
        yield running


@pytest.mark.parametrize("more", [1, -1, 1 << 39])
@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
def test_a_claimed_size_is_held_against_what_the_registry_has(
    network: FaultyProxy, registry: DockerRegistry, compression: Compression, more: int
) -> None:
    """The plan's disk and its bounds follow from the claim, so it must not wait for the bake to be found wrong."""
    built = image(SOME, compression=compression)
    document = json.loads(built.root.data)
    claimed = document["layers"][0]["size"] = document["layers"][0]["size"] + more
    root = dataclasses.replace(built.root, data=json.dumps(document).encode())
    push(registry.url, "team/app", built, "v1")
    with Registry({network.host: PLAIN}, patience=QUICK) as client:
        assert client.resolve(ref(network.host), AMD64).layers[0].size == claimed - more
        lying = dataclasses.replace(built, root=root)
        push(registry.url, "team/app", lying, "v1")
        with pytest.raises(BadContent, match=rf"the manifest says {claimed} bytes, the registry has|less of it than"):
            client.resolve(ref(network.host), AMD64)


def test_a_registry_without_ranges_is_held_to_the_length_of_the_whole(
    network: FaultyProxy, registry: DockerRegistry
) -> None:
    built = image(SOME)
    push(registry.url, "team/app", built, "v2")
    network.only = built.layers[0].digest
    with Registry({network.host: PLAIN}, patience=QUICK) as client:
        network.faults.append(WholeAnswer())
        assert client.resolve(ref(network.host, "team/app:v2"), AMD64).layers[0].raw_size == 0
        network.faults.append(Header("Content-Range", "bytes 0-3/123456"))
        with pytest.raises(BadContent, match="the registry has 123456"):
            client.resolve(ref(network.host, "team/app:v2"), AMD64)


def test_an_image_of_20000_layers_costs_two_requests(network: FaultyProxy, registry: DockerRegistry) -> None:
    built = image(SOME)
    document = json.loads(built.root.data)
    document["layers"] *= 20_000  # 3 MiB: a manifest may have 4
    root = dataclasses.replace(built.root, data=json.dumps(document, separators=(",", ":")).encode())
    push(registry.url, "team/app", dataclasses.replace(built, root=root), "v3")
    with Registry({network.host: PLAIN}, patience=QUICK) as client, pytest.raises(InputError, match="20000 layers"):
        client.resolve(ref(network.host, "team/app:v3"), AMD64)
    assert len(network.requests) <= 2


def test_a_blob_that_drips_comes_to_an_end_whatever_its_connections_do(
    network: FaultyProxy, registry: DockerRegistry
) -> None:
    """Each new connection delivers enough to count as progress, and the whole is slow all the same."""
    built = image(layer({"a": bytes(range(256)) * 16_000}), compression="none")  # pauses are random: many of them
    push(registry.url, "team/app", built, "v4")
    patience = Patience(tries=3, first=0.3, longest=0.3, total=10, stall=5, rate=1, grace=1.0, average=4 << 20)
    with Registry({network.host: PLAIN}, patience=patience) as client:
        found = client.resolve(ref(network.host, "team/app:v4"), AMD64)
        network.faults.extend([Cut(66_000)] * 60)
        started = time.monotonic()
        with pytest.raises(Unreachable, match="too slow to continue"):
            read_all(client, found)
        network.faults.clear()
        network.faults.append(Drip(0.001))
        with pytest.raises(Unreachable, match="too slow to continue"):
            read_all(client, found)
        assert time.monotonic() - started < 10
        network.faults.clear()
        assert read_all(client, found) == built.layers[0].data


def test_a_document_that_drips_comes_to_an_end(network: FaultyProxy, registry: DockerRegistry) -> None:
    built = image(SOME)
    push(registry.url, "team/app", built, "v5")
    patience = Patience(tries=3, first=0.01, longest=0.02, stall=5, rate=1, grace=0.2, average=1 << 20)
    network.only = "/manifests/"
    network.faults.append(Drip(0.005))
    with Registry({network.host: PLAIN}, patience=patience) as client:
        with pytest.raises(Unreachable, match="too slow to continue"):
            client.resolve(ref(network.host, "team/app:v5"), AMD64)
        assert client.resolve(ref(network.host, "team/app:v5"), AMD64).layers

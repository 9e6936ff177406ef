"""Blobs over a network that resets, stalls, lies about lengths and drips: the exact bytes, or a clean error."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from parbake.core.errors import BadContent, RegistryError, Unreachable
from parbake.core.model import Image
from parbake.images.registry import Patience, Registry
from standins.faulty_proxy import (
    Chunked,
    Cut,
    Drip,
    DripHeader,
    Fault,
    FaultyProxy,
    Flip,
    Header,
    Length,
    Stall,
    Status,
    WholeAnswer,
)
from standins.images import image, layer, push
from standins.registry import DockerRegistry
from standins.registry_client import AMD64, PLAIN, QUICK, layer_of, nobody, read_all, ref

__all__ = ["nobody"]  # a fixture for every test here

DATA = os.urandom(300_000)
BUILT = image(layer({"data": DATA}), compression="none")
BLOB = BUILT.layers[0].data
IMPATIENT = Patience(tries=3, first=0.01, longest=0.02, total=10, connect=2, stall=0.3, rate=1000)


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyProxy]:
    with DockerRegistry(tmp_path_factory.mktemp("registry")) as registry, FaultyProxy(registry.url) as running:
        push(registry.url, "team/app", BUILT, "v1")
        yield running


@pytest.fixture
def network(proxy: FaultyProxy) -> FaultyProxy:
    """The proxy without faults of an earlier test."""
    proxy.faults.clear()
    proxy.only = "/blobs/"
    return proxy


def fetch(network: FaultyProxy, *faults: Fault, patience: Patience = QUICK, offset: int = 0) -> bytes:
    with Registry({network.host: PLAIN}, patience=patience) as client:
        found = client.resolve(ref(network.host), AMD64)
        network.faults.extend(faults)
        network.requests.clear()
        return read_all(client, found, offset=offset)


def ranges(network: FaultyProxy) -> list[str]:
    return [headers.get("range", "") for _, _, headers in network.requests]


@pytest.mark.parametrize("polite", [False, True])
def test_a_cut_is_mended_where_it_was(network: FaultyProxy, *, polite: bool) -> None:
    assert fetch(network, Cut(100_000, polite), Cut(70_000, polite), Status(503)) == BLOB
    first, *later = ranges(network)
    assert first == ""
    assert later == ["bytes=100000-", "bytes=170000-", "bytes=170000-"]


def test_a_cut_before_anything_came(network: FaultyProxy) -> None:
    assert fetch(network, Cut(0), Cut(0)) == BLOB


def test_a_server_that_ignores_ranges(network: FaultyProxy) -> None:
    assert fetch(network, Cut(100_000), WholeAnswer()) == BLOB
    assert fetch(network, WholeAnswer(), offset=123_456) == BLOB[123_456:]


def test_too_many_cuts_in_a_row(network: FaultyProxy) -> None:
    with pytest.raises(Unreachable, match="connection broke") as caught:
        fetch(network, *[Cut(1000)] * 3)
    assert network.host in str(caught.value)


def test_progress_earns_new_tries(network: FaultyProxy) -> None:
    assert fetch(network, *[Cut(1000), Cut(66_000)] * 4) == BLOB


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_statuses_that_pass(network: FaultyProxy, status: int) -> None:
    assert fetch(network, Status(status), Status(status)) == BLOB
    with pytest.raises(RegistryError, match=f"answers {status}"):
        fetch(network, *[Status(status)] * 3)


def test_statuses_that_stay_are_not_tried_again(network: FaultyProxy) -> None:
    with pytest.raises(RegistryError, match="answers 410"):
        fetch(network, Status(410))
    assert len(network.requests) == 1


@pytest.mark.parametrize("after", ["0", "1", "http-date", "soon", "-1"])
def test_retry_after(network: FaultyProxy, after: str) -> None:
    if after == "http-date":
        after = format_datetime(datetime.now(UTC) + timedelta(seconds=1), usegmt=True)
    assert fetch(network, Status(429, {"Retry-After": after})) == BLOB


def test_an_endless_retry_after_is_bounded_by_the_total(network: FaultyProxy) -> None:
    with pytest.raises(RegistryError, match="answers 429"):
        fetch(network, Status(429, {"Retry-After": "3600"}))
    assert len(network.requests) == 1


@pytest.mark.parametrize("fault", [Length(1), Length(5000)])
def test_longer_than_promised(network: FaultyProxy, fault: Fault) -> None:
    with pytest.raises(BadContent, match=f"says {len(BLOB)} bytes"):
        fetch(network, fault)


def test_shorter_than_promised(network: FaultyProxy) -> None:
    assert fetch(network, Length(-5000)) == BLOB  # the rest is asked for
    assert ranges(network)[1] == f"bytes={len(BLOB) - 5000}-"
    with pytest.raises(BadContent, match="is 0 bytes long"):
        fetch(network, *[Length(-len(BLOB))] * 3)


def test_chunks_tell_no_length(network: FaultyProxy) -> None:
    assert fetch(network, Chunked()) == BLOB
    with pytest.raises(BadContent, match="is longer"):
        fetch(network, Chunked(b"x"))


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("", "without a range"),
        ("bytes 1-2", "without a range"),
        ("bytes 200000-299999/999999999", "is 999999999 bytes long"),
        (f"bytes 200000-{len(BLOB) - 1}/*", "from 100000 on, got"),
        (f"bytes 100000-{len(BLOB)}/{len(BLOB)}", "from 100000 on, got"),
    ],
)
def test_ranges_that_are_not_what_was_asked_for(network: FaultyProxy, header: str, message: str) -> None:
    with pytest.raises(BadContent, match=message):
        fetch(network, Header("Content-Range", header), offset=100_000)


def test_a_stall_is_a_break(network: FaultyProxy) -> None:
    assert fetch(network, Stall(100_000, 30), patience=IMPATIENT) == BLOB
    with pytest.raises(Unreachable, match="no answer in time"):
        fetch(network, *[Stall(0, 30)] * 3, patience=IMPATIENT)


def test_a_drip_is_a_break(network: FaultyProxy) -> None:
    assert fetch(network, Drip(0.01), patience=IMPATIENT) == BLOB
    with pytest.raises(Unreachable, match="bytes/s arrive"):
        fetch(network, *[Drip(0.01)] * 3, patience=IMPATIENT)


def test_a_header_that_drips_is_a_break(network: FaultyProxy) -> None:
    assert fetch(network, DripHeader(0.01), patience=IMPATIENT) == BLOB


def test_documents_are_tried_again_as_well(network: FaultyProxy) -> None:
    network.only = ""
    with Registry({network.host: PLAIN}, patience=QUICK) as client:
        pairs: list[list[Fault]] = [[Status(503), Cut(10)], [Status(429), Cut(0, polite=True)]]
        for faults in pairs:
            network.faults.extend(faults)
            assert client.resolve(ref(network.host), AMD64).manifest.digest == BUILT.digest
        network.faults.append(Flip(50))
        with pytest.raises(BadContent, match="has the digest"):
            client.resolve(ref(network.host), AMD64)
        network.only = BUILT.config.digest
        network.faults.append(Flip(50))
        with pytest.raises(BadContent, match="has the digest"):
            client.resolve(ref(network.host), AMD64)


def test_the_reader_is_the_one_who_sees_a_wrong_byte(network: FaultyProxy) -> None:
    content = fetch(network, Cut(100_000), Flip(1000))
    assert len(content) == len(BLOB)
    assert hashlib.sha256(content).digest() != hashlib.sha256(BLOB).digest()


def test_leaving_early_leaves_nothing(network: FaultyProxy) -> None:
    with Registry({network.host: PLAIN}, patience=QUICK) as client:
        found = client.resolve(ref(network.host), AMD64)
        buffer = memoryview(bytearray(1000))
        for _ in range(20):
            with client.source(found).open(layer_of(found, 0)) as stream:
                assert stream.readinto(buffer) == 1000
        with ThreadPoolExecutor(8) as threads:
            assert set(threads.map(lambda _: read_all(client, found), range(16))) == {BLOB}


_FAULTS = st.one_of(
    st.builds(Cut, st.integers(0, len(BLOB)), st.booleans()),
    st.builds(Status, st.sampled_from([408, 429, 500, 503])),
    st.builds(Length, st.integers(-len(BLOB), 100)),
    st.builds(Chunked, st.sampled_from([b"", b"x", b"x" * 10_000])),
    st.builds(WholeAnswer),
    # A range that lies about where it begins, and is right about all the rest, is for the digest to find.
    st.builds(Header, st.just("Content-Range"), st.sampled_from(["", "bytes 0-1/2", f"bytes 5-9/{len(BLOB)}"])),
)


@pytest.fixture
def shared(network: FaultyProxy) -> Iterator[tuple[FaultyProxy, Registry, Image]]:
    patience = Patience(tries=4, first=0.0001, longest=0.0001, connect=2, stall=5)
    with Registry({network.host: PLAIN}, patience=patience) as client:
        yield network, client, client.resolve(ref(network.host), AMD64)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(faults=st.lists(_FAULTS, max_size=8), offset=st.integers(0, len(BLOB)))
def test_any_faults_give_the_exact_blob_or_a_clean_error(
    shared: tuple[FaultyProxy, Registry, Image], faults: list[Fault], offset: int
) -> None:
    network, client, found = shared
    network.faults.clear()
    network.faults.extend(faults)
    try:
        content = read_all(client, found, offset=offset)
    except RegistryError:
        return  # any other kind of error fails the test
    assert content == BLOB[offset:]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(65_536, 120_000), max_size=6))
def test_cuts_with_progress_always_end_in_the_exact_blob(
    shared: tuple[FaultyProxy, Registry, Image], cuts: list[int]
) -> None:
    network, client, found = shared
    network.faults.clear()
    network.faults.extend(Cut(after, polite=True) for after in cuts)
    assert read_all(client, found) == BLOB

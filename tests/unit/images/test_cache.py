"""The cache of layers: what it gives is what came, or nothing; it stays within its bound; it is never in the way."""

from __future__ import annotations

import hashlib
import io
import os
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from parbake.core.errors import BadContent, CacheDamaged, InputError, LayerBomb
from parbake.core.events import Event, Events
from parbake.core.model import Descriptor, Image, Layer, Platform
from parbake.core.sources import LayerSource, Readable
from parbake.core.units import size_of
from parbake.core.workspace import WORK
from parbake.images import cache as layer_cache
from parbake.images.cache import CachingSources, cached, entries, prune

BLOBS = {
    f"sha256:{hashlib.sha256(data).hexdigest()}": data
    for data in (
        random.Random(number).randbytes(size) for number, size in enumerate((5, 70_000, 3 << 20, (9 << 20) + 1))
    )
}
SMALL, MIDDLE, LARGE, LARGEST = BLOBS
GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"


class Registry:
    """A source in memory that counts what is opened, and hands out pieces of odd sizes."""

    def __init__(self, cut: int = 1 << 30) -> None:
        self.opened: list[str] = []
        self.cut = cut

    def read(self, descriptor: Descriptor) -> bytes:
        return BLOBS[descriptor.digest]

    @contextmanager
    def open(self, descriptor: Descriptor, *, offset: int = 0) -> Iterator[Readable]:
        self.opened.append(descriptor.digest)
        file = io.BytesIO(BLOBS[descriptor.digest][offset : self.cut])

        class Odd:
            def readinto(self, buffer: memoryview, /) -> int:
                return file.readinto(buffer[: random.Random(file.tell()).randint(1, 300_000)])

        yield Odd()


def descriptor(digest: str) -> Descriptor:
    return Descriptor(media_type=GZIP, digest=digest, size=len(BLOBS[digest]))


def image(layout: str = "") -> Image:
    layers = tuple(
        Layer(media_type=GZIP, digest=digest, size=len(data), diff_id=digest, chain_id=digest)
        for digest, data in BLOBS.items()
    )
    some = descriptor(SMALL)
    return Image(
        reference="registry.example/app:1", platform=Platform.host(), target=some, manifest=some, config=some,
        layers=layers, layout=layout,
    )  # fmt: skip


def read(source: LayerSource, digest: str, *, offset: int = 0, size: int = 100_000) -> bytes:
    out = bytearray()
    buffer = memoryview(bytearray(size))
    with source.open(descriptor(digest), offset=offset) as stream:
        while count := stream.readinto(buffer):
            out += buffer[:count]
    return bytes(out)


@pytest.fixture
def registry() -> Registry:
    return Registry()


def cache(folder: Path, registry: Registry, limit: int = 1 << 30, events: Events | None = None) -> CachingSources:
    return CachingSources(lambda _: registry, folder / "layers", limit, events or Events())


def held(folder: Path) -> list[str]:
    return [entry.digest for entry in entries(folder / "layers")]


def test_off_it_is_not_there(tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("", "0"):
        monkeypatch.setenv(layer_cache.VARIABLE, value)
        sources = lambda _: registry  # noqa: E731
        assert cached(sources, tmp_path, Events()) is sources
    assert list(tmp_path.iterdir()) == []


def test_the_second_time_nothing_is_fetched(
    tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(layer_cache.VARIABLE, "1GiB")
    for _ in range(2):
        for digest, data in BLOBS.items():
            assert read(cached(lambda _: registry, tmp_path, Events())(image()), digest) == data
    source = cached(lambda _: registry, tmp_path, Events())(image())
    assert registry.opened == list(BLOBS)
    assert read(source, LARGE, offset=1_000_000) == BLOBS[LARGE][1_000_000:]
    assert source.read(descriptor(SMALL)) == BLOBS[SMALL]
    assert len(registry.opened) == len(BLOBS)
    assert sorted(path.name for path in (tmp_path / "layers").iterdir()) == sorted(
        digest.replace(":", "-") for digest in BLOBS
    )


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.integers(1, 2 << 20), digest=st.sampled_from(list(BLOBS)))
def test_whatever_is_read_at_a_time(tmp_path: Path, sizes: int, digest: str) -> None:
    prune(tmp_path, 0)
    sizes = max(sizes, len(BLOBS[digest]) // 500)
    source = cache(tmp_path, Registry())(image())
    assert read(source, digest, size=sizes) == read(source, digest, size=sizes) == BLOBS[digest]
    assert held(tmp_path) == [digest]


def test_a_layer_that_another_run_removes_just_then_is_read_all_the_same(
    tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = cache(tmp_path, registry)(image())
    assert read(source, SMALL) == BLOBS[SMALL]
    monkeypatch.setattr(os, "utime", lambda *_: prune(tmp_path, 0))  # after it was found
    assert read(source, SMALL) == BLOBS[SMALL]
    assert held(tmp_path) == []


def test_images_of_this_machine_are_not_cached(tmp_path: Path, registry: Registry) -> None:
    assert cache(tmp_path, registry)(image("/some/layout")) is registry


def test_what_broke_off_is_not_kept(tmp_path: Path, registry: Registry) -> None:
    source = cache(tmp_path, registry)(image())
    buffer = memoryview(bytearray(1000))

    def refuse() -> None:
        with source.open(descriptor(LARGEST)) as stream:
            while stream.readinto(buffer):
                pass
            raise BadContent("the digest is wrong, says the reader")

    with pytest.raises(BadContent):
        refuse()
    with source.open(descriptor(LARGEST)) as stream:
        stream.readinto(buffer)
    registry.cut = 1_000_000
    assert read(source, LARGE) == BLOBS[LARGE][:1_000_000]
    assert read(source, MIDDLE, offset=5) == BLOBS[MIDDLE][5:]
    assert held(tmp_path) == []
    assert not (tmp_path / "layers" / WORK).exists()


def test_what_was_used_longest_ago_goes_first(tmp_path: Path, registry: Registry) -> None:
    limit = len(BLOBS[LARGE]) + len(BLOBS[MIDDLE]) + 5
    source = cache(tmp_path, registry, limit)(image())
    for number, digest in enumerate((MIDDLE, LARGE)):
        read(source, digest)
        os.utime(tmp_path / "layers" / digest.replace(":", "-"), (number, number))
    read(source, MIDDLE)  # used again
    read(source, SMALL)
    assert held(tmp_path)[0] == LARGE
    read(source, LARGEST)
    assert LARGEST not in held(tmp_path), "larger than the whole cache"
    BLOBS["sha256:" + "0" * 64] = bytes(10)
    try:
        read(source, "sha256:" + "0" * 64)
        assert set(held(tmp_path)) == {MIDDLE, SMALL, "sha256:" + "0" * 64}
    finally:
        del BLOBS["sha256:" + "0" * 64]


@pytest.mark.parametrize("error", [BadContent("wrong digest"), LayerBomb("too large")])
def test_damage_is_removed_and_fetched_again(error: Exception, tmp_path: Path, registry: Registry) -> None:
    source = cache(tmp_path, registry)(image())

    def find_fault(digest: str) -> None:
        with source.open(descriptor(digest)):
            raise error

    for digest in (MIDDLE, LARGE):
        read(source, digest)
    with (tmp_path / "layers" / LARGE.replace(":", "-")).open("r+b") as file:
        file.seek(1_000_000)
        file.write(b"damage")
    assert read(source, LARGE) != BLOBS[LARGE]
    with pytest.raises(CacheDamaged, match=f"{LARGE} was damaged"):
        find_fault(LARGE)
    with pytest.raises(type(error), match=str(error)):  # the cache is right, so something else is not
        find_fault(MIDDLE)
    assert held(tmp_path) == [MIDDLE]
    assert read(source, LARGE) == BLOBS[LARGE]


@pytest.mark.parametrize("size", [0, 100, (3 << 20) + 5])
def test_another_length_is_a_miss(size: int, tmp_path: Path, registry: Registry) -> None:
    """What a power cut leaves of a file that was renamed and never synced."""
    source = cache(tmp_path, registry)(image())
    read(source, LARGE)
    os.truncate(tmp_path / "layers" / LARGE.replace(":", "-"), size)
    assert read(source, LARGE) == BLOBS[LARGE]
    assert read(source, LARGE) == BLOBS[LARGE]
    assert registry.opened == [LARGE, LARGE]


def test_a_disk_that_is_too_slow_holds_nothing_up(
    tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layer_cache, "_CHUNKS", 1)
    monkeypatch.setattr(layer_cache, "_SHARE", 0.0)
    monkeypatch.setattr(layer_cache, "_GRACE", 0.0)
    told: list[Event] = []
    source = cache(tmp_path, registry, events=Events(told.append))(image())
    assert read(source, LARGEST) == BLOBS[LARGEST]
    assert [event.text.partition(": ")[2] for event in told] == ["the disk is slower than the registry"]
    assert held(tmp_path) == []


def test_where_nothing_can_be_written_nothing_fails(tmp_path: Path, registry: Registry) -> None:
    (tmp_path / "layers").write_text("a file where the folder should be")
    source = cache(tmp_path, registry)(image())
    assert read(source, LARGE) == BLOBS[LARGE]


def test_a_full_disk_is_left_to_the_bake(tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_cache, "_GROWTH", 1 << 40)
    assert read(cache(tmp_path, registry)(image()), LARGE) == BLOBS[LARGE]
    assert held(tmp_path) == []


def test_many_at_once(tmp_path: Path) -> None:
    limit = len(BLOBS[LARGEST]) + len(BLOBS[MIDDLE])

    def work(seed: int) -> None:
        chance = random.Random(seed)
        source = cache(tmp_path, Registry(), limit)(image())
        for _ in range(6):
            digest = chance.choice(list(BLOBS))
            assert read(source, digest) == BLOBS[digest]
            if chance.random() < 0.2:
                prune(tmp_path, chance.randrange(limit))

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(work, range(6)))
    assert sum(entry.size for entry in entries(tmp_path / "layers")) <= limit
    assert not (tmp_path / "layers" / WORK).exists()


def test_prune(tmp_path: Path, registry: Registry) -> None:
    assert prune(tmp_path, 0) == ((), ())
    source = cache(tmp_path, registry)(image())
    for number, digest in enumerate(BLOBS):
        read(source, digest)
        os.utime(tmp_path / "layers" / digest.replace(":", "-"), (number, number))
    (tmp_path / "layers/notes.txt").write_text("not ours")
    gone, kept = prune(tmp_path, len(BLOBS[LARGEST]) + 10, dry_run=True)
    assert ([entry.digest for entry in gone], [entry.digest for entry in kept]) == ([SMALL, MIDDLE, LARGE], [LARGEST])
    assert len(held(tmp_path)) == 4
    assert prune(tmp_path, len(BLOBS[LARGEST]) + 10) == (gone, kept)
    assert held(tmp_path) == [LARGEST]
    prune(tmp_path, 0)
    assert [path.name for path in (tmp_path / "layers").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(("text", "size"), [("", 0), ("0", 0), ("20GiB", 20 << 30), ("1.5 GB", 1_500_000_000)])
def test_sizes(text: str, size: int) -> None:
    assert size_of(text, "X") == size


@pytest.mark.parametrize("text", ["20", "GiB", "-1GiB", "20 gigs", "1e3MiB", "yes"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(InputError, match=r"X: .* is not a valid size"):
        size_of(text, "X")

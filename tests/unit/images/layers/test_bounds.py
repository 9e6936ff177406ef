"""What a layer may cost: bytes, memory, and headers, however little travels."""

from __future__ import annotations

import gzip
import hashlib
import io
import zlib
from pathlib import Path
from typing import Any

import pytest
import zstandard

from parbake.core.errors import LayerBomb, LayerError
from parbake.core.model import Layer
from parbake.images.layers import FolderSink, archive, engine, unpack
from standins.layers import describe, put
from standins.tars import archive as tar
from standins.tars import entry, pax

SMALL = tar(entry(b"f", data=b"x"))


@pytest.fixture(params=["in turn", "in threads"])
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "in threads":
        monkeypatch.setattr(engine, "SMALL", -1)


def go(raw: bytes, packed: bytes, target: Path, *, bound: int = 1 << 40) -> None:
    unpack(io.BytesIO(packed), describe(raw, packed), FolderSink(target), bound=bound, progress=lambda _: None)


def with_header(packed: bytes, name: bytes) -> bytes:
    """Return gzip whose first member has a file name (flag 8, RFC 1952)."""
    return packed[:3] + b"\x08" + packed[4:10] + name + b"\0" + packed[10:]


@pytest.mark.usefixtures("_way")
@pytest.mark.parametrize("size", [256 << 10, 1 << 20, 20 << 20])
def test_a_gzip_header_of_more_than_256_kib_is_an_error_of_the_layer(size: int, tmp_path: Path) -> None:
    with pytest.raises(LayerError, match="its gzip header is larger than 256 KiB"):
        go(SMALL, with_header(gzip.compress(SMALL), b"n" * size), tmp_path)


@pytest.mark.usefixtures("_way")
def test_a_gzip_header_of_a_later_member_is_bounded_too(tmp_path: Path) -> None:
    packed = gzip.compress(SMALL[:512]) + with_header(gzip.compress(SMALL[512:]), b"n" * (300 << 10))
    with pytest.raises(LayerError, match="its gzip header is larger than 256 KiB"):
        go(SMALL, packed, tmp_path)


@pytest.mark.usefixtures("_way")
def test_a_gzip_header_of_a_long_name_is_fine(tmp_path: Path) -> None:
    go(SMALL, with_header(gzip.compress(SMALL), b"n" * 100_000), tmp_path)
    assert (tmp_path / "f").read_bytes() == b"x"


@pytest.mark.usefixtures("_way")
def test_a_tar_that_gzip_could_not_hold_is_a_bomb_whatever_the_disk_holds(tmp_path: Path) -> None:
    """zstd packs zeros 32,768 to 1: 3 KiB that say nothing of their size would fill any disk that is large enough."""
    layer, packed = with_zeros(zstandard.ZstdCompressor(write_content_size=False).compressobj())
    assert len(packed) < 20_000
    with pytest.raises(LayerBomb, match="inflates to more than 67108864 bytes, which gzip could not"):
        unpack(io.BytesIO(packed), layer, FolderSink(tmp_path), bound=1 << 40, progress=lambda _: None)


def test_what_gzip_can_hold_is_unpacked(tmp_path: Path) -> None:
    layer, packed = with_zeros(zlib.compressobj(9, wbits=31))
    unpack(io.BytesIO(packed), layer, FolderSink(tmp_path), bound=1 << 40, progress=lambda _: None)
    assert (tmp_path / "f").exists()


def with_zeros(compressor: Any) -> tuple[Layer, bytes]:
    """Return a layer of one small file and 100 MiB of zeros, which are never in memory as a whole, and its blob."""
    hashed, packed = hashlib.sha256(), bytearray()
    for piece in (SMALL, *[bytes(1 << 20)] * 100):
        hashed.update(piece)
        packed += compressor.compress(piece)
    packed += compressor.flush()
    diff_id = f"sha256:{hashed.hexdigest()}"
    layer = describe(SMALL, bytes(packed))
    return layer.model_copy(update={"diff_id": diff_id, "chain_id": diff_id}), bytes(packed)


def test_a_layer_has_no_more_than_two_million_entries() -> None:
    """Each takes about 450 bytes of memory in a tree of files; all known images have fewer in all of their layers."""
    chunks = iter([memoryview(entry(b"f") * 2048)])
    reader = archive.Archive(archive.Chunks(lambda: next(chunks, None)), most_entries=engine.MOST_ENTRIES)
    reader.count = engine.MOST_ENTRIES - 1000
    for _ in range(1000):
        assert reader.next() is not None
    with pytest.raises(LayerBomb, match="more than 2000000 entries"):
        reader.next()


def test_long_names_and_attributes_are_bounded_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are kept in memory with the tree, and compress to nearly nothing."""
    monkeypatch.setattr(archive, "MOST_EXTENDED", 100_000, raising=False)
    one = pax({b"SCHILY.xattr.user.a": b"v" * 3000}), entry(b"f")
    put(tmp_path / "few", tar(*one * 30))
    with pytest.raises(LayerBomb, match="its long names and attributes take more than"):
        put(tmp_path / "many", tar(*one * 40))

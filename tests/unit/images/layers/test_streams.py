"""The two ends of the engine: what arrives is verified, and what it inflates to."""

from __future__ import annotations

import gzip
import io
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from parbake.core.errors import BadContent, LayerBomb, LayerError, Unreachable
from parbake.core.model import Layer
from parbake.images.layers import FolderSink, engine, unpack
from standins.layers import GZIP, PLAIN, describe
from standins.tars import archive, entry, pax
from tests.fuzz.targets import fuzz_layer

SKIPPABLE = b"\x5f\x2a\x4d\x18" + (6).to_bytes(4, "little") + b"ignore"


@cache
def content() -> bytes:
    return os.urandom(3_000_000) + b"text " * 200_000


@cache
def raw_layer() -> bytes:
    return archive(entry(b"d/", b"5"), entry(b"d/big", data=content()), entry(b"small", data=b"hi"))


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


# Made when they are needed: every process that tests are spread over reads this file, and one runs them.
PACKED: dict[str, Callable[[], bytes]] = {
    "gzip": lambda: gzip.compress(raw_layer(), 1),
    "gzip in members": lambda: (
        gzip.compress(raw_layer()[:1000], 1) + gzip.compress(b"") + gzip.compress(raw_layer()[1000:], 1)
    ),
    "gzip with zeros behind": lambda: gzip.compress(raw_layer(), 1) + bytes(100),
    "zstd": lambda: zstd(raw_layer()),
    "zstd in frames": lambda: zstd(raw_layer()[:1000]) + zstd(raw_layer()[1000:]),
    "zstd:chunked": lambda: SKIPPABLE + zstd(raw_layer()[:5000]) + SKIPPABLE + zstd(raw_layer()[5000:]) + SKIPPABLE,
    "plain": raw_layer,
}


@cache
def packing(how: str) -> bytes:
    return PACKED[how]()


@pytest.fixture(autouse=True, params=["in turn", "in threads"])
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "in threads":
        monkeypatch.setattr(engine, "SMALL", -1)


def test_a_header_that_lies_in_two_buffers(tmp_path: Path) -> None:
    """Its first half is read before the buffer is filled again."""
    name = b"/".join([b"n" * 250] * 3)
    size = engine._RAW_SIZE
    raw = archive(
        entry(b"before", data=b"b" * (size - 1536)),
        pax({b"path": name}),
        entry(b"x"),
        entry(b"after", data=b"a" * 3 * size),
    )
    assert raw[size - 1024 :][156:157] == b"x"  # the last block but one of the first buffer
    unpack(io.BytesIO(raw), describe(raw), FolderSink(tmp_path), bound=1 << 30, progress=lambda _: None)
    assert (tmp_path / os.fsdecode(name)).is_file()


class Slow:
    """A stream that gives a few bytes at a time, and may fail."""

    def __init__(self, data: bytes, most: int, error: Exception | None = None) -> None:
        self.file, self.most, self.error = io.BytesIO(data), most, error

    def readinto(self, buffer: memoryview, /) -> int:
        count = self.file.readinto(buffer[: self.most])
        if not count and self.error:
            raise self.error
        return count


def go(data: bytes, layer: Layer, target: Path, **more: object) -> None:
    target.mkdir(exist_ok=True)
    options = {"bound": 1 << 30, "progress": lambda _: None, **more}
    unpack(io.BytesIO(data), layer, FolderSink(target), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("media_type", [GZIP, PLAIN, "application/vnd.docker.image.rootfs.diff.tar.gzip"])
@pytest.mark.parametrize("how", PACKED)
def test_every_compression_under_every_media_type(how: str, media_type: str, tmp_path: Path) -> None:
    done: list[int] = []
    kept = io.BytesIO()
    packed = packing(how)
    go(packed, describe(raw_layer(), packed, media_type=media_type), tmp_path, progress=done.append, keep=kept)
    assert (tmp_path / "d/big").read_bytes() == content()
    assert (tmp_path / "small").read_bytes() == b"hi"
    assert sum(done) == len(packed)
    assert kept.getvalue() == packed


@pytest.mark.parametrize("most", [1000, 65_537])
def test_a_stream_in_small_pieces(most: int, tmp_path: Path) -> None:
    packed = packing("gzip")
    result = unpack(
        Slow(packed, most),
        describe(raw_layer(), packed),
        FolderSink(tmp_path),
        bound=len(raw_layer()),
        progress=lambda _: None,
    )
    assert (tmp_path / "d/big").read_bytes() == content()
    assert (result.entries, result.raw_size) == (3, len(raw_layer()))


def test_bytes_behind_the_archive_count_for_the_diff_id(tmp_path: Path) -> None:
    raw = raw_layer() + os.urandom(2_000_001)
    go(raw, describe(raw), tmp_path)
    assert (tmp_path / "small").exists()


def test_the_mask_for_new_files_is_as_before(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        go(raw_layer(), describe(raw_layer()), tmp_path)
        assert (tmp_path / "small").stat().st_mode & 0o777 == 0o644
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)


def test_an_empty_layer(tmp_path: Path) -> None:
    for raw in (b"", bytes(512), bytes(1024)):
        go(raw, describe(raw), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("how", PACKED)
def test_a_damaged_byte_is_named_by_the_digest(how: str, tmp_path: Path) -> None:
    packed = packing(how)
    damaged = packed[:50_000] + bytes([packed[50_000] ^ 0xFF]) + packed[50_001:]
    with pytest.raises(BadContent, match=r"the bytes that arrived have the digest|its manifest promises"):
        go(damaged, describe(raw_layer(), packed), tmp_path)


@pytest.mark.parametrize("cut", [0, 1, 3, 17, 1000, 2_000_000])
def test_a_truncated_stream(cut: int, tmp_path: Path) -> None:
    packed = packing("gzip")
    with pytest.raises(BadContent, match=f"{cut} bytes arrived, but its manifest promises {len(packed)}"):
        go(packed[:cut], describe(raw_layer(), packed), tmp_path)


def test_more_bytes_than_promised(tmp_path: Path) -> None:
    with pytest.raises(BadContent, match="more than the"):
        go(raw_layer() + b"x", describe(raw_layer()), tmp_path)


@pytest.mark.parametrize(
    ("how", "damage"),
    [("gzip", lambda data: data[:-9]), ("gzip", lambda data: data[:-8] + bytes(8)), ("zstd", lambda data: data[:-5])],
)
def test_damage_that_the_digest_covers(how: str, damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    packed = damage(packing(how))
    with pytest.raises((LayerError, BadContent)):
        go(packed, describe(raw_layer(), packed), tmp_path)


def test_a_wrong_diff_id(tmp_path: Path) -> None:
    layer = describe(raw_layer()).model_copy(update={"diff_id": "sha256:" + "0" * 64})
    with pytest.raises(BadContent, match="its image promises sha256:000"):
        go(raw_layer(), layer, tmp_path)


def test_what_is_no_archive(tmp_path: Path) -> None:
    packed = os.urandom(10_000)
    with pytest.raises(LayerError, match="not a valid tar archive"):
        go(packed, describe(packed), tmp_path)


@pytest.mark.parametrize("compress", [gzip.compress, zstd])
def test_a_bomb_is_stopped_at_its_bound(compress: Callable[[bytes], bytes], tmp_path: Path) -> None:
    raw = archive(entry(b"zeros", data=bytes(20_000_000)))
    packed = compress(raw)
    with pytest.raises(LayerBomb, match="inflates to more than 1000000 bytes"):
        go(packed, describe(raw, packed), tmp_path, bound=1_000_000)
    assert not (tmp_path / "zeros").exists() or (tmp_path / "zeros").stat().st_size < 10_000_000


def test_the_error_of_the_stream_is_the_error(tmp_path: Path) -> None:
    error = Unreachable("the registry is gone")
    stream = Slow(packing("gzip")[:2_000_000], 100_000, error)
    with pytest.raises(Unreachable) as raised:
        unpack(
            stream, describe(raw_layer(), packing("gzip")), FolderSink(tmp_path), bound=1 << 30, progress=lambda _: None
        )
    assert raised.value is error


@given(st.binary(max_size=3000))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_end_in_a_layer_error_or_a_tree(data: bytes) -> None:
    fuzz_layer(data)

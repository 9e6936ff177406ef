"""How large a layer will be, as far as its first or last bytes tell."""

from __future__ import annotations

import gzip
import os
import struct

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from parbake.images.registry.resolve import gzip_raw_size, zstd_raw_size


@given(st.integers(1, 300), st.sampled_from([b"\0", b"text of some kind\n"]), st.integers(0, 9))
def test_gzip_of_a_tar(blocks: int, pattern: bytes, level: int) -> None:
    raw = (pattern * 512)[:512] * blocks
    packed = gzip.compress(raw, level)
    assert gzip_raw_size(packed[-4:], len(packed)) == len(raw)


def test_gzip_of_what_does_not_compress() -> None:
    raw = os.urandom(512 * 1000)
    packed = gzip.compress(raw)
    assert len(packed) > len(raw)
    assert gzip_raw_size(packed[-4:], len(packed)) == len(raw)


@pytest.mark.parametrize(
    ("stated", "size", "expected"),
    [
        (0, 10_000, 0),  # an empty last member: eStargz, bgzip
        (1000, 500, 0),  # no whole number of tar blocks: a part
        (1 << 30, 2 << 30, (1 << 30) + (1 << 32)),  # 5 GiB in 2 GiB
        (512, 1 << 20, 0),  # 4 GiB in 1 MiB is less likely than a last part of 512 bytes
        (5 << 20, 5 << 20, 5 << 20),
    ],
)
def test_gzip_sizes_are_modulo_4_gib(stated: int, size: int, expected: int) -> None:
    assert gzip_raw_size(struct.pack("<I", stated), size) == expected


@pytest.mark.parametrize("trailer", [b"", b"\0", b"12345"])
def test_no_trailer_no_size(trailer: bytes) -> None:
    assert gzip_raw_size(trailer, 1000) == 0


@given(st.integers(1, 300))
def test_zstd_states_its_size(blocks: int) -> None:
    raw = b"text of some kind" * 512 * blocks
    packed = zstandard.ZstdCompressor().compress(raw)
    assert zstd_raw_size(packed[:18], len(packed)) == len(raw)


def test_zstd_streams_state_none() -> None:
    raw = bytes(51200)
    stream = zstandard.ZstdCompressor().compressobj()
    packed = stream.compress(raw) + stream.flush()
    assert zstd_raw_size(packed[:18], len(packed)) == 0


def test_zstd_skippable_and_partial_frames_tell_nothing() -> None:
    skippable = b"\x50\x2a\x4d\x18" + struct.pack("<I", 4) + b"abcd"
    assert zstd_raw_size(skippable, 1000) == 0
    first_of_many = zstandard.ZstdCompressor().compress(bytes(512))
    assert zstd_raw_size(first_of_many[:18], 1 << 20) == 0
    assert zstd_raw_size(b"", 0) == 0
    assert zstd_raw_size(b"no zstd at all....", 100) == 0

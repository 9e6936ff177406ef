"""Compressed bytes to the tar inside: gzip (any number of members), zstd (any number of frames), or none.

What it is, is seen from its first bytes, as in containerd: media types lie. ``zstd:chunked`` is zstd with its table
of contents in skippable frames, so it needs nothing special (``containers-storage-zstd-chunked.md`` of
containers/storage).
gzip is inflated by ISA-L straight into the caller's buffer and without the interpreter's lock.
"""

from __future__ import annotations

import zlib
from typing import BinaryIO, Final, Protocol, cast

from isal.isal_zlib import IsalError, _GzipReader
from zstandard import ZstdDecompressor, ZstdError

_GZIP: Final = b"\x1f\x8b\x08"
_ZSTD: Final = b"\x28\xb5\x2f\xfd"
# Skippable frames have any of the sixteen magic numbers 0x184D2A50..5F, little-endian (RFC 8878, section 3.1.2).
_SKIPPABLE: Final = b"\x2a\x4d\x18"
_INPUT: Final = 256 << 10
LARGEST_HEADER: Final = _INPUT
"""Bytes that a gzip member's header may have: isal reads it as a whole (OverflowError beyond)."""
_LARGEST_WINDOW: Final = 1 << 27
"""Bytes of history that a zstd frame may ask for (the decoder's own default): it bounds memory."""

ERRORS: Final[tuple[type[Exception], ...]] = (
    EOFError,
    OSError,
    ValueError,
    zlib.error,
    cast("type[Exception]", IsalError),
    ZstdError,
)
"""What an inflater raises for damaged data."""


class Feed(Protocol):
    """Compressed bytes as they arrive."""

    def peek(self) -> bytes:
        """Return the first bytes (at least four, fewer only when there are no more) without taking them."""
        ...

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill the start of ``buffer``; return the count, 0 at the end."""
        ...

    def read(self, size: int = -1, /) -> memoryview:
        """Return some of the bytes that are next, empty at the end; valid until the next call."""
        ...


class Inflater(Protocol):
    """The bytes of the tar: ``readinto`` fills a buffer and returns the count, 0 at the end."""

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill the start of ``buffer``."""
        ...


def inflater(feed: Feed) -> Inflater:
    """Return the reader for what the first bytes say the layer is."""
    magic = feed.peek()
    if magic.startswith(_GZIP):
        return _GzipReader(cast(BinaryIO, feed), _INPUT)
    if magic.startswith(_ZSTD) or (magic[1:4] == _SKIPPABLE and magic[0] >> 4 == 5):
        source = cast(BinaryIO, feed)  # both libraries only ever read
        return ZstdDecompressor(max_window_size=_LARGEST_WINDOW).stream_reader(source, _INPUT, read_across_frames=True)
    return feed


def fill(reader: Inflater, buffer: memoryview) -> int:
    """Fill a buffer to its end and return the count, which is smaller only at the end of the stream."""
    at = reader.readinto(buffer)
    if at in {0, len(buffer)}:
        return at
    while at < len(buffer):
        count = reader.readinto(buffer[at:])
        if not count:
            break
        at += count
    return at

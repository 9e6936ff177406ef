"""What can honestly come out of a compressed layer."""

from __future__ import annotations

from typing import Final

_ALWAYS: Final = 64 << 20


def most_inflated(size: int) -> int:
    """Return the bytes that a layer of ``size`` may inflate to: deflate's most (1032:1, zlib "Technical Details").

    zstd can reach 32,768:1, but such a layer could never have been gzip. 64 MiB are for a file of zeros in few bytes.
    """
    return max(_ALWAYS, 1032 * size)

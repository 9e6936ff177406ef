"""Entry points for fuzzing: any bytes must end in a result or in one of our errors, within bounded memory."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

from parbake.errors import BadContent, LayerError
from parbake.layers import settle, unpack
from parbake.layers.archive import Archive, Chunks
from tests.support.layers import describe


def fuzz_archive(data: bytes) -> int:
    """Read a tar in buffers of 1 KiB; return how many entries it has, -1 when it is refused."""
    pieces = iter([memoryview(data)[at : at + 1024] for at in range(0, len(data), 1024)])
    archive = Archive(Chunks(lambda: next(pieces, None)), most_entries=10_000)
    count = 0
    try:
        while archive.next() is not None:
            count += 1
    except LayerError:
        return -1
    return count


def fuzz_layer(data: bytes) -> bool:
    """Unpack bytes as a layer whose digests are right; return whether it was accepted."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "target"
        target.mkdir()
        try:
            # A diffID cannot be known beforehand for what may inflate to anything.
            unpacked = unpack(io.BytesIO(data), describe(data), target, bound=1 << 24, progress=lambda _: None)
            settle(target, unpacked, ())
        except (LayerError, BadContent):
            return False
        return True

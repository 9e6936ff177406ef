"""Where the content of images comes from, as those see it who read it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from parbake.core.model import Descriptor


class Readable(Protocol):
    """A stream of bytes: ``readinto`` fills a buffer and returns how much, 0 at the end."""

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill the start of ``buffer``; return the count of bytes, 0 at the end of the stream."""
        ...


class LayerSource(Protocol):
    """Where the content of one image comes from: a registry's repository, or an OCI layout on disk."""

    def read(self, descriptor: Descriptor) -> bytes:
        """Return a small document (manifest, config) whole, verified against its digest and size."""
        ...

    def open(self, descriptor: Descriptor, *, offset: int = 0) -> AbstractContextManager[Readable]:
        """Open a blob as a stream that resumes by itself after a broken connection.

        The stream yields exactly ``descriptor.size - offset`` bytes or raises BadContent; **the caller verifies the
        digest** (the engine hashes on another core).
        """
        ...


type Progress = Callable[[int], None]
"""Called with the count of bytes that are newly done; from any thread."""

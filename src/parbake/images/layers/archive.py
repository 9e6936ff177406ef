"""A tar reader for layers: no copies of data, little Python for each entry, every size bounded.

It reads from ``Chunks`` (buffers that other threads have filled) and hands out views into them. All buffers but the
last are a multiple of 512 bytes, so a header never straddles two of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from parbake.core.errors import LayerBomb
from parbake.images.layers import headers, numbers
from parbake.images.layers.headers import BLOCK, HEADER_ONLY, TarEntry, plain_file
from parbake.images.layers.numbers import Segment, invalid, numeric, text

SPECIAL_LIMIT: Final = 1 << 20
"""Bytes that a PAX header, a GNU long name or a sparse map may have: containerd's reader has the same limit."""

MOST_EXTENDED: Final = 256 << 20
"""Bytes that all extended headers of a layer may have together: long names and attributes, which are kept in memory."""

_ZEROS: Final = bytes(BLOCK)
# Headers that say something about the entry after them: PAX, GNU long name, GNU long link.
_PREFACES: Final = frozenset({b"x", b"L", b"K"})


class Chunks:
    """A sequence of filled buffers, seen as one stream with a position (``view[at:end]`` comes next)."""

    def __init__(self, more: Callable[[], memoryview | None]) -> None:
        """``more`` returns the next buffer (the one before may then be overwritten), None at the end."""
        self._more = more
        self.view = memoryview(b"")
        self.at = 0
        self.end = 0

    def refill(self) -> bool:
        """Go to the next buffer when this one is used up; return False at the end of the stream."""
        while self.at >= self.end:
            view = self._more()
            if view is None:
                self.view, self.at, self.end = memoryview(b""), 0, 0
                return False
            self.view, self.at, self.end = view, 0, len(view)
        return True

    def pieces(self, size: int) -> Iterator[memoryview]:
        """Yield the next ``size`` bytes as views, each valid until the next; fewer when the stream ends."""
        while size and self.refill():
            start = self.at
            self.at = min(start + size, self.end)
            size -= self.at - start
            yield self.view[start : self.at]

    def pass_on(self) -> bool:
        """Pass over the rest of this buffer; return False at the end of the stream."""
        self.at = self.end
        return self.refill()

    def read(self, size: int) -> bytes:
        """Return up to ``size`` bytes as a copy."""
        return b"".join([bytes(piece) for piece in self.pieces(size)])  # a piece is good only until the next

    def skip(self, size: int) -> int:
        """Pass over ``size`` bytes and return how many there were."""
        return sum(len(piece) for piece in self.pieces(size))


type TakesFile = Callable[[bytes, tuple[int, int, int], int, int], bool]
"""Takes a ``headers.PlainFile`` whose data are next, or returns False and leaves them."""


class Archive:
    """Reads entries; after ``next`` the entry's data may be read, and what is left of it is passed over."""

    def __init__(self, chunks: Chunks, *, most_entries: int) -> None:
        self.chunks = chunks
        self.left = 0
        """Bytes of the current entry's data that have not been read."""
        self.count = 0
        """Headers seen, the extending ones included."""
        self._most_entries, self._extended_left = most_entries, MOST_EXTENDED
        self._pad = 0
        self._block = memoryview(b"")

    def pieces(self) -> Iterator[memoryview]:
        """Yield the data of the current entry that is left; raises LayerError when the archive ends within it."""
        for piece in self.chunks.pieces(self.left):
            self.left -= len(piece)
            yield piece
        if self.left:
            raise invalid("it ends within a file")

    def whole(self) -> memoryview | None:
        """Return the data of the current entry as one view when it lies in one buffer: nearly every small file."""
        chunks = self.chunks
        start, stop = chunks.at, chunks.at + self.left
        if stop > chunks.end:
            return None
        chunks.at, self.left = stop, 0
        return chunks.view[start:stop]

    def read(self, size: int) -> bytes:
        """Return ``size`` bytes of the current entry's data; raises LayerError when there are fewer."""
        data = self.chunks.read(min(size, self.left))
        self.left -= len(data)
        if len(data) < size:
            raise invalid("it ends within an extended header")
        return data

    def next(self, take: TakesFile | None = None) -> TarEntry | None:
        """Return the next entry, None at the end of the archive; raises LayerError, LayerBomb.

        Files with nothing special about them, which nearly all are, are offered to ``take``, and passed over where it
        has taken them.
        """
        while (block := self._next_block()) is not None:
            if take is None or (file := plain_file(block)) is None:
                break
            size = self.left = file[2]
            self._pad = -size % BLOCK
            if not take(*file):
                break
        if block is None:
            return None
        entry = headers.parse(block)
        # Most others are files and folders without extensions. What follows is `_complete` for those.
        size = entry.stored
        if size >= 0:
            kind = entry.kind
            if kind == b"0":
                self.left, self._pad = size, -size % BLOCK
                return entry
            if kind == b"5":
                entry.stored = 0
                return entry
        return self._extended(entry)

    def _extended(self, entry: TarEntry | None) -> TarEntry | None:
        found: dict[bytes, bytes] | None = None
        long_name = long_link = b""
        while entry is not None:
            if entry.kind == b"g":  # a global header: to containerd an entry of its own, of which only the name counts
                entry.name = numbers.records(self._body(entry)).get(b"path") or entry.name
                entry.uid = entry.gid = 0
                return entry
            if entry.kind not in _PREFACES:
                return self._complete(entry, found, long_name, long_link)
            body = self._body(entry)
            if entry.kind == b"x":
                found = numbers.records(body)
            elif entry.kind == b"L":
                long_name = text(body)
            else:
                long_link = text(body)
            entry = self._header()
        return None

    def _body(self, entry: TarEntry) -> bytes:
        self._expect(entry.stored)
        if entry.stored > SPECIAL_LIMIT:
            raise invalid(f"an extended header of {entry.stored} bytes")
        self._extended_left -= entry.stored
        if self._extended_left < 0:
            raise LayerBomb(
                f"its long names and attributes take more than {MOST_EXTENDED >> 20} MiB",
                hint="no legitimate layer comes close: do not use this image",
            )
        return self.read(entry.stored)

    def _complete(self, entry: TarEntry, found: dict[bytes, bytes] | None, name: bytes, link: bytes) -> TarEntry:
        if found:
            headers.merge(entry, found)
        if name:
            entry.name = name
        if link:
            entry.linkname = link
        if entry.kind == b"\0":  # v7: a folder is a file whose name ends with a slash
            entry.kind = b"5" if entry.name.endswith(b"/") else b"0"
        header_only = entry.kind in HEADER_ONLY
        self._expect(entry.stored)
        if header_only:
            entry.stored = self.left = self._pad = 0
        version = headers.sparse_version(found) if found else None
        if entry.kind == b"S":
            self._make_sparse(entry, self._old_map(entry))
        elif version is not None and found is not None:
            if header_only:
                raise invalid("a sparse map on something other than a file")
            self._read_sparse(entry, found, version)
        return entry

    def _expect(self, size: int) -> None:
        if size < 0:
            raise invalid("a negative size")
        self.left = size
        self._pad = -size % BLOCK

    def _header(self) -> TarEntry | None:
        block = self._next_block()
        return None if block is None else headers.parse(block)

    def _next_block(self) -> memoryview | None:
        """Return the next header, None at the end of the archive."""
        chunks = self.chunks
        at = chunks.at + self.left + self._pad
        if at > chunks.end or self.left < 0:
            if not self._pass_over():
                return None
            at = chunks.at
        if at >= chunks.end:
            chunks.at = at
            if not chunks.refill():
                return None
            at = chunks.at
        chunks.at = stop = at + BLOCK
        if stop > chunks.end:
            raise invalid("it ends within a header")
        self.left = self._pad = 0
        block = chunks.view[at:stop]
        if not block[0] and block == _ZEROS:
            self._end()
            return None
        self.count += 1
        if self.count > self._most_entries:
            raise LayerBomb(f"it has more than {self._most_entries} entries", hint="split it into smaller layers")
        # Kept beyond the buffer's life only by the old sparse format, which has more in it than an entry says.
        self._block = block
        return block

    def _pass_over(self) -> bool:
        """Go to the end of the current entry in another buffer; return False when the stream ends in its padding."""
        self.left -= self.chunks.skip(self.left)
        if self.left:
            raise invalid("it ends within a file")
        return self.chunks.skip(self._pad) == self._pad

    def _end(self) -> None:
        """Two zero blocks end an archive; the end of the stream after one does as well."""
        second = self.chunks.read(BLOCK)
        if second and second != _ZEROS:
            raise invalid("it ends within a header" if len(second) < BLOCK else "a header after a zero block")

    # -- sparse files (GNU tar manual, "Storing Sparse Files")

    def _make_sparse(self, entry: TarEntry, segments: list[Segment]) -> None:
        numbers.check_segments(segments, entry.size, self.left)
        entry.stored = self.left
        entry.segments = segments

    def _read_sparse(self, entry: TarEntry, found: dict[bytes, bytes], version: str) -> None:
        entry.name = found.get(b"GNU.sparse.name") or entry.name
        size = found.get(b"GNU.sparse.size") or found.get(b"GNU.sparse.realsize")
        if size:
            entry.size = numbers.decimal(size)
        self._make_sparse(entry, self._map_in_data() if version == "1" else numbers.sparse_from_records(found))

    def _map_in_data(self) -> list[Segment]:
        """Version 1.0: decimal numbers, one a line, the count first, in whole blocks before the data."""
        data = bytearray()
        lines, wanted, count = 0, 1, -1
        while lines < wanted:
            if len(data) >= SPECIAL_LIMIT:
                raise invalid(f"a sparse map of more than {SPECIAL_LIMIT} bytes")
            block = self.read(BLOCK)
            data += block
            lines += block.count(b"\n")
            if lines and count < 0:
                count = numbers.decimal(bytes(data.partition(b"\n")[0]))
                if count < 0:
                    raise invalid("a sparse map of the wrong length")
                wanted += 2 * count
        return numbers.pairs(bytes(data).split(b"\n")[1:wanted])

    def _old_map(self, entry: TarEntry) -> list[Segment]:
        """Old GNU format: up to 4 pieces in the header, then blocks of 21 that come before the data."""
        block = bytes(self._block)
        if block[257:265] != b"ustar  \0":
            raise invalid("a sparse file in a format that is not GNU's")
        entry.size = numeric(block[483:495])
        fields, more = block[386:482], block[482]
        segments: list[Segment] = []
        while True:
            for at in range(0, len(fields) - 23, 24):
                if not fields[at]:
                    break
                segments.append((numeric(fields[at : at + 12]), numeric(fields[at + 12 : at + 24])))
            if not more:
                return segments
            if 24 * len(segments) > SPECIAL_LIMIT:
                raise invalid(f"a sparse map of more than {SPECIAL_LIMIT} bytes")
            block = self.chunks.read(BLOCK)
            if len(block) < BLOCK:
                raise invalid("it ends within a sparse map")
            fields, more = block[:504], block[504]

"""bbolt's files, in which containerd keeps its databases: a whole one is written at once, as small as it can be.

Facts: bbolt ``internal/common`` (page.go, inode.go, meta.go, bucket.go) and ``bucket.go`` (inlineable). A file is
pages: two copies of the meta page, of which the newer one counts, the list of free pages, and the B+ trees of buckets.
A small bucket lies in its parent's page.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

_PAGE: Final = 4096
_BRANCH, _LEAF, _META, _FREE = 0x01, 0x02, 0x04, 0x10
_IS_BUCKET: Final = 0x01
_MAGIC, _VERSION = 0xED0CDAED, 2
_INLINE: Final = _PAGE // 4
"""The largest page that lies in its parent's, in bytes (``maxInlineBucketSize``)."""

_PAGE_HEADER: Final = struct.Struct("<QHHI")  # number, kind, count of elements, pages that follow as part of it
_LEAF_ELEMENT: Final = struct.Struct("<IIII")  # flags, place of the key from here, bytes of key and value
_BRANCH_ELEMENT: Final = struct.Struct("<IIQ")  # place of the key from here, its bytes, page
_BUCKET: Final = struct.Struct("<QQ")  # its root's page (0: inline), sequence
# magic, version, size of a page, flags | root bucket | list of free pages, pages in use, transaction
_META_BODY: Final = struct.Struct("<IIIIQQQQQ")
_FREE_LIST: Final = 2
_FIRST: Final = 3


@dataclass(slots=True)
class Bucket:
    """A bucket: keys (never empty) to values and other buckets, and the number that its owner last drew from it."""

    items: Mapping[bytes, bytes | Bucket] = field(default_factory=dict)
    sequence: int = 0


def database(root: Bucket) -> bytes:
    """Return the file of a database with these buckets: the same bytes for the same buckets."""
    pages = _Pages()
    top = pages.tree(root)
    return pages.finish(top, root.sequence)


class _Pages:
    def __init__(self) -> None:
        self._data = bytearray(_FIRST * _PAGE)

    def tree(self, bucket: Bucket) -> int:
        """Write the tree of a bucket; return the number of its root's page."""
        elements = ((key, self._value(found)) for key, found in sorted(bucket.items.items()))
        leaves = [(key, flags, value) for key, (flags, value) in elements]
        level = [(group[0][0] if group else b"", self._put(_leaf(group))) for group in _groups(leaves)]
        while len(level) > 1:
            level = [(group[0][0], self._put(_branch(group))) for group in _groups(level)]
        return level[0][1]

    def _value(self, found: bytes | Bucket) -> tuple[int, bytes]:
        if isinstance(found, bytes):
            return 0, found
        if not any(isinstance(value, Bucket) for value in found.items.values()):
            inline = _leaf([(key, *self._value(value)) for key, value in sorted(found.items.items())])
            if len(inline) <= _INLINE:
                return _IS_BUCKET, _BUCKET.pack(0, found.sequence) + inline
        return _IS_BUCKET, _BUCKET.pack(self.tree(found), found.sequence)

    def _put(self, page: bytes) -> int:
        number, more = len(self._data) // _PAGE, (len(page) - 1) // _PAGE
        _, kind, count, _ = _PAGE_HEADER.unpack_from(page)
        self._data += page.ljust((1 + more) * _PAGE, b"\0")
        _PAGE_HEADER.pack_into(self._data, number * _PAGE, number, kind, count, more)
        return number

    def finish(self, top: int, sequence: int) -> bytes:
        """Return the file whose root bucket's tree begins at the page ``top``."""
        _PAGE_HEADER.pack_into(self._data, _FREE_LIST * _PAGE, _FREE_LIST, _FREE, 0, 0)
        used = len(self._data) // _PAGE
        for number in (0, 1):  # both are whole: what one says, the other does
            body = _META_BODY.pack(_MAGIC, _VERSION, _PAGE, 0, top, sequence, _FREE_LIST, used, number)
            page = _PAGE_HEADER.pack(number, _META, 0, 0) + body + struct.pack("<Q", _fnv1a(body))
            self._data[number * _PAGE : number * _PAGE + len(page)] = page
        return bytes(self._data)


def _groups[Element: tuple[bytes, *tuple[object, ...]]](elements: Iterable[Element]) -> Iterator[list[Element]]:
    """Yield what lies on one page each: as much as fits, and at least one element."""
    group: list[Element] = []
    size = _PAGE_HEADER.size
    for element in elements:
        more = _LEAF_ELEMENT.size + sum(len(part) for part in element if isinstance(part, bytes))
        if group and size + more > _PAGE:
            yield group
            group, size = [], _PAGE_HEADER.size
        group.append(element)
        size += more
    yield group


def _leaf(elements: list[tuple[bytes, int, bytes]]) -> bytes:
    heads, data = bytearray(), bytearray()
    for key, flags, value in elements:
        place = _LEAF_ELEMENT.size * len(elements) - len(heads) + len(data)
        heads += _LEAF_ELEMENT.pack(flags, place, len(key), len(value))
        data += key + value
    return _PAGE_HEADER.pack(0, _LEAF, len(elements), 0) + heads + data


def _branch(elements: list[tuple[bytes, int]]) -> bytes:
    heads, data = bytearray(), bytearray()
    for key, page in elements:
        place = _BRANCH_ELEMENT.size * len(elements) - len(heads) + len(data)
        heads += _BRANCH_ELEMENT.pack(place, len(key), page)
        data += key
    return _PAGE_HEADER.pack(0, _BRANCH, len(elements), 0) + heads + data


def _fnv1a(data: bytes) -> int:
    found = 0xCBF29CE484222325
    for byte in data:
        found = (found ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return found

"""bbolt's files, read: what a containerd's databases say. It trusts nothing that it can check."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from parbake.containerd.bolt import Bucket

PAGE = 4096


def fnv1a(data: bytes) -> int:
    found = 14695981039346656037
    for byte in data:
        found = (found ^ byte) * 1099511628211 % 2**64
    return found


def read(file: Path | bytes) -> Bucket:
    """Return all buckets of a database."""
    data = file if isinstance(file, bytes) else file.read_bytes()
    assert len(data) % PAGE == 0
    metas = []
    for number in (0, 1):
        body = data[number * PAGE + 16 : number * PAGE + 72]
        [check] = struct.unpack_from("<Q", data, number * PAGE + 72)
        assert check == fnv1a(body)
        magic, version, page, _, root, sequence, free, end, transaction = struct.unpack("<IIIIQQQQQ", body)
        assert (magic, version, page) == (0xED0CDAED, 2, PAGE)
        assert end * PAGE <= len(data)
        metas.append((transaction, root, sequence, free))
    _, root, sequence, _ = max(metas)
    return Bucket(dict(_elements(data, data, root * PAGE)), sequence)


def _elements(data: bytes, page: bytes, start: int) -> Iterator[tuple[bytes, bytes | Bucket]]:
    """Yield what a page and those below it hold; ``page`` is the file, or an inline bucket's."""
    number, kind, count, _ = struct.unpack_from("<QHHI", page, start)
    assert number == (start // PAGE if page is data else 0)
    before = b""
    for at in range(start + 16, start + 16 + 16 * count, 16):
        if kind == 1:
            place, keys, child = struct.unpack_from("<IIQ", page, at)
            key = page[at + place : at + place + keys]
            below = list(_elements(data, data, child * PAGE))
            assert below[0][0] == key
            yield from below
        else:
            assert kind == 2
            flags, place, keys, size = struct.unpack_from("<IIII", page, at)
            key, value = page[at + place : at + place + keys], page[at + place + keys : at + place + keys + size]
            assert len(value) == size
            yield key, _bucket(data, value) if flags else value
        assert before < key
        before = key


def _bucket(data: bytes, value: bytes) -> Bucket:
    root, sequence = struct.unpack_from("<QQ", value)
    return Bucket(dict(_elements(data, data, root * PAGE) if root else _elements(data, value, 16)), sequence)

"""Tar archives byte by byte: also those that no tool writes.

data = archive(entry(b"etc/", b"5"), entry(b"etc/motd", data=b"hi"), pax({b"path": b"x" * 300}), entry(b"short"))
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

BLOCK = 512
END = bytes(2 * BLOCK)
USTAR, GNU, V7 = b"ustar\x0000", b"ustar  \x00", bytes(8)
_LAYOUT = struct.Struct("100s8s8s8s12s12s8sc100s8s32s32s8s8s155s12s")


def octal(number: int, width: int) -> bytes:
    """Return a number field, in base-256 where octal digits do not hold it."""
    if 0 <= number < 8 ** (width - 1):
        return b"%0*o\0" % (width - 1, number)
    return (number % (1 << 8 * width) | 1 << (8 * width - 1)).to_bytes(width, "big")


def pad(data: bytes) -> bytes:
    """Return data with zeros up to a whole block."""
    return data + bytes(-len(data) % BLOCK)


def checksummed(block: bytes) -> bytes:
    """Return a header block with its checksum set."""
    total = sum(block[:148]) + sum(block[156:]) + 8 * 0x20
    return block[:148] + b"%06o\0 " % total + block[156:]


def header(
    name: bytes,
    kind: bytes = b"0",
    *,
    size: int = 0,
    mode: int = 0o644,
    uid: int = 0,
    gid: int = 0,
    mtime: int = 0,
    link: bytes = b"",
    device: tuple[int, int] = (0, 0),
    magic: bytes = USTAR,
    prefix: bytes = b"",
    tail: bytes = b"",
) -> bytes:
    block = _LAYOUT.pack(
        name, octal(mode, 8), octal(uid, 8), octal(gid, 8), octal(size, 12), octal(mtime, 12), b"", kind, link, magic,
        b"", b"", octal(device[0], 8), octal(device[1], 8), prefix, tail,
    )  # fmt: skip
    return checksummed(block)


def entry(name: bytes, kind: bytes = b"0", data: bytes = b"", **fields: object) -> bytes:
    """Return a header and its data; a name or link of more than 100 bytes gets GNU long headers before it."""
    link = fields.get("link", b"")
    assert isinstance(link, bytes)
    before = b""
    if len(name) > 100:
        before += long_name(name)
    if len(link) > 100:
        before += long_name(link, b"K")
    fields = {"size": len(data), **fields, "link": link[:100]}
    return before + header(name[:100], kind, **fields) + pad(data)  # type: ignore[arg-type]


def long_name(name: bytes, kind: bytes = b"L") -> bytes:
    """Return a GNU long name (or link: ``K``) for the entry after it."""
    return header(b"././@LongLink", kind, size=len(name) + 1, magic=GNU) + pad(name + b"\0")


def record(key: bytes, value: bytes) -> bytes:
    """Return one PAX record, whose length counts its own digits."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    if len(str(length)) + rest != length:
        length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)


def pax(records: Mapping[bytes, bytes] | list[tuple[bytes, bytes]], kind: bytes = b"x") -> bytes:
    """Return a PAX header for the entry after it."""
    items = records.items() if isinstance(records, Mapping) else records
    body = b"".join(record(key, value) for key, value in items)
    return header(b"PaxHeaders/x", kind, size=len(body)) + pad(body)


def archive(*parts: bytes) -> bytes:
    """Return parts and the end of an archive."""
    return b"".join(parts) + END

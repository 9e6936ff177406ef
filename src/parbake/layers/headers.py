"""The 512-byte header of a tar entry, in the formats v7, ustar, star and GNU, and what PAX records change in it.

Which bytes mean what, and which are refused, follows Go's ``archive/tar``, since containerd reads layers with it.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from parbake.errors import LayerError
from parbake.layers.numbers import INT64_MAX, SPARSE_MAP, Segment, decimal, invalid, nanoseconds, numeric, text

BLOCK: Final = 512
_SECOND: Final = 1_000_000_000
HEADER_ONLY: Final = frozenset({b"1", b"2", b"3", b"4", b"5", b"6"})
"""Types whose size field says nothing about data: none follows."""

# name mode uid gid size mtime checksum type link magic+version uname gname major minor, then what the format says
_LAYOUT: Final = struct.Struct("100s8s8s8s12s12s8sc100s8s32s32s8s8s155s12s")
_USTAR, _GNU = b"ustar\0", b"ustar  \0"
_ADLER_BASE: Final = 65521
# Distinct number fields that are remembered; a layer has a handful, a hostile one may have millions.
_MOST_KNOWN: Final = 4096


class Entry:
    """One entry: what its headers say after all extensions. Times are nanoseconds, names are bytes as they came.

    ``size`` is the length of the file on disk, ``stored`` what the archive holds of it (they differ when sparse, then
    ``segments`` says where the data belongs). ``records`` are the PAX records.
    """

    __slots__ = (
        "accessed", "gid", "kind", "linkname", "major", "minor", "mode", "modified", "name", "records", "segments",
        "size", "stored", "uid",
    )  # fmt: skip

    def __init__(self) -> None:
        self.name = self.linkname = b""
        self.kind = b"0"
        self.mode = self.uid = self.gid = self.size = self.stored = self.modified = self.major = self.minor = 0
        self.accessed: int | None = None
        self.records: dict[bytes, bytes] | None = None
        self.segments: list[Segment] | None = None

    def times(self) -> tuple[int, int]:
        """Return access and modification time in nanoseconds, bounded as containerd does.

        The access time is the later of both; what lies before 1970 or does not fit 64 bits becomes 1970
        (containerd ``pkg/archive/time.go``).
        """
        modified = self.modified
        accessed = modified if self.accessed is None else max(self.accessed, modified)
        return (accessed if 0 <= accessed <= INT64_MAX else 0, modified if 0 <= modified <= INT64_MAX else 0)


class Parser:
    """Turns blocks into entries; remembers the number fields that repeat (modes, owners, devices)."""

    def __init__(self) -> None:
        self._known: dict[bytes, int] = {bytes(8): 0, b"0000000\0": 0}

    def _number(self, field: bytes) -> int:
        if (value := self._known.get(field)) is None:
            value = numeric(field)
            if len(self._known) < _MOST_KNOWN:
                self._known[field] = value
        return value

    def parse(self, block: memoryview) -> Entry:
        """Return what a header block says; raises LayerError when it is none."""
        (
            name, mode, uid, gid, size, modified, checksum, kind, link, magic, _, _, major, minor, prefix, _,
        ) = _LAYOUT.unpack(block)  # fmt: skip
        _check_sum(block, checksum)
        entry = Entry()
        entry.kind = kind
        entry.name = name.partition(b"\0")[0]
        if link[0]:
            entry.linkname = link.partition(b"\0")[0]
        entry.size = entry.stored = _long(size)
        entry.modified = _long(modified) * _SECOND
        known = self._known
        try:
            entry.mode, entry.uid, entry.gid = known[mode], known[uid], known[gid]
        except KeyError:
            entry.mode, entry.uid, entry.gid = self._number(mode), self._number(uid), self._number(gid)
        if magic[:6] == _USTAR or magic == _GNU:
            try:
                entry.major, entry.minor = known[major], known[minor]
            except KeyError:
                entry.major, entry.minor = self._number(major), self._number(minor)
            if prefix[0] or block[508]:
                _read_rest(entry, bytes(block), magic)
        return entry


def _long(field: bytes) -> int:
    """Read a 12-byte number field: nearly always eleven octal digits and a NUL or a space."""
    digits = field[:11]
    if digits.isdigit() and field[11] in b"\0 ":
        with suppress(ValueError):
            return int(digits, 8)
    return numeric(field)


def _check_sum(block: memoryview, field: bytes) -> None:
    # A header's checksum is the sum of its bytes with the field itself taken as blanks. The low half of Adler-32 is
    # such a sum (plus one, modulo its base) and is computed in C, which Python's sum() of a buffer is not.
    digits = field[:6]
    with suppress(ValueError):
        if digits.isdigit() and (int(digits, 8) + sum(field) - 0xFF) % _ADLER_BASE == zlib.adler32(block) & 0xFFFF:
            return
    given = numeric(field) if not field[0] & 0x80 else -1
    rest = bytes(block[:148]) + b" " * 8 + bytes(block[156:])
    # Some old writers summed signed bytes.
    if given not in {sum(rest), sum(rest) - 256 * sum(byte > 0x7F for byte in rest)}:
        raise invalid("the checksum of a header is wrong")


def _read_rest(entry: Entry, block: bytes, magic: bytes) -> None:
    """Read what lies behind the device numbers: a name's prefix, or times, by the format."""
    if magic == _GNU:
        prefix = b""
        try:
            if block[345]:
                entry.accessed = numeric(block[345:357]) * _SECOND
            if block[357]:
                numeric(block[357:369])
        except LayerError:
            # Old Go programs wrote a ustar prefix into GNU headers; containerd's reader takes it for one.
            entry.accessed = None
            prefix = text(block[345:500])
            prefix = prefix if prefix.isascii() else b""
    elif block[508:] == b"tar\0":
        prefix = text(block[345:476])
        entry.accessed = numeric(block[476:488]) * _SECOND
        numeric(block[488:500])
    else:
        prefix = text(block[345:500])
    if prefix:
        entry.name = prefix + b"/" + entry.name


_FIELDS: Final[dict[bytes, tuple[str, Callable[[bytes], bytes | int]]]] = {
    b"path": ("name", bytes),
    b"linkpath": ("linkname", bytes),
    b"size": ("size", decimal),
    b"uid": ("uid", decimal),
    b"gid": ("gid", decimal),
    b"mtime": ("modified", nanoseconds),
    b"atime": ("accessed", nanoseconds),
}


def merge(entry: Entry, records: dict[bytes, bytes]) -> None:
    """Let PAX records override the header; an empty value keeps the header's. Raises LayerError."""
    entry.records = records
    for key, value in records.items():
        if value and (field := _FIELDS.get(key)):
            name, read = field
            setattr(entry, name, read(value))
    if records.get(b"size"):
        entry.stored = entry.size
    if change := records.get(b"ctime"):
        nanoseconds(change)  # nothing sets it, but a wrong one is a wrong header


def sparse_version(records: dict[bytes, bytes]) -> str | None:
    """Return which GNU sparse format the records speak of: "0" (map in the records), "1" (in the data), None."""
    major, minor = records.get(b"GNU.sparse.major", b""), records.get(b"GNU.sparse.minor", b"")
    if major or minor:
        return {(b"0", b"0"): "0", (b"0", b"1"): "0", (b"1", b"0"): "1"}.get((major, minor))
    return "0" if records.get(SPARSE_MAP) else None

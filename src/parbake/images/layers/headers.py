"""The 512-byte header of a tar entry, in the formats v7, ustar, star and GNU, and what PAX records change in it.

Which bytes mean what, and which are refused, follows Go's ``archive/tar``, since containerd reads layers with it.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from functools import lru_cache
from typing import Final

from parbake.core.errors import LayerError
from parbake.images.layers.numbers import INT64_MAX, SPARSE_MAP, Segment, decimal, invalid, nanoseconds, numeric, text

BLOCK: Final = 512
_SECOND: Final = 1_000_000_000
HEADER_ONLY: Final = frozenset({b"1", b"2", b"3", b"4", b"5", b"6"})
"""Types whose size field says nothing about data: none follows."""

# name, mode+uid+gid, size, mtime, checksum, type, link's first byte, magic+version, major+minor, and two first bytes of
# what the format says; the other bytes are looked at when one of these asks for it
_LAYOUT: Final = struct.Struct("100s24s12s12s8scc99x8s64x16sc162xc3x")
# Of a file of which this block says all: name, mode+uid+gid, size, mtime, checksum, magic+version, major+minor with the
# first byte of what the format says, and the one that tells star
_FILE_LAYOUT: Final = struct.Struct("100s24s12s12s8s101x8s64x17s162xc3x")
_FILE_TYPE: Final = b"0"[0]
_NO_BYTE: Final = b"\0"
_USTAR, _GNU = b"ustar\0", b"ustar  \0"
_ADLER_BASE: Final = 65521
# Distinct fields of each kind that are remembered: checksums have some thousands of values, a hostile layer may have
# millions of any.
_MOST_KNOWN: Final = 8192


class TarEntry:
    """One entry: what its headers say after all extensions. Times are nanoseconds, names are bytes as they came.

    ``size`` is the length of the file on disk, ``stored`` what the archive holds of it (they differ when sparse, then
    ``segments`` says where the data belongs). ``records`` are the PAX records.
    """

    __slots__ = (
        "accessed", "gid", "kind", "linkname", "major", "minor", "mode", "modified", "name", "records", "segments",
        "size", "stored", "uid",
    )  # fmt: skip

    def __init__(
        self,
        name: bytes = b"",
        kind: bytes = b"0",
        metadata: tuple[int, int, int] = (0, 0, 0),
        size: int = 0,
        modified: int = 0,
        device: tuple[int, int] = (0, 0),
    ) -> None:
        self.name, self.kind = name, kind
        self.mode, self.uid, self.gid = metadata
        self.size = self.stored = size
        self.modified = modified
        self.major, self.minor = device
        self.linkname = b""
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


type PlainFile = tuple[bytes, tuple[int, int, int], int, int]
"""Name, (mode, owner, group), size, and time of modification of a file, as in ``TarEntry``."""


def plain_file(block: memoryview) -> PlainFile | None:
    """Return what a header block says of a file with nothing special about it: nearly every entry.

    None for any other block, which ``parse`` reads, or refuses.
    """
    if block[156] != _FILE_TYPE or block[157]:
        return None
    name, metadata, size, modified, checksum, magic, device, more = _FILE_LAYOUT.unpack(block)
    digits = size[:11]
    if (
        _adler_of(checksum) != zlib.adler32(block) & 0xFFFF
        or not digits.isdigit()
        or size[11] not in b"\0 "
        or more != _NO_BYTE
        or not _says_nothing(magic, device)
    ):
        return None
    try:
        length = int(digits, 8)
    except ValueError:
        return None
    return name.partition(b"\0")[0], _metadata(metadata), length, _time(modified)


def parse(block: memoryview) -> TarEntry:
    """Return what a header block says; raises LayerError when it is none."""
    name, raw_metadata, size, modified, checksum, kind, link, magic, device, prefix, more = _LAYOUT.unpack(block)
    # A header's checksum is the sum of its bytes with the field itself taken as blanks. The low half of Adler-32 is
    # such a sum (plus one, modulo its base) and is computed in C, which Python's sum() of a buffer is not.
    if _adler_of(checksum) != zlib.adler32(block) & 0xFFFF:
        _check_sum(block, checksum)
    digits = size[:11]
    try:
        length = int(digits, 8) if digits.isdigit() and size[11] in b"\0 " else numeric(size)
    except ValueError:
        length = numeric(size)
    if magic[:6] == _USTAR or magic == _GNU:
        entry = TarEntry(
            name.partition(b"\0")[0], kind, _metadata(raw_metadata), length, _time(modified), _device(device)
        )
        if prefix != _NO_BYTE or more != _NO_BYTE:
            _read_rest(entry, bytes(block), magic)
    else:
        entry = TarEntry(name.partition(b"\0")[0], kind, _metadata(raw_metadata), length, _time(modified))
    if link != _NO_BYTE:
        entry.linkname = bytes(block[157:257]).partition(b"\0")[0]
    return entry


# Fields that repeat are remembered: layers have few different owners, times and devices.


@lru_cache(_MOST_KNOWN)
def _adler_of(field: bytes) -> int:
    """Return the low half of a block's Adler-32 if this checksum field is right, -1 where the field is unusual."""
    digits = field[:6]
    try:
        return (int(digits, 8) + sum(field) - 0xFF) % _ADLER_BASE if digits.isdigit() else -1
    except ValueError:
        return -1


@lru_cache(_MOST_KNOWN)
def _metadata(fields: bytes) -> tuple[int, int, int]:
    """Return mode, owner and group."""
    return numeric(fields[:8]), numeric(fields[8:16]), numeric(fields[16:])


@lru_cache(_MOST_KNOWN)
def _time(field: bytes) -> int:
    return numeric(field) * _SECOND


@lru_cache(_MOST_KNOWN)
def _device(fields: bytes) -> tuple[int, int]:
    return numeric(fields[:8]), numeric(fields[8:])


@lru_cache(_MOST_KNOWN)
def _says_nothing(magic: bytes, device: bytes) -> bool:
    """Whether what a header says from its magic on means nothing for a file: device numbers, no prefix, no times."""
    if not (magic[:6] == _USTAR or magic == _GNU) or device[16]:
        return False
    try:
        _device(device[:16])
    except LayerError:
        return False
    return True


def _check_sum(block: memoryview, field: bytes) -> None:
    """Check an unusual checksum; raises LayerError."""
    given = numeric(field) if not field[0] & 0x80 else -1
    rest = bytes(block[:148]) + b" " * 8 + bytes(block[156:])
    # Some old writers summed signed bytes.
    if given not in {sum(rest), sum(rest) - 256 * sum(byte > 0x7F for byte in rest)}:
        raise invalid("the checksum of a header is wrong")


def _read_rest(entry: TarEntry, block: bytes, magic: bytes) -> None:
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


def merge(entry: TarEntry, records: dict[bytes, bytes]) -> None:
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

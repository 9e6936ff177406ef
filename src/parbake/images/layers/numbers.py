"""Numbers and records of tar headers, read as containerd's reader reads them.

Facts: POSIX.1-2017 ``pax`` (ustar interchange format, extended header), the GNU tar manual ("Basic Tar Format",
"Storing Sparse Files"), and what Go's ``archive/tar`` accepts, since containerd reads layers with it. Strictness is
the point: an archive that containerd refuses must not become a snapshot here with a guessed meaning.
"""

from __future__ import annotations

from typing import Final

from parbake.core.errors import LayerError

INT64_MAX: Final = (1 << 63) - 1
_INT64_MIN: Final = -(1 << 63)
_NANO_DIGITS: Final = 9

XATTR: Final = b"SCHILY.xattr."
_SPARSE_PIECES: Final = (b"GNU.sparse.offset", b"GNU.sparse.numbytes")
SPARSE_MAP: Final = b"GNU.sparse.map"
# Strings of the header: a NUL inside would mean another name to a C program.
_NO_NUL: Final = frozenset({b"path", b"linkpath", b"uname", b"gname"})


def invalid(what: str) -> LayerError:
    """Return the error for an archive that is malformed: ``what`` says where."""
    return LayerError(f"the layer is not a valid tar archive: {what}", hint="build and push the image again")


def text(field: bytes) -> bytes:
    """Return a string field up to its first NUL."""
    return field.partition(b"\0")[0]


def numeric(field: bytes) -> int:
    """Read a number field: octal, or base-256 when its first bit is set; may be negative. Raises LayerError."""
    if field[0] & 0x80:
        value = int.from_bytes(field, "big", signed=False)
        bits = 8 * len(field)
        if field[0] & 0x40:  # two's complement: the marker bit is the sign bit as well
            value -= 1 << bits
        else:
            value -= 1 << (bits - 1)
        if not _INT64_MIN <= value <= INT64_MAX:
            raise invalid("a number that does not fit 64 bits")
        return value
    digits = text(field.strip(b" \0"))
    if not digits:
        return 0
    try:
        if not digits.isdigit():
            raise ValueError
        value = int(digits, 8)
    except ValueError:
        raise invalid(f"{field!r} is no octal number") from None
    if value >> 64:
        raise invalid("a number that does not fit 64 bits")
    return value if value <= INT64_MAX else value - (1 << 64)


def decimal(value: bytes) -> int:
    """Read a signed decimal number of a PAX record; raises LayerError."""
    digits = value[1:] if value[:1] in {b"+", b"-"} else value
    # 20 digits hold any 64-bit number; the cap keeps a hostile megabyte of digits from costing quadratic time.
    if not digits.isdigit() or len(digits.lstrip(b"0")) > 20:
        raise invalid(f"{value[:40]!r} is no decimal number")
    number = int(value)
    if not _INT64_MIN <= number <= INT64_MAX:
        raise invalid(f"{value[:40]!r} does not fit 64 bits")
    return number


def nanoseconds(value: bytes) -> int:
    """Read a PAX time (decimal seconds, with a fraction cut after nine digits) as nanoseconds; raises LayerError."""
    seconds, _, fraction = value.partition(b".")
    whole = decimal(seconds) * 1_000_000_000
    if not fraction:
        return whole
    if not fraction.isdigit():
        raise invalid(f"{value[:40]!r} is no time")
    part = int(fraction[:_NANO_DIGITS].ljust(_NANO_DIGITS, b"0"))
    return whole - part if seconds.startswith(b"-") else whole + part


def records(body: bytes) -> dict[bytes, bytes]:
    """Read the records of a PAX header; raises LayerError.

    The pieces of a GNU sparse map of version 0.0, which repeat their keys, come back joined under the key of version
    0.1 (``GNU.sparse.map``).
    """
    found: dict[bytes, bytes] = {}
    pieces: list[bytes] = []
    at = 0
    while at < len(body):
        space = body.find(b" ", at, at + 20)
        if space < 0:
            raise invalid("a PAX record without a length")
        length = decimal(body[at:space])
        end = at + length
        if length < 5 or end > len(body) or end <= space + 1 or body[end - 1 : end] != b"\n":
            raise invalid("a PAX record whose length is wrong")
        key, equals, value = body[space + 1 : end - 1].partition(b"=")
        if not equals or not key or b"\0" in (value if key in _NO_NUL else key):
            raise invalid("a PAX record that is no key=value")
        if key in _SPARSE_PIECES:
            if key != _SPARSE_PIECES[len(pieces) % 2] or b"," in value:
                raise invalid("a sparse map out of order")
            pieces.append(value)
        else:
            found[key] = value
        at = end
    if pieces:
        found[SPARSE_MAP] = b",".join(pieces)
    return found


type Segment = tuple[int, int]
"""Offset and length, in bytes, of one piece of a sparse file that has data."""


def pairs(values: list[bytes]) -> list[Segment]:
    """Return the segments of a sparse map written as a flat list of decimal numbers."""
    flat = [decimal(value) for value in values]
    return list(zip(flat[::2], flat[1::2], strict=True))


def sparse_from_records(found: dict[bytes, bytes]) -> list[Segment]:
    """Return the segments of a sparse map of version 0.0 or 0.1, which lies in PAX records."""
    count = decimal(found.get(b"GNU.sparse.numblocks", b""))
    values = found.get(SPARSE_MAP, b"").split(b",")
    if values == [b""]:
        values = []
    if count < 0 or len(values) != 2 * count:
        raise invalid("a sparse map of the wrong length")
    return pairs(values)


def check_segments(segments: list[Segment], size: int, stored: int) -> None:
    """Raise LayerError unless the segments are in order, lie within ``size`` and add up to ``stored`` bytes."""
    end = total = 0
    for offset, length in segments:
        if offset < 0 or length < 0 or offset < end or offset + length > size:
            raise invalid("a sparse map whose pieces overlap or lie outside the file")
        end = offset + length
        total += length
    if size < 0 or total != stored:
        raise invalid("a sparse map that does not fit its data")

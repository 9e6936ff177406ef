"""Numbers, records and headers: what is read, and what is refused."""

from __future__ import annotations

import io
import tarfile
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parbake.core.errors import LayerError
from parbake.images.layers import numbers
from parbake.images.layers.archive import Archive, Chunks
from parbake.images.layers.headers import TarEntry
from parbake.images.layers.paths import clean
from standins.tars import GNU, USTAR, V7, archive, checksummed, entry, header, octal, pax, record

MAX = (1 << 63) - 1


type Found = list[tuple[TarEntry, bytes]]


def read(data: bytes, chunk: int = 1024) -> Found:
    """Read an archive twice, the second time with plain files taken by the short way: it says the same."""
    found: list[Found | LayerError] = []
    for short in (False, True):
        try:
            found.append(read_once(data, chunk, short=short))
        except LayerError as error:
            found.append(error)
    whole, shortened = found
    if isinstance(whole, LayerError):
        assert isinstance(shortened, LayerError)
        assert shortened.message == whole.message
        raise whole
    assert isinstance(shortened, list)
    assert [(said(one), body) for one, body in shortened] == [(said(one), body) for one, body in whole]
    return whole


def read_once(data: bytes, chunk: int, *, short: bool) -> Found:
    pieces = iter([memoryview(data)[at : at + chunk] for at in range(0, len(data), chunk)])
    reader = Archive(Chunks(lambda: next(pieces, None)), most_entries=1000)
    found = []

    def take(name: bytes, metadata: tuple[int, int, int], size: int, modified: int) -> bool:
        found.append((TarEntry(name, b"0", metadata, size, modified), b"".join(reader.pieces())))
        return True

    while (one := reader.next(take if short else None)) is not None:
        found.append((one, b"".join(reader.pieces())))
    return found


def said(one: TarEntry) -> dict[str, object]:
    """Return what an entry says; device numbers are not a file's."""
    devices = {"major", "minor"} if one.kind == b"0" else set()
    return {name: getattr(one, name) for name in set(TarEntry.__slots__) - devices}


def only(*parts: bytes) -> TarEntry:
    ((found, _),) = read(archive(*parts))
    return found


@given(st.integers(-(1 << 63), MAX))
@settings(deadline=None)
def test_a_number_field_in_octal_or_base_256(number: int) -> None:
    assert numbers.numeric(octal(number, 12)) == number


@pytest.mark.parametrize("field", [b"0000644\0", b"644 \0\0\0\0", b"   644 \0", b"\0\x00644\0\0\0"])
def test_an_octal_field_however_it_is_padded(field: bytes) -> None:
    assert numbers.numeric(field) == 0o644


@pytest.mark.parametrize(
    "field", [b"0000648\0", b"-000644\0", b"0x00644\0", b"1_00644\0", b"12 34\0\0\0", b"\xbf" * 12]
)
def test_what_is_no_number_field(field: bytes) -> None:
    with pytest.raises(LayerError):
        numbers.numeric(field)


@given(st.integers(-(1 << 40), 1 << 40), st.integers(0, 999_999_999))
@settings(deadline=None)
def test_a_time_with_nanoseconds(seconds: int, nanoseconds: int) -> None:
    written = b"%d.%09d" % (seconds, nanoseconds)
    expected = seconds * 10**9 + (-nanoseconds if seconds < 0 else nanoseconds)
    assert numbers.nanoseconds(written) == expected
    assert numbers.nanoseconds(written + b"999") == expected


@pytest.mark.parametrize("value", [b"", b".5", b"1.x", b"1.-5", b"1e9", b" 1", b"1_0", b"9" * 100_000])
def test_what_is_no_time(value: bytes) -> None:
    with pytest.raises(LayerError):
        numbers.nanoseconds(value)


KEYS = st.binary().filter(lambda key: not {0, 0x3D} & set(key)).map(lambda key: b"k" + key)


@given(st.dictionaries(KEYS, st.binary()))
@settings(deadline=None)
def test_records_come_back(items: dict[bytes, bytes]) -> None:
    assert numbers.records(b"".join(record(key, value) for key, value in items.items())) == items


def test_the_last_of_two_records_counts() -> None:
    assert numbers.records(record(b"path", b"a") + record(b"path", b"b")) == {b"path": b"b"}


@pytest.mark.parametrize(
    "body",
    [b"5 a=\n6", b"x a=b\n", b"3 a\n", b"99 a=b\n", b"7 a=bb", b"6 =ab\n", b"6 abc\n", b"13 path=a\0bc\n", b"-6 a=b\n"],
)
def test_broken_records(body: bytes) -> None:
    with pytest.raises(LayerError):
        numbers.records(body)


@given(st.binary(max_size=300))
@settings(deadline=None)
def test_any_records_end_in_our_error(body: bytes) -> None:
    try:
        numbers.records(body)
    except LayerError as error:
        assert "tar archive" in error.message  # noqa: PT017 (most bodies are refused, some are not)


def test_a_name_with_a_prefix_by_format() -> None:
    assert only(header(b"name", prefix=b"a/b")).name == b"a/b/name"
    assert only(header(b"name", prefix=b"a/b", magic=V7)).name == b"name"
    star = only(
        header(b"name", prefix=b"a/b".ljust(131, b"\0") + octal(77, 12) + octal(88, 12), tail=b"\0" * 8 + b"tar\0")
    )
    assert (star.name, star.accessed) == (b"a/b/name", 77 * 10**9)
    gnu = only(header(b"name", prefix=octal(99, 12) + octal(5, 12), magic=GNU))
    assert (gnu.name, gnu.accessed) == (b"name", 99 * 10**9)
    assert only(header(b"name", prefix=b"old/go", magic=GNU)).name == b"old/go/name"


def test_pax_overrides_the_header_and_an_empty_value_does_not() -> None:
    found = only(
        pax({b"path": b"long/name", b"uid": b"5000000000", b"gid": b"", b"mtime": b"-1.5", b"linkpath": b"to"}),
        header(b"short", gid=7, mtime=3, magic=USTAR),
    )
    assert (found.name, found.uid, found.gid, found.modified, found.linkname) == (
        b"long/name", 5_000_000_000, 7, -1_500_000_000, b"to",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("modified", "accessed", "times"),
    [
        (5, None, (5, 5)),
        (5, 9, (9, 5)),
        (9, 5, (9, 9)),
        (-1, None, (0, 0)),
        (MAX, None, (MAX, MAX)),
        (MAX + 1, 7, (0, 0)),
        (-1, 7, (7, 0)),
    ],
)
def test_times_are_bounded_as_in_containerd(modified: int, accessed: int | None, times: tuple[int, int]) -> None:
    found = TarEntry()
    found.modified, found.accessed = modified, accessed
    assert found.times() == times


def test_old_types() -> None:
    assert only(header(b"f", b"\0")).kind == b"0"
    assert only(header(b"d/", b"\0", magic=V7)).kind == b"5"


def test_types_without_data_have_none_whatever_their_size_says() -> None:
    (folder, _), (file, data) = read(archive(header(b"d/", b"5", size=5000), entry(b"f", data=b"x")))
    assert (folder.stored, file.name, data) == (0, b"f", b"x")


def test_a_signed_checksum() -> None:
    block = bytearray(header(b"n\xff\xfe"))
    total = sum(block[:148]) + 256 + sum(block[156:]) - 2 * 256
    block[148:156] = b"%06o\0 " % total
    assert only(bytes(block)).name == b"n\xff\xfe"


@pytest.mark.parametrize("chunk", [512, 1024, 1 << 20])
@pytest.mark.parametrize("format_", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_what_python_writes(format_: int, chunk: int) -> None:
    out = io.BytesIO()
    names = ["short", "d" * 90 + "/" + "f" * 90]
    if format_ != tarfile.USTAR_FORMAT:
        names += ["x" * 255 + "/" + "y" * 255, "\udcff\udcfe", "ümlaut"]
    with tarfile.open(fileobj=out, mode="w", format=format_, errors="surrogateescape") as tar:
        for number, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size = number * 700
            tar.addfile(info, io.BytesIO(bytes([number]) * info.size))
    found = read(out.getvalue(), chunk)
    assert [one.name for one, _ in found] == [name.encode("utf-8", "surrogateescape") for name in names]
    assert [data for _, data in found] == [bytes([number]) * number * 700 for number in range(len(names))]


@pytest.mark.parametrize(
    ("name", "cleaned"),
    [
        (b"a/b", b"a/b"), (b"a/b/", b"a/b"), (b"./a", b"a"), (b"/a//b/./c/../d", b"a/b/d"), (b".", b""), (b"/", b""),
        (b"", b""), (b".hidden", b".hidden"), (b"a/.hidden/", b"a/.hidden"), (b"..a", b"..a"), (b"a/..b", b"a/..b"),
    ],
)  # fmt: skip
def test_clean_names(name: bytes, cleaned: bytes) -> None:
    assert clean(name) == cleaned


@given(st.sampled_from([USTAR, GNU, V7]), st.dictionaries(st.integers(0, 511), st.integers(0, 255), max_size=3))
@settings(deadline=None)
def test_the_short_way_for_plain_files_says_what_the_long_one_says(magic: bytes, changes: dict[int, int]) -> None:
    block = bytearray(header(b"srv/app/file", size=700, mode=0o644, uid=5, gid=7, mtime=99, magic=magic))
    for at, value in changes.items():
        block[at] = value
    with suppress(LayerError):
        read(checksummed(bytes(block)) + b"x" * 700 + bytes(324) + bytes(1024))

"""Hostile layers: refused or harmless, and never a byte outside the root."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from parbake.core.errors import LayerBomb, LayerError, LayerEscape
from parbake.images.layers import complete_folder, engine
from standins.hostile import Fate, corpus
from standins.layers import put
from standins.tars import archive, entry, pax
from standins.trees import scan
from tests.fuzz.targets import SEED, fuzz_archive, fuzz_layer

NAMES = [*corpus()]


@cache
def attacks() -> dict[str, tuple[bytes, Fate]]:
    return corpus()


def needs_root(what: str) -> bool:
    return "device" in what or "attributes" in what or "opaque" in what


@pytest.mark.parametrize("what", NAMES)
@pytest.mark.parametrize("bottom", [True, False])
def test_corpus(what: str, bottom: bool, tmp_path: Path) -> None:
    if needs_root(what) and os.geteuid() != 0:
        pytest.skip("needs root")
    raw, fate = attacks()[what]
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "victim").write_bytes(b"untouched")
    before = scan(tmp_path)
    target = tmp_path / "root"
    try:
        complete_folder(target, put(target, raw, bottom=bottom), ())
        seen = "harmless"
    except LayerError:
        seen = "refused"
    after = {path: node for path, node in scan(tmp_path).items() if path.split(b"/")[0] != b"root"}
    del before[b"."], after[b"."]
    assert after == before
    assert not Path("/tmp/parbake-escape").exists()
    assert seen == fate


@pytest.mark.parametrize("name", [b"../x", b"a/../../x", b"/../x", b".."])
def test_an_escape_is_named(name: bytes, tmp_path: Path) -> None:
    with pytest.raises(LayerEscape, match="leads outside its root") as raised:
        put(tmp_path, archive(entry(name)))
    assert raised.value.hint


def test_links_upwards_stay_inside(tmp_path: Path) -> None:
    put(tmp_path / "root", attacks()["parent that links to an absolute place"][0])
    assert (tmp_path / "root/etc/passwd").read_bytes() == b"x"
    assert (tmp_path / "root/abs").readlink() == Path("/etc")


def test_the_count_of_entries_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "MOST_ENTRIES", 100)
    with pytest.raises(LayerBomb, match="more than 100 entries"):
        put(tmp_path, archive(*(entry(b"f%d" % number) for number in range(101))))


def test_truncation_everywhere(tmp_path: Path) -> None:
    """Every cut is an error or the end of the archive, and what was read before it is there."""
    accepted, refused = [], set()
    for number, size in enumerate(range(0, len(SEED) + 1, 256)):
        try:
            put(tmp_path / str(number), SEED[:size])
            accepted.append(size)
        except LayerError as error:
            refused.add(error.message.partition("archive: ")[2])
    # Between entries (before each header, and within the padding of data) an archive may end: so says containerd's
    # reader as well, see test_layers_as_containerd.
    assert len(SEED) in accepted
    assert refused == {"it ends within a file", "it ends within a header", "it ends within an extended header"}
    assert 512 in accepted
    assert 256 not in accepted
    assert len(accepted) < len(SEED) // 256


@pytest.mark.parametrize("packed", [lambda data: data, lambda data: gzip.compress(data, 1), zstandard.compress])
def test_truncation_at_every_byte(packed: Callable[[bytes], bytes]) -> None:
    """Whatever is missing: the end of the archive, of its compression, of anything in it."""
    data = packed(archive(entry(b"d/", b"5"), entry(b"d/f", data=b"0123456789" * 60), pax({b"uid": b"7"}), entry(b"g")))
    step = max(1, len(data) // 300)
    for size in range(0, len(data), step):
        fuzz_layer(data[:size])
    for size in range(len(SEED)):
        fuzz_archive(SEED[:size])


def test_duplicates_end_as_the_last_of_them_says(tmp_path: Path) -> None:
    for number, what in enumerate(("file twice", "hard link twice", "file, folder, link, file of one name")):
        put(tmp_path / str(number), attacks()[what][0])
    assert (tmp_path / "0/f").read_bytes() == b"22"
    assert ((tmp_path / "1/f").read_bytes(), (tmp_path / "1/h").read_bytes()) == (b"2", b"1")
    assert (tmp_path / "2/a").read_bytes() == b"2"
    put(tmp_path / "3", attacks()["folder twice"][0])
    assert (tmp_path / "3/d").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "3/d/f").read_bytes() == b"1"


def test_attributes_that_do_not_fit_are_no_full_disk(tmp_path: Path) -> None:
    """ext4 says ENOSPC of more than a block, which a larger disk would not change."""
    raw = archive(pax({b"SCHILY.xattr.user.a": b"v" * 70_000}), entry(b"a"))
    with pytest.raises(LayerError, match="'a': its extended attributes are larger than") as raised:
        put(tmp_path / "any", raw)
    assert "xfs" in raised.value.hint
    (tmp_path / "f").touch()
    try:
        os.setxattr(tmp_path / "f", "user.a", b"v" * 10_000)
    except OSError:
        with pytest.raises(LayerError, match="'a': its extended attributes are larger than"):
            put(tmp_path / "ext4", archive(pax({b"SCHILY.xattr.user.a": b"v" * 10_000}), entry(b"a")))


@given(st.lists(st.tuples(st.integers(0, len(SEED) - 1), st.integers(0, 255)), max_size=6), st.booleans())
@settings(max_examples=300, deadline=None)
def test_mutations_end_in_our_errors(changes: list[tuple[int, int]], fix_checksums: bool) -> None:
    data = bytearray(SEED)
    for at, value in changes:
        data[at] = value
        if fix_checksums:
            block = at // 512 * 512
            total = sum(data[block : block + 148]) + 256 + sum(data[block + 156 : block + 512])
            data[block + 148 : block + 156] = b"%06o\0 " % total
    fuzz_archive(bytes(data))
    fuzz_layer(bytes(data))

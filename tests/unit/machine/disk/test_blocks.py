"""Lists of blocks: against a plain reading of the same file, and what is wrong with files."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from parbake.core.blocks import BlockList, spans
from parbake.core.errors import InputError
from parbake.core.events import Event, Events
from parbake.core.model import EBS_BLOCK
from parbake.machine.disk import block_list

FILLING = st.sampled_from(
    [b"", bytes(EBS_BLOCK), b"a" * EBS_BLOCK, b"b" * 100, bytes(EBS_BLOCK - 1) + b"z", b"\0" * 4096 + b"c"]
)


def plain(data: bytes) -> BlockList:
    found = {}
    for index in range(-(-len(data) // EBS_BLOCK)):
        block = data[index * EBS_BLOCK : (index + 1) * EBS_BLOCK].ljust(EBS_BLOCK, b"\0")
        if any(block):
            found[index] = hashlib.sha256(block).digest()
    return BlockList(len(data), found)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces=st.dictionaries(st.integers(0, 14), FILLING, max_size=8), end=st.integers(0, 15 * EBS_BLOCK))
def test_it_says_what_a_plain_reading_says(tmp_path: Path, pieces: dict[int, bytes], end: int) -> None:
    path = tmp_path / "disk.raw"
    with path.open("wb") as file:  # where there is no piece, there is a hole
        for index, piece in pieces.items():
            file.seek(index * EBS_BLOCK)
            file.write(piece)
        file.truncate(end)
    made = block_list(path, Events())
    assert made == plain(path.read_bytes())
    made.write(tmp_path / "list")
    assert BlockList.read(tmp_path / "list") == made
    assert hashlib.sha256((tmp_path / "list").read_bytes()).hexdigest() == made.digest()


def test_the_text_form_is_what_the_documentation_says() -> None:
    made = plain(b"a" * EBS_BLOCK + bytes(EBS_BLOCK) + b"b")
    a, b = (hashlib.sha256(data.ljust(EBS_BLOCK, b"\0")).hexdigest() for data in (b"a" * EBS_BLOCK, b"b"))
    assert "".join(made.text()) == f"parbake-blocks 1 sha256 524288 1048577\n0 {a}\n2 {b}\n"


def test_holes_and_known_blocks_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # reading a TiB would not end
        os.pwrite(file.fileno(), b"x", 10 * EBS_BLOCK)
        os.pwrite(file.fileno(), b"y", 11 * EBS_BLOCK)
    said: list[Event] = []
    made = block_list(path, Events(said.append), {11: b"k" * 32})
    assert made.blocks == {10: hashlib.sha256(b"x".ljust(EBS_BLOCK, b"\0")).digest(), 11: b"k" * 32}
    assert (said[-1].kind, said[-1].done, said[-1].total) == ("task-end", EBS_BLOCK, EBS_BLOCK)


def test_a_file_that_becomes_shorter(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(b"x" * 8 * EBS_BLOCK)

    def cut(event: Event) -> None:
        if event.kind == "task-start":
            os.truncate(path, 3 * EBS_BLOCK)

    with pytest.raises(InputError, match="shrank while it was read"):
        block_list(path, Events(cut))


def test_what_has_changed() -> None:
    old = BlockList(4 * EBS_BLOCK, {0: b"a", 1: b"b", 3: b"c"})
    assert old.changed_since(old) == []
    assert BlockList(4 * EBS_BLOCK, {0: b"a", 1: b"x", 2: b"n"}).changed_since(old) == [1, 2, 3]
    assert BlockList(2 * EBS_BLOCK, {0: b"a", 1: b"b"}).changed_since(old) == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0 " + "a" * 64 + "\n",
        "parbake-blocks 2 sha256 524288 9\n",
        "parbake-blocks 1 sha256 524288 9\n0 aa\n",
        "parbake-blocks 1 sha256 524288 9\n00 " + "a" * 64 + "\n",
        "parbake-blocks 1 sha256 524288 9\n0 " + "a" * 64,
        "ä",
    ],
)
def test_what_is_no_list_says_so(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.blocks"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match=r"x\.blocks"):
        BlockList.read(path)


def test_a_list_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        BlockList.read(tmp_path / "x.blocks")


def test_short_reads_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of a network's file system may be."""
    path = tmp_path / "disk.raw"
    path.write_bytes(os.urandom(4 * EBS_BLOCK + 5))
    real = os.preadv

    def short(handle: int, buffers: list[bytearray], place: int) -> int:
        return real(handle, [memoryview(buffers[0])[:300_001]], place)

    monkeypatch.setattr(os, "preadv", short)
    assert block_list(path, Events()) == plain(path.read_bytes())


def test_indices_for_people() -> None:
    assert spans([3]) == "3"
    assert spans([3, 5, 6, 7, 9]) == "3, 5-7, 9"
    assert spans([1, 3, 5, 7], most=2) == "1, 3, and 2 more"


def test_two_kinds_of_digests(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(b"x" * EBS_BLOCK + bytes(EBS_BLOCK) + b"y")
    plain_, fast = block_list(path, Events()), block_list(path, Events(), algorithm="blake3")
    assert fast.blocks[0] == blake3(b"x" * EBS_BLOCK).digest()
    assert plain_.blocks.keys() == fast.blocks.keys() == {0, 2}
    fast.write(tmp_path / "list")
    assert (tmp_path / "list").read_text().startswith(f"parbake-blocks 1 blake3 {EBS_BLOCK} ")
    assert BlockList.read(tmp_path / "list") == fast
    with pytest.raises(InputError, match="cannot be compared"):
        fast.changed_since(plain_)

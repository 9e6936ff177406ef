"""What QEMU's log says of a guest's reads. Whatever comes in, no error."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parbake.machine.vm import GuestRead, busiest_disk, marked_disk, read_log, reads
from parbake.machine.vm.reads import by_disk

OTHER, ROOT = "0x5652779e0fd0", "0x565277b847b0"


def line(disk: str = ROOT, sector: int = 8, length: int = 8, at: str = "1795546735.420999") -> str:
    return f"20319@{at}:virtio_blk_handle_read vdev {disk} req 0x1f sector {sector} nsectors {length}\n"


def test_the_disk_that_was_booted() -> None:
    lines = [
        line(OTHER, 0, 1),
        line(ROOT, 0, 1),
        line(ROOT, 900_000, 64, "1795546736.5"),  # another format: left out
        line(ROOT, 800_000, 64, "1795546736.500000"),
        line(OTHER, 41_943_032, 8),  # a larger disk, at whose end udev looks for a signature
        line(ROOT, 5, 0),
        "virtio_blk_handle_read",
    ]
    assert busiest_disk(by_disk(lines)) == [
        GuestRead(1795546735.420999, 0, 1),
        GuestRead(1795546736.5, 800_000, 64),
    ]
    assert busiest_disk([]) == ()


MARKS = (700, 12, 700_000)


def sectors(lines: Sequence[str]) -> list[int]:
    return [read.sector for read in marked_disk(by_disk(lines), MARKS)]


def test_the_disk_that_was_marked() -> None:
    """Whatever else is read, and however much of the other: a node's own disk is the busier one."""
    own = [line(OTHER, 1 << 20, 4096), *(line(OTHER, mark, 1) for mark in sorted(MARKS))]
    assert sectors([*own, line(ROOT, 12, 1)]) == []
    marked = [line(ROOT, 8, 8), *(line(ROOT, mark, 1) for mark in MARKS), line(ROOT, 16, 8)]
    assert sectors([*own, *marked]) == [8, *MARKS, 16]
    assert sectors([*own, *marked[:3], marked[4]]) == [], "one of the marks is missing"
    assert sectors([*own, *(line(ROOT, mark, 8) for mark in MARKS)]) == [], "a file system reads blocks"


@given(st.lists(st.tuples(st.sampled_from([OTHER, ROOT]), st.integers(0, 9), st.integers(1, 2)), max_size=40))
def test_a_marked_disk_is_one_whose_reads_have_the_marks_in_order(seen: list[tuple[str, int, int]]) -> None:
    marks = (3, 1, 4)
    found = marked_disk(by_disk(line(*each) for each in seen), marks)
    with_marks = []
    for disk in dict.fromkeys(disk for disk, _, _ in seen):
        single = "".join(str(sector) for at, sector, length in seen if (at, length) == (disk, 1))
        if re.search("3.*1.*4", single):
            with_marks.append(disk)
    assert bool(found) == bool(with_marks)
    if found:
        assert [read.sector for read in found] == [sector for at, sector, _ in seen if at == with_marks[0]]


def test_of_a_log_without_end_the_first_reads_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    log.write_text("".join(line(ROOT, at, 8, f"{100 + at}.500000") for at in range(5)))
    disks, until = read_log(log)
    assert (len(disks[0]), until) == (5, math.inf)
    monkeypatch.setattr(reads, "MOST_READS", 3)
    disks, until = read_log(log)
    assert (len(disks[0]), until) == (3, 102.5)
    log.write_text("x" * 10_000)  # a line without end is taken in pieces, of which each counts
    assert read_log(log) == ([], 0.0)


_GOOD = st.tuples(st.integers(1, 1 << 40), st.integers(1, 1 << 20))
_ODD = st.text(max_size=150) | st.builds(line, sector=st.integers(-5, -1), length=st.integers(-1, 1 << 40))


@given(st.lists(_GOOD | _ODD | st.builds(line, sector=st.integers(0, 1 << 40), length=st.integers(-1, 0))))
def test_no_line_is_an_error_and_none_hides_a_good_one(lines: list[tuple[int, int] | str]) -> None:
    found = busiest_disk(by_disk(line(ROOT, *each) if isinstance(each, tuple) else each for each in lines))
    assert [(read.sector, read.length) for read in found] == [each for each in lines if isinstance(each, tuple)]

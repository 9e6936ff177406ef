"""Start-up traces without a kernel: the file format, the order, the text of tracefs. Whatever comes in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parbake.cli.text import artefacts
from parbake.coldstart.trace import (
    Part,
    Read,
    Trace,
    hydrate_list,
    load,
    merged,
    read_whole,
    relocated,
    requests,
    save,
    summary,
)
from parbake.coldstart.trace.data import HotEntry, parse, spans
from parbake.coldstart.trace.tracefs import Device, overruns, parse_lines
from parbake.core.errors import InputError
from parbake.core.model import EBS_BLOCK, GIB, TraceSummary
from parbake.records import Record
from standins.plans import record

PER_BLOCK = EBS_BLOCK // 512
DISK = Device("/dev/loop0", ((7, 0),), 0, 10_000)
PARTITION = Device("/dev/vda1", ((254, 1), (254, 0)), 2048, 1000)

reads = st.builds(Read, st.integers(0, 10_000), st.integers(0, 50_000), st.integers(1, 3000))
parts = st.builds(
    Part,
    name=st.text(max_size=20),
    kind=st.sampled_from(["boot", "image", "node"]),
    seconds=st.none() | st.floats(0, 1000),
    reads=st.lists(reads, max_size=20).map(tuple),
)
ranges = st.lists(st.tuples(st.integers(0, 1 << 40), st.integers(1, 1 << 30)), max_size=3).map(tuple)
traces = st.builds(
    Trace,
    uuid=st.uuids().map(str),
    filesystem=st.sampled_from(["ext4", "xfs"]),
    size=st.integers(0, 50_000 * 512),
    parts=st.lists(parts, max_size=4).map(tuple),
    files=st.lists(st.builds(HotEntry, st.text(max_size=30), st.integers(0, 1 << 40), ranges), max_size=4).map(tuple),
    metadata=ranges,
)


def line(dev: str = "7,0", rwbs: str = "RA", sector: int = 8, count: int = 8, at: str = "100.250000") -> str:
    return f"  python3 -c x-4711  [001] ..... {at}: block_bio_queue: {dev} {rwbs} {sector} + {count} [python3 x]\n"


@given(traces)
def test_a_trace_comes_back_as_it_was_written(trace: Trace) -> None:
    assert parse(trace.model_dump_json(by_alias=True).encode()) == trace


def test_a_trace_file(tmp_path: Path) -> None:
    trace = Trace(uuid="0a", size=EBS_BLOCK, parts=(Part(name="a", reads=(Read(1, 2, 3),)),))
    path = save(trace, tmp_path / "x.trace")
    assert load(path) == trace
    assert json.loads(path.read_text())["parbake-trace"] == 1
    assert [each.name for each in tmp_path.iterdir()] == ["x.trace"]
    with pytest.raises(InputError, match="No such file"):
        load(tmp_path / "none")


@given(st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
def test_what_is_no_trace_is_said(data: bytes) -> None:
    with pytest.raises(InputError, match="as a start-up trace"):
        parse(data)


@given(traces, st.data())
def test_a_damaged_trace_is_said_or_is_one(trace: Trace, data: st.DataObject) -> None:
    good = trace.model_dump_json(by_alias=True).encode()
    at = data.draw(st.integers(0, len(good)))
    bad = data.draw(
        st.sampled_from([good[:at], good[:at] + b"9" * 30 + good[at:], good[:at] + b"\xff" + good[at + 1 :]])
    )
    try:
        found = parse(bad)
    except InputError:
        return
    assert all(read.ms >= 0 and read.sector >= 0 and read.length > 0 for part in found.parts for read in part.reads)
    assert len(merged(found.model_copy(update={"size": EBS_BLOCK}))) <= 1


@pytest.mark.parametrize(
    "text",
    [
        '{"parbake-trace": 2}',
        '{"parbake-trace": 1, "parts": [{"name": "a", "reads": [[0, -1, 8]]}]}',
        '{"parbake-trace": 1, "parts": [{"name": "a", "reads": [[0, 1, 0]]}]}',
        '{"parbake-trace": 1, "parts": [{"name": "a", "reads": [[0, 1, 1e400]]}]}',
        '{"parbake-trace": 1, "more": 1}',
        '{"parbake-trace": 1, "parts":' + "[" * 50_000,
    ],
)
def test_bad_traces(text: str) -> None:
    with pytest.raises(InputError, match="as a start-up trace"):
        parse(text.encode())


@given(traces)
def test_the_order_names_each_block_once_and_none_beyond_the_end(trace: Trace) -> None:
    order = merged(trace)
    assert len(set(order)) == len(order)
    touched = {
        block
        for part in trace.parts
        for read in part.reads
        for block in range(read.sector // PER_BLOCK, (read.sector + read.length - 1) // PER_BLOCK + 1)
    }
    end = -(-trace.size // EBS_BLOCK) if trace.size else 1 << 60
    assert set(order) == {block for block in touched if block < end}
    assert [block for first, count in spans(order) for block in range(first, first + count)] == list(order)


def test_boots_come_first_and_images_side_by_side() -> None:
    def part(name: str, kind: str, *at: tuple[int, int]) -> Part:
        return Part(name=name, kind=kind, reads=tuple(Read(ms, n * PER_BLOCK, 8) for ms, n in at))

    trace = Trace(
        parts=(
            part("a", "image", (0, 5), (30, 6)),
            part("b", "image", (0, 7), (10, 8), (20, 5)),
            part("boot", "boot", (900, 2), (901, 7)),
        )
    )
    assert merged(trace) == (2, 7, 5, 8, 6)
    # A layout wants them one after the other.
    assert [start // (EBS_BLOCK // 4096) for start, _ in requests(trace)] == [2, 7, 5, 6, 7, 8, 5]
    assert requests(Trace(parts=(Part(name="a", reads=(Read(0, 7, 2), Read(1, 16, 1))),))) == ((0, 2), (2, 3))


def test_reads_follow_blocks_that_have_moved() -> None:
    reads = (Read(0, 0, 8), Read(5, 80, 32), Read(9, 4000, 1))
    trace = Trace(size=64 << 20, parts=(Part(name="a", reads=reads),))
    places = {10: 1000, 11: 1001, 13: 2000, 7: 7000, 500: 1002}
    moved = relocated(trace, places)
    assert moved.parts[0].reads == (
        Read(0, 0, 8), Read(5, 8000, 16), Read(5, 96, 8), Read(5, 16000, 8), Read(9, 8016, 8),
    )  # fmt: skip
    assert moved.scattered == len(merged(trace)) == 2
    assert merged(moved) == (0, 7, 15)
    assert relocated(trace, {}).parts == trace.parts


def test_a_hydrate_list_says_how_long_it_is() -> None:
    reads = (Read(0, PER_BLOCK, 1), Read(1, 2 * PER_BLOCK, 1), Read(2, 0, 1))
    trace = Trace(uuid="0a-1", size=2 * EBS_BLOCK + 4096, parts=(Part(name="a", reads=reads),))
    assert hydrate_list(trace).splitlines() == [
        "parbake-hydrate 1",
        "uuid 0a-1",
        f"size {2 * EBS_BLOCK + 4096}",
        "ranges 3",
        f"{EBS_BLOCK} {EBS_BLOCK}",
        f"{2 * EBS_BLOCK} 4096",
        f"0 {EBS_BLOCK}",
    ]


# -- what tracefs says


def test_lines_of_the_kernel() -> None:
    lines = ["# tracer: nop\n", line(), line(rwbs="RM", at="100.500000", sector=9996), line(rwbs="WS"), line("7,1")]
    assert parse_lines(lines, DISK, since=100.0) == (Read(250, 8, 8), Read(500, 9996, 4))


def test_partitions_count_from_their_own_start_whichever_device_is_named() -> None:
    lines = [line("254,0", sector=2056), line("254,1", sector=3047), line("254,0", sector=2047), line("254,2")]
    assert parse_lines(lines, PARTITION, since=100.0) == (Read(250, 8, 8), Read(250, 999, 1))
    assert parse_lines([line("254,0", sector=3048)], PARTITION, since=0) == ()


def test_the_name_of_a_program_forges_nothing() -> None:
    name = "x: 7,0 R 1 + 1["
    text = f" {name}-1 [000] ..... 5.000001: block_bio_queue: 7,0 R 16 + 8 [{name}]\n"
    assert parse_lines([text], DISK, since=5.0) == (Read(0, 16, 8),)


# Sectors and counts of reads that lie on the disk, at least in part.
_GOOD = st.tuples(st.integers(0, DISK.count - 1), st.integers(1, 1 << 32))
_ODD = (
    st.text(max_size=200)
    | st.builds(line, sector=st.integers(-5, -1) | st.integers(DISK.count, 1 << 70), count=st.integers(-1, 1 << 40))
    | st.builds(line, sector=st.integers(0, DISK.count), count=st.integers(-1, 0))
)


@given(st.lists(_GOOD | _ODD))
def test_no_line_is_an_error_and_none_hides_a_good_one(lines: list[tuple[int, int] | str]) -> None:
    text = [line(sector=each[0], count=each[1]) if isinstance(each, tuple) else each for each in lines]
    good = [each for each in lines if isinstance(each, tuple)]
    expected = [(sector, min(count, DISK.count - sector)) for sector, count in good]
    assert [(read.sector, read.length) for read in parse_lines(text, DISK, since=0.0)] == expected


def test_lost_events_are_counted() -> None:
    assert overruns("entries: 5\noverrun: 3\ncommit overrun: 0\nbytes: 9\ndropped events: 2\n") == 5
    assert overruns("") == 0


# -- records


def test_records_keep_a_summary_and_old_ones_are_read() -> None:
    trace = Trace(
        uuid="0a",
        size=8 * EBS_BLOCK,
        parts=(Part(name="a", seconds=1.5, stages={"mount": 0.5, "start": 1.0}, reads=(Read(1, 2, 3),)),),
        skipped={"b": "it ended"},
    )
    found = summary(trace, file="x.trace")
    assert (found.hot_bytes, found.hot_blocks, found.reads, found.read_bytes) == (EBS_BLOCK, 1, 1, 3 * 512)
    made = record().model_copy(update={"trace": found})
    assert Record.model_validate_json(made.model_dump_json()) == made
    old = json.loads(record().model_dump_json())
    del old["trace"]
    assert Record.model_validate(old).trace is None
    text = artefacts.trace_text(found, [("bin/app", 4096)])
    assert "512 KiB of 4.00 MiB (12.5%) in 1 reads" in text
    assert "skipped: b: it ended" in text
    assert artefacts.trace_line(TraceSummary()) == "0 B in 0 reads"


@pytest.mark.parametrize(
    ("ranges", "whole"),
    [
        ([(0, 2 * GIB)], True),
        ([(0, GIB), (GIB + 4096, GIB)], True),
        ([(0, GIB - 1)], False),
        ([(4 << 20, 2 * GIB)], False),
        ([(0, 4096), (GIB, 2 * GIB)], False),
        ([], False),
    ],
    ids=["one stretch", "a page was there", "small", "not from the front", "here and there", "nothing known"],
)
def test_a_large_file_that_is_read_whole_is_told_from_one_that_is_read_here_and_there(
    ranges: list[tuple[int, int]], whole: bool
) -> None:
    size = sum(length for _, length in ranges)
    trace = Trace(files=(HotEntry("models/a%20b.safetensors", size, tuple(ranges)), HotEntry("bin/sh", 9, ((0, 9),))))
    assert list(read_whole(trace)) == ["models/a b.safetensors"] * whole
    assert not whole or read_whole(trace)["models/a b.safetensors"] >= GIB

"""The node's program reads files into memory: its list, whose paths lead nowhere else, and its bounds."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parbake.coldstart.trace import Trace, described, prefetch_list
from parbake.coldstart.trace.data import HotEntry, parse
from tests.unit.coldstart.test_hydrate import program

__all__ = ["program"]

HOSTILE = [b"new\nline", b"sp ace", b"100%", b"%0a", b"\xff\xfe", "größe".encode(), b"file 0+4096 x", b"a,b+c"]


def listed(*entries: HotEntry, filesystem: str = "ext4") -> Trace:
    return Trace(uuid="0a", filesystem=filesystem, size=1 << 30, files=entries, metadata=((8192, 4096), (0, 4096)))


def test_the_list_in_its_order() -> None:
    trace = listed(HotEntry("b", 8192, ((0, 4096), (8192, 4096))), HotEntry("old", 5), HotEntry("a", 1, ((0, 4096),)))
    assert prefetch_list(trace) == (
        "parbake-prefetch 1\nuuid 0a\nentries 4\nmeta 8192+4096\nmeta 0+4096\nfile 0+4096,8192+4096 b\nfile 0+4096 a\n"
    )
    xfs = trace.model_copy(update={"filesystem": "xfs"})  # whose metadata is in another cache
    assert "meta" not in prefetch_list(xfs)
    assert prefetch_list(Trace(files=(HotEntry("of an old trace", 5),))) == ""


def test_what_a_boot_loader_reads_is_not_wanted_in_memory() -> None:
    entries = (HotEntry("boot/initrd.img", 1 << 20, ((0, 1 << 20),)), HotEntry("usr/bin/boot/x", 1, ((0, 4096),)))
    assert "boot/initrd" not in prefetch_list(listed(*entries).model_copy(update={"how": "boot"}))
    assert "usr/bin/boot/x" in prefetch_list(listed(*entries).model_copy(update={"how": "boot"}))
    assert "boot/initrd" in prefetch_list(listed(*entries)), "a volume's folder of that name is any other"


def test_a_path_in_a_trace_from_elsewhere_adds_no_line_to_the_list(program: ModuleType) -> None:
    path = "a\nuuid 00\nfile 0+1 /etc/shadow\r\u2028 \u00e9%41"
    text = prefetch_list(listed(HotEntry(path, 1, ((0, 4096),))))
    assert text.isascii()
    head, _, files = program.read_files(text.encode())
    assert head["uuid"] == "0a"
    assert files == [(path.replace("%41", "A").encode(), [(0, 4096)])]


def test_a_trace_without_ranges_is_read() -> None:
    assert parse(b'{"parbake-trace":1,"files":[["a b",5]]}').files == (HotEntry("a b", 5),)


@given(
    names=st.lists(st.binary(min_size=1, max_size=20).filter(lambda name: b"\0" not in name), max_size=4),
    ranges=st.lists(st.tuples(st.integers(0, 1 << 40), st.integers(1, 1 << 30)), min_size=1, max_size=4).map(tuple),
)
def test_what_parbake_writes_the_node_reads(
    program: ModuleType, names: list[bytes], ranges: tuple[tuple[int, int], ...]
) -> None:
    trace = listed(*(HotEntry(quote(name, safe="/+@=,:"), 1, ranges) for name in names))
    head, metadata, files = program.read_files(prefetch_list(trace).encode())
    assert (head["uuid"], metadata) == ("0a", [(8192, 4096), (0, 4096)])
    assert files == [(name, list(ranges)) for name in names]


@given(st.binary(max_size=200) | st.text(max_size=100).map(lambda text: f"parbake-prefetch 1\n{text}".encode()))
def test_any_list_is_read_or_refused(program: ModuleType, data: bytes) -> None:
    try:
        _, metadata, files = program.read_files(data)
    except ValueError:
        assert not data.startswith(b"parbake-prefetch 1\n")
        return
    assert all(offset >= 0 for offset, _ in metadata)
    assert all(ranges for _, ranges in files)


@pytest.mark.parametrize("damage", ["file 0-5 x", "meta x", "file 0+4096,, x", f"file 0+{'9' * 19} x"])
def test_a_damaged_list_ends_there(program: ModuleType, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    data = f"parbake-prefetch 1\nuuid 0a\nentries 3\nfile 0+1 a\n{damage}\nfile 0+1 b\n".encode()
    files = program.read_files(data)[2]
    assert files[0] == (b"a", [(0, 1)])
    assert "is not whole" in capsys.readouterr().out


@pytest.mark.parametrize("name", HOSTILE, ids=repr)
def test_hostile_names_are_quoted_and_found(program: ModuleType, tmp_path: Path, name: bytes) -> None:
    """From a folder with such a file to the trace, the list, and the file again."""
    path = os.fsencode(tmp_path) + b"/" + name
    Path(os.fsdecode(path)).write_bytes(name * 1000)
    entry = HotEntry(quote(name, safe="/+@=,:"), 1, ((0, 4096),))
    again = parse(listed(entry).model_dump_json(by_alias=True).encode())
    ((found, _),) = program.read_files(prefetch_list(again).encode())[2]
    assert found == name
    root = os.open(tmp_path, os.O_PATH)
    handle = program.open_below(root, found)
    assert os.pread(handle, len(name), 0) == name
    os.close(handle)
    os.close(root)


def test_a_trace_of_hostile_names_can_be_written() -> None:
    from parbake.coldstart.trace.data import Read

    found = [(name, [(0, at * 8, 8)]) for at, name in enumerate(HOSTILE)]
    told = described(found, [Read(0, 0, 8 * len(HOSTILE) + 16)])
    assert told["metadata"] == ((4096 * len(HOSTILE), 8192),)
    trace = Trace(**told)
    assert parse(trace.model_dump_json(by_alias=True).encode()) == trace


@pytest.fixture
def root(tmp_path: Path) -> Iterator[int]:
    """A folder with what a list may name, and what it may not."""
    (tmp_path / "secret").write_text("outside")
    inside = tmp_path / "root"
    (inside / "deep").mkdir(parents=True)
    (inside / "deep/file").write_text("inside")
    (inside / "link").symlink_to("deep/file")
    (inside / "out").symlink_to(tmp_path)
    (inside / "up").symlink_to("..")
    (inside / "absolute").symlink_to("/etc/passwd")
    os.mkfifo(inside / "fifo")
    handle = os.open(inside, os.O_PATH)
    yield handle
    os.close(handle)


@pytest.mark.parametrize(
    "path",
    [
        b"../secret", b"deep/../../secret", b"up/secret", b"out/secret", b"/etc/passwd", b"absolute", b"link", b"",
        b"deep", b"deep/", b"./deep/file", b"deep//file", b"none", b"deep/file/x", b"deep/file\0x", b"fifo", b"x" * 300,
    ],
)  # fmt: skip
def test_no_path_leads_out_of_the_root(program: ModuleType, root: int, path: bytes) -> None:
    before = set(Path("/proc/self/fd").iterdir())
    with pytest.raises(OSError, match=r"."):
        program.open_below(root, path)
    assert set(Path("/proc/self/fd").iterdir()) == before


def test_what_is_below_the_root_is_opened(program: ModuleType, root: int) -> None:
    handle = program.open_below(root, b"deep/file")
    assert os.read(handle, 10) == b"inside"
    os.close(handle)


def test_a_device_is_not_even_opened(program: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A snapshot may hold device files; opening one may do something. Without mknod's right the case is a socket."""
    import socket

    try:
        os.mknod(tmp_path / "device", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    except PermissionError:
        socket.socket(socket.AF_UNIX).bind(str(tmp_path / "device"))
    opened = []
    real = os.open

    def watched(path: object, flags: int, *more: int, **most: int) -> int:
        opened.append((path, flags & os.O_PATH))
        return real(path, flags, *more, **most)  # type: ignore[arg-type]

    handle = os.open(tmp_path, os.O_PATH)
    monkeypatch.setattr(program.os, "open", watched)
    with pytest.raises(OSError, match="not a file of this file system"):
        program.open_below(handle, b"device")
    assert all(flag for _, flag in opened)


def test_another_file_system_is_not_entered(program: ModuleType) -> None:
    """/proc is one on every machine."""
    handle = os.open("/", os.O_PATH)
    with pytest.raises(OSError, match="another file system"):
        program.open_below(handle, b"proc/version")
    os.close(handle)


MIB = 1 << 20


def test_jobs_stay_within_their_bytes_in_the_lists_order(program: ModuleType) -> None:
    files = [(b"a", [(0, 3 * MIB)]), (b"b", [(0, 4096), (8192, 4096)]), (b"c", [(0, MIB)])]
    found = list(program.jobs([(0, 4096)], files, b"/", 3 * MIB + 2 * 4096))
    assert found[0] == (None, [(0, 4096)])
    assert [path for path, _ in found] == [None, *[b"a"] * 6, b"b"]
    assert found[-1] == (b"b", [(0, 4096)])
    assert sum(length for _, ranges in found for _, length in ranges) == 3 * MIB + 2 * 4096
    assert max(length for _, ranges in found for _, length in ranges) == program.STEP
    assert list(program.jobs([], files, b"/", 0)) == []
    assert sum(length for _, ranges in program.jobs([], files, b"/", 1 << 40) for _, length in ranges) == 4 * MIB + 8192


def test_what_a_container_does_not_see_is_left_out(program: ModuleType) -> None:
    files = [(b"var/lib/containerd/x", [(0, 1)]), (b"var/lib/containerd2/y", [(0, 1)]), (b"etc/z", [(0, 1)])]
    assert list(program.jobs([], files, b"/var/lib/containerd", MIB)) == [(b"x", [(0, 1)])]


@pytest.mark.parametrize(
    ("available", "limit", "used", "expected"),
    [(1000, "max", "5", 500), (1000, "600", "200", 200), (1000, "100", "200", 0), (1000, "", "", 500)],
)
def test_the_bound_is_a_share_of_what_there_is(
    program: ModuleType, monkeypatch: pytest.MonkeyPatch, available: int, limit: str, used: str, expected: int
) -> None:
    texts = {
        "/proc/meminfo": f"MemTotal: {available * 4} kB\nMemAvailable: {available} kB\n",
        "/proc/self/cgroup": "0::/pod\n",
        "/sys/fs/cgroup/pod/memory.max": limit and (limit if limit == "max" else str(int(limit) << 10)),
        "/sys/fs/cgroup/pod/memory.current": used and str(int(used) << 10),
    }
    monkeypatch.setattr(program, "read_small", lambda path, otherwise="": texts.get(str(path), otherwise))
    assert program.room(50) == expected << 10


@pytest.mark.parametrize(
    ("available", "pressure", "tight"),
    [
        (400, "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n", False),
        (400, "", False),  # a kernel without
        (400, "some avg10=9.99 avg60=0.00 avg300=0.00 total=0\n", False),
        (400, "some avg10=10.00 avg60=0.00 avg300=0.00 total=0\n", True),
        (99, "", True),
    ],
)
def test_when_memory_is_tight(
    program: ModuleType, monkeypatch: pytest.MonkeyPatch, available: int, pressure: str, tight: bool
) -> None:
    texts = {
        "/proc/meminfo": f"MemTotal: 1000 kB\nMemAvailable: {available} kB\n",
        "/proc/pressure/memory": pressure,
    }
    monkeypatch.setattr(program, "read_small", lambda path, otherwise="": texts.get(str(path), otherwise))
    assert program.memory() == (available << 10, tight)


def test_of_several_images_the_first_is_whole_where_memory_is_short(program: ModuleType) -> None:
    """A node with 1 GiB available takes half of it: the image that starts first, and the beginning of the next."""
    files = [(b"snapshots/%d/fs/lib" % image, [(0, 400 * MIB)]) for image in (7, 3, 5)]
    got = {b"7": 0, b"3": 0, b"5": 0}
    for path, ranges in program.jobs([], files, b"/", 512 * MIB):
        got[path.split(b"/")[1]] += sum(length for _, length in ranges)
    assert got == {b"7": 400 * MIB, b"3": 112 * MIB, b"5": 0}


def test_it_stops_when_memory_gets_tight(program: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the third look; the clock moves with each."""
    (tmp_path / "file").write_bytes(b"x" * 4096)
    looks, clock, lock = [], [0.0], threading.Lock()

    def now() -> float:
        with lock:
            clock[0] += 1.0
            return clock[0]

    def memory() -> tuple[int, bool]:
        looks.append(1)
        return 1 << 40, len(looks) >= 3

    monkeypatch.setattr(program.time, "monotonic", now)
    monkeypatch.setattr(program, "memory", memory)
    handle = os.open(tmp_path, os.O_PATH)
    done: dict[str, int] = {}
    tight = program.fetch("/dev/null", handle, iter([(b"file", [(0, 4096)])] * 100), 1, done)
    os.close(handle)
    assert tight
    assert done == {"bytes": 2 * 4096, "errors": 0, "gone": 0, "files": 1}


def test_files_that_are_gone_or_shorter_are_counted(
    program: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_bytes(b"x" * 5000)
    handle = os.open(tmp_path, os.O_PATH)
    jobs = [(b"file", [(0, 8192)]), (b"gone", [(0, 4096)]), (b"file", [(1 << 20, 4096)]), (b"../x", [(0, 1)])]
    done: dict[str, int] = {}
    tight = program.fetch("/dev/null", handle, iter(jobs), 4, done)
    os.close(handle)
    assert (done["bytes"], done["errors"], done["gone"], tight) == (8192, 1, 2, False)
    assert "ends before" in capsys.readouterr().out

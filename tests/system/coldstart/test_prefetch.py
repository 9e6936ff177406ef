"""The node's program reads files of a mounted volume into memory: those of its list, as far as it may, no others."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from bench.reclaim import Group, reclaimable
from parbake.coldstart.rehearsal.volume import identify
from parbake.coldstart.trace import (
    Part,
    Recorder,
    Trace,
    data_below,
    described,
    device_of,
    hydrate_list,
    prefetch_list,
)
from parbake.core import run
from parbake.core.events import Events
from parbake.core.nodefiles import node_file
from parbake.machine import disk
from parbake.machine.ext4 import PREFETCH
from tests.system.coldstart.test_hydrate import hydrate

pytestmark = pytest.mark.root

MIB = 1 << 20
LISTED = os.fsdecode(PREFETCH)
HOSTILE = (b"new\nline", b"\xff\xfe", b"100%")


@dataclass(frozen=True)
class Store:
    """A file system with a start's files, the trace of reading them, and what was read of each."""

    file: Path
    kind: Literal["ext4", "xfs"]
    trace: Trace
    digest: str


@pytest.fixture(scope="module", params=["ext4", "xfs"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder, kind = tmp_path_factory.mktemp(request.param), request.param
    file = folder / "volume.raw"
    # The service finds it by its UUID, on all of this machine's devices.
    disk.make_filesystem(file, kind, (512 if kind == "xfs" else 128) * MIB, name=f"prefetch {kind} {os.getpid()}")
    noise = os.urandom(8 * MIB)
    with disk.private_mounts():
        with disk.mount(file, folder / "mnt", filesystem=kind) as mounted:
            for number in range(200):
                place = mounted.path / f"fs/{number % 20}/lib{number}"
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(noise[number:50_000])
            (mounted.path / "fs/large").write_bytes(noise)
            (mounted.path / "fs/secret").write_bytes(noise[:9000])
            os.chown(mounted.path / "fs/secret", 1234, 1234)  # what nobody else may read
            (mounted.path / "fs/secret").chmod(0o600)
            (mounted.path / "fs/closed").mkdir(mode=0o700)
            os.chown(mounted.path / "fs/closed", 1234, 1234)
            for name in HOSTILE:
                Path(os.fsdecode(os.fsencode(mounted.path) + b"/fs/closed/" + name)).write_bytes(name * 1000)
            (mounted.path / LISTED).touch()
        trace = read_cold(file, kind, folder / "at")
        with disk.mount(file, folder / "mnt", filesystem=kind) as mounted:
            (mounted.path / LISTED).write_text(prefetch_list(trace))
    return Store(file, kind, trace, disk.sha256_file(file, Events()))


def read_cold(file: Path, kind: str, at: Path) -> Trace:
    """Read what a start reads with nothing in a cache: all small files, two pieces of the large one."""
    at.mkdir()
    with disk.loop_device(file, read_only=True) as device:
        disk.read_ahead(device)
        with Recorder(device_of(device)) as recorder:
            run.run(["mount", "-t", kind, "-o", "ro", device, str(at)])
            try:
                for path in sorted((at / "fs").rglob("*")):
                    if path.is_file() and path.name != "large":
                        path.read_bytes()
                with (at / "fs/large").open("rb", buffering=0) as large:
                    os.posix_fadvise(large.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
                    for offset in (4 * MIB, 0):
                        os.pread(large.fileno(), 300_000, offset)
            finally:
                run.run(["umount", str(at)])
        with disk.mount(file, at, filesystem=kind, read_only=True):
            told = described(data_below(at), recorder.reads)
    _, uuid = identify(file)
    return Trace(
        uuid=uuid, filesystem=kind, size=file.stat().st_size, parts=(Part(name="a", reads=recorder.reads),), **told
    )


@contextmanager
def on_a_node(store: Store, folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield the device, and where the file system is mounted, with nothing of it in memory."""
    at = folder / "mounted"
    at.mkdir(exist_ok=True)
    with disk.private_mounts(), disk.loop_device(store.file, read_only=True) as device:
        disk.read_ahead(device)
        run.run(["mount", "-t", store.kind, "-o", "ro", device, str(at)])
        try:
            yield device, at
        finally:
            run.run(["umount", "--lazy", str(at)], check=False)
    assert disk.sha256_file(store.file, Events()) == store.digest  # reading changes nothing


def resident(path: Path) -> int:
    """Return how many bytes of a file are in memory (fincore of util-linux)."""
    return int(run.run(["fincore", "--bytes", "--noheadings", "--output", "RES", str(path)]).text)


def hot(store: Store, at: Path) -> dict[Path, int]:
    """Return the bytes of each file that its start reads."""
    from urllib.parse import unquote_to_bytes

    return {
        Path(os.fsdecode(os.fsencode(at) + b"/" + unquote_to_bytes(file.path))): sum(size for _, size in file.ranges)
        for file in store.trace.files
    }


@contextmanager
def holding(
    folder: Path, blocks: str, *options: str, group: Group | None = None
) -> Iterator[Callable[[], dict[str, Any]]]:
    """Run the program, and yield what it tells as soon as it looks after what it has read."""
    (folder / "list").write_text(blocks)
    state = folder / "state"
    command = [sys.executable, "-u", str(node_file("hydrate.py")), "--list", str(folder / "list"), "--wait", "0"]
    command += ["--state", str(state), "--mounted", "0", *options]

    def told() -> dict[str, Any]:
        found: dict[str, Any] = json.loads(state.read_text()) if state.exists() else {}
        return found

    with run.Process(group.running(command) if group else command, log=folder / "log") as process:
        deadline = run.Deadline(60.0, "the prefetch")
        while told().get("prefetch", {}).get("held") != "yes":
            process.check_alive()
            deadline.sleep(0.02)
        yield told


def whole(wanted: dict[Path, int]) -> dict[Path, int]:
    """Return what is in memory, once that is all of it: a kernel may be at taking something back."""
    deadline = run.Deadline(30.0, "what a start reads is in memory")
    while (found := {path: resident(path) for path in wanted}) != wanted and deadline.left:
        deadline.sleep(0.1)
    return found


def test_what_a_start_reads_is_in_memory_and_nothing_else(store: Store, tmp_path: Path) -> None:
    """For as long as it is looked after: a kernel takes pages back that nobody uses (DAMON, within a minute)."""
    with on_a_node(store, tmp_path) as (device, at):
        wanted = hot(store, at)
        assert sum(resident(path) for path in wanted) == 0
        with holding(tmp_path, hydrate_list(store.trace), "--metrics", str(tmp_path / "prom")) as told:
            found = whole(wanted)
            with Recorder(device_of(device)) as recorder:
                for path in wanted:
                    if path.name != "large":
                        path.read_bytes()
            figures = told()["prefetch"]
        assert len(wanted) >= 200 + 1 + 1 + len(HOSTILE)
        assert found == wanted
        assert sum(read.length for read in recorder.reads) == 0  # neither data nor metadata
        assert found[at / "fs/large"] < 1 * MIB
    assert (figures["state"], figures["errors"], figures["left"]) == ("done", 0, 0)
    assert figures["files"] == len(wanted)
    assert figures["bytes"] >= sum(wanted.values())
    assert figures["resident"] >= sum(wanted.values())
    assert "prefetch: " in (tmp_path / "log").read_text()
    assert 'parbake_prefetch_state{state="done"} 1\n' in (tmp_path / "prom").read_text()
    assert f"parbake_prefetch_bytes {figures['bytes']}\n" in (tmp_path / "prom").read_text()
    assert "parbake_prefetch_reads_left " in (tmp_path / "prom").read_text()


def test_what_a_kernel_takes_back_is_there_again_until_the_image_is_up(store: Store, tmp_path: Path) -> None:
    with on_a_node(store, tmp_path) as (_, at), reclaimable() as group:
        wanted = hot(store, at)
        with holding(tmp_path, hydrate_list(store.trace), group=group) as told:
            taken = group.take_back(0.9)
            deadline = run.Deadline(30.0, "what is gone is noticed")
            while told()["prefetch"]["again"] == 0 and deadline.left:
                deadline.sleep(0.1)
            assert whole(wanted) == wanted
            assert told()["prefetch"]["again"] > 0
    assert taken > sum(wanted.values()) // 4


def test_it_waits_for_the_mount_and_then_begins(store: Store, tmp_path: Path) -> None:
    at = tmp_path / "late"
    at.mkdir()
    with disk.private_mounts(), disk.loop_device(store.file, read_only=True) as device:
        found: list[dict[str, Any]] = []
        thread = threading.Thread(
            target=lambda: found.append(hydrate(tmp_path, hydrate_list(store.trace), "--mounted", "300")[0])
        )
        thread.start()
        time.sleep(1.0)
        assert thread.is_alive()
        run.run(["mount", "-t", store.kind, "-o", "ro", device, str(at)])
        thread.join(300)
        held = [resident(path) for path in hot(store, at)]
        run.run(["umount", "--lazy", str(at)])
    assert found[0]["prefetch"]["state"] == "done"
    assert 0 not in held


def test_who_reads_in_the_middle_of_it_reads_nothing_twice(store: Store, tmp_path: Path) -> None:
    """A container that starts meanwhile finds what is there, waits for what is under way, and brings the rest."""
    with on_a_node(store, tmp_path) as (device, at):
        found: list[dict[str, Any]] = []
        thread = threading.Thread(target=lambda: found.append(hydrate(tmp_path, hydrate_list(store.trace))[0]))
        wanted = [path for path in reversed(hot(store, at)) if path.name != "large"]  # against its order
        with Recorder(device_of(device)) as recorder:
            thread.start()
            read = [len(path.read_bytes()) for path in wanted]
            thread.join(300)
        assert all(read)
        assert (found[0]["prefetch"]["state"], found[0]["prefetch"]["errors"]) == ("done", 0)
        assert found[0]["prefetch"]["left"] == 0
        # Each byte of a file once, blocks past the cache, as a cold volume is loaded, and a little of folders.
        most = found[0]["prefetch"]["bytes"] + found[0]["bytes"] + MIB
        assert sum(each.length for each in recorder.reads) * 512 <= most


def test_without_a_mount_or_a_list_and_with_a_foreign_one(store: Store, tmp_path: Path) -> None:
    blocks = hydrate_list(store.trace)
    with disk.loop_device(store.file, read_only=True):
        told, _ = hydrate(tmp_path, blocks, "--mounted", "0")
        assert told["prefetch"]["state"] == "no-mount"
        told, _ = hydrate(tmp_path, blocks, "--memory", "0")
        assert "prefetch" not in told
    foreign = tmp_path / "foreign"
    foreign.write_text(prefetch_list(store.trace.model_copy(update={"uuid": "00" * 16})))
    with on_a_node(store, tmp_path) as (_, at):
        told, _ = hydrate(tmp_path, blocks, "--files", str(foreign))
        assert (told["state"], told["prefetch"]["state"]) == ("done", "foreign-list")
        foreign.write_text("something else\n")
        told, said = hydrate(tmp_path, blocks, "--files", str(foreign))
        assert told["prefetch"]["state"] == "failed"
        assert "nothing more is read" in said
        assert sum(resident(path) for path in hot(store, at)) == 0


def test_a_list_from_outside_wins_and_the_bound_is_kept(store: Store, tmp_path: Path) -> None:
    """Of the node's memory one percent: what is over it is left, in the order of the list."""
    share = int(Path("/proc/meminfo").read_text().split("MemAvailable:")[1].split()[0]) * 1024 // 100
    listed = tmp_path / "files"
    first = store.trace.files[:3]
    listed.write_text(prefetch_list(store.trace.model_copy(update={"files": first, "metadata": ()})))
    with on_a_node(store, tmp_path) as (_, at):
        told, _ = hydrate(tmp_path, hydrate_list(store.trace), "--files", str(listed))
        assert (told["prefetch"]["state"], told["prefetch"].get("files")) == ("done", 3), told
        assert sum(resident(path) > 0 for path in hot(store, at)) == 3
    many = tuple(file._replace(ranges=file.ranges * (4 * share // MIB)) for file in first)
    listed.write_text(prefetch_list(store.trace.model_copy(update={"files": many})))
    with on_a_node(store, tmp_path):
        told, _ = hydrate(tmp_path, hydrate_list(store.trace), "--files", str(listed), "--memory", "1")
    if told["prefetch"]["state"] == "bounded":
        assert told["prefetch"]["bytes"] <= share * 1.05
        assert told["prefetch"]["left"] > 0


def test_a_container_that_sees_a_part_of_the_file_system(store: Store, tmp_path: Path) -> None:
    """As the DaemonSet's does, whose mount is a folder of it: the list is its image's."""
    listed, part = tmp_path / "files", tmp_path / "part"
    listed.write_text(prefetch_list(store.trace))
    part.mkdir()
    with on_a_node(store, tmp_path) as (_, at):
        run.run(["mount", "--bind", str(at / "fs/1"), str(part)])
        run.run(["umount", str(at)])
        try:
            told, _ = hydrate(tmp_path, hydrate_list(store.trace), "--files", str(listed))
            held = {path.name: resident(path) for path in part.iterdir()}
        finally:
            run.run(["umount", str(part)])
    assert (told["prefetch"]["files"], told["prefetch"]["errors"]) == (10, 0)
    assert min(held.values()) > 0


def test_a_path_out_of_the_file_system_is_not_read(store: Store, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(os.urandom(MIB))
    with outside.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    assert resident(outside) == 0
    listed = tmp_path / "files"
    head = f"parbake-prefetch 1\nuuid {store.trace.uuid}\nentries 3\n"
    listed.write_text(f"{head}file 0+4096 ../outside\nfile 0+4096 {outside}\nfile 0+4096 fs/..%2F..%2Foutside\n")
    with on_a_node(store, tmp_path):
        told, _ = hydrate(tmp_path, hydrate_list(store.trace), "--files", str(listed))
    assert (told["prefetch"]["errors"], told["prefetch"]["files"], told["prefetch"]["bytes"]) == (3, 0, 0)
    assert resident(outside) == 0

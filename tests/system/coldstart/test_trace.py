"""Tracing for real: the kernel's tracefs on loop devices, and rehearsals of volumes that were baked."""

from __future__ import annotations

import json
import mmap
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import pytest

from parbake.coldstart.trace import Overrun, Recorder, data_below, device_of, load, merged, owned
from parbake.coldstart.trace.tracefs import BUFFER, sweep, tracefs
from parbake.core import cgroups, run
from parbake.core.errors import EnvironmentProblem
from parbake.core.events import Events
from parbake.core.model import EBS_BLOCK
from parbake.machine import disk
from standins.images import image, layer, push
from standins.registry import DockerRegistry
from standins.runs import bake, bakefile, parbake, private_places, traces

__all__ = ["private_places"]

pytestmark = pytest.mark.root

BUSYBOX = Path("/bin/busybox").read_bytes()
HERE = ("--rehearse-in", "host")
"""By the kernel of this machine, also where it could boot others: what QEMU says is told in tests/vm/verify."""


def filesystem(folder: Path, kind: Literal["ext4", "xfs"], files: dict[str, bytes]) -> Path:
    file = folder / f"{kind}.img"
    disk.make_filesystem(file, kind, 512 << 20, name="test")
    with disk.private_mounts(), disk.mount(file, folder / "fill", filesystem=kind) as mounted:
        for name, data in files.items():
            (mounted.path / name).write_bytes(data)
    return file


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_what_is_read_of_one_device_while_another_is_busy(kind: Literal["ext4", "xfs"], tmp_path: Path) -> None:
    noise = os.urandom(3 << 20)
    file = filesystem(tmp_path, kind, {"first": noise, "second": noise[:70_000], "never": noise})
    others: Literal["ext4", "xfs"] = "ext4" if kind == "xfs" else "xfs"
    other = filesystem(tmp_path, others, {"busy": noise})
    busy = threading.Event()

    def read_on(path: Path) -> None:
        with disk.private_mounts(), disk.mount(other, path / "other", filesystem=others, read_only=False) as mounted:
            while not busy.is_set():
                handle = os.open(mounted.path / "busy", os.O_RDONLY)
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
                assert os.read(handle, 1 << 20)
                os.close(handle)

    with disk.private_mounts(), disk.loop_device(file) as device:
        thread = threading.Thread(target=read_on, args=(tmp_path,))
        thread.start()
        try:
            at = tmp_path / "at"
            at.mkdir()
            with Recorder(device_of(device)) as recorder:
                run.run(["mount", "-t", kind, "-o", "ro", device, str(at)])  # without a search for its kind
                assert (at / "first").read_bytes() == noise
                assert (at / "second").read_bytes() == noise[:70_000]
            found, _ = owned(data_below(at), recorder.reads)
            run.run(["umount", str(at)])
        finally:
            busy.set()
            thread.join()
    assert [(each.path, each.read) for each in found] == [(b"first", 3 << 20), (b"second", 73_728)]
    assert [each.ranges for each in found] == [((0, 3 << 20),), ((0, 73_728),)]
    assert recorder.read_bytes < 5 << 20  # metadata comes along; nothing of the other disk does
    assert [read.ms for read in recorder.reads] == sorted(read.ms for read in recorder.reads)


@pytest.mark.parametrize("size", [16 << 10, disk.READ_AHEAD])
def test_what_is_read_ahead_is_as_on_a_node(size: int, tmp_path: Path) -> None:
    """Kernels since 6.17 read 2.5 MiB ahead of a loop device, and a start would seem to need it all."""
    file = filesystem(tmp_path, "ext4", {"library": os.urandom(8 << 20)})
    at = tmp_path / "at"
    at.mkdir()
    with disk.private_mounts(), disk.loop_device(file) as device:
        disk.read_ahead(device, size)
        run.run(["mount", "-t", "ext4", "-o", "ro", device, str(at)])
        with (
            (at / "library").open("rb") as opened,
            mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ) as mapped,
            Recorder(device_of(device)) as recorder,
        ):
            assert mapped[5 << 20] >= 0
        found, _ = owned(data_below(at), recorder.reads)
        run.run(["umount", str(at)])
    assert [(each.path, each.read) for each in found] == [(b"library", size)]


def test_an_overrun_is_told(tmp_path: Path) -> None:
    file = tmp_path / "disk"
    with file.open("wb") as handle:
        handle.truncate(64 << 20)
    with disk.loop_device(file) as device:
        with Recorder(device_of(device), buffer=4) as recorder, open(device, "rb", buffering=0) as raw:  # noqa: PTH123
            for number in range(3000):
                os.posix_fadvise(raw.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                os.pread(raw.fileno(), 512, number * 4096)
        with pytest.raises(Overrun, match="were lost"):
            _ = recorder.reads


def test_what_a_killed_run_leaves_is_removed_by_the_next(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom parbake.coldstart.trace import Recorder, device_of\n"
        "with Recorder(device_of(sys.argv[1])):\n    print('in', flush=True)\n    sys.stdin.read()\n"
    )
    file = tmp_path / "disk"
    file.write_bytes(bytes(1 << 20))
    with disk.loop_device(file) as device, tracefs() as root:
        command = [sys.executable, "-c", script, device]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout
            assert process.stdout.readline() == b"in\n"
            (left,) = [each.name for each in (root / "instances").iterdir() if f"-{process.pid}-" in each.name]
            assert left not in sweep(root)  # it lives
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert (root / "instances" / left).exists()
        with Recorder(device_of(device)):
            assert not (root / "instances" / left).exists()
        assert not [each.name for each in (root / "instances").iterdir() if f"-{os.getpid()}-" in each.name]


def test_nobody_in_a_container_takes_an_instance_for_a_dead_ones(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom parbake.coldstart.trace import Recorder, device_of\n"
        "for _ in range(2):\n    with Recorder(device_of(sys.argv[1])):\n"
        "        print('in', flush=True)\n        sys.stdin.readline()\n"
    )
    file = tmp_path / "disk"
    file.write_bytes(bytes(1 << 20))
    with disk.loop_device(file) as device, ExitStack() as stack:
        command = run.isolated([sys.executable, "-c", script, device])
        ran = [
            stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
            for _ in range(2)
        ]
        for _ in range(2):
            for process in ran:
                assert process.stdout
                assert process.stdout.readline() == "in\n"
            with Recorder(device_of(device)):
                pass
            for process in ran:
                assert process.stdin
                process.stdin.write("\n")
                process.stdin.flush()
        assert [process.wait() for process in ran] == [0, 0]


def test_tracefs_is_there_when_somebody_has_unmounted_it() -> None:
    def mounted() -> int:
        return Path("/proc/self/mountinfo").read_text().count(" - tracefs ")

    before = mounted()
    with disk.private_mounts(), tracefs() as first:
        while run.run(["umount", "--lazy", "/sys/kernel/tracing"], check=False).code == 0:
            pass
        assert (first / "instances").is_dir()
        with tracefs() as second:
            assert (second / "instances").is_dir()
    assert mounted() == before


def test_what_is_no_device(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match="is not a block device"):
        device_of(str(tmp_path))
    assert parbake("trace", "/dev/null", "-f", str(tmp_path / "none.yaml")).code == 2


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    with DockerRegistry(tmp_path_factory.mktemp("registry")) as running:
        base = layer({"bin/": None, "bin/busybox": BUSYBOX, "big": os.urandom(20 << 20)})
        config = {"Entrypoint": ["/bin/busybox"], "Cmd": ["cat", "/own"]}
        for name in ("one", "two", "three"):
            own = layer({"own": os.urandom(2 << 20) + name.encode()})
            push(running.url, f"team/{name}", image(base, own, config=config), tag="1")
        yield running


def test_rehearse_a_volume(registry: DockerRegistry, tmp_path: Path) -> None:
    entries = [
        {"reference": f"{registry.host}/team/one:1", "startup": {"up": "exit"}},
        {
            "reference": f"{registry.host}/team/two:1",
            "startup": {
                "command": ["/bin/busybox", "httpd", "-f", "-p", "8080", "-h", "/"],
                "up": {"http": "8080/own"},
            },
        },
    ]
    path = bakefile(tmp_path / "here", entries, base="none", size="256MiB")
    bake(path)
    (artefact,) = (path.parent / "artefacts").glob("*.raw")
    before = disk.sha256_file(artefact, Events())
    told = parbake("trace", str(artefact), *HERE, "--json").good()
    assert disk.sha256_file(artefact, Events()) == before
    assert told["skipped"] == {}
    assert set(told["stages"][f"{registry.host}/team/one:1"]) == {"mount", "containerd", "sandbox", "start"}
    trace = load(artefact.with_name(artefact.name + ".trace"))
    one, two = trace.parts
    assert {part.name: part.kind for part in trace.parts} == {
        f"{registry.host}/team/{n}:1": "image" for n in ("one", "two")
    }
    own = {entry.path: entry.size for entry in trace.files if entry.path.endswith("/own")}
    assert len(own) == 2
    assert 2 << 20 <= max(own.values()) < 3 << 20  # the other is only asked for its head
    assert not any(entry.path.endswith("/big") for entry in trace.files)
    # Each start is cold: what both need is in both traces.
    programs = [sum(read.length * 512 for read in part.reads) for part in (one, two)]
    assert all(size > len(BUSYBOX) // 2 for size in programs)
    assert len(merged(trace)) * EBS_BLOCK < 16 << 20 < artefact.stat().st_size
    record = json.loads(artefact.with_name(artefact.name + ".json").read_text())["parbake"]
    assert told == {"records": [artefact.name], **record["trace"]}
    # Shown, and gone with its artefact.
    assert "start reads" in parbake("show", str(artefact)).out
    assert traces(tmp_path) == []


def test_a_rehearsal_that_overran_is_repeated(
    registry: DockerRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Small(Recorder):
        """Has lost something with the buffer that is tried first. What the kernel says then: see above."""

        def __exit__(self, *what: object) -> None:
            super().__exit__(*what)
            self._lost = 7 if self.buffer == BUFFER else 0

    monkeypatch.setattr("parbake.coldstart.rehearsal.volume.Recorder", Small)
    entry = {"reference": f"{registry.host}/team/one:1", "startup": {"up": "exit"}}
    path = bakefile(tmp_path / "here", [entry], base="none", size="256MiB")
    bake(path)
    (artefact,) = (path.parent / "artefacts").glob("*.raw")
    done = parbake("trace", str(artefact), *HERE, "--json")
    assert done.good()["skipped"] == {}
    assert "7 reads of /dev/loop" in done.err
    assert "rehearsing again with a larger one" in done.err
    (part,) = load(artefact.with_name(artefact.name + ".trace")).parts
    assert sum(read.length for read in part.reads) * 512 > len(BUSYBOX) // 2 + (2 << 20)


def test_an_image_that_does_not_start_or_takes_too_much_is_skipped(
    registry: DockerRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = [
        {"reference": f"{registry.host}/team/one:1", "startup": {"command": ["/bin/busybox", "false"], "up": "exit"}},
        {"reference": f"{registry.host}/team/two:1", "startup": {"up": "exit"}},
        {
            "reference": f"{registry.host}/team/three:1",
            "startup": {
                "command": ["/bin/busybox", "dd", "if=/dev/zero", "of=/dev/null", "bs=700M", "count=1"],
                "up": "exit",
            },
        },
    ]
    path = bakefile(tmp_path / "here", entries, base="none", size="256MiB")
    bake(path)
    monkeypatch.setattr(cgroups.Limits, "of_machine", lambda: cgroups.Limits(memory=128 << 20, tasks=150))
    (artefact,) = (path.parent / "artefacts").glob("*.raw")
    told = parbake("trace", str(artefact), *HERE, "-f", path, "--json").good()
    assert "ended with code 1" in told["skipped"][f"{registry.host}/team/one:1"]
    assert "ended with code 137 (OOMKilled)" in told["skipped"][f"{registry.host}/team/three:1"]
    assert "all of the 128 MiB of memory" in told["skipped"][f"{registry.host}/team/three:1"]
    assert told["failed"] == [f"{registry.host}/team/one:1"], "a limit of this machine says nothing about an image"
    assert list(told["seconds"]) == [f"{registry.host}/team/two:1"]
    # A trace of another file system is refused, one of its own is taken.
    kept = artefact.with_name(artefact.name + ".trace").rename(tmp_path / "own.trace")
    assert parbake("trace", str(artefact), "--trace", str(kept), "--json").good()["reads"] == told["reads"]
    foreign = tmp_path / "foreign.trace"
    foreign.write_text(kept.read_text().replace(load(kept).uuid, "0" * 8 + load(kept).uuid[8:]))
    parbake("trace", str(artefact), "--trace", str(foreign), "--json").refused(
        2, "InputError", "is a trace of the file"
    )

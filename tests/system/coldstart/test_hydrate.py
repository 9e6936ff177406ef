"""The hydrate program on real block devices: good ones, short ones, ones that fail, and none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from parbake.coldstart.trace import Part, Read, Recorder, Trace, device_of, hydrate_list, merged
from parbake.core import run
from parbake.core.events import Events
from parbake.core.model import EBS_BLOCK
from parbake.core.nodefiles import node_file
from parbake.machine import disk

pytestmark = pytest.mark.root

SIZE = 64 << 20
ORDER = (9, 3, 4, 100, 0, 127)


@pytest.fixture(scope="module", params=["ext4", "xfs"])
def volume(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file: Path = tmp_path_factory.mktemp(request.param) / "volume.raw"
    size = SIZE if request.param == "ext4" else 8 * SIZE  # xfs takes no less than 300 MiB
    disk.make_filesystem(file, request.param, size, name=f"hydrate {request.param} {os.getpid()}")
    return file


def trace_of(file: Path) -> Trace:
    uuid = run.run(["blkid", "-p", "-o", "value", "-s", "UUID", str(file)]).text
    reads = tuple(Read(number, block * EBS_BLOCK // 512, 8) for number, block in enumerate(ORDER))
    return Trace(uuid=uuid, size=file.stat().st_size, parts=(Part(name="a", reads=reads),))


def hydrate(folder: Path, text: str, *options: str) -> tuple[dict[str, Any], str]:
    """Run the program as the service would; return its figures and what it said."""
    (folder / "list").write_text(text)
    (folder / "state").unlink(missing_ok=True)
    command = [sys.executable, "-u", str(node_file("hydrate.py")), "--list", str(folder / "list"), "--wait", "0"]
    command += ["--state", str(folder / "state"), "--mounted", "0", "--hold", "0", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads((folder / "state").read_text()), done.stdout


def test_it_reads_the_list_in_its_order_and_nothing_else(volume: Path, tmp_path: Path) -> None:
    trace = trace_of(volume)
    metrics = tmp_path / "deep/hydrate.prom"
    with disk.loop_device(volume) as device:
        with Recorder(device_of(device)) as recorder:
            told, said = hydrate(tmp_path, hydrate_list(trace), "--in-flight", "1", "--metrics", str(metrics))
        assert told["device"] == device
    assert (told["state"], told["bytes"], told["ranges"], told["errors"]) == (
        "done",
        len(ORDER) * EBS_BLOCK,
        len(ORDER),
        0,
    )
    assert "3 MiB of" in said
    assert f"parbake_hydrate_bytes {len(ORDER) * EBS_BLOCK}\n" in metrics.read_text()
    seen = [read for read in recorder.reads if read.length > 256]  # looking for the device reads the head of each
    assert merged(Trace(size=trace.size, parts=(Part(name="a", reads=tuple(seen)),))) == ORDER
    assert sum(read.length for read in seen) * 512 == told["bytes"]


def test_many_at_a_time_one_page_of_each_and_the_rest(volume: Path, tmp_path: Path) -> None:
    with disk.loop_device(volume):
        told, _ = hydrate(tmp_path, hydrate_list(trace_of(volume)), "--touch", "4096")
        assert (told["bytes"], told["ranges"]) == (len(ORDER) * 4096, len(ORDER))
        told, _ = hydrate(tmp_path, hydrate_list(trace_of(volume)), "--rest")
    assert told["bytes"] + told["rest_bytes"] == volume.stat().st_size


def test_lists_that_are_wrong(volume: Path, tmp_path: Path) -> None:
    good = hydrate_list(trace_of(volume))
    with disk.loop_device(volume):
        truncated, said = hydrate(tmp_path, good[:-20])
        assert (truncated["state"], truncated["errors"]) == ("done", 0)
        assert truncated["ranges"] < len(ORDER)
        assert "is not whole" in said
        stale, said = hydrate(tmp_path, good.replace(trace_of(volume).uuid, "00000000-0000-0000-0000-000000000000"))
        assert stale["state"] == "no-device"
        for foreign in ("", "something else\n", good.replace("uuid", "uid"), "\0" * 99):
            told, said = hydrate(tmp_path, foreign)
            assert told["state"] == "failed"
            assert "nothing more is read" in said
        told, said = hydrate(tmp_path, good, "--list", str(tmp_path / "none"))
        assert told["state"] == "failed"
        assert "FileNotFoundError" in said


def test_a_disk_smaller_than_its_list(volume: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.raw"
    disk.copy_sparse(volume, short, Events())
    os.truncate(short, 50 * EBS_BLOCK)
    with disk.loop_device(short):
        told, said = hydrate(tmp_path, hydrate_list(trace_of(volume)))
    assert (told["state"], told["ranges"], told["errors"]) == ("short-disk", 4, 2)
    assert f"cannot read {EBS_BLOCK} bytes at {100 * EBS_BLOCK}" in said


def test_a_disk_that_fails(volume: Path, tmp_path: Path) -> None:
    failing = tmp_path / "failing.raw"
    disk.copy_sparse(volume, failing, Events())
    with disk.loop_device(failing):
        os.truncate(failing, 50 * EBS_BLOCK)  # below the device: reads beyond are I/O errors
        told, said = hydrate(tmp_path, hydrate_list(trace_of(volume)), "--rest")
    assert (told["state"], told["ranges"], told["errors"]) == ("done", 4, 2)
    assert "cannot read" in said

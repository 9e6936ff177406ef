"""What a node's starts read besides their list comes back into the trace of the bake: read, told, logged, added."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from parbake import records
from parbake.coldstart.rehearsal.volume import identify
from parbake.coldstart.trace import (
    Part,
    Recorder,
    Trace,
    data_below,
    described,
    device_of,
    hydrate_list,
    load,
    prefetch_list,
    save,
    summary,
)
from parbake.core import run
from parbake.core.nodefiles import node_file
from parbake.machine import disk
from parbake.machine.ext4 import PREFETCH
from standins import plans
from standins.runs import parbake

pytestmark = pytest.mark.root

MIB, PAGE = 1 << 20, 4096


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_what_was_read_besides_the_list_is_a_trace_that_the_record_takes(kind: Any, tmp_path: Path) -> None:
    file, at, made = tmp_path / "volume.raw", tmp_path / "at", plans.record("a", passed=True)
    disk.make_filesystem(file, kind, (512 if kind == "xfs" else 64) * MIB, name=f"misses {kind} {os.getpid()}")
    with disk.private_mounts():
        with disk.mount(file, tmp_path / "mnt", filesystem=kind) as mounted:
            folder = mounted.path / "snapshots/1/fs"
            folder.mkdir(parents=True)
            for name in ("hot", "part", "cold", "of others"):
                (folder / name).write_bytes(os.urandom(MIB))
            os.chown(folder / "of others", 1234, 1234)
            (folder / "link").symlink_to("cold")
            (mounted.path / os.fsdecode(PREFETCH)).touch()
        _, uuid = identify(file)
        at.mkdir()
        with disk.loop_device(file) as device:
            disk.read_ahead(device)
            with Recorder(device_of(device)) as recorder:
                run.run(["mount", "-t", kind, device, str(at)])
                (at / "snapshots/1/fs/hot").read_bytes()
            rehearsed = Trace(
                uuid=uuid, filesystem=kind, size=file.stat().st_size, parts=(Part(name="a", reads=recorder.reads),),
                **described(data_below(at), recorder.reads),
            )  # fmt: skip
            (at / os.fsdecode(PREFETCH)).write_text(prefetch_list(rehearsed))
            (at / "snapshots/1/fs/pulled since").write_bytes(os.urandom(MIB))
            run.run(["umount", str(at)])
            run.run(["mount", "-t", kind, device, str(at)])  # nothing of it is in memory
            (at / "snapshots/1/fs/hot").read_bytes()
            for name in ("part", "of others", "pulled since"):
                with (at / f"snapshots/1/fs/{name}").open("rb", buffering=0) as opened:
                    os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
                    os.pread(opened.fileno(), 3 * PAGE, 64 * PAGE)
            said, told = misses(tmp_path, hydrate_list(rehearsed))
            run.run(["umount", str(at)])
    assert [(path, ranges) for path, _, ranges in told["files"]] == [("snapshots/1/fs/part", [[64 * PAGE, 3 * PAGE]])]
    assert sum(length for _, _, length in told["parts"][0]["reads"]) * 512 == 3 * PAGE
    assert "1 files were read" in said
    save(rehearsed, tmp_path / made.trace_name)
    made = made.model_copy(update={"trace": summary(rehearsed, file=made.trace_name)})
    records.write(tmp_path, made)
    foreign = json.dumps({**told, "uuid": "0" * 8}, separators=(",", ":"))
    logs = ["condition: hydrating False", f"[pod/agent-x/agent] {json.dumps(told, separators=(',', ':'))}", foreign]
    (tmp_path / "agents.log").write_text("\n".join([*logs, '{"parbake-trace":1,"parts":7}']))
    done = parbake("trace", tmp_path / made.file_name, "--misses", tmp_path / "agents.log", "--json")
    assert done.good()["read_bytes"] == summary(rehearsed).read_bytes + 3 * PAGE
    assert "line 4" in done.err
    added = load(tmp_path / made.trace_name)
    assert added.parts[:-1] == rehearsed.parts
    assert hydrate_list(added).startswith(hydrate_list(rehearsed).partition("ranges")[0])
    assert "file 262144+12288 snapshots/1/fs/part\n" in prefetch_list(added)
    again = parbake("trace", tmp_path / made.file_name, "--misses", tmp_path / "agents.log", "--json").good()
    assert again["read_bytes"] == done.document["read_bytes"], "the same once more adds nothing"
    (tmp_path / "agents.log").write_text(foreign)
    parbake("trace", tmp_path / made.file_name, "--misses", tmp_path / "agents.log", "--json").refused(
        2, "InputError", "none is of the file system", hint="save the logs"
    )


def misses(folder: Path, text: str) -> tuple[str, Any]:
    (folder / "list").write_text(text)
    command = [sys.executable, "-u", str(node_file("misses.py")), "--list", str(folder / "list")]
    command += ["--output", str(folder / "run/misses.trace")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert (folder / "run/misses.trace").exists(), done.stdout + done.stderr
    return done.stdout, json.loads((folder / "run/misses.trace").read_text())

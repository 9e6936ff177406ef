"""The benchmark of cold starts: its model of a volume, and one start of each kind. Times are not judged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from bench.cold import ColdSource, attached, data_blocks
from bench.coldstart import Case, Volume, cases, compare, reading_list, start, summary
from bench.lazy import PROFILES, Profile
from parbake import records
from parbake.builders import RehearsalPlace
from parbake.coldstart.rehearsal import identify
from parbake.core.events import Events
from parbake.core.model import EBS_BLOCK
from parbake.core.netns import no_network
from parbake.core.nodefiles import node_file
from parbake.machine import disk
from parbake.workflows import trace
from standins.documents import ROOT
from standins.images import image, layer, push
from standins.registry import DockerRegistry
from standins.runs import bake, bakefile, private_places

__all__ = ["private_places"]

pytestmark = [pytest.mark.root, pytest.mark.slow]

QUICK = Profile("quick", 0.001, 16, 4000.0)


@contextmanager
def cold(
    image_: Path, folder: Path, profile: Profile, *, hot: bool = False, provisioned: float = 0.0
) -> Iterator[tuple[ColdSource, int]]:
    with disk.private_mounts(), ColdSource(image_, folder, profile, hot=hot, provisioned=provisioned) as source:  # noqa: SIM117
        with attached(source) as device:
            handle = os.open(device, os.O_RDONLY)
            try:
                yield source, handle
            finally:
                os.close(handle)


@pytest.fixture
def sparse(tmp_path: Path) -> Path:
    """Six blocks: data, hole, data, data, hole, hole; the data in them begins anywhere."""
    file = tmp_path / "sparse"
    with file.open("wb") as handle:
        for block in (0, 2, 3):
            handle.seek(block * EBS_BLOCK + 8192)
            handle.write(bytes([block + 1]) * 8192)
        handle.truncate(6 * EBS_BLOCK)
    return file


def test_one_touch_loads_a_block_and_holes_are_free(sparse: Path, tmp_path: Path) -> None:
    assert data_blocks(sparse) == [0, 2, 3]
    with cold(sparse, tmp_path, QUICK) as (source, handle):
        before = source.loaded  # the kernel looks for partitions
        assert os.pread(handle, 4096, 2 * EBS_BLOCK + 8192) == b"\3" * 4096
        assert source.loaded == before + 1
        os.pread(handle, 4096, 2 * EBS_BLOCK + EBS_BLOCK // 2)
        os.pread(handle, 4096, 4 * EBS_BLOCK)
        assert source.loaded == before + 1
        whole = b"".join(os.pread(handle, EBS_BLOCK, block * EBS_BLOCK) for block in range(6))
        assert whole == sparse.read_bytes()
        assert source.loaded == 3


def test_as_many_are_under_way_as_the_profile_allows(tmp_path: Path) -> None:
    """Through the kernel: neither its queues nor the server take one request after the other."""
    file = tmp_path / "full"
    file.write_bytes(os.urandom(EBS_BLOCK) * 40)
    for in_flight, expected in ((64, 24), (8, 8)):
        with cold(file, tmp_path, Profile("slow", 0.5, in_flight, 4000.0)) as (source, handle):
            with ThreadPoolExecutor(24) as pool:
                found = list(pool.map(lambda block: os.pread(handle, 4096, block * EBS_BLOCK), [*range(4, 28), 9, 9]))
            assert source.model.most == expected
            assert found == [file.read_bytes()[:4096]] * 26


def test_what_is_written_is_read_again_and_loads_nothing_but_torn_pages(sparse: Path, tmp_path: Path) -> None:
    before = sparse.read_bytes()
    with disk.private_mounts(), ColdSource(sparse, tmp_path, QUICK) as source:
        with source.file.open("r+b", buffering=0) as file:
            assert os.fstat(file.fileno()).st_size == len(before)
            os.pwrite(file.fileno(), b"x" * 8192, 2 * EBS_BLOCK)
            assert os.pread(file.fileno(), 8192, 2 * EBS_BLOCK) == b"x" * 8192
            assert source.loaded == 0
            os.pwrite(file.fileno(), b"y" * 100, 2 * EBS_BLOCK + 8192 + 50)
            assert source.loaded == 1
            os.pwrite(file.fileno(), b"z" * 5000, 5 * EBS_BLOCK - 2500)
            assert source.loaded == 1
            file.seek(0)
            now = file.readall()
        expected = bytearray(before)
        expected[2 * EBS_BLOCK : 2 * EBS_BLOCK + 8192] = b"x" * 8192
        expected[2 * EBS_BLOCK + 8242 : 2 * EBS_BLOCK + 8342] = b"y" * 100
        expected[5 * EBS_BLOCK - 2500 : 5 * EBS_BLOCK + 2500] = b"z" * 5000
        assert now == bytes(expected)
    assert sparse.read_bytes() == before


def test_a_hot_source_and_a_provisioned_one_load_nothing(sparse: Path, tmp_path: Path) -> None:
    for hot, provisioned in ((True, 0.0), (False, 1e9)):
        with cold(sparse, tmp_path, QUICK, hot=hot, provisioned=provisioned) as (source, handle):
            before = source.loaded
            assert os.pread(handle, 4096, 3 * EBS_BLOCK + 8192) == b"\4" * 4096
            assert source.loaded == before


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Volume]:
    folder = tmp_path_factory.mktemp("cold")
    with DockerRegistry(folder / "registry") as registry:
        program = {"bin/": None, "bin/busybox": Path("/bin/busybox").read_bytes(), "unread": os.urandom(8 << 20)}
        push(registry.url, "team/app", image(layer(program)), tag="1")
        startup = {"command": ["/bin/busybox", "true"], "up": "exit"}
        entry = {"reference": f"{registry.host}/team/app:1", "startup": startup}
        document = bake(bakefile(folder / "here", [entry], base="none", size="128MiB"))
        artefact = Path(document["artefact_path"])
        _, record = records.locate(str(artefact), artefact.parent)
        assert record
        record = trace.rehearse(artefact, record, Events(), where=RehearsalPlace("host"))
        yield Volume(artefact, record, trace.trace_of(artefact, record), len(data_blocks(artefact)) * EBS_BLOCK)


@pytest.mark.parametrize(
    "case",
    [
        Case("plain"),
        Case("trace", reads="list", boot=0.5),
        Case("full_read", reads="all", boot=0.5),
        Case("prefetch", reads="list", prefetch=True, boot=0.5),
        Case("memory", hot=True, memory=True),
    ],
    ids=str,
)
def test_a_start_of_each_kind(case: Case, volume: Volume, tmp_path: Path) -> None:
    with disk.private_mounts(), no_network():
        seconds, stages, loaded = start(volume, case, QUICK, tmp_path)
    assert seconds == sum(stages.values()) > 0
    whole, hot = volume.data // EBS_BLOCK, len(reading_list(volume, "list").splitlines()) - 4
    assert (loaded == 0) is case.hot
    assert loaded <= whole
    if case.reads == "all":  # how far it is depends on the machine
        assert len(reading_list(volume, "all").splitlines()) == 4 + whole
    else:
        assert loaded <= hot + 2


def test_every_case_starts_and_long_ones_once(volume: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    def quick(volume: Volume, case: Case, profile: Profile, _: Path) -> tuple[float, dict[str, float], int]:
        started.append((profile.name, case.name, case.boot, volume.trace.scattered > 0))
        return (61.0 if case.name in {"plain", "full_read"} else 1.0), {}, 0

    monkeypatch.setattr("bench.coldstart.start", quick)
    wanted = [case for case in cases(15.0) if case.name in {"hydrated", "plain", "full_read", "trace_layout"}]
    laid_out = replace(volume, trace=volume.trace.model_copy(update={"scattered": 1}))
    built = image(layer({"x": b""}))
    found = compare({False: volume, True: laid_out}, built, wanted, list(PROFILES.values()), rounds=2, work=tmp_path)  # type: ignore[arg-type]
    assert len(found["mild", "plain", 0.0]) == 1
    assert ("mild", "full_read", 15.0) not in found
    assert found["mild", "trace_layout", 15.0] == found["harsh", "hydrated", 0.0] == [1.0, 1.0]
    rest = [each for each in started if each[1] != "hydrated"]
    assert rest == [
        (profile, name, boot, name == "trace_layout")
        for number in range(2)
        for profile in ("mild", "harsh")
        for name, boot in [("plain", 0.0), ("full_read", 0.0), ("trace_layout", 0.0), ("trace_layout", 15.0)]
        if number == 0 or name == "trace_layout"
    ]


def test_the_last_line() -> None:
    seconds = {(case.name, case.boot): [4.0, 4.0, 9.0] for case in cases(15.0)}
    seconds |= {("pull", 0.0): [9.0], ("plain", 0.0): [8.0, 8.0], ("hydrated", 0.0): [2.0, 2.0]}
    seconds |= {("trace_layout", 15.0): [2.0, 2.0], ("memory", 0.0): [2.0], ("prefetch", 15.0): [2.5, 2.5]}

    class Told:
        record = type("R", (), {"trace": None})
        data = 100 << 20

    found = summary(seconds, Told(), 15.0)  # type: ignore[arg-type]
    named = ["hydrated", "plain", "full_read", "trace", "layout", "trace_layout", "rate", "pull", "memory", "prefetch"]
    assert {f"{name}_s" for name in named} | {"gain_vs_plain", "gap_to_hydrated", "hot_mib", "volume_mib"} <= set(found)
    assert None not in [found[f"{name}_s"] for name in named]
    assert (found["gain_vs_plain"], found["gap_to_hydrated"], found["layout_gain_vs_plain"]) == (2.0, 2.0, 2.0)
    after = found["after_15_s_of_boot"]
    assert isinstance(after, dict)
    assert (after["gain_vs_plain"], after["gap_to_hydrated"]) == (4.0, 1.0)
    assert (found["gap_to_memory"], after["gap_to_memory"]) == (2.0, 1.25)
    assert found["once"] == ["memory", "pull"]
    assert set(PROFILES) == {"mild", "harsh"}


def test_hydrating_takes_one_page_of_each_block_where_that_loads_it(tmp_path: Path) -> None:
    file, listed, told = tmp_path / "volume", tmp_path / "list", tmp_path / "told"
    disk.make_filesystem(file, "ext4", 128 << 20, name=f"hydrate {os.getpid()}")
    with file.open("r+b") as handle:
        for block in range(100, 180):
            os.pwrite(handle.fileno(), os.urandom(EBS_BLOCK), block * EBS_BLOCK)
    uuid = identify(file)[1]
    ranges = "".join(f"{block * EBS_BLOCK} {EBS_BLOCK}\n" for block in range(100, 180))
    listed.write_text(f"parbake-hydrate 1\nuuid {uuid}\nsize {128 << 20}\nranges 80\n{ranges}")
    command = [sys.executable, str(node_file("hydrate.py")), "--list", str(listed), "--state", str(told), "--wait", "5"]
    command += ["--memory", "0"]
    slow = Profile("slow", 0.3, 8, 4000.0)
    with cold(file, tmp_path, slow) as (source, _):
        subprocess.run(command, capture_output=True, check=True)
        assert source.loaded >= 80
    assert json.loads(told.read_text())["bytes"] == 80 * 4096


def test_the_check_of_real_volumes_asks_what_the_model_assumes(volume: Volume, tmp_path: Path) -> None:
    listed = tmp_path / "list"
    listed.write_text(reading_list(volume, "all"))
    with disk.private_mounts(), ColdSource(volume.path, tmp_path, QUICK) as source:  # noqa: SIM117
        with attached(source) as device:
            command = [sys.executable, str(ROOT / "bench/ebs-check"), device, "--list", str(listed), "--sample", "2"]
            done = subprocess.run([*command, "--depths", "1,4"], capture_output=True, text=True, check=True)
            watched = subprocess.run([*command, "--watch", "0.1"], capture_output=True, text=True, check=True)
    figures = json.loads(done.stdout)
    assert set(figures["cold_mib_s"]) == set(figures["touches_per_s"]) == {"1", "4"}
    assert set(figures["reads_per_s"]) == {"1", "4"}
    assert figures["loaded_ms"]["median"] >= 0.35  # gp3's of the model, and what this machine adds
    assert min(figures["reads_per_s"].values()) > 0
    assert isinstance(figures["one_touch_loads_block"], bool)
    assert figures["hot_mib_s"] > 0
    assert len(json.loads(watched.stdout)["watch"][0]["ms"]) == 10

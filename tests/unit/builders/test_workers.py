"""Layers in worker processes: the same bytes and the same refusals as anywhere, and nothing that stays behind."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import random
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from threading import Event

import pytest

from parbake.builders.fill import VolumeImage
from parbake.builders.fill.destinations import Job, UnpackOptions
from parbake.builders.workers.hire import Spare
from parbake.builders.workers.pool import Done, LayerJob, Workers, most, worth_starting
from parbake.builders.workers.wire import SLOT, SLOTS, failure, raised
from parbake.core.errors import BadContent, DiskFull, Interrupted, LayerError, LayerTooLarge, ParbakeError, Unreachable
from parbake.core.model import GIB, MIB, Layer
from parbake.core.run import run
from parbake.core.sources import Readable
from parbake.images.layers import Allowance, FolderSink, Unpacked, engine, unpack
from parbake.machine import disk
from parbake.machine.ext4 import LayerArea, Volume
from standins.layers import describe, digest
from standins.plans import image, plan
from standins.tars import archive, entry
from standins.volumes import show
from standins.workers import ThreadWorkers

type Blobs = Sequence[bytes]


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Volume]:
    path = tmp_path / "volume.raw"
    disk.make_filesystem(path, "ext4", 64 * MIB, name="workers")
    with Volume(path) as opened:
        yield opened


@pytest.fixture(scope="module")
def threads() -> Iterator[Workers]:
    with ThreadWorkers(2) as workers:
        yield workers


def layers_of(count: int) -> tuple[list[Layer], list[bytes]]:
    """Return layers of many kinds: large ones, empty ones, and such as need to know what lies below them."""
    raws = []
    for number in range(count):
        source = random.Random(number)
        sizes = [source.randrange(30_000) for _ in range(source.choice([0, 5, 120]))] + [2 * MIB] * (number % 3 == 0)
        entries = [entry(b"app/d%d/f%d" % (at % 7, at), data=source.randbytes(size)) for at, size in enumerate(sizes)]
        folder = entry(b"app/", b"5", mode=0o750, uid=number + 1) if number % 2 == 0 else b""
        raws.append(archive(folder, *entries, entry(b"layer", data=b"%d" % number)))
    packed = [gzip.compress(raw, 1) for raw in raws]
    layers = [describe(raw, data) for raw, data in zip(raws, packed, strict=True)]
    chains = [digest(b"chain%d" % number) for number in range(count)]
    return [layer.model_copy(update={"chain_id": chain}) for layer, chain in zip(layers, chains, strict=True)], packed


def write(workers: Workers, volume: Volume, layers: Sequence[Layer], blobs: Blobs, *, dense: bool = False) -> None:
    """Have workers write layers, each on those before it, side by side."""
    settled = [Event() for _ in layers]

    def one(number: int, area: LayerArea) -> Done:
        def lowers() -> list[int]:
            assert all(event.wait(60) for event in settled[:number])
            return [volume.placed[layer.chain_id].root for layer in reversed(layers[:number])]

        return go(workers, layers[number], area, blobs[number], lowers)

    areas = volume.areas(layers, dense=dense)
    with ThreadPoolExecutor(workers.count) as pool:
        found = [pool.submit(one, *each) for each in enumerate(areas)]
        for layer, area, done, event in zip(layers, areas, found, settled, strict=True):
            volume.placed[layer.chain_id] = area.settle(done.result().written)
            event.set()
    show(volume)


def go(
    workers: Workers,
    layer: Layer,
    area: LayerArea,
    blob: bytes | Readable,
    lowers: Callable[[], Sequence[int]] = list,
    *,
    bound: int = 1 << 30,
    allowance: int = 1 << 30,
) -> Done:
    job = LayerJob(layer, area, lowers, bound, Allowance(allowance))
    return workers.write(job, io.BytesIO(blob) if isinstance(blob, bytes) else blob, progress=lambda _: None)


def volume_of(folder: Path, workers: Workers, *, dense: bool = False) -> str:
    """Return the hash of a volume with all of the layers, which is sound."""
    folder.mkdir()
    path = folder / "volume.raw"
    disk.make_filesystem(path, "ext4", 64 * MIB, name="workers")
    with Volume(path) as volume:
        write(workers, volume, *layers_of(9), dense=dense)
    run(["e2fsck", "-fn", str(path)])
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("dense", [False, True])
def test_the_same_bytes_with_one_two_and_four_processes(tmp_path: Path, threads: Workers, dense: bool) -> None:
    found = {volume_of(tmp_path / "threads", threads, dense=dense)}
    for count in (1, 2, 4):
        with Workers(tmp_path / "log", count) as workers:
            found.add(volume_of(tmp_path / str(count), workers, dense=dense))
    assert len(found) == 1


ROOT = entry(b"f", data=b"x" * 5000)
HOSTILE = {
    "escape": archive(entry(b"../f")),
    "link to nothing": archive(entry(b"a", b"1", link=b"b")),
    "not a folder": archive(entry(b"a"), entry(b"a/b")),
    "ends early": archive(ROOT)[:700],
    "checksum": archive(ROOT).replace(b"f", b"g", 1),
    "long name": archive(entry(b"a" * 90 + b"/" + b"b" * 90, b"1", link=b"c")),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_refusals_have_the_words_of_the_engine(tmp_path: Path, volume: Volume, threads: Workers, name: str) -> None:
    raw = HOSTILE[name]
    layer = describe(raw)
    with pytest.raises(LayerError) as ours:
        unpack(io.BytesIO(raw), layer, FolderSink(tmp_path), bound=1 << 30, progress=lambda _: None)
    (area,) = volume.areas([layer])
    with pytest.raises(LayerError) as theirs:
        go(threads, layer, area, raw)
    assert type(theirs.value) is type(ours.value)
    assert (theirs.value.message, theirs.value.hint) == (ours.value.message, ours.value.hint)
    assert "In a worker process:\nTraceback" in theirs.value.__notes__[0]


@pytest.mark.parametrize("small", [engine.SMALL, -1])
def test_what_is_damaged_is_read_to_its_end(
    volume: Volume, threads: Workers, monkeypatch: pytest.MonkeyPatch, small: int
) -> None:
    """Then the digest says so, as for a layer in one process."""
    monkeypatch.setattr(engine, "SMALL", small)
    raw = archive(entry(b"f", data=random.Random(1).randbytes((SLOTS + 2) * SLOT)))
    packed = gzip.compress(raw, 1)
    layer, damaged = describe(raw, packed), bytearray(packed)
    damaged[5000:6000] = bytes(1000)
    for _ in range(2):
        (area,) = volume.areas([layer])
        with pytest.raises(BadContent, match="the bytes that arrived have the digest"):
            go(threads, layer, area, bytes(damaged))
    (area,) = volume.areas([layer])
    assert go(threads, layer, area, packed).entries == 1


def test_tars_of_several_workers_have_one_allowance(volume: Volume, threads: Workers) -> None:
    layers, blobs = layers_of(1)
    (area,) = volume.areas(layers)
    with pytest.raises(LayerTooLarge, match=f"^layer {layers[0].digest}: this layer and those before it inflate to"):
        go(threads, layers[0], area, blobs[0], allowance=MIB)


class Broken:
    """A stream that fails, or what its test does, after so many bytes."""

    def __init__(self, data: bytes, act: Callable[[], object]) -> None:
        self._data, self._act = io.BytesIO(data), act

    def readinto(self, buffer: memoryview, /) -> int:
        count = self._data.readinto(buffer[:1000])
        if not count:
            self._act()
        return count


def fail() -> None:
    raise Unreachable("the registry went away")


def test_a_stream_that_fails_leaves_a_worker_that_can_go_on(tmp_path: Path) -> None:
    layers, blobs = layers_of(4)
    path = tmp_path / "volume.raw"
    disk.make_filesystem(path, "ext4", 64 * MIB, name="workers")
    with ThreadWorkers(1) as workers, Volume(path) as volume:
        area = volume.areas(layers)[0]
        with pytest.raises(Unreachable):
            go(workers, layers[0], area, Broken(blobs[0][:-5], fail))
        write(workers, volume, layers, blobs)


def test_who_asks_for_more_when_there_is_none_hears_it(tmp_path: Path, threads: Workers) -> None:
    raw = archive(*(entry(b"f%d" % number, data=random.randbytes(3 * MIB)) for number in range(6)))
    layer = describe(raw)
    disk.make_filesystem(tmp_path / "small.raw", "ext4", 16 * MIB, name="workers")
    with Volume(tmp_path / "small.raw") as volume:
        (area,) = volume.areas([layer])
        with pytest.raises(DiskFull, match="the volume has no blocks left"):
            go(threads, layer, area, raw)


def test_stopping_wakes_whoever_waits(volume: Volume) -> None:
    layers, blobs = layers_of(2)
    with ThreadWorkers(1) as workers:
        area = volume.areas(layers)[0]
        with pytest.raises(Interrupted):
            go(workers, layers[0], area, Broken(blobs[0][:-5], workers.stop))


def destination_of(volume: Volume, workers: Workers, layers: Sequence[Layer]) -> VolumeImage:
    """Return where the layers of an image go, which has begun."""
    wanted = image(layers=tuple(layers))
    destination = VolumeImage(plan(images=(wanted,)), volume, workers, volume.path.parent)
    chains = [layer.chain_id for layer in layers]
    destination.begin([Job(layer, wanted, tuple(chains[:number])) for number, layer in enumerate(layers)])
    return destination


def test_a_layer_that_stands_ready_takes_no_worker_from_those_below(volume: Volume) -> None:
    layers, blobs = layers_of(3)
    options = UnpackOptions(1 << 30, Allowance(1 << 30), lambda _: None)
    with ThreadWorkers(1) as workers, ThreadPoolExecutor(3) as pool:
        destination = destination_of(volume, workers, layers)
        assert destination.at_once == 2

        def unpack(number: int) -> Unpacked:
            return destination.unpack(number, io.BytesIO(blobs[number]), options)

        later = [pool.submit(unpack, number) for number in (2, 1)]
        assert not wait(later, 0.1).done  # each of them would wait for those below, with the only worker
        first = pool.submit(unpack, 0)
        for number, unpacked in enumerate([first, *reversed(later)]):
            destination.arrived(number, unpacked.result(60))
        assert list(volume.placed) == [layer.chain_id for layer in layers]
        destination.stop()


def test_a_layer_that_stands_ready_hears_of_the_end(volume: Volume) -> None:
    layers, blobs = layers_of(2)
    options = UnpackOptions(1 << 30, Allowance(1 << 30), lambda _: None)
    with ThreadWorkers(1) as workers, ThreadPoolExecutor(1) as pool:
        destination = destination_of(volume, workers, layers)
        waiting = pool.submit(destination.unpack, 1, io.BytesIO(blobs[1]), options)
        destination.stop()
        with pytest.raises(Interrupted):
            waiting.result(60)


def test_no_connection_is_held_open_while_large_layers_come(volume: Volume) -> None:
    layers = [layer.model_copy(update={"size": GIB}) for layer in layers_of(1)[0]]
    with ThreadWorkers(1) as workers:
        destination = destination_of(volume, workers, layers)
        assert destination.at_once == 1
        destination.stop()


def worker_of(workers: Workers) -> int:
    """Return the process of the only worker."""
    (hand,) = workers._hands
    popen = hand._process._popen
    assert popen is not None
    return popen.pid


def test_a_worker_that_is_killed_is_told_of(tmp_path: Path, volume: Volume) -> None:
    layers, blobs = layers_of(2)
    with Workers(tmp_path / "log", 1) as workers:
        area = volume.areas(layers)[0]
        killed = Broken(blobs[0][:-5], lambda: os.kill(worker_of(workers), signal.SIGKILL))
        with pytest.raises(
            ParbakeError, match=f"^layer {layers[0].digest}: the process that unpacked it has ended"
        ) as it:
            go(workers, layers[0], area, killed)
        assert "code -9" in it.value.message


def test_workers_inherit_nothing_by_accident_and_go_with_us(tmp_path: Path, volume: Volume) -> None:
    layers, blobs = layers_of(1)
    with Workers(tmp_path / "log", 1) as workers, (tmp_path / "secret").open("w") as secret:
        os.set_inheritable(secret.fileno(), True)
        area = volume.areas(layers)[0]
        go(workers, layers[0], area, blobs[0])  # it runs, and has opened all that it opens
        pid = worker_of(workers)
        found = {str(handle.readlink()) for handle in Path(f"/proc/{pid}/fd").iterdir()}
        assert len([name for name in found if name.startswith("socket:")]) == 1
        assert {name for name in found if not name.startswith("socket:")} <= {
            "/dev/null",
            str(tmp_path / "log"),
            "/memfd:parbake-layer (deleted)",
        }
        assert os.getpgid(pid) != os.getpgid(0)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_worker_that_was_started_ahead_is_the_first_one(tmp_path: Path, volume: Volume) -> None:
    layers, blobs = layers_of(1)
    with Spare() as spare:
        with Workers(tmp_path / "log", 1, spare) as workers:
            (area,) = volume.areas(layers)
            go(workers, layers[0], area, blobs[0])
            first = worker_of(workers)
        with Workers(tmp_path / "log", 1, spare) as workers:  # a second attempt starts its own
            assert worker_of(workers) != first
        assert not (tmp_path / "log").read_bytes()
    assert not Path(f"/proc/{first}").exists()


def test_a_spare_worker_that_nobody_takes_ends(tmp_path: Path) -> None:
    with Spare() as spare:
        pass
    with Workers(tmp_path / "log", 1, spare) as workers:
        ended = worker_of(workers)
    assert not Path(f"/proc/{ended}").exists()


def test_a_spare_worker_that_died_is_told_of(tmp_path: Path, volume: Volume) -> None:
    layers, blobs = layers_of(1)
    with Spare() as spare, Workers(tmp_path / "log", 1, spare) as workers:
        os.kill(worker_of(workers), signal.SIGKILL)
        (area,) = volume.areas(layers)
        with pytest.raises(ParbakeError, match=f"^layer {layers[0].digest}: .* has ended"):
            go(workers, layers[0], area, blobs[0])


@pytest.mark.parametrize(
    ("cores", "gib", "count"), [(1, 64, 1), (2, 1, 2), (4, 4, 2), (4, 8, 4), (16, 16, 8), (64, 512, 16)]
)
def test_there_are_as_many_as_cores_and_memory_allow(cores: int, gib: int, count: int) -> None:
    assert most(cores, gib * GIB) == count


SMALL, LARGE = 10_000, 64 * MIB


@pytest.mark.parametrize(
    ("sizes", "count"),
    [
        ([], 1),
        ([LARGE], 1),
        ([LARGE, SMALL, SMALL], 1),
        ([LARGE, LARGE, SMALL], 2),
        ([SMALL] * 4, 1),
        ([SMALL] * 5, 2),
        ([SMALL] * 30, 8),
        ([LARGE] * 30, 30),
    ],
)
def test_a_worker_is_started_where_there_is_something_for_it_to_do(sizes: list[int], count: int) -> None:
    assert worth_starting(sizes) == count


def test_errors_on_the_wire() -> None:
    found = raised(failure(OSError(28, "No space left on device")))
    assert isinstance(found, OSError)
    assert (found.errno, found.strerror) == (28, "No space left on device")
    try:
        raise KeyError("a bug")
    except KeyError as error:
        bug = raised(failure(error))
    assert type(bug) is RuntimeError
    assert "KeyError: 'a bug'" in bug.__notes__[0]


def test_copies_and_progress_are_of_all_bytes(volume: Volume, threads: Workers) -> None:
    raw = archive(entry(b"f", data=random.Random(1).randbytes((SLOTS + 3) * SLOT)))
    layer = describe(raw)
    (area,) = volume.areas([layer])
    copy, counts = io.BytesIO(), list[int]()
    job = LayerJob(layer, area, list, 1 << 30, Allowance(1 << 30))
    done = threads.write(job, io.BytesIO(raw), progress=counts.append, keep=copy)
    assert copy.getvalue() == raw
    assert sum(counts) == len(raw)
    assert (done.entries, done.raw_size) == (1, len(raw))

"""Measure the engine alone: a large layer, and many layers of small files. No registry, no containerd.

    python -m bench.engine [--folder DIR] [--gib 1.0] [--files 60000] [--layers 30] [--runs 3]

The layers are made of what lies in /usr of this machine and are kept in DIR for the next run. The last line of
output is one JSON object. ``limit_s`` is measured in the same run: CPU-seconds of inflating (ISA-L) and of SHA-256
over both sides, over the cores; ``ratio_to_limit`` is the median of the engine's times over it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from isal.isal_zlib import _GzipReader

from parbake.core.model import GIB, MIB, Layer
from parbake.core.run import need
from parbake.core.workspace import cache_folder
from parbake.images.layers import FolderSink, settle, unpack

_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"


class Hashing:
    """A file that hashes what is written to it."""

    def __init__(self, file: object) -> None:
        self.file = file
        self.digest = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        self.size += len(data)
        return self.file.write(data)  # type: ignore[attr-defined, no-any-return]


def files_of_usr() -> Iterator[tuple[str, int]]:
    for folder, _, names in Path("/usr").walk():
        for name in sorted(names):
            path = folder / name
            if not path.is_symlink() and path.is_file():
                yield str(path), path.stat().st_size


def make_layer(path: Path, members: list[tuple[str, str]]) -> Layer:
    """Write a gzip layer of (name, path on this machine) unless it is there."""
    facts = path.with_suffix(".json")
    if not facts.exists():
        with (
            path.open("wb") as out,
            subprocess.Popen([need("pigz"), "-6", "-c"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as pigz,
        ):
            if pigz.stdin is None or pigz.stdout is None:
                raise RuntimeError("pigz has no pipes")
            copier = ThreadPoolExecutor(1).submit(shutil.copyfileobj, pigz.stdout, out, MIB)
            raw = Hashing(pigz.stdin)
            with tarfile.open(fileobj=raw, mode="w|", format=tarfile.GNU_FORMAT, bufsize=MIB) as tar:  # type: ignore[call-overload]
                for name, source in members:
                    tar.add(source, name, recursive=False)
            pigz.stdin.close()
            copier.result()
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while data := file.read(MIB):
                digest.update(data)
        diff_id = f"sha256:{raw.digest.hexdigest()}"
        layer = Layer(
            media_type=_TYPE, digest=f"sha256:{digest.hexdigest()}", size=path.stat().st_size, diff_id=diff_id,
            chain_id=diff_id, raw_size=raw.size,
        )  # fmt: skip
        facts.write_text(layer.model_dump_json())
    return Layer.model_validate_json(facts.read_text())


def big(folder: Path, size: int) -> tuple[Path, Layer]:
    members = []
    total = 0
    for name, length in files_of_usr():
        if total > size:
            break
        members.append((name[1:], name))
        total += length
    path = folder / f"big-{size >> 20}.tar.gz"
    return path, make_layer(path, members)


def many(folder: Path, files: int, layers: int) -> list[tuple[Path, Layer]]:
    small = [name for name, length in files_of_usr() if 0 < length < 12_000]
    each = files // layers
    made = []
    for number in range(layers):
        members = [(f"srv/app{number}/d{i // 50}/f{i}", small[(number * each + i) % len(small)]) for i in range(each)]
        packed = folder / f"many-{files}-{layers}-{number}.tar.gz"
        made.append((packed, make_layer(packed, members)))
    return made


def cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def limit(layers: list[tuple[Path, Layer]]) -> float:
    """CPU-seconds of inflating and of two SHA-256 passes."""
    start = cpu()
    buffer = bytearray(MIB)
    view = memoryview(buffer)
    for path, _ in layers:
        packed, raw = hashlib.sha256(), hashlib.sha256()
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                packed.update(view[:count])
        with path.open("rb", buffering=0) as file:
            reader = _GzipReader(file, 256 << 10)
            while count := reader.readinto(buffer):
                raw.update(view[:count])
    return cpu() - start


def unpack_all(layers: list[tuple[Path, Layer]], target: Path, at_once: int) -> None:
    def one(item: tuple[int, tuple[Path, Layer]]) -> None:
        number, (path, layer) = item
        place = target / str(number)
        place.mkdir()
        with path.open("rb", buffering=0) as stream:
            settle(place, unpack(stream, layer, FolderSink(place), bound=1 << 40, progress=lambda _: None), ())

    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(one, enumerate(layers)))


def measure(layers: list[tuple[Path, Layer]], folder: Path, runs: int, at_once: int) -> dict[str, float]:
    walls, cpus = [], []
    for run in range(runs):
        target = folder / f"out{run}"
        target.mkdir()
        start, used = time.monotonic(), cpu()
        unpack_all(layers, target, at_once)
        walls.append(time.monotonic() - start)
        cpus.append(cpu() - used)
        print(f"  {walls[-1]:.2f} s wall, {cpus[-1]:.2f} s CPU", file=sys.stderr)
        shutil.rmtree(target)
    bound = limit(layers) / (os.cpu_count() or 1)
    wall = statistics.median(walls)
    raw = sum(layer.raw_size for _, layer in layers)
    return {
        "seconds": round(wall, 3),
        "cpu_s": round(statistics.median(cpus), 3),
        "raw_mib": raw >> 20,
        "raw_mib_per_s": round(raw / MIB / wall, 1),
        "limit_s": round(bound, 3),
        "ratio_to_limit": round(wall / bound, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=cache_folder() / "bench-engine")
    parser.add_argument("--gib", type=float, default=1.0)
    parser.add_argument("--files", type=int, default=60_000)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    results: dict[str, object] = {}
    print("one large layer", file=sys.stderr)
    results["big"] = measure([big(options.folder, int(options.gib * GIB))], options.folder, options.runs, 1)
    results["peak_rss_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print("many layers of small files", file=sys.stderr)
    small = many(options.folder, options.files, options.layers)
    for at_once in (1, 2):
        found = measure(small, options.folder, options.runs, at_once)
        results[f"many_{at_once}"] = {**found, "files_per_s": round(options.files / found["seconds"])}
    print(json.dumps(results))


if __name__ == "__main__":
    main()

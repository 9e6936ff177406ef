"""Measure what a changed top layer costs: a full bake, a bake after the change, and one with nothing to do. Needs root.

    make bench-rebake [BENCH_REBAKE_IMAGE=potato] [BENCH_ROUNDS=3]
    python -m bench.rebake [--image potato] [--rounds N] [--on reflink,plain]

A layer of 10 MiB lies on top of the image. It is baked; its tag moves to the same image with another top layer, and the
same Bakefile is baked again, and once more. All this on a file system that shares blocks between copies (XFS with
reflinks) and on one that does not (ext4), both in a file, so that they differ in nothing else.

Progress goes to standard error. The last line of standard output is one JSON object, keyed by ``reflink`` and
``plain``: ``full_s``, ``rebake_s``, ``fraction`` (of the time of a full bake), ``noop_s``, ``changed_blocks_mib``
(blocks of 512 KiB that differ between the artefacts), ``changed_data_mib`` (the new layer, unpacked), ``bound_mib``
(1.5 times that and 16 MiB), and more for readers; times are medians of the rounds.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import statistics
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.bake import IMAGES, opened, say
from bench.images import Recipe, Shelf, recipes
from bench.sides import Parbake, Run
from parbake.core.errors import InputError
from parbake.core.model import GIB, MIB
from parbake.core.workspace import cache_folder, remove_tree
from parbake.machine import disk

PLACES = {"reflink": "xfs", "plain": "ext4"}
BLOCK = 512 << 10
"""Bytes of the unit in which snapshots of volumes are stored and sent."""
_TAG = "rebake"
_FILES, _FILE_SIZE = 160, 64 << 10  # 10 MiB
_EPOCH = 1_700_000_000


def top_layer(work: Path, version: int) -> Path:
    """Write the layer that changes: an application's files, of which no two versions have one in common."""
    path = work / "top.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for number in range(_FILES):
            member = tarfile.TarInfo(f"srv/application/part{number:03}")
            member.size, member.mtime = _FILE_SIZE, _EPOCH
            data = hashlib.shake_128(f"{version} {number}".encode()).digest(_FILE_SIZE)
            tar.addfile(member, io.BytesIO(data))
    return path


@contextmanager
def file_system(work: Path, kind: disk.FileSystem, size: int) -> Iterator[Path]:
    """Yield a folder on a new file system of ``size`` bytes, in a file."""
    file = work / "place.raw"
    try:
        disk.make_filesystem(file, kind, size, name="bench")
        with disk.mount(file, work / "place", filesystem=kind) as mounted:
            yield mounted.path
    finally:
        file.unlink(missing_ok=True)


def blocks_with_data(file: int) -> set[int]:
    """Return the numbers of the blocks of an open file that are not holes."""
    found: set[int] = set()
    size, at = os.fstat(file).st_size, 0
    while at < size:
        try:
            at = os.lseek(file, at, os.SEEK_DATA)
        except OSError:  # nothing but a hole follows
            break
        end = os.lseek(file, at, os.SEEK_HOLE)
        found.update(range(at // BLOCK, -(-end // BLOCK)))
        at = end
    return found


def changed_blocks(before: Path, after: Path) -> int:
    """Count the blocks in which two artefacts differ."""
    with before.open("rb", buffering=0) as old, after.open("rb", buffering=0) as new:
        blocks = sorted(blocks_with_data(old.fileno()) | blocks_with_data(new.fileno()))
        return sum(
            os.pread(old.fileno(), BLOCK, block * BLOCK) != os.pread(new.fileno(), BLOCK, block * BLOCK)
            for block in blocks
        )


@dataclass(frozen=True)
class Once:
    """Three bakes, how many blocks differ between the two artefacts, and the bytes of the changed layer's tar."""

    full: Run
    again: Run
    nothing: Run
    blocks: int
    data: int


def measure_once(shelf: Shelf, recipe: Recipe, folder: Path, work: Path) -> Once:
    """Bake, change, bake, bake."""
    parbake = Parbake()
    image = shelf.put_on_top(recipe, _TAG, top_layer(work, 1))
    os.sync()
    full, first = parbake.bake_in(folder, image)
    image = shelf.put_on_top(recipe, _TAG, top_layer(work, 2))
    os.sync()
    again, second = parbake.bake_in(folder, image)
    if not (first["changed"] and second["changed"]) or first["artefact_path"] == second["artefact_path"]:
        raise InputError("the second bake made no other artefact", hint="this is a bug in the benchmark")
    os.sync()
    nothing, third = parbake.bake_in(folder, image)
    if third["changed"]:
        raise InputError("a bake with nothing to do did something", hint="this is a bug in parbake")
    blocks = changed_blocks(Path(first["artefact_path"]), Path(second["artefact_path"]))
    return Once(full, again, nothing, blocks, image.layers[-1].raw_size)


def measure(shelf: Shelf, recipe: Recipe, place: str, rounds: int, work: Path) -> dict[str, object]:
    """Measure on one kind of file system; return what the last line says of it."""
    found = []
    size = -(-int(shelf.get(recipe).raw_size * 3.5 + 4 * GIB) // GIB) * GIB
    for number in range(1, rounds + 1):
        with file_system(work, PLACES[place], size) as at:  # type: ignore[arg-type]
            once = measure_once(shelf, recipe, at / "parbake", work)
            remove_tree(at / "parbake")
        found.append(once)
        say(
            f"  {number}/{rounds} {place}: full {once.full.seconds:.2f} s, again {once.again.seconds:.2f} s, "
            f"nothing to do {once.nothing.seconds:.2f} s; "
            f"{once.blocks * BLOCK / MIB:.1f} MiB of blocks for {once.data / MIB:.1f} MiB"
        )
    full = statistics.median(once.full.seconds for once in found)
    again = statistics.median(once.again.seconds for once in found)
    nothing = statistics.median(once.nothing.seconds for once in found)
    blocks, data = statistics.median(once.blocks for once in found), found[0].data
    return {
        "full_s": round(full, 2),
        "rebake_s": round(again, 2),
        "fraction": round(again / full, 3),
        "noop_s": round(nothing, 2),
        "changed_blocks_mib": round(blocks * BLOCK / MIB, 1),
        "changed_data_mib": round(data / MIB, 1),
        "bound_mib": round(1.5 * data / MIB + 16, 1),
        "peak_rss_mib": round(max(once.again.peak for once in found) / MIB),
        "rebake_parts_s": {name: round(seconds, 2) for name, seconds in found[-1].again.parts.items()},
        "rounds": rounds,
    }


def main() -> None:
    """Read the arguments, measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", choices=IMAGES, default="potato", help="the image below the layer that changes")
    parser.add_argument("--rounds", type=int, default=3, help="how often all is done")
    parser.add_argument("--on", default=",".join(PLACES), help="which file systems, with commas between")
    options = parser.parse_args()
    places = options.on.split(",")
    if unknown := set(places) - set(PLACES):
        raise InputError(f"no such place: {', '.join(sorted(unknown))}", hint=f"choose from {', '.join(PLACES)}")
    started = time.monotonic()
    with opened(cache_folder() / "bench", "rebake") as (shelf, work):
        recipe = recipes(shelf)[options.image]
        say(f"{options.image}, and a layer of {_FILES * _FILE_SIZE / MIB:.0f} MiB on top of it")
        result = {place: measure(shelf, recipe, place, options.rounds, work) for place in places}
    say(f"done in {time.monotonic() - started:.0f} s")
    print(json.dumps({"image": options.image, **result}), flush=True)


if __name__ == "__main__":
    main()

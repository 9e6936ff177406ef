"""Compare a bake with the pulls that people use today, and with what the machine allows. Needs root.

    make bench-bake [BENCH_IMAGES=small,many] [BENCH_ROUNDS=3]
    python -m bench.bake [--images small,many,many-large,potato,potato-zstd,cores] [--rounds N]

Progress goes to standard error. The last line of standard output is one JSON object, keyed by image:
``parbake_s``, ``ctr_s``, ``ratio_vs_ctr`` (how many times as long ctr takes), ``limit_s``, ``ratio_to_limit``,
``peak_rss_mib``, and more for readers; times are medians of the rounds, null is a peer that is missing.
Under ``cores`` are the seconds of parbake's bakes of ``many`` with one and with two processors (``seconds``), and how
many times as fast the second is (``gain``). docs/explanation/benchmarks.md says what is measured and how.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench import limits
from bench.images import Image, Shelf, recipes
from bench.sides import Buildah, Ctr, Parbake, Run, Side, Skopeo, fresh_volume
from parbake.core.errors import InputError
from parbake.core.events import Event, Events
from parbake.core.model import MIB
from parbake.core.run import need_root
from parbake.core.workspace import cache_folder, lock, remove_leftovers, work_folder
from parbake.machine import disk
from parbake.workflows.demo.registry import free_port, serve_registry

IMAGES = ("small", "many", "many-large", "potato", "potato-zstd")
CORES = "cores"


def say(text: str) -> None:
    """Write progress to standard error."""
    print(text, file=sys.stderr, flush=True)


def show(event: Event) -> None:
    """Show what the making of images reports."""
    if event.kind in {"stage-start", "note", "warning"}:
        say(event.text)


def compare(image: Image, shelf: Shelf, sides: list[Side], rounds: int, work: Path) -> dict[str, object]:
    """Let all sides bake an image in turn, ``rounds`` times; return the medians."""
    runs: dict[str, list[Run]] = {side.name: [] for side in sides}
    found: list[limits.Limit] = []
    say(
        f"{image.name}: {len(image.layers)} layers, {image.size / MIB:.0f} MiB {image.compression}, "
        f"{image.raw_size / MIB:.0f} MiB unpacked"
    )
    for number in range(1, rounds + 1):
        for side in sides:
            os.sync()  # nobody pays for what another has written
            run = side.bake(image, work)
            runs[side.name].append(run)
            parts = ", ".join(f"{name} {seconds:.2f}" for name, seconds in run.parts.items())
            say(
                f"  {number}/{rounds} {side.name}: {run.seconds:.2f} s, {run.peak / MIB:.0f} MiB"
                f"{f' ({parts})' if parts else ''}"
            )
        os.sync()
        with fresh_volume(work, image) as (mounted, _):
            blobs = [shelf.blob(layer.digest) for layer in image.layers]
            limit = limits.measure(blobs, image.compression, image.size, image.raw_size, mounted)
        found.append(limit)
        say(
            f"  {number}/{rounds} limit: {limit.seconds:.2f} s (inflate {limit.inflate:.2f} CPU-s by {limit.inflater}, "
            f"sha256 {limit.hashing:.2f} CPU-s, over {limits.cores()} cores; writing {limit.writing:.2f} s)"
        )
    return summary(runs, found, image)


def scale(image: Image, rounds: int, work: Path) -> dict[str, object]:
    """Bake an image with one processor and with two, in turns; return the medians."""
    runs: dict[int, list[float]] = {1: [], 2: []}
    for number in range(1, rounds + 1):
        for cores, found in runs.items():
            os.sync()
            found.append(Parbake(cores).bake(image, work).seconds)
            say(f"  {number}/{rounds} {image.name} on {cores} of {limits.cores()} cores: {found[-1]:.2f} s")
    seconds = {cores: statistics.median(found) for cores, found in runs.items()}
    return {
        "image": image.name,
        "seconds": {str(cores): round(median, 2) for cores, median in seconds.items()},
        "gain": round(seconds[1] / seconds[2], 2),
        "rounds": rounds,
    }


def summary(runs: dict[str, list[Run]], found: list[limits.Limit], image: Image) -> dict[str, object]:
    """Return what goes into the last line for one image."""
    medians = {name: statistics.median(run.seconds for run in each) for name, each in runs.items()}
    parbake, ctr = medians["parbake"], medians.get("ctr")
    limit = statistics.median(each.seconds for each in found)
    parts = [run.parts for run in runs["parbake"]]
    return {
        "parbake_s": round(parbake, 2),
        "ctr_s": _rounded(ctr),
        "ratio_vs_ctr": _rounded(ctr and ctr / parbake),
        "limit_s": round(limit, 2),
        "ratio_to_limit": round(parbake / limit, 2),
        "peak_rss_mib": round(statistics.median(run.peak for run in runs["parbake"]) / MIB),
        "buildah_s": _rounded(medians.get("buildah")),
        "skopeo_download_only_s": _rounded(medians.get(Skopeo.name)),
        "parts_s": {name: round(statistics.median(each[name] for each in parts), 2) for name in parts[0]},
        "limit_parts_s": {
            "processors": round(statistics.median(each.processors for each in found), 2),
            "writing": round(statistics.median(each.writing for each in found), 2),
        },
        "layers": len(image.layers),
        "compressed_mib": round(image.size / MIB),
        "unpacked_mib": round(image.raw_size / MIB),
        "rounds": len(found),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def contestants() -> list[Side]:
    """Return the sides that are here; name those that are missing."""
    sides: list[Side] = [Parbake(), Ctr(), Buildah(), Skopeo()]
    for side in sides:
        if what := side.missing():
            say(f"MISSING: {side.name} ({what} is not installed); its figures are null")
        elif isinstance(side, Ctr):
            say(f"ctr: {side.folder}, containerd {side.version}")
    return [side for side in sides if not side.missing()]


@contextmanager
def opened(folder: Path, name: str) -> Iterator[tuple[Shelf, Path]]:
    """Yield the images cached below ``folder``, served, and a work folder; one benchmark at a time."""
    need_root("a benchmark of bakes")
    remove_leftovers(folder)
    with (
        lock(folder / "bake.lock", what="the benchmark"),
        serve_registry(folder / "registry", free_port()) as host,
        work_folder(folder, name) as work,
        disk.private_mounts(),
    ):
        yield Shelf(host, folder / "registry/content", work, Events(show)), work


def measure(names: list[str], rounds: int, folder: Path) -> dict[str, object]:
    """Run the benchmark with images cached below ``folder``; return what the last line says."""
    sides = contestants()
    with opened(folder, "bake") as (shelf, work):
        known = recipes(shelf)
        images = [shelf.get(known[name]) for name in names if name != CORES]
        found: dict[str, object] = {
            image.name: compare(image, shelf, sides, rounds, work) for image in images if rounds
        }
        if CORES in names and rounds:
            found[CORES] = scale(shelf.get(known["many"]), rounds, work)
        return found


def main() -> None:
    """Read the arguments, measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", default=",".join((*IMAGES, CORES)), help="which images, with commas between")
    parser.add_argument("--rounds", type=int, default=3, help="how often each side bakes; 0 only makes the images")
    options = parser.parse_args()
    names = options.images.split(",")
    if unknown := set(names) - {*IMAGES, CORES}:
        raise InputError(
            f"no such image: {', '.join(sorted(unknown))}", hint=f"choose from {', '.join((*IMAGES, CORES))}"
        )
    started = time.monotonic()
    result = measure(names, options.rounds, cache_folder() / "bench")
    say(f"done in {time.monotonic() - started:.0f} s")
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()

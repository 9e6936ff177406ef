"""Fuzz for a while, or again what was found.

    python -m tests.fuzz [--seconds 300] [--folder .cache/fuzz] [TARGET ...]
    python -m tests.fuzz --again FILE TARGET

The time is shared by the targets, as many at a time as there are cores. The engine is libFuzzer (through atheris): what
reaches new code is kept in ``FOLDER/TARGET``, where the next run goes on. A finding is a file in ``FOLDER/found``.
``mounted_stacks`` and ``volume_stacks`` are random comparisons with containerd instead (``stacks``), and need root.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SLOWEST = 20  # seconds that one input may take
MOST_MEMORY = 800  # MiB; of that Python and the libraries take 150
INSTRUMENTED = [
    "parbake.images.layers",
    "parbake.images.registry.documents",
    "parbake.coldstart.trace",
    "parbake.machine.vm.reads",
]


def usual() -> list[str]:
    from tests.fuzz.stacks import COMPARISONS
    from tests.fuzz.targets import TARGETS

    compared = list(COMPARISONS) if os.geteuid() == 0 else []
    if not compared:
        print(f"not run, since it needs root: {', '.join(COMPARISONS)}", file=sys.stderr)
    return [*compared, *(name for name, target in TARGETS.items() if target.usual)]


def inside(name: str, options: list[str]) -> None:
    """Become libFuzzer on one target: this never returns. Or compare stacks for ``options[0]`` seconds, and end."""
    from tests.fuzz import stacks

    if name in stacks.COMPARISONS:
        sys.exit(0 if stacks.compare(name, float(options[0]), Path(options[1])) else 1)
    import atheris

    with atheris.instrument_imports(include=INSTRUMENTED):
        from tests.fuzz.targets import TARGETS

    atheris.Setup([name, *options], TARGETS[name].function)
    atheris.Fuzz()


def again(name: str, file: Path) -> None:
    """Give a target one input, without a fuzzer around it."""
    from tests.fuzz import stacks
    from tests.fuzz.targets import TARGETS

    if name in stacks.COMPARISONS:
        stacks.again(name, file)
    else:
        TARGETS[name].function(file.read_bytes())
    print(f"{name}: {file} is no finding (any more)")


def fuzz(name: str, seconds: int, folder: Path) -> bool:
    """Fuzz one target; print what came of it, and return whether nothing was found."""
    from tests.fuzz.stacks import COMPARISONS

    found = folder / "found"
    found.mkdir(parents=True, exist_ok=True)
    options = [str(seconds), str(found)] if name in COMPARISONS else _options(name, seconds, folder, found)
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", "--inside", name, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=seconds + 120,
        check=False,
    )
    said = done.stdout.decode(errors="replace")
    runs = re.search(r"stat::number_of_executed_units: (\d+)", said)
    if done.returncode == 0 and runs:
        more = re.search(r"^stacks .*: (.*)$", said, re.MULTILINE)
        print(f"{name}: nothing found in {runs[1]} runs{f' ({more[1]})' if more else ''}", flush=True)
        return True
    print(said[-4000:])
    for file in re.findall(r"Test unit written to (\S+)", said):
        print(f"{name}: FOUND; again: {os.path.relpath(sys.executable)} -m tests.fuzz --again {file} {name}")
    print(f"{name}: failed", flush=True)
    return False


def _options(name: str, seconds: int, folder: Path, found: Path) -> list[str]:
    """Return libFuzzer's options for a target, whose seeds are written."""
    from tests.fuzz.targets import TARGETS

    target, pool = TARGETS[name], folder / name
    pool.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds()):
        (pool / f"seed-{number}").write_bytes(seed)
    return [
        str(pool),
        f"-max_total_time={seconds}",
        f"-max_len={target.longest}",
        f"-timeout={SLOWEST}",
        f"-rss_limit_mb={MOST_MEMORY}",
        f"-artifact_prefix={found}/{name}-",
        "-print_final_stats=1",
    ]


def main() -> int:
    if sys.argv[1:2] == ["--inside"]:
        inside(sys.argv[2], sys.argv[3:])
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz what reads a registry's content.")
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--folder", type=Path, default=Path(".cache/fuzz"))
    parser.add_argument("--again", type=Path, metavar="FILE")
    parser.add_argument("targets", nargs="*", default=usual(), metavar="TARGET")
    options = parser.parse_args()
    if options.again:
        for name in options.targets:
            again(name, options.again)
        return 0
    cores = os.cpu_count() or 1
    each = max(1, options.seconds // math.ceil(len(options.targets) / cores))
    with ThreadPoolExecutor(cores) as threads:
        results = list(threads.map(lambda name: fuzz(name, each, options.folder.absolute()), options.targets))
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())

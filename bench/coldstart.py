"""Measure starts from a cold volume with each remedy, on a model of such a volume (see bench/cold.py). Needs root.

    make bench-coldstart [COLD_APPS=web,potato] [COLD_PROFILES=mild,harsh] [COLD_ROUNDS=5]
    python -m bench.coldstart [--apps web,potato] [--profiles mild,harsh] [--drive gp3] [--rounds N] [--boot SECONDS]

Progress goes to standard error. The last line of standard output is one JSON object: for each profile and application
the medians in seconds, from the runtime's start to the application's being up. docs/explanation/benchmarks.md says what
is measured, and what the model assumes.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.cold import ColdSource, attached, data_blocks
from bench.images import Image, Shelf, recipes
from bench.lazy import DRIVES, PROFILES, Profile
from parbake import records
from parbake.coldstart.rehearsal import cold_start
from parbake.coldstart.trace import Trace, hydrate_list, merged
from parbake.core.errors import InputError
from parbake.core.events import Event, Events
from parbake.core.model import EBS_BLOCK, GIB, MIB
from parbake.core.netns import no_network
from parbake.core.nodefiles import node_file
from parbake.core.run import Deadline, Process, need_root, run, sleep
from parbake.core.workspace import cache_folder, lock, remove_leftovers, remove_tree, work_folder
from parbake.machine import disk
from parbake.workflows import bake as workflow
from parbake.workflows.demo.registry import free_port, serve_registry
from parbake.workflows.plan import BakeOptions
from parbake.workflows.trace import trace_of

_PORT = (
    5078  # that of the registry, as part of the images' names: the same in each run, so that volumes are found again
)
_BOOT = 15.0  # seconds
_LONG = 45.0  # seconds: what takes longer is measured once, and not after a boot, in which it has no room to hide
_WEB = """
import json, ssl, http.server, cryptography.x509, cryptography.hazmat.primitives.asymmetric.rsa, requests
class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(json.dumps({"up": True}).encode())
http.server.ThreadingHTTPServer(("127.0.0.1", 18080), Page).serve_forever()
"""
# What `import torch` does, without the packages that the image lacks for it: numpy, the shared libraries with CUDA's
# before them, and about as many modules as it imports, read and compiled.
_TORCH = """
import ctypes, pathlib, sys, numpy
site = pathlib.Path("/opt/app/lib/python3.13/site-packages")
torch, loaded = site / "torch", 0
kinds = ("cuda_nvrtc", "cuda_runtime", "cuda_cupti", "nvjitlink", "cublas", "cudnn", "cufft", "curand", "cusparse",
         "cusparselt", "cusolver", "nccl")
libraries = [path for kind in kinds for path in sorted((site / "nvidia" / kind / "lib").glob("lib*.so*"))]
libraries += [torch / f"lib/lib{name}.so" for name in ("c10", "torch_cpu", "c10_cuda", "torch_cuda", "torch_python")]
for library in libraries:
    try:
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        loaded += 1
    except OSError as error:
        print(error)
modules = [path for place in ("*.py", "nn/**/*.py", "autograd/*.py", "fx/**/*.py", "utils/*.py", "_prims*/*.py",
                              "_refs/*.py", "_decomp/*.py", "distributed/*.py", "cuda/*.py", "functional/*.py",
                              "_library/*.py", "_subclasses/*.py", "onnx/*.py") for path in sorted(torch.glob(place))]
for path in modules:
    compile(path.read_bytes(), str(path), "exec")
print(numpy.ones(8).sum(), loaded, len(modules))
sys.exit(loaded < 20 or len(modules) < 400)
"""
_RATE, _USUAL_SIZE = 300.0, 20 * GIB  # the highest provisioned rate, and the volume that EKS gives by default


@dataclass(frozen=True)
class App:
    """An application: its image and how it starts."""

    name: str
    image: str
    startup: dict[str, Any]


APPS = {
    "web": App("web", "small", {"command": ["python3", "-c", _WEB], "up": {"http": "18080/"}, "timeout": "600s"}),
    "potato": App(
        "potato",
        "potato",
        {
            "command": ["python3", "-c", _TORCH],
            "env": {"PYTHONPATH": "/opt/app/lib/python3.13/site-packages", "PYTHONDONTWRITEBYTECODE": "1"},
            "up": "exit",
            "timeout": "1200s",
        },
    ),
}


@dataclass(frozen=True)
class Volume:
    """A baked volume with its record, its trace and the size of its data in bytes."""

    path: Path
    record: records.Record
    trace: Trace
    data: int


@dataclass(frozen=True)
class Case:
    """A remedy: what is read beside the start, on which volume, after how much boot (seconds).

    With ``prefetch`` files are read into memory too; with ``memory`` everything was read before.
    """

    name: str
    reads: str = ""  # "", "list", "whole" (the list's blocks from end to end) or "all"
    hot: bool = False
    prefetch: bool = False
    memory: bool = False
    provisioned: bool = False
    laid_out: bool = False
    pulled: bool = False
    boot: float = 0.0

    @property
    def everywhere(self) -> bool:
        """Whether it is the same on each profile."""
        return self.hot or self.pulled


def say(text: str) -> None:
    """Write progress to standard error."""
    print(text, file=sys.stderr, flush=True)


def show(event: Event) -> None:
    """Show what a bake reports."""
    if event.kind in {"stage-start", "note", "warning"}:
        say(event.text)


def cases(boot: float) -> list[Case]:
    """Return what is compared, each once without a boot to hide in and, where something reads ahead, once with it."""
    plain = [
        Case("memory", hot=True, laid_out=True, memory=True),
        Case("hydrated", hot=True),
        Case("plain"),
        Case("full_read", reads="all"),
        Case("trace", reads="list"),
        Case("layout", laid_out=True),
        Case("trace_layout", reads="list", laid_out=True),
        Case("prefetch", reads="list", laid_out=True, prefetch=True),
        Case("whole", reads="whole", laid_out=True),
        Case("rate", provisioned=True),
        Case("pull", pulled=True),
    ]
    return plain + [replace(case, boot=boot) for case in plain if case.reads or case.provisioned]


def bake(app: App, image: Image, folder: Path, events: Events, *, layout: bool) -> Volume:
    """Bake the application's volume with its trace, or find what an earlier run made of the same."""
    # How an image starts is no part of an artefact's key, and the trace depends on it.
    folder = folder / hashlib.sha256(json.dumps(app.startup).encode()).hexdigest()[:12]
    folder = folder / ("laid-out" if layout else "plain")
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "parbake.yaml"
    document = {
        "version": 1,
        "name": app.name,
        "images": [{"reference": image.reference, "startup": app.startup}],
        "base": "none",
        "output": str(folder / "artefacts"),
    }
    file.write_text(json.dumps(document))
    finished = workflow.bake(file, events, BakeOptions(verify=False, rehearse=True, layout=layout))
    trace = trace_of(finished.artefact, finished.record)
    if trace.skipped:
        raise InputError(
            f"{app.name} does not start: {trace.skipped}", hint="correct its startup in bench/coldstart.py"
        )
    return Volume(finished.artefact, finished.record, trace, len(data_blocks(finished.artefact)) * EBS_BLOCK)


def reading_list(volume: Volume, reads: str) -> str:
    """Return the hydrate list of a case: the trace's, or all blocks with data, ascending."""
    if reads != "all":
        return hydrate_list(volume.trace)
    blocks = data_blocks(volume.path)
    lines = [f"{block * EBS_BLOCK} {EBS_BLOCK}\n" for block in blocks]
    return f"parbake-hydrate 1\nuuid {volume.trace.uuid}\nsize {volume.trace.size}\nranges {len(lines)}\n" + "".join(
        lines
    )


@contextmanager
def hydrating(volume: Volume, case: Case, work: Path) -> Iterator[Process | None]:
    """Run the node's own program beside the body, where the case has it read something."""
    if not case.reads:
        yield None
        return
    listed = work / "hydrate.list"
    listed.write_text(reading_list(volume, case.reads))
    command = [sys.executable, "-u", str(node_file("hydrate.py")), "--list", str(listed), "--wait", "5"]
    command += ["--state", str(work / "hydrate.json")]
    command += ["--touch", str(EBS_BLOCK)] if case.reads in {"all", "whole"} else []
    command += [] if case.prefetch else ["--memory", "0"]
    with Process(command, log=work / "hydrate.log") as process:
        yield process


def boot(seconds: float, source: ColdSource, hydrate: Process | None) -> None:
    """Let the time of a boot pass: what is read ahead is. When there is nothing more of it, nothing changes any more.

    So is it with a provisioned rate, of which the model's clock is set.
    """
    source.model.began -= 0.0 if hydrate else seconds
    deadline = Deadline(seconds, "a boot")
    while hydrate and hydrate.alive and deadline.left:
        sleep(min(0.01, deadline.left))


def start(volume: Volume, case: Case, profile: Profile, work: Path) -> tuple[float, dict[str, float], int]:
    """Start once; return the seconds from the runtime's start until up, their parts, and the blocks loaded by then."""
    provisioned = _RATE * volume.data / _USUAL_SIZE if case.provisioned else 0.0
    source = ColdSource(volume.path, work, profile, hot=case.hot, provisioned=provisioned)
    plan = volume.record.plan
    with source, attached(source) as device, ExitStack() as stack, hydrating(volume, case, work) as hydrate:
        if case.memory or (case.prefetch and case.boot):  # a node mounts it when its disks are there
            stack.enter_context(mounted(device, work / "mounted"))
        if case.memory:
            (first := work / "first").mkdir()
            with ExitStack() as before:
                cold_start(device, "ext4", plan, plan.images[0], first, before)
        boot(case.boot, source, hydrate)
        asked = source.model.asked
        stages = cold_start(device, "ext4", plan, plan.images[0], work, stack)
        loaded, asked = source.loaded, source.model.asked - asked
        say(f"    {asked} requests during the start" + _told(work / "hydrate.log"))
    return sum(stages.values()), stages, loaded


def _told(log: Path) -> str:
    return f"; {log.read_text(errors='replace').strip().splitlines()[-1:]}" if log.exists() else ""


@contextmanager
def mounted(device: str, at: Path) -> Iterator[None]:
    """Keep a volume mounted, and so what is in memory of it."""
    at.mkdir()
    run(["mount", "-t", "ext4", "-o", "noatime", device, str(at)])
    try:
        yield
    finally:
        disk.unmount(at)


def pull(volume: Volume, image: Image, profile: Profile, work: Path) -> tuple[float, dict[str, float], int]:
    """Pull the image into an empty volume (which is not cold: it comes from no snapshot) and start it."""
    empty = work / "empty.raw"
    size = -(-int(image.raw_size * 1.3 + image.size + 2 * GIB) // GIB) * GIB
    disk.make_filesystem(empty, "ext4", size, name="pull")
    source = ColdSource(empty, work, profile, hot=True)
    plan = volume.record.plan
    try:
        with source, attached(source) as device, ExitStack() as stack:
            stages = cold_start(device, "ext4", plan, plan.images[0], work, stack, pull=True)
    finally:
        empty.unlink()
    return sum(stages.values()), stages, 0


def once(work: Path, do: Callable[[Path], tuple[float, dict[str, float], int]], label: str) -> float:
    """Do something in a folder of its own and say how long it took."""
    folder = work / "run"
    folder.mkdir()
    try:
        seconds, stages, loaded = do(folder)
    finally:
        remove_tree(folder)
    parts = ", ".join(f"{name} {value:.2f}" for name, value in stages.items())
    say(f"  {label}: {seconds:.2f} s ({parts}; {loaded} blocks loaded)")
    return seconds


Key = tuple[str, str, float]  # profile, case, boot


def compare(
    volumes: dict[bool, Volume], image: Image, wanted: list[Case], profiles: list[Profile], *, rounds: int, work: Path
) -> dict[Key, list[float]]:
    """Let all cases start in turn, ``rounds`` times, on each profile; return the seconds of each.

    What took long is not repeated; after a boot it is left out.
    """
    seconds: dict[Key, list[float]] = {}
    for laid_out, volume in volumes.items():  # for nothing: what is hot is in this machine's memory then
        warm = Case("hydrated", hot=True, laid_out=laid_out)
        once(work, _doing(volume, image, warm, profiles[0]), "warm-up")
    for number in range(1, rounds + 1):
        for profile in profiles:
            for case in wanted:
                key = profile.name, case.name, case.boot
                if case.everywhere and profile != profiles[0]:
                    seconds[key] = seconds[profiles[0].name, case.name, case.boot]
                elif max(seconds.get((profile.name, case.name, after), [0.0])[0] for after in (0.0, case.boot)) < _LONG:
                    label = f"{number}/{rounds} {profile.name} {case.name}{' after a boot' if case.boot else ''}"
                    volume = volumes[case.laid_out]
                    seconds.setdefault(key, []).append(once(work, _doing(volume, image, case, profile), label))
    return seconds


def _doing(
    volume: Volume, image: Image, case: Case, profile: Profile
) -> Callable[[Path], tuple[float, dict[str, float], int]]:
    def do(folder: Path) -> tuple[float, dict[str, float], int]:
        if case.pulled:
            return pull(volume, image, profile, folder)
        with no_network():
            return start(volume, case, profile, folder)

    return do


def summary(seconds: dict[tuple[str, float], list[float]], volume: Volume, boot: float) -> dict[str, object]:
    """Return what the last line says of one application on one profile; ``volume`` is the one with the layout."""
    medians = {case: statistics.median(each) for case, each in seconds.items()}
    hydrated, plain = medians.get(("hydrated", 0.0)), medians.get(("plain", 0.0))
    memory = medians.get(("memory", 0.0))

    def figures(after: float) -> dict[str, object]:
        best = medians.get(("trace_layout", after))
        found = {
            f"{name}_s": _rounded(medians.get((name, after)))
            for name in ("full_read", "trace", "trace_layout", "prefetch", "whole", "rate")
        }
        return {
            **found,
            "gain_vs_plain": _ratio(plain, best),
            "gap_to_hydrated": _ratio(best, hydrated),
            "gap_to_memory": _ratio(medians.get(("prefetch", after)), memory),
        }

    layout = medians.get(("layout", 0.0))
    hot = volume.record.trace.hot_bytes if volume.record.trace else 0
    return {
        "memory_s": _rounded(memory),
        "hydrated_s": _rounded(hydrated),
        "plain_s": _rounded(plain),
        "layout_s": _rounded(layout),
        "pull_s": _rounded(medians.get(("pull", 0.0))),
        **figures(0.0),
        "layout_gain_vs_plain": _ratio(plain, layout),
        "hot_mib": round(min(hot, volume.data) / MIB),
        "volume_mib": round(volume.data / MIB),
        "rate_mib_s": round(_RATE * volume.data / _USUAL_SIZE, 1),
        f"after_{boot:.0f}_s_of_boot": figures(boot),
        "once": sorted({name for (name, _), each in seconds.items() if len(each) == 1}),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def _ratio(one: float | None, two: float | None) -> float | None:
    return round(one / two, 2) if one and two else None


def measure(
    apps: list[str], profiles: list[Profile], *, rounds: int, boot: float, folder: Path, only: set[str]
) -> dict[str, object]:
    """Run the benchmark with images and volumes cached below ``folder``; return what the last line says."""
    need_root("a benchmark of cold starts")
    events = Events(show)
    remove_leftovers(folder)
    result: dict[str, dict[str, object]] = {profile.name: {} for profile in profiles}
    wanted = [case for case in cases(boot) if case.name in only]
    with (
        lock(folder / "bake.lock", what="the benchmark"),
        serve_registry(folder / "registry", _port()) as host,
        work_folder(folder, "cold") as work,
        disk.private_mounts(),
    ):
        shelf = Shelf(host, folder / "registry/content", work, events)
        known = recipes(shelf)
        for name in apps:
            image = shelf.get(known[APPS[name].image])
            place = folder / "coldstart" / name
            volumes = {layout: bake(APPS[name], image, place, events, layout=layout) for layout in (False, True)}
            for layout, volume in volumes.items():
                hot = len(merged(volume.trace))
                say(f"{name}, {'laid out' if layout else 'plain'}: {hot} of {volume.data // EBS_BLOCK} blocks are hot")
            found = compare(volumes, image, wanted, profiles, rounds=rounds, work=work)
            for profile in profiles:
                mine = {(case, after): each for (where, case, after), each in found.items() if where == profile.name}
                result[profile.name][name] = summary(mine, volumes[True], boot)
    drive = dataclasses.asdict(profiles[0].drive)
    model = {"block_kib": EBS_BLOCK >> 10, "drive": drive, "rounds": rounds, "boot_s": boot}
    return {**result, "model": model}


def _port() -> int:
    import socket

    with socket.socket() as probe:
        return free_port() if probe.connect_ex(("127.0.0.1", _PORT)) == 0 else _PORT


def main() -> None:
    """Read the arguments, measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--apps", default=",".join(APPS), help="which applications, with commas between")
    parser.add_argument("--profiles", default=",".join(PROFILES), help="which profiles, with commas between")
    parser.add_argument("--drive", default="gp3", choices=DRIVES, help="what the volume is sold as")
    parser.add_argument("--rounds", type=int, default=5, help="how often each case starts")
    parser.add_argument("--boot", type=float, default=_BOOT, help="seconds of boot for those cases that use it")
    known = [case.name for case in cases(0.0)]
    default = ",".join(name for name in known if name != "whole")
    parser.add_argument("--cases", default=default, help="which cases, with commas between; the others are null")
    options = parser.parse_args()
    only = set(options.cases.split(","))
    apps, profiles = options.apps.split(","), options.profiles.split(",")
    if unknown := (set(apps) - set(APPS)) | (set(profiles) - set(PROFILES)) | (only - set(known)):
        known = [*APPS, *PROFILES, *known]
        raise InputError(f"no such thing: {', '.join(sorted(unknown))}", hint=f"choose from {', '.join(known)}")
    started = time.monotonic()
    folder = cache_folder() / "bench"
    behaving = [replace(PROFILES[profile], drive=DRIVES[options.drive]) for profile in profiles]
    result = measure(apps, behaving, rounds=options.rounds, boot=options.boot, folder=folder, only=only)
    say(f"done in {time.monotonic() - started:.0f} s")
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()

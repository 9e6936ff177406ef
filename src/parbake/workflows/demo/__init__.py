"""The demo: the main job end to end on one machine, with a real image, a real registry and a real boot.

A Python service with heavy imports is built and pushed to a registry on the loopback. The first act is short: the
image is baked into a volume, and started on this machine from that, and from a pull. The second one is a machine image:
it is booted without a network, the image is started in it, and then pulled and started again in the same machine.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from parbake.core import atomic, interrupts
from parbake.core.errors import VerificationFailed
from parbake.core.events import Events
from parbake.core.model import Plan, Platform
from parbake.core.netns import no_network
from parbake.core.ports import is_free
from parbake.core.run import Deadline, Process, need_root
from parbake.core.workspace import cache_folder, work_folder
from parbake.machine import base, disk
from parbake.machine.vm import accelerator
from parbake.records.held import held
from parbake.verify import Verification, compare_pull
from parbake.workflows import bake, build, verify
from parbake.workflows.demo import sample
from parbake.workflows.demo.outcome import STEPS, USUAL, Outcome, Starts
from parbake.workflows.demo.registry import HOST, free_port, serve_registry
from parbake.workflows.plan import BakeOptions, BakeResult

_BAKEFILE, _VOLUME = "parbake.yaml", "volume.yaml"
_REFERENCE = re.compile(rf"{re.escape(HOST)}:([0-9]+)/")
_BASE_SECONDS = 1800.0
_ENVIRONMENT = ("PARBAKE_CACHE", "PARBAKE_CACHE_KEY", "XDG_CACHE_HOME", "XDG_STATE_HOME")
"""Variables that say where the cache is, and with what key it is sealed."""


def run_demo(folder: Path, *, events: Events) -> Outcome:
    """Run the demo in a folder, which is kept, so that a second run finds what the first made.

    Raises VerificationFailed when the baked image does not start, EnvironmentProblem when a program is missing,
    CommandFailed when the registry ends.
    """
    begun = time.monotonic()
    need_root("the demo")
    accelerator()  # what is missing for the second act is told now
    events.note(f"{len(STEPS)} steps, each with the seconds that it takes {USUAL}")
    with work_folder(folder / "artefacts", "demo") as work, _base_ahead(work) as making:
        with _step("sample", events):
            bakefile, volume_file = lay_out(folder, events=events, cache=cache_folder())
        port = port_of(bakefile)
        with serve_registry(folder / "registry", port):
            with _step("image", events):
                build.build_images(bakefile, events)
            with _step("volume", events):
                volume = bake.bake(volume_file, events, BakeOptions(verify=False))
            interrupts.resume()
            with _step("here", events):
                here = _start_here(volume, port, work / "here", events)
            first_result = time.monotonic() - begun
            events.note(
                f"first result after {first_result:.0f} s: the container is up {here.baked:.1f} s after it is asked "
                f"for where it was baked, and {here.pulled:.1f} s where it is pulled{here.ratio}"
            )
            with _step("base", events):
                _wait(making)
                base.ensure(cache_folder(), events)  # with its error, if there was one
            with _step("machine", events):
                finished = bake.bake(bakefile, events, BakeOptions(verify=False))
            interrupts.resume()
            finished, machine = _start_in_machine(finished, work / "machine", events)
    return Outcome(
        volume=volume.record,
        record=finished.record,
        folder=finished.artefact.parent,
        changed=volume.changed or finished.changed,
        here=here,
        machine=machine,
        first_result=first_result,
        seconds=time.monotonic() - begun,
    )


@contextmanager
def _step(name: str, events: Events) -> Iterator[None]:
    """Mark one of the ``STEPS``."""
    what, seconds = STEPS[name]
    with events.stage(f"demo-{name}", f"[{list(STEPS).index(name) + 1}/{len(STEPS)}] {what} ({seconds} s)"):
        yield


@contextmanager
def _base_ahead(work: Path) -> Iterator[Process | None]:
    """Have the default base made beside the first act, in which processors are idle half the time; yield who does it.

    None where it is there. What goes wrong with it is told by the second act, which tries again.
    """
    if (cache_folder() / "base" / base.describe(Platform.host()).file_name).exists():
        yield None
        return
    env = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    with Process([sys.executable, "-I", "-m", base.__name__], log=work / "base.log", env=env) as process:
        yield process


def _wait(process: Process | None) -> None:
    deadline = Deadline(_BASE_SECONDS, "making the default base image")
    while process and process.alive:
        deadline.sleep(0.1)


def _start_here(finished: BakeResult, port: int, work: Path, events: Events) -> Starts:
    """Start the image from its volume without a network; then from an empty volume, with the registry's ``port``."""
    from parbake.coldstart.rehearsal import NotStarted, writable

    work.mkdir()
    plan, name = finished.record.plan, finished.artefact.name
    try:
        with (
            events.stage("start-baked", f"Start it from {name}"),
            held(finished.artefact, finished.record, work, events, known=finished.state) as bytes_,
            no_network(),
            writable(bytes_.path, work / "baked") as shown,
        ):
            baked = _start(shown, plan, work / "baked")
        with events.stage("start-pulled", "Pull it into an empty volume, and start it"), no_network(port):
            empty = work / "empty.raw"
            disk.make_filesystem(empty, "ext4", plan.size, name="pulled")
            pulled = _start(empty, plan, work / "pulled", pull=True)
    except NotStarted as error:
        raise VerificationFailed(f"{plan.images[0].reference} did not start on this machine: {error}") from error
    return Starts(baked=baked["start"], pull=pulled["pull"], start=pulled["start"])


def _start(volume: Path, plan: Plan, folder: Path, *, pull: bool = False) -> dict[str, float]:
    from parbake.coldstart.rehearsal import cold_start

    with disk.private_mounts(), disk.loop_device(volume) as device, ExitStack() as stack:
        disk.read_ahead(device)
        return cold_start(device, plan.artefact.filesystem, plan, plan.images[0], folder, stack, pull=pull)


def _start_in_machine(finished: BakeResult, work: Path, events: Events) -> tuple[BakeResult, Starts]:
    """Start the image in a machine, first without a network; then one is plugged in, and it is pulled."""
    plan = finished.record.plan
    work.mkdir()
    with held(finished.artefact, finished.record, work, events, known=finished.state) as bytes_, ExitStack() as stack:
        with _step("boot", events):
            verification = stack.enter_context(Verification(bytes_.path, plan, events=events, folder=work))
            verdict = verification.verdict()
            record = verify.write_verdict(finished.artefact, finished.record, verdict)
            verify.judge(finished.artefact, verdict)
        with _step("pull", events):
            pulled = compare_pull(verification, plan.images[0])
    [baked] = [seen.start_seconds for seen in verdict.images if seen.reference == str(plan.images[0].reference)]
    starts = Starts(baked=baked or 0.0, pull=pulled.pull_seconds, start=pulled.start_seconds)
    return replace(finished, record=record), starts


def lay_out(folder: Path, *, events: Events, cache: Path) -> tuple[Path, Path]:
    """Write the sample's context and two Bakefiles for it; return that of the machine image and that of the volume.

    They stay as they are while the registry's port that they name can still be had.
    """
    sample.prepare(folder / sample.NAME, events=events, cache=cache)
    machine, volume = folder / _BAKEFILE, folder / _VOLUME
    port = port_of(machine) if machine.exists() and volume.exists() else 0
    if port and not is_free(port):
        events.warn(f"port {port} is taken: the demo's registry moves, and its image gets another name")
        port = 0
    if not port:
        reference = f"{HOST}:{free_port()}/demo/{sample.NAME}:1"
        atomic.replace(volume, sample.bakefile(reference, volume=True), mode=0o644)
        atomic.replace(machine, sample.bakefile(reference), mode=0o644)
    return machine, volume


def port_of(bakefile_path: Path) -> int:
    """Return the port of the demo's registry that a Bakefile names, 0 for none."""
    found = _REFERENCE.search(bakefile_path.read_text())
    return int(found[1]) if found else 0

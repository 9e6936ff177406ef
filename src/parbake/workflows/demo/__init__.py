"""The demo: the main job end to end on one machine, with a real image, a real registry and a real boot.

A Python service with heavy imports is built, pushed to a registry on the loopback, baked onto the default base, booted
without a network, started, and then, in the same machine, pulled and started again.
"""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from parbake.core import atomic, interrupts
from parbake.core.events import Events
from parbake.core.model import MIB, Frozen, Image
from parbake.core.ports import is_free
from parbake.core.run import Deadline, Process
from parbake.core.workspace import cache_folder, work_folder
from parbake.records import Record
from parbake.records.held import held
from parbake.verify import Verification, compare_pull
from parbake.workflows import bake, verify
from parbake.workflows.demo import sample
from parbake.workflows.plan import BakeOptions

FIRST_PORT = 5055
"""Where the demo's registry listens, unless something else does: it is part of the image's reference."""
_PORTS_TRIED = 100
_START_SECONDS = 30.0
_HOST = "127.0.0.1"
_BAKEFILE = "parbake.yaml"
_REFERENCE = re.compile(rf"{re.escape(_HOST)}:([0-9]+)/")


class Outcome(Frozen):
    """What the demo shows. Times are seconds; ``start_pulled`` has the pull in it."""

    record: Record
    folder: Path
    changed: bool
    start_pulled: float

    @property
    def image(self) -> Image:
        """The sample application."""
        return self.record.plan.images[0]

    @property
    def start_baked(self) -> float:
        """Seconds from asking the runtime until the baked image was up."""
        verdict = self.record.verdict
        starts = {image.reference: image.start_seconds for image in verdict.images} if verdict else {}
        return starts.get(self.image.reference) or 0.0

    def rows(self) -> tuple[tuple[str, str], ...]:
        """Return the table: what, and how much."""
        record, image, verdict = self.record, self.image, self.record.verdict
        raw = sum(layer.raw_size for layer in image.layers)
        how = {"kvm": "with KVM", "tcg": "in emulation", "none": ""}[verdict.accelerator] if verdict else ""
        boot = verdict.boot_seconds if verdict else None
        ratio = f" ({self.start_pulled / self.start_baked:.1f} times as long)" if self.start_baked else ""
        before = "" if self.changed else " (done before; nothing changed)"
        return (
            ("image", image.reference),
            ("image size", f"{image.size / MIB:.0f} MiB compressed, {raw / MIB:.0f} MiB unpacked"),
            ("bake", f"{record.seconds:.1f} s{before}"),
            ("boot", f"{boot:.1f} s {how}".rstrip() if boot is not None else "not booted"),
            ("container start, baked", f"{self.start_baked:.1f} s"),
            ("container start, pulled", f"{self.start_pulled:.1f} s{ratio}"),
            ("artefact", str(self.folder / record.artefact)),
            ("record", str(self.folder / record.file_name)),
        )


def run_demo(folder: Path, *, events: Events) -> Outcome:
    """Run the demo in a folder, which is kept, so that a second run finds what the first made.

    One machine shows both starts: first the baked one, without a network; then a network is plugged in, the image is
    removed and pulled. Raises VerificationFailed when the baked image does not start, EnvironmentProblem when a program
    is missing, CommandFailed when the registry ends.
    """
    bakefile = lay_out(folder, events=events, cache=cache_folder())
    with serve_registry(folder / "registry", port_of(bakefile)):
        finished = bake.bake(bakefile, events, BakeOptions(verify=False))
        interrupts.resume()
        plan = finished.record.plan
        with (
            work_folder(finished.artefact.parent, "demo") as work,
            held(finished.artefact, finished.record, work, events, known=finished.state) as bytes_,
            Verification(bytes_.path, plan, events=events, folder=work) as verification,
        ):
            record = verify.write_verdict(finished.artefact, finished.record, verification.verdict())
            verify.judge(finished.artefact, record.verdict)
            pulled = compare_pull(verification, plan.images[0])
    return Outcome(
        record=record, folder=finished.artefact.parent, changed=finished.changed, start_pulled=pulled.seconds
    )


def lay_out(folder: Path, *, events: Events, cache: Path) -> Path:
    """Write the sample's context and a Bakefile for it, and return the Bakefile.

    A Bakefile that is there stays as it is while the registry's port that it names can still be had.
    """
    sample.prepare(folder / sample.NAME, events=events, cache=cache)
    bakefile = folder / _BAKEFILE
    port = port_of(bakefile) if bakefile.exists() else 0
    if port and not is_free(port):
        events.warn(f"port {port} is taken: the demo's registry moves, and its image gets another name")
        port = 0
    if not port:
        reference = f"{_HOST}:{free_port()}/demo/{sample.NAME}:1"
        atomic.replace(bakefile, sample.bakefile(reference, sample.NAME), mode=0o644)
    return bakefile


def port_of(bakefile_path: Path) -> int:
    """Return the port of the demo's registry that a Bakefile names, 0 for none."""
    found = _REFERENCE.search(bakefile_path.read_text())
    return int(found[1]) if found else 0


def free_port(first: int = FIRST_PORT) -> int:
    """Return the first free TCP port of the loopback from ``first`` on, or any that the kernel has."""
    return next((port for port in range(first, first + _PORTS_TRIED) if is_free(port)), 0) or _any_port()


def _any_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])


@contextmanager
def serve_registry(folder: Path, port: int) -> Iterator[str]:
    """Serve a registry (Debian's docker-registry) on the loopback and yield its ``host:port``.

    Its content stays in ``folder``. Raises EnvironmentProblem when it is not installed, CommandFailed when it ends
    (the port is taken), DeadlineExceeded when it does not listen.
    """
    folder.mkdir(parents=True, exist_ok=True)
    host = f"{_HOST}:{port}"
    config = {
        "version": 0.1,
        "log": {"level": "info", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(folder.absolute() / "content")}},
        "http": {"addr": host},
    }
    file, log = folder / "config.json", folder / "log"  # YAML is a superset of JSON
    atomic.replace(file, json.dumps(config))
    log.unlink(missing_ok=True)
    with Process(["docker-registry", "serve", str(file)], log=log) as process:
        deadline = Deadline(_START_SECONDS, f"the registry listens on {host}")
        # Its own word, since something else may listen there.
        while f"listening on {host}" not in process.tail:
            process.check_alive()
            deadline.sleep(0.05)
        yield host

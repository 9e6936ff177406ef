"""The demo: its registry, its port, its table, its sample application, and all of it with a small one.

Everything is built, baked, started and pulled for real, on this machine: in emulation the sample's imports alone would
take a minute. That such a machine image boots, and that a machine pulls from this host, is proven in tests/vm
(test_tutorial.py, verify/test_verify.py).
"""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from pathlib import Path

import pytest

from parbake import records
from parbake.cli import run
from parbake.core.errors import CommandFailed, EnvironmentProblem
from parbake.core.events import Event, Events
from parbake.core.plan import measure
from parbake.core.run import find
from parbake.core.workspace import cache_folder
from parbake.workflows import bake, demo
from parbake.workflows.demo import registry, sample
from parbake.workflows.demo.outcome import STEPS
from parbake.workflows.plan import BakeOptions
from parbake.workflows.trace import trace_of
from standins import booted_here
from standins.contexts import write_files
from standins.loopback import free_port
from standins.preloaded import start
from standins.runs import traces

pytestmark = pytest.mark.root

# Writes a root file system of one program where mmdebstrap would write hundreds of packages.
MMDEBSTRAP = """#!/bin/sh
echo "$*" >> {log}
for target; do :; done
mkdir -p $TMPDIR/root/bin && cp {busybox} $TMPDIR/root/bin/ && tar -C $TMPDIR/root -cf $target .
"""
CONTAINERFILE = """\
FROM scratch
ADD busybox /bin/busybox
ADD healthz /www/healthz
ENTRYPOINT ["/bin/busybox", "httpd", "-f", "-p", "8080", "-h", "/www"]
"""


@pytest.fixture(autouse=True)
def _own_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    """All demos begin to look at the same port: these are not to meet those of another run of the tests."""
    monkeypatch.setattr(registry.free_port, "__defaults__", (free_port(),))


def prepare(folder: Path, **_: object) -> Path:
    """Lay out a small application in the place of the sample."""
    busybox = Path("/bin/busybox").read_bytes()
    write_files(folder, {"Containerfile": CONTAINERFILE, "busybox": busybox, "healthz": "well\n"})
    (folder / "busybox").chmod(0o755)
    return folder


@pytest.mark.slow
def test_the_demo_bakes_starts_and_compares(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample, "prepare", prepare)
    booted_here.install(monkeypatch, "parbake.workflows.demo")
    assert run(["demo", str(tmp_path / "demo"), "--json", "--progress", "plain"]) == 0
    said = capsys.readouterr()
    told = said.err.splitlines()
    for number, (what, seconds) in enumerate(STEPS.values(), 1):
        assert f"==> [{number}/{len(STEPS)}] {what} ({seconds} s)" in told
    outcome = json.loads(said.out)
    after = outcome["first_result_seconds"]
    [first] = [line for line in told if line.startswith(f"    first result after {after:.0f} s: ")]
    assert told.index(first) < told.index(next(line for line in told if line.startswith("==> [5/")))
    assert 0 < after < outcome["seconds"]
    for which, base in (("volume", "none"), ("machine_image", "debian")):
        shown = outcome[which]
        assert shown["start_baked_seconds"] > 0
        assert 0 < shown["pull_seconds"] < shown["start_pulled_seconds"]
        assert records.read(Path(shown["record_path"])).plan.base.kind == base
    assert not outcome["volume"]["verified"], "nothing was booted with it"
    assert outcome["machine_image"]["verified"]
    made = records.read(Path(outcome["machine_image"]["record_path"]))
    [image] = made.plan.images
    assert made.verdict
    [started] = [seen for seen in made.verdict.images if seen.reference == str(image.reference)]
    assert started.pinned
    assert started.unpacked
    assert started.digest == image.target.digest
    assert made.base_digest
    assert traces(tmp_path) == []


@pytest.fixture
def mmdebstrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for mmdebstrap; returns its log, one line for each run."""
    log = tmp_path / "mmdebstrap.log"
    script = MMDEBSTRAP.format(log=log, busybox=find("busybox"))
    write_files(tmp_path / "bin", {"mmdebstrap": script})
    (tmp_path / "bin/mmdebstrap").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return log


def test_the_sample_is_made_once(tmp_path: Path, mmdebstrap: Path) -> None:
    cache = tmp_path / "cache"
    said: list[Event] = []
    for name in ("one", "two", "one"):
        context = sample.prepare(tmp_path / name, events=Events(said.append), cache=cache)
        assert {path.name for path in context.iterdir()} == {"Containerfile", "app.py", "rootfs.tar"}
    (recipe,) = mmdebstrap.read_text().splitlines()
    assert f"--include={','.join(sample.PACKAGES)}" in recipe
    assert [event.name for event in said if event.kind == "stage-end"] == ["sample"]
    assert not (cache / "sample" / ".parbake").exists()


@pytest.mark.slow
def test_the_sample_is_large_and_starts_when_baked(tmp_path: Path) -> None:
    """On this machine, from a volume: in emulation its imports alone would take a minute."""
    machine, path = demo.lay_out(tmp_path, events=Events(), cache=cache_folder())
    assert "base: debian\nartefact: qcow2\n" in machine.read_text()
    with registry.serve_registry(tmp_path / "registry", demo.port_of(path)):
        finished = bake.bake(path, Events(), BakeOptions(verify=False, rehearse=True, rehearse_in="host"))
    [image] = finished.record.plan.images
    assert measure([image], keep_layers=False).raw > 200 << 20
    trace = trace_of(finished.artefact, finished.record)
    assert trace.skipped == {}
    [start] = trace.parts
    assert start.seconds
    assert start.name == str(image.reference)
    assert any("/scipy/optimize/" in entry.path for entry in trace.files)


def test_what_is_made_ahead_ends_with_the_demo(tmp_path: Path, mmdebstrap: Path) -> None:
    """The base is begun before anything else. When the demo is interrupted, nothing of either is left."""
    program = tmp_path / "bin/mmdebstrap"
    program.write_text(f"#!/bin/sh\necho $$ >> {mmdebstrap}\nexec sleep 600\n")
    environment = {**os.environ, "PARBAKE_CACHE": str(tmp_path / "cache")}
    command = start(["demo", str(tmp_path / "demo"), "--progress", "none"], environment, tmp_path)
    until = time.monotonic() + 60
    while not mmdebstrap.exists() or len(mmdebstrap.read_text().split()) < 2:
        assert time.monotonic() < until, "the base's mmdebstrap and the sample's run at once"
        time.sleep(0.02)
    os.kill(command.pid, signal.SIGINT)
    command.communicate()
    assert command.wait() == 130
    assert traces(tmp_path) == []
    assert [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


def test_without_a_package_mirror(tmp_path: Path, mmdebstrap: Path) -> None:
    program = tmp_path / "bin" / "mmdebstrap"
    program.write_text("#!/bin/sh\necho E: cannot fetch >&2; exit 25\n")
    with pytest.raises(EnvironmentProblem, match="E: cannot fetch") as caught:
        sample.prepare(tmp_path / "one", events=Events(), cache=tmp_path / "cache")
    assert "apt-get update" in caught.value.hint
    assert not mmdebstrap.exists()
    assert not (tmp_path / "cache" / "sample" / ".parbake").exists()


def test_the_registry_keeps_what_it_holds(tmp_path: Path) -> None:
    port = registry.free_port()
    for _ in range(2):
        with registry.serve_registry(tmp_path / "registry", port) as host:
            assert host == f"127.0.0.1:{port}"
            with socket.create_connection(("127.0.0.1", port), timeout=5):
                pass
        assert registry.free_port(port) == port


def test_a_taken_port_moves_the_registry(tmp_path: Path, mmdebstrap: Path) -> None:
    said: list[Event] = []
    folder = tmp_path / "demo"
    bakefile, volume = demo.lay_out(folder, events=Events(said.append), cache=tmp_path / "cache")
    port = demo.port_of(bakefile)
    with socket.create_server(("127.0.0.1", port)):
        assert registry.free_port(port) != port
        demo.lay_out(folder, events=Events(said.append), cache=tmp_path / "cache")
        assert demo.port_of(bakefile) not in {0, port}
        assert demo.port_of(volume) == demo.port_of(bakefile)
        with (
            pytest.raises(CommandFailed, match="docker-registry ended"),
            registry.serve_registry(folder / "registry", port),
        ):
            pytest.fail("it cannot listen there")
    assert f"port {port} is taken" in said[-1].text
    assert mmdebstrap.exists()

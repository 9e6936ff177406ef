"""The demo's own parts: its registry, its port, its context; the steps of the flow are stand-ins here."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from parbake import demo, sample
from parbake.bakefile import load
from parbake.build import build
from parbake.errors import CommandFailed, EnvironmentProblem
from parbake.events import Event, Events
from parbake.model import HttpProbe, Image, ImageVerdict, Platform, Verdict
from parbake.reference import Reference
from parbake.registry import Registry
from parbake.run import find
from tests.support.specs import write_files

pytestmark = pytest.mark.root

# Writes a root file system of one program where mmdebstrap would write hundreds of packages.
MMDEBSTRAP = """#!/bin/sh
echo "$*" >> {log}
for target; do :; done
mkdir -p $TMPDIR/root/bin && cp {busybox} $TMPDIR/root/bin/ && tar -C $TMPDIR/root -cf $target .
"""


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
    assert "--include=python3-pandas,python3-scipy" in recipe
    assert [event.name for event in said if event.kind == "stage-end"] == ["sample"]
    assert not list((cache / "sample" / ".parbake").iterdir())


def test_without_a_package_mirror(tmp_path: Path, mmdebstrap: Path) -> None:
    program = tmp_path / "bin" / "mmdebstrap"
    program.write_text("#!/bin/sh\necho E: cannot fetch >&2; exit 25\n")
    with pytest.raises(EnvironmentProblem, match="E: cannot fetch") as caught:
        sample.prepare(tmp_path / "one", events=Events(), cache=tmp_path / "cache")
    assert "apt-get update" in caught.value.hint
    assert not mmdebstrap.exists()
    assert not list((tmp_path / "cache" / "sample" / ".parbake").iterdir())


class Steps:
    """Builds and pushes for real; bakes and boots nothing."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self.images: list[Image] = []

    def bake(self, bakefile: Path) -> demo.Baked:
        (entry,) = load(bakefile).images
        assert entry.build
        assert entry.startup
        assert entry.startup.up == HttpProbe(port=8080, path="/healthz")
        # The stand-in's root file system has no Python: only the folder's first lines are built.
        lines = entry.build.file.read_text().splitlines()
        entry.build.file.write_text("\n".join(line for line in lines if line.startswith(("FROM", "ADD", "COPY"))))
        work = self.cache.parent / "work"
        work.mkdir(exist_ok=True)
        built = build(
            entry.build,
            entry.parsed,
            Platform.host(),
            options={},
            events=Events(),
            work=work,
            cache=self.cache,
        )
        self.images.append(built.image)
        return demo.Baked(
            artefact=Path("/a.qcow2"), record=Path("/a.json"), image=built.image, seconds=0.0 if built.reused else 12.5
        )

    def verify(self, record: Path) -> Verdict:
        assert record == Path("/a.json")
        start = ImageVerdict(reference=self.images[-1].reference, start_seconds=2.0)
        return Verdict(passed=True, accelerator="tcg", boot_seconds=30.0, images=(start,))

    def start_pulled(self, baked: demo.Baked, registry: str) -> float:
        with Registry() as reached:
            assert reached.resolve(Reference.parse(baked.image.reference), Platform.host()).reference.startswith(
                registry
            )
        return 9.0


def test_the_story_and_its_repetition(tmp_path: Path, mmdebstrap: Path) -> None:
    folder, steps = tmp_path / "demo", Steps(tmp_path / "cache")
    first = demo.tell(folder, steps, events=Events(), cache=steps.cache)
    rows = dict(first.rows())
    assert rows["bake"] == "12.5 s"
    assert rows["boot"] == "30.0 s in emulation"
    assert rows["container start, baked"] == "2.0 s"
    assert rows["container start, pulled"] == "9.0 s (4.5 times as long)"
    assert rows["image"] == f"127.0.0.1:{demo.port_of(folder / 'parbake.yaml')}/demo/forecast:1"
    assert "MiB unpacked" in rows["image size"]

    second = demo.tell(folder, steps, events=Events(), cache=steps.cache)
    assert second.baked.image.manifest == first.baked.image.manifest
    assert dict(second.rows())["bake"] == "nothing to do: baked before"
    assert mmdebstrap.read_text().count("\n") == 1


def test_a_taken_port_moves_the_registry(tmp_path: Path, mmdebstrap: Path) -> None:
    said: list[Event] = []
    folder = tmp_path / "demo"
    bakefile = demo.lay_out(folder, events=Events(said.append), cache=tmp_path / "cache")
    port = demo.port_of(bakefile)
    with socket.create_server(("127.0.0.1", port)):
        assert demo.free_port(port) != port
        demo.lay_out(folder, events=Events(said.append), cache=tmp_path / "cache")
        assert demo.port_of(bakefile) not in {0, port}
        with (
            pytest.raises(CommandFailed, match="docker-registry ended"),
            demo.serve_registry(folder / "registry", port),
        ):
            pytest.fail("it cannot listen there")
    assert f"port {port} is taken" in said[-1].text
    assert mmdebstrap.exists()

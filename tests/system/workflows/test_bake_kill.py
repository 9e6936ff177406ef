"""Kill a bake at every boundary of every stage: nothing is leaked, and the same command goes on.

The boundaries are those that a whole run was seen to pass. Each run but the last is killed at one of them, and goes
on from what the run before left: it has to come further than that one before it is killed itself.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from parbake import records
from parbake.core.run import Deadline
from standins import disks
from standins.command import Corner, Done, Running, digests_of
from standins.faulty_proxy import FaultyProxy, Stall
from standins.images import image, layer, push
from standins.leaks import files, snapshot
from standins.registry import DockerRegistry

pytestmark = pytest.mark.root

# Stages that take this long are also killed in their middle (seconds).
LONG = 0.2
# What is closer to each other than this is one boundary (seconds): killing takes as long.
INSTANT = 0.003
DIGEST = re.compile(r"sha256:[0-9a-f]+")
KILLER = str(Path(__file__).parents[3] / "standins" / "kill_at_syscall.py")
QEMU = "qemu-system-x86_64 -name"
BAKE = ("bake", "--no-verify", "--json", "--progress", "json")


type Kind = Callable[[Path, str], Corner]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    with DockerRegistry(tmp_path_factory.mktemp("registry")) as running:
        noise = b"".join(hashlib.sha256(b"%d" % number).digest() for number in range(60_000))
        push(running.url, "team/app", image(layer({"etc/": None, "etc/motd": b"hi\n"}), layer({"app": noise})), "1")
        yield running


def volume(folder: Path, host: str) -> Corner:
    """A volume with one image from a registry and one that is built and pushed."""
    corner = Corner(folder)
    corner.write("app/Containerfile", "FROM scratch\nCOPY data /data\n")
    corner.write("app/data", folder.name)
    images = f"[{host}/team/app:1, {{reference: '{host}/{folder.name}/built:1', build: app}}]"
    corner.write("parbake.yaml", f"version: 1\nbase: none\nsize: 64MiB\nimages: {images}\n")
    return corner


def machine(folder: Path, host: str, *, boots: bool = False) -> Corner:
    """A machine image from a small base of a user's, as qcow2; with ``boots`` its boot code goes round for ever."""
    corner = Corner(folder)
    tree = disks.root_tree(folder / "tree")
    for name in ("usr/bin/containerd", "etc/containerd/config.toml"):
        corner.write(f"tree/{name}", "")
    base = disks.machine(folder / "base.raw", "dos" if boots else "gpt", "ext4", tree)
    disks.sh("fallocate", "--dig-holes", base)
    if boots:
        with base.open("r+b") as disk:
            disk.write(b"\xeb\xfe")  # jmp $
    corner.write(
        "parbake.yaml",
        f"version: 1\nbase: {{file: base.raw}}\nartefact: qcow2\nsize: 128MiB\nimages: [{host}/team/app:1]\n",
    )
    return corner


@dataclass(frozen=True)
class Boundary:
    """A point that a run passes: the ``count``-th event of a kind with a name, and how long after it (seconds)."""

    kind: str
    name: str
    count: int = 1
    after: float = 0.0


def named(events: Iterable[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], Boundary]]:
    """Name what a run passes: layers by their order, since digests of what is built differ."""
    passed: Counter[tuple[str, str]] = Counter()
    for event in events:
        name = event["name"] or DIGEST.sub("", event["text"])
        passed[event["kind"], name] += 1
        yield event, Boundary(event["kind"], name, passed[event["kind"], name])


def boundaries(seen: list[dict[str, Any]]) -> list[Boundary]:
    """Return what a whole run passed, in order; of those at the same instant the first, of progress the first."""
    found: list[Boundary] = []
    lengths = {event["name"]: event["seconds"] for event in seen if event["kind"] == "stage-end"}
    at = 0.0
    for event, boundary in named(seen):
        progress = event["kind"] == "task-progress"
        if event["kind"] in {"note", "warning"} or event["at"] - at < INSTANT or (progress and boundary.count > 1):
            continue
        at = event["at"]
        found.append(boundary)
        if event["kind"] == "stage-start" and lengths[boundary.name] >= LONG:
            found.append(replace(boundary, after=lengths[boundary.name] / 2))
    return found


def kill_at(run: Running, boundary: Boundary, number: int = signal.SIGKILL, *, group: bool = True) -> Done:
    """Send a signal at a boundary and return how the run ended; 0 when it did not pass there."""
    wanted = replace(boundary, after=0.0)
    # A layer that comes fast shows no progress this time.
    instead = replace(wanted, kind="task-end") if wanted.kind == "task-progress" else wanted
    for _, passed in named(run.events()):
        if passed in {wanted, instead}:
            time.sleep(boundary.after)
            run.kill(number, group=group)
            break
    return run.finish()


def check_after_kill(corner: Corner) -> None:
    """Nothing lives on; of a build's cgroup, which no kernel removes, an empty folder stays until the next run."""
    assert corner.leaked(cgroups=False) == []
    assert files(corner.tmp) == set()
    check_artefacts(corner)


def check_artefacts(corner: Corner) -> None:
    """What has a record is whole; what has none is neither listed nor taken for an artefact."""
    listed = {record.artefact for _, record in records.find(corner.output)}
    for path in corner.output.glob("*.json"):
        subject = json.loads(path.read_text())["subject"][0]
        artefact = corner.output / subject["name"]
        assert subject["digest"]
        assert subject["digest"].items() <= digests_of(artefact).items()
        assert artefact.name in listed
    visible = {
        path.name for path in corner.output.glob("*") if path.suffix not in {".json", ".blocks"} and path.name[0] != "."
    }
    assert listed <= visible


def check_end(corner: Corner) -> None:
    """The same command succeeds, with the same key, and nothing is left for `parbake clean`."""
    key = corner.bake()["key"]  # what is to be built has a key only then
    assert corner.parbake("plan", "--json").document["key"] == key
    check_artefacts(corner)
    assert corner.parbake("clean", "--json").document["removed"] == []
    assert corner.left() == []
    assert corner.leaked() == []
    assert corner.bake()["changed"] is False


@pytest.mark.slow
@pytest.mark.parametrize("kind", [volume, machine])
def test_killed_at_every_boundary(kind: Kind, tmp_path: Path, registry: DockerRegistry) -> None:
    whole = kind(tmp_path / "whole", registry.host)
    with whole.start(*BAKE) as run:
        done = run.finish()
        passed = boundaries(run.seen)
        stages = {event["name"] for event in run.seen if event["kind"] == "stage-start"}
    assert done.code == 0, done
    assert stages >= {"fill", "check", "digest"}, "the events of the stages have changed their form"

    corner = kind(tmp_path / "killed", registry.host)
    too_late = 0
    for boundary in passed:
        with corner.start(*BAKE) as run:
            done = kill_at(run, boundary)
        if done.code == 0:  # there was nothing more to do, or the end came before the signal
            too_late += 1
            shutil.rmtree(corner.output)
            continue
        assert done.code == -signal.SIGKILL, f"{boundary}: {done}"
        check_after_kill(corner)
    assert too_late <= len(passed) // 4
    check_end(corner)


def test_only_parbake_is_killed(tmp_path: Path, registry: DockerRegistry) -> None:
    """Its programs, of which nobody tells that it is gone, end with it."""
    corner = machine(tmp_path / "alone", registry.host)
    for stage in ("copy", "fill", "convert"):
        with corner.start(*BAKE) as run:
            assert kill_at(run, Boundary("stage-start", stage), group=False).code == -signal.SIGKILL
        check_after_kill(corner)
    check_end(corner)


def test_interrupted(tmp_path: Path, registry: DockerRegistry) -> None:
    """Ctrl-C, which the terminal sends to all of the group, and SIGTERM, which a supervisor sends to parbake alone."""
    corner = volume(tmp_path / "interrupted", registry.host)
    for boundary, number in (
        (Boundary("stage-start", "build"), signal.SIGINT),
        (Boundary("stage-start", "fill"), signal.SIGINT),
        (Boundary("stage-start", "fill"), signal.SIGTERM),
        (Boundary("task-end", "layer "), signal.SIGINT),
        (Boundary("task-end", "layer "), signal.SIGTERM),
        (Boundary("stage-start", "format"), signal.SIGINT),
    ):
        with corner.start(*BAKE) as run:
            done = kill_at(run, boundary, number, group=number == signal.SIGINT)
        check_interrupted(corner, done)
    check_end(corner)


@pytest.mark.slow
def test_interrupted_at_any_moment(tmp_path: Path, registry: DockerRegistry) -> None:
    """Also before there are events to see, between them, and again while it cleans up."""
    corner = volume(tmp_path / "moments", registry.host)
    began = time.monotonic()
    assert corner.bake()["changed"]
    whole = time.monotonic() - began
    chance = random.Random(20)
    interrupted = 0
    for number in range(10):
        corner.write("app/data", f"{number}")  # something to build and to push each time
        with corner.start(*BAKE, "--force") as run:
            wait_until_it_listens(run)
            time.sleep(whole * number / 20 * chance.uniform(0.9, 1.1))
            for _ in range(number % 2 + 1):
                run.kill(chance.choice([signal.SIGINT, signal.SIGTERM]), group=number % 3 == 0)
                time.sleep(chance.uniform(0, 0.1))
            done = run.finish()
        assert done.code in {0, 130}, done  # 0: it was done before the signal came
        assert done.document.get("error") == ("Interrupted" if done.code else None)
        assert corner.left() == []
        assert corner.leaked() == []
        interrupted += done.code == 130
    assert interrupted
    check_end(corner)


def wait_until_it_listens(run: Running) -> None:
    """Before Python has begun with the first line of ours, a signal is the system's: it kills."""
    deadline = Deadline(60, "parbake listens for signals")
    caught = 0
    while not caught & 1 << (signal.SIGTERM - 1):  # proc(5): a bit for each signal that has a handler
        status = Path(f"/proc/{run.pid}/status").read_text()
        caught = int(status.partition("SigCgt:")[2].split()[0], 16)
        deadline.sleep(0.005)


def check_interrupted(corner: Corner, done: Done) -> None:
    """It says so, exits with 130, and has cleaned up by then."""
    assert done.code == 130, done
    assert done.document["error"] == "Interrupted"
    assert "run the same command again" in done.said
    assert corner.left() == []
    assert list(corner.output.glob("*")) == []
    assert corner.leaked() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_stopped_while_a_registry_is_silent(number: int, tmp_path: Path, registry: DockerRegistry) -> None:
    """In the middle of a layer whose next bytes do not come: nobody waits for them."""
    with FaultyProxy(registry.url) as proxy:
        proxy.faults.extend([Stall(500_000, 3600)] * 20)
        corner = Corner(tmp_path / "silent")
        corner.write("parbake.yaml", f"version: 1\nbase: none\nsize: 64MiB\nimages: ['{proxy.host}/team/app:1']\n")
        with corner.start(*BAKE) as run:
            for _ in range(2):
                run.wait_for("task-start", "layer")
            run.kill(number)
            done = run.finish()
        if number == signal.SIGKILL:
            check_after_kill(corner)
        else:
            check_interrupted(corner, done)
        proxy.faults.clear()
        check_end(corner)


@pytest.mark.parametrize("force", [False, True])
def test_killed_between_artefact_and_record(force: bool, tmp_path: Path, registry: DockerRegistry) -> None:
    """An artefact without its record is none: not listed, replaced by the next bake, removed by `parbake clean`."""
    corner = machine(tmp_path / "between", registry.host)
    flags = ("--force",) if force else ()
    if force:
        corner.bake()
    name = corner.parbake("plan", "--json").document["artefact_name"]
    for then in ("clean", "bake"):
        with corner.start("os.rename:2", f"/{name}.json", *BAKE, *flags, script=KILLER) as run:
            assert run.finish().code == -signal.SIGKILL
        assert (corner.output / name).exists()
        assert not (corner.output / f"{name}.json").exists()
        assert corner.parbake("list", "--json").document == []
        check_after_kill(corner)
        if then == "clean":
            removed = corner.parbake("clean", "--json").document["removed"]
            assert str(corner.output / name) in removed
            assert files(corner.output) == set()
    check_end(corner)


@pytest.mark.parametrize("then", ["clean", "bake"])
def test_killed_before_the_artefact_appears(then: str, tmp_path: Path, registry: DockerRegistry) -> None:
    """What is built waits: the next bake takes it, and `parbake clean` removes it."""
    corner = machine(tmp_path / "waits", registry.host)
    with corner.start("os.rename", "/unfinished", *BAKE, script=KILLER) as run:
        assert run.finish().code == -signal.SIGKILL
    assert [path.name for path in corner.output.iterdir()] == [".parbake"]
    check_after_kill(corner)
    if then == "clean":
        assert corner.parbake("clean", "--json").document["removed"]
        assert files(corner.output) == set()
    with corner.start(*BAKE) as run:
        assert run.finish().document["changed"] is True
    built = [event["name"] for event in run.seen if event["kind"] == "stage-start" and event["name"] == "fill"]
    assert bool(built) is (then == "clean")
    check_end(corner)


def test_what_somebody_put_beside_the_artefacts_stays(tmp_path: Path, registry: DockerRegistry) -> None:
    """Also a disk image with a name as ours that has no record: it was not there when a run was killed."""
    corner = machine(tmp_path / "beside", registry.host)
    corner.output.mkdir()
    for name in ("beside-0123456789ab.qcow2", "notes.txt"):
        (corner.output / name).write_text("mine")
    with corner.start(*BAKE) as run:
        kill_at(run, Boundary("stage-start", "fill"))
    assert all("mine" not in path for path in corner.parbake("clean", "--json").document["removed"])
    assert files(corner.output) == {"beside-0123456789ab.qcow2", "notes.txt"}


def test_prune_is_killed(tmp_path: Path, registry: DockerRegistry) -> None:
    """Whatever call it dies at: what lost its record goes with the next cleaning."""
    corner = machine(tmp_path / "pruned", registry.host)
    name = corner.bake()["artefact"]
    prune = ("prune", "--keep", "0", "--json")
    for call, end, listed in (
        ("os.rename", "/unfinished", {name}),
        ("os.remove", f"/{name}.json", {name}),
        ("os.remove", f"/{name}", set()),
    ):
        with corner.start(call, end, *prune, script=KILLER) as run:
            assert run.finish().code == -signal.SIGKILL
        assert {record.artefact for _, record in records.find(corner.output)} == listed
        assert (corner.output / name).exists()
    assert str(corner.output / name) in corner.parbake("clean", "--json").document["removed"]
    assert files(corner.output) == set()


def test_killed_while_the_default_base_is_made(tmp_path: Path, registry: DockerRegistry) -> None:
    corner = Corner(tmp_path / "base")
    corner.write("parbake.yaml", f"version: 1\nimages: ['{registry.host}/team/app:1']\n")
    for group in (True, False):
        with corner.start(*BAKE) as run:
            kill_at(run, Boundary("stage-start", "base-packages", after=1.5), group=group)
        check_after_kill(corner)
    assert corner.parbake("clean", "--json").document["removed"]
    assert corner.left() == []


def test_killed_while_the_machine_boots(tmp_path: Path, registry: DockerRegistry) -> None:
    """Verification: QEMU goes, and so do its overlays."""
    corner = machine(tmp_path / "boots", registry.host, boots=True)
    corner.bake()
    before = files(corner.output)
    for number, group, code in (
        (signal.SIGKILL, True, -signal.SIGKILL),
        (signal.SIGKILL, False, -signal.SIGKILL),
        (signal.SIGTERM, False, 130),
        (signal.SIGINT, True, 130),
    ):
        with corner.start("bake", "--progress", "json") as run:
            wait_for_qemu(corner)
            run.kill(number, group=group)
            assert run.finish().code == code
        check_after_kill(corner)
    assert files(corner.output) == before, "an interrupted verification leaves nothing, and no verdict"
    assert corner.parbake("clean", "--json").document["removed"] == []


def wait_for_qemu(corner: Corner) -> None:
    deadline = Deadline(120, "QEMU starts")
    while not any(QEMU in process for process in snapshot(corner.folder).processes):
        deadline.sleep(0.05)


def test_init_is_killed(tmp_path: Path) -> None:
    """At the first file that it writes and at the last: the same command goes on."""
    corner = Corner(tmp_path / "init")
    with corner.start("init", "--json") as run:
        written = [Path(path).name for path in run.finish().document["written"]]
    assert written[-1] == "parbake.yaml"
    whole = files(corner.folder)
    for name in (written[0], written[-1]):
        killed = Corner(tmp_path / f"init-{name}")
        with killed.start("os.rename", f"/{name}", "init", script=KILLER) as run:
            assert run.finish().code == -signal.SIGKILL
        assert killed.parbake("init").code == 0
        assert files(killed.folder) == whole

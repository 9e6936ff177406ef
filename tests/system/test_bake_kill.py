"""Kill a bake at every boundary of every stage: nothing is leaked, and the same command goes on.

The boundaries are those that a whole run was seen to pass. Each run but the last is killed at one of them, and goes
on from what the run before left: it has to come further than that one before it is killed itself.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from parbake import records
from tests.support import disks
from tests.support.bakes import Corner, Done, Running
from tests.support.images import image, layer, push
from tests.support.leaks import files
from tests.support.registry import DockerRegistry

pytestmark = pytest.mark.root

# Stages that take this long are also killed in their middle (seconds).
LONG = 0.2
# What is closer to each other than this is one boundary (seconds): killing takes as long.
INSTANT = 0.003
# What a run does not do again when the one before was killed right after it.
DONE_ONCE = {"build", "push", "sha256 base.raw"}
DIGEST = re.compile(r"sha256:[0-9a-f]+")
KILLER = str(Path(__file__).parents[1] / "support" / "killer.py")
BAKE = ("bake", "--no-verify", "--json", "--progress", "json")


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
    assert corner.leaked() == []
    assert files(corner.tmp) == set()
    check_artefacts(corner)


def check_artefacts(corner: Corner) -> None:
    """What has a record is whole; what has none is neither listed nor taken for an artefact."""
    listed = {record.artefact for _, record in records.find(corner.output)}
    for path in corner.output.glob("*.json"):
        subject = json.loads(path.read_text())["subject"][0]
        artefact = corner.output / subject["name"]
        assert hashlib.sha256(artefact.read_bytes()).hexdigest() == subject["digest"]["sha256"]
        assert artefact.name in listed
    visible = {path.name for path in corner.output.glob("*") if path.suffix != ".json" and path.name[0] != "."}
    assert listed <= visible


def check_end(corner: Corner, key: str) -> None:
    """The same command succeeds, with the same key, and nothing is left for `parbake clean`."""
    document = corner.bake()
    assert document["key"] == key
    check_artefacts(corner)
    assert corner.parbake("clean", "--json").document == {"removed": []}
    assert corner.left() == []
    assert corner.leaked() == []
    assert corner.bake()["changed"] is False


@pytest.mark.slow
@pytest.mark.parametrize("kind", [volume, machine])
def test_killed_at_every_boundary(kind: Any, tmp_path: Path, registry: DockerRegistry) -> None:
    whole = kind(tmp_path / "whole", registry.host)
    with whole.start(*BAKE) as run:
        done = run.finish()
        passed = boundaries(run.seen)
        stages = {event["name"] for event in run.seen if event["kind"] == "stage-start"}
    assert done.code == 0, done.said
    assert stages >= {"fill", "trim", "check", "digest"}, "the events of the stages have changed their form"

    corner = kind(tmp_path / "killed", registry.host)
    for boundary in passed:
        with corner.start(*BAKE) as run:
            done = kill_at(run, boundary)
        if done.code == 0 and boundary.name in DONE_ONCE:
            shutil.rmtree(corner.output)
            continue
        assert done.code == -signal.SIGKILL, f"{boundary}: {done}"
        check_after_kill(corner)
    check_end(corner, corner.parbake("plan", "--json").document["key"])

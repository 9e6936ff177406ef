"""The program that proves images within a machine, with a real containerd: what it says is what a kubelet would see."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from parbake.containerd import Daemon
from parbake.core import nodefiles
from parbake.core.model import Startup
from standins import started_as
from standins.containerd_support import Files, Made, SeeingDaemon, busybox, fill, pause, traces_of
from standins.newer import NEWER, program_of

pytestmark = pytest.mark.root

APP, LOOSE, OTHER, PAUSE = (f"registry.test/{name}:1" for name in ("app", "loose", "other", "pause"))


@cache
def app() -> Made:
    shell = ["/bin/busybox", "sh", "-c"]
    says: Files = {"etc/passwd": started_as.PASSWD, "etc/app": started_as.OUTSIDE}
    return busybox({"www/healthz": b"fine\n", **says}, Entrypoint=shell, Cmd=["echo ready; exec sleep 1000"])


@cache
def alone() -> Made:
    return busybox({"loose": b"1"})


class Node:
    """A containerd with images, and the prover beside it. ``sandbox`` is what its configuration says."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0
        self.bin = folder / "bin"
        self.bin.mkdir()

    def configured(self, sandbox: str) -> None:
        program = self.bin / "containerd"
        program.write_text(f"#!/bin/sh\necho '  sandbox_image = \"{sandbox}\"'\n")
        program.chmod(0o755)

    def prove(self, name: str, start: Startup | None = None, **more: Any) -> dict[str, Any]:
        how = start.model_dump(mode="json") if start else None
        subject = {"names": [name], "target": app().manifest.digest, "config": app().config.digest, "start": how}
        return self.run([{**subject, "sandbox": False, **more}])[0]

    def run(self, subjects: list[dict[str, Any]]) -> list[dict[str, Any]]:
        self.count += 1
        path = self.folder / "subjects"
        path.write_text(json.dumps(subjects))
        program = [sys.executable, "-SE", str(nodefiles.node_file("prove.py")), "containerd", str(path)]
        done = subprocess.run(
            program,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            env={
                "PATH": f"{self.bin}:{os.environ['PATH']}",
                "PARBAKE_SOCKET": str(self.folder / "run/containerd.sock"),
                "PARBAKE_LOGS": str(self.folder / f"logs{self.count}"),
                "PARBAKE_PLACES": str(self.folder / "places"),
                "PARBAKE_CGROUP": (self.folder / "cgroup").read_text(),
            },
        )
        assert done.returncode == 0, done.stderr
        lines = [line.partition(" ") for line in done.stdout.splitlines()]
        self.warnings = [words for kind, _, words in lines if kind == "warn"]
        return [json.loads(words) for kind, _, words in lines if kind == "proved"]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    folder = tmp_path_factory.mktemp("prove")
    made = Node(folder)
    with Daemon(folder / "store", folder / "fill") as daemon, daemon.client() as client:
        fill(client, PAUSE, pause())
        fill(client, APP, app())
        fill(client, OTHER, busybox({"other": b"1"}))
        fill(client, LOOSE, alone())
        client.images.put(LOOSE, alone().manifest, {"io.cri-containerd.pinned": ""})
    with SeeingDaemon(folder / "store", folder / "run", cri=True, sandbox_image=PAUSE, shown=folder) as daemon:
        (folder / "cgroup").write_text(daemon.cgroup_parent)
        made.configured(PAUSE)
        yield made
    assert traces_of(str(folder)) == []


@pytest.fixture(scope="module")
def newer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """The same with containerd 2."""
    folder = tmp_path_factory.mktemp("newer")
    made = Node(folder)
    program = program_of(NEWER)
    with Daemon(folder / "store", folder / "fill", containerd=program) as daemon, daemon.client() as client:
        fill(client, PAUSE, pause())
        fill(client, APP, app())
    options = {"cri": True, "sandbox_image": PAUSE, "containerd": program}
    with SeeingDaemon(folder / "store", folder / "run", shown=folder, **options) as daemon:
        (folder / "cgroup").write_text(daemon.cgroup_parent)
        made.configured(PAUSE)
        yield made
    assert traces_of(str(folder)) == []


def startup(**fields: Any) -> Startup:
    return Startup.model_validate({"watch": 0.2, **fields})


def test_an_image_starts_by_each_probe(node: Node) -> None:
    script = {"command": ("/bin/busybox", "sh", "-c"), "timeout": 20}
    serve = "exec busybox httpd -f -p 127.0.0.1"
    ways = (
        startup(up={"kind": "log", "pattern": "^rea[d]y$"}),
        startup(up={"kind": "running", "seconds": 0.3}),
        startup(**script, args=("test $WORD = it\\'s",), env={"WORD": "it's"}, up={"kind": "exit"}),
        startup(
            **script, args=("exec busybox httpd -f -p 127.0.0.1:18093 -h /www",), up={"kind": "tcp", "port": 18093}
        ),
        startup(**script, args=(f"{serve}:18094 -h /www",), up={"kind": "http", "port": 18094, "path": "/healthz"}),
    )
    for way in ways:
        proof = node.prove(APP, way)
        assert proof["problems"] == [], way
        assert proof["pinned"]
        assert 0 <= proof["start_seconds"] < 20
        assert proof["sandbox_seconds"] > 0


def test_an_image_starts_as_its_startup_says(node: Node, newer: Node) -> None:
    for machine in (node, newer):
        for how, said in ((started_as.HOW, started_as.SAYS), (started_as.BY_NUMBER, started_as.SAYS_BY_NUMBER)):
            proof = machine.prove(APP, how)
            assert (proof["problems"], started_as.lines(proof["output"])) == ([], said)
        assert machine.prove(APP, started_as.ASKED)["problems"] == []
        assert machine.prove(APP, started_as.NEVER)["problems"] == ["not up within 1 s"]
        [problem] = machine.prove(APP, started_as.HOW.model_copy(update={"user": "games"}))["problems"]
        assert "no users found" in problem or "no matching entries" in problem


def test_what_does_not_start_says_why(node: Node) -> None:
    script = ("/bin/busybox", "sh", "-c")
    proof = node.prove(APP, startup(command=script, args=("echo no model >&2; exit 7",)))
    assert proof["problems"] == ["it ended with code 7 (Error) before it was up"]
    assert proof["output"] == "no model"
    proof = node.prove(APP, startup(command=("/bin/gone",)))
    assert "/bin/gone" in proof["problems"][0], "the runtime's own words, which come in Huffman's code"
    assert "no such file" in proof["problems"][0]
    proof = node.prove(APP, startup(up={"kind": "log", "pattern": "never"}, timeout=1))
    assert proof["problems"] == ["not up within 1 s"]
    assert proof["output"] == "ready"


def test_what_crashes_while_it_is_watched_fails_and_what_still_runs_says_how_long(node: Node) -> None:
    script = {"command": ("/bin/busybox", "sh", "-c"), "up": {"kind": "running", "seconds": 0.2}, "watch": 2.5}
    crashed = node.prove(APP, startup(**script, args=("echo no database; busybox sleep 1; exit 7",)))
    assert crashed["problems"] == ["it was up, and ended with code 7 (Error) 1 s after its start"]
    assert crashed["output"] == "no database"
    runs = node.prove(APP, startup(**script, args=("exec busybox sleep 1000",)))
    assert (runs["problems"], runs["ran_seconds"] >= 2.5) == ([], True)


def test_a_port_of_the_machines_own_proves_nothing(node: Node) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        proof = node.prove(APP, startup(up={"kind": "tcp", "port": server.server_address[1]}))
        server.shutdown()
    assert "taken by the machine itself" in proof["problems"][0]


def test_a_bad_store_is_no_proof(node: Node) -> None:
    assert "has no image of this name" in node.prove("registry.test/none:1", startup())["problems"][0]
    assert "the plan says" in node.prove(OTHER, startup())["problems"][0]
    loose = node.prove(LOOSE, startup(), target=alone().manifest.digest, config=alone().config.digest)
    assert not loose["pinned"]
    assert "not pinned" in loose["problems"][0]
    assert "start_seconds" not in loose


def test_an_image_is_mounted_as_a_pods_volume(node: Node, newer: Node) -> None:
    proof = newer.prove(APP, startup(up={"kind": "mounted", "path": "/www/healthz"}))
    assert proof["problems"] == []
    assert proof["start_seconds"] >= 0
    gone = newer.prove(APP, startup(up={"kind": "mounted", "path": "/weights"}))
    assert "holds no /weights" in gone["problems"][0]
    older = node.prove(APP, startup(up={"kind": "mounted", "path": "/"}))
    assert "needs containerd 2.1 or later, and this is containerd 1.7" in older["problems"][0]
    assert "start_seconds" not in older


def test_further_names_are_looked_up(node: Node) -> None:
    assert node.prove(APP, names=[APP])["problems"] == []
    assert "none:1" in node.prove(APP, names=[APP, "registry.test/none:1"])["problems"][0]


def test_a_base_that_its_runtime_is_not_configured_for_yet(node: Node) -> None:
    """As EKS's AMIs before nodeadm has run: the pause image is there, but by another name than containerd's own."""
    made = {"names": [PAUSE], "target": pause().manifest.digest, "config": pause().config.digest, "start": None}
    try:
        node.configured("registry.test/absent/pause:3")
        proof = node.prove(APP, startup(up={"kind": "running", "seconds": 0.1}))
        assert proof["problems"] == []
        assert f"{PAUSE} was taken" in node.warnings[0]
        node.configured("registry.test/absent:9")
        first, second = node.run(
            [
                {**made, "sandbox": True, "names": ["registry.test/nowhere:1"]},
                {
                    "names": [APP],
                    "target": app().manifest.digest,
                    "config": app().config.digest,
                    "sandbox": False,
                    "start": startup(up={"kind": "running", "seconds": 0.1}).model_dump(mode="json"),
                },
            ]
        )
        assert "no image of this name" in first["problems"][0]
        assert "absent:9 is not in the store" in second["problems"][0]
    finally:
        node.configured(PAUSE)

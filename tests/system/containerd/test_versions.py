"""A store that parbake wrote, or one version of containerd filled, used by each: the machine's 1.7, and 2.x of nodes.

Each way an image is started as it came, after a garbage collection, after a pull that a pod of policy Always asks for,
and after a reboot; the node's containerd reads its configuration in either version of the format.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from parbake.coldstart.rehearsal.cold_start import LocalHost
from parbake.containerd import Cri, Daemon
from parbake.containerd.cri import log_text
from parbake.core import run
from parbake.core.model import MountedProbe, Platform, Startup
from parbake.core.run import CONTAINERD, Deadline
from parbake.images import pause
from parbake.machine import disk
from parbake.verify.mounted import look
from parbake.verify.starter import Started, Starter
from standins import containerd_support as support
from standins.every_layer_feature import busybox_layer, push_all, variety
from standins.images import image, push
from standins.newer import MACHINES, NEWER, program_of
from standins.registry import DockerRegistry
from standins.runs import bake, bakefile, traces
from standins.store import ctr, snapshot_folders
from standins.trees import differences, scan

pytestmark = [pytest.mark.root, pytest.mark.slow(60)]

Format = Literal["v2", "v3"]

FILLED = {"ext4": MACHINES, "xfs": NEWER}
"""File systems: parbake writes the store of an ext4 volume itself, a containerd (this one) that of an XFS volume."""
STARTED: tuple[tuple[str, Format], ...] = ((MACHINES, "v2"), (NEWER, "v2"), (NEWER, "v3"))


class NodeDaemon(Daemon):
    """A containerd with a node's configuration: it collects garbage by itself and discards layers that it unpacked."""

    def __init__(self, *arguments: Any, configured: Format, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._configured = configured

    def _configure(self) -> None:
        super()._configure()
        path = self.folder / "config.toml"
        text = re.sub(r'(?s)\[plugins\."io\.containerd\.gc\.v1\.scheduler"\].*?(?=\n\[)', "", path.read_text())
        if self._configured == "v3":
            path.write_text(text)
            text = run.run([self._program, "--config", str(path), "config", "migrate"]).text
            assert re.search(r"^version = [34]$", text, re.MULTILINE), "from 2.3 on, `config migrate` writes 4"
            head = "[plugins.'io.containerd.cri.v1.images']"
        else:
            head = '[plugins."io.containerd.grpc.v1.cri".containerd]'
        assert head in text
        text = re.sub(r"(?m)^\s*discard_unpacked_layers = .*\n", "", text)
        path.write_text(text.replace(head, f"{head}\ndiscard_unpacked_layers = true"))


@dataclass(frozen=True)
class World:
    """A registry with an image, and volumes baked from it, by file system.

    ``plain`` is an image that was baked under its tag alone.
    """

    folder: Path
    registry: DockerRegistry
    name: str
    plain: str
    volumes: Mapping[str, Path]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("versions")
    with pytest.MonkeyPatch.context() as patch, DockerRegistry(tmp_path_factory.mktemp("registry")) as registry:
        patch.setenv("PARBAKE_CACHE", str(folder / "cache"))
        patch.setenv("HOME", str(folder))
        runs = {"Cmd": ["/bin/busybox", "echo", "hello"], "Env": ["PATH=/bin"]}
        push(registry.url, "team/app", image(busybox_layer(), config=runs), "1")
        push(registry.url, "team/plain", image(busybox_layer(), config={**runs, "Labels": {"a": "b"}}), "1")
        name, plain, volumes = f"{registry.host}/team/app:1", f"{registry.host}/team/plain:1", {}
        for which, containerd in FILLED.items():
            patch.setenv(CONTAINERD, program_of(containerd))
            images: list[str | dict[str, Any]] = [name, {"reference": plain, "also_by_digest": False}]
            path = bakefile(folder / which, images, base="none", artefact={"kind": "volume", "filesystem": which})
            volumes[which] = Path(bake(path)["artefact_path"])
        patch.delenv(CONTAINERD)
        yield World(folder, registry, name, plain, volumes)
    assert traces(folder) == []


def starts(cri: Cri, name: str, logs: Path) -> bool:
    """Start an image as a kubelet would that may not pull; tell whether it said what it says."""
    with cri.pod("app", log_directory=logs) as pod:
        container = cri.create_container(pod, "app", name, log_path=f"{len(list(logs.glob('*')))}.log")
        cri.start_container(container)
        deadline = Deadline(60, "the container's end")
        while (status := cri.container_status(container)).state != "exited":
            deadline.sleep(0.02)
        return status.exit_code == 0 and log_text(Path(status.log_path).read_bytes()) == "hello\n"


@pytest.mark.parametrize(("started", "configured"), STARTED)
@pytest.mark.parametrize("filled", FILLED)
def test_a_store_is_used_by_every_version(
    world: World, tmp_path: Path, filled: str, started: str, configured: Format
) -> None:
    volume = tmp_path / "volume.raw"
    run.run(["cp", "--sparse=always", str(world.volumes[filled]), str(volume)])
    logs = tmp_path / "first/logs"
    with disk.private_mounts(), disk.mount(volume, tmp_path / "mnt", filesystem=filled) as mounted:

        def node(folder: str) -> NodeDaemon:
            options = {"cri": True, "sandbox_image": pause.REFERENCE, "containerd": program_of(started)}
            return NodeDaemon(mounted.path, tmp_path / folder, configured=configured, **options)

        with node("first") as daemon, daemon.client() as client:
            cri = Cri(client.connection, cgroup_parent=daemon.cgroup_parent)
            [major] = re.findall(r"^containerd v?([0-9]+)\.", cri.version())
            assert major == ("2" if started == NEWER else "1")
            status = cri.image_status(world.name)
            assert status
            assert status.pinned
            assert starts(cri, world.name, logs)
            before = {snapshot.name for snapshot in client.snapshots.list()}
            content = {info.digest for info in client.content.list()}

            client.gc()
            assert {snapshot.name for snapshot in client.snapshots.list()} == before
            assert {info.digest for info in client.content.list()} == content
            assert starts(cri, world.name, logs)

            assert cri.pull_image(world.name) == status.id
            pinned = {name: found.pinned for name in (world.name, world.plain) if (found := cri.image_status(name))}
            assert pinned == {world.name: True, world.plain: True}
            cri.pull_image(world.plain)
            found = cri.image_status(world.plain)
            assert found
            assert not found.pinned, "a kubelet's pull takes the pin from the tag, and here is no name by digest"
            client.gc()
            assert {snapshot.name for snapshot in client.snapshots.list()} == before
            assert starts(cri, world.name, logs)
            assert starts(cri, world.plain, logs)
        with node("second") as daemon, daemon.client() as client:
            assert starts(
                Cri(client.connection, cgroup_parent=daemon.cgroup_parent), world.name, daemon.folder / "logs"
            )


@pytest.mark.parametrize("started", [MACHINES, NEWER])
def test_an_image_is_a_pods_volume(world: World, tmp_path: Path, started: str) -> None:
    """Of containerd 2.1 and later; those before say what it takes, and nothing is taken for proven."""
    volume = tmp_path / "volume.raw"
    run.run(["cp", "--sparse=always", str(world.volumes["ext4"]), str(volume)])
    with (
        disk.private_mounts(),
        disk.mount(volume, tmp_path / "mnt", filesystem="ext4") as mounted,
        Daemon(
            mounted.path, tmp_path / "run", cri=True, sandbox_image=pause.REFERENCE, containerd=program_of(started)
        ) as daemon,
        daemon.client() as client,
    ):
        cri = Cri(client.connection, cgroup_parent=daemon.cgroup_parent)
        starter = Starter(LocalHost(), cri, stretch=1, pause=pause.REFERENCE, logs=str(tmp_path / "run/logs"))

        def seen(path: str) -> Started:
            return starter.start(world.name, Startup(up=MountedProbe(path=path)))

        there = seen("/bin")
        if started == MACHINES:
            [problem] = there.problems
            assert problem.startswith("an image volume needs containerd 2.1 or later, and this is containerd 1.7")
            assert there.seconds is None
            return
        assert there.problems == ()
        assert "busybox" in there.output.splitlines()
        assert there.seconds is not None
        assert there.seconds > 0
        assert seen("/").output.splitlines() == ["bin/"]
        assert seen("/bin/busybox").problems == ()
        assert seen("/weights").problems == ("the image is mounted, and holds no /weights",)
        # What is written to is no volume of a pod, and what no process sees is none either.
        at = tmp_path / "at"
        at.mkdir()
        assert "no image" in look(LocalHost().check, str(at), "/")[0]
        run.run(["mount", "-t", "tmpfs", "tmpfs", str(at)])
        assert "written to" in look(LocalHost().check, str(at), "/")[0]
        run.run(["mount", "-o", "remount,ro", str(at)])
        assert "empty folder" in look(LocalHost().check, str(at), "/")[0]
        run.run(["umount", str(at)])
        assert support.sandboxes(cri) == []


def test_trees_are_those_that_the_newer_one_unpacks(world: World, tmp_path: Path) -> None:
    """Images with every feature of a layer, baked, against the newer containerd's own pull of the same."""
    program = program_of(NEWER)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PARBAKE_CACHE", str(tmp_path / "cache"))
        built = variety()
        push_all(world.registry.url, built)
        names = [f"{world.registry.host}/team/{name}" for name in built]
        volume = Path(
            bake(bakefile(tmp_path / "here", names, base="none", artefact={"kind": "volume"}))["artefact_path"]
        )
    with (
        disk.private_mounts(),
        disk.mount(volume, tmp_path / "mnt", filesystem="ext4") as mounted,
        Daemon(tmp_path / "pulled", tmp_path / "run", containerd=program) as theirs,
        Daemon(mounted.path, tmp_path / "run-ours", containerd=program) as ours,
        theirs.client() as pulled,
        ours.client() as baked,
    ):
        began = time.time_ns()
        for name in names:
            ctr(theirs, "images", "pull", "--local", "--plain-http", "--platform", str(Platform.host()), name)
        pulling = range(began, time.time_ns())
        parents = {snapshot.name: snapshot.parent for snapshot in baked.snapshots.list()}
        chains = {snapshot.name: snapshot.parent for snapshot in pulled.snapshots.list()}
        assert len(chains) > 10
        for chain, parent in chains.items():
            assert parents[chain] == parent
            unpacked, written = (scan(snapshot_folders(client, (chain,))[-1]) for client in (pulled, baked))
            # Folders that no layer describes, and roots: dated by the moment of the pull.
            undated = frozenset(path for path, node in unpacked.items() if node.modified in pulling)
            assert differences(unpacked, written, ignore_times_of=undated) == []

"""The guest's script fills a real disk: blkid, mkfs, mount and containerd are the machine's own, the disk is a loop's.

Not as on an instance: ``lsblk`` says what the disk is (loop devices are no disks to it), and ``systemctl`` starts a
containerd of the test's own.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from parbake.builders.guest import Console, user_data
from parbake.core import run
from parbake.core.model import MIB, Artefact, Base, Image, Plan, Platform
from parbake.core.plan import make_plan
from parbake.core.reference import Reference
from parbake.core.run import Deadline
from parbake.images.registry import Registry
from parbake.machine import disk
from standins.containerd_support import traces_of
from standins.every_layer_feature import busybox_layer
from standins.guests import SHELLS, Node
from standins.images import image, push
from standins.registry import DockerRegistry

pytestmark = pytest.mark.root

PAUSE = "localhost/kubernetes/pause:latest"
CONFIG = """\
version = 2
root = "{root}"
state = "{folder}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = "{folder}/sock"
"""
SYSTEMCTL = """\
case "$*" in
"start containerd")
    [ -d "/proc/$(cat {folder}/pid)" ] && exit 0
    setsid {containerd} -c {folder}/config.toml >>{folder}/log 2>&1 </dev/null &
    echo $! >{folder}/pid ;;
"stop containerd")
    kill "$(cat {folder}/pid)"
    while [ -d "/proc/$(cat {folder}/pid)" ]; do /bin/sleep 0.05; done
    echo none >{folder}/pid ;;
*poweroff*) kill -9 0 ;;
esac
exit 0
"""


class Machine:
    """A node whose containerd and disks are real."""

    def __init__(self, folder: Path) -> None:
        self.node, self.folder = Node(folder / "node", SHELLS["dash"]), folder
        self.store = self.node.root / "var/lib/containerd"
        self.store.mkdir(parents=True)
        (folder / "pid").write_text("none\n")
        (folder / "config.toml").write_text(CONFIG.format(root=self.store, folder=folder))
        self.node.program("systemctl", SYSTEMCTL.format(containerd=shutil.which("containerd"), folder=folder))
        self.node.program("ctr", f'exec {shutil.which("ctr")} -a {folder}/sock "$@"\n')
        for name in ("blkid", "mount", "umount", "mkfs.ext4", "fstrim"):
            self.node.program(name, f'exec {shutil.which(name)} "$@"\n')
        self.node.program("lsblk", f"cat {folder}/disks\n")

    def ctr(self, *words: str) -> str:
        return run.run(["ctr", "-a", f"{self.folder}/sock", "-n", "k8s.io", *words]).text

    def names(self) -> set[str]:
        """Return what the store holds that containerd runs on now."""
        return set(self.ctr("images", "ls", "-q").split())

    def systemctl(self, what: str) -> None:
        run.run([str(self.node.folder / "bin/systemctl"), what, "containerd"])
        deadline = Deadline(120, "containerd answers")
        while what == "start" and run.run(["ctr", "-a", f"{self.folder}/sock", "version"], check=False).code:
            deadline.sleep(0.05)

    def attach(self, device: Path, size: int) -> None:
        (self.folder / "disks").write_text(f"{device.name} {size} disk\n")

    def runs(self, data: bytes) -> Console:
        console = Console("run-1")
        console.read(self.node.run(data))
        (self.node.folder / "console").unlink()
        shutil.rmtree(self.node.root / "run/parbake")  # as a power-off does
        return console

    def end(self) -> None:
        """Stop what a script that failed has left."""
        if (self.folder / "pid").read_text() != "none\n":
            self.systemctl("stop")
        run.run(["umount", "-q", str(self.store)], check=False)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path)
    with disk.private_mounts():  # where no program of another test takes its mounts along
        yield made
        made.end()
        assert traces_of(str(tmp_path)) == []


def test_a_disk_is_filled_and_found_again(machine: Machine, tmp_path: Path) -> None:
    with DockerRegistry(tmp_path / "registry") as registry, Registry({}) as client:
        for name in ("app", "pause"):
            push(registry.url, f"team/{name}", image(busybox_layer(), config={"Labels": {"is": name}}), "1")
        app = client.resolve(Reference.parse(f"{registry.host}/team/app:1"), Platform.host())
        plan = plan_of(app)
        machine.systemctl("start")
        machine.ctr("images", "pull", "--plain-http", f"{registry.host}/team/pause:1")
        machine.ctr("images", "tag", f"{registry.host}/team/pause:1", PAUSE)
        machine.ctr("images", "label", PAUSE, "io.cri-containerd.pinned=pinned")
        own = machine.names()
        machine.systemctl("stop")
        path = tmp_path / "volume.raw"
        path.touch()
        os.truncate(path, plan.size)
        with disk.loop_device(path) as device:
            machine.attach(Path(device), plan.size)
            console = machine.runs(user_data(plan, "run-1", "bake", limit=600, registries={}))
            console.judge([app], console.failure)
            assert console.warnings == []
            shown = run.run(["blkid", "-o", "value", "-s", "LABEL", "-s", "UUID", str(device)]).text.split()
            assert shown == ["parbake", disk.filesystem_uuid(plan.key)]
            again = machine.runs(user_data(plan, "run-1", "bake", limit=600, registries={}))
            assert "no disk of" in again.failure, "what holds something is never formatted"
            machine.systemctl("start")
            assert machine.names() == own, "the machine's own store is as it was"
            console = machine.runs(user_data(plan, "run-1", "verify", limit=600, registries={}))
            assert console.finished, console.failure
            assert machine.names() == {*app.names, PAUSE}
            machine.end()


def plan_of(app: Image) -> Plan:
    return make_plan(
        name="data",
        platform=Platform.host(),
        base=Base(kind="ami", identity="ami-1", size=20 * MIB),
        artefact=Artefact(kind="volume", format="snapshot"),
        images=[app],
        sandbox=None,
    )

"""The program that mounts a baked volume on a node: on loop devices, with the machine's containerd, dash and tools.

There is no systemd here: ``systemctl`` is a stand-in that notes what it is asked, and says whether containerd runs.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from parbake import records
from parbake.containerd import Cri, Daemon
from parbake.core import run
from parbake.core.model import Platform
from parbake.core.nodefiles import node_file
from parbake.machine import disk
from parbake.verify.store import look
from standins.images import image, layer, push
from standins.registry import DockerRegistry
from standins.runs import bake, bakefile, private_places
from standins.store import pull_by_ctr

__all__ = ["private_places"]
pytestmark = pytest.mark.root

MIB = 1 << 20
_RESOURCE = 24  # capabilities(7): CAP_SYS_RESOURCE, which the kernel asks for before it grows a mounted ext4
MAY_GROW_EXT4 = bool(int(re.findall(r"CapEff:\s*(\w+)", Path("/proc/self/status").read_text())[0], 16) >> _RESOURCE & 1)
PAUSE = "localhost/kubernetes/pause:latest"
SYSTEMCTL = """\
#!/bin/sh
echo "$*" >>"$NODE/asked"
[ "$1" != show ] || cat "$NODE/runs" 2>/dev/null
"""


@dataclass
class Node:
    """A node's folders: its containerd's root and configuration, what ``systemctl`` was asked; its volume's label."""

    folder: Path
    label: str

    @property
    def root(self) -> Path:
        return self.folder / "store"

    @property
    def asked(self) -> list[str]:
        """What systemctl was told to do."""
        path = self.folder / "asked"
        return [line for line in path.read_text().splitlines() if not line.startswith("show")] if path.exists() else []

    def mount(self, sandbox: str = "", *, wait: int = 0, head: str = "", arguments: Sequence[str] = ()) -> str:
        """Run the program as cloud-init does; return what it said. ``arguments``: those of the unit."""
        text = f"SANDBOX='{sandbox}'\n{head}{node_file('mount.sh').read_text()}"
        (self.folder / "mount.sh").write_text(text)
        env = {
            **os.environ,
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "NODE": str(self.folder),
            "PARBAKE_LABEL": self.label,
            "PARBAKE_WAIT": str(wait),
            "PARBAKE_CONTAINERD_CONFIG": str(self.folder / "config.toml"),
            "PARBAKE_WORK": str(self.folder / "work"),
            "PARBAKE_SELINUX": str(self.folder / "selinux"),
        }
        done = subprocess.run(
            ["/bin/dash", str(self.folder / "mount.sh"), *arguments],
            env=env,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        left = {path.name for path in (self.folder / "work").glob("**/*")} - {"volume"}
        assert left <= ({"old.log", "new.log"} if "keeps its own store" in done.stdout else set())
        return done.stdout

    def mounted(self) -> dict[str, str]:
        """Return what is mounted at the store's place."""
        found = run.run(["findmnt", "-P", "-o", "SOURCE,OPTIONS,FSTYPE", "--mountpoint", str(self.root)], check=False)
        return dict(re.findall(r'(\w+)="([^"]*)"', found.text))

    def images(self) -> dict[str, dict[str, str]]:
        """Return the images of the store, with their labels, as a containerd that starts on it sees them."""
        with Daemon(self.root, self.folder / "run", cri=True) as daemon, daemon.client() as client:
            found = {each.name: dict(each.labels) for each in client.images.list()}
            for name in found:  # each can be started: its snapshots are there
                assert look(client, Cri(client.connection), name, platform=Platform.host()).unpacked
            return found


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/systemctl").write_text(SYSTEMCTL)
    (tmp_path / "bin/systemctl").chmod(0o755)
    (tmp_path / "store").mkdir()
    (tmp_path / "config.toml").write_text(
        f'version = 2\nroot = "{tmp_path / "store"}"\n'
        f"[plugins.'io.containerd.grpc.v1.cri']\n  sandbox_image = '{PAUSE}'\n"
    )
    with disk.private_mounts():
        node = Node(tmp_path, f"pb{os.getpid():x}{os.urandom(2).hex()}"[:12])
        try:
            yield node
        finally:
            for place in (node.root, node.folder / "work/volume"):
                run.run(["umount", "-q", str(place)], check=False)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    with DockerRegistry(tmp_path_factory.mktemp("registry")) as served:
        push(served.url, "team/app", image(layer({"srv/app": b"app"})), "1")
        yield served


@contextmanager
def attached(file: Path, node: Node, size: int = 0) -> Iterator[str]:
    """Attach a volume as a disk of the node's, larger by then, under a label that no other test looks for."""
    kind = run.run(["blkid", "-p", "-o", "value", "-s", "TYPE", str(file)]).text.strip()
    run.run(["tune2fs", "-L", node.label, str(file)] if kind == "ext4" else ["xfs_admin", "-L", node.label, str(file)])
    if size:
        os.truncate(file, size)
    with disk.loop_device(file) as device:
        yield device


def baked(folder: Path, registry: DockerRegistry, *, filesystem: str = "ext4", sandbox: str = "none") -> Path:
    """Bake a volume with one image; return its file."""
    artefact = {"kind": "volume", "filesystem": filesystem}
    path = bakefile(folder / "bake", [f"{registry.host}/team/app:1"], base="none", artefact=artefact, sandbox=sandbox)
    return Path(bake(path)["artefact_path"])


@pytest.mark.parametrize("filesystem", ["ext4", "xfs"])
def test_a_volume_is_mounted_and_grown_to_its_disk(
    node: Node, registry: DockerRegistry, private_places: Path, filesystem: str
) -> None:
    file = baked(private_places, registry, filesystem=filesystem, sandbox=PAUSE)
    size = 4096 * MIB
    assert file.stat().st_size < size / 2
    (node.root / "own").write_text("the node's own store")
    with attached(file, node, size) as device:
        said = node.mount(PAUSE)
        assert f"{device} is mounted at {node.root}" in said
        found = node.mounted()
        assert (found["SOURCE"], found["FSTYPE"]) == (device, filesystem)
        assert "noatime" in found["OPTIONS"]
        there = os.statvfs(node.root)
        if filesystem == "xfs" or MAY_GROW_EXT4:
            assert there.f_blocks * there.f_frsize > 0.93 * size
        else:  # tests in machines see it grow
            assert f"the file system of {device} could not be grown: it keeps its size" in said
        images = node.images()
        assert f"{registry.host}/team/app:1" in images
        assert images[PAUSE]["io.cri-containerd.pinned"] == "pinned"
        assert node.asked == [], "a runtime that does not run is neither stopped nor started"
        assert node.mount(PAUSE) == "", "cloud-init runs it at each boot: then it is mounted already"
        run.run(["umount", str(node.root)])  # as a reboot does
        again = node.mount(PAUSE)
        assert f"{device} is mounted at {node.root}" in again
        if "could not be grown" not in said:
            assert "could not be grown" not in again, "it has the disk's size by now, which is no mistake"
        assert os.statvfs(node.root).f_blocks == there.f_blocks
        assert node.images() == images
        assert node.asked == []
        run.run(["umount", str(node.root)])
        check = ["e2fsck", "-fn", device] if filesystem == "ext4" else ["xfs_repair", "-n", device]
        run.run(check)
    assert (node.root / "own").read_text() == "the node's own store"


@pytest.mark.parametrize("enforced", ["1", "0", ""])
def test_where_selinux_is_enforced_the_volume_gets_one_label(
    node: Node, registry: DockerRegistry, private_places: Path, enforced: str
) -> None:
    """This machine's mount passes over a label, since its kernel has no SELinux."""
    (node.folder / "bin/mount").write_text('#!/bin/sh\necho "$2" >>"$NODE/options"\nexec /usr/bin/mount "$@"\n')
    (node.folder / "bin/mount").chmod(0o755)
    if enforced:
        (node.folder / "selinux").mkdir()
        (node.folder / "selinux/enforce").write_text(enforced)
    with attached(baked(private_places, registry, sandbox=PAUSE), node):
        assert "is mounted at" in node.mount(PAUSE)
    label = ",defcontext=system_u:object_r:container_ro_file_t:s0" if enforced == "1" else ""
    # The kernel takes the same for each place where a file system is mounted.
    assert (node.folder / "options").read_text().splitlines() == [f"noatime{label}"] * 2


def test_the_nodes_own_pause_image_comes_along(node: Node, registry: DockerRegistry, private_places: Path) -> None:
    with Daemon(node.root, node.folder / "own") as daemon:
        pull_by_ctr(daemon, image(layer({"pause": b"\x7fELF"})), node.folder, PAUSE)
    with attached(baked(private_places, registry), node):
        assert f"brought the pause image {PAUSE}" in node.mount()
        labels = node.images()[PAUSE]
        assert (labels["io.cri-containerd.image"], labels["io.cri-containerd.pinned"]) == ("managed", "pinned")
        run.run(["umount", str(node.root)])
        assert "brought" not in node.mount(), "it is there now"
        run.run(["umount", str(node.root)])
        configured = (node.folder / "config.toml").read_text()
        assert PAUSE.endswith(":latest")
        (node.folder / "config.toml").write_text(configured.replace(PAUSE, PAUSE.removesuffix(":latest")))
        assert "is mounted at" in node.mount(), "nodeadm configures it without a tag"


def test_without_any_pause_image_the_node_keeps_its_store(
    node: Node, registry: DockerRegistry, private_places: Path
) -> None:
    with attached(baked(private_places, registry), node):
        said = node.mount()
        assert f"neither the volume nor the node has the pause image {PAUSE}: the node keeps its own store" in said
        assert node.mounted() == {}


def test_a_runtime_that_runs_is_stopped_and_started(node: Node, registry: DockerRegistry, private_places: Path) -> None:
    (node.folder / "runs").write_text("active\n")
    with attached(baked(private_places, registry, sandbox=PAUSE), node):
        node.mount(PAUSE)
        assert node.asked == ["stop containerd", "restart containerd"]
        assert node.mounted()


def test_a_runtime_that_was_stopped_is_started_whatever_goes_wrong(
    node: Node, registry: DockerRegistry, private_places: Path
) -> None:
    (node.folder / "runs").write_text("activating\n")
    with attached(baked(private_places, registry), node):
        assert "keeps its own store" in node.mount()
    assert node.asked == ["stop containerd", "start containerd"]


def test_the_unit_does_not_wait_for_what_is_ordered_after_it(
    node: Node, registry: DockerRegistry, private_places: Path
) -> None:
    (command,) = re.findall(r"^ExecStart=/bin/sh \S+(.*)$", node_file("parbake-mount.service").read_text(), re.M)
    (node.folder / "runs").write_text("active\n")
    with attached(baked(private_places, registry, sandbox=PAUSE), node):
        node.mount(PAUSE, arguments=command.split())
        assert node.asked == ["stop containerd", "restart --no-block containerd"]


def test_a_store_of_k3s(node: Node, registry: DockerRegistry, private_places: Path) -> None:
    """Its containerd is configured when it starts, so the path comes from the target; its services are held."""
    store = node.folder / "k3s/agent/containerd"
    head = f"ROOT={store}\nUNITS='containerd k3s-agent'\n"
    with attached(baked(private_places, registry, sandbox=PAUSE), node) as device:
        assert f"{device} is mounted at {store}" in node.mount(head=head)
        assert node.asked == []
        with Daemon(store, node.folder / "run") as daemon, daemon.client() as client:
            assert {each.name for each in client.images.list()} >= {f"{registry.host}/team/app:1", PAUSE}
        run.run(["umount", str(store)])
        (node.folder / "runs").write_text("active\n")
        node.mount(head=head)
        run.run(["umount", str(store)])
    assert node.asked == ["stop containerd k3s-agent", "restart containerd k3s-agent"]


def test_no_disk_two_disks_or_a_broken_one(node: Node, tmp_path: Path) -> None:
    (node.root / "own").write_text("here")
    assert f"no disk labelled {node.label} within 0 s: the node keeps its own store" in node.mount()
    assert re.search(r"within 1 s", node.mount(wait=1))
    with ExitStack() as stack:
        for name in ("one", "two"):
            disk.make_filesystem(tmp_path / name, "ext4", 64 * MIB, name=name)
            stack.enter_context(attached(tmp_path / name, node))
        assert "more than one disk labelled" in node.mount()
    broken = tmp_path / "one"
    with broken.open("r+b") as file:  # the root folder's inode and all behind it; the label stays
        file.seek(4096)
        file.write(os.urandom(8 * MIB))
    with disk.loop_device(broken) as device:
        assert f"{device} cannot be mounted: the node keeps its own store" in node.mount()
    assert node.mounted() == {}
    assert (node.root / "own").read_text() == "here"
    assert node.asked == []


def test_with_a_uuid_a_disk_with_the_same_label_is_passed_over(
    node: Node, registry: DockerRegistry, private_places: Path
) -> None:
    other = node.folder / "other"
    disk.make_filesystem(other, "ext4", 64 * MIB, name="somebody's")
    file = baked(private_places, registry, sandbox=PAUSE)
    uuid = disk.filesystem_uuid(records.find(file.parent)[0][1].key)
    with attached(other, node) as wrong:
        said = node.mount(PAUSE, head=f"UUID={uuid}\n")
        assert f"{wrong} is labelled {node.label}, and is not the file system {uuid}: the node keeps its own" in said
        assert node.mounted() == {}
        with attached(file, node) as right:
            said = node.mount(PAUSE, head=f"UUID={uuid}\n")
            assert f"{wrong} is labelled {node.label}, and is not the file system {uuid}: it is passed over" in said
            assert f"{right} is mounted at {node.root}" in said
            assert node.mounted()["SOURCE"] == right
            assert node.mount(PAUSE, head=f"UUID={uuid}\n") == "", "it is mounted already"
            again = node.mount(PAUSE, head=f"UUID={disk.filesystem_uuid('of the next bake')}\n")
            assert f"{right} is mounted at {node.root} already" in again
            run.run(["umount", str(node.root)])
            assert "more than one disk labelled" in node.mount(PAUSE), "without a UUID the label does"
        copied = node.folder / "copied"
        shutil.copy(file, copied)
        with attached(file, node), attached(copied, node):
            assert f"more than one file system {uuid}: " in node.mount(PAUSE, head=f"UUID={uuid}\n")
    assert f"no file system {uuid} within 0 s: the node keeps its own store" in node.mount(head=f"UUID={uuid}\n")
    assert node.asked == []


def test_what_is_mounted_there_already_stays(node: Node, registry: DockerRegistry, private_places: Path) -> None:
    with attached(baked(private_places, registry, sandbox=PAUSE), node):
        run.run(["mount", "-t", "tmpfs", "local-disks", str(node.root)])
        assert f"local-disks is mounted at {node.root} already: the node keeps its own store" in node.mount(PAUSE)
        assert node.mounted()["FSTYPE"] == "tmpfs"

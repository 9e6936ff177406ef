"""What a bake puts into a volume against what ``ctr images pull`` puts into a fresh containerd from the same registry.

Differences that are meant, and what they are for:

- Names carry the label ``io.cri-containerd.pinned``: kubelet's image collection would evict them without it.
- The volume has the pause image as well, which no registry has: no pod starts without it.
- Without ``keep_layers`` the compressed layers are missing, and with them the labels that kept them from being
  collected, as containerd leaves it with ``discard_unpacked_layers``. Exporting and pushing such an image is refused.
- Snapshots carry the label that the CRI plugin's own pulls give them (``ctr`` gives none).
- Kept layers all carry the label with their diffID; ``ctr`` leaves it out where the snapshot was there already.
- Folders that no layer describes, whiteouts and the root of each snapshot have a time that follows from the layers
  (such as 1970), not that of the moment of the pull. A bake at another moment is the same bake.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from parbake.containerd import Client, Cri, Daemon
from parbake.containerd.cri import log_text
from parbake.core.model import Platform
from parbake.core.reference import Reference
from parbake.core.run import Deadline, run
from parbake.images import pause
from parbake.images.registry import Registry
from standins import containerd_support as support
from standins.every_layer_feature import push_all, variety
from standins.registry import DockerRegistry
from standins.runs import bake, bakefile, opened, traces
from standins.store import ctr, snapshot_folders
from standins.trees import Node, differences, scan

pytestmark = pytest.mark.root

HOST = Platform.host()
REAL = "team/real:1"
CONTAINERFILE = """\
FROM scratch
ADD busybox /bin/busybox
RUN ["/bin/busybox", "sh", "-c", "mkdir -p /etc /var/lib; echo hello > /etc/motd; ln -s motd /etc/issue"]
RUN ["/bin/busybox", "sh", "-c", "rm /etc/issue; ln /etc/motd /var/lib/motd; chmod 4711 /bin/busybox"]
CMD ["/bin/busybox", "cat", "/etc/motd"]
"""
_UNCOMPRESSED = "containerd.io/uncompressed"
_KEEPS_A_LAYER = "containerd.io/gc.ref.content.l."


@dataclass
class Store:
    """All that a containerd's store says of itself, as plain data."""

    images: dict[str, tuple[str, str, int]] = field(default_factory=dict)
    image_labels: dict[str, dict[str, str]] = field(default_factory=dict)
    content: dict[str, int] = field(default_factory=dict)
    content_labels: dict[str, dict[str, str]] = field(default_factory=dict)
    layers: set[str] = field(default_factory=set)
    snapshots: dict[str, tuple[str, str]] = field(default_factory=dict)
    inodes: dict[str, int] = field(default_factory=dict)
    trees: dict[str, dict[bytes, Node]] = field(default_factory=dict)


def look(client: Client) -> Store:
    """Read a store through containerd's API; trees are read where the snapshotter says they lie."""
    found = Store()
    for image in client.images.list():
        found.images[image.name] = (image.target.media_type, image.target.digest, image.target.size)
        found.image_labels[image.name] = dict(image.labels)
    for info in client.content.list():
        data = client.content.read(info.digest)
        assert hashlib.sha256(data).hexdigest() == info.digest.removeprefix("sha256:")
        if data.startswith(b"{"):
            found.layers |= {layer["digest"] for layer in json.loads(data).get("layers", [])}
        found.content[info.digest], found.content_labels[info.digest] = info.size, dict(info.labels)
    for snapshot in client.snapshots.list():
        name = snapshot.name
        found.snapshots[name] = (snapshot.parent, snapshot.kind)
        found.inodes[name] = client.snapshots.usage(name)[1]
        found.trees[name] = scan(snapshot_folders(client, (name,))[-1])
    return found


@dataclass(frozen=True)
class World:
    """One registry with all images, the store that ``ctr`` pulled them into, and volumes baked from them."""

    folder: Path
    registry: DockerRegistry
    names: dict[str, str]
    pulled: Store
    pulling: range
    bakes: dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("as-a-pull")
    with pytest.MonkeyPatch.context() as patch, DockerRegistry(tmp_path_factory.mktemp("registry")) as registry:
        patch.setenv("PARBAKE_CACHE", str(folder / "cache"))
        patch.setenv("HOME", str(folder))
        built = variety()
        push_all(registry.url, built)
        names = {name: f"{registry.host}/team/{name}" for name in built}
        names["real:1"] = f"{registry.host}/{REAL}"
        context = folder / "context"
        context.mkdir()
        (context / "Containerfile").write_text(CONTAINERFILE)
        shutil.copy("/bin/busybox", context / "busybox")
        images: list[str | dict[str, Any]] = [names[name] for name in built]
        images.append({"reference": names["real:1"], "build": {"context": context}})
        bakes = {}
        for filesystem, keep in (("ext4", False), ("xfs", True)):
            artefact = {"kind": "volume", "filesystem": filesystem}
            keys = {"artefact": artefact, "keep_layers": keep, "size": "400MiB"}
            path = bakefile(folder / filesystem, images, base="none", **keys)
            bakes[filesystem] = bake(path)
        assert traces(folder) == []
        began = time.time_ns()
        with Daemon(folder / "pulled", folder / "run") as daemon, daemon.client() as client:
            for name in names.values():
                ctr(daemon, "images", "pull", "--local", "--plain-http", "--platform", str(HOST), name)
            pulled = look(client)
        yield World(folder, registry, names, pulled, range(began, time.time_ns()), bakes)


@pytest.fixture(scope="module", params=["ext4", "xfs"])
def baked(request: pytest.FixtureRequest, world: World) -> tuple[dict[str, Any], Store]:
    """The record of a bake, and its store."""
    record = world.bakes[request.param]
    with (
        opened(Path(record["artefact_path"]), world.folder / f"look-{request.param}", request.param) as (_, daemon),
        daemon.client() as client,
    ):
        return record, look(client)


def of_pause(record: dict[str, Any], key: str) -> str:
    document = record["plan"]["sandbox"]
    return str(document[key]["digest"] if key in {"manifest", "config"} else document["layers"][0]["chain_id"])


def whiteouts(tree: dict[bytes, Node]) -> set[bytes]:
    return {path for path, node in tree.items() if node.kind == "character device" and node.device == (0, 0)}


def test_the_list_of_images(world: World, baked: tuple[dict[str, Any], Store]) -> None:
    _, store = baked
    pulled = {name: target for name, target in store.images.items() if name != pause.REFERENCE}
    by_digest = {
        f"{name.rpartition(':')[0]}@{target[1]}": target
        for name, target in world.pulled.images.items()
        if "@" not in name
    }
    assert pulled == world.pulled.images | by_digest, "also_by_digest, the default, is more than a pull leaves"
    assert pulled.keys() - by_digest.keys() == set(world.names.values()) - by_digest.keys()
    assert set(store.images) - set(pulled) == {pause.REFERENCE}
    assert all(labels == {"io.cri-containerd.pinned": "pinned"} for labels in store.image_labels.values())
    assert all(labels == {} for labels in world.pulled.image_labels.values())


def test_content(world: World, baked: tuple[dict[str, Any], Store]) -> None:
    record, store = baked
    wanted = dict(world.pulled.content)
    labels = dict(world.pulled.content_labels)
    of_pauses = {of_pause(record, "manifest"), of_pause(record, "config")}
    if record["plan"]["keep_layers"]:
        of_pauses.add(record["plan"]["sandbox"]["layers"][0]["digest"])
    else:
        wanted = {digest: size for digest, size in wanted.items() if digest not in world.pulled.layers}
        labels = {
            digest: {key: value for key, value in labels[digest].items() if not key.startswith(_KEEPS_A_LAYER)}
            for digest in wanted
        }
    assert {digest: size for digest, size in store.content.items() if digest not in of_pauses} == wanted
    assert of_pauses <= store.content.keys()
    for digest, theirs in labels.items():
        ours = store.content_labels[digest]
        if digest in world.pulled.layers and _UNCOMPRESSED not in theirs:  # a pull that did not have to unpack it
            ours.pop(_UNCOMPRESSED)
        assert ours == theirs


def test_the_snapshots_and_their_parents(world: World, baked: tuple[dict[str, Any], Store]) -> None:
    record, store = baked
    extra = of_pause(record, "layers")
    assert {name: place for name, place in store.snapshots.items() if name != extra} == world.pulled.snapshots
    assert store.snapshots[extra] == ("", "committed")
    assert all(kind == "committed" for _, kind in store.snapshots.values())
    # What containerd counted when each was committed: a hard link is one inode.
    assert {name: count for name, count in store.inodes.items() if name != extra} == world.pulled.inodes


def test_the_trees(world: World, baked: tuple[dict[str, Any], Store]) -> None:
    _, store = baked
    kinds = set()
    for name, theirs in world.pulled.trees.items():
        # Folders that no layer describes, and roots: dated by the moment of the pull.
        undated = frozenset(path for path, node in theirs.items() if node.modified in world.pulling)
        assert [path for path in undated if theirs[path].kind != "folder" and path not in whiteouts(theirs)] == []
        found = differences(theirs, store.trees[name], ignore_times_of=undated)
        assert not found, f"{name}:\n" + "\n".join(found)
        assert all(store.trees[name][path].modified < world.pulling.start for path in undated)
        kinds |= {node.kind for node in theirs.values()}
    # That there was something to compare.
    nodes = [(path, node) for tree in store.trees.values() for path, node in tree.items()]
    assert kinds == {"file", "folder", "symlink", "character device", "block device", "fifo"}
    assert any(whiteouts(tree) for tree in store.trees.values())
    attributes = {name for _, node in nodes for name, _ in node.xattrs}
    assert attributes == {"trusted.overlay.opaque", "security.capability", "user.note", "user.empty", "user.folder"}
    assert {0o4755, 0o2755, 0o1777, 0o000} <= {node.mode for _, node in nodes}
    assert any(node.links for _, node in nodes)
    assert any(b"\xff\xfe" in path for path, _ in nodes)
    assert {1_700_000_000_123_456_789} <= {node.modified for _, node in nodes}


def test_a_kept_image_can_be_exported_and_pushed(world: World, tmp_path: Path) -> None:
    """With the layers kept, containerd can give an image back as it came."""
    record = world.bakes["xfs"]
    name, platform = world.names["index:1"], str(HOST)
    archive = tmp_path / "image.tar"
    with opened(Path(record["artefact_path"]), tmp_path / "look", "xfs") as (_, daemon):
        ctr(daemon, "images", "export", "--platform", platform, str(archive), name)
        for image in ("sharing:1", "special:1", "names:1", "real:1"):
            target = f"{world.registry.host}/pushed/{image}"
            ctr(daemon, "images", "push", "--local", "--plain-http", target, world.names[image])
    where = f"oci-archive:{archive}"
    copied = f"docker://{world.registry.host}/pushed/index:1"
    run(["skopeo", "copy", "--quiet", "--preserve-digests", "--dest-tls-verify=false", where, copied])
    with Registry() as registry:
        for image in ("sharing:1", "special:1", "names:1", "real:1", "index:1"):
            before = registry.resolve(Reference.parse(world.names[image]), HOST)
            after = registry.resolve(Reference.parse(f"{world.registry.host}/pushed/{image}"), HOST)
            assert (after.manifest, after.config, after.layers) == (before.manifest, before.config, before.layers)


def test_without_its_layers_an_image_cannot_be_exported(world: World, tmp_path: Path) -> None:
    record = world.bakes["ext4"]
    with opened(Path(record["artefact_path"]), tmp_path / "look", "ext4") as (_, daemon):
        refused = ctr(daemon, "images", "export", str(tmp_path / "image.tar"), world.names["one:1"], check=False)
    assert refused.code
    assert "not found" in refused.stderr


def wait_for_end(cri: Cri, container: str) -> int:
    deadline = Deadline(60, "the container's end")
    while (status := cri.container_status(container)).state != "exited":
        deadline.sleep(0.02)
    return status.exit_code


@pytest.mark.parametrize("filesystem", ["ext4", "xfs"])
def test_pods_start_with_no_registry(world: World, tmp_path: Path, filesystem: str) -> None:
    """Kubelet's calls, on a copy of the volume: a sandbox from the baked pause image, containers from baked images."""
    record = world.bakes[filesystem]
    world.registry.stop()
    try:
        with (
            opened(
                Path(record["artefact_path"]), tmp_path / "look", filesystem, cri=True, sandbox_image=pause.REFERENCE
            ) as (_, daemon),
            daemon.client() as client,
        ):
            cri = Cri(client.connection, cgroup_parent=daemon.cgroup_parent)
            for image in record["plan"]["images"]:
                status = cri.image_status(image["reference"])
                assert status is not None
                assert (status.pinned, status.id) == (True, image["config"]["digest"])
            assert {status.pinned for status in support.seen_images(cri)} == {True}
            with cri.pod("baked", log_directory=daemon.folder / "logs") as pod:
                for name, said in (("index:1", "hello from the index\n"), ("real:1", "hello\n")):
                    container = cri.create_container(pod, "app", world.names[name], log_path=f"{name}.log")
                    cri.start_container(container)
                    assert wait_for_end(cri, container) == 0
                    assert log_text((daemon.folder / f"logs/{name}.log").read_bytes()) == said
                    support.remove_container(cri, container)
    finally:
        world.registry.start()


def test_a_pod_that_always_pulls_fetches_no_layer(world: World, tmp_path: Path) -> None:
    """``imagePullPolicy: Always`` asks the registry what the name means, and uses what is there.

    The pull gives the name containerd's own labels, so that the image is no longer pinned (containerd 1.7): a reason
    to warn of that policy.
    """
    record = world.bakes["ext4"]
    name = world.names["sharing:1"]
    with (
        opened(Path(record["artefact_path"]), tmp_path / "look", "ext4", cri=True, sandbox_image=pause.REFERENCE) as (
            _,
            daemon,
        ),
        daemon.client() as client,
    ):
        before = world.registry.log.stat().st_size
        cri = Cri(client.connection, cgroup_parent=daemon.cgroup_parent)
        assert cri.pull_image(name) == next(
            image["config"]["digest"] for image in record["plan"]["images"] if image["reference"] == name
        )
    asked = re.findall(r'"([A-Z]+) (/v2/[^ ]+) HTTP', world.registry.log.read_bytes()[before:].decode())
    assert ("HEAD", "/v2/team/sharing/manifests/1") in asked
    assert not [path for _, path in asked if "/blobs/" in path]

"""What the containerd system tests share: small images made by hand, and a look at what the machine holds."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parbake.containerd import Client, Cri, Daemon
from parbake.containerd.labels import (
    PINNED,
    chain_ids,
    reference_labels,
    snapshot_labels,
    snapshot_reference,
    unpack_key,
)
from parbake.containerd.proto import content_pb2, cri_pb2, leases_pb2, namespaces_pb2
from parbake.containerd.snapshots import folders
from parbake.core import mounts, run
from parbake.core.model import Descriptor, Platform
from parbake.machine import disk

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"

type Files = dict[str, bytes | str]
"""Path to content (a program: mode 755), or to the target of a symbolic link."""


@dataclass(frozen=True)
class Made:
    """An image made by hand: its blobs by digest, and what names them."""

    blobs: dict[str, bytes]
    manifest: Descriptor
    config: Descriptor
    layers: tuple[Descriptor, ...]
    tars: tuple[bytes, ...]
    diff_ids: tuple[str, ...]

    @property
    def manifest_document(self) -> dict[str, object]:
        document: dict[str, object] = json.loads(self.blobs[self.manifest.digest])
        return document


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def describe(data: bytes, media_type: str) -> Descriptor:
    return Descriptor(media_type=media_type, digest=digest_of(data), size=len(data))


def document(descriptor: Descriptor) -> dict[str, object]:
    return {"mediaType": descriptor.media_type, "digest": descriptor.digest, "size": descriptor.size}


def pack(files: Files) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            if isinstance(content, str):
                entry.type, entry.linkname = tarfile.SYMTYPE, content
                archive.addfile(entry)
            else:
                entry.size, entry.mode = len(content), 0o755
                archive.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def make(
    layers: Sequence[Files], *, platform: Platform | None = None, config: dict[str, list[str]] | None = None
) -> Made:
    """Make an image; ``config`` is the OCI runtime configuration (Entrypoint, Cmd, Env, …)."""
    platform = platform or Platform.host()
    tars = tuple(pack(files) for files in layers)
    zipped = [gzip.compress(tar, 1, mtime=0) for tar in tars]
    diff_ids = tuple(digest_of(tar) for tar in tars)
    image = {
        "architecture": platform.architecture,
        "os": platform.os,
        "config": config or {},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }
    config_bytes = json.dumps(image).encode()
    described = tuple(describe(data, LAYER) for data in zipped)
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": document(describe(config_bytes, CONFIG)),
        "layers": [document(layer) for layer in described],
    }
    manifest_bytes = json.dumps(manifest).encode()
    return Made(
        blobs={digest_of(data): data for data in (manifest_bytes, config_bytes, *zipped)},
        manifest=describe(manifest_bytes, MANIFEST),
        config=describe(config_bytes, CONFIG),
        layers=described,
        tars=tars,
        diff_ids=diff_ids,
    )


def busybox(extra: Files | None = None, **config: list[str]) -> Made:
    program = shutil.which("busybox")
    assert program, "apt-get install busybox-static"
    base: Files = {"bin/busybox": Path(program).read_bytes(), "bin/sh": "busybox", "bin/sleep": "busybox"}
    return make([base, extra or {"greeting": b"hello\n"}], config=config)


def pause() -> Made:
    program = shutil.which("catatonit")
    assert program, "apt-get install catatonit"
    return make([{"pause": Path(program).read_bytes()}], config={"Entrypoint": ["/pause", "-P"]})


def fill(client: Client, name: str, made: Made, *, seen_by: Cri | None = None) -> None:
    """Put an image into the store through the API, without its layers' blobs, pinned.

    The CRI plugin of a daemon that runs hears of it by an event: whoever asks it afterwards names it in ``seen_by``.
    """
    with client.lease("test"):
        parent = ""
        for chain_id, tar in zip(chain_ids(made.diff_ids), made.tars, strict=True):
            if not client.snapshots.exists(chain_id):
                key = unpack_key("test", chain_id)
                where = folders(client.snapshots.prepare(key, parent, snapshot_labels(chain_id)))
                run.run(["tar", "-x", "-C", str(where.upper)], stdin=tar)
                client.snapshots.commit(chain_id, key, snapshot_labels(chain_id))
            parent = chain_id
        labels = snapshot_reference(parent)
        client.content.write(made.config, made.blobs[made.config.digest], labels)
        labels = reference_labels(made.manifest_document)
        client.content.write(made.manifest, made.blobs[made.manifest.digest], labels)
        client.images.put(name, made.manifest, PINNED)
    if seen_by:
        deadline = run.Deadline(60, f"the CRI plugin's notice of {name}")
        while seen_by.image_status(name) is None:
            deadline.sleep(0.02)


class SeeingDaemon(Daemon):
    """A containerd whose root has one more folder of this machine, under its own name."""

    def __init__(self, *arguments: Any, shown: Path, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._shown = shown

    def _build(self, at: Path, programs: list[Path]) -> None:
        super()._build(at, programs)
        mounts.bind(self._shown, at / self._shown.relative_to("/"))


def victim(folder: Path) -> Path:
    """Make a folder of the machine in which everything has what a store has: what is no snapshot is garbage there."""
    for name in ("7/fs/etc", "k8s.io/7", "sha256/fs", "1/fs", "1/work", "snapshots/5/fs", "blobs/sha256", "ingest/9"):
        (folder / name).mkdir(parents=True)
        (folder / name / "precious").write_text("of the machine")
    return folder


@contextmanager
def filling(volume: Path, size: int, *, name: str = "test") -> Iterator[Client]:
    """Make a volume (ext4) whose root is that of a store, and yield a client to put images into it."""
    disk.make_filesystem(volume, "ext4", size, name=name)
    with (
        disk.private_mounts(),
        disk.mount(volume, volume.with_name("mnt"), filesystem="ext4") as mounted,
        Daemon(mounted.path, volume.with_name("daemon")) as daemon,
        daemon.client() as client,
    ):
        yield client


def pid_namespace_of(folder: Path) -> str:
    """Return the PID namespace of the containerd whose configuration lies in ``folder``, host's name of it."""
    for process in _processes():
        words = _command(process)
        if words[:1] and words[0].endswith("containerd") and Path(words[-1]).name == "config.toml":
            config = process / "root" / words[-1].lstrip("/")
            if config.exists() and config.samefile(folder / "config.toml"):
                return str((process / "ns/pid").readlink())
    raise AssertionError(f"no containerd of {folder}")


def processes_in(namespace: str) -> list[str]:
    """Return the command lines of the processes of a PID namespace."""
    found = []
    for process in _processes():
        try:
            zombie = (process / "stat").read_text().rpartition(")")[2].split()[0] == "Z"  # init reaps when it likes
            if str((process / "ns/pid").readlink()) == namespace and not zombie:
                found.append(" ".join(_command(process)))
        except OSError:
            continue
    return found


def traces_of(text: str) -> list[str]:
    """Return processes and mounts, of any namespace, that name ``text``."""
    found = []
    for process in _processes():
        try:
            command = " ".join(_command(process))
            found += [command] if text in command else []
            found += [line for line in (process / "mountinfo").read_text().splitlines() if text in line]
        except OSError:
            continue
    return found


def _processes() -> list[Path]:
    return [path for path in Path("/proc").iterdir() if path.name.isdigit()]


def _command(process: Path) -> list[str]:
    try:
        return [word.decode(errors="replace") for word in (process / "cmdline").read_bytes().split(b"\0") if word]
    except OSError:
        return []


def shared_places() -> dict[str, list[str]]:
    """Return what lies in the places that a machine's own containerd uses."""
    places = ("/run/containerd", "/var/lib/containerd", "/opt/containerd", "/etc/cni", "/run/netns")
    return {place: sorted(str(path) for path in Path(place).rglob("*")) for place in places}


# What parbake itself never asks a containerd.


def in_namespace(client: Client, namespace: str) -> Client:
    """Return a client of another namespace over the same connection; closing either closes both."""
    return Client(client.connection, namespace=namespace, snapshotter=client.snapshots.snapshotter)


def namespaces(client: Client) -> set[str]:
    path = "/containerd.services.namespaces.v1.Namespaces/List"
    request = namespaces_pb2.ListNamespacesRequest()
    return {
        each.name for each in client.connection.unary(path, request, namespaces_pb2.ListNamespacesResponse).namespaces
    }


def leases(client: Client) -> tuple[str, ...]:
    path, metadata = "/containerd.services.leases.v1.Leases/List", client._metadata()
    reply = client.connection.unary(path, leases_pb2.ListRequest(), leases_pb2.ListResponse, metadata=metadata)
    return tuple(lease.id for lease in reply.leases)


def unfinished(client: Client) -> dict[str, int]:
    """Return the writes that are not at their end: reference to bytes that are there."""
    path, metadata = "/containerd.services.content.v1.Content/ListStatuses", client._metadata()
    request = content_pb2.ListStatusesRequest()
    reply = client.connection.unary(path, request, content_pb2.ListStatusesResponse, metadata=metadata)
    return {status.ref: status.offset for status in reply.statuses}


def seen_images(cri: Cri) -> list[cri_pb2.Image]:
    """Return all images that kubelet would see."""
    path = "/runtime.v1.ImageService/ListImages"
    return list(cri._connection.unary(path, cri_pb2.ListImagesRequest(), cri_pb2.ListImagesResponse).images)


def sandboxes(cri: Cri) -> list[str]:
    """Return the ids of all sandboxes, stopped ones included."""
    path = "/runtime.v1.RuntimeService/ListPodSandbox"
    reply = cri._connection.unary(path, cri_pb2.ListPodSandboxRequest(), cri_pb2.ListPodSandboxResponse)
    return [pod.id for pod in reply.items]


def remove_container(cri: Cri, container: str) -> None:
    request = cri_pb2.RemoveContainerRequest(container_id=container)
    cri._connection.unary("/runtime.v1.RuntimeService/RemoveContainer", request, cri_pb2.RemoveContainerResponse)

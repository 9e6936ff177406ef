"""Our conventions against real pulls of the same image: by `ctr`, and by the CRI plugin as kubelet asks it to."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from parbake.containerd import Cri, Daemon
from parbake.containerd.labels import (
    PINNED,
    chain_ids,
    reference_labels,
    snapshot_labels,
    snapshot_reference,
    source_label,
    uncompressed_label,
)
from parbake.core import run
from parbake.core.model import Descriptor, Platform
from standins.containerd_support import INDEX, Made, busybox, describe, document, fill, make

pytestmark = pytest.mark.root


@dataclass(frozen=True)
class Registry:
    """A loopback registry; ``address`` is host:port."""

    address: str


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    place = tmp_path_factory.mktemp("registry")
    config = {
        "version": 0.1,
        "log": {"level": "info"},
        "storage": {"filesystem": {"rootdirectory": str(place / "data")}},
        "http": {"addr": "127.0.0.1:0"},
    }
    (place / "config.yml").write_text(json.dumps(config))
    with run.Process(["docker-registry", "serve", str(place / "config.yml")], log=place / "log") as process:
        deadline = run.Deadline(120, "docker-registry")
        while not (found := re.search(r"listening on (127\.0\.0\.1:\d+)", (place / "log").read_text())):
            process.check_alive()
            deadline.sleep(0.02)
        yield Registry(found[1])


def push(registry: Registry, place: Path, made: tuple[Made, ...], repository: str) -> tuple[Descriptor, bytes]:
    """Push an index over the images; the first is for this machine."""
    blobs = place / "blobs/sha256"
    blobs.mkdir(parents=True)
    entries = []
    for image, platform in zip(made, (Platform.host(), Platform(architecture="riscv64")), strict=True):
        where = {"os": platform.os, "architecture": platform.architecture}
        entries.append({**document(image.manifest), "platform": where})
        for digest, data in image.blobs.items():
            (blobs / digest.removeprefix("sha256:")).write_bytes(data)
    index = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}).encode()
    target = describe(index, INDEX)
    (blobs / target.digest.removeprefix("sha256:")).write_bytes(index)
    (place / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (place / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [document(target)]}))
    to = f"docker://{registry.address}/{repository}"
    run.run(["skopeo", "copy", "--all", "--preserve-digests", "--dest-tls-verify=false", f"oci:{place}", to])
    return target, index


@pytest.mark.parametrize("puller", ["ctr", "cri"])
def test_the_conventions_are_those_of_a_pull(registry: Registry, tmp_path: Path, puller: str) -> None:
    """Every label that a pull sets, and no other, follows from ``conventions``."""
    made = busybox(Entrypoint=["/bin/sh"])
    foreign = make([{"x": b"never unpacked"}], platform=Platform(architecture="riscv64"))
    target, index = push(registry, tmp_path / "layout", (made, foreign), "team/app:1")
    name = f"{registry.address}/team/app:1"
    with Daemon(tmp_path / "store", tmp_path / "run", cri=puller == "cri") as daemon, daemon.client() as client:
        if puller == "ctr":
            pull = ["ctr", "--address", str(daemon.socket), "--namespace", client.namespace, "images", "pull"]
            run.run([*pull, "--local", "--plain-http", name])  # not by the transfer service, which is off
        else:
            assert Cri(client.connection).pull_image(name) == made.config.digest
        images = {image.name: (image.target, dict(image.labels)) for image in client.images.list()}
        content = {info.digest: dict(info.labels) for info in client.content.list()}
        snapshots = {info.name: (info.parent, dict(info.labels)) for info in client.snapshots.list()}

    for other in (foreign.manifest, foreign.config):  # containerd 2's `ctr` fetches what describes other platforms
        content.pop(other.digest, None)

    # `ctr` makes one name. The CRI plugin makes three, and marks them as its own.
    managed = {"io.cri-containerd.image": "managed"}
    by_digest = f"{registry.address}/team/app@{target.digest}"
    assert images == (
        {name: (target, {})}
        if puller == "ctr"
        else dict.fromkeys((name, by_digest, made.config.digest), (target, managed))
    )
    origin = source_label(registry.address, "team/app")
    chain = chain_ids(made.diff_ids)
    assert content == {
        target.digest: {**origin, **reference_labels(json.loads(index))},
        made.manifest.digest: {**origin, **reference_labels(made.manifest_document)},
        made.config.digest: {**origin, **snapshot_reference(chain[-1])},
        **{
            layer.digest: {**origin, **uncompressed_label(diff_id)}
            for layer, diff_id in zip(made.layers, made.diff_ids, strict=True)
        },
    }
    # containerd 1.7's `ctr` unpacks after the pull and labels no snapshot; the CRI plugin unpacks while it pulls.
    assert snapshots == {
        chain_id: (parent, {} if puller == "ctr" else snapshot_labels(chain_id))
        for chain_id, parent in zip(chain, ("", *chain), strict=False)
    }
    # What these labels look like, written out once.
    assert reference_labels(json.loads(index)) == {
        "containerd.io/gc.ref.content.m.0": made.manifest.digest,
        "containerd.io/gc.ref.content.m.1": foreign.manifest.digest,
    }
    assert reference_labels(made.manifest_document) == {
        "containerd.io/gc.ref.content.config": made.config.digest,
        "containerd.io/gc.ref.content.l.0": made.layers[0].digest,
        "containerd.io/gc.ref.content.l.1": made.layers[1].digest,
    }
    assert origin == {"containerd.io/distribution.source.127.0.0.1": "team/app"}
    assert snapshot_reference(chain[-1]) == {"containerd.io/gc.ref.snapshot.overlayfs": chain[-1]}


def test_what_the_cri_plugin_adds_to_a_baked_image(tmp_path: Path) -> None:
    """A record with nothing but the pin gets the plugin's mark, and the image's id as a second name, by itself."""
    made = busybox()
    with Daemon(tmp_path / "store", tmp_path / "fill") as daemon, daemon.client() as client:
        fill(client, "registry.test/app:1", made)
    for turn in ("first", "second"):  # the plugin reads its own marks at the second start
        with Daemon(tmp_path / "store", tmp_path / turn, cri=True) as daemon, daemon.client() as client:
            deadline = run.Deadline(120, "the CRI plugin's marks")
            while True:  # it gives one after the other
                images = {image.name: dict(image.labels) for image in client.images.list()}
                if len(images) == 2 and all("io.cri-containerd.image" in each for each in images.values()):
                    break
                deadline.sleep(0.02)
            status = Cri(client.connection).image_status("registry.test/app:1")
            by_id = Cri(client.connection).image_status(made.config.digest)
        mark = {"io.cri-containerd.image": "managed"}
        assert images == {"registry.test/app:1": {**mark, **PINNED}, made.config.digest: mark}
        assert status == by_id
        assert status is not None
        assert status.pinned

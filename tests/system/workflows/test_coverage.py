"""What ``parbake coverage`` says a node fetches, against what containerd fetches of the same images from a registry."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from parbake.containerd import Client, Cri, Daemon
from parbake.core.run import Deadline
from parbake.images import pause
from parbake.machine import disk
from standins.images import Built, Compression, image, layer, push
from standins.newer import MACHINES, NEWER, program_of
from standins.registry import DockerRegistry
from standins.runs import bake, bakefile, parbake

pytestmark = [pytest.mark.root, pytest.mark.slow(20)]

_IMAGES = 50
_GET = re.compile(r"/v2/.*?/(?:blobs|manifests)/(?P<digest>sha256:[0-9a-f]{64})")


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    with DockerRegistry(tmp_path_factory.mktemp("registry")) as running:
        yield running


def pool() -> list[bytes]:
    """Return layers of different sizes that any image may have in any place."""
    chance = random.Random(20)
    return [layer({f"layer{number}": chance.randbytes(chance.randrange(1, 20_000))}) for number in range(8)]


def generated(layers: list[bytes]) -> tuple[list[Built], list[Built]]:
    """Return three images to bake, of the last the lowest layers, and others: some begin like them, some do not."""
    chance = random.Random(26)
    baked = [image(*layers[:4]), image(*layers[:2], layers[5]), image(layers[6], *layers[3:6])]
    others = []
    for number in range(_IMAGES):
        bottom = layers[:4] if number % 3 else [layers[6], *layers[3:6]]
        shared = bottom[: chance.randrange(5)] if number % 2 else []
        rest = chance.choices(layers, k=chance.randrange(1, 4))
        compression: Compression = chance.choice(["gzip", "gzip", "zstd", "none"])
        others.append(image(*shared, *rest, compression=compression, config={"Env": [f"NUMBER={number % 40}"]}))
    return baked, others


def fetched(registry: DockerRegistry, since: int) -> set[str]:
    """Return the digests that were read of the registry, after so many bytes of its log."""
    lines = [json.loads(line) for line in registry.log.read_bytes()[since:].splitlines() if line.startswith(b"{")]
    asked = {line["http.request.uri"] for line in lines if line.get("http.request.method") == "GET"}
    return {found["digest"] for uri in asked if (found := _GET.fullmatch(uri.partition("?")[0]))}


def held(client: Client) -> set[str]:
    """Return all that a store has, under the names that it has for it."""
    images = {image.name for image in client.images.list()}
    return images | {info.digest for info in client.content.list()} | {each.name for each in client.snapshots.list()}


@pytest.mark.parametrize(("which", "keep"), [(MACHINES, False), (NEWER, True)])
def test_containerd_fetches_exactly_the_blobs_that_are_named(
    tmp_path: Path, registry: DockerRegistry, which: str, keep: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARBAKE_CACHE", str(tmp_path / "cache"))
    baked, others = generated(pool())
    for number, each in enumerate(baked):
        push(registry.url, f"team/baked{number}", each, "1")
    for number, each in enumerate(others):
        push(registry.url, "team/other", each, str(number))
    names = [f"{registry.host}/team/baked{number}:1" for number in range(len(baked))]
    images: list[str | Mapping[str, Any]] = [*names[:2], {"reference": names[2], "layers": 2}]
    file = bakefile(tmp_path / "here", images, base="none", artefact={"kind": "volume"}, keep_layers=keep)
    record = bake(file)
    names = [names[2], *(f"{registry.host}/team/other:{number}" for number in range(_IMAGES))]
    said = parbake("coverage", record["artefact_path"], *names, "--json", "-f", file).good()
    assert len({len(each["blobs"]) for each in said["images"]}) > 3, "some are covered well, some badly"
    assert said["images"][0]["layers"] == {"all": 4, "held": 2}
    with (
        disk.private_mounts(),
        disk.mount(Path(record["artefact_path"]), tmp_path / "mnt", filesystem="ext4") as mounted,
        Daemon(
            mounted.path, tmp_path / "run", cri=True, sandbox_image=pause.REFERENCE, containerd=program_of(which)
        ) as daemon,
        daemon.client() as client,
    ):
        cri = Cri(client.connection, cgroup_parent=daemon.cgroup_parent)
        before = held(client)
        for each in said["images"]:
            began = registry.log.stat().st_size
            cri.pull_image(each["reference"], timeout=60)
            written = Deadline(10, f"the registry's log has {each['blobs']}")
            while (seen := fetched(registry, began)) < set(each["blobs"]):  # a line comes after its answer
                written.sleep(0.01)
            assert seen == set(each["blobs"]), each
            deadline = Deadline(60, "the store is that of the bake again")
            while held(client) != before:
                for name in {image.name for image in client.images.list()} - before:
                    client.images.delete(name)
                client.gc()
                deadline.sleep(0.01)

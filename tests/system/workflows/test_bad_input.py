"""Bad input through the door: a clear error with the next step, its exit code, one JSON document, nothing left behind.

Exit 2: the input is wrong. Exit 1: the world failed. What lacks in the machine is in ``test_bad_machine.py``, bases
are in ``test_bake_bases.py``.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import socket
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from standins.faulty_proxy import Cut, FaultyProxy, Flip, Status
from standins.images import OCI_MANIFEST, Blob, Built, image, index, json_blob, layer, push, sha256
from standins.registry import DockerRegistry, certificates
from standins.runs import Done, as_program, bakefile, parbake, place, private_places, remove
from standins.tars import archive, entry

pytestmark = pytest.mark.root
__all__ = ["place", "private_places"]

SECRET = "hunter2-and-nobody-else"
SOME = layer({"etc/": None, "etc/motd": b"hello\n" * 1000})
APP = image(SOME)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    with DockerRegistry(tmp_path_factory.mktemp("registry")) as served:
        push(served.url, "team/app", APP, "1.0")
        push(served.url, "team/app", APP, "1.1")
        arm = [image(SOME, platform=f"linux/{name}") for name in ("arm64", "arm/v7")]
        push(served.url, "team/arm", index(*arm), "1")
        yield served


def plan(path: Path) -> Done:
    return parbake("plan", "-f", path, "--json", "--progress", "none")


def bake(path: Path) -> Done:
    return parbake("bake", "-f", path, "--no-verify", "--json", "--progress", "none")


def volume(place: Path, *images: Any, **keys: Any) -> Path:
    return bakefile(place, images, **{"base": "none", "size": "64MiB", **keys})


# ---- the Bakefile and arguments

BAKEFILES: dict[str, tuple[str, list[str]]] = {
    "unknown key": ("version: 1\nimagse: [a.test/b:1]\n", ["line 2", "imagse", "did you mean 'images'?"]),
    "unknown key inside": ("version: 1\nimages: [{reference: a.test/b:1, buidl: x}]\n", ["line 2", "buidl", "build"]),
    "wrong type": ("version: 1\nimages: a.test/b:1\n", ["line 2: images", "must be a list"]),
    "wrong type inside": ("version: 1\nimages: [a.test/b:1]\nkeep_layers: maybe\n", ["line 3", "true or false"]),
    "upper case": ("version: 1\nimages: [a.test/Team:1]\n", ["line 2: images[0]", "Team", "lower case"]),
    "short digest": ("version: 1\nimages: ['a.test/b@sha256:12']\n", ["sha256 digest", "64 hex digits"]),
    "no tag": ("version: 1\nimages: ['a.test/b:']\n", ["is not a valid tag"]),
    "twice": ("version: 1\nimages: [a.test/b:1, a.test/b:1]\n", ["is already in the list"]),
    "no images": ("version: 1\nimages: []\n", ["line 2: images"]),
    "no version": ("images: [a.test/b:1]\n", ["version", "write version: 1"]),
    "another version": ("version: 7\nimages: [a.test/b:1]\n", ["reads version 1, not the number 7"]),
    "platform": ("version: 1\nplatform: amd64\nimages: [a.test/b:1]\n", ["line 2: platform", "linux/amd64"]),
    "size": ("version: 1\nsize: huge\nimages: [a.test/b:1]\n", ["line 2: size", "20GiB"]),
    "format": ("version: 1\nartefact: ami\nimages: [a.test/b:1]\n", ["line 2: artefact", "makes a file, not ami"]),
    "qcow2 volume": (
        "version: 1\nbase: none\nartefact: {kind: volume, format: qcow2}\nimages: [a.test/b:1]\n", ["a volume is raw"]
    ),
    "no base for a machine": ("version: 1\nbase: none\nartefact: qcow2\nimages: [a.test/b:1]\n", ["needs a base"]),
    "base that is missing": ("version: 1\nbase: {file: no.raw}\nimages: [a.test/b:1]\n", ["line 2", "no.raw"]),
    "context that is missing": ("version: 1\nimages: [{reference: a.test/b:1, build: no}]\n", ["no", "line 2"]),
    "nothing but localhost": ("version: 1\nimages: [localhost/b:1]\n", ["can only be built"]),
    "docker": ("version: 1\nruntime: docker\nimages: [a.test/b:1]\n", ["docker is not supported yet"]),
    "no YAML": ("version: 1\nimages: [a.test/b:1\n", ["line"]),
    "a tag of YAML": ("version: !!python/object/apply:os.system [true]\nimages: [a.test/b:1]\n", ["line 1"]),
    "two documents": ("version: 1\nimages: [a.test/b:1]\n---\nversion: 1\n", ["second document"]),
    "empty": ("", ["is empty"]),
    "all at once": (
        "version: 2\nimages: [A/B, {reference: a.test/b:1, startup: {up: maybe}}]\nnaem: x\n",
        ["problems\n", "line 1: version", "line 2: images[0]", "up", "line 3: naem"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BAKEFILES)
def test_bakefiles(place: Path, what: str) -> None:
    text, words = BAKEFILES[what]
    path = place / "parbake.yaml"
    path.write_text(text)
    document = plan(path).refused(2, "BakefileError", str(path), *words)
    assert document["problems"]
    assert all(problem["message"] for problem in document["problems"])
    assert bake(path).refused(2, "BakefileError")["problems"] == document["problems"]


def test_bakefiles_that_cannot_be_read(place: Path) -> None:
    plan(place / "none.yaml").refused(2, "InputError", "none.yaml", hint="parbake init")
    plan(place).refused(2, "InputError", "is a folder")
    (place / "bytes.yaml").write_bytes(os.urandom(1000))
    plan(place / "bytes.yaml").refused(2, "BakefileError", "bytes.yaml")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["bake", "--nonsense"], ["--nonsense"]),
        (["bake", "--progress", "loud"], ["--progress loud"]),
        (["verify"], ["no record is named"]),
        (["prune", "--keep", "-1"], ["--keep"]),
        (["prune", "--keep", "few"], ["--keep"]),
        (["cook"], ["cook"]),
    ],
)
def test_arguments(arguments: list[str], words: list[str]) -> None:
    done = parbake(*arguments, "--json")
    document = done.document
    assert (done.code, document["exit_code"], document["error"]) == (2, 2, "InputError")
    assert all(word in document["message"] for word in words)
    assert document["hint"]
    assert done.err


# ---- what the registry has


def test_a_tag_that_is_missing(place: Path, registry: DockerRegistry) -> None:
    path = volume(place, f"{registry.host}/team/app:1.2")
    plan(path).refused(2, "NoSuchImage", "team/app:1.2", "has no tag 1.2", hint="1.1")


def test_a_repository_that_is_missing(place: Path, registry: DockerRegistry) -> None:
    plan(volume(place, f"{registry.host}/team/ap:1")).refused(2, "NoSuchImage", "has no repository team/ap")


def test_a_digest_that_is_missing(place: Path, registry: DockerRegistry) -> None:
    path = volume(place, f"{registry.host}/team/app@{sha256(b'')}")
    plan(path).refused(2, "NoSuchImage", "has no such digest")


def test_a_platform_that_is_missing(place: Path, registry: DockerRegistry) -> None:
    path = volume(place, f"{registry.host}/team/arm:1", platform="linux/amd64")
    plan(path).refused(2, "NoSuchImage", "team/arm:1", "linux/amd64", "linux/arm64", "linux/arm/v7")


def artifact() -> Built:
    config = Blob("application/vnd.cncf.helm.config.v1+json", b"{}")
    document = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config.descriptor, "layers": []}
    return Built(json_blob(OCI_MANIFEST, document), (config,))


def strange_layer() -> Built:
    return remade(APP, lambda manifest: manifest["layers"][0].update(mediaType="application/vnd.test.layer"))


def remade(built: Built, change: Callable[[dict[str, Any]], object]) -> Built:
    """Return an image with a changed manifest."""
    manifest = json.loads(built.root.data)
    change(manifest)
    return replace(built, root=json_blob(OCI_MANIFEST, manifest))


def promising(built: Built, diff_ids: list[str]) -> Built:
    """Return an image whose config promises other layers than it has."""
    config = json.loads(built.config.data)
    config["rootfs"]["diff_ids"] = diff_ids
    blob = json_blob(built.config.media_type, config)
    document = {**json.loads(built.root.data), "config": blob.descriptor}
    return Built(json_blob(OCI_MANIFEST, document), (blob, *built.layers), diff_ids=tuple(diff_ids))


@pytest.mark.parametrize(
    ("built", "code", "error", "words"),
    [
        (artifact(), 2, "NoSuchImage", ["a Helm chart"]),
        (strange_layer(), 2, "InputError", ["application/vnd.test.layer"]),
        (promising(APP, []), 1, "BadContent", ["has 1 layers, its config names 0"]),
    ],
    ids=["artifact", "strange layer", "config without layers"],
)
def test_what_is_no_image(
    place: Path, registry: DockerRegistry, built: Built, code: int, error: str, words: list[str]
) -> None:
    push(registry.url, "team/odd", built, "1")
    plan(volume(place, f"{registry.host}/team/odd:1")).refused(code, error, "team/odd:1", *words)


# ---- who is let in, and by which way


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    folder = tmp_path_factory.mktemp("locked")
    with DockerRegistry(folder, tls=certificates(folder), users={"ann": "a word of her own"}) as served:
        push(served.url, "team/app", APP, "1", user=("ann", "a word of her own"), ca=served.ca)
        yield served


def test_nobody_is_not_let_in(place: Path, locked: DockerRegistry) -> None:
    path = volume(place, f"{locked.host}/team/app:1", registries={locked.host: {"ca": locked.ca}})
    plan(path).refused(1, "Denied", locked.host, "team/app", hint="login")


def test_a_wrong_password(place: Path, locked: DockerRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARBAKE_USERNAME", "ann")
    monkeypatch.setenv("PARBAKE_PASSWORD", SECRET)
    options = {"ca": locked.ca, "credentials": "environment"}
    path = volume(place, f"{locked.host}/team/app:1", registries={locked.host: options})
    for done in (plan(path), as_program("--debug", "plan", "-f", path, "--json")):
        assert (done.code, done.document["error"]) == (1, "Denied")
        assert locked.host in done.document["message"]
        assert done.document["hint"]
        assert SECRET not in done.out + done.err
    assert not [file for file in place.rglob("*") if file.is_file() and SECRET.encode() in file.read_bytes()]


def test_an_unknown_authority(place: Path, locked: DockerRegistry) -> None:
    path = volume(place, f"{locked.host}/team/app:1")
    plan(path).refused(1, "Unreachable", locked.host, "not trusted", hint=f"registries.{locked.host}.ca")


def test_plain_http_to_a_tls_port(place: Path, locked: DockerRegistry) -> None:
    path = volume(place, f"{locked.host}/team/app:1", registries={locked.host: {"plain_http": True}})
    plan(path).refused(1, "Unreachable", locked.host, "speaks TLS", hint="plain_http")


def test_tls_to_a_plain_port(place: Path, registry: DockerRegistry) -> None:
    """Loopback names are tried with both; any other name means TLS."""
    with FaultyProxy(registry.url, address=not_loopback()) as proxy:
        path = volume(place, f"{proxy.host}/team/app:1.0")
        plan(path).refused(1, "Unreachable", proxy.host, "plain HTTP", hint=f"registries.{proxy.host}.plain_http: true")
        assert proxy.requests == []


def not_loopback() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing: only asks for the way there
        except OSError:
            pytest.skip("the machine has no network interface besides loopback")
        return str(probe.getsockname()[0])


def test_a_registry_that_is_down(place: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        host = f"127.0.0.1:{server.getsockname()[1]}"
    plan(volume(place, f"{host}/team/app:1")).refused(1, "Unreachable", host, hint="")


def test_a_name_that_nobody_knows(place: Path) -> None:
    plan(volume(place, "no-such-host.invalid/team/app:1")).refused(1, "Unreachable", "no-such-host.invalid")


@pytest.fixture
def proxy(registry: DockerRegistry) -> Iterator[FaultyProxy]:
    with FaultyProxy(registry.url) as running:
        running.only = "/manifests/"
        yield running


@pytest.mark.parametrize(
    ("faults", "error", "words"),
    [
        ([Status(403)], "Denied", ["team/app"]),
        ([Status(429, {"Retry-After": "0"})] * 6, "RegistryError", ["answers 429"]),
        ([Status(418)], "RegistryError", ["answers 418"]),
        ([Status(200, {"Content-Type": "text/html"}, b"<html>Log in")], "BadContent", ["did not deliver a manifest"]),
        ([Status(200, {"Content-Type": OCI_MANIFEST}, b"{" + b" " * (5 << 20))], "BadContent", ["4194304"]),
        ([Status(200, {"Content-Type": OCI_MANIFEST}, b'{"config": 1}')], "BadContent", ["malformed"]),
        ([Flip(20)], "BadContent", ["digest"]),
    ],
    ids=["403", "429", "418", "web page", "too large", "malformed", "flipped bit"],
)
def test_manifests(place: Path, proxy: FaultyProxy, faults: list[Any], error: str, words: list[str]) -> None:
    proxy.faults.extend(faults)
    plan(volume(place, f"{proxy.host}/team/app:1.0")).refused(1, error, proxy.host, *words)


# ---- content that is not what it should be


def blob_file(registry: DockerRegistry, digest: str) -> Path:
    """Return where the registry keeps a blob."""
    value = digest.removeprefix("sha256:")
    return registry.folder / "content/docker/registry/v2/blobs/sha256" / value[:2] / value / "data"


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


def shortened(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"more")


def removed(path: Path) -> None:
    shutil.rmtree(path.parent)


@pytest.mark.parametrize(
    ("harm", "error", "words"),
    [
        (flipped, "BadContent", ["layer sha256:", "digest"]),
        (shortened, "BadContent", ["less of it than the manifest says"]),
        (longer, "BadContent", ["bytes"]),
        (removed, "RegistryError", ["does not have it"]),
    ],
)
def test_a_harmed_layer(
    place: Path, registry: DockerRegistry, harm: Callable[[Path], None], error: str, words: list[str]
) -> None:
    """The registry's own disk is at fault: what arrives is not what its name says."""
    built = image(layer({harm.__name__: os.urandom(50_000)}))
    push(registry.url, f"harmed/{harm.__name__}", built, "1")
    harm(blob_file(registry, built.layers[0].digest))
    done = bake(volume(place, f"{registry.host}/harmed/{harm.__name__}:1"))
    done.refused(1, error, built.layers[0].digest, *words)


def test_a_harmed_config(place: Path, registry: DockerRegistry) -> None:
    built = image(layer({"config": b"x"}))
    push(registry.url, "harmed/config", built, "1")
    flipped(blob_file(registry, built.config.digest))
    plan(volume(place, f"{registry.host}/harmed/config:1")).refused(1, "BadContent", built.config.digest, "digest")


def test_a_connection_that_breaks_for_good(place: Path, registry: DockerRegistry) -> None:
    built = image(layer({"cut": os.urandom(300_000)}), compression="none")
    push(registry.url, "harmed/cut", built, "1")
    with FaultyProxy(registry.url) as proxy:
        proxy.only = built.layers[0].digest
        path = volume(place, f"{proxy.host}/harmed/cut:1", name="cut")
        plan(path).good()
        proxy.faults.extend([Cut(1000), Status(502, {"Retry-After": "0"}), *[Status(410)] * 3])
        bake(path).refused(1, "RegistryError", proxy.host, "answers 410")


def with_zeros(head: bytes, zeros: int, tail: bytes = b"") -> bytes:
    """Return gzip of some zeros between two texts, of which never more than a mebibyte is here."""
    packer, part = zlib.compressobj(9, wbits=31), bytes(1 << 20)
    parts = [packer.compress(head), *(packer.compress(part) for _ in range(zeros >> 20))]
    return b"".join([*parts, packer.compress(tail), packer.flush()])


def gzip_bomb(size: int) -> bytes:
    """Return gzip whose trailer speaks of its last, small member only: how large the tar is, nobody sees beforehand."""
    head = entry(b"big", data=b"", size=size)
    return with_zeros(head, size, archive()) + gzip.compress(bytes(1024), 9, mtime=0)


def trailing_bomb(size: int) -> bytes:
    """Return gzip of a tar behind whose end there is nothing but zeros."""
    return with_zeros(archive(entry(b"small", data=b"x")), size) + gzip.compress(bytes(512))


def digest_of_the_unpacked(packed: bytes) -> str:
    """Compute the digest of what may be large, by parts."""
    with gzip.open(io.BytesIO(packed)) as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def from_packed(packed: bytes) -> Built:
    """Return an image of one layer that travels as ``packed``, whatever that is."""
    built = image(SOME)
    blob = Blob(built.layers[0].media_type, packed)
    try:
        diff_id = digest_of_the_unpacked(packed)
    except (OSError, EOFError, zlib.error):
        diff_id = sha256(packed)
    config = json_blob(built.config.media_type, {**json.loads(built.config.data), "rootfs": {
        "type": "layers", "diff_ids": [diff_id]}})  # fmt: skip
    document = {**json.loads(built.root.data), "config": config.descriptor, "layers": [blob.descriptor]}
    return Built(json_blob(OCI_MANIFEST, document), (config, blob), diff_ids=(diff_id,))


# Made when they are needed: some are large on the way.
LAYERS: dict[str, tuple[Callable[[], Built], str, list[str]]] = {
    "climbs": (lambda: image(archive(entry(b"../../outside", data=b"x"))), "LayerEscape", ["../../outside"]),
    "link climbs": (lambda: image(archive(entry(b"h", b"1", link=b"../../../etc/passwd"))), "LayerEscape", ["h"]),
    "no tar": (lambda: image(os.urandom(5000)), "LayerError", ["layer sha256:"]),
    "no gzip": (lambda: from_packed(b"\x1f\x8b\x08 but no more"), "LayerError", ["cannot be inflated"]),
    "half a gzip": (lambda: from_packed(gzip.compress(SOME)[:-20]), "LayerError", ["cannot be inflated"]),
    "half a tar": (lambda: image(archive(entry(b"a", data=b"x" * 5000))[:3000]), "LayerError", ["layer sha256:"]),
    "another diff ID": (lambda: promising(APP, [sha256(b"other")]), "BadContent", ["unpacks to", sha256(b"other")]),
    "bomb": (lambda: from_packed(gzip_bomb(96 << 20)), "ArtefactFull", ["has no blocks left"]),
    "bomb behind the end": (
        lambda: from_packed(trailing_bomb(72 << 20)),
        "LayerTooLarge",
        ["to more than 67108864 bytes"],
    ),
}


@pytest.mark.parametrize("what", LAYERS)
def test_layers(place: Path, registry: DockerRegistry, what: str) -> None:
    make, error, words = LAYERS[what]
    built = make()
    repository = f"layers/{what.replace(' ', '-').lower()}"
    push(registry.url, repository, built, "1")
    path = volume(place, f"{registry.host}/team/app:1.0", f"{registry.host}/{repository}:1")
    document = bake(path).refused(1, error, *words)
    # Whoever writes next finds that the disk is full.
    assert error == "ArtefactFull" or built.layers[0].digest in document["message"]
    assert not list(place.rglob("outside"))


def test_layers_that_only_together_inflate_to_more_than_the_disk(place: Path, registry: DockerRegistry) -> None:
    """What follows an archive's end takes no disk, only time: hundreds of layers could each inflate to a whole disk."""
    names = [f"{registry.host}/layers/sum-{size}:1" for size in (25, 26, 27)]
    for size in (25, 26, 27):
        push(registry.url, f"layers/sum-{size}", from_packed(trailing_bomb(size << 20)), "1")
    remove(bake(volume(place, *names[:2])).good())
    bake(volume(place, *names)).refused(1, "LayerTooLarge", "this layer and those before it", "more than 67108864")


def test_a_layer_behind_an_absolute_link_stays_inside(place: Path, registry: DockerRegistry) -> None:
    """No error: as in containerd, a link is followed inside the root."""
    victim = place / "victim"
    victim.mkdir()
    link = os.fsencode(victim)
    push(registry.url, "layers/link", image(archive(entry(b"l", b"2", link=link), entry(b"l/x", data=b"x"))), "1")
    record = bake(volume(place, f"{registry.host}/layers/link:1")).good()
    assert list(victim.iterdir()) == []
    remove(record)


# ---- records and artefacts that are named


def test_records_that_are_none(place: Path) -> None:
    bakefile(place, ["a.test/b:1"])
    (place / "notes.json").write_text('{"parbake": {"artefact": 7}}')
    (place / "broken.json").write_bytes(b"\xff{")
    (place / "notes.txt").write_text("hello\n" * 1000)
    (place / "artefacts").mkdir()
    shutil.copy(place / "broken.json", place / "artefacts/node-1.raw.json")

    def run(command: str, what: str) -> Done:
        return parbake(command, str(place / what), "-f", place / "parbake.yaml", "--json")

    for command in ("verify", "show"):
        run(command, "missing.json").refused(2, "InputError", "missing.json", "no such record or file", hint="list")
        run(command, "notes.json").refused(2, "InputError", "notes.json", "not a parbake record")
        run(command, "broken.json").refused(2, "InputError", "broken.json", "not a parbake record")
        run(command, "artefacts").refused(2, "InputError", "no such record or file")
    run("verify", "notes.txt").refused(2, "BadBase", "notes.txt", "neither a bootable disk nor a volume")
    run("show", "notes.txt").refused(2, "InputError", "has no record beside it")
    assert parbake("list", "-f", place / "parbake.yaml", "--json").good() == []
    (place / "artefacts/node-1.raw.json").unlink()


def test_a_record_whose_artefact_is_gone(place: Path, registry: DockerRegistry) -> None:
    path = volume(place, f"{registry.host}/team/app:1.0")
    record = bake(path).good()
    Path(record["artefact_path"]).unlink()
    done = parbake("verify", record["record_path"], "-f", path, "--json")
    remove(record)
    done.refused(2, "InputError", Path(record["artefact_path"]).name, "does not exist")

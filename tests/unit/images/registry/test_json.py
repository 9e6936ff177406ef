"""Documents that containerd would read differently are refused: one image in the plan, another on the node."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from parbake.core.errors import BadContent, InputError
from parbake.core.model import Platform
from parbake.core.reference import Reference
from parbake.images.registry import Layout
from standins.images import OCI_CONFIG, Blob, Built, image, index, layer, write_layout

GOOD, EVIL = image(layer({"a": b"good"})), image(layer({"a": b"evil"}))
NAME = Reference.parse("reg.test/team/app:v1")
AMD64 = Platform.parse("linux/amd64")


def put(body: bytes, key: str, value: Any, *, before: str = "") -> bytes:
    """Return a JSON document with one more key: at the end of its outermost object, or right before another key."""
    text, member = body.decode(), f"{json.dumps(key, ensure_ascii=False)}: {json.dumps(value)}"
    if before:
        at = text.index(f'"{before}"')
        return f"{text[:at]}{member}, {text[at:]}".encode()
    return f"{text[: text.rindex('}')]}, {member}}}".encode()


def resolve(tmp_path: Path, built: Built) -> None:
    Layout(write_layout(tmp_path / "layout", {"v1": built})).resolve(NAME, AMD64)


def of_manifest(body: bytes) -> Built:
    """Return the image with both layers' blobs there, whose manifest is ``body``."""
    root = dataclasses.replace(GOOD.root, data=body)
    return dataclasses.replace(GOOD, root=root, blobs=(*GOOD.blobs, *EVIL.blobs))


def of_config(body: bytes) -> Built:
    config = Blob(OCI_CONFIG, body)
    manifest = {**json.loads(GOOD.root.data), "config": config.descriptor}
    root = dataclasses.replace(GOOD.root, data=json.dumps(manifest).encode())
    return dataclasses.replace(GOOD, root=root, blobs=(config, *GOOD.layers))


MANIFEST, CONFIG_BODY = GOOD.root.data, GOOD.config.data
EVIL_LAYERS = json.loads(EVIL.root.data)["layers"]
EVIL_ROOT = json.loads(EVIL.config.data)["rootfs"]


def test_the_same_documents_without_tricks_are_taken(tmp_path: Path) -> None:
    resolve(tmp_path, of_manifest(put(MANIFEST, "annotations", {"a": "1", "A": "2", "layers": "x", "LAYERS": "y"})))
    config = {**json.loads(CONFIG_BODY), "config": {"Labels": {"k": "1", "K": "2"}, "Env": ["A=1", "a=2"]}}
    Layout(write_layout(tmp_path / "two", {"v1": of_config(json.dumps(config).encode())})).resolve(NAME, AMD64)


@pytest.mark.parametrize("key", ["LAYERS", "Layers", "layer\u017f"])
def test_a_manifest_with_layers_in_another_case_is_refused(tmp_path: Path, key: str) -> None:
    """containerd takes the last of ``layers`` and ``LAYERS``: the node would run what the plan does not name."""
    with pytest.raises(BadContent, match=r"read differently by containerd: the key .* only in case"):
        resolve(tmp_path, of_manifest(put(MANIFEST, key, EVIL_LAYERS)))


def test_a_manifest_with_layers_twice_is_refused(tmp_path: Path) -> None:
    """A reader that takes the first of two keys sees the other layers."""
    with pytest.raises(BadContent, match="has the key 'layers' twice"):
        resolve(tmp_path, of_manifest(put(MANIFEST, "layers", EVIL_LAYERS, before="layers")))


@pytest.mark.parametrize("key", ["RootFS", "ROOTFS", "rootf\u017f"])
def test_a_config_with_rootfs_in_another_case_is_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(BadContent, match="the image's config would be read differently by containerd"):
        resolve(tmp_path, of_config(put(CONFIG_BODY, key, EVIL_ROOT)))


@pytest.mark.parametrize(
    "change",
    [
        {"rootfs": {**json.loads(CONFIG_BODY)["rootfs"], "DIFF_IDS": EVIL_ROOT["diff_ids"]}},
        {"config": {"Entrypoint": ["/good"], "entrypoint": ["/evil"]}},
        {"config": {"wor\u212aingDir": "/"}},
        {"history": [{"created_by": "RUN true"}, {"Empty_Layer": True}]},
        {"Architecture": "arm64"},
        {"OS.Version": "1"},
    ],
    ids=lambda change: ascii(next(iter(change))),
)
def test_every_level_of_a_config_is_held_to_it(tmp_path: Path, change: dict[str, Any]) -> None:
    body = json.dumps({**json.loads(CONFIG_BODY), **change}, ensure_ascii=False).encode()
    with pytest.raises(BadContent, match="only in case"):
        resolve(tmp_path, of_config(body))


@pytest.mark.parametrize(
    ("level", "key", "value"),
    [
        ("layer", "Digest", "sha256:" + "0" * 64),
        ("layer", "SIZE", 1),
        ("config", "mediatype", "x"),
        ("config", "Platform", {}),
        ("platform", "OS", "linux"),
    ],
)
def test_every_level_of_a_manifest_is_held_to_it(tmp_path: Path, level: str, key: str, value: Any) -> None:
    manifest = json.loads(MANIFEST)
    manifest["config"]["platform"] = {"os": "linux", "architecture": "amd64"}
    place = {
        "layer": manifest["layers"][0], "config": manifest["config"], "platform": manifest["config"]["platform"]
    }[level]  # fmt: skip
    place[key] = value
    with pytest.raises(BadContent, match="only in case"):
        resolve(tmp_path, of_manifest(json.dumps(manifest).encode()))


@pytest.mark.parametrize("key", ["MANIFESTS", "Manifests", "manife\u017fts"])
def test_an_index_with_manifests_in_another_case_is_refused(tmp_path: Path, key: str) -> None:
    both = index(GOOD, EVIL)
    body = put(both.root.data, key, [EVIL.root.descriptor])
    with pytest.raises(BadContent, match="only in case"):
        resolve(tmp_path, dataclasses.replace(both, root=dataclasses.replace(both.root, data=body)))


@pytest.mark.parametrize(
    ("name", "body", "message"),
    [
        ("index.json", b'{"manifests": [], "Manifests": []}', r"index\.json would be read differently"),
        ("index.json", b'{"manifests": [], "manifests": []}', "the key 'manifests' twice"),
        ("oci-layout", b'{"imageLayoutVersion": "1.0.0", "ImageLayoutVersion": "9"}', "oci-layout would be read"),
    ],
)
def test_a_layouts_own_files_are_held_to_it(tmp_path: Path, name: str, body: bytes, message: str) -> None:
    folder = write_layout(tmp_path / "layout", {"v1": GOOD})
    (folder / name).write_bytes(body)
    with pytest.raises(BadContent, match=message):
        Layout(folder).resolve(NAME, AMD64)


@pytest.mark.parametrize("size", [1e30, 10**30, 2.0, True, "100", -1, 1 << 41, 10**400])
def test_a_size_that_is_no_bounded_whole_number_is_refused(tmp_path: Path, size: Any) -> None:
    """Go takes whole numbers of 64 bits for a size, and nothing needs them all."""
    manifest = json.loads(MANIFEST)
    manifest["layers"][0]["size"] = size
    with pytest.raises(BadContent, match=r"malformed: layers\.0\.size"):
        resolve(tmp_path, of_manifest(json.dumps(manifest).encode()))


def test_the_layers_together_are_bounded(tmp_path: Path) -> None:
    manifest = json.loads(MANIFEST)
    manifest["layers"] = [{**manifest["layers"][0], "size": 1 << 39}] * 3
    with pytest.raises(InputError, match="layers claim 1649267441664 bytes"):
        resolve(tmp_path, of_manifest(json.dumps(manifest).encode()))

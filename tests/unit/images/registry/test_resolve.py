"""What a name means: the rules, tried on OCI layouts (a registry's content goes through the same ones)."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from parbake.core.errors import BadContent, InputError, NoSuchImage
from parbake.core.model import Descriptor, Image, Platform
from parbake.core.reference import Reference
from parbake.images.registry import Layout
from standins.images import (
    DOCKER_CONFIG,
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_MANIFEST,
    Blob,
    Built,
    Compression,
    image,
    index,
    json_blob,
    layer,
    write_layout,
)

ONE, TWO = layer({"a": b"1"}), layer({"b": b"2"})
AMD64 = Platform.parse("linux/amd64")
NAME = Reference.parse("reg.test/team/app:v1")


def look(tmp_path: Path, built: Built, platform: str = "linux/amd64", reference: Reference = NAME) -> Image:
    return Layout(write_layout(tmp_path / "layout", {"v1": built})).resolve(reference, Platform.parse(platform))


def changed(built: Built, **changes: Any) -> Built:
    """Return an image whose manifest has other values (None: no such key)."""
    document = {**json.loads(built.root.data), **changes}
    document = {key: value for key, value in document.items() if value is not None}
    root = json_blob(built.root.media_type, document, platform=built.root.platform)
    return dataclasses.replace(built, root=root)


def with_config(built: Built, config: Any) -> Built:
    """Return an image with another config."""
    blob = config if isinstance(config, Blob) else json_blob(OCI_CONFIG, config)
    return changed(dataclasses.replace(built, blobs=(blob, *built.layers)), config=blob.descriptor)


def without_platform(built: Built) -> Built:
    return dataclasses.replace(built, root=dataclasses.replace(built.root, platform={}))


@pytest.mark.parametrize("docker", [False, True])
@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
def test_an_image_is_described(tmp_path: Path, *, docker: bool, compression: Compression) -> None:
    built = image(ONE, TWO, ONE, docker=docker, compression=compression)
    got = look(tmp_path, built)
    assert str(got.reference) == "reg.test/team/app:v1"
    assert got.layout == str(tmp_path / "layout")
    assert got.platform == AMD64
    assert got.target == got.manifest
    assert got.manifest.media_type == (DOCKER_MANIFEST if docker else OCI_MANIFEST)
    assert (got.manifest.digest, got.manifest.size) == (built.digest, built.root.size)
    assert got.config.media_type == (DOCKER_CONFIG if docker else OCI_CONFIG)
    assert [(entry.digest, entry.size) for entry in got.layers] == [(blob.digest, blob.size) for blob in built.layers]
    assert [entry.diff_id for entry in got.layers] == list(built.diff_ids)
    assert [entry.raw_size for entry in got.layers] == [len(ONE), len(TWO), len(ONE)]
    chain = built.diff_ids[0]
    for number, entry in enumerate(got.layers):
        if number:
            chain = f"sha256:{hashlib.sha256(f'{chain} {built.diff_ids[number]}'.encode()).hexdigest()}"
        assert entry.chain_id == chain


def test_an_image_without_layers(tmp_path: Path) -> None:
    assert look(tmp_path, image()).layers == ()


def test_null_lists_are_empty_lists(tmp_path: Path) -> None:
    assert look(tmp_path, changed(image(), layers=None)).layers == ()


@pytest.mark.parametrize("docker", [False, True])
def test_an_index_gives_the_platform(tmp_path: Path, *, docker: bool) -> None:
    amd, arm = image(ONE, docker=docker), image(TWO, docker=docker, platform="linux/arm64/v8")
    both = index(amd, arm, docker=docker)
    got = look(tmp_path, both, "linux/arm64")
    assert (got.target.digest, got.manifest.digest) == (both.digest, arm.digest)
    assert got.target.media_type == (DOCKER_LIST if docker else OCI_INDEX)
    assert str(got.platform) == "linux/arm64"
    assert Layout(tmp_path / "layout").platforms(NAME) == (AMD64, Platform.parse("linux/arm64"))


@pytest.mark.parametrize(
    ("wanted", "there", "expected"),
    [
        ("linux/arm/v7", ["linux/arm/v5", "linux/arm/v6", "linux/arm64"], "linux/arm/v6"),
        ("linux/arm/v7", ["linux/arm/v6", "linux/arm/v7"], "linux/arm/v7"),
        ("linux/arm/v7", ["linux/arm/v5", "linux/arm"], "linux/arm/v7"),
        ("linux/amd64/v3", ["linux/amd64", "linux/amd64/v2", "linux/amd64/v4"], "linux/amd64/v2"),
        ("linux/amd64", ["linux/amd64/v2", "linux/amd64/v1"], "linux/amd64"),
        ("linux/amd64", ["linux/386", "linux/arm64"], "linux/386"),
        ("linux/arm64", ["linux/arm/v7", "linux/arm64/v8"], "linux/arm64"),
    ],
)
def test_variants(tmp_path: Path, wanted: str, there: list[str], expected: str) -> None:
    images = [image(layer({"p": name.encode()}), platform=name) for name in there]
    got = look(tmp_path, index(*images), wanted)
    assert str(got.platform) == expected


def test_no_such_platform_says_which_there_are(tmp_path: Path) -> None:
    attestation = dataclasses.replace(
        image(TWO), root=json_blob(OCI_MANIFEST, {}, platform={"os": "unknown", "architecture": "unknown"})
    )
    both = index(image(ONE, platform="linux/arm64"), image(ONE, platform="linux/amd64/v2"), attestation)
    with pytest.raises(NoSuchImage, match=r"linux/arm64, linux/amd64/v2$"):
        look(tmp_path, both)


def test_a_single_image_for_another_machine(tmp_path: Path) -> None:
    with pytest.raises(NoSuchImage, match=r"no image for linux/amd64.*linux/arm64$"):
        look(tmp_path, image(ONE, platform="linux/arm64/v8"))


def test_entries_without_a_platform_are_looked_into(tmp_path: Path) -> None:
    arm, amd = without_platform(image(ONE, platform="linux/arm64")), without_platform(image(TWO))
    assert look(tmp_path, index(arm, amd)).manifest.digest == amd.digest
    assert Layout(tmp_path / "layout").platforms(NAME) == (Platform.parse("linux/arm64"), AMD64)


def test_artifacts_in_an_index_are_passed_over(tmp_path: Path) -> None:
    empty = json_blob("application/vnd.oci.empty.v1+json", {})
    signature = without_platform(changed(dataclasses.replace(image(), blobs=(empty,)), config=empty.descriptor))
    named = dataclasses.replace(
        image(TWO),
        root=json_blob(OCI_MANIFEST, {"x": 1}, annotations={"vnd.docker.reference.type": "attestation-manifest"}),
    )
    amd = without_platform(image(ONE))
    assert look(tmp_path, index(signature, named, amd)).manifest.digest == amd.digest
    assert Layout(tmp_path / "layout").platforms(NAME) == (AMD64,)


def test_indexes_nest(tmp_path: Path) -> None:
    amd, arm = image(ONE), image(TWO, platform="linux/arm64")
    inner = index(amd)
    assert look(tmp_path, index(index(arm), inner)).manifest.digest == amd.digest


def test_but_not_endlessly(tmp_path: Path) -> None:
    deep = index(image(ONE))
    for _ in range(4):
        deep = index(deep)
    with pytest.raises(BadContent, match="nested"):
        look(tmp_path, deep)
    with pytest.raises(BadContent, match="nested"):
        Layout(tmp_path / "layout").platforms(NAME)


def test_and_not_without_bound(tmp_path: Path) -> None:
    many = dataclasses.replace(index(*[image(ONE)] * 1001), children=())
    with pytest.raises(BadContent, match="1001 manifests"):
        look(tmp_path, many)


def test_and_not_without_bound_over_several_indexes(tmp_path: Path) -> None:
    """Entries without a platform are looked into, each with a manifest and a config: 2 * 10 * 60 requests."""
    arm = without_platform(image(ONE, platform="linux/arm64"))
    inner = without_platform(index(*[arm] * 60))
    with pytest.raises(BadContent, match="more than 1000 manifests and configs"):
        look(tmp_path, index(*[inner] * 10))
    with pytest.raises(BadContent, match="more than 1000 manifests and configs"):
        Layout(tmp_path / "layout").platforms(NAME)


def test_no_more_layers_than_linux_mounts(tmp_path: Path) -> None:
    """The kernel's overlay takes 500 (OVL_MAX_STACK); each more costs a request, and no node could start it."""
    assert len(look(tmp_path, image(*[ONE] * 500)).layers) == 500
    asked: list[int] = []

    class Shelf(Layout):
        def piece(self, descriptor: Descriptor, offset: int, length: int) -> bytes:
            asked.append(offset)
            return super().piece(descriptor, offset, length)

    folder = write_layout(tmp_path / "many", {"v1": image(*[ONE] * 501)})
    with pytest.raises(InputError, match="has 501 layers, and Linux mounts at most 500"):
        Shelf(folder).resolve(NAME, AMD64)
    assert asked == []


BASE = image(ONE)
GOOD = json.loads(BASE.root.data)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"schemaVersion": 1}, NoSuchImage, "schema 1"),
        ({"fsLayers": []}, NoSuchImage, "schema 1"),
        ({"manifests": [{"x": 1}]}, BadContent, "both an index and a manifest"),
        ({"mediaType": "application/vnd.oci.artifact.manifest.v1+json"}, NoSuchImage, "not a container image"),
        ({"config": None}, BadContent, "malformed: config"),
        ({"config": {**GOOD["config"], "digest": "sha512:abc"}}, BadContent, "malformed: config.digest"),
        ({"config": {**GOOD["config"], "size": -1}}, BadContent, "malformed: config.size"),
        ({"config": {**GOOD["config"], "size": 17 << 20}}, BadContent, "too many"),
        ({"config": {**GOOD["config"], "mediaType": "application/vnd.cncf.helm.config.v1+json"}}, NoSuchImage, "Helm"),
        ({"config": {**GOOD["config"], "mediaType": "x/y"}}, NoSuchImage, "x/y"),
        ({"layers": "many"}, BadContent, "malformed: layers"),
        ({"layers": []}, BadContent, "0 layers, its config names 1"),
        ({"layers": [{**GOOD["layers"][0], "mediaType": "text/plain"}]}, InputError, "text/plain"),
        (
            {
                "layers": [
                    {**GOOD["layers"][0], "mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"}
                ]
            },
            InputError,
            "not distributable",
        ),
        ({"layers": [{**GOOD["layers"][0], "urls": ["https://x.test/y"]}]}, InputError, "not distributable"),
    ],
)
def test_bad_manifests(tmp_path: Path, changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        look(tmp_path, changed(BASE, **changes))


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        (Blob(OCI_CONFIG, b"\xff"), BadContent, "not JSON"),
        (Blob(OCI_CONFIG, b"[" * 100_000), BadContent, "not JSON"),
        ([], NoSuchImage, "no rootfs"),
        ({"name": "chart"}, NoSuchImage, "no rootfs"),
        ({"rootfs": {"type": "disks"}}, BadContent, "'disks'"),
        ({"rootfs": {"diff_ids": ["md5:1"]}}, BadContent, "malformed: rootfs.diff_ids"),
        ({"rootfs": {"diff_ids": []}}, BadContent, "1 layers, its config names 0"),
    ],
)
def test_bad_configs(tmp_path: Path, config: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        look(tmp_path, with_config(BASE, config))


def test_a_config_that_does_not_say_is_taken_at_the_users_word(tmp_path: Path) -> None:
    got = look(tmp_path, with_config(BASE, {"rootfs": {"diff_ids": list(BASE.diff_ids)}}), "linux/arm64")
    assert str(got.platform) == "linux/arm64"


def test_an_index_that_calls_itself_a_manifest(tmp_path: Path) -> None:
    both = index(BASE)
    lying = dataclasses.replace(both, root=dataclasses.replace(both.root, media_type=OCI_MANIFEST))
    with pytest.raises(BadContent, match="calls itself"):
        look(tmp_path, lying)


def test_the_media_type_may_be_left_out_of_the_document(tmp_path: Path) -> None:
    assert look(tmp_path, changed(BASE, mediaType=None)).manifest.media_type == OCI_MANIFEST


class TestLayout:
    def test_names(self, tmp_path: Path) -> None:
        first, second = image(ONE), image(TWO)
        folder = write_layout(tmp_path / "layout", {"v1": first, "reg.test/team/other:v2": second})
        layout = Layout(folder)
        assert layout.resolve(NAME, AMD64).manifest.digest == first.digest
        other = Reference.parse("reg.test/team/other:v2")
        assert layout.resolve(other, AMD64).manifest.digest == second.digest
        pinned = Reference.parse(f"reg.test/team/app@{second.digest}")
        assert layout.resolve(pinned, AMD64).manifest.digest == second.digest
        with pytest.raises(NoSuchImage, match="v3") as caught:
            layout.resolve(Reference.parse("a:v3"), AMD64)
        assert "reg.test/team/other:v2, v1" in caught.value.hint

    def test_the_only_image_needs_no_name(self, tmp_path: Path) -> None:
        folder = write_layout(tmp_path / "layout", {"": image(ONE)})
        assert Layout(folder).resolve(NAME, AMD64).layers

    def test_a_digest_inside_an_index(self, tmp_path: Path) -> None:
        arm = image(TWO, platform="linux/arm64")
        folder = write_layout(tmp_path / "layout", {"v1": index(image(ONE), arm)})
        pinned = Reference.parse(f"a@{arm.digest}")
        assert Layout(folder).resolve(pinned, Platform.parse("linux/arm64")).target.digest == arm.digest
        with pytest.raises(NoSuchImage, match="no image sha256:0"):
            Layout(folder).resolve(Reference.parse(f"a@sha256:{'0' * 64}"), AMD64)

    def test_reading(self, tmp_path: Path) -> None:
        built = image(ONE, compression="none")
        layout = Layout(write_layout(tmp_path / "layout", {"v1": built}))
        got = layout.resolve(NAME, AMD64)
        source = layout.source(got)
        assert source.read(got.config) == built.config.data
        assert source.read(got.manifest) == built.root.data
        buffer = bytearray(1 << 20)
        blob = got.layers[0]
        with source.open(
            got.config.model_copy(update={"digest": blob.digest, "size": blob.size}), offset=500
        ) as stream:
            count = stream.readinto(memoryview(buffer))
            assert stream.readinto(memoryview(buffer)) == 0
        assert bytes(buffer[:count]) == ONE[500:]

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("oci-layout", None),
            ("oci-layout", "{}"),
            ("oci-layout", "x"),
            ("oci-layout", '{"imageLayoutVersion": "9"}'),
            ("index.json", None),
        ],
    )
    def test_no_layout(self, tmp_path: Path, name: str, text: str | None) -> None:
        folder = write_layout(tmp_path / "layout", {"v1": image(ONE)})
        (folder / name).unlink()
        if text is not None:
            (folder / name).write_text(text)
        with pytest.raises(InputError, match="layout") as caught:
            Layout(folder).resolve(NAME, AMD64)
        assert caught.value.hint

    def test_a_broken_index(self, tmp_path: Path) -> None:
        folder = write_layout(tmp_path / "layout", {"v1": image(ONE)})
        (folder / "index.json").write_text('{"manifests": 1}')
        with pytest.raises(BadContent, match=r"index\.json is malformed"):
            Layout(folder).resolve(NAME, AMD64)
        (folder / "index.json").write_text(" " * (5 << 20))
        with pytest.raises(BadContent, match=r"index\.json has more"):
            Layout(folder).resolve(NAME, AMD64)

    def test_damaged_blobs(self, tmp_path: Path) -> None:
        built = image(ONE)
        folder = write_layout(tmp_path / "layout", {"v1": built})
        config = folder / "blobs/sha256" / built.config.digest.removeprefix("sha256:")
        good = config.read_bytes()
        config.write_bytes(good.replace(b"2024", b"2025"))
        with pytest.raises(BadContent, match="has the digest"):
            Layout(folder).resolve(NAME, AMD64)
        config.write_bytes(good[:-1])
        with pytest.raises(BadContent, match="bytes, its descriptor says"):
            Layout(folder).resolve(NAME, AMD64)
        config.unlink()
        with pytest.raises(BadContent, match="No such file"):
            Layout(folder).resolve(NAME, AMD64)

    def test_only_regular_files_are_read(self, tmp_path: Path) -> None:
        built = image(ONE)
        folder = write_layout(tmp_path / "layout", {"v1": built})
        config = folder / "blobs/sha256" / built.config.digest.removeprefix("sha256:")
        (tmp_path / "outside").write_bytes(built.config.data)
        config.unlink()
        config.symlink_to(tmp_path / "outside")
        with pytest.raises(BadContent, match="symbolic"):
            Layout(folder).resolve(NAME, AMD64)
        config.unlink()
        os.mkfifo(config)
        with pytest.raises(BadContent, match="not a regular file"):
            Layout(folder).resolve(NAME, AMD64)


@pytest.mark.parametrize("name", ["oci-layout", "index.json"])
@pytest.mark.parametrize("kind", ["a pipe", "a device"])
def test_a_layout_with_something_else_in_the_place_of_a_document_is_refused(
    tmp_path: Path, kind: str, name: str
) -> None:
    folder = write_layout(tmp_path / "layout", {"v1": image(ONE)})
    (folder / name).unlink()
    if kind == "a pipe":
        os.mkfifo(folder / name)
    else:
        (folder / name).symlink_to("/dev/zero")
    with pytest.raises(InputError, match=r"is not an OCI image layout: .*it is no file"):
        Layout(folder).resolve(NAME, AMD64)

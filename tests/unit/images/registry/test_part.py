"""The lowest layers of an image: the image that ends there."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from typing import override

import pytest

from parbake.core.coverage import Held, cover
from parbake.core.errors import InputError
from parbake.core.model import Descriptor, Image
from parbake.core.plan import title
from parbake.core.sources import LayerSource, Readable
from parbake.images.registry.documents import check_image, read_config, read_document
from parbake.images.registry.part import PartSource, lowest
from standins.plans import image, layer, plan

LAYERS = (layer("a"), layer("b", below="a"), layer("c", below="ab"))


class _Elsewhere(LayerSource):
    @override
    def read(self, descriptor: Descriptor) -> bytes:
        return b"from the registry"

    @override
    def open(self, descriptor: Descriptor, *, offset: int = 0) -> AbstractContextManager[Readable]:
        raise AssertionError(descriptor)


def whole() -> Image:
    return image("registry.example/app:1", layers=LAYERS, also_by_digest=True)


def test_a_part_has_one_name_that_no_pod_asks_for() -> None:
    part = lowest(whole(), 2)
    assert part.names == (f"registry.example/app@{part.target.digest}",)
    assert part.target.digest != whole().target.digest
    assert part.part_of == whole().reference
    assert title(part) == "registry.example/app:1 (lowest 2 layers)"


def test_its_documents_are_those_of_an_image_of_these_layers() -> None:
    part = lowest(whole(), 2)
    source = PartSource(part, _Elsewhere())
    manifest = read_document("it", source.read(part.manifest), "")
    config = read_config("it", source.read(part.config))
    check_image("it", manifest.content)  # type: ignore[arg-type]
    assert manifest.descriptor == part.target
    assert manifest.content.config.descriptor == part.config  # type: ignore[union-attr]
    assert [each.digest for each in manifest.content.layers] == [each.digest for each in LAYERS[:2]]  # type: ignore[union-attr]
    assert config.rootfs.diff_ids == tuple(each.diff_id for each in LAYERS[:2])
    assert json.loads(source.read(part.config))["os"] == "linux"
    assert source.read(whole().config) == b"from the registry"


def test_the_same_layers_of_another_tag_are_the_same_content_key() -> None:
    later = image("registry.example/app:2", layers=(*LAYERS[:2], layer("d", below="ab")))
    keys = {plan(images=(lowest(each, 2),)).key for each in (whole(), later)}
    assert len(keys) == 1
    assert plan(images=(lowest(whole(), 1),)).key not in keys


def test_nodes_fetch_what_lies_above_a_part_and_all_documents() -> None:
    baked = plan(images=(lowest(whole(), 2),))
    covered = cover(Held.by(baked), whole())
    assert covered.layers == LAYERS[2:]
    assert {each.digest for each in covered.documents} == {whole().target.digest, whole().config.digest}
    assert baked.whole_images == ()


@pytest.mark.parametrize("count", [3, 4])
def test_a_part_that_would_be_the_whole_is_refused(count: int) -> None:
    with pytest.raises(InputError, match="has 3 layers") as caught:
        lowest(whole(), count)
    assert "to bake it whole" in caught.value.hint

"""The story's own decisions, with stand-ins for the builder."""

from __future__ import annotations

from pathlib import Path

import pytest

from parbake import flow
from parbake.builders import Baked, Ingredients
from parbake.errors import ArtefactFull, DiskFull, LayerBomb, ParbakeError
from parbake.events import Event, Events
from parbake.model import GIB, MIB, Plan
from tests.support.plans import image, layer, plan


class Builder:
    """Fails on disks that are too small, as the local builder does."""

    name = "stand-in"

    def __init__(self, needed: int, error: ParbakeError) -> None:
        self.needed, self.error = needed, error
        self.works: list[Path] = []

    def build(self, plan: Plan, ingredients: Ingredients) -> Baked:
        self.works.append(ingredients.work)
        assert list(ingredients.work.iterdir()) == []
        (ingredients.work / "disk.raw").write_bytes(b"")
        if plan.size < self.needed:
            raise self.error
        return Baked(ingredients.work / "disk.raw")


def build(folder: Path, made: Plan, builder: Builder, said: list[Event]) -> tuple[Plan, Baked]:
    ingredients = Ingredients(None, lambda _: pytest.fail("nothing is fetched"), folder, Events(said.append))
    return flow.build_artefact(made, builder, ingredients)


UNKNOWN = plan(images=(image(layers=(layer("x", size=100 * MIB, raw_size=0),)),))


@pytest.mark.parametrize("error", [ArtefactFull("the images do not fit"), LayerBomb("inflates to more than the disk")])
def test_a_larger_disk_is_tried_in_a_fresh_folder(tmp_path: Path, error: ParbakeError) -> None:
    said: list[Event] = []
    builder = Builder(3 * GIB, error)
    grown, baked = build(tmp_path, UNKNOWN, builder, said)
    assert grown == UNKNOWN.model_copy(update={"size": 4 * GIB})
    assert [event.text for event in said] == [
        f"{error.message}: baking again with a disk of {size} MiB" for size in (2048, 4096)
    ]
    assert len(set(builder.works)) == 3
    assert list(tmp_path.rglob("disk.raw")) == [baked.path]


def test_the_error_comes_out_when_no_size_is_believable(tmp_path: Path) -> None:
    said: list[Event] = []
    with pytest.raises(LayerBomb, match="a bomb"):
        build(tmp_path, UNKNOWN, Builder(1 << 60, LayerBomb("a bomb")), said)
    assert len(said) == 4


def test_other_errors_come_out_at_once(tmp_path: Path) -> None:
    said: list[Event] = []
    builder = Builder(3 * GIB, DiskFull("the host is full"))
    with pytest.raises(DiskFull, match="the host is full"):
        build(tmp_path, UNKNOWN, builder, said)
    assert len(builder.works) == 1
    assert said == []


def test_what_certainly_does_not_fit_is_refused_before_any_work(tmp_path: Path) -> None:
    flow.need_room(tmp_path, plan())
    huge = plan(images=(image(layers=(layer("x", size=1 << 50, raw_size=0),)),))
    with pytest.raises(DiskFull, match="of free space, and the images take more than 1073741824 MiB") as caught:
        flow.need_room(tmp_path, huge)
    assert "output" in caught.value.hint

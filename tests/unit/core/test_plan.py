from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parbake.core.errors import InputError
from parbake.core.model import GIB, MIB, Artefact, Base, Image, Plan, Platform
from parbake.core.plan import LARGEST_BAKED_SHARE, cautions, disk_size, larger, make_plan, measure
from standins.plans import image, layer

PLATFORM = Platform(architecture="amd64")


def _plan(*images: Image, fixed_size: int = 0, sandbox: Image | None = None, base: Base | None = None) -> object:
    return make_plan(
        name="node",
        platform=PLATFORM,
        base=base or Base(kind="none"),
        artefact=Artefact(kind="volume"),
        images=images,
        sandbox=sandbox,
        fixed_size=fixed_size,
    )


def test_a_shared_layer_counts_once() -> None:
    shared = layer("shared")
    one, two = image("a.io/one:1", layers=(shared,)), image("a.io/two:1", layers=(shared, layer("top", below="shared")))
    assert measure([one, two], keep_layers=False).raw == 50 * MIB


def test_the_same_layer_on_another_parent_is_another_snapshot() -> None:
    one = image("a.io/one:1", layers=(layer("x"),))
    two = image("a.io/two:1", layers=(layer("below"), layer("x", below="below")))
    sizes = measure([one, two], keep_layers=False)
    assert sizes.raw == 75 * MIB
    assert sizes.transfer == pytest.approx(20 * MIB, abs=5000)


def test_without_a_hint_the_size_is_estimated_and_says_so() -> None:
    sizes = measure([image(layers=(layer("x", raw_size=0),))], keep_layers=False)
    assert sizes.estimated
    assert sizes.raw == 40 * MIB


def test_kept_layers_take_their_size_too() -> None:
    kept, dropped = (measure([image()], keep_layers=keep).baked for keep in (True, False))
    assert kept - dropped == 10 * MIB


@given(st.lists(st.integers(0, 20 * GIB), min_size=1, max_size=8), st.integers(0, 8 * GIB))
def test_the_baked_part_stays_under_its_share(raw_sizes: list[int], base_size: int) -> None:
    layers = tuple(layer(str(n), below=str(n), size=raw // 3, raw_size=raw) for n, raw in enumerate(raw_sizes))
    base = Base(kind="file", size=base_size)
    size = disk_size([image(layers=layers)], base, keep_layers=False)
    assert size % GIB == 0
    assert measure([image(layers=layers)], keep_layers=False).baked <= LARGEST_BAKED_SHARE * (size - base_size)


def test_images_are_sorted_so_that_their_order_in_the_file_does_not_matter() -> None:
    assert _plan(image("b.io/b:1"), image("a.io/a:1")) == _plan(image("a.io/a:1"), image("b.io/b:1"))


def test_a_fixed_size_that_cannot_hold_the_images_is_refused_before_any_work() -> None:
    with pytest.raises(InputError, match="size: 20 MiB cannot hold"):
        _plan(image(), fixed_size=20 * MIB)


def test_the_images_may_fit_into_a_base_that_does_not_grow() -> None:
    def fixed(size: int) -> Plan:
        return make_plan(
            name="node",
            platform=PLATFORM,
            base=Base(kind="file", size=GIB),
            artefact=Artefact(kind="machine-image"),
            images=[image()],
            sandbox=None,
            fixed_size=size,
        )

    (caution,) = cautions(fixed(GIB))
    assert "adds 0 MiB to the base's disk" in caution
    assert cautions(fixed(2 * GIB)) == ()
    with pytest.raises(InputError, match="at least 1024 MiB"):
        fixed(GIB - MIB)


def test_cautions() -> None:
    tight = make_plan(
        name="node",
        platform=PLATFORM,
        base=Base(kind="none"),
        artefact=Artefact(kind="volume"),
        images=[image()],
        sandbox=None,
        fixed_size=40 * MIB,
    )
    garbage, sandbox = cautions(tight)
    assert "garbage collection" in garbage
    assert "sandbox (pause) image" in sandbox
    whole = make_plan(
        name="node",
        platform=PLATFORM,
        base=Base(kind="none"),
        artefact=Artefact(kind="volume"),
        images=[image()],
        sandbox=image("localhost/p:1"),
    )
    assert cautions(whole) == ()


def _sized(raw_size: int, size: int, *, fixed: bool = False) -> Plan:
    made = _plan(image(layers=(layer("x", size=100 * MIB, raw_size=raw_size),)), fixed_size=size if fixed else 0)
    assert isinstance(made, Plan)
    return made.model_copy(update={"size": size})


def test_a_disk_that_was_too_small_doubles_up_to_what_is_believable() -> None:
    plan, sizes = _sized(0, GIB), []
    while (bigger := larger(plan, bomb=True)) is not None:
        assert bigger.key == plan.key
        plan = bigger
        sizes.append(plan.size // GIB)
    assert sizes == [2, 4, 8, 11]  # 64 times 100 MiB, at 60 % of the disk


def test_a_fixed_size_is_the_users() -> None:
    assert larger(_sized(0, GIB, fixed=True), bomb=False) is None


def test_a_layer_that_lies_about_its_size_gets_no_second_chance() -> None:
    honest = _sized(250 * MIB, GIB)
    assert larger(honest, bomb=True) is None
    grown = larger(honest, bomb=False)  # many small files take more than their tar
    assert grown
    assert grown.size == 2 * GIB


@given(st.integers(1, 40 * GIB), st.integers(0, 200 * GIB), st.integers(1, 64))
def test_growing_ends(size: int, raw_size: int, gibibytes: int) -> None:
    made = image(layers=(layer("x", size=size, raw_size=raw_size),))
    plan = make_plan(
        name="n",
        platform=PLATFORM,
        base=Base(kind="none"),
        artefact=Artefact(kind="volume"),
        images=[made],
        sandbox=None,
    ).model_copy(update={"size": gibibytes * GIB})
    for _ in range(40):
        bigger = larger(plan, bomb=False)
        if bigger is None:
            return
        assert bigger.size > plan.size
        assert bigger.size % GIB == 0
        plan = bigger
    pytest.fail("it grows for ever")


def test_what_fills_a_volume_is_not_in_it() -> None:
    ami = Base(kind="ami", identity="ami-1", size=20 * GIB)
    plan = _plan(image(), base=ami)
    assert isinstance(plan, Plan)
    assert plan.size == GIB
    assert cautions(plan) == (), "the AMI's own pause image goes with it"
    bigger = larger(plan, bomb=False)
    assert bigger
    assert bigger.size == 2 * GIB
    fixed = _plan(image(), base=ami, fixed_size=GIB)
    assert isinstance(fixed, Plan)
    assert cautions(fixed) == ()

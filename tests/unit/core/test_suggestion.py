"""Which layers are worth their place: against every choice there is, and against what people do."""

from __future__ import annotations

import random

import pytest

from parbake.core.coverage import Held, cover
from parbake.core.model import GIB, MIB
from parbake.core.plan import snapshot_size
from parbake.core.suggestion import Selection, StartedTogether, choose, most_started
from parbake.images.registry.part import lowest
from standins.plans import image, layer, plan
from standins.traces import best_by_table, best_by_trying, forest, shared_bases, stacked

SIZES = {"base": 100 * MIB, "one": 300 * MIB, "two": 300 * MIB, "old": 300 * MIB}
ONE, TWO, OLD = (stacked(name, "base", name, sizes=SIZES) for name in ("one", "two", "old"))


def picked(choice: Selection) -> list[tuple[str, int]]:
    return [(pick.image.reference.repository, pick.layers) for pick in choice.picks]


@pytest.mark.parametrize("seed", range(30))
def test_no_choice_of_a_small_forest_is_better(seed: int) -> None:
    chance = random.Random(seed)
    started = forest(chance, 5, words=5, depth=3)
    for budget in (200 * MIB, 700 * MIB, 2 * GIB):
        best, found = best_by_trying(started, budget), choose(started, budget)
        assert found.size <= budget
        assert best * 0.999 <= found.saved <= best * 1.0001, seed
        assert found.bound >= best * 0.9999, "the bound holds"
        assert most_started(started, budget).saved <= best * 1.0001


@pytest.mark.parametrize("seed", range(3))
def test_a_forest_of_hundreds_of_layers_is_solved_within_a_percent(seed: int) -> None:
    started = forest(random.Random(seed), 60, words=20, depth=6)
    found = choose(started, 4 * GIB)
    best = best_by_table(started, 4 * GIB)  # it rounds sizes up, so that the best may be a little more
    assert found.saved >= best * 0.99
    assert found.of_bound > 0.95


def test_a_base_that_two_share_comes_before_what_one_has_alone() -> None:
    found = choose([StartedTogether((ONE,), 10), StartedTogether((TWO,), 9)], snapshot_size(ONE.layers[0]) + 1)
    assert picked(found) == [("one", 1)]
    assert found.saved == 19 * 100 * MIB


def test_images_of_one_node_share_what_is_fetched_once() -> None:
    assert choose([StartedTogether((ONE, TWO), 10)], GIB).fetched == 10 * 700 * MIB
    assert choose([StartedTogether((ONE,), 10), StartedTogether((TWO,), 10)], GIB).fetched == 10 * 800 * MIB


def test_what_must_not_be_baked_still_tells_how_often_its_layers_are_fetched() -> None:
    started = [StartedTogether((OLD,), 100), StartedTogether((ONE,), 1)]
    found = choose(started, 10 * GIB, {ONE.reference})
    assert picked(found) == [("one", 2)]
    assert found.saved == 101 * 100 * MIB + 300 * MIB
    assert picked(most_started(started, 10 * GIB, {ONE.reference})) == [("one", 2)]


def test_a_bake_of_the_choice_saves_what_it_says() -> None:
    started = [each for each in forest(random.Random(1), 12, words=4, depth=4) if len(each.images) == 1]
    found = choose(started, 1000 * MIB)
    assert {pick.whole for pick in found.picks} == {True, False}
    images = tuple(pick.image if pick.whole else lowest(pick.image, pick.layers) for pick in found.picks if pick.layers)
    held = Held.by(plan(images=images))
    saved = sum(
        each.nodes * (sum(one.size for one in app.layers) - sum(one.size for one in cover(held, app).layers))
        for each in started
        for app in each.images
    )
    assert saved == pytest.approx(found.saved)


def test_a_layer_that_an_image_has_twice_is_fetched_while_its_upper_place_is_missing() -> None:
    below = layer("a", size=100), layer("b", below="a", size=100)
    twice = image(layers=(*below, layer("a", below="ab", size=100)))
    assert choose([StartedTogether((twice,))], 2 * snapshot_size(below[0])).saved == 100
    assert choose([StartedTogether((twice,))], GIB).saved == 200


@pytest.mark.parametrize("seed", range(3))
def test_twice_the_bytes_are_saved_for_each_gib_of_what_most_nodes_start(seed: int) -> None:
    started = shared_bases(random.Random(seed))
    found, naive = choose(started, 10 * GIB), most_started(started, 10 * GIB)
    assert found.of_bound > 0.95
    assert found.saved / found.size > 2 * naive.saved / naive.size


@pytest.mark.parametrize(
    ("started", "budget"), [([], GIB), ([StartedTogether((ONE,))], 0), ([StartedTogether((image(layers=()),))], 0)]
)
def test_nothing_to_choose_is_no_error(started: list[StartedTogether], budget: int) -> None:
    assert choose(started, budget).saved == 0
    assert choose(started, budget).size == 0
